"""A pytest plugin that counts, for each promise and package, how many tests measured it and how many failed.

With `--reliability_table FOLDER` the counts go to `reliability.json` and `reliability.md`. Rows of an
earlier session stay where this one measured nothing for the same promise and package, so that the long loops
may run one after another; a promise that no session measured is told as not run.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

PROMISES = tuple(f"R{n}" for n in range(1, 29) if n != 24)
PACKAGES = ("facies_gan", "velocity_inversion", "fault_seg", "simulgen_vae", "voxel_ode")
# Promises that older tests measure, by file of tests/ and start of the test's name; the first that fits.
MEASURED_BY = {
    "common/test_files.py::test_full_disk": "R6",
    "common/test_files.py::test_free_space": "R6",
    "common/test_files.py::test_folder_that_cannot": "R7",
    "common/test_files.py::test_read_only": "R7",
    "common/test_files.py::test_lock": "R14",
    "common/test_files.py::test_exactly_one": "R14",
    "common/test_files.py::test_odd_names": "R25",
    "common/test_files.py::test_read_json": "R8",
    "common/test_files.py::": "R1",
    "common/test_run.py::test_full_disk": "R6",
    "common/test_log.py::test_full_disk": "R6",
    "reliability/test_fault_seg.py::test_killed_inference": "R1",
    "reliability/test_fault_seg.py::test_killed_training": "R2",
    "common/test_loop.py::test_sigkill": "R2",
    "common/test_loop.py::test_signal": "R3",
    "common/test_loop.py::test_second_interrupt": "R3",
    "common/test_loop.py::test_same_command": "R18",
    "common/test_loop.py::test_workers": "R18",
    "reliability/test_two_ranks.py::test_crash": "R15",
    "reliability/test_two_ranks.py::test_killed_rank": "R15",
    "reliability/test_two_ranks.py::test_failure_before": "R15",
    "reliability/test_two_ranks.py::test_one_message": "R15",
    "reliability/test_two_ranks.py::test_hanging": "R16",
    "reliability/test_two_ranks.py::": "R4",
    "common/test_loop.py::test_nan": "R5",
    "common/test_loop.py::test_bad_data": "R5",
    "common/test_distributed.py::test_nan": "R5",
    "common/test_checkpoint.py::test_packages": "R10",
    "common/test_checkpoint.py::test_other_kinds": "R10",
    "common/test_checkpoint.py::test_nothing_is_executed": "R11",
    "common/test_legacy_pickle.py::": "R11",
    "test_architecture.py::": "R11",
    "common/test_arrays.py::test_bombs": "R13",
    "common/test_sampling.py::": "R17",
    "common/test_distributed.py::test_shards": "R17",
    "common/test_distributed.py::test_uneven": "R17",
    "common/test_distributed.py::test_split_batch": "R19",
    "common/test_optim.py::test_accumulation": "R19",
    "common/test_distributed.py::test_resume_on_other": "R20",
    "common/test_distributed.py::test_samples_do_not": "R20",
    "common/test_blocks.py::": "R21",
    "facies_gan/test_data.py::test_bad": "R9",
    "facies_gan/test_evaluate.py::test_bad": "R9",
    "facies_gan/test_generate.py::test_refusals": "R9",
    "facies_gan/test_gslib.py::test_bad": "R9",
    "facies_gan/test_train.py::test_refusals": "R9",
    "facies_gan/test_wells.py::test_bad": "R9",
    "fault_seg/test_infer_bad.py::test_bad": "R9",
    "fault_seg/test_volumes_bad.py::test_bad": "R9",
    "simulgen_vae/test_infer_bad.py::": "R9",
    "simulgen_vae/test_readers_bad.py::test_bad": "R9",
    "velocity_inversion/test_bad_input.py::": "R9",
    "voxel_ode/test_evaluate.py::test_refusals": "R9",
    "voxel_ode/test_exports.py::test_refusals": "R9",
    "voxel_ode/test_optimise.py::test_refusals": "R9",
    "voxel_ode/test_prep.py::test_bad": "R9",
    "voxel_ode/test_prep.py::test_mixed": "R9",
    "voxel_ode/test_rollout.py::test_refusals": "R9",
    "voxel_ode/test_synthetic.py::test_bad": "R9",
    "cli/test_scripts.py::": "R27",
    "fixtures/test_released_formats.py::": "R28",
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
    named = [(name.index(p), p) for p in PACKAGES if p in name]
    package = min(named, default=(0, "common"))[1]  # of two, that which is put to the test
    return (promise, package) if promise else None


def earlier_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the measured rows of an earlier session, none where there is no table."""
    path = folder / "reliability.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [row for row in rows if row["n"]]


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
        row[0] += int(str(dict(report.user_properties).get("n", 1)))
        row[1] += report.failed
        row[2] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        found = [
            {"id": promise, "package": package, "n": int(n), "failures": int(bad), "seconds": round(s, 1)}
            for (promise, package), (n, bad, s) in self.rows.items()
        ]
        measured = {(row["id"], row["package"]) for row in found}
        found += [row for row in earlier_rows(self.folder) if (row["id"], row["package"]) not in measured]
        known = {row["id"] for row in found}
        found += [
            {"id": p, "package": "-", "n": 0, "failures": None, "seconds": None}
            for p in PROMISES
            if p not in known
        ]
        rows = sorted(found, key=lambda row: (int(row["id"][1:]), row["package"]))
        machine = f"{platform.system()} {platform.machine()}"
        document = {"rows": rows, "machine": machine, "torch": torch.__version__}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "reliability.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        lines = ["| promise | package | n | failures | seconds |", "|---|---|---:|---:|---:|"]
        for r in rows:
            counts = f"{r['n']} | {r['failures']} | {r['seconds']}" if r["n"] else "not run | | "
            lines.append(f"| {r['id']} | {r['package']} | {counts} |")
        (self.folder / "reliability.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Count when asked for."""
    folder = config.getoption("--reliability_table")
    if folder and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(folder)))
