"""What velocity_inversion costs: training step, inference, generator, refinement, decimation, memory.

Run: python benchmarks/velocity_inversion.py [--quick]. One thread; CPU seconds, best of several.
Ratios are to the InversionNet of this package, measured in turns in the same run. The table and
benchmarks/results/velocity_inversion.json say the same.
"""

from __future__ import annotations

import os
import resource
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

from benchmarks._table import publish, row  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from common.guard import Guard  # noqa: E402
from velocity_inversion.config import TrainConfig  # noqa: E402
from velocity_inversion.dataset import Preprocessing, ShotDataset, collate  # noqa: E402
from velocity_inversion.denoiser import Denoiser  # noqa: E402
from velocity_inversion.diffusion import CHANNELS  # noqa: E402
from velocity_inversion.geometry import Survey, challenge_survey, openfwi_survey  # noqa: E402
from velocity_inversion.member import Member, MemberTask, Statistics, fit_statistics  # noqa: E402
from velocity_inversion.preprocess import decimate  # noqa: E402
from velocity_inversion.quick import GeneratedSource  # noqa: E402
from velocity_inversion.refine import RefineSettings, refine  # noqa: E402
from velocity_inversion.simulate import default_simulation, simulate, to_survey_rate  # noqa: E402
from velocity_inversion.submission import write_archive  # noqa: E402
from velocity_inversion.synthetic import make_section  # noqa: E402

Table = list[dict[str, Any]]
CPU = torch.device("cpu")
BATCH = 8


def best_cpu_s(function: Callable[[], Any], repeats: int) -> float:
    """Return the fewest CPU seconds of several calls."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def batch_and_statistics(survey: Survey) -> tuple[dict[str, Any], Statistics]:
    """Return a batch of eight copies of one generated sample, and its statistics."""
    dataset = ShotDataset(GeneratedSource(survey), Preprocessing())
    return collate([dataset[0]] * BATCH), fit_statistics(dataset, survey)


def network_rows(repeats: int) -> Table:
    """Measure training steps and inference of both networks in turns."""
    survey = openfwi_survey()
    batch, statistics = batch_and_statistics(survey)
    precision = resolve_precision("fp32", CPU)
    tasks = {}
    for name in ("ensemble", "inversionnet"):
        config = TrainConfig(model=name, physics_every=0)
        tasks[name] = MemberTask(config, survey, statistics, [], Guard(CPU), precision, 100, 10)  # type: ignore[arg-type]
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


def memory_rows() -> Table:
    """Measure how much an archive of 150 challenge sections adds to the resident memory."""
    values = np.full((300, 1259), 2.5)
    with tempfile.TemporaryDirectory() as name:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_archive(Path(name) / "submission.npz", [f"s{i}" for i in range(150)], lambda _name: values)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [
        row("archive of 150 sections, memory added", (after - before) / 1024, "MB", 100),
    ]


def main() -> int:
    """Measure, print, and write benchmarks/results/velocity_inversion.json."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    repeats = 1 if "--quick" in sys.argv[1:] else 4
    rows = memory_rows()  # first: the peak of the process must not hide what it adds
    rows += network_rows(repeats) + challenge_rows(repeats) + physics_rows(repeats) + diffusion_rows(repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(row("peak memory of this benchmark", peak, "MB"))
    publish("velocity_inversion", rows, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
