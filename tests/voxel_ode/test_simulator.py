"""The simulator: what enters leaves or stays, known solutions of flow and conduction, turned cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from tests.voxel_ode.cases_simulator import box_case, tiny_case, turned, without_wells
from voxel_ode.face_matrix import FaceMatrix, Faces
from voxel_ode.simulator import GRAVITY, Simulator, after_history, simulate
from voxel_ode.units import (
    PASCAL_PER_BAR,
    ROCK_VOLUMETRIC_HEAT,
    WATER_DENSITY,
    WATER_HEAT_CAPACITY,
    WATER_VOLUMETRIC_HEAT,
    YEAR,
)
from voxel_ode.water import density_kg_m3, viscosity_pa_s


@pytest.mark.parametrize(("celsius", "mu", "rho"), [(20, 1.002e-3, 998.2), (100, 2.82e-4, 958.4)])
def test_water(celsius: float, mu: float, rho: float):
    """Viscosity and density agree with the tables of liquid water."""
    assert viscosity_pa_s(celsius) == pytest.approx(mu, rel=0.02)
    assert density_kg_m3(celsius) == pytest.approx(rho, rel=2e-3)


def test_balance():
    """Each year mass and heat balance to 1e-6, and no temperature leaves [injected, hottest]."""
    case = tiny_case()
    run = simulate(case, 6)
    assert np.abs(run.mass_error).max() < 1e-6 and np.abs(run.energy_error).max() < 1e-6
    inside = run.temperature_c[:, case.active]
    assert inside.min() >= case.injection_temperature_c - 1e-6
    assert inside.max() <= case.temperature0_c.max() + 1e-6
    assert inside.min() < case.temperature0_c[case.active].min() - 5, "the injectors cool nothing"


def test_balance_from_states():
    """The heat that the states have lost is the heat produced less injected, up to the water's expansion."""
    case = tiny_case()
    run = simulate(case, 6)
    porosity = case.porosity
    capacity = porosity * WATER_VOLUMETRIC_HEAT + (1 - porosity) * ROCK_VOLUMETRIC_HEAT
    lost = case.cell_volume_m3 * (capacity * (case.temperature0_c - run.temperature_c[-1])).sum()
    gained = (run.scalars[:, 1] - run.scalars[:, 0]).sum() * YEAR
    assert lost == pytest.approx(gained, rel=0.02)


def test_scalars():
    """Rates are those of the wells, the total is the running sum, injectors inject at their temperature."""
    case = tiny_case(2)
    run = simulate(case, 3)
    injected, produced = case.wells.total_rates_kg_s
    np.testing.assert_allclose(run.scalars[:, 3:], [[injected, produced]] * 3, rtol=1e-12)
    np.testing.assert_allclose(run.scalars[:, 2], np.cumsum(run.scalars[:, 1]) * YEAR, rtol=1e-12)
    expected = injected * WATER_HEAT_CAPACITY * case.injection_temperature_c
    np.testing.assert_allclose(run.scalars[:, 0], expected, rtol=1e-12)
    at_wells = case.wells.features(run.pressure_bar[-1], run.temperature_c[-1], case.active, case.flow)
    before = case.wells.features(run.pressure_bar[-2], run.temperature_c[-2], case.active, case.flow)
    mean = 0.25 * before[1] + 0.75 * at_wells[1]  # of two half years
    assert run.scalars[-1, 1] == pytest.approx(produced * WATER_HEAT_CAPACITY * mean, rel=1e-3)


