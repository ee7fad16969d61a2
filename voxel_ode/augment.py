"""Changes to a training patch that physics allows: quarter turns and flips in Y and X; noise.

Items are those of `voxel_ode.items`. Z is never touched: gravity tells up from down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from common.errors import UserError
from voxel_ode.items import GRID_KEYS
from voxel_ode.normalize import Normalizer, domains

Item = dict[str, Any]
PRESSURE_NOISE = 0.2  # of the temperature's: independent noise spoils pressure differences
# Continuous statics that get noise: name -> (share of noise_std, row of the masks it stays within).
NOISY_STATICS = {
    "PermX": (1.0, 1),
    "PermY": (1.0, 1),
    "PermZ": (1.0, 1),
    "Porosity": (1.0, 0),
    "Pressure0": (PRESSURE_NOISE, 1),
    "Temperature0": (1.0, 0),
}
_Y, _X = -2, -1


def turn(item: Item, quarter_turns: int, normalizer: Normalizer) -> Item:
    """Return the item turned by k quarter turns about Z, from Y towards X.

    An odd number exchanges PermX and PermY, in `rock` and, normalised anew by their own scales, in `static`;
    `origin` and `grid_shape` are those in the turned grid.

    Raises:
        UserError: dy differs from dx and k is odd.
    """
    k = quarter_turns % 4
    if k == 0:
        return item
    out = {**item, **{key: torch.rot90(item[key], k, (_Y, _X)) for key in GRID_KEYS}}
    for _ in range(k):
        out = {**out, **_turned_place(out, item["masks"].shape, odd=_ % 2 == 0)}
    if k % 2:
        require_square(item["cell_size"].tolist(), item["source"])
        out["rock"] = out["rock"][[1, 0, 2]]
        active = out["masks"][0] > 0
        static = out["static"].clone()
        for row, name in enumerate(("PermX", "PermY")):
            if name in normalizer.static_channels:
                values = normalizer.static_channel(name, out["rock"][row])
                static[normalizer.static_channels.index(name)] = torch.where(active, values, 0.0)
        out["static"] = static
    return out


def require_square(cell_size_m: Sequence[float], where: str) -> None:
    """Raise UserError unless dy equals dx, so that a quarter turn is possible; `where` is named."""
    _, dy, dx = cell_size_m
    if abs(dy - dx) > 1e-6 * max(dy, dx):
        raise UserError(
            f"--aug_xy_rot: cells of {dy:g} x {dx:g} m (Y X) in {where}, expected square ones; "
            "train without it (--aug_flip still works)"
        )


def _turned_place(item: Item, shape: torch.Size, *, odd: bool) -> Item:
    """Return origin and grid shape after one more quarter turn: y' = X - 1 - x, x' = y."""
    z0, y0, x0 = item["origin"].tolist()
    nz, ny, nx = item["grid_shape"].tolist()
    width = shape[_X] if odd else shape[_Y]  # of the patch along x before this turn
    return {"origin": torch.tensor([z0, nx - x0 - width, y0]), "grid_shape": torch.tensor([nz, nx, ny])}


def flip(item: Item, axis: str) -> Item:
    """Return the item mirrored along "y" or "x"."""
    dim, place = {"y": (_Y, 1), "x": (_X, 2)}[axis]
    origin = item["origin"].clone()
    origin[place] = item["grid_shape"][place] - origin[place] - item["masks"].shape[dim]
    return {**item, **{key: item[key].flip(dim) for key in GRID_KEYS}, "origin": origin}


def add_noise(item: Item, std: float, normalizer: Normalizer, generator: torch.Generator) -> Item:
    """Return the item with N(0, std) on its given state and continuous statics, inside their domains.

    In normalised units; a fifth of it on pressures. The states to predict stay clean, and so do the physical
    rock, FaultId, InjRate, IsActive, IsWell, Depth and everything off its domain.
    """
    if std <= 0:
        return item
    masks = item["masks"]
    states, static = item["states"].clone(), item["static"].clone()
    noise = torch.randn(states.shape[1:], generator=generator)
    scale = std * torch.tensor([PRESSURE_NOISE, 1.0]).view(2, 1, 1, 1)
    states[0] += torch.where(domains(masks), noise * scale, 0.0)
    for name, (share, row) in NOISY_STATICS.items():
        if name in normalizer.static_channels:
            i = normalizer.static_channels.index(name)
            noise = torch.randn(masks.shape[1:], generator=generator)
            static[i] += torch.where(masks[row] > 0, noise * (std * share), 0.0)
    return {**item, "states": states, "static": static}


def collate(items: list[Item]) -> Item:
    """Return the batch of items; smaller patches are padded at their high ends with zeros and mask 0.

    Padded cells are inactive and have no loss. "source" becomes a list.
    """
    size = [max(item["masks"].shape[axis] for item in items) for axis in (-3, -2, -1)]
    batch: Item = {"source": [item["source"] for item in items]}
    for key, value in items[0].items():
        if key in GRID_KEYS:
            batch[key] = torch.stack([_padded(item[key], size) for item in items])
        elif isinstance(value, torch.Tensor):
            batch[key] = torch.stack([item[key] for item in items])
    return batch


def _padded(grid: torch.Tensor, size: list[int]) -> torch.Tensor:
    missing = [n - m for n, m in zip(size, grid.shape[-3:], strict=True)]
    return pad(grid, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else grid
