"""Cells that share faces: index arrays of the faces, and sparse matrices filled by them without searching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Faces:
    """Faces between neighbouring cells of a mask, in compact numbering of its cells (C order).

    Attributes:
        num_cells: cells of the mask.
        first, second: [F] the two cells of a face; `second` lies one step further along `axis`.
        axis: [F] 0 (z), 1 (y) or 2 (x).
    """

    num_cells: int
    first: np.ndarray
    second: np.ndarray
    axis: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Faces:
        """Return the faces between True cells of `mask` [Z, Y, X]."""
        number = np.full(mask.shape, -1, dtype=np.int64)
        count = int(mask.sum())
        number[mask] = np.arange(count)
        first, second, axis = [], [], []
        for k in range(3):
            low = np.take(number, range(mask.shape[k] - 1), axis=k)
            high = np.take(number, range(1, mask.shape[k]), axis=k)
            both = (low >= 0) & (high >= 0)
            first.append(low[both])
            second.append(high[both])
            axis.append(np.full(int(both.sum()), k))
        return cls(count, np.concatenate(first), np.concatenate(second), np.concatenate(axis))

    def difference(self, values: np.ndarray) -> np.ndarray:
        """Return values(first) - values(second) on each face, [F], of cell values [N]."""
        return values[self.first] - values[self.second]

    def divergence(self, flow: np.ndarray) -> np.ndarray:
        """Return what leaves each cell, [N], of flows [F] from `first` to `second`."""
        out = np.bincount(self.first, flow, self.num_cells)
        return out - np.bincount(self.second, flow, self.num_cells)


class FaceMatrix:
    """A square sparse matrix with one row a cell, whose pattern is that of the faces; refilled every step.

    The positions in the compressed rows are found once, so that filling is one gather.
    """

    def __init__(self, faces: Faces) -> None:
        n = faces.num_cells
        self.faces = faces
        rows = np.concatenate([faces.first, faces.second, np.arange(n)])
        columns = np.concatenate([faces.second, faces.first, np.arange(n)])
        self._order = np.lexsort((columns, rows))
        self._columns = columns[self._order].astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]).astype(np.int32)

    def fill(self, upper: np.ndarray, lower: np.ndarray, diagonal: np.ndarray) -> sparse.csr_matrix:
        """Return the matrix a(first, second) = upper [F], a(second, first) = lower [F], with diagonal [N]."""
        data = np.concatenate([upper, lower, diagonal])[self._order]
        n = self.faces.num_cells
        return sparse.csr_matrix((data, self._columns, self._starts), shape=(n, n))
