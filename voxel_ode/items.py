"""From a simulation to what the network sees: one patch (or the whole grid) at one time, as tensors.

Letters: S static channels, K predicted years, P parameters, [D, H, W] the cells of the patch (z, y, x).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from common.errors import UserError
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim
from voxel_ode.schema import STATIC_NAMES
from voxel_ode.wells import Box

GRID_KEYS = ("static", "states", "masks", "loss_mask", "well_source", "rock", "porosity", "initial")
ROCK_NAMES = ("PermX", "PermY", "PermZ")
_ROCK = [STATIC_NAMES.index(name) for name in ROCK_NAMES]
_POROSITY = STATIC_NAMES.index("Porosity")


def make_item(
    sim: PreppedSim,
    t: int,
    num_steps: int,
    normalizer: Normalizer,
    box: Box | None = None,
    loss_margin: int = 0,
) -> dict[str, Any]:
    """Return the patch `box` (default the whole grid) of states t .. t + num_steps.

    The tensors, float32 unless said:
        static [S, D, H, W]: normalised statics.
        states [K+1, 2, D, H, W]: normalised pressure and temperature; 0 off their domains.
        masks [3, D, H, W]: active, flow, thermal.
        loss_mask [D, H, W]: 1 at least `loss_margin` cells from a cut of the patch that is no grid edge.
        params [P]: as the network takes them.
        scalars [K, 5]: normalised field rates of the states t+1 .. t+K.
        scalars_raw [K+1, 5]: physical ones, W, W, J, kg/s, kg/s; row 0 of state t, zeros for t = -1.
        well_features [K+1, 6]: physical, deg C and bar.
        well_rates [2]: total injection and production, kg/s.
        well_source [1, D, H, W]: kg/s of each cell, + injection.
        rock [3, D, H, W]: PermX, PermY, PermZ, mD; porosity [1, D, H, W]. 0 off the active cells.
        initial [2, D, H, W]: normalised initial pressure and temperature.
        origin int64 [3]: first cell (z, y, x) in the grid; grid_shape int64 [3].
        cell_size [3]: dz, dy, dx, m; zeros when unknown.
        dt_s []: length of a step, s.
        injection_c []: temperature of what injectors bring, deg C; NaN when unknown.
        wells_complete bool []: the patch holds all well cells; t int64 [].
        source (str): file, time and place.

    Args:
        sim: the simulation.
        t: state that is given; -1 is the initial one.
        num_steps: K, states to predict; 0 gives none.
        normalizer: of the training data.
        box: cells of the patch.
        loss_margin: cells without loss beside a cut.

    Raises:
        UserError: the margin leaves nothing of the patch.
        DataError: there are no such states.
    """
    whole = sim.whole
    box = box or whole
    static, masks = torch.from_numpy(sim.static(box)), torch.from_numpy(sim.masks(box))
    masks = masks.to(torch.float32)
    active = masks[0] > 0
    states = torch.from_numpy(sim.states(t, t + num_steps + 1, box))
    scalars = sim.scalars[max(t, 0) : t + num_steps + 1]
    if t < 0:
        scalars = np.concatenate([np.zeros((1, sim.scalars.shape[1])), scalars])
    raw = torch.from_numpy(scalars)
    rock = torch.where(active, static[_ROCK], 0.0)
    return {
        "static": normalizer.static(static, masks, STATIC_NAMES),
        "states": normalizer.state_to_normalized(states, masks),
        "masks": masks,
        "loss_mask": loss_mask(box, sim.shape, loss_margin),
        "params": normalizer.params(torch.from_numpy(sim.params.astype(np.float32))),
        "scalars": normalizer.scalars_to_normalized(raw[1:]).float(),
        "scalars_raw": raw.float(),
        "well_features": torch.from_numpy(sim.well_features[t + 1 : t + num_steps + 2]).float(),
        "well_rates": torch.from_numpy(sim.wells.total_rates_kg_s).float(),
        "well_source": torch.from_numpy(sim.wells.source_kg_s(sim.shape, box))[None],
        "rock": rock,
        "porosity": torch.where(active, static[_POROSITY], 0.0)[None],
        "initial": normalizer.state_to_normalized(torch.from_numpy(sim.initial(box)), masks),
        "origin": torch.tensor([s.start for s in box]),
        "grid_shape": torch.tensor(sim.shape),
        "cell_size": torch.tensor(sim.cell_size_m or (0.0, 0.0, 0.0)),
        "dt_s": torch.tensor(sim.dt_s, dtype=torch.float32),
        "injection_c": torch.tensor(sim.injection_c(t), dtype=torch.float32),
        "wells_complete": torch.tensor(bool(sim.wells.inside(box).all())),
        "t": torch.tensor(t),
        "source": describe(sim, t, box),
    }


def loss_mask(box: Box, shape: tuple[int, int, int], margin: int) -> torch.Tensor:
    """Return 1 at least `margin` cells from every cut of the patch that is no edge of the grid, [D, H, W].

    Raises:
        UserError: nothing is left.
    """
    mask = torch.zeros([s.stop - s.start for s in box])
    inner = []
    for cut, n in zip(box, shape, strict=True):
        low = margin if cut.start > 0 else 0
        high = cut.stop - cut.start - (margin if cut.stop < n else 0)
        if high <= low:
            raise UserError(
                f"--loss_margin {margin}: leaves nothing of a patch of {tuple(mask.shape)} cells; lower it, "
                "or prepare larger patches"
            )
        inner.append(slice(low, high))
    mask[tuple(inner)] = 1.0
    return mask


def describe(sim: PreppedSim, t: int, box: Box) -> str:
    """Return the place of a patch in words, for messages."""
    z, y, x = (f"{s.start}:{s.stop}" for s in box)
    return f"{sim.path} t={t} z={z} y={y} x={x}"
