"""The benchmark of forecasts: it runs, and says what it leaves out where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import voxel_ode_rollout as benchmark
from benchmarks import voxel_ode_step as step

SIZES = {"channels": 4, "depth": 1, "radius": 1}
TINY = [word for name, n in SIZES.items() for word in (f"--{name}", str(n), f"--gpu_{name}", str(n))]
TINY += ["--grid", "16", "6", "6", "--years", "2", "--repeats", "1"]


def test_case_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Slabs equal the whole grid; without a GPU one line says so and an older result of it stays."""
    monkeypatch.setattr(benchmark, "gpu_device", lambda: None)
    path = tmp_path / "rollout.json"
    path.write_text('{"gpu": {"rows": []}}')
    assert benchmark.main([*TINY, "--result", str(path)]) == 0
    assert capsys.readouterr().out.endswith("no CUDA device: GPU rows skipped\n")
    found = json.loads(path.read_text())
    rows = {line["what"]: line for line in found["cpu"]["rows"]}
    assert found["gpu"] == {"rows": []}
    assert rows["slabs differ from whole by"]["value"] <= 1e-5 and rows["2 years by slabs"]["value"] > 0


def test_case_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Both ways in all three modes, beside the calculated time; here on the CPU without compiler."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    args = benchmark.parsed(TINY)
    table = benchmark.measure_gpu(args, (16, 6, 6), torch.device("cpu"), lambda _: lambda work: work)
    rows = {line["what"]: line for line in table}
    for way, limit in benchmark.H200_SECONDS.items():
        for mode in ("eager", "compile", "compile and graph"):
            timed = rows[f"{way}, {mode}: 2 years"]
            assert timed["at_most"] == pytest.approx(limit * 2 / 29)
            ratio = rows[f"{way}, {mode}: of the calculated time"]["value"]
            assert ratio == pytest.approx(timed["value"] / timed["at_most"], rel=1e-3)
            assert rows[f"{way}, {mode}: peak memory"]["value"] > 0
        assert rows[f"{way}: compile and graph differs from compile by"]["value"] == 0
    benchmark.save(tmp_path / "r.json", "gpu", table, 0.0, "a card", args)
    assert "a card" in json.loads((tmp_path / "r.json").read_text())["gpu"]["machine"]


def test_out_of_memory_is_a_row_without_a_number(capsys: pytest.CaptureFixture):
    """A mode that does not fit leaves its figures open, and the others still run; other errors are raised."""

    def fail(text: str) -> None:
        raise RuntimeError(text)

    cost = benchmark.forecast_cost(lambda: fail("CUDA out of memory"), 2, 1)
    assert {line["value"] for line in benchmark.gpu_rows("whole", cost, 2, 1.5)} == {None}
    assert "out of memory" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="other"):
        benchmark.forecast_cost(lambda: fail("other"), 2, 1)


def test_stem_of_a_step(monkeypatch: pytest.MonkeyPatch):
    """The benchmark of a step builds whole batches; the static stem once changes nothing."""
    monkeypatch.setattr(step, "CELLS", 8)
    monkeypatch.setattr(step, "STEPS", 1)
    rows = {line["what"]: line for line in step.stem_rows()}
    assert rows["largest difference of the two"]["value"] <= 1e-5
    assert rows["one year, stem whole"]["value"] > 0