def test_pressure_is_hydrostatic_without_wells():
    """A flat closed box comes to rest: pressure differences are the weight of the water to 1e-6."""
    depth = np.arange(8.0)[:, None, None]
    case = box_case((8, 4, 4), temperature_c=80.0 + 0.35 * depth)
    run = simulate(case, 3)
    assert np.abs(run.mass_error).max() < 1e-12
    pressure = run.pressure_bar[-1] * PASCAL_PER_BAR
    rho = density_kg_m3(run.temperature_c[-1])
    drop = np.diff(pressure, axis=0) - 0.5 * (rho[1:] + rho[:-1]) * GRAVITY * case.cell_size_m[0]
    assert np.abs(drop).max() < 1e-6 * pressure.max()
    assert np.abs(np.diff(pressure, axis=1)).max() < 1e-6 * pressure.max()
    assert pressure.mean() == pytest.approx(200 * PASCAL_PER_BAR, rel=1e-6)  # closed: the mean stays


def test_heat_is_conducted_without_wells():
    """A cosine along depth in a closed column decays as exp(-D (pi/L)^2 t), wet or dry."""
    layers, height = 20, 10.0
    z = (np.arange(layers) + 0.5)[:, None, None] / layers
    initial = 100.0 + 10.0 * np.cos(np.pi * z)
    for porosity in (0.0, 0.1):
        case = box_case((layers, 1, 1), porosity=porosity, permeability_md=1e-6, temperature_c=initial)
        run = simulate(case, 20, substeps=4)
        heat = porosity * WATER_VOLUMETRIC_HEAT + (1 - porosity) * ROCK_VOLUMETRIC_HEAT
        decay = case.rock_conductivity_w_mk / heat * (np.pi / (layers * height)) ** 2 * 20 * YEAR
        expected = 100.0 + 10.0 * np.exp(-decay) * np.cos(np.pi * z)
        assert np.abs(expected - initial).max() > 1.0
        np.testing.assert_allclose(run.temperature_c[-1], expected, atol=0.03)


def channel(rate_kg_s: float = 1.0) -> Any:
    """Return a channel of 60 cells from an injector at one end to a producer at the other."""
    rates = np.zeros((1, 1, 60))
    rates[0, 0, 0], rates[0, 0, -1] = rate_kg_s, -rate_kg_s
    return box_case((1, 1, 60), (40.0, 40.0, 10.0), rates=rates, conductivity=1e-9)


def test_thermal_front():
    """The cold front moves at q rho c_w over the bulk heat capacity, to two cells."""
    case, years = channel(), 8
    temperature = simulate(case, years, substeps=8).temperature_c[-1, 0, 0]
    bulk = 0.1 * WATER_VOLUMETRIC_HEAT + 0.9 * ROCK_VOLUMETRIC_HEAT
    speed = 1.0 / WATER_DENSITY * WATER_VOLUMETRIC_HEAT / (40.0 * 40.0 * bulk)  # m/s
    front = np.interp(70.0, temperature, np.arange(60) + 0.5)  # half way from 40 to 100 deg C
    assert 15 < speed * years * YEAR / 10.0 < 50
    assert front == pytest.approx(speed * years * YEAR / 10.0, abs=2.0)


def test_darcy():
    """In a channel at steady flow the pressure falls by q mu / (rho0 k A) a metre."""
    case = channel()
    case = replace(case, injection_temperature_c=100.0)
    pressure = simulate(case, 2).pressure_bar[-1, 0, 0] * PASCAL_PER_BAR
    fall = 1.0 / WATER_DENSITY * viscosity_pa_s(100.0) / (100 * 9.869233e-16 * 40.0 * 40.0)
    np.testing.assert_allclose(-np.diff(pressure), fall * 10.0, rtol=1e-6)


MOVES = {
    "quarter turn": (lambda g: np.ascontiguousarray(np.rot90(g, 1, (-2, -1))), True),
    "half turn": (lambda g: np.ascontiguousarray(np.rot90(g, 2, (-2, -1))), False),
    "swap": (lambda g: np.ascontiguousarray(np.swapaxes(g, -2, -1)), True),
    "flip": (lambda g: np.ascontiguousarray(np.flip(g, -1)), False),
}


