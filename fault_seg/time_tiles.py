"""One geological time from tiles that know it up to scale and offset: alignment on their overlaps.

A network with statistics over space (mtl) gives every tile a time of its own. With r_t the time of tile t,
the scales a_t and offsets b_t minimise

    sum over overlaps of w (a_s r_s + b_s - a_t r_t - b_t)^2,  mean a = 1, mean b = 0

where w is the product of the tiles' blend weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from common.tiles import Tile, blend_weights

Read = Callable[[Tile], np.ndarray]
RIDGE = 1e-6  # towards a = 1, b = 0: tiles that overlap nothing keep their own time


def overlapping(tiles: Sequence[Tile]) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """Yield (i, j, box) for each pair of tiles, i before j, whose cores share voxels of the volume."""
    for i, first in enumerate(tiles):
        for j in range(i + 1, len(tiles)):
            second = tiles[j]
            if second.core[-1].start >= first.core[-1].stop:
                break  # tiles come in the order of the stream axis
            box = tuple(
                slice(max(a.start, b.start), min(a.stop, b.stop))
                for a, b in zip(first.core, second.core, strict=True)
            )
            if all(b.stop > b.start for b in box):
                yield i, j, box


def _inside(tile: Tile, box: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(b.start - c.start, b.stop - c.start) for b, c in zip(box, tile.core, strict=True))


def align(tiles: Sequence[Tile], read: Read) -> np.ndarray:
    """Return (a_t, b_t), float64 [tiles, 2]; `read(tile)` gives its time [*core]."""
    num = len(tiles)
    matrix = sparse.lil_matrix((2 * num, 2 * num))
    weights = blend_weights(tiles[0].size)
    total = 0.0
    held: dict[int, np.ndarray] = {}
    for i, j, box in overlapping(tiles):
        for index in [k for k in held if k < i]:
            del held[index]
        w = np.ones(())
        terms = []
        for sign, k in ((1.0, i), (-1.0, j)):
            tile = tiles[k]
            if k not in held:
                held[k] = read(tile)
            place = _inside(tile, box)
            w = w * weights[tile.crop][place].astype(np.float64)
            terms += [(2 * k, sign * held[k][place].astype(np.float64)), (2 * k + 1, np.full((), sign))]
        for row, left in terms:
            for column, right in terms:
                matrix[row, column] += float((w * left * right).sum())
        total += float(w.sum())
    return _solved(sparse.csr_matrix(matrix) / max(total, 1e-12), num)


def _solved(matrix: sparse.csr_matrix, num: int) -> np.ndarray:
    """Minimise x^T M x + ridge |x - (1, 0, 1, 0 ...)|^2 with mean a = 1 and mean b = 0."""
    start = np.tile([1.0, 0.0], num)
    mean = sparse.csr_matrix(np.stack([np.tile([1.0, 0.0], num), np.tile([0.0, 1.0], num)]) / num)
    ridge = RIDGE * sparse.identity(2 * num)
    system = sparse.bmat([[matrix + ridge, mean.T], [mean, None]], format="csc")
    answer = np.asarray(linalg.spsolve(system, np.concatenate([RIDGE * start, [1.0, 0.0]])))
    return answer[: 2 * num].reshape(num, 2)
