"""Where the cells of a section lie: which axes it shows, where it starts, how large its cells are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

AXES = ("x", "y", "z")


@dataclass(frozen=True)
class GridGeometry:
    """The frame of a section; labels [H, W] have row 0 on top.

    With the defaults a coordinate is a cell index that counts from 1 (vertically from the bottom, or from the
    top with `z_down`): index = floor((x - x0) / dx) with x0 = 1 and dx = 1.

    Attributes:
        origin: (x0, y0, z0), the lower face of the first cell on each axis, in the data's unit.
        cell_size: (dx, dy, dz) in the same unit.
        z_down: the vertical coordinate of the section counts from the top.
        axes: what the section shows, (horizontal, vertical), for example ("x", "z").
        position: cell index of the section on the axis it does not show; 0 for a grid of one section.
        num_slices: cells of the whole grid on that axis.
    """

    origin: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cell_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    z_down: bool = False
    axes: tuple[str, str] = ("x", "y")
    position: int = 0
    num_slices: int = 1

    def __post_init__(self) -> None:
        """Check sizes and axes."""
        object.__setattr__(self, "origin", tuple(float(v) for v in self.origin))
        object.__setattr__(self, "cell_size", tuple(float(v) for v in self.cell_size))
        object.__setattr__(self, "axes", tuple(self.axes))
        if len(self.origin) != 3 or len(self.cell_size) != 3:
            raise ValueError(
                f"origin {self.origin} and cell size {self.cell_size}: expected three numbers each"
            )
        if not all(np.isfinite(v) for v in self.origin + self.cell_size) or min(self.cell_size) <= 0:
            raise ValueError(
                f"origin {self.origin}, cell size {self.cell_size}: expected finite, sizes above 0"
            )
        if len(set(self.axes)) != 2 or not set(self.axes) <= set(AXES):
            raise ValueError(f"axes {self.axes}: expected two of x, y, z")

    @property
    def slice_axis(self) -> str:
        """The axis that the section does not show."""
        return next(axis for axis in AXES if axis not in self.axes)

    def index(self, axis: str, coordinate: np.ndarray) -> np.ndarray:
        """Return cell indices from 0 of coordinates on an axis: floor((x - x0) / dx)."""
        number = AXES.index(axis)
        scaled = (np.asarray(coordinate, dtype=np.float64) - self.origin[number]) / self.cell_size[number]
        # A coordinate on a face can fall a rounding error short of it.
        scaled = scaled + 1e-9 * np.maximum(1.0, np.abs(scaled))
        return np.floor(scaled.clip(-1e15, 1e15)).astype(np.int64)

    def cells(
        self, horizontal: np.ndarray, vertical: np.ndarray, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, cols) of coordinates; those outside the grid have rows or cols outside of it."""
        cols = self.index(self.axes[0], horizontal)
        up = self.index(self.axes[1], vertical)
        return (up if self.z_down else height - 1 - up), cols

    def centres(self, rows: np.ndarray, cols: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the (horizontal, vertical) coordinates to write for cells: indices in the default frame.

        With the default origin and size that is the cell's index from 1, else its centre.
        """
        up = np.asarray(rows) if self.z_down else height - 1 - np.asarray(rows)
        pair = []
        for axis, index in zip(self.axes, (np.asarray(cols), up), strict=True):
            start, size = self.origin[AXES.index(axis)], self.cell_size[AXES.index(axis)]
            pair.append(start + size * (index + (0.0 if self.is_plain else 0.5)))
        return pair[0], pair[1]

    @property
    def is_plain(self) -> bool:
        """Whether coordinates are cell indices from 1."""
        return self.origin == (1.0, 1.0, 1.0) and self.cell_size == (1.0, 1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and JSON."""
        return {
            "origin": list(self.origin),
            "cell_size": list(self.cell_size),
            "z_down": self.z_down,
            "axes": list(self.axes),
            "position": self.position,
            "num_slices": self.num_slices,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GridGeometry:
        """Return what `to_dict` described."""
        return cls(
            tuple(values["origin"]),
            tuple(values["cell_size"]),
            bool(values["z_down"]),
            tuple(values["axes"]),
            int(values.get("position", 0)),
            int(values.get("num_slices", 1)),
        )


def section_axes(dims: tuple[int, int, int], slice_axis: str = "y") -> tuple[str, str]:
    """Return the axes of a grid's sections, (nx, ny, nz): those of a flat grid, else all but `slice_axis`."""
    thin = [axis for axis, count in zip(AXES, dims, strict=True) if count == 1]
    if thin:  # a map, or one section: the last axis of one cell is left out
        slice_axis = thin[-1]
    shown = [axis for axis in AXES if axis != slice_axis]
    return shown[0], shown[1]
