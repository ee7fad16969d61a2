"""What fault_seg costs: FLOP, CPU seconds, memory, data and files. Run: python benchmarks/fault_seg.py.

Networks are compared in the same run, best of several, each in a process of its own for its peak memory. The
table and benchmarks/results/fault_seg.json say the same. With --quality SECONDS, hr and mtl are trained for
so many CPU seconds each on the same crops and the four task losses are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks._table import publish, row  # noqa: E402
from common import device as devices  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from common.guard import Guard  # noqa: E402
from common.noise import gaussian  # noqa: E402
from common.run import MachineOptions  # noqa: E402
from common.sampling import Draw  # noqa: E402
from fault_seg.config import TrainConfig  # noqa: E402
from fault_seg.config_infer import InferConfig  # noqa: E402
from fault_seg.dataset import SyntheticVolumes  # noqa: E402
from fault_seg.infer import infer  # noqa: E402
from fault_seg.model import HEADS, build_network, fuse_batch_norm, parameter_count  # noqa: E402
from fault_seg.segy import open_segy  # noqa: E402
from fault_seg.synthetic import degrade, make_sample, preset  # noqa: E402
from fault_seg.train import FaultTask  # noqa: E402
from fault_seg.volumes import write_volume  # noqa: E402

NETWORKS = ("hr", "unet", "mtl")
SIZE = 64
NUM_CROPS = 24
ROUNDS = {"hr": 3, "unet": 3, "mtl": 1}
PARTS = {"fsem": "loss_fsem", "angle": "loss_angle", "dhr": "loss_dhr", "rgt": "loss_rgt"}
Table = list[dict[str, Any]]


def cpu_seconds(function: Callable[[], Any], rounds: int = 1) -> float:
    """Return the fewest CPU seconds of several calls."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def heads_of(name: str) -> tuple[str, ...]:
    """Return the heads of a layout."""
    return ("fault",) if name == "unet" else HEADS


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_network(name: str, what: str) -> dict[str, float]:
    """Measure one network at 64^3, batch 1, in this process: "forward" or "train"."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(name, "infer", heads_of(name))
    found: dict[str, float] = {"parameters": parameter_count(network), "base": peak_bytes()}
    image = gaussian((1, 1, SIZE, SIZE, SIZE), 0, "benchmark")
    if what == "forward":
        fused = devices.channels_last(fuse_batch_norm(network))
        given = devices.like_weights(image)
        with torch.no_grad():
            fused(given)
            found["seconds"] = cpu_seconds(lambda: fused(given), ROUNDS[name])
            found["peak"] = peak_bytes()
            with FlopCounterMode(display=False) as counter:
                fused(given)
        return found | {"gflop": counter.get_total_flops() / 1e9}
    task, batch = training(name)
    task.step(batch, 0)
    found["seconds"] = cpu_seconds(lambda: task.step(batch, 1), ROUNDS[name])
    return found | {"peak": peak_bytes()}


def training(name: str) -> tuple[FaultTask, dict[str, Any]]:
    """Return a task of a layout with all its heads, and a batch of one 64^3 cube."""
    heads = heads_of(name)
    config = TrainConfig(network=name, rgt="rgt" in heads, dhr="dhr" in heads, batch_train=1, crop=(SIZE,))
    data = SyntheticVolumes(preset("standard"), 1, heads, seed=0)
    item = data[Draw(0, 0)]
    batch = {key: value[None] for key, value in item.items() if key != "source"}
    guard = Guard(torch.device("cpu"))
    return FaultTask(config, data, guard, resolve_precision("fp32", guard.device), 10), batch


def network_rows() -> Table:
    """Measure every layout, each forward and training in a fresh process, and compare."""
    found: dict[str, dict[str, float]] = {}
    for name in NETWORKS:
        for what in ("forward", "train"):
            command = [sys.executable, __file__, "--measure", name, what]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            found[f"{name} {what}"] = json.loads(answer.stdout.splitlines()[-1])
    rows = []
    targets = {"hr": (2e6, 60.0, 1.2, 4.0)}
    for name in NETWORKS:
        limits = targets.get(name, (None,) * 4)
        forward, train = found[f"{name} forward"], found[f"{name} train"]
        rows += [
            row(f"{name}: parameters", forward["parameters"], "-", limits[0]),
            row(f"{name}: forward 64^3", forward["gflop"], "GFLOP", limits[1]),
            row(f"{name}: forward 64^3", forward["seconds"], "CPU s", limits[2]),
            row(f"{name}: training step 64^3, batch 1", train["seconds"], "CPU s", limits[3]),
            row(f"{name}: peak memory, inference 64^3", forward["peak"] / 1e9, "GB"),
            row(
                f"{name}: peak memory, training 64^3",
                train["peak"] / 1e9,
                "GB",
                1.5 if name == "hr" else None,
            ),
        ]
    hr, mtl, unet = (found[f"{name} forward"] for name in ("hr", "mtl", "unet"))
    rows += [
        row("forward, hr over mtl", hr["seconds"] / mtl["seconds"], "times", 0.2),
        row(
            "training step, hr over mtl",
            found["hr train"]["seconds"] / found["mtl train"]["seconds"],
            "times",
            1 / 6,
        ),
        row("inference memory, hr over unet", hr["peak"] / unet["peak"], "times", 1.0),
        row("inference memory, hr over mtl", hr["peak"] / mtl["peak"], "times", 1.0),
    ]
    return rows


def generator_rows() -> Table:
    """Measure the generator."""
    make_sample(0, 99, preset("standard"))

    def both(size: int, index: int) -> None:
        sample = make_sample(0, index, replace(preset("standard"), shape=(size, size, size)))
        degrade(sample, 0, index)

    small = float(np.mean([cpu_seconds(lambda i=i: both(64, i)) for i in range(6)]))
    large = cpu_seconds(lambda: both(128, 1))
    return [
        row("generator, 64^3, all volumes", small, "CPU s", 0.2),
        row("generator, 128^3, all volumes", large, "CPU s", 2.5),
    ]


def survey_rows(folder: Path) -> Table:
    """Measure inference in tiles, and reading and writing SEG-Y."""
    shape = (128, 96, 96)
    image = make_volume(shape)
    write_volume(folder / "in.npy", image)
    options = MachineOptions(device="cpu", precision="fp32", threads=1)
    rows = []
    for overlap in ("32", "exact"):
        config = InferConfig(
            input=str(folder / "in.npy"),
            output=str(folder / overlap),
            figures=False,
            rgt=False,
            overlap=overlap,
        )
        seconds = infer(config, options)["seconds_network"]
        rows.append(row(f"inference, tiles {overlap}", image.size / 1e6 / seconds, "Mvoxel/s"))
    return rows + segy_rows(folder)


def make_volume(shape: tuple[int, int, int]) -> np.ndarray:
    """Return layers with noise."""
    z, y, _ = np.ogrid[: shape[0], : shape[1], : shape[2]]
    noise = np.random.default_rng(0).normal(size=shape)
    return (np.sin(0.6 * (z + 0.1 * y)) + 0.3 * noise).astype(np.float32)


def segy_rows(folder: Path) -> Table:
    """Measure SEG-Y in and out, on a file that segyio has written."""
    import segyio

    spec: Any = segyio.spec()
    spec.sorting, spec.format = 2, 5
    spec.samples, spec.ilines, spec.xlines = np.arange(512) * 4.0, np.arange(100, 200), np.arange(300, 500)
    path = folder / "in.sgy"
    rng = np.random.default_rng(0)
    with segyio.create(str(path), spec) as file:
        for i, iline in enumerate(spec.ilines):
            for j, xline in enumerate(spec.xlines):
                number = i * len(spec.xlines) + j
                file.header[number] = {segyio.su.iline: int(iline), segyio.su.xline: int(xline)}
                file.trace[number] = rng.standard_normal(512, dtype=np.float32)
    megabytes = path.stat().st_size / 1e6

    def read_all() -> np.ndarray:
        with open_segy(path) as survey:
            return survey.read(0, survey.shape[2])

    def write_all() -> None:
        with open_segy(path) as survey:
            write_volume(folder / "out.sgy", cube, like=survey)

    cube = read_all()
    return [
        row("SEG-Y read", megabytes / cpu_seconds(read_all, 3), "MB/CPU s"),
        row("SEG-Y written", megabytes / cpu_seconds(write_all, 3), "MB/CPU s"),
    ]


def quality_rows(seconds: float) -> Table:
    """Train hr and mtl for the same CPU seconds on the same crops; compare four losses on held-out cubes."""
    data = SyntheticVolumes(preset("standard"), 1, HEADS, seed=0, crop_shape=(32, 32, 32), augmented=True)
    crops = [data[Draw(i, i)] for i in range(NUM_CROPS)]
    held_out = SyntheticVolumes(replace(preset("standard"), shape=(32, 32, 32)), 6, HEADS, seed=1)
    scores: dict[str, dict[str, float]] = {}
    for name in ("hr", "mtl"):
        config = TrainConfig(network=name, crop=(32,), ema=0.99, warmup_steps=10)
        guard = Guard(torch.device("cpu"))
        precision = resolve_precision("fp32", guard.device)
        began = time.process_time()
        train_for(FaultTask(config, held_out, guard, precision, 3), crops, 3, seconds)
        steps = max(3, int(3 * seconds / (time.process_time() - began)))
        torch.manual_seed(0)
        task = FaultTask(config, held_out, guard, precision, steps)
        scores[name] = {"steps": train_for(task, crops, steps, seconds), **task.evaluate()}
    rows = [row(f"{name}: steps in {seconds:g} CPU s", found["steps"], "-") for name, found in scores.items()]
    for part, key in PARTS.items():
        ratio = scores["hr"][f"valid_{key}"] / scores["mtl"][f"valid_{key}"]
        rows.append(row(f"held-out loss {part}, hr over mtl", ratio, "times", 1.0))
    return rows


def train_for(task: FaultTask, crops: list[dict[str, Any]], steps: int, seconds: float) -> int:
    """Train for so many steps or seconds of CPU time, two crops a step; return the steps done."""
    began = time.process_time()
    for step in range(steps):
        task.step(default_collate([crops[(2 * step + i) % len(crops)] for i in (0, 1)]), step)
        if time.process_time() - began > seconds:
            return step + 1
    return steps


def main() -> int:
    """Measure, print, and write benchmarks/results/fault_seg.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--quality", type=float, default=0.0, help="CPU seconds of the contest hr against mtl"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(measure_network(*given.measure)))
        return 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        rows = network_rows() + generator_rows() + survey_rows(Path(name))
    if given.quality:
        rows += quality_rows(given.quality)
    publish("fault_seg", rows, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
