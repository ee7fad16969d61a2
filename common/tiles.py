"""Plans of tiles with halo for volumes of any number of dimensions, and their sharing over ranks.

Shapes are spatial. The last axis is the stream axis: tiles come in the order of their planes on it.
What is done with the tiles is in `common.blocks`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from common.errors import UserError

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Tile:
    """One piece of work.

    Attributes:
        index: position in the plan.
        core: the voxels of the volume that this tile answers for.
        read: the voxels to read, inside the volume; they suffice for every edge mode.
        pad: voxels of the padded tile before and after the volume's edges, one pair an axis.
        crop: where the core lies in the padded tile.
        size: shape of the padded tile.
        shape: the whole volume.
    """

    index: int
    core: Slices
    read: Slices
    pad: tuple[tuple[int, int], ...]
    crop: Slices
    size: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def origin(self) -> tuple[int, ...]:
        """First voxel of the padded tile in the volume's coordinates; negative beyond the edge."""
        return tuple(c.start - k.start for c, k in zip(self.core, self.crop, strict=True))


def plan_exact(
    shape: Sequence[int],
    block: int | Sequence[int],
    halo: int | Sequence[int],
    multiple: int = 1,
    *,
    beyond_edge: bool = True,
) -> list[Tile]:
    """Cut `shape` into cores of at most `block` voxels, each read with `halo` voxels around it.

    Tile origins and sizes are multiples of `multiple` (the network's total stride), so a strided network
    sees the same grid in each tile as in the whole volume: `block` is rounded down, `halo` up. With
    `beyond_edge` the halo goes on beyond the volume's edge (padded by `extract`); without, it stops
    there, for networks whose own zero padding at the edge is part of what they learned.

    Raises:
        UserError: a block below 1.
        ValueError: a negative halo, an empty axis, or one length too many or too few.
    """
    shape, block, halo = axis_lengths(shape, block, halo, multiple)
    axes = []
    for n, b, h in zip(shape, block, halo, strict=True):
        h = round_up(h, multiple)
        step = core_step(n, b, multiple)
        windows = []
        for start in range(0, n, step):
            core = (start, min(start + step, n))
            low, high = core[0] - h, round_up(core[1] + h, multiple)
            if not beyond_edge:
                low, high = max(low, 0), min(high, round_up(n, multiple))
            windows.append((core, (low, high)))
        axes.append(windows)
    return _tiles(shape, axes)


def plan_blended(
    shape: Sequence[int],
    block: int | Sequence[int],
    overlap: int | Sequence[int],
    multiple: int = 1,
    *,
    margin: int | Sequence[int] = 0,
) -> list[Tile]:
    """Cover `shape` with equal blocks that share at least `overlap` voxels with their neighbours.

    The outer blocks begin `margin` voxels before the volume and end as far behind it, so that a network
    sees padding instead of its own edge there. Origins and sizes are multiples of `multiple`. The core of
    a tile is all of it that lies inside the volume.

    Raises:
        UserError: a block below 1, or no larger than the overlap.
        ValueError: as `plan_exact`.
    """
    shape, block, overlap = axis_lengths(shape, block, overlap, multiple)
    _, _, margin = axis_lengths(shape, block, margin, multiple)
    axes = []
    for n, b, o, m in zip(shape, block, overlap, margin, strict=True):
        m = round_up(m, multiple)
        size, stride, count = blended_axis(n + 2 * m, b, o, multiple)
        starts = [i * stride - m for i in range(count)]
        axes.append(
            [((max(s, 0), min(s + size, n)), (s, s + size)) for s in starts if s < n and s + size > 0]
        )
    return _tiles(shape, axes)


