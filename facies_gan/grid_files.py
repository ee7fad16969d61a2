"""Grid files of any form, and the frame in which their sections, or those of a data root, lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import UserError
from facies_gan.geometry import AXES, GridGeometry
from facies_gan.gslib import Grid, read_grid

IMAGE_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg")

PLAIN = (1.0, 1.0, 1.0)  # origin and cell size of a frame that counts cells from 1


def read_any_grid(path: Path, options: Any) -> Grid:
    """Read a SGeMS-like, GSLIB or GRDECL grid, with the flags `variable` and `grid_dims`."""
    dims = tuple(getattr(options, "grid_dims", ()) or ())
    if dims and len(dims) != 3:
        raise UserError(f"--grid_dims {' '.join(map(str, dims))}: expected NX NY NZ")
    variable = getattr(options, "variable", "") or ""
    if path.suffix.lower() == ".grdecl":
        from facies_gan.grdecl import read_grdecl

        return read_grdecl(path, keyword=variable or "FACIES", dims=dims)
    return read_grid(path, variable=variable, dims=dims)


def require_useful_flags(options: Any) -> None:
    """Refuse flags of another kind of training image than the one that is named: they would do nothing.

    Raises:
        ValueError: such a flag is given; without a training image the data themselves are asked.
    """
    image = getattr(options, "training_image", None)
    if image is None:
        return
    if options.input_path != Path("data"):
        raise ValueError("--input_path, --training_image: give one of them, they exclude each other")
    if Path(image).suffix.lower() in IMAGE_SUFFIXES:
        idle: dict[str, Any] = {"grid_dims": (), "variable": "", "slice_axis": "y"}
        kind = "a grid file"
    else:
        idle = {"num_img_channels": 3, "img_color_range": (0.0, 255.0)}
        kind = "images"
    for name, default in idle.items():
        if getattr(options, name) != default:
            raise ValueError(f"--{name}: works with {kind} only, --training_image is {image}; leave it out")


def require_slices(grid: Grid, slice_axis: str, path: Path) -> None:
    """Refuse to slice a grid of one section along an axis that the section shows.

    Raises:
        UserError: `slice_axis` is not the usual one, and the grid is flat along another.
    """
    thin = [axis for axis, count in zip(AXES, grid.dims, strict=True) if count == 1]
    if thin and slice_axis != "y" and slice_axis not in thin:
        dims = " x ".join(map(str, grid.dims))
        raise UserError(f"--slice_axis {slice_axis}: {path} has {dims} cells, one section; leave it out")


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
