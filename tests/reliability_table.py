"""A pytest plugin that counts, for each promise and package, how many tests measured it and how many failed.

With `--reliability_table FOLDER` the counts go to `reliability.json` and `reliability.md`. Each test function
is counted by itself and keeps its count of an earlier session until it runs again, so that the long loops may
run one after another, on any selection of tests; what no session measured is told as not run.
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
# What common/ alone keeps, and is measured there once; every package answers for the rest itself.
OF_COMMON = {"R4", "R15", "R16", "R17", "R19", "R20", "R21"}
NOT_APPLICABLE = {
    ("R12", "facies_gan"): "reads no HDF5",
    ("R12", "velocity_inversion"): "reads no HDF5",
    ("R13", "fault_seg"): "reads nothing packed but HDF5, and that inline by inline",
    ("R21", "velocity_inversion"): "sections are predicted whole",
}
UNDIVIDED = ""  # the tests of a row that was written before tests were counted one by one
Count = tuple[int, int, float]  # repetitions, failures, seconds
Kind = tuple[str, str]  # promise, package
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
    # resumed or killed
    "fault_seg/test_refine.py::test_a_killed": "R1",
    "fault_seg/test_survey_more.py::test_a_killed": "R1",
    "voxel_ode/test_prep.py::test_a_kill": "R1",
    "facies_gan/test_outputs.py::test_stack_is_whole": "R1",
    "velocity_inversion/test_promises.py::test_a_signal": "R3",
    "common/test_run.py::test_a_kill": "R1",
    # NaN
    "common/test_optim.py::test_nonfinite": "R5",
    "fault_seg/test_train.py::test_nan": "R5",
    "simulgen_vae/test_readers_bad.py::test_nan": "R5",
    "voxel_ode/test_dataset.py::test_a_nan": "R5",
    "voxel_ode/test_rollout.py::test_non_finite": "R5",
    "voxel_ode/test_train.py::test_nan": "R5",
    # full disks, two runs
    "fault_seg/test_infer_bad.py::test_disk": "R6",
    "voxel_ode/test_synthetic.py::test_full_disk": "R6",
    "fault_seg/test_infer_bad.py::test_same_output": "R14",
    # the same in every order, number of workers and ranks
    "facies_gan/test_train.py::test_same_seed": "R18",
    "fault_seg/test_dataset.py::test_batches_do_not": "R18",
    "velocity_inversion/test_samples.py::test_workers": "R18",
    "voxel_ode/test_dataset.py::test_workers": "R18",
    "voxel_ode/test_prep.py::test_workers": "R18",
    "voxel_ode/test_synthetic.py::test_files_do_not": "R18",
    "voxel_ode/test_train.py::test_workers": "R18",
    "facies_gan/test_train.py::test_batches_do_not": "R19",
    "fault_seg/test_train.py::test_two_ranks": "R19",
    "simulgen_vae/test_train.py::test_two_ranks": "R19",
    "velocity_inversion/test_ranks.py::test_two_ranks": "R19",
    "voxel_ode/test_train.py::test_two_ranks": "R19",
    # in pieces as in one, within the memory
    "facies_gan/test_generator.py::test_windows_equal": "R21",
    "fault_seg/test_infer.py::test_exact_tiles": "R21",
    "fault_seg/test_infer.py::test_slopes_do_not": "R21",
    "fault_seg/test_model.py::test_tiles_with_halo": "R21",
    "fault_seg/test_refine.py::test_tiles_do_not": "R21",
    "fault_seg/test_seams.py::test_blended_tiles": "R21",
    "simulgen_vae/test_model.py::test_slices_equal": "R21",
    "voxel_ode/test_model.py::test_a_part_with_its_halo": "R21",
    "voxel_ode/test_regions.py::test_slabs_equal": "R21",
    "voxel_ode/test_regions.py::test_tiles_equal": "R21",
    "voxel_ode/test_rollout.py::test_tiles_give": "R21",
    "fault_seg/test_infer.py::test_memory_is": "R22",
    "fault_seg/test_volumes.py::test_memory_does": "R22",
    "simulgen_vae/test_basis.py::test_memory": "R22",
    "simulgen_vae/test_infer.py::test_memory": "R22",
    # logs and flags
    "common/test_cli.py::test_closed_streams": "R26",
    "common/test_log.py::test_plain_lines": "R26",
    "common/test_log.py::test_wandb_missing": "R27",
    "cli/test_velocity_inversion_commands.py::test_missing_libraries": "R27",
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
    package = marker.kwargs.get("package", package) if marker is not None else package
    return (promise, package) if promise else None


def function_of(nodeid: str) -> str:
    """Return the file and name of a test below tests/, whatever its parameters."""
    return nodeid.split("[")[0].removeprefix("tests/")


def exists(function: str, root: Path) -> bool:
    """Return whether a test function is still there."""
    file, _, name = function.partition("::")
    path = root / "tests" / file
    return path.is_file() and f"def {name}(" in path.read_text(encoding="utf-8")


def earlier_counts(folder: Path, root: Path) -> dict[Kind, dict[str, Count]]:
    """Return the counts of earlier sessions by kind and test function; tests that are gone are left out."""
    path = folder / "reliability.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    found = {}
    for row in rows:
        tests = row.get("tests", {UNDIVIDED: (row["n"], row["failures"], row["seconds"])} if row["n"] else {})
        kept = {name: tuple(count) for name, count in tests.items() if not name or exists(name, root)}
        found[row["id"], row["package"]] = kept
    return found


def merged(earlier: dict[str, Count], measured: dict[str, Count]) -> dict[str, Count]:
    """Return the counts of a row by test function, those of this session in the place of earlier ones.

    An undivided count goes once the tests that are counted one by one have made as many repetitions.
    """
    found = {**earlier, **measured}
    divided = sum(n for name, (n, _, _) in found.items() if name != UNDIVIDED)
    if UNDIVIDED in found and divided >= found[UNDIVIDED][0]:
        del found[UNDIVIDED]
    return found


def totals(tests: dict[str, Count]) -> Count:
    """Return the sums of a row; what an undivided count holds already is not counted again."""
    if UNDIVIDED in tests:
        n, bad, seconds = tests[UNDIVIDED]
        return n, bad + sum(count[1] for name, count in tests.items() if name != UNDIVIDED), seconds
    sums = [sum(values) for values in zip(*tests.values(), strict=True)] or [0, 0, 0.0]
    return int(sums[0]), int(sums[1]), round(float(sums[2]), 1)


def rows_of(counts: dict[Kind, dict[str, Count]]) -> list[dict[str, Any]]:
    """Return the rows of the table: what was measured, what does not apply, and what was not run."""
    measured = {kind: tests for kind, tests in counts.items() if totals(tests)[0]}
    wanted = {
        (promise, package) for promise in PROMISES if promise not in OF_COMMON for package in PACKAGES
    } | set(NOT_APPLICABLE)
    wanted |= {(promise, "-") for promise in PROMISES if all(promise != p for p, _ in {*wanted, *measured})}
    rows = []
    for promise, package in sorted(wanted | set(measured), key=lambda kind: (int(kind[0][1:]), kind[1])):
        tests = measured.get((promise, package), {})
        n, bad, seconds = totals(tests)
        row: dict[str, Any] = {"id": promise, "package": package, "n": n, "failures": None, "seconds": None}
        if tests:
            row |= {"failures": bad, "seconds": seconds, "tests": dict(sorted(tests.items()))}
        elif (promise, package) in NOT_APPLICABLE:
            row["not_applicable"] = NOT_APPLICABLE[promise, package]
        rows.append(row)
    return rows


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    machine = json.dumps(f"{platform.system()} {platform.machine()}")
    document = f'{{\n "rows": [\n{lines}\n ],\n "machine": {machine},\n "torch": "{torch.__version__}"\n}}\n'
    (folder / "reliability.json").write_text(document, encoding="utf-8")
    table = ["| promise | package | n | failures | seconds |", "|---|---|---:|---:|---:|"]
    for r in rows:
        missing = r.get("not_applicable", "not run")
        counts = f"{r['n']} | {r['failures']} | {r['seconds']}" if r["n"] else f"{missing} | |"
        table.append(f"| {r['id']} | {r['package']} | {counts} |")
    (folder / "reliability.md").write_text("\n".join(table) + "\n", encoding="utf-8")


class Table:
    """Counts of one session, by promise, package and test function."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        self.counts: dict[Kind, dict[str, Count]] = defaultdict(dict)
        self.kinds: dict[str, Kind] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember what each test measures."""
        self.kinds = {item.nodeid: kind for item in items if (kind := promise_of(item))}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that ran; one repetition unless it says how many it made."""
        kind = self.kinds.get(report.nodeid)
        if kind is None or report.skipped or (report.when != "call" and report.passed):
            return
        tests, name = self.counts[kind], function_of(report.nodeid)
        n, bad, seconds = tests.get(name, (0, 0, 0.0))
        n += int(str(dict(report.user_properties).get("n", 1)))
        tests[name] = n, bad + report.failed, round(seconds + report.duration, 2)

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        found = earlier_counts(self.folder, self.root)
        for kind, tests in self.counts.items():
            found[kind] = merged(found.get(kind, {}), tests)
        write_table(self.folder, rows_of(found))


def pytest_configure(config: pytest.Config) -> None:
    """Count when asked for."""
    folder = config.getoption("--reliability_table")
    if folder and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(folder), config.rootpath))
