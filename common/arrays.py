"""NumPy files and archives from strangers: no pickle, no bomb, and damage told with the file's name."""

from __future__ import annotations

import contextlib
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.errors import DataError

# What NumPy and zipfile raise on damaged files; a header is parsed as Python literals.
DAMAGE = (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
DAMAGE = (
    *DAMAGE,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
MAX_EXPANSION = 100
_UNCHECKED_BYTES = 64 << 20
_MOST_BYTES = 1 << 63  # sizes of arrays are signed 64-bit numbers
_MOST_EMPTY_ROWS = 1 << 24  # of no bytes each: whoever lists such an array fills the memory


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, Fortran order, dtype) of an npy file at its start, and leave `file` at the values.

    Raises:
        ValueError, SyntaxError, EOFError and others of `DAMAGE`: it is no npy file.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _require_rows(shape: tuple[int, ...]) -> None:
    if 0 in shape and max(shape) > _MOST_EMPTY_ROWS:
        raise ValueError(f"its header tells of {shape}, rows without values")


def open_npy(
    path: str | Path, expected: str = "a whole .npy file of numbers", advice: str = "write it with np.save"
) -> np.ndarray:
    """Return a memory map of an npy file, of any shape and any type but Python objects.

    Args:
        path: the file.
        expected: what should be there; goes into the message.
        advice: what to do when it cannot be read; the end of the message.

    Raises:
        DataError: missing, no npy file, of Python objects, or shorter than its header says.
    """
    try:
        with open(path, "rb") as file:
            shape, _, dtype = npy_header(file)
            available = os.fstat(file.fileno()).st_size - file.tell()
        if dtype.hasobject:
            raise ValueError("an object array")
        # NumPy multiplies the axes in 64 bits, where an absurd shape overflows into a small size.
        stored = math.prod(n for n in shape if n) * dtype.itemsize
        if stored >= _MOST_BYTES or (0 not in shape and stored > available):
            raise ValueError(f"its header tells of {shape} {dtype}, {stored} bytes, {available} are there")
        _require_rows(shape)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        message = f"{path}: no npy file of numbers ({reason}), expected {expected}; {advice}"
        raise DataError(message) from error


@contextlib.contextmanager
def open_npz(path: str | Path, advice: str = "write it with np.savez") -> Iterator[Any]:
    """Yield an npz archive, by name -> array; damage that shows inside the block is told too.

    Args:
        path: the file.
        advice: what to do when it cannot be read; the end of the message.

    Raises:
        DataError: missing, no npz file, cut off, of Python objects, or it would grow beyond measure.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            for info in archive.zip.infolist():
                require_honest(path, info)
                with archive.zip.open(info) as member:
                    _require_rows(npy_header(member)[0])
            yield archive
    except DAMAGE as error:
        raise DataError(f"{path}: no readable npz file ({error}); {advice}") from error


def require_honest(path: str | Path, info: zipfile.ZipInfo) -> None:
    """Raise DataError when a member of an archive unpacks to far more than it takes."""
    if info.file_size > max(_UNCHECKED_BYTES, MAX_EXPANSION * info.compress_size):
        raise DataError(
            f"{path}: {info.filename.removesuffix('.npy')} grows from {info.compress_size} to "
            f"{info.file_size} bytes, expected at most {MAX_EXPANSION} times as much; write it with np.save"
        )
