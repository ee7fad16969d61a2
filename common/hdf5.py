"""HDF5 files that others wrote: what their headers promise is checked before a value is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from common.errors import DataError

_MAX_DEFLATE = 1100  # deflate shrinks nothing more than 1032 times
_UNCHECKED_BYTES = 64 << 20
# (file, dataset) -> (time, size) of the file when it was checked
_sound: dict[tuple[str, str], tuple[int, int]] = {}


def open_h5(path: str | Path, advice: str = "it is cut short or of another format, copy it again") -> Any:
    """Open an HDF5 file for reading.

    Args:
        path: of the file.
        advice: what to do when it is none.

    Raises:
        DataError: it is missing, no HDF5 file, or another process is writing it.
    """
    import h5py

    if not Path(path).is_file():
        raise DataError(f"{path}: no such file, expected an HDF5 file; check the path")
    try:
        return h5py.File(path, "r")
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; check its permissions") from error
    except (OSError, ValueError) as error:
        if "unable to lock" in str(error):  # "sblock" stands in what is said of cut files
            raise DataError(f"{path}: another process is writing this file; wait for it to end") from error
        raise DataError(f"{path}: cannot be opened as HDF5 ({error}); {advice}") from error


def require_stored(dataset: Any, path: str | Path) -> None:
    """Refuse a dataset that `require_inside` refuses, or whose shape promises more than is stored.

    Args:
        dataset: an open h5py dataset.
        path: of its file.

    Raises:
        DataError: so it is.
    """
    require_inside(dataset, path)
    nominal = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if nominal > _UNCHECKED_BYTES and nominal > _MAX_DEFLATE * stored:
        raise DataError(
            f"{path}: {dataset.name} of shape {dataset.shape} takes {nominal} bytes, {stored} are stored, "
            "expected a filled dataset; write it again"
        )


def require_inside(dataset: Any, path: str | Path) -> None:
    """Refuse a dataset whose values lie elsewhere, or whose index of chunks is damaged.

    The HDF5 library believes that index: where it names an empty chunk, a place outside the file or one place
    twice, after a single flipped bit, reading crashes instead of failing. The index is read once for each
    state of a file, and not while the file is open for writing.

    Args:
        dataset: an open h5py dataset.
        path: of its file.

    Raises:
        DataError: it has no shape, its values lie in other files, which could be any files of this machine,
            or the index is damaged.
    """
    if dataset.shape is None:
        raise DataError(f"{path}: {dataset.name} is empty, expected an array; write it again")
    if dataset.is_virtual or dataset.external:
        raise DataError(
            f"{path}: {dataset.name} keeps its values in other files, expected them here; copy them into the "
            "file"
        )
    walk = getattr(dataset.id, "chunk_iter", None)  # absent where h5py stands on HDF5 before 1.12.3
    if dataset.chunks is None or walk is None or dataset.file.mode != "r":
        return
    now = Path(path).stat()
    key, stamp = (str(path), dataset.name), (now.st_mtime_ns, now.st_size)
    if _sound.get(key) == stamp:  # once: trajectories and patches are read by the hundred
        return
    places: list[tuple[int, int]] = []
    # chunk_iter goes on as long as the function returns None.
    walk(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
    places.sort()
    overlap = any(a + n > b for (a, n), (b, _) in zip(places, places[1:], strict=False))
    if overlap or any(offset <= 0 or n <= 0 or offset + n > now.st_size for offset, n in places):
        raise DataError(
            f"{path}: {dataset.name} has a damaged index of its chunks, expected each one "
            "once and within the file; write it again"
        )
    _sound[key] = stamp
