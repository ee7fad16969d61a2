"""The search for better rates: true gradients, kept balances, and never worse in the simulator."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from common.run import MachineOptions
from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_rollout import save_model
from tests.voxel_ode.cases_simulator import box_case
from voxel_ode.config_tools import OptimiseConfig
from voxel_ode.loading import load
from voxel_ode.optimise import Balance, RateForecast, best_of, search
from voxel_ode.optimise_report import optimise
from voxel_ode.parameters import PARAM_NAMES
from voxel_ode.prep import prep_data
from voxel_ode.prepped import open_simulation
from voxel_ode.raw_writer import write_raw
from voxel_ode.simulator import simulate

CPU = MachineOptions(device="cpu", precision="fp32", overwrite=True)
SHAPE = (4, 8, 9)


def write_case(path: Path, rate: float = 20.0) -> Path:
    """Write a simulated box with two doublets, one of which breaks through much earlier."""
    rates = np.zeros(SHAPE)
    for (y, x), sign in {(1, 1): 1, (1, 3): -1, (6, 1): 1, (6, 7): -1}.items():
        rates[1:3, y, x] = sign * rate
    case = box_case(SHAPE, (20.0, 60.0, 60.0), rates=rates, temperature_c=90.0)
    params = np.full(26, 0.5)
    params[[12, 13]] = (40.0 - 35.0) / 20.0, (2.5 - 2.0) / 1.2  # injection temperature, conductivity
    case = replace(case, params=params, param_names=PARAM_NAMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raw(path, case, simulate(case, 4))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return (a raw simulation with two doublets, a checkpoint of a random network for such data)."""
    folder = tmp_path_factory.mktemp("optimise")
    for i, rate in enumerate((20.0, 24.0, 28.0, 30.0), start=1):
        write_case(folder / "raw" / f"v2.4_{i:04d}.h5", rate)
    from common.run import BasicOptions
    from voxel_ode.config_prep import PrepConfig

    flags: dict[str, Any] = {"patch_size": SHAPE, "num_test": 1, "num_val": 1}
    prep_data(PrepConfig(folder / "raw", folder / "prepped", **flags), BasicOptions())
    model = save_model(folder / "model.pt", folder / "prepped", spread=0.05, multiscale=0)
    return folder / "raw" / "v2.4_0001.h5", model


def config(place: tuple[Path, Path], out: Path, **flags: Any) -> OptimiseConfig:
    """Return a short search."""
    quick = {"horizon": 3, "iterations": 4, "candidates": 2, "save_path": out / "best.json", **flags}
    return OptimiseConfig(sim_path=str(place[0]), ckpt_path=(str(place[1]),), **quick)


def test_gradient_is_true(place: tuple[Path, Path], tmp_path: Path):
    """The gradient along changes that keep the balance equals finite differences, for both objectives."""
    sim, model = open_simulation(place[0]), load(place[1], precision="fp32")
    for objective in ("produced_energy", "net_energy"):
        forecast = RateForecast(model, sim, config(place, tmp_path, objective=objective))
        factors = torch.ones(4, requires_grad=True)
        energy, _ = forecast.energy(factors)
        (found,) = torch.autograd.grad(energy, factors)
        injectors, producers = (np.flatnonzero(sim.wells.sign == s) for s in (1, -1))
        for i, p in itertools.product(injectors, producers):  # a closed box: water in and out stay equal
            step = torch.zeros(4)
            step[[i, p]] = 1.0
            with torch.no_grad():
                high, low = (forecast.energy(torch.ones(4) + s * step)[0] for s in (0.02, -0.02))
            expected = float(high - low) / 0.04
            np.testing.assert_allclose(
                float(found @ step), expected, rtol=0.05, atol=2e-3 * float(energy.detach())
            )


def test_factors_of_one_change_nothing(place: tuple[Path, Path], tmp_path: Path):
    """With factors of 1 fields and well means are those of the file; doubled rates double the source."""
    sim, model = open_simulation(place[0]), load(place[1], precision="fp32")
    forecast = RateForecast(model, sim, config(place, tmp_path))
    fields, reader = forecast._with_factors(torch.ones(4))
    for name in ("static", "well_source", "well_rates"):
        torch.testing.assert_close(getattr(fields, name), getattr(forecast.fields, name))
    torch.testing.assert_close(reader.injector, forecast.reader.injector)
    torch.testing.assert_close(reader.producer, forecast.reader.producer)
    doubled, _ = forecast._with_factors(torch.full((4,), 2.0))
    torch.testing.assert_close(doubled.well_source, 2 * forecast.fields.well_source)
    torch.testing.assert_close(doubled.well_rates, 2 * forecast.fields.well_rates)


