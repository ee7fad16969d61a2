"""Tiles with halo for volumes of any number of dimensions, streamed so that memory stays bounded.

Two ways to cut a volume:

* exact: cores that do not overlap, each read with a halo as wide as the network's receptive radius. For a
  network without statistics over space the result equals the whole volume's, whatever the block.
* blended: blocks that overlap, averaged with Gaussian weights, v = sum(w v) / sum(w).

Shapes are spatial; arrays carry channels first, [C, *spatial]. The last axis is the stream axis: tiles come
in the order of their planes on it, and planes that no later tile touches are handed out and forgotten.

A volume continues beyond its edge by its mirror image (the edge itself not repeated); where an axis is too
thin to be mirrored that far, the last mirrored value is repeated. This depends on the position alone, so
cutting a tile and padding the whole volume first agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from common.device import is_out_of_memory
from common.errors import DataError, UserError
from common.tiles import (
    Slices,
    Tile,
    axis_lengths,
    blend_weights,
    blended_axis,
    core_step,
    plan_blended,
    plan_exact,
    planes_of,
    round_up,
    share,
    source_index,
    touching,
)

__all__ = [
    "BlendAccumulator",
    "PlaneCache",
    "Tile",
    "blend_weights",
    "choose_block",
    "extract",
    "halve",
    "plan_blended",
    "plan_exact",
    "planes_of",
    "retry_smaller",
    "run_blended",
    "run_exact",
    "share",
    "touching",
]

Read = Callable[[Slices], np.ndarray]
Write = Callable[[int, np.ndarray], Any]

_MODES = ("reflect", "replicate", "zeros")
_SIZES = sorted({n for k in range(16) for n in (2**k, 3 * 2**k)})


def extract(read: Read | np.ndarray, tile: Tile, mode: str = "reflect") -> np.ndarray:
    """Return the padded tile, float32 [C, *tile.size], from `read(tile.read)` or an array [C, *shape].

    `mode` fills what lies beyond the volume's edge: "reflect", "replicate" or "zeros".
    """
    if mode not in _MODES:
        raise ValueError(f"mode {mode!r}: expected one of {_MODES}")
    part = read[(slice(None), *tile.read)] if isinstance(read, np.ndarray) else read(tile.read)
    expected = tuple(r.stop - r.start for r in tile.read)
    if part.shape[1:] != expected:
        raise ValueError(f"read gave shape {part.shape}, expected [C, *{expected}]")
    part = np.asarray(part, dtype=np.float32)
    for axis, (low, length, n, r) in enumerate(
        zip(tile.origin, tile.size, tile.shape, tile.read, strict=True), start=1
    ):
        source = source_index(low, low + length, n, mode) - r.start
        if len(source) != part.shape[axis] or (source != np.arange(len(source))).any():
            part = np.take(part, source, axis=axis)
    if mode == "zeros":
        inside = tuple(slice(b, s - a) for (b, a), s in zip(tile.pad, tile.size, strict=True))
        outside = np.ones(tile.size, dtype=bool)
        outside[inside] = False
        part = np.where(outside, np.float32(0), part)
    return np.ascontiguousarray(part)


class BlendAccumulator:
    """Sums tile outputs and hands finished planes of the stream axis to `write(start, slab)` in order.

    A slab is float32 [C, *shape[:-1], planes]; it belongs to the receiver. In memory are only the planes
    that open tiles touch. With `blended` a voxel is sum(w v) / sum(w), 0 where nothing was added;
    without, the tiles' cores must not overlap and are copied. `planes` limits the output to a range of
    the stream axis (a rank's share, or what an interrupted run still lacks).
    """

    def __init__(
        self,
        shape: Sequence[int],
        write: Write,
        *,
        blended: bool = True,
        planes: tuple[int, int] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.blended = blended
        self._write = write
        self._start, self._stop = planes or (0, self.shape[-1])
        self._values = np.zeros((0, *self.shape[:-1], 0), dtype=np.float32)
        self._weights = np.zeros((*self.shape[:-1], 0), dtype=np.float32)

    def add(self, tile: Tile, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add `values` [C, *core] of a tile with `weights` [*core]; tiles must come in the plan's order."""
        start = max(tile.core[-1].start, self._start)
        stop = min(tile.core[-1].stop, self._stop)
        if tile.core[-1].start > self._start:
            self._flush(tile.core[-1].start)
        if stop <= start:
            return
        self._reserve(values.shape[0], stop)
        cut = slice(start - tile.core[-1].start, stop - tile.core[-1].start)
        place = (*tile.core[:-1], slice(start - self._start, stop - self._start))
        if self.blended:
            w = np.float32(1) if weights is None else weights[..., cut]
            self._values[(slice(None), *place)] += values[..., cut] * w
            self._weights[place] += w
        else:
            self._values[(slice(None), *place)] = values[..., cut]

    def close(self) -> None:
        """Hand out what is left."""
        self._flush(self._start + self._values.shape[-1])

    def _reserve(self, num_channels: int, stop: int) -> None:
        """Make room for the planes up to `stop`."""
        width, held = stop - self._start, self._values.shape[-1]
        if held >= width:
            return
        values = np.zeros((num_channels, *self.shape[:-1], width), dtype=np.float32)
        if held:
            values[..., :held] = self._values
        self._values = values
        if self.blended:
            more = np.zeros((*self.shape[:-1], width - held), dtype=np.float32)
            self._weights = np.concatenate([self._weights, more], axis=-1)

    def _flush(self, plane: int) -> None:
        """Hand out the planes before `plane`; planes that no tile touched are passed over."""
        plane = min(plane, self._stop)
        count = min(plane - self._start, self._values.shape[-1])
        start, self._start = self._start, max(plane, self._start)
        if count <= 0:
            return
        slab, self._values = self._values[..., :count], self._values[..., count:].copy()
        if self.blended:
            weights, self._weights = self._weights[..., :count], self._weights[..., count:].copy()
            slab = slab / np.where(weights > 0, weights, np.float32(1))
        self._write(start, slab)


def run_exact(
    function: Callable[[torch.Tensor], torch.Tensor],
    read: Read | np.ndarray,
    tiles: Sequence[Tile],
    write: Write,
    *,
    mode: str = "reflect",
    planes: tuple[int, int] | None = None,
) -> None:
    """Run `function` on the tiles of `plan_exact` and stream the result to `write(start, slab)`.

    Args:
        function: float32 tensor [1, C, *tile] on the CPU -> [1, C', *tile], or [1, C', *core] when it
            crops by itself; it moves data to its device. Called without gradients.
        read: `read(slices)` -> [C, *slices], or an array [C, *shape].
        tiles: all of a plan, or a rank's `share` with its `planes_of`.
        write: receives each slab [C', *shape[:-1], planes] once, in order.
        mode: what lies beyond the edge.
        planes: range of the stream axis to hand out; default all.

    Raises:
        ValueError: the function's output has neither the tile's nor the core's shape.
    """
    _run(function, read, tiles, write, mode, planes, None)


def run_blended(
    function: Callable[[torch.Tensor], torch.Tensor],
    read: Read | np.ndarray,
    tiles: Sequence[Tile],
    write: Write,
    *,
    mode: str = "reflect",
    planes: tuple[int, int] | None = None,
    floor: float = 1e-3,
) -> None:
    """Run `function` on the tiles of `plan_blended`, average the overlaps; arguments as `run_exact`."""
    weights = blend_weights(tiles[0].size, floor=floor) if tiles else np.ones(())
    _run(function, read, tiles, write, mode, planes, weights)


def _run(
    function: Callable[[torch.Tensor], torch.Tensor],
    read: Read | np.ndarray,
    tiles: Sequence[Tile],
    write: Write,
    mode: str,
    planes: tuple[int, int] | None,
    weights: np.ndarray | None,
) -> None:
    if not tiles:
        return
    output = BlendAccumulator(tiles[0].shape, write, blended=weights is not None, planes=planes)
    for tile in tiles if planes is None else touching(tiles, planes):
        with torch.no_grad():
            result = function(torch.from_numpy(extract(read, tile, mode))[None])
        values = result.detach().to("cpu", torch.float32).numpy()[0]
        core = tuple(c.stop - c.start for c in tile.core)
        if values.shape[1:] == tile.size:
            values = values[(slice(None), *tile.crop)]
        elif values.shape[1:] != core:
            raise ValueError(
                f"function gave {values.shape[1:]}, expected the tile {tile.size} or core {core}"
            )
        output.add(tile, values, None if weights is None else weights[tile.crop])
    output.close()


class PlaneCache:
    """A `read` that fetches each plane of the stream axis once, for files where planes are cheap, boxes dear.

    `read_plane(i)` gives plane i, [C, *shape[:-1]]. Planes before the last request are forgotten.
    """

    def __init__(self, read_plane: Callable[[int], np.ndarray]) -> None:
        self._read_plane = read_plane
        self._planes: dict[int, np.ndarray] = {}

    def __call__(self, slices: Slices) -> np.ndarray:
        """Return [C, *slices]."""
        *others, last = slices
        for i in [i for i in self._planes if i < last.start]:
            del self._planes[i]
        parts = []
        for i in range(last.start, last.stop):
            if i not in self._planes:
                self._planes[i] = self._read_plane(i)
            parts.append(self._planes[i][(slice(None), *others)])
        return np.stack(parts, axis=-1)


def choose_block(
    shape: Sequence[int],
    bytes_per_voxel: float,
    halo: int | Sequence[int],
    max_memory_bytes: float,
    multiple: int = 1,
    *,
    slab_bytes_per_voxel: float = 0.0,
    cache_bytes_per_voxel: float = 0.0,
    limit: int | Sequence[int] | None = None,
    overlap: int | Sequence[int] = 0,
    beyond_edge: bool = True,
) -> tuple[int, ...]:
    """Return the block that computes the fewest voxels within the memory budget.

    Peak = bytes_per_voxel * voxels of a padded tile + slab_bytes_per_voxel * voxels of `block[-1]` planes
    + cache_bytes_per_voxel * voxels of the planes of a padded tile, where

    - bytes_per_voxel is the network's input, activations and output for one voxel,
    - slab_bytes_per_voxel is that of the gathered output, 4 C bytes for C channels of an exact plan, 12 C + 8
      of a blended one while finished planes are handed out,
    - cache_bytes_per_voxel is that of the input planes in a `PlaneCache`, else 0.

    `limit` is the largest block wanted (default the whole axis); `halo` (0 for blended plans), `multiple`,
    `overlap` (0 for exact plans) and `beyond_edge` are those of the plan.

    Raises:
        UserError: even the smallest block does not fit; the message says how much memory would.
    """
    shape, limit, halo = axis_lengths(shape, shape if limit is None else limit, halo, multiple)
    _, _, overlap = axis_lengths(shape, limit, overlap, multiple)
    lengths = zip(shape, limit, halo, overlap, strict=True)
    axes = [_axis_choices(*each, multiple, beyond_edge) for each in lengths]
    tile, work = np.ones(()), np.ones(())
    for axis in axes:
        tile, work = tile[..., None] * axis.padded, work[..., None] * (axis.padded * axis.counts)
    last, plane = axes[-1], math.prod(shape[:-1])
    peak = bytes_per_voxel * tile
    peak += plane * (slab_bytes_per_voxel * last.cores + cache_bytes_per_voxel * last.padded)
    fits = peak <= max_memory_bytes
    cost = np.where(fits, work * (1 + 1e-9 * peak / peak.max()), np.inf) if fits.any() else peak
    place = np.unravel_index(int(cost.argmin()), cost.shape)
    block = tuple(axis.sizes[i] for axis, i in zip(axes, place, strict=True))
    if not fits.any():
        raise UserError(
            f"--max_memory {max_memory_bytes / 2**30:.3g} GiB is too small for a volume of {shape}: the "
            f"smallest block {block} takes {peak.min() / 2**30:.3g} GiB; raise --max_memory above that"
        )
    return block


class _AxisChoices(NamedTuple):
    """Block lengths to consider on one axis, with core length, padded length and number of each."""

    sizes: list[int]
    cores: np.ndarray
    padded: np.ndarray
    counts: np.ndarray


def _axis_choices(
    n: int, limit: int, halo: int, overlap: int, multiple: int, beyond_edge: bool
) -> _AxisChoices:
    limit = min(limit, round_up(n, multiple))
    sizes = sorted({limit, *(s * multiple for s in _SIZES if overlap < s * multiple < limit)})
    if overlap:
        cores, _, counts = np.array([blended_axis(n, b, overlap, multiple) for b in sizes]).T
    else:
        cores = np.array([core_step(n, b, multiple) for b in sizes])
        counts = np.array([-(-n // b) for b in sizes])
    padded = cores + 2 * round_up(halo, multiple)
    padded = padded if beyond_edge else np.minimum(padded, round_up(n, multiple))
    return _AxisChoices(sizes, cores, padded, counts)


def halve(block: Sequence[int], multiple: int = 1) -> tuple[int, ...]:
    """Return half the block on each axis, a multiple of `multiple` and at least one."""
    return tuple(max(multiple, b // 2 // multiple * multiple) for b in block)


def retry_smaller(
    run: Callable[[tuple[int, ...]], Any], block: Sequence[int], multiple: int = 1, attempts: int = 3
) -> Any:
    """Return `run(block)`; when memory runs out, try again with half the block, up to `attempts` times.

    Raises:
        DataError: memory runs out with the last block too.
    """
    block = tuple(block)
    for attempt in range(attempts + 1):
        try:
            return run(block)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = halve(block, multiple)
            if attempt == attempts or smaller == block:
                raise DataError(
                    f"out of memory with blocks of {block} after {attempt} halvings; lower --max_memory, "
                    "or use a machine with more memory"
                ) from error
            block = smaller
    raise AssertionError("unreachable")
