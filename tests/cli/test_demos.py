"""The demos without their work: each runs its steps in order and leaves a section for the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from common import demo as demos
from common.demo import Clock, Step, load_section
from common.report import Row, Section, save_rows
from fault_seg.evaluate import MEASURES
from tests.cli.test_printed_commands import arguments_of, ending_after_parse
from tests.cli.test_scripts import call

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fault_seg", "facies_gan", "velocity_inversion", "simulgen_vae", "voxel_ode")
METHODS = ("ours", "copy", "ridge1", "upwind balanced")
LEFT = ("evaluation", "shipped", "wave_evaluation", "advdiff_evaluation")
SIMULGEN = {"ships": "gp2", "line": "shipping gp2"}


def script_of(package: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the demo script of a package as a module, that of all for an empty name."""
    path = ROOT / "scripts" / package / "demo.py"
    spec = importlib.util.spec_from_file_location(f"demo_of_{package or 'all'}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def leave_results(package: str, out: Path) -> None:
    """Write what the steps would have left and the demo reads."""
    rows = [Row(package, "RMSE", "-", "lower", 0.5, {"copy": 1.0}, parameters=5)] * 2
    for name in LEFT:
        save_rows(out / name / "results.json", rows)
        (out / name / "evaluation.json").write_text(json.dumps(SIMULGEN))
    methods = {n: {"rollout": {"rmse_P": 1.0, "rmse_T": 1.0}} for n in METHODS}
    (out / "evaluation/evaluation.json").write_text(json.dumps({"num_weights": 5, "methods": methods}))
    (out / "data").mkdir()
    (out / "data/dataset.json").write_text('{"shape": [4, 5, 6]}')
    (out / "prepped/test").mkdir(parents=True)
    (out / "prepped/test/a.prepped.h5").write_bytes(b"")


def run_without_work(package: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Step], float]:
    """Run a package's demo with steps that do nothing; return them, and the seconds its clock expected."""
    seen: list[Step] = []
    expected: list[float] = []

    def told(step: Step, clock: Clock | None = None) -> float:
        seen.append(step)
        expected.append(step.seconds if clock else 0.0)
        return 2.0

    monkeypatch.setattr(demos, "run_step", told)
    monkeypatch.setenv(demos.CLOCK, "0 0 100")
    module = script_of(package, monkeypatch)
    if hasattr(module, "write_wells"):
        monkeypatch.setattr(module, "write_wells", lambda _folder: None)
    if hasattr(module, "beside"):  # the other half in this process, where its steps are not run either

        @contextmanager
        def in_turn(command: Sequence[str], said: Path) -> Iterator[None]:
            module.run(command[2:])
            yield

        monkeypatch.setattr(module, "beside", in_turn)
    flags = ["--real_data", str(out / "absent")] if package in ("fault_seg", "facies_gan") else []
    module.run(["--out", str(out), *flags])
    return seen, sum(expected)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_demo_leaves_its_section(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Data, training, evaluation and inference come in this order; the section holds rows and parameters."""
    leave_results(package, tmp_path)
    seen, expected = run_without_work(package, tmp_path, monkeypatch)
    scripts = [Path(step.script).name for step in seen]
    first = [scripts.index(name) for name in ("make_data.py", "train.py", "evaluate.py")]
    assert first == sorted(first) and all((ROOT / "scripts" / step.script).is_file() for step in seen)
    section = load_section(tmp_path / "section.json")
    assert section.package == package and section.parameters == 5 and section.commands
    assert {row.command for row in section.rows} == {f"make demo MODEL={package}"}
    assert all(row.seconds == 2.0 for row in section.rows)
    planned = script_of("", monkeypatch).PACKAGES[package]
    assert expected == pytest.approx(planned, abs=5), "the time left is told by both"


def test_the_shipped_weights_have_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a fresh clone, too: four rows after those of the training here, a picture, and words that tell."""
    leave_results("fault_seg", tmp_path)
    for folder, value in (("evaluation", 0.3), ("shipped", 0.7)):
        rows = [
            Row("fault_seg", name, unit, better, value, {"simple": 0.2}, 9.0, 5)
            for name, unit, better, _ in MEASURES.values()
        ]
        save_rows(tmp_path / folder / "results.json", rows)
        (tmp_path / folder / "figures").mkdir()
        (tmp_path / folder / "figures/gallery.png").write_bytes(b"x")
    seen, _ = run_without_work("fault_seg", tmp_path, monkeypatch)
    section = load_section(tmp_path / "section.json")
    here, shipped = section.rows[: len(MEASURES)], section.rows[len(MEASURES) :]
    assert [row.measure for row in here] == [name for name, *_ in MEASURES.values()]
    assert {row.ours for row in here} == {0.3} and {row.seconds for row in here} == {2.0}
    names = [row.measure.removesuffix(", shipped weights") for row in shipped]
    assert len(names) == 4 and set(names) < {row.measure for row in here}
    assert all(row.measure.endswith(", shipped weights") for row in shipped)
    assert all((row.ours, row.seconds, row.baselines) == (0.7, None, {"simple": 0.2}) for row in shipped)
    evaluations = [step.flags for step in seen if step.script.endswith("evaluate.py")]
    assert "--model" in evaluations[0] and "--model" not in evaluations[1]
    data = [flags[flags.index("--data") + 1] for flags in evaluations]
    assert data[0] == data[1], "the same held-out cubes"
    pictures = {str(picture.path): picture.caption for picture in section.figures}
    assert "shipped weights" in pictures["fault_seg/shipped/figures/gallery.png"]
    assert "from scratch in 2 s" in pictures["fault_seg/evaluation/figures/gallery.png"]
    assert "trained here from scratch in 2 s" in section.notes[0] and "0.7 dB" in section.notes[1]


def next_commands() -> list[tuple[str, str]]:
    """Return (package, line) of all that the page says to go on with."""
    with pytest.MonkeyPatch.context() as patch:
        modules = {package: script_of(package, patch) for package in PACKAGES}
    return [(package, line) for package, module in modules.items() for line in module.NEXT_COMMANDS]


@pytest.mark.parametrize(("package", "line"), next_commands())
def test_a_next_command_parses(package: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The script is the package's own and knows the flags and values; none that it needs is missing."""
    script, arguments = arguments_of(line)
    assert script.is_file() and script.parent.name == package, line
    ending_after_parse(monkeypatch)
    code, said = call(script, arguments, tmp_path)
    assert code == 2 and "error: it parses" in said, f"{line}\n{said}"


def test_next_commands_are_for_own_data():
    """No line makes data, but for the network of faults, which trains on made cubes; each has several."""
    for package in PACKAGES:
        lines = [line for name, line in next_commands() if name == package]
        made = [line for line in lines if "/make_data.py" in line]
        assert len(lines) >= 4 and (package == "fault_seg" or not made), package


@pytest.mark.parametrize("model", ["all", "voxel_ode"])
def test_each_demo_is_told_the_time(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The demo of all gives each package the seconds expected before it and of all, with one start."""
    module = script_of("", monkeypatch)
    clocks: list[Clock] = []

    def work(command: Sequence[str], *, env: dict[str, str], check: bool) -> SimpleNamespace:
        clocks.append(Clock(*(float(word) for word in env[demos.CLOCK].split())))
        out = Path(command[-1])
        demos.save_section(out / "section.json", Section(out.name, out.name, ""))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", work)
    assert module.run(["--out", str(tmp_path), "--model", model]) == 0
    expected = list(module.PACKAGES.values()) if model == "all" else [module.PACKAGES[model]]
    assert [clock.done for clock in clocks] == [sum(expected[:i]) for i in range(len(expected))]
    assert {clock.total for clock in clocks} == {sum(expected)} and len({c.started for c in clocks}) == 1
    assert f"== 1 of {len(expected)}: " in capsys.readouterr().out and sum(expected) < 900
