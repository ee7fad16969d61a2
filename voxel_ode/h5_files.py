"""Opening HDF5 files of others: nothing outside the file is read, nothing larger than its budget is begun."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from common.errors import DataError
from common.hdf5 import require_inside

H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises on damage
GIB = 2**30


def dataset_of(file: h5py.File, name: str) -> h5py.Dataset:
    """Return dataset `name` ("Group/Name"), stored in this very file.

    Raises:
        DataError: it is missing, or reached by a link, or its values lie in other files.
    """
    path, node = file.filename, cast(Any, file)
    parts = name.split("/")
    for depth, part in enumerate(parts):
        link = _link(node, part)
        shown = "/".join(parts[: depth + 1])
        if link is None:
            kind = "dataset" if depth == len(parts) - 1 else "group"
            raise DataError(f"{path}: no {kind} {shown}, found {_names(node)}; export this simulation again")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: {shown} is a link, expected its values here; copy them into the file")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"{path}: {name} is a group, expected a dataset; export this simulation again")
    require_inside(node, path)
    return node


def has_dataset(file: h5py.File, name: str) -> bool:
    """Return whether `name` is there at all, whatever it is."""
    node: Any = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or _link(node, part) is None:
            return False
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            return True
        node = node[part]
    return True


def _link(node: Any, part: str) -> Any:
    return node.get(part, getlink=True) if isinstance(node, h5py.Group) and part in list(node) else None


def _names(node: Any) -> str:
    names = list(node)[:8] if isinstance(node, h5py.Group) else []
    return ", ".join(names) or "nothing"


def require_numbers(data: h5py.Dataset, shape: Sequence[int | None]) -> None:
    """Raise DataError unless `data` holds real numbers of `shape`; None stands for any length."""
    kind, found = data.dtype.kind, tuple(data.shape or ())
    fits = len(found) == len(shape) and all(s in (None, n) for n, s in zip(found, shape, strict=True))
    if kind not in "fiub" or not fits or min(found, default=1) < 1:
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise DataError(
            f"{data.file.filename}: {data.name} holds {data.dtype} of shape {found}, expected real numbers "
            f"of shape ({wanted}); export this simulation again"
        )


def require_budget(path: str | Path, datasets: Sequence[h5py.Dataset], max_memory_gb: float) -> None:
    """Raise DataError when the headers declare more bytes than the budget; nothing is read."""
    declared = sum(math.prod(data.shape or ()) * data.dtype.itemsize for data in datasets)
    if declared > max_memory_gb * GIB:
        raise DataError(
            f"{path}: its headers declare {declared / GIB:.4g} GiB, above the budget of {max_memory_gb:g} "
            "GiB; check the file, or raise --max_memory"
        )


def attribute(node: Any, name: str, kind: type, count: int = 1) -> Any:
    """Return an attribute as `kind` (a tuple of `count` when above 1), None when it is missing or unlike."""
    try:
        value = node.attrs.get(name)
        if value is None:
            return None
        if kind is str:
            value = value.decode() if isinstance(value, bytes) else value
            return value if isinstance(value, str) else None
        values = np.asarray(value, dtype=np.float64).reshape(-1)
    except (*H5_ERRORS, UnicodeDecodeError):
        return None
    if values.size != count or not np.isfinite(values).all():
        return None
    numbers = tuple(kind(v) for v in values)
    return numbers[0] if count == 1 else numbers


@contextlib.contextmanager
def reading(path: str | Path, what: str = "") -> Iterator[None]:
    """Turn what h5py raises on a damaged file inside the block into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except H5_ERRORS as error:
        where = f"{path}: {what} " if what else f"{path}: "
        raise DataError(f"{where}cannot be read ({error}); the file is damaged, copy it again") from error
