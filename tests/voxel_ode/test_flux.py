"""The flow features: hydrostatics, conservation of water, the one-dimensional front, symmetry, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from voxel_ode.flux import (
    GRAVITY,
    FluxGeometry,
    face_flows,
    flux_features,
    flux_geometry,
    inflow_numbers,
    next_cell,
    previous_cell,
    source_number,
    upwind,
)
from voxel_ode.units import (
    MILLIDARCY,
    PASCAL_PER_BAR,
    ROCK_VOLUMETRIC_HEAT,
    WATER_DENSITY,
    WATER_VOLUMETRIC_HEAT,
    YEAR,
)
from voxel_ode.water import density_kg_m3, viscosity_pa_s

SIZE = (10.0, 50.0, 40.0)
SHAPE = (5, 4, 6)


def geometry(shape: tuple[int, int, int] = SHAPE, k_md: float = 100.0, phi: float = 0.1) -> FluxGeometry:
    """Return uniform rock, all of it with water, in float64."""
    rock = torch.full((1, 3, *shape), k_md, dtype=torch.float64)
    porosity = torch.full((1, *shape), phi, dtype=torch.float64)
    cell = torch.tensor([SIZE], dtype=torch.float64)
    year = torch.tensor([YEAR], dtype=torch.float64)
    return wellless(rock, porosity, torch.ones(1, *shape), cell, year)


def wellless(rock: torch.Tensor, phi: torch.Tensor, water: torch.Tensor, *rest: torch.Tensor) -> FluxGeometry:
    """Return the geometry of a reservoir without wells."""
    return flux_geometry(rock, phi, water, *rest, torch.zeros_like(phi), torch.full_like(rest[-1], math.nan))


def random_state(shape: tuple[int, int, int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pressure (bar) and temperature (deg C)."""
    generator = torch.Generator().manual_seed(0)
    p = 200 + 2 * torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    return p, 80 + 10 * torch.randn(1, *shape, generator=generator, dtype=torch.float64)


def test_hydrostatic_water_rests():
    """A column of constant temperature under its own weight does not flow, and nothing is carried."""
    t = torch.full((1, *SHAPE), 90.0, dtype=torch.float64)
    depth = torch.arange(SHAPE[0], dtype=torch.float64) * SIZE[0]
    p = 200 + density_kg_m3(90.0) * GRAVITY * depth[None, :, None, None] / PASCAL_PER_BAR
    flows = face_flows(geometry(), p.expand(1, *SHAPE), t)
    driven = face_flows(geometry(), p.expand(1, *SHAPE) * 1.001, t)
    assert max(float(f.abs().max()) for f in flows) < 1e-9 * max(float(f.abs().max()) for f in driven)
    change, inflow = flux_features(geometry(), p.expand(1, *SHAPE), t)
    assert not change.any() or float(change.abs().max()) < 1e-9
    assert float(inflow.max()) < 1e-6


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_darcy_flow_through_one_face(axis: int):
    """F = k A/h / mu * (P_i - P_j + rho g dz) with the size of the cells along each axis."""
    shape = [1, 1, 1]
    shape[axis] = 2
    t = torch.full((1, *shape), 60.0, dtype=torch.float64)
    p = torch.tensor([201.0, 200.0], dtype=torch.float64).reshape(1, *shape)
    f = face_flows(geometry((shape[0], shape[1], shape[2])), p, t)[axis].flatten()
    area = SIZE[0] * SIZE[1] * SIZE[2] / SIZE[axis]
    weight = density_kg_m3(60.0) * GRAVITY * SIZE[0] if axis == 0 else 0.0
    expected = 100 * MILLIDARCY * area / SIZE[axis] / viscosity_pa_s(60.0) * (PASCAL_PER_BAR + weight)
    assert float(f[0]) == pytest.approx(expected, rel=1e-6) and float(f[1]) == 0


def test_harmonic_mean_and_barriers():
    """Two rocks in a row conduct like their harmonic mean; rock without water stops the flow."""
    rock = torch.tensor([10.0, 40.0, 0.0]).reshape(1, 1, 1, 1, 3).expand(1, 3, 1, 1, 3)
    water = torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    cell, year = torch.tensor([SIZE]), torch.tensor([YEAR])
    faces = wellless(rock, 0.1 * water, water, cell, year).faces[2].flatten()
    factor = MILLIDARCY * SIZE[0] * SIZE[1] / SIZE[2]
    torch.testing.assert_close(faces, torch.tensor([16.0 * factor, 0.0, 0.0]), rtol=1e-5, atol=0)


def test_sensitivity_is_heat_capacity_carried():
    """One cubic metre a second for a year brings dt C / (V bulk) heat capacities of a cell."""
    found = geometry(phi=0.2).sensitivity
    bulk = 0.2 * WATER_VOLUMETRIC_HEAT + 0.8 * ROCK_VOLUMETRIC_HEAT
    expected = YEAR * WATER_VOLUMETRIC_HEAT / (SIZE[0] * SIZE[1] * SIZE[2] * bulk)
    torch.testing.assert_close(found, torch.full_like(found, expected))
    source = source_number(torch.full((1, *SHAPE), 3.0, dtype=torch.float64), geometry(phi=0.2))
    torch.testing.assert_close(source, torch.full_like(source, 3e-3 * expected).asinh())


def test_what_leaves_a_cell_enters_its_neighbour():
    """Inflow numbers and face flows agree: every cubic metre that leaves a cell arrives in one other."""
    g = geometry()
    flows = face_flows(g, *random_state())
    inflow = inflow_numbers(g, flows)
    arriving = torch.stack([a for pair in inflow for a in pair]).sum()
    moved = torch.stack([f.abs().sum() for f in flows]).sum() * g.sensitivity[0, 0, 0, 0]
    torch.testing.assert_close(arriving, moved)
    balance = sum(previous_cell(f, i) - f for i, f in enumerate(flows))
    assert abs(float(balance.sum())) < 1e-12 * float(moved)


