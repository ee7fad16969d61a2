"""What a package's demo leaves for the page: rows with the training's seconds, figures, its section."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from common import demo as demos
from common.demo import ROOT, Clock, Demo, DemoOptions, Step, StepFailedError, load_section, run_step
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
    monkeypatch.setattr(demos, "run_step", lambda step, _clock: seen.append(step) or 1.5)
    seconds = Demo("voxel_ode", DemoOptions(str(tmp_path))).step(
        "prepare", "prep_data.py", ["--out", "my data"]
    )
    assert seconds == 1.5
    assert seen[0].command == "python scripts/voxel_ode/prep_data.py --out 'my data'"


def test_every_step_tells_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What is left is what was expected of it times the pace so far: a machine half as fast doubles it."""
    now = [1000.0]

    def work(*_: object, **__: object) -> SimpleNamespace:
        now[0] += 120.0
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(demos.subprocess, "run", work)
    monkeypatch.setattr(demos.time, "time", lambda: now[0])
    for name, value in Clock(1000.0, 0.0, 300.0).variable.items():
        monkeypatch.setenv(name, value)
    demo = Demo("voxel_ode", DemoOptions())
    for _ in range(4):  # 300 s are expected in all, 60 s of each step, which takes 120 s
        demo.step("work", "train.py", [], 60.0)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("-- ")]
    assert steps == [f"-- work (about {minutes} min left)" for minutes in (5, 8, 6, 4)]
    assert demo.clock is not None and demo.clock.left_s == 120.0


def test_time_left_without_a_clock(monkeypatch: pytest.MonkeyPatch):
    """A demo that was started alone tells none; the pace of a few seconds is not judged."""
    monkeypatch.delenv(demos.CLOCK, raising=False)
    assert Demo("voxel_ode", DemoOptions()).clock is None
    monkeypatch.setenv(demos.CLOCK, "12 nonsense")
    assert Clock.from_environment() is None
    monkeypatch.setattr(demos.time, "time", lambda: 1040.0)
    assert Clock(1000.0, 4.0, 124.0).line == "about 2 min left"
    assert Clock(1000.0, 100.0, 124.0).line == "under 1 min left"
    assert Clock(1000.0, 100.0, 90.0).left_s == 0


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
