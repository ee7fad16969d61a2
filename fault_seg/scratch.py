"""Scratch volumes of a survey on disk, and how far the ranks are with them: a killed run can go on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import distributed
from common.errors import DataError
from common.files import FolderLock, explain_full_disk, write_json

_STATE, _PROGRESS, _TILE = "state.json", "progress", "tile"


class Scratch:
    """Raw float32 volumes on disk, [n1, n2, n3] each, that all ranks write to; deleted by `remove`.

    They are read and written as files, not mapped: mapped pages would count as memory of the process.
    The folder is locked while it lives. What a killed process left in it is written anew, unless `resume` is
    set and its key is the same: then `done` tells which inlines are complete.

    Args:
        folder: where they lie; made by rank 0.
        shape: (n1, n2, n3).
        names: of the volumes.
        key: what the content depends on.
        resume: whether to go on with what lies there.

    Raises:
        UserError: another process uses the folder, or it cannot be written.
    """

    NAMES = ("fsem", "fdip", "fstrike", "dhr", "time", "fstd", "fgap")

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        names: Sequence[str],
        *,
        key: str = "",
        resume: bool = False,
    ) -> None:
        self.folder = folder
        self.shape = shape
        self.names = tuple(names)
        self._plane_bytes = 4 * shape[0] * shape[1]
        self._lock: FolderLock | None = None
        with distributed.shared_errors():
            if distributed.is_main():
                self._lock = FolderLock(folder)
                if not (resume and self._holds(key)):
                    self._begin(key)

    def _holds(self, key: str) -> bool:
        """Return whether a run of the same key left all its files here."""
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            sizes = [(self.folder / name).stat().st_size for name in self.names]
        except (OSError, ValueError):
            return False
        whole = self._plane_bytes * self.shape[2]
        return isinstance(state, dict) and state.get("key") == key and all(size == whole for size in sizes)

    def _begin(self, key: str) -> None:
        self._drop_progress()
        for name in self.names:
            with open(self.folder / name, "wb") as file:
                file.truncate(self._plane_bytes * self.shape[2])
        write_json(self.folder / _STATE, {"key": key})

    def restart(self, key: str) -> None:
        """Forget what is done and take another key; every rank calls it."""
        with distributed.shared_errors():
            if distributed.is_main():
                self._begin(key)

    def write(self, name: str, x0: int, slab: np.ndarray) -> None:
        """Store inlines from `x0` on, [n1, n2, k]."""
        path = self.folder / name
        with explain_full_disk(path), open(path, "r+b") as file:
            file.seek(x0 * self._plane_bytes)
            np.ascontiguousarray(slab.transpose(2, 1, 0), dtype="<f4").tofile(file)

    def read(self, name: str, x0: int, x1: int) -> np.ndarray:
        """Return inlines x0:x1 as [n1, n2, k]; the array belongs to the caller."""
        n1, n2, _ = self.shape
        count, offset = (x1 - x0) * n1 * n2, x0 * self._plane_bytes
        values = np.fromfile(self.folder / name, "<f4", count, offset=offset)
        return values.reshape(x1 - x0, n2, n1).transpose(2, 1, 0)

    def done(self, first: int) -> int:
        """Return the first inline, from `first` on, that this rank has not completed yet."""
        try:
            return max(first, int((self.folder / f"{_PROGRESS}.{distributed.rank()}").read_text()))
        except (OSError, ValueError):
            return first

    def mark(self, stop: int) -> None:
        """Remember that this rank has completed its inlines before `stop`."""
        path = self.folder / f"{_PROGRESS}.{distributed.rank()}"
        temporary = path.with_suffix(f"{path.suffix}.new")
        temporary.write_text(str(stop))
        temporary.replace(path)  # a kill leaves the old number or the new one

    def write_tile(self, index: int, values: np.ndarray) -> None:
        """Store an array of tile `index`."""
        path = self.folder / f"{_TILE}.{index}"
        with explain_full_disk(path):
            np.ascontiguousarray(values, dtype="<f4").tofile(path)

    def read_tile(self, index: int, shape: Sequence[int]) -> np.ndarray:
        """Return what `write_tile` stored.

        Raises:
            DataError: it is not there or not whole.
        """
        path = self.folder / f"{_TILE}.{index}"
        try:
            return np.fromfile(path, "<f4").reshape(shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: lost ({error}); run again without --resume") from error

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def keep(self) -> None:
        """Leave the files for a later run and give the lock back."""
        if self._lock is not None:
            self._lock.release()

    def _drop_progress(self) -> None:
        for pattern in (f"{_PROGRESS}.*", f"{_TILE}.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the files, and nothing else that may lie in the folder."""
        if self._lock is not None:
            self._drop_progress()
            for name in (*self.NAMES, _STATE, self._lock.path.name):
                (self.folder / name).unlink(missing_ok=True)
            self._lock.release()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
