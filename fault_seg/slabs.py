"""What every volume format shares: slabs of whole inlines in and out, with bounded memory.

Axes are (n1, n2, n3) = (z samples, y crosslines, x inlines). A slab is x0:x1 along n3, a float32 array
[n1, n2, x1 - x0]; n1 varies fastest in its memory, so turning it into file order costs no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from common.errors import DataError, UserError
from common.files import atomic_path

WINDOW_BYTES = 64 << 20


class Volume:
    """A seismic volume that is read slab by slab.

    Attributes:
        path: the file.
        format: its format, one of `fault_seg.volumes.FORMATS`.
        shape: (n1, n2, n3).
        spacing: (d1, d2, d3), the voxel sizes; 1 where the file does not tell.
        origin: position of the first voxel along (n1, n2, n3).
        null: [n2, n3], traces without data: missing, declared dead, or all zero.
        live: [n2, n3], traces with a signal: neither null nor constant.

    `null` and `live` know zero and constant traces only of the inlines read so far; `scan` reads the rest.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int, int],
        *,
        format: str,  # noqa: A002 - the word that the flag uses
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.path = Path(path)
        self.format = format
        self.shape = shape
        self.spacing = spacing
        self.origin = origin
        self.null = np.zeros(shape[1:], dtype=bool)
        self.live = np.ones(shape[1:], dtype=bool)
        self._scanned = np.zeros(shape[2], dtype=bool)

    def read(self, x0: int, x1: int) -> np.ndarray:
        """Return inlines x0:x1 as float32 [n1, n2, x1 - x0]; missing traces are zero.

        Raises:
            IndexError: the range is empty or outside the volume.
            DataError: the file cannot be read there.
        """
        if not 0 <= x0 < x1 <= self.shape[2]:
            raise IndexError(f"{self.path}: inlines {x0}:{x1} of 0:{self.shape[2]}")
        try:
            slab = self._read(x0, x1)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.path}: inlines {x0}:{x1} cannot be read ({error}); the file is damaged or changes "
                "while it is read; copy or export it again"
            ) from error
        if not self._scanned[x0:x1].all():
            constant = constant_traces(slab)
            self.null[:, x0:x1] |= constant & (slab[0] == 0)
            self.live[:, x0:x1] &= ~(constant | self.null[:, x0:x1])
            self._scanned[x0:x1] = True
        return slab

    def _read(self, x0: int, x1: int) -> np.ndarray:
        raise NotImplementedError

    def scan(self, x0: int = 0, x1: int | None = None) -> None:
        """Read those of inlines x0:x1 (default all) that were not read yet, for `null` and `live`."""
        for start, stop in self.ranges(x0=x0, x1=x1):
            if not self._scanned[start:stop].all():
                self.read(start, stop)

    def ranges(
        self, max_bytes: int = WINDOW_BYTES, *, x0: int = 0, x1: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yield the (start, stop) of slabs of at most `max_bytes` (one inline at least) that cover x0:x1."""
        x1 = self.shape[2] if x1 is None else x1
        step = max(1, max_bytes // (4 * self.shape[0] * self.shape[1]))
        for start in range(x0, x1, step):
            yield start, min(start + step, x1)

    def slabs(self, max_bytes: int = WINDOW_BYTES) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (x0, slab) over the whole volume, in order."""
        for start, stop in self.ranges(max_bytes):
            yield start, self.read(start, stop)

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def constant_traces(slab: np.ndarray) -> np.ndarray:
    """Return [n2, k]: which traces of a slab [n1, n2, k] hold one value only (zero, if n1 = 1)."""
    if slab.shape[0] == 1:
        return slab[0] == 0
    # Three samples rule out nearly every live trace, so the whole trace is compared only for the others.
    constant = (slab[0] == slab[slab.shape[0] // 2]) & (slab[0] == slab[-1])
    if constant.any():
        constant[constant] = (slab[:, constant] == slab[0][constant]).all(axis=0)
    return constant


class VolumeWriter:
    """A volume that is written slab by slab, in any order, and appears under its name only when complete.

    As a context manager it closes at the end of the block and aborts when the block raises.

    Args:
        path: the file to be.
        shape: (n1, n2, n3).
        stack: what is closed at the end; without an error the file gets its name, with one it is dropped.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], stack: ExitStack) -> None:
        self.path = path
        self.shape = shape
        self._written = np.zeros(shape[2], dtype=bool)
        self._open = True
        self._stack = stack

    def write(self, x0: int, slab: np.ndarray) -> None:
        """Write `slab` [n1, n2, k] as inlines x0 : x0 + k.

        Raises:
            ValueError: the slab does not fit the volume, or the writer is closed.
        """
        n1, n2, n3 = self.shape
        slab = np.asarray(slab, dtype=np.float32)
        if not self._open:
            raise ValueError(f"{self.path}: written to after close")
        if slab.ndim != 3 or slab.shape[:2] != (n1, n2) or not 0 <= x0 <= x0 + slab.shape[2] <= n3:
            raise ValueError(f"{self.path}: slab {slab.shape} at inline {x0} does not fit {self.shape}")
        self._put(x0, slab)
        self._written[x0 : x0 + slab.shape[2]] = True

    def _put(self, x0: int, slab: np.ndarray) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Write what is left before the file is renamed."""

    def close(self) -> None:
        """Finish the file and give it its name; nothing happens the second time.

        Raises:
            ValueError: some inlines were never written; the file is discarded.
            DataError: the disk is full.
        """
        if not self._open:
            return
        with self._stack:
            self._open = False
            if not self._written.all():
                first = int(np.flatnonzero(~self._written)[0])
                raise ValueError(f"{self.path}: closed before inline {first} was written")
            self._finish()

    def abort(self) -> None:
        """Discard the file; an older one under the name stays as it was."""
        self._discard(_AbortError, _AbortError(), None)

    def _discard(
        self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            self._stack.__exit__(kind, error, trace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard(kind, error, trace)


class FileWriter(VolumeWriter):
    """A volume written to a temporary file beside `path`, which `_start` prepares.

    Raises:
        UserError: `path` is a folder or cannot be written.
        DataError: fewer than `needed_bytes` are free.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int, int], *, needed_bytes: int) -> None:
        path = require_no_folder(path)
        super().__init__(path, shape, ExitStack())
        temporary = self._stack.enter_context(atomic_path(path, needed_bytes=needed_bytes))
        try:
            self._file: BinaryIO = self._stack.enter_context(temporary.open("w+b"))
            self._start(needed_bytes)
            self._file.flush()
        except BaseException as error:
            self._discard(type(error), error, error.__traceback__)
            raise

    def _start(self, size: int) -> None:
        """Write what is not slabs, and make the file `size` bytes long."""
        raise NotImplementedError


def require_no_folder(path: str | Path) -> Path:
    """Return `path`, or raise UserError where it is a folder."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file name; choose another --output")
    return path


class _AbortError(Exception):
    """Tells `atomic_path` to drop its temporary file."""
