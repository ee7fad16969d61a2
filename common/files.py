"""Files that survive a kill, a full disk and a second run: atomic writes, free space, the lock of a folder.

A file that a user could lose is written to a temporary name in the same folder, flushed, fsynced and renamed
over the old one, so that a kill at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import DataError, UserError

_TEMPORARY = re.compile(r"^\..+\.(?P<pid>\d+)\.(?P<host>[^.]*)\.part$")
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_HOST = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())


@contextlib.contextmanager
def atomic_path(path: str | Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, make it `path` in one step.

    The temporary is removed when the block raises. The folder is created when it is missing.

    Raises:
        UserError: the folder cannot be written.
        DataError: the disk is full, a file-size limit was hit, or fewer than `needed_bytes` are free.
    """
    path = Path(path)
    make_folder(path.parent)
    require_free_space(path, needed_bytes)
    temporary = temporary_path(path)
    try:
        with explain_full_disk(path, temporary):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_full_disk(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Turn a write inside the block that fails for lack of room into a DataError that names `path`.

    Args:
        path: what the user knows.
        temporary: the file that is really written, when it is another one.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = _full_disk_reason(error, Path(temporary or path))
        if reason is None:
            raise
        raise DataError(
            f"{path}: could not be written: {reason}; free some space or choose another --out"
        ) from error


def temporary_path(path: str | Path) -> Path:
    """Return the name beside `path` that `remove_stale_temporaries` knows as this process's temporary."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.{_HOST}.part")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path, needed_bytes=len(data)) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; paths become strings, NaN becomes null."""
    write_text(path, json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_file(path: str | Path) -> bool:
    """Return whether `path` is a file; a text that can be no name, as one too long, is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def read_json(path: str | Path, advice: str) -> Any:
    """Return the document of a JSON file.

    Args:
        path: the file.
        advice: what to do when it cannot be used; the end of the message.

    Raises:
        DataError: it is missing, no UTF-8 text, no JSON, or nested too deep.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no valid JSON ({error}); {advice}") from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "size", 2) == 1:  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk; file systems without folder sync are left alone."""
    flags = os.O_RDONLY | (os.O_DIRECTORY if path.is_dir() else 0)
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _full_disk_reason(error: BaseException, temporary: Path) -> str | None:
    """Say which limit a failed write hit, or None when it failed for another reason.

    torch.save and h5py report a full disk as a RuntimeError or an OSError without errno, so the limits
    themselves are looked at.
    """
    number = getattr(error, "errno", None)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = temporary.stat().st_size if temporary.exists() else 0
    if number == errno.EFBIG or (limit != resource.RLIM_INFINITY and size + 4096 >= limit):
        return f"the file-size limit of {limit} bytes is reached"
    free = shutil.disk_usage(temporary.parent).free
    if number in _FULL or free < 64 * 1024:
        return f"the disk is full ({free} bytes free)"
    return None


def require_free_space(path: str | Path, needed_bytes: int) -> None:
    """Raise DataError unless `needed_bytes` are free on the disk that will hold `path`."""
    if needed_bytes <= 0:
        return
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DataError(
            f"{path}: needs {needed_bytes} bytes, the disk is full with {free} bytes free; "
            "free some space or choose another --out"
        )


def make_folder(folder: str | Path) -> Path:
    """Create `folder` with its parents and return it.

    Raises:
        UserError: it cannot be created, or is no folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made a folder ({error.strerror}); choose another path"
        ) from error
    return folder


def require_writable(folder: str | Path) -> Path:
    """Create `folder` when missing, and prove by writing that files can be made in it.

    What killed processes left in it and in its folders is removed: who asks is about to write there.

    Raises:
        UserError: nothing can be written there.
    """
    folder = make_folder(folder)
    probe = folder / f".probe.{os.getpid()}.{_HOST}.part"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    for pattern in (".*.part", "*/.*.part"):  # not deeper: a user's folder may hold much else
        _remove_stale(folder.glob(pattern))
    return folder


def remove_stale_temporaries(folder: str | Path) -> list[Path]:
    """Delete what `atomic_path` left below `folder` when its process was killed; return what was deleted."""
    return _remove_stale(Path(folder).rglob(".*.part"))


def _remove_stale(found: Iterable[Path]) -> list[Path]:
    removed = []
    for path in sorted(found):
        match = _TEMPORARY.match(path.name)
        if match and match["host"] == _HOST and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class FolderLock:
    """An exclusive lock on a folder, held by this process until `release` or its end.

    The lock is `flock` on `<folder>/.lock`, so it vanishes with the process, however that dies.

    Raises:
        UserError: another live process holds it; the message says which.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = make_folder(folder) / ".lock"
        try:
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held until release
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another path") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"{folder}: in use by {holder}; wait for it to end or choose another --out"
            ) from error
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Give the lock back."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()
