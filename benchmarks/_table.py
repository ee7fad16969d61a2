"""Put every `benchmarks/results/*.json` into one Markdown table, `benchmarks/results/README.md`.

A result is {"rows": [row], "machine": ..., "torch": ..., "seconds": ...}; a row has `what`, `value`, `unit`
and, when it has to meet something, `target` (or `at_most`) or `at_least`. A file may hold
several results by name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def wanted(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a row has to reach and whether it does, as text; two empty ones for a bare figure."""
    most = row.get("at_most", row.get("target"))
    least = row.get("at_least")
    if most is not None:
        return f"at most {most:g}", "met" if row["value"] <= most else "missed"
    if least is not None:
        return f"at least {least:g}", "met" if row["value"] >= least else "missed"
    return "", ""


def section(path: Path) -> list[str]:
    """Return the lines of one benchmark's tables."""
    found = json.loads(path.read_text(encoding="utf-8"))
    command = f"python benchmarks/{path.stem}.py"
    if "rows" in found:
        return table(path.stem, command, found)
    return [
        line
        for n, result in found.items()
        for line in table(f"{path.stem}: {n}", f"{command} --case {n}", result)
    ]


def table(title: str, command: str, result: Mapping[str, Any]) -> list[str]:
    """Return the lines of one result's table."""
    facts = [str(result.get("machine", "")), f"torch {result.get('torch', '?')}"]
    if "seconds" in result:
        facts.append(f"{result['seconds']:g} s")
    told = ", ".join(filter(None, facts))
    lines = [f"## {title}", "", f"`{command}`: {told}", ""]
    lines += ["| what | value | unit | wanted | |", "|---|---:|---|---|---|"]
    for row in result["rows"]:
        target, verdict = wanted(row)
        value = f"{row['value']:.4g}" if isinstance(row["value"], int | float) else str(row["value"])
        lines.append(f"| {row['what']} | {value} | {row['unit']} | {target} | {verdict} |")
    return [*lines, ""]


def main() -> int:
    """Write the table."""
    paths = [path for path in sorted(RESULTS.glob("*.json")) if path.stem != "reliability"]
    lines = [
        "# Measured speed, memory and quality",
        "",
        "`make bench` measures all and writes this page.",
        "",
    ]
    for path in paths:
        lines += section(path)
    write_text(RESULTS / "README.md", "\n".join(lines).rstrip() + "\n")
    print(f"{len(paths)} benchmarks in {RESULTS / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
