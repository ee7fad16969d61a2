"""Pressures that wells bring about within a year, solved rather than learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.voxel_ode.cases_simulator import tiny_case
from voxel_ode.prepped import PreppedSim
from voxel_ode.raw_writer import write_raw
from voxel_ode.simulator import simulate
from voxel_ode.startup import started_pressure, well_responses


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> PreppedSim:
    """Return a generated reservoir with three years of output."""
    path = tmp_path_factory.mktemp("startup") / "v2.4_0001.h5"
    write_raw(path, tiny_case(), simulate(tiny_case(), 3))
    return PreppedSim.from_raw(path)


def test_started_pressure_is_that_of_the_first_year(sim: PreppedSim):
    """The solve comes within 15 % (RMS) of the simulator's jump, and knows nothing of the outputs."""
    flow = sim.masks()[1] > 0
    before, after = (sim.states(t, t + 1)[0, 0][flow] for t in (-1, 0))
    found = started_pressure(sim)
    jump = np.sqrt(np.square(after - before).mean())
    assert jump > 1.0, "the wells do nothing"
    assert np.sqrt(np.square(found[flow] - after).mean()) < 0.15 * jump
    assert not found[~flow].any()
    assert np.array_equal(found, started_pressure(replace(sim, t_valid=0)))


def test_responses_add_up_to_changed_rates(sim: PreppedSim):
    """The sum of (f - 1) times the responses is the difference of two simulations, to 20 % (RMS)."""
    case, flow = tiny_case(), sim.masks()[1] > 0
    wells = case.wells
    factors = np.where(wells.sign > 0, 1.2, 1.2 * wells.total_rates_kg_s[0] / wells.total_rates_kg_s[1])
    plain, changed = (simulate(c, 1) for c in (case, case.with_rates(factors * wells.rate_kg_s)))
    expected = (changed.pressure_bar - plain.pressure_bar)[0][flow]
    found = np.tensordot(factors - 1.0, well_responses(sim, -1), axes=1)[flow]
    change = np.sqrt(np.square(expected).mean())
    assert change > 0.1
    assert np.sqrt(np.square(found - expected).mean()) < 0.2 * change


def test_unknown_cell_size(sim: PreppedSim, capsys: pytest.CaptureFixture[str]):
    """Without a cell size the initial pressure is kept with a warning, and no response is claimed."""
    blind = replace(sim, cell_size_m=None)
    flow = sim.masks()[1] > 0
    assert np.array_equal(started_pressure(blind)[flow], sim.states(-1, 0)[0, 0][flow])
    assert "no cell size" in "".join(capsys.readouterr())
    assert not well_responses(blind, -1).any()


def test_injection_temperature_of_a_forecast(sim: PreppedSim):
    """What is told counts first, then the parameter, then a year's heat, which the initial state has not."""
    case = tiny_case()
    assert replace(sim, told_injection_c=61.0).injection_c(-1) == 61.0
    assert sim.injection_c(-1) == pytest.approx(case.injection_temperature_c, abs=1e-6)
    foreign = replace(sim, param_names=["a"] * len(sim.params))
    assert foreign.injection_c(0) == pytest.approx(case.injection_temperature_c, rel=1e-5)
    assert np.isnan(foreign.injection_c(-1)) and np.isnan(replace(foreign, t_valid=0).injection_c(0))
