"""The demos without their work: each runs its steps in order and leaves a section for the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from common import demo as demos
from common.demo import Step, load_section
from common.report import Row, save_rows

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fault_seg", "facies_gan", "velocity_inversion", "simulgen_vae", "voxel_ode")
METHODS = ("ours", "copy", "ridge1", "upwind balanced")
LEFT = ("evaluation", "wave_evaluation", "advdiff_evaluation")


def script_of(package: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the demo script of a package as a module."""
    path = ROOT / "scripts" / package / "demo.py"
    spec = importlib.util.spec_from_file_location(f"demo_of_{package}", path)
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
    methods = {n: {"rollout": {"rmse_P": 1.0, "rmse_T": 1.0}} for n in METHODS}
    (out / "evaluation/evaluate.json").write_text(json.dumps({"num_weights": 5, "methods": methods}))
    (out / "data").mkdir()
    (out / "data/dataset.json").write_text('{"shape": [4, 5, 6]}')
    (out / "prepped/test").mkdir(parents=True)
    (out / "prepped/test/a.prepped.h5").write_bytes(b"")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_demo_leaves_its_section(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Data, training, evaluation and inference come in this order; the section holds rows and parameters."""
    seen: list[Step] = []
    monkeypatch.setattr(demos, "run_step", lambda step: seen.append(step) or 2.0)
    module = script_of(package, monkeypatch)
    for name, fake in (("run_step", demos.run_step), ("write_wells", lambda _folder: None)):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, fake)
    if hasattr(module, "beside"):  # the other half in this process, where its steps are not run either

        @contextmanager
        def in_turn(command: Sequence[str], said: Path) -> Iterator[None]:
            module.run(command[2:])
            yield

        monkeypatch.setattr(module, "beside", in_turn)
    leave_results(package, tmp_path)
    module.run(["--out", str(tmp_path)])
    scripts = [Path(step.script).name for step in seen]
    first = [scripts.index(name) for name in ("make_data.py", "train.py", "evaluate.py")]
    assert first == sorted(first) and all((ROOT / "scripts" / step.script).is_file() for step in seen)
    section = load_section(tmp_path / "section.json")
    assert section.package == package and section.parameters == 5 and section.commands
    assert {row.command for row in section.rows} == {f"make demo MODEL={package}"}
    assert all(row.seconds == 2.0 for row in section.rows)
