"""What the benchmarks share: a line of their tables, their results as JSON, and one page of all of them.

As a script it puts every `benchmarks/results/*.json` into `benchmarks/results/README.md`. A result is
{"rows": [row], "machine": ..., "torch": ..., "seconds": ...}; a row has `what`, `value`, `unit`, where it is
compared `baseline` (a name) and `ratio`, and, when it has to meet something, `at_most` or `at_least`. A file
may hold several results by name, each with its `command`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class NoOptions:
    """What benchmarks without further flags take."""


RATIOS = ("times", "ratio")  # units of values that are ratios themselves


def row(
    what: str,
    value: float,
    unit: str,
    most: float | None = None,
    *,
    least: float | None = None,
    baseline: str = "",
    ratio: float | None = None,
) -> dict[str, Any]:
    """Return a line of a table; without `most` and `least` it is there to compare with.

    Args:
        what: is measured.
        value: of it; one that is not finite is stored as none.
        unit: of the value; "times" and "ratio" make the value itself the ratio to the baseline.
        most: it may be.
        least: it has to be.
        baseline: what it is compared with.
        ratio: of ours and the baseline, where the value is something else.
    """
    limits = {"at_most": _limit(most), "at_least": _limit(least)}
    line = {"what": what, "value": rounded(value), "unit": unit, **limits}
    if baseline:
        compared = value if ratio is None and unit in RATIOS else ratio
        line |= {"baseline": baseline, "ratio": None if compared is None else rounded(compared)}
    return line


def _limit(value: float | None) -> float | None:
    """Return a limit rounded as the values are, so that what equals it meets it."""
    return None if value is None else rounded(value)


def rounded(value: float) -> float | None:
    """Return six digits of a number, all of a whole one; None of one that is not finite."""
    if not math.isfinite(value):
        return None
    return float(value) if float(value).is_integer() else float(f"{float(value):.6g}")


def wanted(line: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a line has to reach and whether it does, as text; two empty ones for a bare figure."""
    most, least = line.get("at_most", line.get("target")), line.get("at_least")
    if most is None and least is None:
        return "", ""
    bounds = (("at least", least), ("at most", most))
    target = ", ".join(f"{word} {bound:.4g}" for word, bound in bounds if bound is not None)
    if line["value"] is None:
        return target, "not measured"
    above = least is None or line["value"] >= least
    return target, "met" if above and (most is None or line["value"] <= most) else "missed"


def command_line() -> str:
    """Return the command that runs now, with its script as seen from the project's folder."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def publish(name: str, rows: Sequence[Mapping[str, Any]], began: float, **more: Any) -> None:
    """Write `results/<name>.json` with what the machine is, and print the lines.

    Args:
        name: of the benchmark.
        rows: lines of `row`.
        began: `time.perf_counter()` at its start.
        more: further facts of the result.
    """
    import torch

    result = {
        "rows": list(rows),
        "command": command_line(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, one thread",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(RESULTS / f"{name}.json", {**result, **more})
    show(rows)


def store_case(path: Path, case: str, result: Mapping[str, Any], *, alone: str = "") -> None:
    """Replace one case's result in a file; those that other processes store at this moment stay too.

    Args:
        path: of the JSON file.
        case: name of the result.
        result: with its rows.
        alone: case of a file from before there were cases.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "rows" in stored:
            stored = {alone: stored}
        write_json(path, {**stored, case: result})
    finally:
        os.close(folder)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the lines."""
    width = max(len(line["what"]) for line in rows)
    for line in rows:
        text = f"{line['what']:<{width}}  {shown(line['value']):>10} {line['unit']:<10} "
        print((text + ": ".join(wanted(line))).rstrip(" :"), flush=True)


def shown(value: Any) -> str:
    """Return a value as the tables show it: four digits, text as it is, nothing for none."""
    if isinstance(value, int | float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def results_of(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (title, command, result) of each result in a file."""
    found = json.loads(path.read_text(encoding="utf-8"))
    command = f"python benchmarks/{path.stem}.py"
    if "rows" in found:
        yield path.stem, found.get("command", command), found
        return
    for name, result in found.items():
        yield f"{path.stem}: {name}", result.get("command", f"{command} --case {name}"), result


def overview(results: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    """Return how many figures reach what is wanted, and those that do not."""
    verdicts = [
        (title, line, *wanted(line))
        for title, _, result in results
        for line in result["rows"]
        if wanted(line)[1]
    ]
    met = sum(verdict == "met" for *_, verdict in verdicts)
    if met == len(verdicts):
        return [f"All {met} figures that have a limit reach it.", ""]
    lines = [f"{met} of {len(verdicts)} figures that have a limit reach it. The others:", ""]
    lines += ["| benchmark | what | value | wanted |", "|---|---|---:|---|"]
    for title, line, target, verdict in verdicts:
        if verdict != "met":
            lines.append(f"| {title} | {line['what']} | {shown(line['value'])} {line['unit']} | {target} |")
    return [*lines, ""]


def table(title: str, command: str, result: Mapping[str, Any]) -> list[str]:
    """Return the lines of one result's table."""
    facts = [str(result.get("machine", "")), f"torch {result.get('torch', '?')}"]
    if "seconds" in result:
        facts.append(f"{result['seconds']:g} s")
    facts.append(str(result.get("date", "")))
    told = ", ".join(filter(None, facts))
    lines = [f"## {title}", "", f"`{command}`: {told}", ""]
    lines += ["| what | value | unit | baseline | ratio | wanted | |", "|---|---:|---|---|---:|---|---|"]
    for line in result["rows"]:
        compared = line.get("baseline", ""), shown(line["ratio"]) if line.get("ratio") is not None else ""
        cells = line["what"], shown(line["value"]), line["unit"], *compared, *wanted(line)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def outdated(results: Sequence[tuple[str, str, Mapping[str, Any]]], told: Mapping[str, str]) -> list[str]:
    """Return what cases of quality.py were measured by other commands than today's, or not at all.

    Args:
        results: as `results_of` gives them.
        told: today's commands of each case.
    """
    stored = {title.removeprefix("quality: "): command for title, command, _ in results}
    other = [name for name, command in told.items() if stored.get(name, command) != command]
    absent = [name for name in told if name not in stored]
    named = (("Measured by earlier commands", other), ("Not measured yet", absent))
    return [f"{what}: {'; '.join(names)}." for what, names in named if names]


def main() -> int:
    """Write the table."""
    sys.path.insert(0, str(ROOT))  # the benchmarks are not installed
    from benchmarks._quality_cases import CASES

    paths = [path for path in sorted(RESULTS.glob("*.json")) if path.stem != "reliability"]
    results = [found for path in paths for found in results_of(path)]
    old = outdated(results, {name: case.told for name, case in CASES.items()})
    lines = ["# Measured speed, memory and quality", ""]
    lines += [
        "`make bench` measures and writes this page; other seeds and the full size need `--long`, some cases",
        "real files. What a call does not measure keeps its earlier result. A ratio is that of the two",
        "things that its line names, in that order; without such names ours over the baseline.",
        "",
        *(line for told in old for line in (told, "")),
        *overview(results),
    ]
    for found in results:
        lines += table(*found)
    write_text(RESULTS / "README.md", "\n".join(lines).rstrip() + "\n")
    print(f"{len(paths)} benchmarks in {RESULTS / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