def test_upwind_front_in_one_dimension():
    """Behind a front the implicit sweeps give X_1 = (T_1 + a T_0) / (1 + a), then the next cell."""
    a = 0.7
    n = 6
    t = torch.tensor([20.0] + [80.0] * (n - 1), dtype=torch.float64).reshape(1, 1, 1, n)
    from_before = torch.full((1, 1, 1, n), a, dtype=torch.float64)
    from_before[..., 0] = 0
    zero = torch.zeros_like(from_before)
    x = upwind(geometry((1, 1, n)), t, [[zero, zero], [zero, zero], [from_before, zero]]).flatten()
    expected = [20.0]
    for _ in range(n - 1):
        expected.append((80.0 + a * expected[-1]) / (1 + a))
    torch.testing.assert_close(x[:4], torch.tensor(expected[:4], dtype=torch.float64))
    assert bool((x >= 20).all()) and bool((x <= 80).all())


def test_no_new_extremes():
    """The carried temperature stays between the coldest and the warmest cell, whatever the flow."""
    p, t = random_state()
    change, _ = flux_features(geometry(k_md=1e5), p, t)
    assert float((t + change).max()) <= float(t.max()) + 1e-9
    assert float((t + change).min()) >= float(t.min()) - 1e-9


def test_turning_the_reservoir_turns_the_features():
    """A quarter turn in the horizontal plane, with PermX and PermY swapped, turns the features alike."""
    generator = torch.Generator().manual_seed(1)
    rock = 50 * torch.rand(1, 3, *SHAPE, generator=generator, dtype=torch.float64) + 1
    phi = torch.full((1, *SHAPE), 0.1, dtype=torch.float64)
    water = (torch.rand(1, *SHAPE, generator=generator) < 0.8).double()
    cell = torch.tensor([[10.0, 50.0, 50.0]], dtype=torch.float64)
    year = torch.tensor([YEAR], dtype=torch.float64)
    p, t = random_state()

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.rot90(x, 1, (-2, -1))

    plain = flux_features(wellless(rock, phi, water, cell, year), p, t)
    swapped = turned(rock)[:, [1, 0, 2]]
    after = flux_features(wellless(swapped, turned(phi), turned(water), cell, year), turned(p), turned(t))
    for expected, found in zip(plain, after, strict=True):
        torch.testing.assert_close(found, turned(expected), rtol=1e-9, atol=1e-9)


def test_zero_off_water():
    """Rock without water has no flow feature, and what is written there does not reach its neighbours."""
    p, t = random_state()
    water = torch.ones(1, *SHAPE)
    water[:, 2] = 0
    rock = torch.full((1, 3, *SHAPE), 100.0, dtype=torch.float64)
    phi = torch.full((1, *SHAPE), 0.1, dtype=torch.float64)
    cell = torch.tensor([SIZE], dtype=torch.float64)
    year = torch.tensor([YEAR], dtype=torch.float64)
    results = []
    for spoil in (0.0, -999.0):
        dry = (1 - water).double()
        g = wellless(rock + spoil * dry[:, None], phi + spoil * dry, water, cell, year)
        results.append(flux_features(g, p + spoil * dry, t))
    for clean, spoiled in zip(*results, strict=True):
        assert torch.equal(clean, spoiled) and not clean[:, 2].any()


def test_injected_water_cools_its_cells():
    """X = (T + a T_inj) / (1 + a) in a still injector's cell and nowhere else, if T_inj is known."""
    still = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    phi = torch.full((1, *SHAPE), 0.1, dtype=torch.float64)
    source = torch.zeros_like(phi)
    source[0, 2, 1, 3], source[0, 2, 3, 3] = 3.0, -3.0
    cell, year = torch.tensor([SIZE], dtype=torch.float64), torch.tensor([YEAR], dtype=torch.float64)
    p, t = random_state()
    for celsius in (40.0, math.nan):
        told = torch.tensor([celsius], dtype=torch.float64)
        g = flux_geometry(still, phi, torch.ones(1, *SHAPE), cell, year, source, told)
        change, _ = flux_features(g, p, t)
        a = 3.0 / WATER_DENSITY * float(g.sensitivity[0, 2, 1, 3])
        before = float(t[0, 2, 1, 3])
        expected = (before + a * 40.0) / (1 + a) - before if celsius == 40.0 else 0.0
        assert a > 1 and float(change[0, 2, 1, 3]) == pytest.approx(expected, rel=1e-9)
        change[0, 2, 1, 3] = 0
        assert not change.any()


def test_features_are_differentiable():
    """The derivatives of the features with respect to pressure and temperature are those of differences."""
    g = geometry((2, 3, 2))
    p, t = (x.requires_grad_() for x in random_state((2, 3, 2)))
    assert torch.autograd.gradcheck(lambda *state: flux_features(g, *state), (p, t), eps=1e-6, atol=1e-4)


def test_neighbours():
    """`next_cell` and `previous_cell` look one cell along an axis and see 0 beyond the edge."""
    x = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    assert next_cell(x, 2).flatten().tolist() == [2, 3, 0, 5, 6, 0]
    assert previous_cell(x, 2).flatten().tolist() == [0, 1, 2, 0, 4, 5]
    assert next_cell(x, 1).flatten().tolist() == [4, 5, 6, 0, 0, 0]
    assert not next_cell(x, 0).any() and not previous_cell(x, 0).any()
