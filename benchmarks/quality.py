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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks._quality import Case, Figure, Rival, value_at  # noqa: E402
from benchmarks._quality_cases import CASES  # noqa: E402
from benchmarks._table import RESULTS, row, show, store_case  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.demo import Step, run_step  # noqa: E402
from common.errors import EXIT_LEFT_OUT, DataError  # noqa: E402
from common.files import read_json  # noqa: E402
from common.report import Row, load_rows  # noqa: E402

REAL = ROOT.parent / "shared/data"
Rows = list[dict[str, Any]]


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
    seconds = [(step.script, run_step(step)) for step in steps]
    rows = load_rows(work / case.results)
    absent = sorted(
        {*case.values, *case.ratios, *(r.measure for r in case.rivals)} - {r.measure for r in rows}
    )
    if absent:
        raise DataError(f"{case.results}: no {', '.join(absent)}, which the case has limits for; correct it")
    by_measure = {row.measure: row for row in rows}
    beside = [line_beside(by_measure[rival.measure], rival) for rival in case.rivals]
    figures = [line_of_figure(figure, case.document, work) for figure in case.figures]
    times = [row(f"{script}, wall", value, "s", case.seconds.get(script)) for script, value in seconds]
    return [*(line_of(row, case) for row in rows), *filter(None, beside), *figures, *times], case.told


def line_beside(found: Row, rival: Rival) -> dict[str, Any] | None:
    """Return a measured row beside one baseline; None where that was not measured."""
    other = found.baselines.get(rival.baseline)
    if found.ours is None or other is None:
        return None
    what, limit = f"{found.measure}, beside {rival.baseline}", None
    if rival.times is not None:
        limit = rival.times * other
    most, least = (limit, None) if found.better == "lower" else (None, limit)
    return row(
        what, found.ours, found.unit, most, least=least, baseline=rival.baseline, ratio=found.ours / other
    )


def line_of_figure(figure: Figure, document: str, work: Path) -> dict[str, Any]:
    """Return the line of a number that stands in an evaluation's document.

    Args:
        figure: where it stands and what it has to reach.
        document: that is meant where a place names no file.
        work: folder of the documents.

    Raises:
        DataError: a file is missing.
    """

    def found(place: str) -> float | None:
        file, _, keys = place.rpartition(":")
        return value_at(read_json(work / (file or document), "run the case again"), keys)

    value, most, least = found(figure.place), figure.most, figure.least
    rivals = ((name, found(place)) for name, place in figure.rivals)
    name, other = next(((n, v) for n, v in rivals if v is not None), ("", None))
    if value is None:
        print(f"{figure.what}: not measured, {document} has no {figure.place}", flush=True)
        value = float("nan")
    if other is None:
        return row(figure.what, value, figure.unit, most, least=least)
    if figure.distance:
        return row(figure.what, abs(value - other), figure.unit, most, baseline=f"{name}, {other:.4g}")
    most = most if figure.times is None else figure.times * other
    least = least if figure.over is None else other + figure.over
    ratio = value / other if other else None
    return row(figure.what, value, figure.unit, most, least=least, baseline=name, ratio=ratio)


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
