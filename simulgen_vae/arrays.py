"""Trajectories in NumPy files: npy (memory-mapped), npz, a folder of one file a sample, a pickled array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import open_npy, open_npz
from common.errors import DataError
from common.hdf5 import open_h5
from common.legacy_pickle import read_pickled_array
from simulgen_vae.canonical import split_columns, trajectory_shape
from simulgen_vae.hdf5_input import find_item

NAMES = {"fields": ("fields", "U"), "params": ("params", "P"), "images": ("images", "G"), "ntr": ("ntr",)}
FORM = "(N, T, M) or (N, T, M, V)"


class ArraySource:
    """Trajectories of an array [N, T, M] or [N, T, M, V], in memory or memory-mapped.

    Args:
        path: the file, for messages.
        array: what it holds.
        num_var: fields that the last axis of a 3-D array holds.
        var_order: how: block (column = v M + m) or interleaved (m V + v).
    """

    def __init__(self, path: Path, array: np.ndarray, num_var: int = 1, var_order: str = "block") -> None:
        require_real(array, path, "fields")
        self.path, self.array, self.var_order = path, array, var_order
        self.stored_shape = array.shape
        self.shape = trajectory_shape(array.shape, num_var, path)

    def read(self, row: int, frames: slice, nodes: slice) -> np.ndarray:
        """Return [frames, nodes, V] of sample `row`."""
        u = self.array[row, frames]
        return (u if u.ndim == 3 else split_columns(u, self.shape[3], self.var_order))[:, nodes]

    def close(self) -> None:
        """Nothing is held open beyond the mapping."""


class FolderSource:
    """One npy or h5 file [T, M] or [T, M, V] a sample.

    Args:
        files: one a sample, in order.
        num_var: fields that the last axis of a 2-D array holds.
        var_order: block or interleaved.

    Raises:
        DataError: a file has another shape than the first.
    """

    def __init__(self, files: list[Path], num_var: int = 1, var_order: str = "block") -> None:
        self.files, self.var_order = files, var_order
        shapes = [_sample_shape(path) for path in files]
        for path, shape in zip(files, shapes, strict=True):
            if shape != shapes[0]:
                raise DataError(f"{path}: shape {shape}, expected {shapes[0]} as in {files[0].name}")
        self.stored_shape = (len(files), *shapes[0])
        self.shape = trajectory_shape(self.stored_shape, num_var, files[0].parent, "files")

    def read(self, row: int, frames: slice, nodes: slice) -> np.ndarray:
        """Return [frames, nodes, V] of sample `row`."""
        u = _sample_array(self.files[row])[frames]
        return (u if u.ndim == 3 else split_columns(u, self.shape[3], self.var_order))[:, nodes]

    def close(self) -> None:
        """Files are opened for one read each."""


def _sample_shape(path: Path) -> tuple[int, ...]:
    if path.suffix == ".npy":
        return open_npy(path, FORM).shape
    source, shape = _single_dataset(path)
    source.close()
    return shape


def _sample_array(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return open_npy(path, FORM)
    source, _ = _single_dataset(path)
    with source:
        return source[next(iter(source)) if "fields" not in source else "fields"][()]


def _single_dataset(path: Path) -> tuple[Any, tuple[int, ...]]:
    """Return the open file and the shape of its dataset `fields`, or of its only one."""
    h5 = open_h5(path)
    names = list(h5)
    name = "fields" if "fields" in names else names[0] if len(names) == 1 else ""
    item = find_item(h5, name, path) if name else None
    if item is None or getattr(item, "shape", None) is None or item.dtype.kind not in "fiu":
        h5.close()
        raise DataError(f"{path}: holds {names[:8]}, expected one dataset of numbers, or one named fields")
    return h5, tuple(int(n) for n in item.shape)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file under their canonical names: fields, params, images, ntr.

    Raises:
        DataError: it is damaged, has no fields, or would grow beyond measure when read.
    """
    with open_npz(path) as archive:
        found = {}
        for name, spellings in NAMES.items():
            for spelling in spellings:
                if spelling in archive.files and name not in found:
                    found[name] = archive[spelling]
        names = list(archive.files)
    if "fields" not in found:
        raise DataError(f"{path}: holds {names[:8]}, expected an array fields or U; rename it")
    return found


def read_pickle(path: Path) -> np.ndarray:
    """Return the one array of a legacy `dataset{k}.pickle`; a file that really is npy is mapped as such."""
    with path.open("rb") as file:
        magic = file.read(6)
    return open_npy(path, FORM) if magic == b"\x93NUMPY" else read_pickled_array(path)


def require_real(array: np.ndarray, path: Path, what: str) -> None:
    """Raise DataError unless `array` holds real numbers of at most 8 bytes."""
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise DataError(f"{path}: {what} is {array.dtype}, expected real numbers; write it as float32")
