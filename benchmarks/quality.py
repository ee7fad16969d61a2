"""What models reach beside their baselines when users' own commands train and evaluate them.

Run: python benchmarks/quality.py [--case voxel_ode]. A case makes its data with the package's generator,
trains from scratch (fault_seg: has its shipped weights), evaluates on held-out data, and stores each row of
the evaluation's results.json with its best baseline in benchmarks/results/quality.json. Networks train on
one thread, seed 0. The quality of simulgen_vae is in benchmarks/simulgen_vae.py; short trainings and
learning curves of fault_seg are in benchmarks/fault_seg.py.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks._table import RESULTS, row, show, store_case  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.demo import Step, run_step  # noqa: E402
from common.errors import EXIT_LEFT_OUT, DataError  # noqa: E402
from common.report import Row, load_rows  # noqa: E402

REAL = ROOT.parent / "shared/data"
STREBELLE = "facies/strebelle_250.sgems", "facies/strebelle_wells9.dat"
Limits = Mapping[str, tuple[float | None, float | None]]  # measure -> at most, at least
Rivals = Mapping[str, tuple[str, float]]  # measure -> baseline, at most so many times its value
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What is run and what it has to reach.

    Attributes:
        commands: lines below scripts/; `{work}` is the case's folder, `{data}` that of the real files.
        values: limits of what was measured.
        ratios: limits of it over the best baseline.
        rivals: limits of it over one baseline, in a line of its own where that baseline was measured.
        results: of the evaluation, below `{work}`.
        needs: real files without which the case is left out.
    """

    commands: tuple[str, ...]
    values: Limits = field(default_factory=dict)
    ratios: Limits = field(default_factory=dict)
    rivals: Rivals = field(default_factory=dict)
    results: str = "report/results.json"
    needs: tuple[str, ...] = ()


