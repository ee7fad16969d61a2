"""From one grid size to another: exact area averages, and cell-centre bilinear between canvases.

Weights depend on sizes only and are computed once. B batch, C channels, H W grid.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch


class Extent(NamedTuple):
    """The stretch of an axis that a canvas covers: cells start .. start + count - 1 of a grid of `side`.

    `start` is negative by the width of a halo; a window begins inside the grid.
    """

    side: int
    start: int
    count: int

    @classmethod
    def whole(cls, side: int, halo: int = 0) -> Extent:
        """Return the extent of a whole grid with a halo of `halo` cells on both ends."""
        return cls(side, -halo, side + 2 * halo)


@lru_cache(maxsize=512)
def overlap_weights(out_side: int, in_side: int) -> np.ndarray:
    """Return [out_side, in_side], the share of an output cell that each input cell covers; rows sum to 1."""
    edges_out = np.arange(out_side + 1) * (in_side / out_side)
    cells = np.arange(in_side)
    low = np.maximum(edges_out[:-1, None], cells[None])
    high = np.minimum(edges_out[1:, None], cells[None] + 1)
    weights = np.clip(high - low, 0, None) * (out_side / in_side)
    weights[weights < 1e-9] = 0.0  # faces that meet within rounding
    return weights / weights.sum(axis=1, keepdims=True)


@lru_cache(maxsize=512)
def _area_matrix(out_side: int, in_side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(overlap_weights(out_side, in_side)).to(device=device, dtype=dtype)


def area(x: torch.Tensor, out_size: tuple[int, int]) -> torch.Tensor:
    """Return the exact area average of x [..., h, w] on a grid of `out_size` (H, W) over the same area."""
    height, width = x.shape[-2:]
    if (height, width) == tuple(out_size):
        return x
    rows = _area_matrix(out_size[0], height, x.device, x.dtype)
    cols = _area_matrix(out_size[1], width, x.device, x.dtype)
    return rows @ x @ cols.T


def cell_centre_index(out_side: int, in_side: int) -> np.ndarray:
    """Return int64 [out_side], the input cell at each output cell's centre: floor((i + 0.5) h / H)."""
    return (2 * np.arange(out_side, dtype=np.int64) + 1) * in_side // (2 * out_side)


@lru_cache(maxsize=2048)
def _linear_taps(source: Extent, target: Extent) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (lower input index, upper input index, weight of the upper one) of each output cell.

    Position of the output centre in input cells: (j + 0.5) side_in / side_out - 0.5; clamped to the canvas.
    """
    j = np.arange(target.start, target.start + target.count, dtype=np.float64)
    position = (j + 0.5) * source.side / target.side - 0.5
    # The fraction comes from the place in the grid, not in the window: every window has the same weights.
    low = np.floor(position)
    weight = position - low
    low = low.astype(np.int64) - source.start
    last = source.count - 1
    weight = np.where((low < 0) | (low >= last), 0.0, weight)
    low = low.clip(0, last)
    return low, np.minimum(low + 1, last), weight


@lru_cache(maxsize=2048)
def _linear_tensors(
    source: Extent, target: Extent, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low, high, weight = (torch.from_numpy(part).to(device) for part in _linear_taps(source, target))
    return low, high, weight.to(dtype)


@lru_cache(maxsize=256)
def _linear_matrix(source: Extent, target: Extent, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the same interpolation as a matrix [target.count, source.count]."""
    low, high, weight = _linear_taps(source, target)
    matrix = np.zeros((target.count, source.count))
    matrix[np.arange(target.count), low] += 1 - weight
    matrix[np.arange(target.count), high] += weight
    return torch.from_numpy(matrix).to(device, dtype)


def _blend(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a (1 - weight) + b weight; a and b are used up."""
    return a.mul_(1 - weight).add_(b.mul_(weight))


class _Interpolate(torch.autograd.Function):
    """Linear interpolation on the last two axes: reads and a blend forward, matrix products backward.

    The forward pass treats every cell alike, so that a window of a canvas equals the same cells of the whole,
    bit for bit; library matrix products do not promise that.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, source: tuple[Extent, Extent], target: tuple[Extent, Extent]
    ) -> torch.Tensor:
        ctx.extents = source, target
        low, high, weight = _linear_tensors(source[1], target[1], x.device, x.dtype)
        x = _blend(x.index_select(-1, low), x.index_select(-1, high), weight)
        low, high, weight = _linear_tensors(source[0], target[0], x.device, x.dtype)
        return _blend(x.index_select(-2, low), x.index_select(-2, high), weight[:, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None]:
        source, target = ctx.extents
        gradient = gradients[0]
        kind = gradient.device, gradient.dtype
        rows, cols = (_linear_matrix(a, b, *kind) for a, b in zip(source, target, strict=True))
        return rows.T @ (gradient @ cols), None, None


def bilinear(
    x: torch.Tensor,
    source: tuple[Extent, Extent],
    target: tuple[Extent, Extent],
) -> torch.Tensor:
    """Return x [B, C, h, w] on another canvas by cell-centre bilinear interpolation; the border is repeated.

    Args:
        x: values on the canvas `source`.
        source: extents (rows, columns) of x; their counts are h and w.
        target: extents of the result. Grids of both cover the same area.

    Raises:
        ValueError: x has another size than `source` says.
    """
    if tuple(x.shape[-2:]) != (source[0].count, source[1].count):
        raise ValueError(f"x is {tuple(x.shape[-2:])}, its extents say {source[0].count} x {source[1].count}")
    if source == target:
        return x
    return _Interpolate.apply(x, source, target)  # type: ignore[return-value]


def resize(
    x: torch.Tensor, out_size: tuple[int, int], *, source_halo: int = 0, target_halo: int = 0
) -> torch.Tensor:
    """Return x [B, C, h, w], a grid with its halo, on a grid of `out_size` with another halo."""
    source = tuple(Extent(n - 2 * source_halo, -source_halo, n) for n in x.shape[-2:])
    target = tuple(Extent.whole(n, target_halo) for n in out_size)
    return bilinear(x, (source[0], source[1]), (target[0], target[1]))
