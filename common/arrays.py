"""Archives of NumPy arrays from strangers: no pickle, no bomb, and damage told with the file's name."""

from __future__ import annotations

import contextlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
                    np.lib.format.read_magic(member)  # type: ignore[arg-type]
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
