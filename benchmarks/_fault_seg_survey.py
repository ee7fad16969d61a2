"""Surveys through fault_seg's inference, for benchmarks/fault_seg.py: seconds, memory and seams.

As a script it infers `FOLDER/big.bin` (n1 n2 n3 voxels, a budget in GiB) with a network that costs next to
nothing and prints {base, peak, seconds} of its own process.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks._child import ROOT, ask, peak_bytes, run_script
from benchmarks._table import row
from common import blocks
from common import device as devices
from common.device import resolve_precision
from common.run import MachineOptions
from fault_seg import infer as inference
from fault_seg import survey
from fault_seg.config_infer import InferConfig
from fault_seg.dataset import normalise_image
from fault_seg.maps import Model
from fault_seg.model import HEADS
from fault_seg.synthetic import make_sample, preset
from fault_seg.volumes import write_volume

Rows = list[dict[str, Any]]
CPU = torch.device("cpu")
OPTIONS = MachineOptions(device="cpu", precision="fp32", threads=1)
REPEATS = 3
F3 = Path("fault/f3.sgy")  # in the folder of real files
BUDGET_GIB = 0.5
PLANE = (128, 128)  # samples and crosslines of the streamed volume
LIVE = 16  # its inlines that are no hole in the file
FIVE = 5  # volumes that inference writes
GPU_SHAPE = (128, 384, 512)  # samples, crosslines, inlines
SEAM_SHAPE, SEAM_BLOCK, SEAM_OVERLAP = (96, 96, 96), 48, 16  # voxels; tiles that abut fill the cube


class CheapNetwork(torch.nn.Module):
    """All outputs of `hr` from the image alone, voxel by voxel: what is left is the cost of streaming."""

    multiple = 16
    local_outputs = {"fault": ("fault_logit",)}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return fault_logit, orient, dhr and delta of an image [B, 1, Z, Y, X]."""
        return {"fault_logit": x, "orient": x.expand(-1, 6, -1, -1, -1), "dhr": x, "delta": 0 * x}


def make_volume(shape: tuple[int, int, int]) -> np.ndarray:
    """Return layers with noise."""
    z, y, _ = np.ogrid[: shape[0], : shape[1], : shape[2]]
    noise = np.random.default_rng(0).normal(size=shape)
    return (np.sin(0.6 * (z + 0.1 * y)) + 0.3 * noise).astype(np.float32)


def measure_stream(words: Sequence[str]) -> dict[str, float]:
    """Infer a small raw cube, then `FOLDER/big.bin`; return peaks, bytes, before and after it, and seconds.

    Args:
        words: folder, n1, n2, n3, budget in GiB.
    """
    folder, n1, n2, n3, budget = Path(words[0]), *map(int, words[1:4]), float(words[4])
    torch.set_num_threads(1)
    precision = resolve_precision("fp32", CPU)
    model = Model(CheapNetwork().eval(), "hr", "infer", HEADS, {}, Path("cheap"), "", CPU, precision)
    small = InferConfig(
        input=str(folder / "small.bin"),
        output=str(folder / "small"),
        n1=32,
        n2=32,
        n3=32,
        max_memory=budget,
        figures=False,
    )
    big = replace(small, input=str(folder / "big.bin"), output=str(folder / "big"), n1=n1, n2=n2, n3=n3)
    make_volume((32, 32, 32)).transpose(2, 1, 0).tofile(small.input)
    with mock.patch.object(inference, "load", lambda *_, **__: model):
        inference.infer(small, OPTIONS)
        base, began = peak_bytes(), time.process_time()
        inference.infer(big, OPTIONS)
    return {"base": base, "peak": peak_bytes(), "seconds": time.process_time() - began}


def streamed(num_inlines: int, plane: tuple[int, int], budget_gib: float) -> dict[str, float]:
    """Return what `measure_stream` finds, in a process of its own, on a raw file that is mostly a hole."""
    shape = (*plane, num_inlines)
    with tempfile.TemporaryDirectory() as name:
        with (Path(name) / "big.bin").open("wb") as file:
            file.write(make_volume((*plane, LIVE)).transpose(2, 1, 0).tobytes())
            file.truncate(4 * math.prod(shape))
        return ask(__file__, name, *shape, budget_gib)


def streaming_rows(size_gb: float, plane: tuple[int, int] = PLANE, budget_gib: float = BUDGET_GIB) -> Rows:
    """Measure the memory that a sparse volume of `size_gb` adds to a small one's, and half the inlines."""
    inlines = round(size_gb * 1e9 / (8 * math.prod(plane)))
    half, whole = (streamed(n, plane, budget_gib) for n in (inlines, 2 * inlines))
    added = [(found["peak"] - found["base"]) / 2**30 for found in (half, whole)]
    place = f"streaming, {size_gb:g} GB sparse, --max_memory {budget_gib:g}"
    return [
        row(f"{place}, half the inlines: memory added", added[0], "GiB"),
        row(f"{place}: memory added", added[1], "GiB", 1.5 * budget_gib),
        row(
            f"{place}: peak memory, all inlines / half",
            whole["peak"] / half["peak"],
            "times",
            1.05,
            baseline="half the inlines",
        ),
        row(f"{place}: time", whole["seconds"], "CPU s"),
    ]


