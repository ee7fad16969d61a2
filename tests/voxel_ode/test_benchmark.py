"""The benchmarks: they run small, their rows say what they should, and what was left out is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from benchmarks import _table
from benchmarks import voxel_ode_io as reading
from benchmarks import voxel_ode_make as making
from benchmarks import voxel_ode_rollout as benchmark
from benchmarks import voxel_ode_step as step
from voxel_ode.config_make import smoke
from voxel_ode.index import PatchIndex

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
    assert found["cpu"]["command"].startswith("python ")
    assert rows["slabs differ from whole by"]["value"] <= 1e-5 and rows["2 years by slabs"]["value"] > 0
    assert rows["cells computed, whole / slabs"]["at_least"] is None  # a limit of the full size
    for flux, share in (("off", 11 / 13), ("on", 12 / 18)):
        saved = rows[f"stem, flux inputs {flux}: multiply-adds saved by its static part once"]
        assert saved["value"] == pytest.approx(share, rel=1e-5)
        assert saved["ratio"] == pytest.approx(1 - share, rel=1e-5)
        part, whole = (
            next(line for what, line in rows.items() if what.startswith(f"stem, flux inputs {flux}: {name}"))
            for name in ("static part once", "whole")
        )
        assert part["ratio"] == pytest.approx(part["value"] / whole["value"], rel=1e-4)


def test_cells_of_the_full_size():
    """Slabs of the full grid hold at least 4.9 times fewer cells."""
    network = benchmark.make_network(
        {"receptive_field_radius": 1, "base_channels": 2, "depth": 1}, (2, 2, 2), torch.device("cpu")
    )
    active = benchmark.make_active(benchmark.FULL).numpy() > 0
    regions = benchmark.plan_regions(active, network)
    assert active.size / sum(region.num_cells for region in regions) >= benchmark.FEWER_CELLS == 4.9


def test_case_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Both ways in all three modes, beside the calculated time; here on the CPU without compiler."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    args = benchmark.parsed(TINY)
    table = benchmark.measure_gpu(args, (16, 6, 6), torch.device("cpu"), lambda _: lambda work: work)
    rows = {line["what"]: line for line in table}
    for way, limit in benchmark.H200_SECONDS.items():
        for mode in ("eager", "compile", "compile and graph"):
            timed = rows[f"{way}, {mode}: 2 years"]
            assert timed["at_most"] == pytest.approx(limit * 2 / 29, rel=1e-5)
            ratio = rows[f"{way}, {mode}: of the calculated time"]["value"]
            assert ratio == pytest.approx(timed["value"] / timed["at_most"], rel=1e-3)
            assert rows[f"{way}, {mode}: peak memory"]["value"] > 0
        assert rows[f"{way}: compile and graph differs from compile by"]["value"] == 0
    benchmark.save(tmp_path / "r.json", "gpu", table, 0.0, "a card", args)
    assert "a card" in json.loads((tmp_path / "r.json").read_text())["gpu"]["machine"]


def test_out_of_memory_is_a_row_without_a_number(capsys: pytest.CaptureFixture):
    """A mode that does not fit leaves its figures open, and the others still run; other errors are raised."""

    def fail(text: str) -> NoReturn:
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


def test_multiply_adds_are_counted():
    """Of the full width 11.6, 3.1 and 136 million a voxel; of a small one what the kernels' sizes give."""
    counts = {line["what"].split()[5].strip(","): line["value"] for line in step.count_rows()}
    for mode, millions in (("stem", 11.6), ("separable", 3.1), ("dense", 136)):
        assert counts[mode] == pytest.approx(millions, rel=5e-3)
    stem, block, head, out = 13 * 8 * 27, 2 * 27 * 8 * 8, 27 * 8 * 8, 8 * 2
    assert step.multiply_adds("stem", 8, 3, 1) == stem + 3 * block + head + out


def test_routes_beside_native(monkeypatch: pytest.MonkeyPatch):
    """Each route has a whole step and a layer with its ratio to native, and the wide layer is there."""
    monkeypatch.setattr(step, "DENSE_CELLS", 4)
    monkeypatch.setattr(step, "ROUTE_CELLS", (4, 4, 4))
    monkeypatch.setattr(step, "STEPS", 1)
    for table, what in (
        (step.backend_rows(), "a whole training step, c 16, depth 4, r 2, 2 levels, 4^3"),
        (step.route_rows(), "3^3, 16 to 16 channels, 4x4x4"),
    ):
        rows = {line["what"]: line for line in table}
        native = rows[f"{what}, native"]
        assert native["value"] > 0 and "baseline" not in native
        for name in ("pad32", "bf16", "gemm"):
            line = rows[f"{what}, {name}"]
            assert line["baseline"] == "native"
            assert line["ratio"] == pytest.approx(line["value"] / native["value"], rel=1e-4)
    wide = rows["3^3, 32 to 32 channels, 4x4x4, native"]
    assert wide["ratio"] == pytest.approx(wide["value"] / native["value"], rel=1e-4)
    assert all(_table.wanted(line)[1] != "missed" for line in rows.values())


def test_bytes_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The index alone takes at most 32 bytes a patch, in memory and as a file; its weight comes on top."""
    monkeypatch.setattr(reading, "NUM_SIMS", 2)
    n = 50
    small, number, flag = np.zeros(n, np.int16), np.zeros(n, np.float32), np.zeros(n, bool)
    index = PatchIndex(["a"], small, small, np.zeros((n, 6), np.int16), number, number, flag, flag)
    whole, alone, weight, file = reading.index_rows(index, tmp_path)
    assert alone["value"] == 26 and weight["value"] == 8
    assert 26 <= file["value"] < 27 and alone["at_most"] == file["at_most"] == 32
    count = int(whole["what"].split()[2])
    assert whole["value"] == pytest.approx((alone["value"] + weight["value"]) * count / 1e6, rel=1e-4)


def test_a_made_reservoir(tmp_path: Path):
    """A small one balances, and its rates follow from the wells' temperatures; all limits are met."""
    table = making.measure(smoke(), tmp_path)
    rows = {line["what"]: line for line in table}
    limits = {what: line["at_most"] for what, line in rows.items() if line["at_most"] is not None}
    assert sorted(limits.values()) == [1e-6, 1e-6, 1e-6, 1e-3, 1e-2, 8.4]
    assert rows["simulating 6 years of 12 x 10 x 10 cells"]["at_most"] == 8.4
    for what in limits:
        assert _table.wanted(rows[what])[1] == "met", rows[what]


def test_rates_that_are_wrong_are_seen():
    """Medians of the powers, the worst of the water, each with its own limit."""
    errors = np.array([[0.5, 0.5, 0, 2e-6], [0.02, 2e-3, 0, 0], [0.02, 2e-3, 0, 0]])
    rows = making.rate_rows(errors)
    assert [line["value"] for line in rows] == [2e-6, 2e-3, 0.02]
    assert {_table.wanted(line)[1] for line in rows} == {"missed"}
