"""A volume cut into overlapping raw cubes `0.bin, 1.bin ...` of one size, and the volume made of them again.

Axes are (n1, n2, n3) = (z, y, x). Cubes are numbered with z fastest, then y, then x. A volume that is thinner
than the cube is mirrored at its far end. `index.json` is written last: a folder without it is not complete.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.files import (
    atomic_path,
    explain_full_disk,
    remove_stale_temporaries,
    require_free_space,
    require_writable,
    write_json,
)
from fault_seg.slabs import WINDOW_BYTES, Volume
from fault_seg.volume_readers import open_raw

Shape = tuple[int, int, int]
PATCH_FORMAT = "strata-patches-1"
INDEX = "index.json"
MAX_AXIS = 1 << 20


@dataclass(frozen=True)
class PatchGrid:
    """Where the cubes of size `patch` lie in a volume of size `shape`; neighbours share `overlap` voxels."""

    shape: Shape
    patch: Shape
    overlap: int

    def starts(self, axis: int) -> list[int]:
        """Return the first voxel of the cubes along an axis; the last cube ends with the volume."""
        last = self.shape[axis] - self.patch[axis]
        return [*range(0, last, self.patch[axis] - self.overlap), last] if last > 0 else [0]

    def owned(self, axis: int) -> list[tuple[int, int]]:
        """Return the voxels (first, end) that each cube gives along an axis; overlaps are halved."""
        starts = self.starts(axis)
        cuts = [(a + self.patch[axis] + b) // 2 for a, b in itertools.pairwise(starts)]
        return list(itertools.pairwise([0, *cuts, self.shape[axis]]))

    def inside(self, axis: int, start: int) -> np.ndarray:
        """Return the indices of the volume along an axis that a cube from `start` on holds."""
        missing = max(0, self.patch[axis] - self.shape[axis])
        mirrored = np.pad(np.arange(self.shape[axis]), (0, missing), mode="reflect")
        return mirrored[start : start + self.patch[axis]]

    def places(self) -> Iterator[Shape]:
        """Yield the first voxel (z, y, x) of every cube, in the order of their numbers."""
        for x, y, z in itertools.product(*(self.starts(axis) for axis in (2, 1, 0))):
            yield z, y, x

    def __len__(self) -> int:
        return math.prod(len(self.starts(axis)) for axis in range(3))


def write_patches(volume: Volume, grid: PatchGrid, folder: Path, *, overwrite: bool = False) -> int:
    """Write the cubes and `index.json` into `folder`, slab by slab; return how many cubes there are.

    Raises:
        UserError: the folder cannot be written, or holds patches and `overwrite` is off.
        DataError: the disk is too small.
    """
    if any((folder / name).exists() for name in (INDEX, "0.bin")):
        if not overwrite:
            raise UserError(f"{folder}: holds patches; add --overwrite or choose another --output")
        _remove_patches(folder)
    require_writable(folder)
    remove_stale_temporaries(folder)
    require_free_space(folder / INDEX, 4 * math.prod(grid.patch) * len(grid))
    columns = list(itertools.product(grid.starts(1), grid.starts(0)))
    for row, x in enumerate(grid.starts(2)):
        names = [folder / f"{row * len(columns) + i}.bin" for i in range(len(columns))]
        with ExitStack() as stack:
            files = [stack.enter_context(atomic_path(name)) for name in names]
            for slab in _slabs(volume, grid.inside(2, x)):
                for (y, z), name, file in zip(columns, names, files, strict=True):
                    cube = slab[grid.inside(0, z)][:, grid.inside(1, y)]
                    with explain_full_disk(name, file), file.open("ab") as out:
                        out.write(np.ascontiguousarray(cube.transpose(2, 1, 0), dtype="<f4").data)
    write_json(folder / INDEX, _index(volume, grid))
    return len(grid)


def _slabs(volume: Volume, inlines: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the given inlines (a range, maybe mirrored at its end) as slabs of at most 64 MiB."""
    step = max(1, WINDOW_BYTES // (4 * volume.shape[0] * volume.shape[1]))
    for i in range(0, len(inlines), step):
        part = inlines[i : i + step]
        low = int(part.min())
        yield volume.read(low, int(part.max()) + 1)[:, :, part - low]


def _index(volume: Volume, grid: PatchGrid) -> dict[str, Any]:
    return {
        "format": PATCH_FORMAT,
        "source": volume.path.name,
        "shape": grid.shape,
        "patch": grid.patch,
        "overlap": grid.overlap,
        "spacing": volume.spacing,
        "origin": volume.origin,
        "order": "float32 little-endian, n1 (z) fastest, then n2 (y), then n3 (x)",
        "patches": [{"file": f"{i}.bin", "start": place} for i, place in enumerate(grid.places())],
    }


def _remove_patches(folder: Path) -> None:
    """Delete an earlier index and the cubes it lists, and nothing else."""
    try:
        _, _, count = _read_index(folder)
    except DataError:
        count = 0
    (folder / INDEX).unlink(missing_ok=True)
    for i in range(count):
        (folder / f"{i}.bin").unlink(missing_ok=True)


def _read_index(folder: Path) -> tuple[PatchGrid, dict[str, Any], int]:
    """Return (grid, index, number of listed cubes) of a folder of patches."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        shape, patch = (tuple(index[name]) for name in ("shape", "patch"))
        overlap, count = index["overlap"], len(index["patches"])
        for name in ("spacing", "origin"):
            _triple(index[name])
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file, expected the index of a folder of patches; "
            "write them with convert.py --patch"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: no index of patches ({error}); write them again with --patch") from error
    sizes = (*shape, *patch, overlap + 1 if type(overlap) is int else 0)
    if len(sizes) != 7 or any(type(n) is not int or not 1 <= n <= MAX_AXIS for n in sizes):
        raise DataError(
            f"{path}: shape {shape}, patch {patch}, overlap {overlap}, expected 1 to {MAX_AXIS}; "
            "write the patches again"
        )
    if overlap >= min(patch):
        raise DataError(f"{path}: overlap {overlap}, expected below {min(patch)}; write the patches again")
    return PatchGrid(shape, patch, overlap), index, count


def _triple(values: list[float]) -> tuple[float, float, float]:
    a, b, c = map(float, values)
    return a, b, c


class MergedVolume(Volume):
    """The volume that a folder of patches was cut from, read slab by slab.

    In an overlap each voxel comes from the cube in which it lies farther from the edge, so unchanged cubes
    give back the volume bit by bit, and cubes that were worked on meet where both are best.

    Raises:
        DataError: `index.json` is missing or damaged, or a cube is missing or of the wrong size.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._folder = folder
        self._grid, index, count = _read_index(folder)
        if count != len(self._grid):
            raise DataError(
                f"{folder / INDEX}: lists {count} patches, expected {len(self._grid)} by its sizes"
            )
        for i in range(count):
            open_raw(folder / f"{i}.bin", self._grid.patch, "little").close()
        super().__init__(
            folder,
            self._grid.shape,
            format="raw",
            spacing=_triple(index["spacing"]),
            origin=_triple(index["origin"]),
        )

    def _read(self, x0: int, x1: int) -> np.ndarray:
        out = np.empty((x1 - x0, self.shape[1], self.shape[0]), dtype=np.float32).transpose(2, 1, 0)
        rows, columns, layers = (
            list(zip(self._grid.starts(a), self._grid.owned(a), strict=True)) for a in (2, 1, 0)
        )
        number = itertools.count()
        for (x, (xa, xb)), (y, (ya, yb)), (z, (za, zb)) in itertools.product(rows, columns, layers):
            i, low, high = next(number), max(xa, x0), min(xb, x1)
            if low < high:
                with open_raw(self._folder / f"{i}.bin", self._grid.patch, "little") as cube:
                    slab = cube.read(low - x, high - x)
                out[za:zb, ya:yb, low - x0 : high - x0] = slab[za - z : zb - z, ya - y : yb - y]
        return out
