"""HDF5 files that others wrote, opened so that they can neither lie about sizes nor reach other files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError

DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)  # what h5py raises on damage
_MAX_DEFLATE = 1100  # deflate shrinks nothing more than 1032 times
_UNCHECKED_BYTES = 64 << 20


def open_h5(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        DataError: it is none, or another process is writing it.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except (OSError, ValueError) as error:
        is_busy = "unable to lock" in str(error)
        advice = "another process is writing it, wait for it" if is_busy else "copy it again"
        raise DataError(f"{path}: cannot be opened as HDF5 ({error}); {advice}") from error


def find_item(h5: Any, name: str, path: Path) -> Any:
    """Return the dataset or group `name` of an open file or group, or None when there is none.

    Raises:
        DataError: it is a link, or a dataset that keeps its values elsewhere or promises more than is stored.
    """
    import h5py

    try:
        if name not in list(h5):
            return None
        link = h5.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: {name} is a link, expected the data itself; copy it into the file")
        item = h5[name]
        if isinstance(item, h5py.Dataset):
            _require_stored(item, path)
        return item
    except DAMAGE as error:
        raise DataError(f"{path}: damaged HDF5 at {name} ({error}); write it again") from error


def _require_stored(item: Any, path: Path) -> None:
    """Refuse values in other files, and a header that promises more than its stored bytes could hold."""
    if item.is_virtual or item.external:
        raise DataError(
            f"{path}: {item.name} keeps its values in other files, expected them here; copy it into one file"
        )
    nominal = math.prod(item.shape) * item.dtype.itemsize
    stored = item.id.get_storage_size()
    if nominal > _UNCHECKED_BYTES and nominal > _MAX_DEFLATE * stored:
        raise DataError(
            f"{path}: {item.name} of shape {item.shape} takes {nominal} bytes, {stored} are stored, expected "
            "a filled dataset; write it again"
        )


def read_numbers(h5: Any, name: str, path: Path, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """Return the numeric dataset `name`, checked against `shape` (None = any length), or None.

    Raises:
        DataError: it has another shape, holds no numbers, or cannot be read.
    """
    import h5py

    item = find_item(h5, name, path)
    if item is None:
        return None
    wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} holds no numbers, expected an array {wanted}; write it again")
    fits = len(item.shape) == len(shape) and all(
        n is None or n == m for n, m in zip(shape, item.shape, strict=True)
    )
    if not fits:
        raise DataError(f"{path}: {name} has the shape {item.shape}, expected {wanted}; write it again")
    try:
        return item[()]
    except DAMAGE as error:
        raise DataError(f"{path}: {name} cannot be read ({error}); the file is damaged") from error


def read_texts(values: Any, name: str, path: Path, count: int) -> tuple[str, ...]:
    """Return `count` texts of an attribute or dataset.

    Raises:
        DataError: their number is another.
    """
    flat = np.asarray(values, dtype=object).reshape(-1)
    texts = tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in flat)
    if len(texts) != count:
        raise DataError(f"{path}: {name} holds {len(texts)} names, expected {count}; write it again")
    return texts
