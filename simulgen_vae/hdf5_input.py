"""HDF5 files that others wrote, opened so that they can neither lie about sizes nor reach other files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.hdf5 import require_stored

DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)  # what h5py raises on damage
_READER_SECONDS = 60.0
_CRASHED = 0x80000000  # and above: how Windows tells a crash
_MAX_ATTRIBUTE_BYTES = 60_000  # HDF5 keeps 64 KiB of an attribute
# What a process of its own reads before this one; an ordinary error is left for this one to name.
_READER = """
import sys
try:
    import h5py
    with h5py.File(sys.argv[1], "r") as h5:
        for place in sys.argv[2:]:
            item, _, name = place.partition("@")
            h5[item].attrs[name] if name else h5[item][()]
except Exception:
    pass
"""


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
            require_stored(item, path)
        return item
    except DAMAGE as error:
        raise DataError(f"{path}: damaged HDF5 at {name} ({error}); write it again") from error


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


def text_of(value: Any) -> str:
    """Return a text attribute as h5py gives it, of fixed or variable length."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def fixed_texts(texts: Iterable[str]) -> np.ndarray:
    """Return texts as UTF-8 of one length, for an attribute or dataset.

    Texts of variable length lie apart from their dataset, behind lengths that the HDF5 library believes:
    where a bit of them has flipped it crashes instead of telling. Only so many that an attribute would not
    hold them at one length stay of variable length.
    """
    import h5py

    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    longest = max((len(text) for text in encoded), default=0)
    if longest * len(encoded) > _MAX_ATTRIBUTE_BYTES:
        return np.array(encoded, dtype=h5py.string_dtype())
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(longest, 1)))


def require_readable_texts(h5: Any, names: Iterable[str], path: Path) -> None:
    """Refuse texts of variable length that crash the HDF5 library: a process of its own reads them first.

    Args:
        h5: the open file.
        names: of its datasets and groups; their attributes, those of the file and texts they hold are read.
        path: of the file.

    Raises:
        DataError: that process crashed or did not end.
    """
    import h5py

    places = [f"/@{name}" for name in h5.attrs if is_variable(h5.attrs.get_id(name))]
    for item_name in names:
        item = find_item(h5, item_name, path)
        if isinstance(item, h5py.Dataset) and is_variable(item.id):
            places.append(item_name)
        if item is not None:
            places += [f"{item_name}@{a}" for a in item.attrs if is_variable(item.attrs.get_id(a))]
    if not places:
        return
    command = [sys.executable, "-c", _READER, str(path), *places]
    try:
        code = subprocess.run(command, capture_output=True, timeout=_READER_SECONDS).returncode
    except subprocess.TimeoutExpired:
        code = -1  # the library never returns from a heap whose entries have no length
    if code < 0 or code >= _CRASHED:
        raise DataError(
            f"{path}: damaged HDF5, the HDF5 library crashes or hangs on its texts, expected readable names; "
            "write it again"
        )


def is_variable(low_level: Any) -> bool:
    """Whether values of a low-level dataset or attribute lie in the file's heap."""
    import h5py

    kind = low_level.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        return bool(kind.is_variable_str())
    return isinstance(kind, h5py.h5t.TypeVlenID | h5py.h5t.TypeCompoundID | h5py.h5t.TypeArrayID)
