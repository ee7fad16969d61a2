"""The baselines do what their formulas say, so that beating them means something."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.voxel_ode.cases_data import prepared
from voxel_ode import fno
from voxel_ode.balance import PressureSweeps
from voxel_ode.baselines import (
    BalancedUpwind,
    Copy,
    Linear,
    Ridge,
    Upwind,
    _rows,
    _solve,
    batch_of,
    fit_ridges,
)
from voxel_ode.dataset import PatchOptions, open_split, read_stats
from voxel_ode.fields import Fields
from voxel_ode.flux import flux_features, flux_geometry
from voxel_ode.items import make_item
from voxel_ode.model import Scales
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim, open_prepped

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepped root with simulations of 7x6x5 cells."""
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def normalizer(root: Path) -> Normalizer:
    """Return the maps of its training data."""
    return Normalizer.from_stats(read_stats(root / "stats.json"))


@pytest.fixture(scope="module")
def sim(root: Path) -> PreppedSim:
    """Return its test simulation."""
    return open_prepped(root / "test" / "v2.4_0001.prepped.h5")


def test_copy_and_linear(sim: PreppedSim, normalizer: Normalizer):
    """Copy keeps the state; linear is x_0 + k (x_0 - x_initial) after k years."""
    batch = batch_of(sim, 0, normalizer, CPU)
    state = batch["states"][:, 0]
    assert Copy().start(batch, normalizer)(state) is state
    step = Linear().start(batch, normalizer)
    x0, initial = (normalizer.state_to_physical(x) for x in (state, batch["initial"]))
    for k in range(1, 4):
        state = step(state)
        found = normalizer.state_to_physical(state)
        inside = batch["masks"][:, [1, 0]] > 0
        torch.testing.assert_close(found[inside], (x0 + k * (x0 - initial))[inside], rtol=1e-4, atol=1e-3)


def test_upwind_is_the_flow_alone(sim: PreppedSim, normalizer: Normalizer):
    """Upwind adds what the flow brings to T in deg C and leaves P; without flow it is copy."""
    batch = batch_of(sim, 0, normalizer, CPU)
    state = batch["states"][:, 0]
    masks = batch["masks"]
    geometry = flux_geometry(
        batch["rock"],
        batch["porosity"][:, 0],
        masks[:, 1],
        batch["cell_size"],
        batch["dt_s"],
        batch["well_source"][:, 0],
        batch["injection_c"],
    )
    p, t = normalizer.state_to_physical(state).unbind(1)
    change, _ = flux_features(geometry, p, t)
    found = Upwind().start(batch, normalizer)(state)
    difference = normalizer.state_to_physical(found) - normalizer.state_to_physical(state)
    assert (difference[:, 0] == 0).all() and change.abs().max() > 0.01
    torch.testing.assert_close(difference[:, 1], change * masks[:, 0], rtol=1e-3, atol=1e-3)
    still = {**batch, "rock": torch.zeros_like(batch["rock"]), "injection_c": torch.tensor([math.nan])}
    assert torch.equal(Upwind().start(still, normalizer)(state), state)


def test_balanced_upwind_settles_pressures(sim: PreppedSim, normalizer: Normalizer):
    """Temperatures change as with upwind alone; what the cells' water lacks falls with the sweeps."""
    batch = batch_of(sim, 0, normalizer, CPU)
    state = batch["states"][:, 0].clone()
    state[:, 0] += 0.01 * torch.randn(state[:, 0].shape, generator=torch.Generator().manual_seed(0))
    plain = Upwind().start(batch, normalizer)(state)
    balance = PressureSweeps(Scales(normalizer), Fields.first_of(batch), 1)
    left = []
    for sweeps in (4, 32):
        found = BalancedUpwind(sweeps).start(batch, normalizer)(state)
        torch.testing.assert_close(found[:, 1], plain[:, 1])
        left.append(float(balance.imbalance(*normalizer.state_to_physical(found).unbind(1)).abs().sum()))
    before = float(balance.imbalance(*normalizer.state_to_physical(plain).unbind(1)).abs().sum())
    assert left[1] < left[0] < 0.5 * before


