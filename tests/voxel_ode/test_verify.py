"""Running a file's case again: the same answer with its own rates, energy that follows changed ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from tests.voxel_ode.cases_simulator import tiny_case
from voxel_ode.case_files import case_of
from voxel_ode.config_prep import PrepConfig
from voxel_ode.energy import discount_factors, pumping_power_w
from voxel_ode.prep_file import write_prepped
from voxel_ode.prepped import PreppedSim, open_simulation
from voxel_ode.raw import RawFile
from voxel_ode.raw_writer import write_raw
from voxel_ode.simulator import simulate
from voxel_ode.units import YEAR
from voxel_ode.verify import reproduction_error_c, verify

NUM_STEPS = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return one simulation as raw SI, raw field and prepped file."""
    out = tmp_path_factory.mktemp("verify")
    case = tiny_case()
    run = simulate(case, NUM_STEPS)
    paths = [out / "si_0001.h5", out / "field_0001.h5", out / "si_0001.prepped.h5"]
    write_raw(paths[0], case, run, system="si")
    write_raw(paths[1], case, run, system="field")
    with RawFile(paths[0]) as raw:
        write_prepped(raw, paths[2], PrepConfig(input_root=out), "0")
    return paths


@pytest.fixture()
def sim(files: list[Path]) -> PreppedSim:
    """Return the prepped simulation."""
    return open_simulation(files[2])


def test_rebuilt_case(files: list[Path]):
    """A case from a raw or prepped file runs to the states of the file."""
    truth = simulate(tiny_case(), NUM_STEPS)
    for path in files:
        run = simulate(case_of(open_simulation(path)), NUM_STEPS)
        np.testing.assert_allclose(run.temperature_c, truth.temperature_c, atol=1e-3)
        np.testing.assert_allclose(run.pressure_bar, truth.pressure_bar, atol=1e-2)
        np.testing.assert_allclose(run.scalars, truth.scalars, rtol=1e-5)


def test_same_rates(sim: PreppedSim):
    """With the file's own rates the run from output state 0 meets the later states and the energy told."""
    outcome = verify(sim, np.ones(2), NUM_STEPS - 1)
    assert reproduction_error_c(sim, outcome) < 0.05
    assert outcome.produced_energy_j == pytest.approx(sim.scalars[1:, 1].sum() * YEAR, rel=1e-3)
    from_start = verify(sim, np.ones(2), NUM_STEPS, first_state=-1)
    assert reproduction_error_c(sim, from_start, first_state=-1) < 1e-3


def test_changed_rates(sim: PreppedSim):
    """More water brings more heat and more pumping; both objectives count what they should."""
    base, more = (verify(sim, np.full(2, factor), 3) for factor in (1.0, 1.2))
    assert base.produced_energy_j < more.produced_energy_j < 1.2 * base.produced_energy_j
    assert (more.pumping_w > 1.3 * base.pumping_w).all()
    np.testing.assert_allclose(more.signed_rate_kg_s, 1.2 * base.signed_rate_kg_s)
    net = (more.produced_w - more.injected_w - more.pumping_w).sum() * YEAR
    assert more.value("net_energy") == pytest.approx(net) and net < more.value("produced_energy")
    low, high = more.pressure_range_bar
    assert 0 < low < base.pressure_range_bar[0] < base.pressure_range_bar[1] < high


def test_discount(sim: PreppedSim):
    """A discount rate weighs year k by (1 + rate)^-k."""
    plain, discounted = verify(sim, np.ones(2), 3), verify(sim, np.ones(2), 3, discount_rate=0.1)
    expected = (plain.produced_w * [1.0, 1 / 1.1, 1 / 1.21]).sum() * YEAR
    assert discounted.produced_energy_j == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(discount_factors(2, 0.0), 1.0)


def test_pumping():
    """100 kg/s against 60 bar cost 1 MW at an efficiency of 0.6."""
    assert pumping_power_w(100.0, 260.0, 200.0) == pytest.approx(1e6)


def test_foreign_files(sim: PreppedSim):
    """A file of another simulator, or without cell sizes, is refused with the way out; so are bad factors."""
    names = [f"param{i}" for i in range(26)]
    for foreign in (dataclasses.replace(sim, param_names=names), dataclasses.replace(sim, cell_size_m=None)):
        with pytest.raises(DataError, match="not made by this generator.*--verify false"):
            case_of(foreign)
    for factors in (np.ones(3), np.array([1.0, np.nan]), np.array([1.0, -1.0])):
        with pytest.raises(DataError, match="rate factors"):
            verify(sim, factors)
