"""Hard data on the cells of a section: which facies is known where, and which well told it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from common.errors import DataError


@dataclass(frozen=True, eq=False)
class WellSet:
    """Known facies, one datum a cell.

    Attributes:
        rows, cols: int32 [n], cells of the native grid, row 0 on top.
        facies: uint8 [n], class labels.
        well_id: int32 [n], number of the well from 0.
        names: of the wells, by number.
    """

    rows: np.ndarray
    cols: np.ndarray
    facies: np.ndarray
    well_id: np.ndarray
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Bring the arrays into their types."""
        types = {"rows": np.int32, "cols": np.int32, "facies": np.uint8, "well_id": np.int32}
        for name, dtype in types.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype).reshape(-1))
        object.__setattr__(self, "names", tuple(self.names))
        count = int(self.well_id.max()) + 1 if len(self.well_id) else 0
        if not len(self.rows) == len(self.cols) == len(self.facies) == len(self.well_id):
            raise ValueError("rows, cols, facies and well_id differ in length")
        if len(self.names) < count:
            raise ValueError(f"{len(self.names)} names for {count} wells")

    @classmethod
    def empty(cls) -> WellSet:
        """Return no data."""
        nothing = np.zeros(0, dtype=np.int32)
        return cls(nothing, nothing, nothing, nothing)

    @classmethod
    def from_cells(
        cls,
        rows: np.ndarray,
        cols: np.ndarray,
        facies: np.ndarray,
        well_id: np.ndarray | None = None,
        names: Sequence[str] = (),
        *,
        where: str = "hard data",
    ) -> WellSet:
        """Return one datum a cell of data that may repeat; without `well_id` touching cells are one well.

        Raises:
            DataError: two facies in one cell; both are named.
        """
        rows, cols = (
            np.asarray(rows, dtype=np.int64).reshape(-1),
            np.asarray(cols, dtype=np.int64).reshape(-1),
        )
        facies = np.asarray(facies).reshape(-1)
        if rows.size == 0:
            return cls.empty()
        key = rows * (int(cols.max()) + 1) + cols
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        clash = np.flatnonzero(facies != facies[first[inverse]])
        if clash.size:
            one, two = int(first[inverse[clash[0]]]), int(clash[0])
            raise DataError(
                f"{where}: data {one + 1} and {two + 1} lie in one cell (row {rows[one]}, col {cols[one]}) "
                f"with "
                f"facies labels {facies[one]} and {facies[two]}, expected one facies a cell; remove one"
            )
        first = np.sort(first)
        rows, cols, facies = rows[first], cols[first], facies[first]
        ids = touching_groups(rows, cols) if well_id is None else np.asarray(well_id).reshape(-1)[first]
        names = tuple(names) or tuple(f"well {i}" for i in range(int(ids.max()) + 1))
        return cls(rows, cols, facies, ids, names)

    @classmethod
    def from_mask(cls, mask: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> WellSet:
        """Return the data of the cells where `mask` [H, W] is true; touching cells are one well."""
        rows, cols = np.nonzero(mask)
        return cls.from_cells(rows, cols, labels[rows, cols], names=names)

    @classmethod
    def from_columns(cls, labels: np.ndarray, columns: Iterable[int]) -> WellSet:
        """Return whole columns of a section [H, W] as vertical wells.

        Raises:
            DataError: a column outside the section.
        """
        chosen = [int(c) for c in dict.fromkeys(columns)]
        height, width = labels.shape
        for column in chosen:
            if not 0 <= column < width:
                raise DataError(
                    f"column {column} lies outside the section of {width} columns (0 to {width - 1})"
                )
        cols = np.repeat(np.array(chosen, dtype=np.int64), height)
        rows = np.tile(np.arange(height), len(chosen))
        ids = np.repeat(np.arange(len(chosen)), height)
        return cls(rows, cols, labels[rows, cols], ids, tuple(f"column {c}" for c in chosen))

    def __len__(self) -> int:
        """Return the number of data."""
        return len(self.rows)

    @property
    def num_wells(self) -> int:
        """The number of wells that have data."""
        return len(np.unique(self.well_id))

    def mask(self, shape: tuple[int, int]) -> np.ndarray:
        """Return bool [H, W], true at data."""
        mask = np.zeros(shape, dtype=bool)
        mask[self.rows, self.cols] = True
        return mask

    def tensor(self, shape: tuple[int, int], num_classes: int) -> torch.Tensor:
        """Return float32 [C + 1, H, W]: the data one-hot, then their presence; all zero elsewhere."""
        tensor = torch.zeros(num_classes + 1, *shape)
        rows, cols = torch.from_numpy(self.rows).long(), torch.from_numpy(self.cols).long()
        tensor[torch.from_numpy(self.facies).long(), rows, cols] = 1.0
        tensor[num_classes, rows, cols] = 1.0
        return tensor

    def select(self, well_ids: Iterable[int]) -> WellSet:
        """Return the data of some wells, which are renumbered in the order given."""
        chosen = [int(i) for i in dict.fromkeys(well_ids)]
        parts = [np.flatnonzero(self.well_id == i) for i in chosen]
        index = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        ids = np.repeat(np.arange(len(chosen)), [len(part) for part in parts])
        names = tuple(self.names[i] for i in chosen)
        return WellSet(self.rows[index], self.cols[index], self.facies[index], ids, names)

    def merged(self, other: WellSet) -> WellSet:
        """Return both together; where both know a cell, `self` wins."""
        if len(other) == 0:
            return self
        width = int(max(self.cols.max(initial=0), other.cols.max(initial=0))) + 1
        own = self.rows.astype(np.int64) * width + self.cols
        new = ~np.isin(other.rows.astype(np.int64) * width + other.cols, own)
        return WellSet(
            np.concatenate([self.rows, other.rows[new]]),
            np.concatenate([self.cols, other.cols[new]]),
            np.concatenate([self.facies, other.facies[new]]),
            np.concatenate([self.well_id, other.well_id[new] + len(self.names)]),
            self.names + other.names,
        )

    def resampled(self, shape: tuple[int, int], new_shape: tuple[int, int]) -> WellSet:
        """Return the data on a grid of another size over the same area; a cell keeps its first datum."""
        rows = self.rows.astype(np.int64) * new_shape[0] // shape[0]
        cols = self.cols.astype(np.int64) * new_shape[1] // shape[1]
        _, first = np.unique(rows * new_shape[1] + cols, return_index=True)
        first = np.sort(first)
        return WellSet(rows[first], cols[first], self.facies[first], self.well_id[first], self.names)

    def matches(self, labels: np.ndarray) -> np.ndarray:
        """Return bool [n]: whether the labels [H, W] honour each datum."""
        return labels[self.rows, self.cols] == self.facies


def touching_groups(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Return each cell's group, numbered in order of appearance; cells that touch, corners too, share one."""
    top, left = int(rows.min()), int(cols.min())
    grid = np.zeros((int(rows.max()) - top + 1, int(cols.max()) - left + 1), dtype=bool)
    grid[rows - top, cols - left] = True
    found: Any = ndimage.label(grid, structure=np.ones((3, 3)))
    labels = found[0]
    _, first, inverse = np.unique(labels[rows - top, cols - left], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]  # numbered as they first appear
