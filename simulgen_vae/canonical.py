"""The canonical HDF5 layout of a data set: its reader and its writer.

fields [N, T, M, V] float32, params [N, P], images [N, H, W] uint8, time [T], coords [M, 3], cells/<type>,
mask [M], sample_id [N], group [N], split [N], balance [N, T, 3], symmetry/<arrays>.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import atomic_path
from common.hdf5 import open_h5
from simulgen_vae.field_data import FieldData
from simulgen_vae.hdf5_input import (
    DAMAGE,
    find_item,
    fixed_texts,
    read_numbers,
    read_texts,
    require_readable_texts,
    text_of,
)
from simulgen_vae.symmetry import KEYS, Symmetry

CHUNK_NODES = 16384
_ATTRIBUTES = ("generator", "seed", "version")
_DTYPES: dict[str, Any] = {"params": np.float32, "images": np.uint8, "group": np.int64, "split": np.int8}
_DTYPES |= {"mask": np.bool_, "time": np.float64, "coords": np.float64, "balance": np.float64}


class H5Source:
    """Trajectories of a dataset [N, T, M] or [N, T, M, V]; each process opens the file for itself.

    Args:
        path: the file.
        name: the dataset.
        num_var: fields that the last axis of a 3-D dataset holds.
        var_order: how: block (column = v M + m) or interleaved (m V + v).
    """

    def __init__(self, path: Path, name: str = "fields", num_var: int = 1, var_order: str = "block") -> None:
        self.path, self.name, self.var_order = path, name, var_order
        self._h5: Any = None
        self._pid = 0
        data = self._dataset()
        if data.dtype.kind not in "fiu" or data.dtype.itemsize > 8:
            raise DataError(f"{path}: {name} is {data.dtype}, expected real numbers; write it as float32")
        self.stored_shape = tuple(int(n) for n in data.shape)
        self.shape = trajectory_shape(self.stored_shape, num_var, path)

    def _dataset(self) -> Any:
        if self._h5 is None or self._pid != os.getpid():  # an HDF5 handle must not cross a fork
            self._h5, self._pid = open_h5(self.path), os.getpid()
        found = find_item(self._h5, self.name, self.path)
        if found is None or not hasattr(found, "shape"):
            names = list(self._h5)[:8]
            raise DataError(f"{self.path}: holds {names}, expected a dataset {self.name}; rename it")
        return found

    def read(self, row: int, frames: slice, nodes: slice) -> np.ndarray:
        """Return [frames, nodes, V] of sample `row`."""
        try:
            data = self._dataset()
            if len(self.stored_shape) == 4:
                return data[row, frames, nodes]
            return split_columns(data[row, frames], self.shape[3], self.var_order)[:, nodes]
        except DAMAGE as error:
            raise DataError(
                f"{self.path}: sample {row} of {self.name} cannot be read ({error}); the file is damaged"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._h5 is not None and self._pid == os.getpid():
            self._h5.close()
        self._h5 = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_h5": None, "_pid": 0}


def trajectory_shape(
    stored: tuple[int, ...], num_var: int, path: Path, what: str = "fields"
) -> tuple[int, int, int, int]:
    """Return (N, T, M, V) of an array stored as [N, T, M V] or [N, T, M, V].

    Raises:
        DataError: the rank is another, an axis is empty, or `num_var` does not fit.
    """
    if len(stored) not in (3, 4) or min(stored) < 1:
        raise DataError(
            f"{path}: {what} of shape {stored}, expected 3 axes (N, T, M) or 4 (N, T, M, V), none empty"
        )
    if len(stored) == 4:
        if num_var not in (1, stored[3]):
            raise DataError(f"{path}: {what} holds {stored[3]} fields, expected --num_var {num_var}")
        return stored[0], stored[1], stored[2], stored[3]
    if num_var < 1 or stored[2] % num_var:
        raise DataError(f"{path}: {stored[2]} columns, expected a multiple of --num_var {num_var}")
    return stored[0], stored[1], stored[2] // num_var, num_var


def split_columns(u: np.ndarray, num_fields: int, var_order: str) -> np.ndarray:
    """Return [T, M V] as a view [T, M, V]: block columns are v M + m, interleaved ones m V + v."""
    if var_order == "block":
        return u.reshape(len(u), num_fields, -1).transpose(0, 2, 1)
    return u.reshape(len(u), -1, num_fields)


def open_canonical(path: Path, num_var: int = 1, var_order: str = "block") -> FieldData:
    """Open an HDF5 file of the canonical layout; all but `fields` may be absent.

    Raises:
        DataError: something is missing, has another shape, or could lead outside the file.
    """
    source = H5Source(path, "fields", num_var, var_order)
    num_samples, num_frames, num_nodes, num_fields = source.shape
    h5 = open_h5(path)
    try:
        require_readable_texts(h5, ("fields", "params", "sample_id"), path)
        fields = h5["fields"]
        default = [f"field{v}" for v in range(num_fields)]
        names = read_texts(fields.attrs.get("names", default), "fields/names", path, num_fields)
        units = read_texts(fields.attrs.get("units", [""] * num_fields), "fields/units", path, num_fields)
        params = read_numbers(h5, "params", path, (num_samples, None))
        time = read_numbers(h5, "time", path, (num_frames,))
        ids = find_item(h5, "sample_id", path)
        grid = fields.attrs.get("grid_shape")
        return FieldData(
            path=path,
            source=source,
            rows=np.arange(num_samples),
            frames=slice(0, num_frames),
            nodes=slice(0, num_nodes),
            field_names=names,
            units=units,
            params=None if params is None else params.astype(np.float64),
            param_names=() if params is None else _param_names(h5, path, params.shape[1]),
            time=np.arange(num_frames, dtype=np.float64) if time is None else time.astype(np.float64),
            sample_id=_sample_ids(ids, path, num_samples),
            coords=read_numbers(h5, "coords", path, (num_nodes, 3)),
            grid_shape=_grid_shape(grid, num_nodes, path),
            cells=_read_cells(h5, path, num_nodes),
            mask=_as(read_numbers(h5, "mask", path, (num_nodes,)), bool),
            group=_as(read_numbers(h5, "group", path, (num_samples,)), np.int64),
            given_split=_as(read_numbers(h5, "split", path, (num_samples,)), np.int8),
            balance=read_numbers(h5, "balance", path, (num_samples, num_frames, 3)),
            images=_read_images(h5, path, num_samples),
            symmetry=_read_symmetry(h5, path),
            attributes={k: text_of(h5.attrs[k]) for k in _ATTRIBUTES if k in h5.attrs},
        )
    except DAMAGE as error:
        raise DataError(f"{path}: damaged HDF5 ({error}); write it again") from error
    finally:
        h5.close()


def _as(values: np.ndarray | None, dtype: Any) -> np.ndarray | None:
    return None if values is None else values.astype(dtype)


def _param_names(h5: Any, path: Path, count: int) -> tuple[str, ...]:
    default = [f"p{k}" for k in range(count)]
    return read_texts(h5["params"].attrs.get("names", default), "params/names", path, count)


def _sample_ids(item: Any, path: Path, count: int) -> tuple[str, ...]:
    if item is None:
        return tuple(map(str, range(count)))
    return read_texts(item[()], "sample_id", path, count)


def _grid_shape(value: Any, num_nodes: int, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    sizes = [int(n) for n in np.asarray(value).reshape(-1)]
    if len(sizes) != 2 or math.prod(sizes) != num_nodes:
        raise DataError(f"{path}: grid_shape {sizes}, expected (ny, nx) with ny nx = {num_nodes} nodes")
    return sizes[0], sizes[1]


def _read_images(h5: Any, path: Path, num_samples: int) -> np.ndarray | None:
    images = read_numbers(h5, "images", path, (num_samples, None, None))
    if images is not None and images.dtype != np.uint8:
        raise DataError(f"{path}: images are {images.dtype}, expected uint8 [N, H, W]; write them again")
    return images


def _read_cells(h5: Any, path: Path, num_nodes: int) -> dict[str, np.ndarray]:
    group = find_item(h5, "cells", path)
    cells = {}
    for kind in [] if group is None else list(group):
        nodes = read_numbers(group, kind, path, (None, None))
        if nodes is None or nodes.dtype.kind not in "iu" or nodes.min(initial=0) < 0:
            raise DataError(f"{path}: cells/{kind}: expected node numbers 0..{num_nodes - 1}")
        if nodes.max(initial=0) >= num_nodes:
            raise DataError(f"{path}: cells/{kind} names node {nodes.max()}, expected 0..{num_nodes - 1}")
        cells[kind] = nodes.astype(np.int64)
    return cells


def _read_symmetry(h5: Any, path: Path) -> Symmetry | None:
    group = find_item(h5, "symmetry", path)
    if group is None:
        return None
    found = {}
    for name in KEYS:
        item = find_item(group, name, path)
        if item is not None:
            found[name] = item[()]
    return Symmetry.from_arrays(found, f"{path}: symmetry")


@dataclass(frozen=True, eq=False)
class About:
    """What a canonical file says of its data beside the numbers.

    Attributes:
        field_names: V names.
        units: V units; none = without.
        param_names: P names.
        sample_id: N distinct names; none = 0..N-1.
        grid_shape: (ny, nx) of a regular grid.
        cells: cell type -> [cells, nodes a cell].
        symmetry: to be declared in the file.
        attributes: generator, seed, version.
    """

    field_names: tuple[str, ...]
    units: tuple[str, ...] = ()
    param_names: tuple[str, ...] = ()
    sample_id: tuple[str, ...] = ()
    grid_shape: tuple[int, int] | None = None
    cells: Mapping[str, np.ndarray] = field(default_factory=dict)
    symmetry: Symmetry | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def write_canonical(
    path: str | Path,
    shape: tuple[int, int, int, int],
    trajectories: Iterable[np.ndarray],
    about: About,
    arrays: Mapping[str, np.ndarray | None] | None = None,
) -> None:
    """Write a data set, one trajectory at a time, into a temporary file that becomes `path` when complete.

    Args:
        path: the file.
        shape: (N, T, M, V).
        trajectories: N arrays [T, M, V].
        about: names and declarations.
        arrays: further datasets by name (params, images, time, coords, mask, group, split, balance); an array
            may be filled while the trajectories are drawn, it is written last; None is left out.
    """
    import h5py

    num_samples, num_frames, num_nodes, num_fields = shape
    with atomic_path(path, needed_bytes=4 * math.prod(shape)) as temporary, h5py.File(temporary, "w") as h5:
        h5.attrs.update({k: np.bytes_(str(v).encode()) for k, v in about.attributes.items()})
        chunk = (1, num_frames, min(num_nodes, CHUNK_NODES), num_fields)
        fields = h5.create_dataset("fields", shape, np.float32, chunks=chunk, fletcher32=True)
        fields.attrs["names"] = fixed_texts(about.field_names)
        fields.attrs["units"] = fixed_texts(about.units or ("",) * num_fields)
        if about.grid_shape is not None:
            fields.attrs["grid_shape"] = np.array(about.grid_shape)
        for i, u in enumerate(trajectories):
            fields[i] = u
        ids = about.sample_id or tuple(map(str, range(num_samples)))
        h5.create_dataset("sample_id", data=fixed_texts(ids))
        named = {f"cells/{kind}": nodes for kind, nodes in about.cells.items()}
        declared = about.symmetry.arrays() if about.symmetry else {}
        named |= {f"symmetry/{name}": values for name, values in declared.items()}
        for name, values in {**(arrays or {}), **named}.items():
            if values is not None:
                h5.create_dataset(name, data=np.asarray(values, dtype=_DTYPES.get(name)))
        if about.param_names:
            h5["params"].attrs["names"] = fixed_texts(about.param_names)
