"""What velocity_inversion costs: training step, inference, generator, refinement, decimation, memory.

Run: python benchmarks/velocity_inversion.py [--quick]. Case `cpu`: one thread; CPU seconds, best of several;
peak memory of a process of its own. Ratios are to the InversionNet of this package, measured in turns in the
same run, or to what the line names. Case `gpu`, where a CUDA device is found: samples a second of training
and inference in fp32 and in compiled bf16, and the simulation of a challenge section on its own 1 m cells;
seconds of the clock. The tables and benchmarks/results/velocity_inversion.json say the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
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

from benchmarks._table import RESULTS, command_line, row, show, store_case  # noqa: E402
from benchmarks._velocity_inversion_gpu import gpu_rows  # noqa: E402
from benchmarks._velocity_inversion_memory import (  # noqa: E402
    BATCH,
    CPU,
    Table,
    batch_and_statistics,
    cache_rows,
    memory_rows,
    new_task,
)
from common import device as devices  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from velocity_inversion.after import as_network  # noqa: E402
from velocity_inversion.config import TrainConfig  # noqa: E402
from velocity_inversion.dataset import ShotDataset  # noqa: E402
from velocity_inversion.denoiser import Denoiser  # noqa: E402
from velocity_inversion.diffusion import CHANNELS  # noqa: E402
from velocity_inversion.geometry import challenge_survey, openfwi_survey  # noqa: E402
from velocity_inversion.member import Member  # noqa: E402
from velocity_inversion.preprocess import decimate  # noqa: E402
from velocity_inversion.quick import GeneratedSource, untrained  # noqa: E402
from velocity_inversion.refine import RefineSettings, observed_traces, refine  # noqa: E402
from velocity_inversion.simulate import default_simulation, simulate, to_survey_rate  # noqa: E402
from velocity_inversion.submission import write_archive  # noqa: E402
from velocity_inversion.synthetic import make_section  # noqa: E402

ITERATIONS = (2, 4)  # of a short and of a longer refinement, whose difference counts


def best_cpu_s(function: Callable[[], Any], repeats: int) -> float:
    """Return the fewest CPU seconds of several calls."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def network_rows(repeats: int) -> Table:
    """Measure training steps and inference of both networks in turns."""
    survey = openfwi_survey()
    batch, statistics = batch_and_statistics(survey)
    precision = resolve_precision("fp32", CPU)
    tasks = {}
    for name in ("ensemble", "inversionnet"):
        tasks[name] = new_task(TrainConfig(model=name, physics_every=0), survey, statistics, precision)
        tasks[name].step(batch, 0)
    steps: dict[str, list[float]] = {name: [] for name in tasks}
    for k in range(repeats):
        for name, task in tasks.items():
            steps[name].append(best_cpu_s(lambda t=task, k=k: t.step(batch, k + 1), 1))
    one = {k: v[:1] for k, v in batch.items()}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    with torch.no_grad():
        for _ in range(2 * repeats):
            for name, task in tasks.items():
                member = task.member.eval()
                times[name].append(best_cpu_s(lambda m=member: m(one), 1))
    ours, other = min(steps["ensemble"]), min(steps["inversionnet"])
    fast, slow = min(times["ensemble"]), min(times["inversionnet"])
    return [
        row("training step, batch 8, InversionNet", other, "CPU s"),
        row("training step, batch 8, ours", ours, "CPU s"),
        row("training step, ours / InversionNet", ours / other, "times", 0.4, baseline="InversionNet"),
        row("inference of a sample, InversionNet", slow, "CPU s"),
        row("inference of a sample, one member", fast, "CPU s"),
        row("inference, ours / InversionNet", fast / slow, "times", 0.5, baseline="InversionNet"),
    ]


def challenge_rows(repeats: int) -> Table:
    """Measure inference and decimation on the grid of 300 x 1259 cells."""
    survey = challenge_survey()
    gathers = np.random.default_rng(0).standard_normal((5, 10001, 31)).astype(np.float32)
    seconds = best_cpu_s(lambda: decimate(gathers, 40, 250), repeats)
    member = Member(TrainConfig(), survey).eval()
    batch = {
        "gathers": torch.from_numpy(decimate(gathers, 40, 250))[None],
        "source_xz": torch.from_numpy(survey.sources).float()[None],
        "receiver_xz": torch.from_numpy(survey.receivers).float()[None],
        "live": torch.ones(1, 5, 31, dtype=torch.bool),
    }
    with torch.no_grad():
        inference = best_cpu_s(lambda: member(batch), repeats)
    return [
        row("decimation 5 x 10001 x 31 -> 250", seconds, "CPU s", 0.15),
        row("inference of a challenge sample, one member", inference, "CPU s", 0.5),
    ]


