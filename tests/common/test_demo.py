"""What a package's demo leaves for the page: rows with the training's seconds, figures, its section."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import demo as demos
from common.demo import ROOT, Demo, DemoOptions, Step, StepFailedError, load_section, run_step
from common.errors import DataError
from common.report import Row, save_rows


def test_section_of_a_demo(tmp_path: Path):
    """Rows carry the command and the seconds; figures that are not there are left out."""
    demo = Demo("fault_seg", DemoOptions(str(tmp_path)))
    assert demo.out == demo.out.resolve() and demo.shown == str(tmp_path)
    save_rows(
        tmp_path / "evaluation/results.json", [Row("fault_seg", "Dice", "-", "higher", 0.5, parameters=7)]
    )
    (tmp_path / "a.png").write_bytes(b"x")
    rows = demo.rows(3.14159)
    figures = demo.pictures([("a.png", "seen", "a"), ("b.png", "not there", "b")])
    demo.save(rows, title="t", question="q?", figures=figures)
    section = load_section(tmp_path / "section.json")
    assert (section.rows[0].seconds, section.rows[0].command) == (3.1, "make demo MODEL=fault_seg")
    assert [picture.path for picture in section.figures] == ["fault_seg/a.png"]
    assert section.parameters == 7 and section.seconds is not None


def test_default_folder_is_named_as_a_user_would():
    """Commands name the folder relative to the project."""
    assert Demo("voxel_ode", DemoOptions()).shown == "results/demo/voxel_ode"
    assert Demo("voxel_ode", DemoOptions(str(ROOT / "out"))).shown == "out"


def test_steps_are_the_package_s_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A step is one command line that a user could type."""
    seen: list[Step] = []
    monkeypatch.setattr(demos, "run_step", lambda step: seen.append(step) or 1.5)
    seconds = Demo("voxel_ode", DemoOptions(str(tmp_path))).step(
        "prepare", "prep_data.py", ["--out", "my data"]
    )
    assert seconds == 1.5
    assert seen[0].command == "python scripts/voxel_ode/prep_data.py --out 'my data'"


def test_a_failing_step_ends_the_demo():
    """The exit code of the command and the command itself are told."""
    with pytest.raises(StepFailedError, match=r"no_such\.py --out a: ended with exit code 2"):
        run_step(Step("fails", "fault_seg/no_such.py", ["--out", "a"]))


def test_no_section(tmp_path: Path):
    """A section that is missing or something else is refused."""
    with pytest.raises(DataError, match=r"section\.json"):
        load_section(tmp_path / "section.json")
    (tmp_path / "section.json").write_text('{"figures": 3}')
    with pytest.raises(DataError, match="no section of the demo"):
        load_section(tmp_path / "section.json")
