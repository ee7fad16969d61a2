"""A pytest plugin that counts, for each promise and package, how many tests measured it and how many failed.

With `--reliability_table FOLDER` the counts are written as `reliability.json` and `reliability.md`.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path

import pytest
import torch

PACKAGES = ("facies_gan", "velocity_inversion", "fault_seg", "simulgen_vae", "voxel_ode")
# Promises that older tests measure, by file of tests/ and start of the test's name.
MEASURED_BY = {
    "common/test_files.py::": "R1",
    "reliability/test_fault_seg.py::test_killed_inference": "R1",
    "reliability/test_fault_seg.py::test_killed_training": "R2",
    "common/test_loop.py::test_signal": "R3",
    "reliability/test_two_ranks.py::": "R4",
    "common/test_loop.py::test_nan": "R5",
    "common/test_checkpoint.py::test_packages": "R10",
    "common/test_checkpoint.py::test_other_kinds": "R10",
    "common/test_checkpoint.py::test_nothing_is_executed": "R11",
    "common/test_legacy_pickle.py::": "R11",
    "test_architecture.py::": "R11",
    "common/test_sampling.py::": "R17",
    "common/test_distributed.py::test_shards": "R17",
    "common/test_blocks.py::": "R21",
    "cli/test_scripts.py::": "R27",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that names the folder of the table."""
    parser.addoption("--reliability_table", default="", help="folder for reliability.json and reliability.md")


def promise_of(item: pytest.Item) -> tuple[str, str] | None:
    """Return (promise, package) that a test measures, or None."""
    marker = item.get_closest_marker("promise")
    name = item.nodeid.removeprefix("tests/")
    if marker is not None:
        promise = str(marker.args[0])
    else:
        promise = next((p for start, p in MEASURED_BY.items() if name.startswith(start)), "")
    package = next((p for p in PACKAGES if p in name), "common")
    return (promise, package) if promise else None


class Table:
    """Counts of one session, by promise and package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
        self.kinds: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember what each test measures."""
        self.kinds = {item.nodeid: kind for item in items if (kind := promise_of(item))}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that ran; one repetition unless it says how many it made."""
        kind = self.kinds.get(report.nodeid)
        if kind is None or report.skipped or (report.when != "call" and report.passed):
            return
        row = self.rows[kind]
        row[0] += int(dict(report.user_properties).get("n", 1))
        row[1] += report.failed
        row[2] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        order = sorted(self.rows.items(), key=lambda entry: (int(entry[0][0][1:]), entry[0][1]))
        rows = [
            {"id": promise, "package": package, "n": int(n), "failures": int(bad), "seconds": round(s, 1)}
            for (promise, package), (n, bad, s) in order
        ]
        machine = f"{platform.system()} {platform.machine()}"
        found = {"rows": rows, "machine": machine, "torch": torch.__version__}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "reliability.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        lines = ["| promise | package | n | failures | seconds |", "|---|---|---:|---:|---:|"]
        lines += [
            f"| {r['id']} | {r['package']} | {r['n']} | {r['failures']} | {r['seconds']} |" for r in rows
        ]
        (self.folder / "reliability.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Count when asked for."""
    folder = config.getoption("--reliability_table")
    if folder and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(folder)))
