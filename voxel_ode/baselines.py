"""Forecasts that a network has to beat: copying, ridge regression, a straight line, the flow's own change.

A baseline is started on one simulation and gives a function from a normalised state [1, 2, Z, Y, X] to the
one a year later. Letters: C input channels (statics, P, T), n sampled cells, Z Y X the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import default_collate

from common import device as devices
from common.noise import numpy_stream
from voxel_ode.balance import PressureSweeps
from voxel_ode.fields import Fields
from voxel_ode.flux import flux_features, flux_geometry
from voxel_ode.items import make_item
from voxel_ode.model import Scales
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim

Step = Callable[[torch.Tensor], torch.Tensor]
Batch = dict[str, Any]
RIDGE_SHARE = 1e-3  # of the mean diagonal
MAX_ROWS = 100_000  # sampled cells that a ridge is fitted on
_NEIGHBOURS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij")).reshape(3, 27)
_CENTRE = 13


class Baseline(Protocol):
    """A method that can be started on a simulation."""

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the step for a batch of one simulation (see `voxel_ode.items`), on its device."""
        ...


class Copy:
    """x(t+1) = x(t)."""

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the identity."""
        return lambda state: state


class Linear:
    """x(t+1) = x(t) + x(first) - x(initial), so after k years x(first) + k (x(first) - x(initial))."""

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the step of the first year's change."""
        change = batch["states"][:, 0] - batch["initial"]
        return lambda state: state + change


class Upwind:
    """T changes by what the flow of the moment brings, P stays: the physics that the network is told."""

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the step of the flux feature."""
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

        def step(state: torch.Tensor) -> torch.Tensor:
            pressure, temperature = normalizer.state_to_physical(state).unbind(1)
            change, _ = flux_features(geometry, pressure, temperature)
            change = change / float(normalizer.grid_std[1]) * masks[:, 0]
            return torch.stack([state[:, 0], state[:, 1] + change], dim=1)

        return step


class BalancedUpwind(Upwind):
    """As `Upwind`, with pressures that the same sweeps even out as the network's: physics without learning.

    Args:
        sweeps: over the water balance after each year.
    """

    def __init__(self, sweeps: int) -> None:
        self.sweeps = sweeps

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the step of the flux feature, then the sweeps."""
        upwind = super().start(batch, normalizer)
        scales = Scales(normalizer).to(batch["static"].device)
        balance = PressureSweeps(scales, Fields.first_of(batch), self.sweeps)
        return lambda state: balance(upwind(state), state)


class Ridge:
    """Linear regression of a year's change on the normalised channels of a cell, or of its 3^3 surroundings.

    Args:
        kernel: [2, C, k, k, k] in normalised units, k = 1 or 3.
        offset: [2].
    """

    def __init__(self, kernel: torch.Tensor, offset: torch.Tensor) -> None:
        self.kernel, self.offset = kernel, offset

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the step; the regression on 3^3 cells is a convolution."""
        static, domains = batch["static"], batch["masks"][:, [1, 0]]
        kernel, offset = self.kernel.to(static), self.offset.to(static)
        padding = kernel.shape[-1] // 2
        constant = F.conv3d(static, kernel[:, :-2], offset, padding=padding)

        def step(state: torch.Tensor) -> torch.Tensor:
            change = constant + F.conv3d(state, kernel[:, -2:], padding=padding)
            return state + change * domains

        return step


def fit_ridges(
    sims: Sequence[PreppedSim], normalizer: Normalizer, *, seed: int = 0, max_rows: int = MAX_ROWS
) -> dict[str, Ridge]:
    """Return "ridge1" and "ridge3", fitted in closed form on cells sampled evenly from all years.

    Minimises |X w - y|^2 + lambda |w|^2 with lambda = 1e-3 mean diag(X^T X), float64; pressure is learned
    on flow cells, temperature on active ones.

    Args:
        sims: training simulations.
        normalizer: of the training data.
        seed: of the sampling.
        max_rows: cells in all.
    """
    pairs = [(sim, t) for sim in sims for t in range(sim.t_valid - 1)]
    per_pair = max(1, max_rows // max(1, len(pairs)))
    moments: list[Any] = [None, None]
    for i, (sim, t) in enumerate(pairs):
        rows, changes, in_flow = _rows(sim, t, normalizer, per_pair, numpy_stream(seed, "ridge cells", i))
        for channel, keep in enumerate((in_flow, np.ones_like(in_flow))):
            x, y = rows[keep], changes[keep, channel]
            found = (x.T @ x, x.T @ y)
            old = moments[channel]
            moments[channel] = found if old is None else tuple(a + b for a, b in zip(old, found, strict=True))
    return {name: _solve(moments, k) for name, k in (("ridge1", 1), ("ridge3", 3))}


def _rows(
    sim: PreppedSim, t: int, normalizer: Normalizer, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features [n, 27 C + 1], a year's changes [n, 2] and whether a cell is a flow cell, bool [n]."""
    item = make_item(sim, t, 1, normalizer)
    x = torch.cat([item["static"], item["states"][0]]).numpy()
    change = (item["states"][1] - item["states"][0]).numpy()
    cells = np.argwhere(item["masks"][0].numpy() > 0)
    cells = cells[rng.choice(len(cells), min(count, len(cells)), replace=False)]
    z, y, w = cells.T[:, :, None] + _NEIGHBOURS[:, None] + 1
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1)])
    features = padded[:, z, y, w].transpose(1, 0, 2).reshape(len(cells), -1).astype(np.float64)
    at = tuple(cells.T)
    rows = np.concatenate([features, np.ones((len(cells), 1))], axis=1)
    return rows, change[(slice(None), *at)].T.astype(np.float64), item["masks"][1].numpy()[at] > 0


def _solve(moments: Sequence[Any], size: int) -> Ridge:
    """Return the ridge that uses the cell alone (1) or its surroundings (3)."""
    kernels, offsets = [], []
    for gram, right in moments:
        num_channels = (len(gram) - 1) // 27
        columns = np.arange(len(gram))
        if size == 1:
            columns = np.append(np.arange(num_channels) * 27 + _CENTRE, len(gram) - 1)
        a, b = gram[np.ix_(columns, columns)], right[columns]
        weight = np.linalg.solve(a + RIDGE_SHARE * np.diag(a).mean() * np.eye(len(a)), b)
        kernels.append(weight[:-1].reshape(num_channels, size, size, size))
        offsets.append(weight[-1])
    return Ridge(torch.tensor(np.stack(kernels)).float(), torch.tensor(offsets).float())


def batch_of(sim: PreppedSim, t: int, normalizer: Normalizer, device: torch.device) -> Batch:
    """Return the whole grid of state t as a batch of one, on a device."""
    item = make_item(sim, t, 0, normalizer)
    tensors = {name: value for name, value in item.items() if isinstance(value, torch.Tensor)}
    return devices.move(default_collate([tensors]), device)
