"""The stored results of the benchmark: cases with their command; SNESIM is kept where it cannot run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import facies_gan as benchmark
from benchmarks._table import results_of, row


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of the results, with nothing measured: each part gives one row of its name."""
    path = tmp_path / "facies_gan.json"
    monkeypatch.setattr(benchmark, "RESULT", path)
    for name in ("gpu_rows", "smoother_rows", "train_rows"):
        monkeypatch.setattr(benchmark, name, lambda _, name=name: [row(name, 1.0, "s")])
    monkeypatch.setattr(benchmark, "memory_rows", lambda: [row("memory_rows", 1.0, "MB")])
    return path


def measured(monkeypatch: pytest.MonkeyPatch, seconds: float | None, *flags: str) -> None:
    """Run the benchmark where SNESIM takes `seconds`, or is not installed."""
    beside = [] if seconds is None else [row("SNESIM over ours", seconds, "times", baseline="SNESIM")]
    found = [row("ours", 1.0, "s")], beside, "" if beside else "not installed"
    monkeypatch.setattr(benchmark, "generation_rows", lambda _: found)
    assert benchmark.main(list(flags)) == 0


def test_snesim_is_kept(result: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A call without SNESIM leaves its rows with their date and says so; one that runs it replaces them."""
    result.write_text('{"rows": [], "date": "a file without cases"}')
    measured(monkeypatch, None)
    assert json.loads(result.read_text())["SNESIM"]["rows"][0]["value"] is None
    measured(monkeypatch, 2.5)
    stored = json.loads(result.read_text())
    stored["SNESIM"]["date"] = "2026-01-02"
    result.write_text(json.dumps(stored))
    capsys.readouterr()
    measured(monkeypatch, None)
    assert "SNESIM: not run, not installed; its rows of 2026-01-02 are kept" in capsys.readouterr().out
    kept = json.loads(result.read_text())
    assert kept["SNESIM"] == stored["SNESIM"] and set(kept) == {"cost", "SNESIM"}
    measured(monkeypatch, 3.0)
    assert json.loads(result.read_text())["SNESIM"]["rows"][0]["value"] == 3.0


def test_cases_hold_their_command(result: Path, monkeypatch: pytest.MonkeyPatch):
    """Training is a case of its own, which a call without it keeps; each case tells how it was measured."""
    monkeypatch.setattr("sys.argv", [str(Path(benchmark.__file__)), "--bench_train"])
    measured(monkeypatch, 2.5, "--bench_train")
    monkeypatch.setattr("sys.argv", [str(Path(benchmark.__file__))])
    measured(monkeypatch, 2.5)
    commands = {title: command for title, command, _ in results_of(result)}
    plain = "python benchmarks/facies_gan.py"
    cases = {"cost": plain, "SNESIM": plain, "training": f"{plain} --bench_train"}
    assert commands == {f"facies_gan: {case}": command for case, command in cases.items()}
    stored = json.loads(result.read_text())
    names = [line["what"] for line in stored["cost"]["rows"]]
    assert names == ["ours", "gpu_rows", "smoother_rows", "memory_rows"]
    assert stored["training"]["rows"][0]["what"] == "train_rows"
    assert stored["cost"]["date"] == time.strftime("%Y-%m-%d")


def test_memory_is_that_of_whole_realisations(monkeypatch: pytest.MonkeyPatch):
    """The sets of 10 and 200 realisations have 250 x 250 cells."""
    shapes = []
    monkeypatch.setattr(benchmark, "new_simulator", lambda _: type("Simulator", (), {"card": None}))
    monkeypatch.setattr(benchmark, "Conditioning", lambda _, shape: shapes.append(shape))
    monkeypatch.setattr(benchmark, "realisations", lambda *_, **__: ())
    for task in ("10", "200", "tiles"):
        benchmark.run_memory_task(task)
    assert shapes == [(250, 250), (250, 250), (1000, 1000)]