def physics_rows(repeats: int) -> Table:
    """Measure the generator and the refinement."""
    survey = openfwi_survey()
    simulation = default_simulation(survey)
    sections = np.stack([make_section((70, 70), "curved", 0, "bench", i).vp for i in range(4)])

    def generate() -> None:
        with torch.no_grad():
            traces = simulate(torch.from_numpy(sections), simulation)
        to_survey_rate(traces.numpy(), simulation)

    generate()
    each = best_cpu_s(generate, repeats) / 4
    with torch.no_grad():
        observed = simulate(torch.from_numpy(sections[:1]), simulation)[0]
    start = torch.full((70, 70), float(sections[0].mean()))
    iterations = 3
    settings = RefineSettings(iterations=iterations)
    whole = best_cpu_s(lambda: refine(start, observed, simulation, settings), max(1, repeats // 2))
    none = best_cpu_s(lambda: refine(start, observed, simulation, replace(settings, iterations=0)), 1)
    challenge = challenge_survey()
    coarse = default_simulation(challenge)
    wide = torch.from_numpy(make_section((1259, 300), "layered", 0, "bench", 0).vp)[None]
    with torch.no_grad():
        seconds = best_cpu_s(lambda: simulate(wide, coarse), max(1, repeats // 2))
    return [
        row("openfwi sample, four at once", each, "CPU s", 0.30),
        row("waveform iteration, 70 x 70", (whole - none) / iterations, "CPU s", 1.5),
        row("challenge sample at 5 m, simulation", seconds, "CPU s", 1.5),
    ]


def iteration_s(function: Callable[[RefineSettings], Any], settings: RefineSettings, repeats: int) -> float:
    """Return the CPU seconds of one iteration: what a longer refinement takes more than a short one."""
    seconds, counts = [], []
    for iterations in ITERATIONS:
        given, found = replace(settings, iterations=iterations), []
        seconds.append(best_cpu_s(lambda s=given, f=found: f.append(function(s)), repeats))
        counts.append(len(found[0].history))
    return (seconds[1] - seconds[0]) / (counts[1] - counts[0])


def refinement_rows(repeats: int) -> Table:
    """Measure an iteration in data space, and one by the waveform on the challenge grid."""
    source = GeneratedSource(openfwi_survey())
    ensemble, simulation = untrained(source.survey), default_simulation(source.survey)
    observed = observed_traces(source.read_gathers(0)[0], simulation)
    dataset = ShotDataset(source, ensemble.preprocessing)
    network = as_network(ensemble, dataset, 0, simulation, CPU)
    start = torch.full(source.survey.model_shape_zx, float(source.velocity(0).mean()))
    data_space = iteration_s(
        lambda settings: refine(start, observed, simulation, settings, network),
        RefineSettings(mode="data_space"),
        repeats,
    )
    survey = challenge_survey()
    coarse = default_simulation(survey)
    truth = torch.from_numpy(make_section(survey.model_shape_zx, "layered", 0, "bench", 0).vp)
    with torch.no_grad():
        recorded = simulate(truth[None], coarse)[0]
    wide = torch.full(survey.model_shape_zx, float(truth.mean()))
    waveform = iteration_s(
        lambda settings: refine(wide, recorded, coarse, settings), RefineSettings(), max(1, repeats // 2)
    )
    return [
        row("data-space iteration, 70 x 70", data_space, "CPU s"),
        row(f"waveform iteration, challenge grid at {coarse.grid_m:g} m", waveform, "CPU s"),
    ]


def diffusion_rows(repeats: int) -> Table:
    """Measure one evaluation of the denoiser."""
    network = Denoiser(CHANNELS).eval()
    x, memory = torch.randn(BATCH, CHANNELS, 70, 70), torch.randn(BATCH, 36, 128)
    known = torch.ones(BATCH, dtype=torch.bool)
    with torch.no_grad():
        seconds = best_cpu_s(lambda: network(x, torch.zeros(BATCH), memory, known), repeats)
    return [
        row("denoiser, eight sections", seconds, "CPU s"),
        row("posterior of 8, 8 steps", 15 * seconds, "CPU s"),
    ]


def archive_rows() -> Table:
    """Measure how much an archive of 150 challenge sections adds to the resident memory."""
    values = np.full((300, 1259), 2.5)
    with tempfile.TemporaryDirectory() as name:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_archive(Path(name) / "submission.npz", [f"s{i}" for i in range(150)], lambda _name: values)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [
        row("archive of 150 sections, memory added", (after - before) / 1024, "MB", 100),
    ]


def cpu_rows(repeats: int) -> Table:
    """Return the lines of case cpu."""
    rows = archive_rows()  # first: the peak of the process must not hide what it adds
    rows += network_rows(repeats) + challenge_rows(repeats) + physics_rows(repeats) + diffusion_rows(repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(row("peak memory of this benchmark", peak, "MB"))
    return rows + refinement_rows(repeats) + memory_rows() + cache_rows()


def save(path: Path, case: str, rows: Table, began: float, machine: str) -> None:
    """Print the lines of a case and replace them in the file; the other case stays."""
    show(rows)
    result = {
        "rows": rows,
        "command": command_line(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, {machine}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    store_case(path, case, result, alone="cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write benchmarks/results/velocity_inversion.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="all", choices=("all", "cpu", "gpu"), help="which tables (all)")
    parser.add_argument("--quick", action="store_true", help="measure once instead of four times")
    path = RESULTS / "velocity_inversion.json"
    parser.add_argument("--result", type=Path, default=path, help="file of the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.case in ("all", "cpu"):
        began = time.perf_counter()
        save(args.result, "cpu", cpu_rows(1 if args.quick else 4), began, "one thread")
    if args.case in ("all", "gpu"):
        device = devices.resolve_device("auto")
        if not devices.is_cuda(device):
            print("no CUDA device: GPU rows skipped")
            return 0
        began = time.perf_counter()
        name = torch.get_device_module(device).get_device_name(device)
        save(args.result, "gpu", gpu_rows(device), began, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
