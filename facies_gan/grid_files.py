"""Grid files of any form, and the frame in which their sections, or those of a data root, lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import UserError
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import Grid, read_grid

PLAIN = (1.0, 1.0, 1.0)  # origin and cell size of a frame that counts cells from 1


def read_any_grid(path: Path, options: Any) -> Grid:
    """Read a SGeMS-like, GSLIB or GRDECL grid, with the flags `variable` and `grid_dims`."""
    if path.suffix.lower() == ".grdecl":
        from facies_gan.grdecl import read_grdecl

        return read_grdecl(path)
    dims = tuple(getattr(options, "grid_dims", ()) or ())
    if dims and len(dims) != 3:
        raise UserError(f"--grid_dims {' '.join(map(str, dims))}: expected NX NY NZ")
    return read_grid(path, variable=getattr(options, "variable", "") or "", dims=dims)


def grid_geometry(grid: Grid, options: Any) -> GridGeometry:
    """Return the frame of a grid's sections from its first line and the flags, which win when set."""
    origin = tuple(getattr(options, "origin", PLAIN))
    size = tuple(getattr(options, "cell_size", PLAIN))
    try:
        return grid.geometry(
            slice_axis=getattr(options, "slice_axis", "y"),
            origin=None if origin == PLAIN else origin,
            cell_size=None if size == PLAIN else size,
            z_down=bool(getattr(options, "z_down", False)),
        )
    except ValueError as error:
        raise UserError(f"--origin, --cell_size: {error}") from error


def root_geometry(options: Any) -> GridGeometry:
    """Return the frame of the vertical sections of a data root, in which its tables of wells count."""
    origin: Any = tuple(getattr(options, "origin", PLAIN))
    size: Any = tuple(getattr(options, "cell_size", PLAIN))
    try:
        return GridGeometry(origin, size, bool(getattr(options, "z_down", False)), axes=("x", "z"))
    except ValueError as error:
        raise UserError(f"--origin, --cell_size: {error}") from error
