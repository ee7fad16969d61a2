"""The table of the promises: counts of earlier sessions stay, whatever selection of tests runs next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import reliability_table as table


def session(folder: Path, root: Path, counts: dict[tuple[str, str], dict[str, Any]]) -> dict[Any, Any]:
    """Write the table of a session with these counts; return its rows by promise and package."""
    plugin = table.Table(folder, root)
    plugin.counts.update(counts)
    plugin.pytest_sessionfinish()
    rows = json.loads((folder / "reliability.json").read_text())["rows"]
    return {(row["id"], row["package"]): row for row in rows}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a project with two tests."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("def test_one(): ...\ndef test_two(): ...\n")
    return tmp_path


def test_other_tests_stay(root: Path):
    """A session replaces what it ran, test by test; another test of the same row and other rows stay."""
    kind, other = ("R2", "fault_seg"), ("R3", "voxel_ode")
    session(
        root, root, {kind: {"test_a.py::test_one": (20, 0, 2.0)}, other: {"test_a.py::test_one": (3, 0, 1)}}
    )
    rows = session(root, root, {kind: {"test_a.py::test_two": (1, 1, 0.5)}})
    assert (rows[kind]["n"], rows[kind]["failures"], rows[kind]["seconds"]) == (21, 1, 2.5)
    assert rows[other]["n"] == 3
    rows = session(root, root, {kind: {"test_a.py::test_two": (1, 0, 0.5)}})
    assert (rows[kind]["n"], rows[kind]["failures"]) == (21, 0)


def test_tests_that_are_gone_leave_the_table(root: Path):
    """What a removed test measured is no measurement of today's code."""
    session(root, root, {("R2", "fault_seg"): {"test_a.py::test_gone": (20, 0, 2.0)}})
    assert session(root, root, {})["R2", "fault_seg"]["n"] == 0


def test_rows_of_older_tables(root: Path):
    """A row without names of tests stays as it is until as many repetitions are counted by name."""
    kind = ("R2", "fault_seg")
    old = {"id": "R2", "package": "fault_seg", "n": 20, "failures": 0, "seconds": 9.0}
    (root / "reliability.json").write_text(json.dumps({"rows": [old]}))
    rows = session(root, root, {kind: {"test_a.py::test_two": (1, 1, 0.5)}})
    assert (rows[kind]["n"], rows[kind]["failures"]) == (20, 1)
    rows = session(root, root, {kind: {"test_a.py::test_one": (20, 0, 8.0)}})
    assert (rows[kind]["n"], rows[kind]["failures"], rows[kind]["seconds"]) == (21, 1, 8.5)


def test_what_is_missing_is_told(root: Path):
    """Every package has a row for each promise of its own: measured, not run, or why it does not apply."""
    rows = session(root, root, {("R1", "common"): {"test_a.py::test_one": (1, 0, 0.1)}})
    assert rows["R23", "simulgen_vae"]["n"] == 0 and ("R15", "fault_seg") not in rows
    assert rows["R12", "facies_gan"]["not_applicable"] == "reads no HDF5"
    lines = (root / "reliability.md").read_text().splitlines()
    assert "| R23 | simulgen_vae | not run | | |" in lines and "| R15 | - | not run | | |" in lines
    assert "| R12 | facies_gan | reads no HDF5 | | |" in lines
