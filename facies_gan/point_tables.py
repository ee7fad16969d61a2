"""Tables of hard data: coordinates, facies codes and names of wells from GEO-EAS, CSV and NPZ files."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import DataError
from facies_gan.arrays import read_npz
from facies_gan.gslib import read_geoeas, read_text

_FACIES_NAMES = {"facies", "code", "lithology", "lithofacies", "class", "rock", "rocktype"}
_WELL_NAMES = {"well", "well_id", "wellid", "well_name", "name"}
_AXIS_NAMES = {"x": "x", "y": "y", "z": "z", "depth": "z", "tvd": "z"}


@dataclass
class Points:
    """A table of hard data: coordinates by column name, facies codes, names of wells.

    Attributes:
        columns: lower-case name -> float64 [n].
        codes: int64 [n]; None when `labels` are given.
        wells: [n] names of wells; empty when the table has none.
        where: the file.
    """

    columns: dict[str, np.ndarray]
    codes: np.ndarray
    where: str
    wells: list[str] = field(default_factory=list)


def read_points(path: str | Path) -> Points:
    """Read GEO-EAS, CSV (by suffix .csv) or NPZ (.npz) points.

    Raises:
        DataError: no such table, no facies column, or a code that is no integer.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        names, columns, wells = _read_csv(path)
    elif path.suffix.lower() == ".npz":
        arrays = {name.lower(): values.reshape(-1) for name, values in read_npz(path).items()}
        wells = [str(v) for v in arrays.pop("well_id", np.zeros(0)).tolist()]
        columns = {name: v.astype(np.float64) for name, v in arrays.items() if v.dtype.kind in "iufb"}
        columns = {{"rows": "row", "cols": "col"}.get(name, name): v for name, v in columns.items()}
        names = list(columns)
    else:
        titles, table = read_geoeas(path)
        names = [name.strip().lower() for name in titles]
        if len(set(names)) < len(names):
            raise DataError(f"{path}: columns {', '.join(names)[:80]}, expected each name once; rename one")
        columns = {name: table[:, i] for i, name in enumerate(names)}
        wells = []
    return _points(path, names, columns, wells)


def _points(path: Path, names: list[str], columns: dict[str, np.ndarray], wells: list[str]) -> Points:
    facies = next((name for name in names if name in _FACIES_NAMES), None)
    if facies is None and len(names) in (3, 4) and path.suffix.lower() not in (".csv", ".npz"):
        columns = dict(zip(("x", "y", "z")[: len(names) - 1] + ("facies",), columns.values(), strict=True))
        facies = "facies"
    if facies is None or len({len(v) for v in columns.values()}) > 1:
        raise DataError(
            f"{path}: columns {', '.join(names)}, expected coordinates (x y z or col row) and facies"
        )
    number = next((name for name in names if name in _WELL_NAMES), None)
    if number is not None and not wells:
        wells = [f"{v:g}" for v in columns[number].tolist()]
    codes = columns.pop(facies)
    if not len(codes):
        raise DataError(f"{path}: holds no datum, only names of columns; expected a row for each datum")
    if wells and len(wells) != len(codes):
        raise DataError(f"{path}: {len(wells)} names of wells for {len(codes)} data; give one to each datum")
    for name, values in [*columns.items(), (facies, codes)]:
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"{path}: datum {row + 1} has {name} {values[row]}, expected a number; remove it")
    wrong = np.flatnonzero((codes != np.rint(codes)) | (np.abs(codes) > 2**31))
    if wrong.size:
        raise DataError(
            f"{path}: datum {wrong[0] + 1} has facies {codes[wrong[0]]:g}, expected an integer code; "
            f"classify it"
        )
    coordinates = {_AXIS_NAMES.get(name, name): values for name, values in columns.items()}
    return Points(coordinates, codes.astype(np.int64), str(path), wells)


def _read_csv(path: Path) -> tuple[list[str], dict[str, np.ndarray], list[str]]:
    """Return (names, numeric columns, names of wells) of a CSV file with a header."""
    lines = read_text(path).splitlines()
    head = lines[0] if lines else ""
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")  # spreadsheets write all three
    try:
        cells = csv.reader(lines, delimiter=delimiter)
        rows = [row for row in cells if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}: no valid CSV ({error}); expected a header like x,y,facies") from error
    names = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(names) & _FACIES_NAMES:
        raise DataError(f"{path}: header {','.join(names)[:60]!r}, expected x,y,facies or col,row,facies")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: header {','.join(names)[:60]!r} names a column twice")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} values, expected {len(names)}")
    columns, wells = {}, []
    for i, name in enumerate(names):
        cells = [row[i].strip() for row in rows[1:]]
        if name in _WELL_NAMES:
            wells = cells
            continue
        try:
            columns[name] = np.array([float(cell) for cell in cells])
        except ValueError as error:
            if name in _FACIES_NAMES or name in _AXIS_NAMES or name in ("col", "row"):
                raise DataError(f"{path}: column {name}: {error}; expected numbers") from error
    return list(columns), columns, wells