@pytest.mark.parametrize("total", ["fixed", "free"])
def test_projection_keeps_the_balance(place: tuple[Path, Path], total: str):
    """Projected factors lie within bounds and balance; what balances already stays; it is the nearest."""
    wells = open_simulation(place[0]).wells
    balance = Balance.of(wells, (0.5, 1.5), total)
    q = wells.signed_rate_kg_s
    rng = np.random.default_rng(0)
    for _ in range(20):
        wish = rng.uniform(0, 2, 4)
        found = balance.project(wish)
        assert found.min() >= 0.5 and found.max() <= 1.5 and abs(q @ found) < 1e-5
        if total == "fixed":
            assert abs(found[q > 0] @ q[q > 0] - q[q > 0].sum()) < 1e-5
        np.testing.assert_allclose(balance.project(found), found, atol=1e-6)
        for _ in range(20):
            other = balance.project(rng.uniform(0, 2, 4))
            assert np.linalg.norm(found - wish) <= np.linalg.norm(other - wish) + 1e-6
    np.testing.assert_allclose(balance.project(np.ones(4)), 1.0, atol=1e-6)


def test_search_raises_the_predicted_energy(place: tuple[Path, Path], tmp_path: Path):
    """The best iterate predicts at least as much energy as the start, with the total unchanged."""
    sim, model = open_simulation(place[0]), load(place[1], precision="fp32")
    chosen = config(place, tmp_path, iterations=8)
    candidates = search(RateForecast(model, sim, chosen), Balance.of(sim.wells, (0.5, 1.5), "fixed"), chosen)
    assert candidates[0].factors.tolist() == [1.0] * 4 and len(candidates) == 3
    assert candidates[1].energy_j > candidates[0].energy_j
    q = sim.wells.signed_rate_kg_s
    for c in candidates:
        assert abs((q * c.factors)[q > 0].sum() - 40.0) < 1e-3
    best = best_of(candidates, 3)
    assert [c.score for c in best] == sorted((c.score for c in best), reverse=True)


def test_simulator_has_the_last_word(place: tuple[Path, Path], tmp_path: Path):
    """The chosen rates are never worse than the start in the simulator; both gains stand in the file."""
    optimise(config(place, tmp_path), CPU)
    found = json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))
    gains = [entry["simulated_gain"] for entry in found["candidates"]]
    assert gains[0] == 0 and found["simulated_gain"] == max(gains) >= 0
    assert found["chosen"] == int(np.argmax(gains)) and found["reproduction_error_C"] < 0.02
    assert all("predicted_gain" in entry for entry in found["candidates"])
    assert (tmp_path / "best.png").stat().st_size > 2000
    said = found["text"]
    assert ("the starting rates are the best" in said) == (found["chosen"] == 0)


def test_pressure_limits_cost(place: tuple[Path, Path], tmp_path: Path):
    """A limit below the pressures of the field is counted as excess, one around them is not."""
    sim, model = open_simulation(place[0]), load(place[1], precision="fp32")
    for limits, is_outside in (((0.0, 1000.0), False), ((0.0, 150.0), True)):
        forecast = RateForecast(model, sim, config(place, tmp_path, pressure_limits=limits))
        with torch.no_grad():
            excess = float(forecast.energy(torch.ones(4))[1])
        assert (excess > 1) == is_outside and excess >= 0


def test_refusals(place: tuple[Path, Path], tmp_path: Path):
    """One doublet with a fixed total, and files of another simulator, are refused with what to do."""
    wells = open_simulation(place[0]).wells
    keep = wells.cell_well < 2
    pair = replace(
        wells,
        sign=np.array([1, -1], dtype=np.int8),
        rate_kg_s=wells.rate_kg_s[:2],
        cells=wells.cells[keep],
        weight=wells.weight[keep],
        cell_well=wells.cell_well[keep],
    )
    with pytest.raises(UserError, match="no rate can move; use --total free"):
        Balance.of(pair, (0.5, 1.5), "fixed")
    assert len(Balance.of(pair, (0.5, 1.5), "free").groups) == 1
    root = prepared(tmp_path / "foreign")
    foreign = tmp_path / "foreign" / "raw" / "v2.4_0001.h5"
    model = save_model(tmp_path / "model.pt", root)
    with pytest.raises(DataError, match="not made by this generator .* --verify false"):
        optimise(config((foreign, model), tmp_path, total="free"), CPU)
    optimise(config((foreign, model), tmp_path, total="free", verify=False, iterations=1), CPU)
    found = json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))
    assert found["simulated_gain"] is None and "not simulated" in found["text"]
    with pytest.raises(UserError, match="best.json: exists"):
        optimise(config(place, tmp_path), replace(CPU, overwrite=False))
