"""Parameter tables: CSV files with or without a header, comma, semicolon, tab or space between columns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import DataError
from simulgen_vae.natural import natural_key

TEXT_COLUMNS = ("file", "sample_id")
_MAX_BYTES = 512 << 20


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers, and the text columns `file` and `sample_id` when there are any.

    Attributes:
        path: where it came from.
        names: P names.
        values: float64 [N, P].
        files: N picture names, or None.
        sample_id: N sample names, or None.
    """

    path: Path
    names: tuple[str, ...]
    values: np.ndarray
    files: tuple[str, ...] | None = None
    sample_id: tuple[str, ...] | None = None

    def select(self, rows: list[int]) -> Table:
        """Return the table of these rows, in this order."""
        files, ids = (None if t is None else tuple(t[i] for i in rows) for t in (self.files, self.sample_id))
        return replace(self, values=self.values[rows], files=files, sample_id=ids)


def read_table(path: str | Path) -> Table:
    """Read a CSV file, or all CSV files of a folder in natural order as one table.

    A first row that is not all numbers is the header. Cells may be quoted with ".

    Raises:
        DataError: a cell is no finite number (row and column are named), rows differ in length, files differ
            in columns, or there is nothing to read.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    files = sorted((p for p in path.iterdir() if p.suffix.lower() == ".csv"), key=natural_key)
    if not files:
        raise DataError(f"{path}: holds no .csv file, expected at least one")
    tables = [_read_file(file) for file in files]
    for table in tables:
        if table.names != tables[0].names:
            raise DataError(
                f"{table.path}: columns {', '.join(table.names)}, expected {', '.join(tables[0].names)} "
                f"as in {files[0].name}"
            )
    texts = []
    for name in ("files", "sample_id"):
        parts = [getattr(table, name) for table in tables]
        texts.append(None if any(p is None for p in parts) else tuple(v for p in parts for v in p))
    return Table(path, tables[0].names, np.concatenate([t.values for t in tables]), *texts)


def _read_file(path: Path) -> Table:
    lines = [(k, line) for k, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty, expected rows of numbers")
    delimiter = _delimiter(lines[0][1])
    rows = [(k, _cells(line, delimiter)) for k, line in lines]
    header = None if all(_is_number(cell) for cell in rows[0][1]) else rows.pop(0)[1]
    width = len(header) if header is not None else len(rows[0][1])
    if not rows:
        raise DataError(f"{path}: holds a header and no rows, expected rows of numbers")
    names = header or [f"p{k}" for k in range(width)]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column name stands twice in {', '.join(names)}, expected distinct names")
    for k, cells in rows:
        if len(cells) != width:
            raise DataError(f"{path}: row {k} has {len(cells)} cells, expected {width}; correct the row")
    texts = {n: tuple(cells[names.index(n)] for _, cells in rows) for n in TEXT_COLUMNS if n in names}
    kept = [j for j, name in enumerate(names) if name not in TEXT_COLUMNS]
    values = [[_number(cells[j], path, k, names[j]) for j in kept] for k, cells in rows]
    array = np.array(values, dtype=np.float64).reshape(len(rows), len(kept))
    return Table(path, tuple(names[j] for j in kept), array, texts.get("file"), texts.get("sample_id"))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, expected a table below {_MAX_BYTES}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), expected a CSV file") from error
    except UnicodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error}); save the CSV file as UTF-8") from error


def _delimiter(line: str) -> str:
    """Return what separates the columns: the first of ; tab , that stands in the first line, else space."""
    return next((d for d in (";", "\t", ",") if d in line), " ")


def _cells(line: str, delimiter: str) -> list[str]:
    parts = line.split() if delimiter == " " else line.rstrip("\r\n").split(delimiter)
    return [re.sub(r'^"(.*)"$', r"\1", part.strip()) for part in parts]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _number(cell: str, path: Path, row: int, column: str) -> float:
    value = float(cell) if _is_number(cell) else math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: row {row}, column {column}: {cell!r}, expected a finite number")
    return value
