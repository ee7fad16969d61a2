"""NumPy files from users: the header is checked against the file before a byte of data is read."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import npy_header, require_honest
from common.errors import DataError
from common.files import atomic_path

MAX_BYTES = 1 << 31
# What NumPy raises for damaged files.
_DAMAGE = (ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError, tokenize.TokenError)


def _require_size(path: str | Path, shape: tuple[int, ...], dtype: np.dtype[Any], available: int) -> None:
    needed = math.prod(shape) * dtype.itemsize
    if needed > min(available, MAX_BYTES):
        raise DataError(
            f"{path}: its header tells of {shape} {dtype} ({needed} bytes), the file holds {available} and "
            f"at most "
            f"{MAX_BYTES} are read; write it again"
        )


def read_npy(path: str | Path) -> np.ndarray:
    """Return the array of an `.npy` file, without pickles.

    Raises:
        DataError: missing, no `.npy` file, cut off, or of Python objects.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            shape, _, dtype = npy_header(file)
            if dtype.hasobject:
                raise DataError(f"{path}: holds Python objects, expected numbers; save it as a plain array")
            _require_size(path, shape, dtype, path.stat().st_size - file.tell())
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except _DAMAGE as error:
        raise DataError(f"{path}: no readable .npy file ({error}); write it again") from error


def read_npz(path: str | Path, *, objects: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file; nothing in it is executed.

    Args:
        path: the file.
        objects: arrays that may be of Python objects, as old tools wrote; a reader that admits NumPy's own
            types only takes them.

    Raises:
        DataError: missing, no `.npz` file, cut off, too large, or of Python objects elsewhere.
    """
    path = Path(path)
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                require_honest(path, item)
                name = item.filename.removesuffix(".npy")
                with archive.open(item) as stream:
                    shape, _, dtype = npy_header(stream)
                    if dtype.hasobject:
                        _require_objects_allowed(path, name, objects, item.file_size)
                        arrays[name] = _legacy_objects(stream.read(MAX_BYTES), f"{path}: {name}")
                        continue
                    _require_size(f"{path}: {name}", shape, dtype, item.file_size)
                with archive.open(item) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except (
        *(*_DAMAGE, zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError),
        zipfile.zlib.error,  # type: ignore[attr-defined]
    ) as error:
        raise DataError(f"{path}: no readable .npz file ({error}); write it again") from error
    return arrays


def _require_objects_allowed(path: Path, name: str, objects: tuple[str, ...], size: int) -> None:
    if name not in objects:
        raise DataError(f"{path}: {name} holds Python objects, expected numbers; save it as a plain array")
    if size > MAX_BYTES // 64:
        raise DataError(f"{path}: {name} holds {size} bytes of Python objects, expected far fewer")


def _legacy_objects(data: bytes, where: str) -> np.ndarray:
    """Return a pickled array of strings or numbers that an old tool wrote, as an array of plain values."""
    from facies_gan.legacy_objects import read_objects

    values = read_objects(data, where)
    if values and all(isinstance(value, str) for value in values):
        return np.array(values, dtype=np.str_)
    if not all(isinstance(value, int | float) for value in values):
        raise DataError(f"{where}: holds other objects than strings or numbers; save it as a plain array")
    return np.array(values, dtype=np.float64)


def write_npz(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a compressed `.npz` file, atomically and without pickles."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for name, values in arrays.items():
            # A fixed date: the same arrays give the same bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as stream:
                np.lib.format.write_array(stream, np.asarray(values), allow_pickle=False)
    data = buffer.getvalue()
    with atomic_path(path, needed_bytes=len(data)) as temporary:
        temporary.write_bytes(data)