@pytest.mark.parametrize("name", MOVES)
def test_turned_case(name: str):
    """Turning or flipping a case and running it equals running and turning; odd turns swap PermX, PermY."""
    move, swaps = MOVES[name]
    case = tiny_case()
    run, other = simulate(case, 3), simulate(turned(case, move, swaps), 3)
    np.testing.assert_allclose(other.temperature_c, move(run.temperature_c), atol=1e-5)
    np.testing.assert_allclose(other.pressure_bar, move(run.pressure_bar), atol=1e-5)
    np.testing.assert_allclose(other.scalars, run.scalars, rtol=1e-6)


def test_turn_without_swap_differs():
    """Leaving PermX and PermY in place when turning changes the answer, so the swap is needed."""
    move, _ = MOVES["quarter turn"]
    case = tiny_case()
    run, wrong = simulate(case, 3), simulate(turned(case, move, swaps=False), 3)
    assert np.abs(wrong.pressure_bar - move(run.pressure_bar)).max() > 1e-2


def test_history():
    """Years of history are the same years: state 1 after 2 years of history is state 3."""
    case = tiny_case()
    whole, rest = simulate(case, 3), simulate(case, 1, history_years=2)
    np.testing.assert_allclose(rest.temperature_c[0], whole.temperature_c[2], atol=0.05)
    np.testing.assert_allclose(rest.pressure_bar[0], whole.pressure_bar[2], atol=0.05)
    np.testing.assert_array_equal(after_history(case, 2).temperature0_c, whole.temperature_c[1])


def test_shut_wells():
    """With all wells at rate 0 nothing is injected, produced or cooled."""
    case = without_wells(tiny_case())
    run = simulate(case, 2)
    assert not run.scalars.any()
    assert np.abs(run.temperature_c - case.temperature0_c).max() < 1.0
    assert np.abs(run.energy_error).max() < 1e-9


def test_substeps_converge():
    """Halving the step changes the temperatures less each time."""
    case = tiny_case()
    coarse, middle, fine = (simulate(case, 2, substeps=n).temperature_c[-1] for n in (1, 2, 4))
    assert 0 < np.abs(fine - middle).max() < 0.75 * np.abs(middle - coarse).max()


def test_same_answer_twice():
    """The simulator holds no random number: two runs agree bit for bit, whatever numpy's global state."""
    first = simulate(tiny_case(), 2)
    np.random.seed(1)  # the very state that must not matter
    np.testing.assert_array_equal(simulate(tiny_case(), 2).pressure_bar, first.pressure_bar)


def test_unsolvable():
    """A case with a temperature that is no number ends in one line, not in a field of NaN."""
    case = channel()
    broken = replace(case, temperature0_c=case.temperature0_c * np.nan)
    with pytest.raises(DataError, match="pressure equation was not solved"):
        simulate(broken, 1)


def test_face_matrix():
    """Filling by faces equals adding entry by entry, on a mask with holes."""
    rng = np.random.default_rng(0)
    mask = rng.random((3, 4, 5)) < 0.7
    faces = Faces.of(mask)
    upper, lower = rng.random((2, len(faces.first)))
    diagonal = rng.random(faces.num_cells)
    expected = np.diag(diagonal)
    expected[faces.first, faces.second] = upper
    expected[faces.second, faces.first] = lower
    np.testing.assert_array_equal(FaceMatrix(faces).fill(upper, lower, diagonal).toarray(), expected)
    assert faces.divergence(upper).sum() == pytest.approx(0.0, abs=1e-12)


def test_simulator_is_stepwise():
    """Water that cells gain in a step is what flows in: the sum over cells is what wells add."""
    simulator = Simulator(channel())
    before = simulator.water.sum()
    simulator.step(YEAR / 2)
    assert simulator.water.sum() == pytest.approx(before, rel=1e-12)
    assert simulator.water[0] > 0.1 > simulator.water[-1]  # compressed at the injector, relieved at the other
