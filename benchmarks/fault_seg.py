"""What fault_seg costs and how fast it learns. Run: python benchmarks/fault_seg.py [--case CASE].

Case cost: FLOP, CPU seconds, memory, data and files; networks are compared in the same run, best of several,
each in a process of its own for its peak memory; a crop of the F3 survey where the real files are; tiles
beside the whole cube. Case gpu, which follows it where a CUDA device is found: seconds of a survey in bf16.
Case streaming: the memory that a large sparse volume adds, five volumes of a network that costs next to
nothing, and whether it grows with the inlines. `--quality` trains on one thread: short is `hr` from scratch
for a short time, curves puts `hr` beside `unet` at several times, mtl compares task losses of `hr` and `mtl`,
no name means all three. The table and benchmarks/results/fault_seg.json say the same; a case replaces its
own rows there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import _fault_seg_quality as quality  # noqa: E402
from benchmarks._child import ask, peak_bytes  # noqa: E402
from benchmarks._fault_seg_survey import (  # noqa: E402
    crop_rows,
    gpu_rows,
    make_volume,
    seam_rows,
    streaming_rows,
)
from benchmarks._table import RESULTS, command_line, row, show, store_case  # noqa: E402
from common import device as devices  # noqa: E402
from common.cli import main  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from common.guard import Guard  # noqa: E402
from common.noise import gaussian  # noqa: E402
from common.optim import parameter_count  # noqa: E402
from common.run import MachineOptions  # noqa: E402
from common.sampling import Draw  # noqa: E402
from fault_seg.config import TrainConfig  # noqa: E402
from fault_seg.config_infer import InferConfig  # noqa: E402
from fault_seg.dataset import SyntheticVolumes  # noqa: E402
from fault_seg.infer import infer  # noqa: E402
from fault_seg.model import HEADS, build_network, fuse_batch_norm  # noqa: E402
from fault_seg.segy import open_segy  # noqa: E402
from fault_seg.synthetic import degrade, make_sample, preset  # noqa: E402
from fault_seg.train import FaultTask  # noqa: E402
from fault_seg.volumes import write_volume  # noqa: E402

NETWORKS = ("hr", "unet", "mtl")
SIZE = 64
ROUNDS = {"hr": 3, "unet": 3, "mtl": 1}
CASES = ("cost", "gpu", "streaming", *quality.CASES)
REAL = ROOT.parent / "shared/data"
SECONDS = {"short": 600.0, "curves": 240.0, "mtl": 300.0}
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
            found[f"{name} {what}"] = ask(__file__, "--measure", name, what)
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
        row("forward, hr over mtl", hr["seconds"] / mtl["seconds"], "times", 0.2, baseline="mtl"),
        row(
            "training step, hr over mtl",
            found["hr train"]["seconds"] / found["mtl train"]["seconds"],
            "times",
            1 / 6,
            baseline="mtl",
        ),
        row("inference memory, hr over unet", hr["peak"] / unet["peak"], "times", 1.0, baseline="unet"),
        row("inference memory, hr over mtl", hr["peak"] / mtl["peak"], "times", 1.0, baseline="mtl"),
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


def cost_rows(real_data: Path) -> Table:
    """Measure networks, generator, files, the crop of a real survey, and seams of tiles."""
    with tempfile.TemporaryDirectory() as name:
        rows = network_rows() + generator_rows() + survey_rows(Path(name))
    return rows + crop_rows(real_data) + seam_rows()


def rows_of(case: str, given: argparse.Namespace) -> tuple[Table, dict[str, Any], str]:
    """Return (lines of a case, its settings, what it ran on); no lines where it has to be left out."""
    if case == "cost":
        return cost_rows(given.real_data), {}, "one thread"
    if case == "streaming":
        return streaming_rows(given.stream_gb), {"stream_gb": given.stream_gb}, "one thread"
    if case == "gpu":
        device = devices.resolve_device("auto")
        if not devices.is_cuda(device):
            print("no CUDA device: GPU rows skipped")
            return [], {}, ""
        return gpu_rows(device), {}, torch.get_device_module(device).get_device_name(device)
    settings = settings_of(given)
    return quality.CASES[case](settings), settings.describe(case), "one thread"


def save(
    path: Path,
    case: str,
    rows: Table,
    seconds: float,
    settings: dict[str, Any],
    machine: str = "one thread",
) -> None:
    """Replace the result of one case; the others stay."""
    result = {
        "rows": rows,
        "settings": settings,
        "command": command_line(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, {machine}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }
    store_case(path, case, result, alone="cost")


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--case", "--quality", nargs="?", const="quality", default="cost", choices=(*CASES, "quality", "all")
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data/fault", help="of make_data.py --preset standard"
    )
    parser.add_argument(
        "--real_data", type=Path, default=REAL, help="folder of real files; rows of absent ones are left out"
    )
    parser.add_argument("--stream_gb", type=float, default=1.0, help="size of the streamed volume, GB (1)")
    for case, seconds in SECONDS.items():
        parser.add_argument(
            f"--{case}_seconds", type=float, default=seconds, help=f"CPU s of each training ({seconds:g})"
        )
    parser.add_argument(
        "--networks", nargs="+", default=[], choices=quality.NETWORKS, help="instead of the case's"
    )
    parser.add_argument("--checkpoints", type=int, default=4, help="points of each learning curve (4)")
    parser.add_argument("--crop", type=int, default=32, help="edge of the training crops, voxels (32)")
    parser.add_argument("--nvalid", type=int, default=0, help="held-out cubes; 0 = all")
    parser.add_argument("--ntune", type=int, default=8, help="training cubes to tune thresholds on (8)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and crops")
    parser.add_argument("--result", type=Path, default=RESULTS / "fault_seg.json", help="file of the results")
    parser.add_argument(
        "--figure", type=Path, default=ROOT / "docs/figures/fault_seg_learning_curves.png", help="of curves"
    )
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> quality.Quality:
    """Return what the trainings use."""
    names = ("data", "checkpoints", "crop", "nvalid", "ntune", "seed", "figure")
    seconds = {case: getattr(given, f"{case}_seconds") for case in SECONDS}
    return quality.Quality(
        **{name: getattr(given, name) for name in names}, seconds=seconds, networks=tuple(given.networks)
    )


def run(argv: Sequence[str]) -> None:
    """Measure, print, and write benchmarks/results/fault_seg.json."""
    given = parsed(argv)
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(measure_network(*given.measure)))
        return
    groups = {"all": CASES, "quality": tuple(quality.CASES), "cost": ("cost", "gpu")}
    for case in groups.get(given.case, (given.case,)):
        began = time.perf_counter()
        rows, used, machine = rows_of(case, given)
        if rows:
            save(given.result, case, rows, time.perf_counter() - began, used, machine)
            show(rows)


if __name__ == "__main__":
    main(run)
