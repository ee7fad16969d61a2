"""Readers of dense volumes: flat binary (raw, npy, MetaImage, VTI) and HDF5, all slab by slab."""

from __future__ import annotations

import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import npy_header
from common.errors import DataError, UserError
from common.hdf5 import open_h5, require_stored
from fault_seg.slabs import WINDOW_BYTES, Volume
from fault_seg.vtk import parse_mhd, parse_vti

Shape = tuple[int, int, int]
# What NumPy raises on a damaged header, which it parses as Python literals.
_NPY_ERRORS = (ValueError, EOFError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises on damage


class BinaryVolume(Volume):
    """Voxels of one type in one block of a file.

    Args:
        path: the volume's file, for messages.
        shape: (n1, n2, n3).
        dtype: type of a stored voxel.
        data_path: the file with the block, when it is another one.
        offset: first byte of the block.
        n1_fastest: memory order (x, y, z) with z fastest; otherwise (z, y, x) with x fastest.
        exact: whether the file must end with the block.
        settings: `format`, `spacing` and `origin` of `Volume`.

    Raises:
        DataError: the block does not fit the file.
    """

    def __init__(
        self,
        path: Path,
        shape: Shape,
        dtype: np.dtype,
        *,
        data_path: Path | None = None,
        offset: int = 0,
        n1_fastest: bool = True,
        exact: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(path, shape, **settings)
        self._dtype, self._offset, self._n1_fastest = dtype, offset, n1_fastest
        data_path = data_path or path
        needed = offset + math.prod(shape) * dtype.itemsize
        self._file = _open_binary(data_path)
        size = self._file.seek(0, 2)
        if offset < 0 or size < needed or (exact and size != needed):
            self._file.close()
            raise DataError(
                f"{data_path}: {size} bytes, expected {needed} for the {shape} {dtype.name} of the header of "
                f"{path}; the file is cut short or the header is wrong; copy or export it again"
            )

    def _read(self, x0: int, x1: int) -> np.ndarray:
        n1, n2, n3 = self.shape
        k, itemsize = x1 - x0, self._dtype.itemsize
        if self._n1_fastest:
            stored = self._map(self._offset + x0 * n2 * n1 * itemsize, (k, n2, n1))
            return stored.astype(np.float32).transpose(2, 1, 0)
        out = np.empty((k, n2, n1), dtype=np.float32).transpose(2, 1, 0)
        rows = max(1, WINDOW_BYTES // (n2 * n3 * itemsize))
        for z0 in range(0, n1, rows):
            z1 = min(z0 + rows, n1)
            out[z0:z1] = self._map(self._offset + z0 * n2 * n3 * itemsize, (z1 - z0, n2, n3))[:, :, x0:x1]
        return out

    def _map(self, offset: int, shape: Shape) -> np.ndarray:
        return np.memmap(self._file, self._dtype, "r", offset, shape).view(np.ndarray)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open_binary(path: Path) -> Any:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DataError(f"{path}: cannot be opened ({error}), expected a volume") from error


def open_raw(
    path: Path,
    shape: Shape,
    endian: str,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    origin: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> BinaryVolume:
    """Open headerless float32, n1 fastest, then n2, then n3.

    Raises:
        DataError: the file does not hold exactly 4 n1 n2 n3 bytes.
    """
    with _open_binary(path) as file:
        size = file.seek(0, 2)
    if size != 4 * math.prod(shape):
        raise DataError(
            f"{path}: {size} bytes, expected {4 * math.prod(shape)} = 4 x "
            + " x ".join(map(str, shape))
            + "; "
            + _fitting_sizes(size, shape)
        )
    dtype = np.dtype(">f4" if endian == "big" else "<f4")
    return BinaryVolume(path, shape, dtype, format="raw", spacing=spacing, origin=origin)


def _fitting_sizes(size: int, shape: Shape) -> str:
    """Say which sizes a raw file of `size` bytes could have."""
    n1, n2, n3 = shape
    if size == 0:
        return "the file is empty, write it again"
    if size % 4:
        return f"{size} is no multiple of 4, so the file is cut short or no float32"
    voxels = size // 4
    if voxels % (n2 * n3) == 0:
        return f"with --n2 {n2} --n3 {n3} it fits --n1 {voxels // (n2 * n3)}"
    small = [d for d in range(1, math.isqrt(voxels) + 1) if voxels % d == 0]
    nearest = sorted({*small, *(voxels // d for d in small)}, key=lambda d: (abs(d - n1), d))[:5]
    return (
        f"no n1 fits n2 = {n2} and n3 = {n3}; n1 = {', '.join(map(str, sorted(nearest)))} divide its voxels"
    )


def open_npy(path: Path, layout: str) -> BinaryVolume:
    """Open an npy file [n1, n2, n3] (layout zyx) or [n3, n2, n1] (ixz), C or Fortran order, any real type.

    An array of two axes is one line: [n1, n2] or [n2, n1].

    Raises:
        DataError: it is no npy file of real numbers with two or three axes, or its size is not what it says.
    """
    with _open_binary(path) as file:
        try:
            shape, fortran, dtype = npy_header(file)
        except _NPY_ERRORS as error:
            raise DataError(
                f"{path}: no npy file ({error}), expected an array of 3 axes; write it with np.save"
            ) from error
        offset = file.tell()
    _require_real(path, shape, dtype)
    n1_fastest = fortran != (layout == "ixz")
    volume_shape = _volume_shape(shape, layout)
    return BinaryVolume(path, volume_shape, dtype, offset=offset, n1_fastest=n1_fastest, format="npy")


def _volume_shape(shape: tuple[int, ...], layout: str) -> Shape:
    """Return (n1, n2, n3) of a stored array with two or three axes."""
    one = (1,) * (3 - len(shape))
    n1, n2, n3 = (*shape, *one) if layout == "zyx" else (*one, *shape)[::-1]
    return n1, n2, n3


def _require_real(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "fiub" or len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(
            f"{path}: {dtype} array of shape {tuple(shape)}, expected real numbers with axes (n1, n2, n3) or "
            "(n1, n2); write it as float32"
        )


class H5Volume(Volume):
    """A dataset of an HDF5 file, [n1, n2, n3] (layout zyx) or [n3, n2, n1] (layout ixz).

    Raises:
        DataError: it is missing, damaged, no array of real numbers, or lies outside the file (external
            storage, links, virtual datasets are refused: they could read any file of this machine).
    """

    def __init__(self, path: Path, dataset: str, layout: str) -> None:

        self._h5 = open_h5(path, f"expected a dataset {dataset}")
        try:
            self._data = self._find(path, dataset)
            _require_real(path, self._data.shape, self._data.dtype)
            require_stored(self._data, path)
            found = self._data.attrs
            spacing, origin = _attribute(found, "spacing"), _attribute(found, "origin")
        except _H5_ERRORS as error:
            self._h5.close()
            raise DataError(
                f"{path}: damaged HDF5 ({error}), expected a dataset {dataset}; write it again"
            ) from error
        except BaseException:
            self._h5.close()
            raise
        self._layout = layout
        shape = _volume_shape(self._data.shape, layout)
        super().__init__(path, shape, format="h5")
        self.spacing, self.origin = spacing or self.spacing, origin or self.origin

    def _find(self, path: Path, name: str) -> Any:
        import h5py

        link = self._h5.get(name, getlink=True) if name in list(self._h5) else None
        if link is None:
            raise DataError(f"{path}: holds {list(self._h5)[:8]}, expected a dataset {name}; rename it")
        if not isinstance(link, h5py.HardLink) or not isinstance(self._h5[name], h5py.Dataset):
            raise DataError(f"{path}: {name} is a link or group, expected a dataset; copy it into the file")
        return self._h5[name]

    def _read(self, x0: int, x1: int) -> np.ndarray:
        if self._layout == "ixz":
            stored = self._data[x0:x1] if self._data.ndim == 3 else self._data[None]
            return stored.astype(np.float32, copy=False).transpose(2, 1, 0)
        stored = self._data[:, :, x0:x1] if self._data.ndim == 3 else self._data[:][:, :, None]
        return np.asfortranarray(stored, dtype=np.float32)

    def close(self) -> None:
        """Close the file."""
        self._h5.close()


def _attribute(attributes: Any, name: str) -> tuple[float, float, float] | None:
    value = attributes.get(name)
    if value is None or np.shape(value) != (3,) or np.asarray(value).dtype.kind not in "fiu":
        return None
    a, b, c = (float(v) for v in value)
    return a, b, c


def open_image(path: Path, kind: str) -> BinaryVolume:
    """Open a MetaImage (`kind` mhd) or VTK ImageData (`kind` vti) file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected a {kind} volume")
    image = (parse_mhd if kind == "mhd" else parse_vti)(path)
    return BinaryVolume(
        path,
        image.shape,
        image.dtype,
        data_path=image.data_path,
        offset=image.offset,
        n1_fastest=False,
        exact=False,
        format=kind,
        spacing=image.spacing,
        origin=image.origin,
    )


def require_layout(layout: str) -> None:
    """Raise UserError unless `layout` is zyx or ixz."""
    if layout not in ("zyx", "ixz"):
        raise UserError(f"--layout {layout}: expected zyx (n1, n2, n3) or ixz (inline, crossline, sample)")
