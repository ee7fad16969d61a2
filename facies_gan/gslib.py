"""Grids and hard data as geostatistical text files: SGeMS-like, GSLIB and GEO-EAS.

Grids hold nx*ny*nz rows, x fastest, then y from the bottom, then z from the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import write_text
from facies_gan.geometry import AXES, GridGeometry, section_axes

MAX_CELLS = 1 << 30


@dataclass(frozen=True)
class GridHeader:
    """How a grid file begins, kept so that results are written in the same form.

    Attributes:
        form: "sgems" (first line nx ny nz) or "gslib" (first line is a title).
        variable: name of the facies variable.
        title: of a "gslib" file.
        has_origin: the first line of a "sgems" file also holds origin and cell size.
    """

    form: str = "sgems"
    variable: str = "facies"
    title: str = "facies"
    has_origin: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GridHeader:
        """Return what `to_dict` described."""
        return cls(**values)


@dataclass(frozen=True)
class Grid:
    """Integer codes of a grid file.

    Attributes:
        codes: int64 [nz, ny, nx], index 0 = bottom.
        header: how the file began.
        origin: lower face of the first cell, of the first line; None when it has none.
        cell_size: of the first line; None when it has none.
        layers_from_top: the format itself counts z downwards (GRDECL); `codes` are turned already.
    """

    codes: np.ndarray
    header: GridHeader
    origin: tuple[float, float, float] | None = None
    cell_size: tuple[float, float, float] | None = None
    layers_from_top: bool = False

    @property
    def dims(self) -> tuple[int, int, int]:
        """(nx, ny, nz)."""
        nz, ny, nx = self.codes.shape
        return nx, ny, nz

    def sections(self, geometry: GridGeometry) -> list[tuple[np.ndarray, GridGeometry]]:
        """Return every section [H, W] of codes, row 0 on top, with its own geometry.

        Args:
            geometry: axes of the sections, direction of the vertical axis.
        """
        vertical, horizontal = (2 - AXES.index(axis) for axis in reversed(geometry.axes))
        across = 2 - AXES.index(geometry.slice_axis)
        cube = np.transpose(self.codes, (across, vertical, horizontal))
        turned = self.layers_from_top and geometry.axes[1] == "z"
        cube = cube if geometry.z_down and not turned else cube[:, ::-1]
        count = len(cube)
        return [
            (
                np.ascontiguousarray(cube[i]),
                GridGeometry(geometry.origin, geometry.cell_size, geometry.z_down, geometry.axes, i, count),
            )
            for i in range(count)
        ]

    def geometry(
        self,
        *,
        slice_axis: str = "y",
        origin: tuple[float, ...] | None = None,
        cell_size: tuple[float, ...] | None = None,
        z_down: bool = False,
    ) -> GridGeometry:
        """Return the frame of this grid's sections: given values win over those of the file."""
        default = GridGeometry()
        first = origin or self.origin or default.origin
        size = cell_size or self.cell_size or default.cell_size
        axes = section_axes(self.dims, slice_axis)
        return GridGeometry(first, size, z_down, axes)  # type: ignore[arg-type]