@pytest.mark.parametrize("size", [1, 3])
def test_ridge_finds_a_planted_law(size: int):
    """Normal equations of data that follow a linear law of the cell or its surroundings give that law."""
    rng = np.random.default_rng(0)
    law = np.zeros((2, 3, 3, 3, 3))
    centre = (slice(None), slice(None), slice(1, 2), slice(1, 2), slice(1, 2)) if size == 1 else ...
    law[centre] = rng.normal(size=law[centre].shape)
    rows = np.concatenate([rng.normal(size=(4000, 81)), np.ones((4000, 1))], axis=1)
    moments = []
    for channel, offset in enumerate((0.5, -0.25)):
        y = rows @ np.append(law[channel].ravel(), offset)
        moments.append((rows.T @ rows, rows.T @ y))
    ridge = _solve(moments, size)
    assert ridge.kernel.shape[-1] == size
    np.testing.assert_allclose(ridge.kernel.numpy(), law[centre].reshape(ridge.kernel.shape), atol=5e-3)
    np.testing.assert_allclose(ridge.offset.numpy(), [0.5, -0.25], atol=5e-3)


def test_ridge_step_is_its_regression(sim: PreppedSim, normalizer: Normalizer):
    """The convolution of a ridge gives, cell by cell, what the sampled rows times the weights give."""
    ridge = Ridge(torch.randn(2, 13, 3, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2))
    batch = batch_of(sim, 0, normalizer, CPU)
    state = batch["states"][:, 0]
    change = (ridge.start(batch, normalizer)(state) - state)[0].numpy()
    item = make_item(sim, 0, 1, normalizer)
    cells = np.argwhere(item["masks"][0].numpy() > 0)
    rows, _, in_flow = _rows(sim, 0, normalizer, len(cells), np.random.default_rng(1))
    order = np.random.default_rng(1).choice(len(cells), len(cells), replace=False)
    at = tuple(cells[order].T)
    weights = np.concatenate([ridge.kernel.numpy().reshape(2, -1), np.ones((2, 1))], axis=1)
    wanted = rows @ weights.T
    np.testing.assert_allclose(change[1][at], wanted[:, 1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(change[0][at], wanted[:, 0] * in_flow, rtol=1e-3, atol=1e-3)


def test_ridges_beat_copy_where_they_learned(root: Path, normalizer: Normalizer):
    """On the training years the fitted regressions have a lower squared error than copying."""
    sims = [open_prepped(p) for p in sorted((root / "train").glob("*.h5"))]
    ridges = fit_ridges(sims, normalizer)
    for ridge in ridges.values():
        ratio = []
        for sim in sims:
            batch = batch_of(sim, 0, normalizer, CPU)
            state, inside = batch["states"][:, 0], batch["masks"][:, 0] > 0
            truth = make_item(sim, 0, 1, normalizer)["states"][1][None]
            found = ridge.start(batch, normalizer)(state)
            errors = [((x - truth)[:, 1][inside]).square().mean() for x in (found, state)]
            ratio.append(float(errors[0] / errors[1]))
        assert max(ratio) < 1


def test_operator_learns_in_its_time(root: Path, sim: PreppedSim, normalizer: Normalizer):
    """The trainer of the Fourier operator lowers the error of any network, and stops after its minutes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Conv3d(13, 2, 3, padding=1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)  # type: ignore[arg-type]
    data = open_split(root, "train", PatchOptions())
    operator, steps = fno.train_operator(network, data, CPU, minutes=5.0, max_steps=60)
    assert steps == 60
    batch = batch_of(sim, 0, normalizer, CPU)
    state, truth = batch["states"][:, 0], make_item(sim, 0, 1, normalizer)["states"][1][None]
    inside = batch["masks"][:, 0] > 0
    with torch.no_grad():
        found = operator.start(batch, normalizer)(state)
    errors = [float((x - truth)[:, 1][inside].square().mean()) for x in (found, state)]
    assert errors[0] < errors[1]
    off = batch["masks"][:, [1, 0]] == 0
    assert torch.equal(found[off], state[off])
    assert fno.train_operator(network, data, CPU, minutes=1e-9)[1] == 0