@contextlib.contextmanager
def network_clock(clock: Callable[[], float]) -> Iterator[list[float]]:
    """Yield a list that collects the seconds which each run of the network over a survey takes inside."""
    seconds: list[float] = []
    run_network = survey.run_network

    def timed(*args: Any, **more: Any) -> None:
        began = clock()
        run_network(*args, **more)
        seconds.append(clock() - began)

    with mock.patch.object(survey, "run_network", timed):
        yield seconds


def crop_rows(real_data: Path) -> Rows:
    """Measure the crop of the F3 survey, SEG-Y in to five SEG-Y out with the shipped weights."""
    path = real_data / F3
    if not path.is_file():
        print(f"F3 crop: left out, {path} is not there")
        return []
    script = ROOT / "scripts/fault_seg/infer.py"
    with tempfile.TemporaryDirectory() as name, network_clock(time.process_time) as network:
        for k in range(REPEATS):
            config = InferConfig(input=str(path), output=f"{name}/{k}", figures=False)
            inference.infer(config, OPTIONS)
        began = time.perf_counter()
        flags = ("--device", "cpu", "--precision", "fp32", "--threads", 1, "--figures", "false")
        run_script(script, "--input", path, "--output", f"{name}/line", *flags)
        wall = time.perf_counter() - began
        if len(list(Path(name).glob("line.*.sgy"))) != FIVE:
            raise RuntimeError(f"{path}: not five volumes in {sorted(Path(name).iterdir())}")
    return [
        row("F3 crop of 23 x 18 x 75: network", min(network), "CPU s", 2.0),
        row("F3 crop, SEG-Y to five SEG-Y, with start-up", wall, "s"),
    ]


def seam_rows(
    shape: tuple[int, int, int] = SEAM_SHAPE, block: int = SEAM_BLOCK, overlap: int = SEAM_OVERLAP
) -> Rows:
    """Measure how far the fault probability of blended tiles lies from that of the whole cube."""
    model = inference.load(precision="fp32")
    image = normalise_image(make_sample(0, 5000, replace(preset("standard"), shape=shape)).image)
    whole = model.maps(torch.from_numpy(image)[None, None])[0, 0].numpy()

    def apart(shared: int) -> float:
        found = np.zeros(shape, np.float32)

        def write(x0: int, slab: np.ndarray) -> None:
            found[..., x0 : x0 + slab.shape[-1]] = slab[0]

        tiles = blocks.plan_blended(shape, block, shared, model.multiple)
        blocks.run_blended(model.maps, image[None], tiles, write)
        return float(np.abs(found - whole).mean())

    blended, abutting = apart(overlap), apart(0)
    place = f"{' x '.join(map(str, shape))} in tiles of {block}, mean difference from the whole"
    return [
        row(f"{place}, abutting", abutting, "-"),
        row(
            f"{place}, overlap {overlap}",
            blended,
            "-",
            baseline="abutting tiles",
            ratio=blended / abutting,
        ),
    ]


def gpu_rows(
    device: torch.device, shape: tuple[int, int, int] = GPU_SHAPE, precision: str = "bf16", model: str = ""
) -> Rows:
    """Measure a survey on a GPU, npy in and five npy out: seconds of the network and of all.

    Args:
        device: to measure.
        shape: samples, crosslines, inlines.
        precision: of the network.
        model: its file; "" = the shipped weights.
    """
    options = MachineOptions(device=str(device), precision=precision)
    totals = []

    def clock() -> float:
        devices.synchronize(device)
        return time.perf_counter()

    with tempfile.TemporaryDirectory() as name, network_clock(clock) as network:
        write_volume(Path(name) / "in.npy", make_volume(shape))
        for k in range(REPEATS):  # the first chooses kernels
            config = InferConfig(input=f"{name}/in.npy", output=f"{name}/{k}", model=model, figures=False)
            began = clock()
            inference.infer(config, options)
            totals.append(clock() - began)
    place = f"{' x '.join(map(str, reversed(shape)))}, {precision}"
    rows = [
        row(f"{place}: network", min(network), "s", 5.0),
        row(f"{place}: npy to five npy", min(totals), "s"),
    ]
    if devices.is_cuda(device):
        rows.append(row(f"{place}: peak memory", devices.peak_memory_bytes(device) / 1e9, "GB"))
    return rows


if __name__ == "__main__":
    print(json.dumps(measure_stream(sys.argv[1:])))