BELOW, ABOVE = (1.0, None), (None, 1.0)
VELOCITY = (
    "--train_data_path {work}/data/train --val_data_path {work}/data/val",
    "--train_data_path {work}/data/train --test_data_path {work}/data/test",
)
CASES = {
    "fault_seg": Case(
        (
            "fault_seg/make_data.py --preset standard --out {work}/data",
            "fault_seg/evaluate.py --data {work}/data --robustness 6 --out {work}/report",
        ),
        values={
            "fault average precision": (None, 0.75),
            "fault IoU, tuned threshold": (None, 0.50),
            "fault Tol-IoU@2, tuned threshold": (None, 0.83),
            "fault normal, median error over all fault voxels": (8.0, None),
        },
        ratios={"geological time MAE": (0.9, None), "horizon error, median": BELOW},
    ),
    "fault_seg, refinement": Case(
        (
            "fault_seg/make_data.py --preset standard --out {work}/data",
            "fault_seg/train.py --preset refine --optimizer muon --data {work}/data --steps 1600 --crop 32 "
            "--batch_train 2 --eval_every 1600 --nvalid 4 --threads 1 --out {work}/run",
            "fault_seg/evaluate.py --model {work}/run/last.ckpt --data {work}/data --refine_iters 3 "
            "--out {work}/report",
        ),
        ratios={
            f"{measure}, {passes}": limits
            for measure, limits in (
                ("refined fault IoU, p >= 0.5", ABOVE),
                ("refined geological time MAE", BELOW),
                ("refined image correlation", ABOVE),
            )
            for passes in ("1 pass", "3 passes")
        },
    ),
    "facies_gan, sections": Case(
        (
            "facies_gan/make_data.py --kind sections --num_sections 48 --height 96 --width 120 --seed 7 "
            "--out {work}/train",
            "facies_gan/make_data.py --kind sections --num_sections 64 --height 96 --width 120 --seed 7 "
            "--out {work}/all",
            "facies_gan/train.py --input_path {work}/train --preset quick --num_iter 200 "
            "--group_iter_factor 1 1.5 0.625 --cache_dir {work}/cache --out {work}/run",
            "facies_gan/evaluate.py --model_path {work}/run --reference {work}/all --first_section 48 "
            "--how_many 8 --blending_count 8 --baselines tgs --out {work}/report",
        ),
        ratios={"connectivity MAE": BELOW, "4 x 4 patterns, JSD": BELOW},
    ),
    "facies_gan, Strebelle": Case(
        (
            "facies_gan/train.py --training_image {data}/facies/strebelle_250.sgems --preset quick "
            "--cache_dir {work}/cache --out {work}/run",
            "facies_gan/evaluate.py --model_path {work}/run --hard_data {data}/facies/strebelle_wells9.dat "
            "--how_many 20 --baselines tgs snesim --out {work}/report",
        ),
        values={
            "proportion error": (0.015, None),
            "variogram MAE / sill": (0.040, None),
            "connectivity MAE": (0.085, None),
            "2 x 2 patterns, JSD": (0.00122, None),
            "4 x 4 patterns, JSD": (0.010, None),
        },
        needs=STREBELLE,
    ),
    "velocity_inversion, equal time": Case(
        (
            "velocity_inversion/make_data.py --preset bench --out {work}/data",
            "velocity_inversion/evaluate.py --preset bench --equal_time 600 "
            "--train_data_path {work}/data/train --val_data_path {work}/data/val "
            "--test_data_path {work}/data/test --refine 20 --refine_samples 10 --misfit_samples 10 "
            "--robustness --out {work}/report",
        ),
        values={
            "cells inside the 0.9 band": (0.96, 0.86),
            "samples whose misfit refinement lowered, 10 samples": (None, 1.0),
        },
        ratios={
            "velocity MAE": BELOW,
            "velocity MAPE": BELOW,
            "velocity MAE, flip averaged": (1.01, None),
        },
        rivals={
            "velocity MAE": ("InversionNet", 0.75),
            "velocity MAE, refined, 10 samples": ("the network alone", 1.0),
        },
    ),
    "velocity_inversion, two members": Case(
        (
            "velocity_inversion/make_data.py --preset bench --out {work}/data",
            f"velocity_inversion/train.py --preset bench --num_models 2 {VELOCITY[0]} --threads 1 "
            "--out {work}/run",
            f"velocity_inversion/train.py --stage diffusion --diffusion_steps 180 --model_path {{work}}/run "
            f"{VELOCITY[0]} --threads 1 --out {{work}}/run",
            f"velocity_inversion/evaluate.py --model_path {{work}}/run {VELOCITY[1]} --diffusion_samples 10 "
            "--out {work}/report",
        ),
        values={"spread of posterior samples, 10 samples": (None, 1.0)},
        ratios={
            "validation MAPE of weighted members": BELOW,
            "velocity MAE within 5 columns of a well, 10 samples": BELOW,
        },
    ),
    "velocity_inversion, refinement": Case(
        ("velocity_inversion/evaluate.py --bench refine --out {work}/report",),
        ratios={
            "velocity MAE after 20 iterations from smoothed truth": (0.60, None),
            "velocity MAE after 50 iterations from smoothed truth": (0.45, None),
        },
    ),
    "velocity_inversion, eight samples": Case(
        ("velocity_inversion/evaluate.py --bench overfit --out {work}/report",),
        ratios={"velocity MAE on 8 training samples": (0.3, None)},
    ),
    "voxel_ode": Case(
        (
            "voxel_ode/make_data.py --preset demo --workers 1 --out {work}/raw",
            "voxel_ode/prep_data.py --input_root {work}/raw --out_root {work}/data --patch_size 32 24 24 "
            "--num_test 2 --num_val 1",
            "voxel_ode/train.py --preset demo --prepped_root {work}/data --threads 1 --out {work}/run",
            "voxel_ode/evaluate.py --prepped_root {work}/data --ckpt_path {work}/run/checkpoints/best.pt "
            "--pressure_sweeps 64 --baselines copy ridge1 ridge3 linear upwind fno --fno_minutes 2 "
            "--out {work}/report",
        ),
        ratios={"temperature RMSE of the rollout": BELOW, "pressure RMSE of the rollout": (0.65, None)},
        rivals={"temperature RMSE of the rollout": ("fno", 1.0)},
    ),
}