def axis_lengths(
    shape: Sequence[int], block: int | Sequence[int], halo: int | Sequence[int], multiple: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return shape, block (rounded down to `multiple`) and halo as checked tuples, one length an axis."""
    shape = tuple(int(n) for n in shape)
    block, halo = _an_axis(block, len(shape)), _an_axis(halo, len(shape))
    if not shape or min(shape) < 1 or multiple < 1 or not len(shape) == len(block) == len(halo):
        raise ValueError(
            f"shape {shape}, block {block}, halo {halo}, multiple {multiple} do not fit together"
        )
    if min(halo) < 0:
        raise ValueError(f"halo or overlap {halo} is negative")
    if min(block) < 1:
        raise UserError(f"block {block}: expected at least 1 voxel on each axis; choose a larger block")
    return shape, tuple(max(multiple, b // multiple * multiple) for b in block), halo


def _an_axis(value: int | Sequence[int], num_axes: int) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),) * num_axes


def round_up(value: int, multiple: int) -> int:
    """Return the first multiple that is not below `value`."""
    return -(-value // multiple) * multiple


def core_step(n: int, block: int, multiple: int) -> int:
    """Return the core length that splits n evenly into the fewest blocks."""
    return round_up(-(-n // -(-n // block)), multiple)


def blended_axis(extent: int, block: int, overlap: int, multiple: int) -> tuple[int, int, int]:
    """Return size, stride and number of the blocks that cover `extent` voxels of one axis."""
    if extent <= block:
        return round_up(extent, multiple), multiple, 1
    if overlap >= block:
        raise UserError(f"overlap {overlap}: expected less than the block {block}; choose a larger block")
    longest = max(multiple, (block - overlap) // multiple * multiple)
    steps = -(-(extent - block) // longest)
    return block, round_up(-(-(extent - block) // steps), multiple), steps + 1


def _tiles(shape: tuple[int, ...], axes: list[list[tuple[tuple[int, int], tuple[int, int]]]]) -> list[Tile]:
    tiles = []
    for index, reverse in enumerate(itertools.product(*reversed(axes))):  # the last axis slowest
        core, read, pad, crop, size = [], [], [], [], []
        for n, ((start, stop), (low, high)) in zip(shape, reversed(reverse), strict=True):
            source = source_index(low, high, n, "reflect")
            core.append(slice(start, stop))
            read.append(slice(int(source.min()), int(source.max()) + 1))
            pad.append((max(-low, 0), max(high - n, 0)))
            crop.append(slice(start - low, stop - low))
            size.append(high - low)
        tiles.append(Tile(index, tuple(core), tuple(read), tuple(pad), tuple(crop), tuple(size), shape))
    return tiles


def source_index(low: int, high: int, n: int, mode: str) -> np.ndarray:
    """Return for each position low..high-1 of an axis of n voxels the voxel that it shows."""
    p = np.arange(low, high)
    if mode == "reflect":
        p = np.where(p < 0, -p, np.where(p >= n, 2 * (n - 1) - p, p))
    return np.clip(p, 0, n - 1)


def blend_weights(
    block: Sequence[int], sigma: float | Sequence[float] | None = None, floor: float = 1e-3
) -> np.ndarray:
    """Return separable Gaussian weights, float32 of shape `block`, 1 in the middle.

    w_a(i) = max(exp(-(i - c)^2 / (2 sigma^2)), floor) on each axis, c the centre; sigma in voxels, default
    an eighth of the block.
    """
    sigmas = [b / 8 for b in block] if sigma is None else np.broadcast_to(sigma, (len(block),))
    weights = np.ones(())
    for b, s in zip(block, sigmas, strict=True):
        x = np.arange(b) - (b - 1) / 2
        weights = weights[..., None] * np.maximum(np.exp(-(x**2) / (2 * float(s) ** 2)), floor)
    return weights.astype(np.float32)


def share(tiles: Sequence[Tile], rank: int, world_size: int) -> list[Tile]:
    """Return the tiles of a rank: contiguous groups of equal first plane, each tile on exactly one rank."""
    starts = sorted({t.core[-1].start for t in tiles})
    mine = set(starts[len(starts) * rank // world_size : len(starts) * (rank + 1) // world_size])
    return [t for t in tiles if t.core[-1].start in mine]


def planes_of(tiles: Sequence[Tile], rank: int, world_size: int) -> tuple[int, int]:
    """Return the planes [start, stop) of the stream axis that a rank hands out; empty when start == stop.

    The ranks' ranges partition the axis. A rank of a blended run works on `touching(tiles, planes)`: tiles
    at a border between ranks run on both, so the result equals that of one process.
    """
    starts = sorted({t.core[-1].start for t in tiles})
    bounds = [*starts, tiles[0].shape[-1]]
    return bounds[len(starts) * rank // world_size], bounds[len(starts) * (rank + 1) // world_size]


def touching(tiles: Sequence[Tile], planes: tuple[int, int]) -> list[Tile]:
    """Return the tiles whose core meets the planes [start, stop)."""
    return [t for t in tiles if t.core[-1].start < planes[1] and t.core[-1].stop > planes[0]]