def read_text(path: str | Path) -> str:
    """Return the text of a data file.

    Raises:
        DataError: missing, a folder, or binary.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if b"\0" in data[:4096]:
        raise DataError(f"{path}: holds binary data, expected a text file")
    return data.decode("utf-8-sig", errors="replace")


def whole_number(word: str) -> int:
    """Return a word of at most 18 digits as a number; 0 for anything else."""
    return int(word) if word.isdecimal() and len(word) <= 18 else 0


def _numbers(tokens: list[str], path: str | Path, what: str) -> np.ndarray:
    try:
        return np.array(tokens, dtype=np.float64)
    except ValueError:
        for number, token in enumerate(tokens):
            try:
                float(token)
            except ValueError as error:
                raise DataError(
                    f"{path}: {what} {number + 1} is {token[:40]!r}, expected a number; correct it"
                ) from error
        raise


def _integers(values: np.ndarray, path: str | Path, what: str) -> np.ndarray:
    bad = ~np.isfinite(values) | (values != np.rint(values)) | (np.abs(values) > 2**31)
    if bad.any():
        place = int(np.flatnonzero(bad.reshape(-1))[0])
        raise DataError(
            f"{path}: {what} {place + 1} is {values.reshape(-1)[place]:g}, expected integer facies codes "
            f"({int(bad.sum())} values are not); classify or fill them first"
        )
    return values.astype(np.int64)


def _first_line(line: str) -> list[float] | None:
    """Return the numbers of an SGeMS-like first line (3, or 9 with origin and size), None for a title."""
    try:
        numbers = [float(token) for token in line.split()]
    except ValueError:
        return None
    finite = all(np.isfinite(n) for n in numbers)
    return numbers if finite and len(numbers) in (3, 9) and all(n == int(n) for n in numbers[:3]) else None


def read_grid(path: str | Path, *, variable: str = "", dims: tuple[int, ...] = ()) -> Grid:
    """Read a grid of integer codes.

    Args:
        path: SGeMS-like (first line nx ny nz, or these with origin and cell size) or GSLIB (first line a
        title).
        variable: which of several variables.
        dims: (nx, ny, nz) of a file that does not say them.

    Raises:
        DataError: the file does not hold what its header, or `dims`, says.
    """
    lines = read_text(path).splitlines()
    if len(lines) < 3:
        raise DataError(f"{path}: {len(lines)} lines, expected nx ny nz, number of variables, names, values")
    first = _first_line(lines[0])
    if first is None and not dims:
        raise DataError(
            f"{path}: first line {lines[0].strip()[:40]!r} is a title, expected nx ny nz; give the size of "
            "the grid with --grid_dims NX NY NZ"
        )
    nx, ny, nz = (int(n) for n in (dims or first or ())[:3])
    if min(nx, ny, nz) < 1 or nx * ny * nz > MAX_CELLS:
        raise DataError(f"{path}: grid of {nx} x {ny} x {nz} cells, expected 1 to {MAX_CELLS} cells in all")
    names, body = _variables(lines, path)
    column = _variable_column(names, variable, path)
    tokens = " ".join(lines[body:]).split()
    expected = nx * ny * nz * len(names)
    if len(tokens) != expected:
        kind = "few" if len(tokens) < expected else "many"
        raise DataError(
            f"{path}: too {kind} values: {len(tokens)} found, {nx} x {ny} x {nz} cells of {len(names)} "
            f"variables need {expected}; correct the first line, or --grid_dims"
        )
    values = _numbers(tokens, path, "value").reshape(nz, ny, nx, len(names))[..., column]
    codes = _integers(values, path, "value")
    if first is None:
        return Grid(codes, GridHeader("gslib", names[column], lines[0].strip()))
    header = GridHeader("sgems", names[column], has_origin=len(first) == 9)
    if len(first) == 3:
        return Grid(codes, header)
    if min(first[6:]) <= 0:
        raise DataError(f"{path}: cell size {first[6:]} in the first line, expected numbers above 0")
    return Grid(codes, header, tuple(first[3:6]), tuple(first[6:9]))  # type: ignore[arg-type]


def _variables(lines: list[str], path: str | Path) -> tuple[list[str], int]:
    """Return the names of the variables (lines 3 on) and the number of the first line of values."""
    words = lines[1].split()
    count = whole_number(words[0]) if words else 0
    if not 1 <= count <= 1000 or len(lines) < 2 + count:
        raise DataError(
            f"{path}: line 2 is {lines[1].strip()[:40]!r}, expected the number of variables, then a name "
            "a line"
        )
    return [line.strip() for line in lines[2 : 2 + count]], 2 + count


def _variable_column(names: list[str], variable: str, path: str | Path) -> int:
    if variable:
        if variable not in names:
            raise DataError(f"{path}: no variable {variable!r}, it holds {', '.join(names)}; use --variable")
        return names.index(variable)
    if len(names) > 1:
        raise DataError(
            f"{path}: {len(names)} variables ({', '.join(names[:8])}), expected one; choose with "
            "--variable NAME"
        )
    return 0


def write_grid(
    path: str | Path,
    codes: np.ndarray,
    geometry: GridGeometry | None = None,
    header: GridHeader | None = None,
) -> None:
    """Write a section of integer codes [H, W], row 0 on top, as a grid file in the form of `header`.

    The file's first row is the bottom of the section (its top when `z_down`), x fastest.
    """
    geometry, header = geometry or GridGeometry(), header or GridHeader()
    rows = np.asarray(codes) if geometry.z_down else np.asarray(codes)[::-1]
    sizes = dict.fromkeys(AXES, 1) | dict(zip(geometry.axes, reversed(rows.shape), strict=True))
    first = header.title
    if header.form == "sgems":
        numbers = [sizes[axis] for axis in AXES]
        if header.has_origin or not geometry.is_plain:
            numbers += [*geometry.origin, *geometry.cell_size]
        first = " ".join(f"{n:.10g}" for n in numbers)
    values = "\n".join(map(str, rows.reshape(-1).tolist()))
    write_text(path, f"{first}\n1\n{header.variable}\n{values}\n")


def read_geoeas(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read a GEO-EAS table; return the column names and float64 [rows, columns].

    Raises:
        DataError: no such table; the line is named.
    """
    lines = read_text(path).splitlines()
    if len(lines) < 2:
        raise DataError(f"{path}: {len(lines)} lines, expected a title, number of columns, names, rows")
    names, body = _variables(lines, path)
    rows = []
    for number, line in enumerate(lines[body:], start=body + 1):
        tokens = line.replace(",", " ").split()
        if not tokens:
            continue
        if len(tokens) != len(names):
            raise DataError(
                f"{path}: line {number} has {len(tokens)} values, expected {len(names)} ({', '.join(names)})"
            )
        rows.append(_numbers(tokens, f"{path}: line {number}", "value"))
    return names, np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def write_geoeas(path: str | Path, title: str, names: list[str], rows: np.ndarray) -> None:
    """Write a GEO-EAS table of numbers [rows, columns]."""
    body = "".join(" ".join(f"{v:.10g}" for v in row) + "\n" for row in np.asarray(rows).tolist())
    write_text(path, "\n".join([title, str(len(names)), *names]) + "\n" + body)
