"""Archives of predictions: streamed member by member into a temporary zip, renamed when complete, checked."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.arrays import open_npz
from common.errors import DataError, UserError
from common.files import atomic_path

SHOWN = 5
_NUMBERED = re.compile(r"\d+$")


def require_ids(ids: Sequence[str], expected_count: int, empty: Sequence[str] = ()) -> None:
    """Check the names of an archive before anything is computed.

    Args:
        ids: samples found, in order.
        expected_count: how many there must be; 0 = any number.
        empty: names that are there without gathers.

    Raises:
        UserError: duplicates, or another number than expected; missing and surplus names are listed.
    """
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UserError(f"{', '.join(twice[:SHOWN])}: the same id twice; every sample needs its own name")
    if expected_count and len(ids) != expected_count:
        missing = [*empty, *absent_numbers(ids)] if len(ids) < expected_count else []
        surplus = list(ids[expected_count:])
        listed = "".join(
            f"; {what} {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
            for what, names in (("missing", missing), ("surplus, in order,", surplus))
            if names
        )
        raise UserError(
            f"--expected_count {expected_count}: found {len(ids)} samples{listed}; the archive is not written"
        )


def absent_numbers(ids: Sequence[str]) -> list[str]:
    """Return the names that lack where names end in running numbers: of a_1, a_2, a_5 a_3 and a_4."""
    found = [(name[: match.start()], match.group()) for name in ids if (match := _NUMBERED.search(name))]
    stems = {stem for stem, _ in found}
    if len(found) != len(ids) or len(stems) != 1:
        return []
    there = {int(number) for _, number in found}
    width = min(len(number) for _, number in found)
    lowest, highest = min(there), max(there)
    if highest - lowest > 2 * len(there) + SHOWN:  # no running numbers
        return []
    (stem,) = stems
    return [f"{stem}{n:0{width}d}" for n in range(lowest, highest) if n not in there]


def write_archive(
    path: Path,
    ids: Sequence[str],
    load: Callable[[str], np.ndarray],
    *,
    shape: tuple[int, ...] | None = None,
    bounds: tuple[float, float] | None = None,
) -> None:
    """Write an .npz with one float64 array a sample; memory holds one of them at a time.

    The file gets its name after it was reopened and checked, see `check_archive`.

    Raises:
        DataError: the disk is full, or an array is not as it must be.
    """
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in ids:
                values = np.ascontiguousarray(load(name), dtype=np.float64)
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(entry, "w", force_zip64=values.nbytes > 1 << 31) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
        check_archive(temporary, ids, shape, bounds, shown=path)


def check_archive(
    path: Path,
    ids: Sequence[str],
    shape: tuple[int, ...] | None = None,
    bounds: tuple[float, float] | None = None,
    shown: Path | None = None,
) -> None:
    """Reopen an archive and check keys, dtype, shape, finite values and bounds.

    Raises:
        DataError: naming the first array that is not as it must be.
    """
    named = shown or path
    with open_npz(path) as archive:
        if sorted(archive.files) != sorted(ids):
            odd = sorted(set(archive.files) ^ set(ids))
            raise DataError(f"{named}: keys differ from the samples: {', '.join(odd[:SHOWN])}")
        for name in ids:
            values = archive[name]
            if values.dtype != np.float64 or (shape is not None and values.shape != shape):
                raise DataError(f"{named}: {name} is {values.dtype} {values.shape}, expected float64 {shape}")
            if not np.isfinite(values).all():
                raise DataError(f"{named}: {name} holds NaN or infinite values")
            if bounds and not bounds[0] * (1 - 1e-6) <= values.min() <= values.max() <= bounds[1] * (
                1 + 1e-6
            ):
                raise DataError(
                    f"{named}: {name} spans {values.min():g} to {values.max():g}, expected {bounds[0]:g} to "
                    f"{bounds[1]:g}"
                )
