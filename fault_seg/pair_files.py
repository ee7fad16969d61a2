"""Which files of a data folder and a target folder make a training pair, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from common.errors import DataError


def partner(folder: Path, number: int, name: str) -> Path:
    """Return the volume `name` of sample `number` in a folder.

    Raises:
        DataError: there is none.
    """
    for suffix in (".bin", ".npy", ".h5"):
        path = folder / f"{number}_{name}{suffix}"
        if path.is_file():
            return path
    raise DataError(
        f"{folder}: no {number}_{name}.bin or .npy for sample {number}; add it, or switch its head off"
    )


def find_images(folder: Path, ending: str = "", advice: str = "") -> list[Path]:
    """Return the images 0, 1, 2 ... of a data folder, or the volumes 0_fsem ... with the ending "_fsem".

    Args:
        folder: of the images.
        ending: of the names, before the suffix.
        advice: what else to do when there is none.

    Raises:
        DataError: the folder is missing or empty, a number is missing between others or there twice.
    """
    advice = advice or "run make_data.py, or name the folder of another data set by --data"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {advice}")
    found: dict[int, Path] = {}
    named = re.compile(rf"([0-9]+){ending}\.(bin|npy|h5)")
    for path in sorted(folder.iterdir()):
        match = named.fullmatch(path.name)
        if match and found.setdefault(int(match[1]), path) != path:
            raise DataError(f"{path}: the same sample as {found[int(match[1])].name}; remove one of them")
    if not found:
        raise DataError(f"{folder}: holds no 0{ending}.bin or .npy; {advice}")
    missing = next((i for i in range(len(found)) if i not in found), None)
    if missing is not None:
        raise DataError(
            f"{folder}: {missing}{ending}.bin is missing, the numbers go up to {max(found)}; fill the gap"
        )
    return [found[i] for i in range(len(found))]


def require_paired(data_dir: Path, target_dir: Path, count: int, names: Iterable[str]) -> None:
    """Check that every target has an image.

    Args:
        data_dir: folder of the images 0 .. count - 1.
        target_dir: folder of the targets.
        count: number of images.
        names: of the targets that are read.

    Raises:
        DataError: a target belongs to no image; the message names the first one.
    """
    named = re.compile(rf"([0-9]+)_({'|'.join(names)})\.(bin|npy|h5)")
    matches = filter(None, (named.fullmatch(path.name) for path in target_dir.iterdir()))
    alone = sorted((int(m[1]), m[0]) for m in matches if int(m[1]) >= count)
    if alone:
        number, name = alone[0]
        raise DataError(
            f"{target_dir / name}: there is no sample {number} in {data_dir}, expected 0 to {count - 1}; add "
            f"its data, remove the target, or ask for {count} samples by --ntrain or --nvalid"
        )
