"""Facies as Eclipse grid keywords (GRDECL): SPECGRID and FACIES, x fastest, then y, then z downwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import write_text
from facies_gan.geometry import AXES, GridGeometry
from facies_gan.gslib import MAX_CELLS, Grid, GridHeader, read_text, whole_number

_SHIFT_NOTE = "-- FACIES = code + 1, because simulators reserve 0"


def write_grdecl(path: str | Path, codes: np.ndarray, geometry: GridGeometry | None = None) -> None:
    """Write a section of integer codes [H, W], row 0 on top; codes are raised by 1 when the lowest is 0.

    The top row comes first where the vertical axis is z (layers count downwards), else the bottom row (y
    grows
    upwards on a map).
    """
    geometry = geometry or GridGeometry()
    codes = np.asarray(codes)
    sizes = dict.fromkeys(AXES, 1) | dict(zip(geometry.axes, reversed(codes.shape), strict=True))
    rows = codes if geometry.axes[1] == "z" or geometry.z_down else codes[::-1]
    shifted = int(codes.min()) == 0
    lines = [_SHIFT_NOTE] if shifted else []
    lines += ["SPECGRID", f"{sizes['x']} {sizes['y']} {sizes['z']} 1 F /", "", "FACIES"]
    values = (rows + shifted).reshape(-1).tolist()
    lines += [" ".join(map(str, values[i : i + 20])) for i in range(0, len(values), 20)]
    write_text(path, "\n".join(lines) + "\n/\n")


def read_grdecl(path: str | Path, *, keyword: str = "FACIES", dims: tuple[int, ...] = ()) -> Grid:
    """Read one keyword of a GRDECL file (repeat counts like 12*3 too).

    Args:
        path: the file.
        keyword: of the facies codes.
        dims: (nx, ny, nz), where the file has no SPECGRID; they win over it.

    Raises:
        DataError: a keyword is missing, or the number of values differs from the grid.
    """
    text = read_text(path)
    words = " ".join(line.split("--")[0] for line in text.splitlines()).replace("/", " / ").split()
    name = keyword.upper()
    nx, ny, nz = dims or _dims(words, path)
    if min(nx, ny, nz) < 1 or nx * ny * nz > MAX_CELLS:
        raise DataError(f"{path}: grid of {nx} x {ny} x {nz} cells, expected 1 to {MAX_CELLS} cells in all")
    values: list[int] = []
    for word in _keyword(words, name, path, "another one with --variable NAME"):
        count, star, value = word.partition("*")
        try:
            repeat, code = (int(count), int(value)) if star else (1, int(word))
        except ValueError as error:
            raise DataError(f"{path}: {name} value {word[:40]!r}, expected an integer or N*code") from error
        if repeat < 0 or len(values) + repeat > nx * ny * nz:
            raise DataError(f"{path}: more {name} values than the {nx} x {ny} x {nz} cells of the grid")
        if abs(code) > 2**31:
            raise DataError(f"{path}: {name} value {word[:40]!r}, expected an integer facies code")
        values += [code] * repeat
    if len(values) != nx * ny * nz:
        raise DataError(
            f"{path}: {len(values)} {name} values, expected {nx * ny * nz} ({nx} x {ny} x {nz} cells)"
        )
    codes = np.array(values, dtype=np.int64).reshape(nz, ny, nx)[::-1]  # layers count downwards
    shift = name == "FACIES" and _SHIFT_NOTE in text
    return Grid(codes - shift, GridHeader(), layers_from_top=True)


def _dims(words: list[str], path: str | Path) -> list[int]:
    """Return nx ny nz of SPECGRID."""
    size = _keyword(words, "SPECGRID", path, "the size with --grid_dims NX NY NZ")[:3]
    numbers = [whole_number(word) for word in size]
    if len(numbers) < 3 or min(numbers) < 1:
        raise DataError(f"{path}: SPECGRID {' '.join(size)[:80]}, expected nx ny nz")
    return numbers


def _keyword(words: list[str], name: str, path: str | Path, or_else: str) -> list[str]:
    """Return the words between a keyword and its closing slash; `or_else` says what the user may give."""
    upper = [word.upper() for word in words]
    if name not in upper:
        raise DataError(f"{path}: no keyword {name}, expected SPECGRID and the facies codes; give {or_else}")
    start = upper.index(name) + 1
    if "/" not in words[start:]:
        raise DataError(f"{path}: keyword {name} is not closed by /; copy the file again")
    return words[start : words.index("/", start)]
