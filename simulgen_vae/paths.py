"""Files that users name: those that are not there are refused with what was searched and what lies near."""

from __future__ import annotations

import difflib
from pathlib import Path

from common.errors import DataError

LIKENESS = 0.5  # of names, 0..1


def existing(path: str | Path, flag: str) -> Path:
    """Return `path` when it exists.

    Raises:
        DataError: it does not; the message names the nearest name beside it.
    """
    path = Path(path)
    if path.exists():
        return path
    raise DataError(f"{flag} {path}: no such file or folder; {hint(path)}")


def existing_file(path: str | Path, flag: str, expected: str) -> Path:
    """Return `path` when it is a file.

    Raises:
        DataError: it is not; the message says what was `expected` and names the nearest name beside it.
    """
    path = Path(path)
    if path.is_file():
        return path
    raise DataError(f"{flag} {path}: no such file, expected {expected}; {hint(path)}")


def nearest(path: Path) -> Path | None:
    """Return what has the most similar name in the folder of `path`, None without any."""
    names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, names, n=1, cutoff=LIKENESS)
    return path.parent / found[0] if found else None


def hint(path: Path) -> str:
    """Return what a message says of a path that is not there."""
    near = nearest(path)
    return f"did you mean {near}?" if near else f"searched {path.parent.absolute()}; check the path"
