"""Flips and quarter turns of what a network sees, undone in what it says: test-time augmentation.

Turn k of 8 has three bits: 1 flips y, 2 flips x, 4 swaps y and x (first of all). The first four keep every
axis where it is. Depth stays vertical. Tensors are [B, C, Z, Y, X]; the six components of n n^T follow the
order Nzz, Nyy, Nxx, Nzy, Nzx, Nyx of `fault_seg.angles`.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_TURNS = (1, 4, 8)
_Y, _X = -2, -1


def turned(x: Tensor, turn: int, orient: slice | None = None) -> Tensor:
    """Return `x` in pose `turn`; `orient` are its channels of n n^T, which turn as well."""
    if turn & 4:
        x = _swapped(x.transpose(_Y, _X), orient)
    if turn & 1:
        x = _mirrored(x.flip(_Y), orient, (3, 5))
    if turn & 2:
        x = _mirrored(x.flip(_X), orient, (4, 5))
    return x


def turned_back(x: Tensor, turn: int, orient: slice | None = None) -> Tensor:
    """Return what `turned` was given for `x`."""
    if turn & 2:
        x = _mirrored(x.flip(_X), orient, (4, 5))
    if turn & 1:
        x = _mirrored(x.flip(_Y), orient, (3, 5))
    if turn & 4:
        x = _swapped(x.transpose(_Y, _X), orient)
    return x


def _mirrored(x: Tensor, orient: slice | None, changed: tuple[int, int]) -> Tensor:
    """Change the sign of two off-diagonal components."""
    if orient is None:
        return x
    x = x.clone()
    for component in changed:
        x[:, orient.start + component] *= -1
    return x


def _swapped(x: Tensor, orient: slice | None) -> Tensor:
    """Exchange Nyy with Nxx and Nzy with Nzx."""
    if orient is None:
        return x
    order = list(range(x.shape[1]))
    first = orient.start
    order[first : first + 6] = [first + i for i in (0, 2, 1, 4, 3, 5)]
    return x[:, torch.tensor(order, device=x.device)]