@dataclass(frozen=True)
class Config:
    """What is measured, and where it goes."""

    case: str = option("all", "what to measure", choices=("all", *CASES))
    real_data: Path = option(REAL, "folder of real files; cases that need absent ones are left out")


@dataclass(frozen=True)
class Options:
    """How it is run."""

    result: Path = option(RESULTS / "quality.json", "file of the results")
    dry_run: bool = option(False, "print the commands")


def measure(case: Case, data: Path, work: Path) -> tuple[Rows, str]:
    """Run a case below the folder `work`; return its lines and the commands that made them."""
    steps = []
    for line in case.commands:
        script, *flags = shlex.split(line.format(work=shlex.quote(str(work)), data=shlex.quote(str(data))))
        steps.append(Step(script, script, flags))
    for step in steps:
        run_step(step)
    told = " && ".join(f"python scripts/{line.format(work='out', data='data')}" for line in case.commands)
    rows = load_rows(work / case.results)
    absent = sorted({*case.values, *case.ratios, *case.rivals} - {row.measure for row in rows})
    if absent:
        raise DataError(f"{case.results}: no {', '.join(absent)}, which the case has limits for; correct it")
    beside = [line_beside(row, *case.rivals[row.measure]) for row in rows if row.measure in case.rivals]
    return [*(line_of(row, case) for row in rows), *filter(None, beside)], told


def line_beside(found: Row, name: str, times: float) -> dict[str, Any] | None:
    """Return a measured row beside one baseline, at most `times` as large; None where that is missing."""
    other = found.baselines.get(name)
    if found.ours is None or other is None:
        return None
    what = f"{found.measure}, beside {name}"
    return row(what, found.ours, found.unit, times * other, baseline=name, ratio=found.ours / other)


def line_of(found: Row, case: Case) -> dict[str, Any]:
    """Return a measured row beside its best baseline, with what it has to reach."""
    name = next((n for n, value in found.baselines.items() if value == found.best_baseline), "")
    value = found.ours if found.ours is not None else float("nan")
    most, least = case.values.get(found.measure, (None, None))
    limits = case.ratios.get(found.measure)
    if limits:
        if found.best_baseline is None:
            raise DataError(f"{found.measure}: has a limit of its ratio and no baseline; correct the case")
        most, least = (None if limit is None else limit * found.best_baseline for limit in limits)
    return row(found.measure, value, found.unit, most, least=least, baseline=name, ratio=found.ratio)


def save(path: Path, case: str, lines: Rows, seconds: float, command: str) -> None:
    """Replace the result of one case; the others stay."""
    result = {
        "rows": lines,
        "command": command,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, one thread",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }
    store_case(path, case, result)


def run(argv: Sequence[str]) -> int:
    """Measure, print, and write benchmarks/results/quality.json; another exit code when nothing could be."""
    parsed = parse(argv, Config, Options, description=__doc__)
    config, options, measured = parsed.config, parsed.run, 0
    for name in CASES if config.case == "all" else (config.case,):
        case = CASES[name]
        absent = [file for file in case.needs if not (config.real_data / file).is_file()]
        if absent:
            print(f"{name}: left out, {config.real_data / absent[0]} is not there")
            continue
        measured += 1
        if options.dry_run:
            print(name, *(f"  python scripts/{line}" for line in case.commands), sep="\n")
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            lines, command = measure(case, config.real_data, Path(folder))
        save(options.result, name, lines, time.perf_counter() - began, command)
        show(lines)
    return 0 if measured else EXIT_LEFT_OUT


if __name__ == "__main__":
    main(run)
