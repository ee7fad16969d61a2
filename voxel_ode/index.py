"""Which patches of which states are training samples: one line of JSON each, and the same as small arrays.

The arrays (.npz, 26 bytes a patch) hold beside the place how much of the patch is active, how much its
temperature changes, and whether it holds wells. They are read when their hash fits the .jsonl; without them
the same numbers are worked out again from the prepped files.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import open_npz
from common.errors import DataError
from common.files import atomic_path, is_file
from common.log import get_logger
from voxel_ode.prep_file import sha256_of, shrunk_patch
from voxel_ode.prepped import PreppedSim, Shape, open_prepped

BOX_KEYS = ("z0", "z1", "y0", "y1", "x0", "x1")
_MAX_NPZ_BYTES = 4 << 30
_LINES_AT_ONCE = 10_000
_COLUMNS = {
    "sim": np.int16,
    "t": np.int16,
    "box": np.int16,
    "active_fraction": np.float32,
    "activity": np.float32,
    "wells_complete": np.bool_,
    "has_well": np.bool_,
}


@dataclass(frozen=True)
class PatchIndex:
    """The patches of one split.

    Attributes:
        sim_paths: prepped files, relative to the root.
        sim: int16 [N], place in `sim_paths`.
        t: int16 [N], the state that is given; t + 1 is the first to predict.
        box: int16 [N, 6], z0 z1 y0 y1 x0 x1.
        active_fraction: float32 [N].
        activity: float32 [N], root mean square of the year's temperature change over active cells, K.
        wells_complete: bool [N], the patch holds every well cell of its simulation.
        has_well: bool [N], the patch holds a well cell.
    """

    sim_paths: list[str]
    sim: np.ndarray
    t: np.ndarray
    box: np.ndarray
    active_fraction: np.ndarray
    activity: np.ndarray
    wells_complete: np.ndarray
    has_well: np.ndarray

    def __len__(self) -> int:
        return len(self.sim)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in _COLUMNS)

    def take(self, keep: np.ndarray) -> PatchIndex:
        """Return the patches that `keep` (mask or places) selects, of the same files."""
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in _COLUMNS})

    def slices(self, i: int) -> tuple[slice, slice, slice]:
        """Return the box of patch i."""
        z0, z1, y0, y1, x0, x1 = (int(v) for v in self.box[i])
        return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def patch_starts(length: int, patch: int, stride: int) -> list[int]:
    """Return the starts along an axis: 0, s, 2s .. up to length - patch, and length - patch itself."""
    last = length - patch
    return sorted({*range(0, last + 1, stride), last})


def patch_boxes(shape: Shape, patch: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """Return the boxes of all patches of a grid, int16 [M, 6]; the patch must fit."""
    axes = [patch_starts(n, p, s) for n, p, s in zip(shape, patch, stride, strict=True)]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    ends = corners + np.asarray(patch)
    return np.stack([corners, ends], axis=-1).reshape(-1, 6).astype(np.int16)


def box_sums(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the sum of `values` [Z, Y, X] in each box [M, 6], float64, by one pass over the grid.

    S = sum over the 8 corners of +-I with the integral I (Crow 1984, in three dimensions).
    """
    integral = np.zeros([n + 1 for n in values.shape])
    integral[1:, 1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1).cumsum(2)
    z0, z1, y0, y1, x0, x1 = boxes.astype(np.int64).T
    upper, lower = ((z1, 1), (z0, -1)), ((y1, 1), (y0, -1))
    total = np.zeros(len(boxes))
    for z, sz in upper:
        for y, sy in lower:
            total += sz * sy * (integral[z, y, x1] - integral[z, y, x0])
    return total


def index_of(
    sim: PreppedSim, sim_path: str, patch: Sequence[int], stride: Sequence[int], min_active: float
) -> PatchIndex:
    """Return the patches of a simulation that are active enough, for t = 0, then 1 .. T_valid - 2."""
    boxes = patch_boxes(sim.shape, shrunk_patch(tuple(patch), sim.shape), stride)
    count = box_sums(sim.masks()[0], boxes)
    volume = np.prod(np.diff(boxes.reshape(-1, 3, 2).astype(np.int64), axis=-1), axis=1)[:, 0]
    boxes = boxes[(count >= min_active * volume) & (count > 0)]
    steps = np.arange(sim.t_valid - 1, dtype=np.int16)
    t, place = np.repeat(steps, len(boxes)), np.tile(np.arange(len(boxes)), len(steps))
    return fill([sim_path], [sim], np.zeros(len(t), np.int16), t, boxes[place])


def fill(
    sim_paths: list[str], sims: Sequence[PreppedSim], sim: np.ndarray, t: np.ndarray, box: np.ndarray
) -> PatchIndex:
    """Return the index with everything that is worked out from the files: activity, wells.

    Args:
        sim_paths: names of the files.
        sims: the same, opened.
        sim: int16 [N], which of them.
        t: int16 [N].
        box: int16 [N, 6].
    """
    n = len(t)
    fraction, activity = np.zeros(n, np.float32), np.zeros(n, np.float32)
    complete, has_well = np.zeros(n, bool), np.zeros(n, bool)
    for number, opened in enumerate(sims):
        rows = np.flatnonzero(sim == number)
        if not len(rows):
            continue
        active = opened.masks()[0] > 0
        boxes, inverse = np.unique(box[rows], axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        count = box_sums(active, boxes)
        volume = np.prod(np.diff(boxes.reshape(-1, 3, 2).astype(np.int64), axis=-1), axis=1)[:, 0]
        fraction[rows] = (count / volume)[inverse]
        cells = np.zeros(opened.shape, dtype=np.int32)
        np.add.at(cells, tuple(opened.wells.cells.T), 1)
        wells = np.rint(box_sums(cells, boxes))
        complete[rows], has_well[rows] = (wells == len(opened.wells.cells))[inverse], (wells > 0)[inverse]
        for step in np.unique(t[rows]):
            change = np.diff(opened.states(int(step), int(step) + 2)[:, 1], axis=0)[0]
            squares = box_sums(np.where(active, change, 0.0).astype(np.float64) ** 2, boxes)
            rms = np.sqrt(np.maximum(squares, 0) / np.maximum(count, 1))
            now = t[rows] == step
            activity[rows[now]] = rms[inverse[now]]
        opened.close()
    return PatchIndex(sim_paths, sim, t, box, fraction, activity, complete, has_well)


def joined(parts: Sequence[PatchIndex]) -> PatchIndex:
    """Return the patches of several simulations, one after the other."""
    paths = [path for part in parts for path in part.sim_paths]
    first = np.cumsum([0, *(len(part.sim_paths) for part in parts)])
    columns: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        pieces = [
            getattr(part, name) + (a if name == "sim" else 0) for part, a in zip(parts, first, strict=False)
        ]
        empty = np.zeros((0, 6) if name == "box" else 0, dtype=kind)
        columns[name] = np.concatenate([empty, *pieces]).astype(kind)
    return PatchIndex(paths, **columns)


def write_jsonl(index: PatchIndex, path: Path) -> None:
    """Write one JSON object a patch: sim_path, t and the box."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for first in range(0, len(index), _LINES_AT_ONCE):
            file.write("".join(_lines(index, first, min(first + _LINES_AT_ONCE, len(index)))))


def _lines(index: PatchIndex, first: int, stop: int) -> Iterator[str]:
    names = [json.dumps(path) for path in index.sim_paths]
    rows = slice(first, stop)
    columns = zip(index.sim[rows].tolist(), index.t[rows].tolist(), index.box[rows].tolist(), strict=True)
    for sim, t, box in columns:
        place = ", ".join(f'"{key}": {value}' for key, value in zip(BOX_KEYS, box, strict=True))
        yield f'{{"sim_path": {names[sim]}, "t": {t}, {place}}}\n'


def write_npz(index: PatchIndex, path: Path, jsonl_sha256: str) -> None:
    """Write the arrays with the hash of the .jsonl that says the same ("" when there is none)."""
    columns = {name: getattr(index, name) for name in _COLUMNS}
    names = np.array(index.sim_paths, dtype=np.str_)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, sim_paths=names, jsonl_sha256=np.array(jsonl_sha256), **columns)


def read_index(path: Path, root: Path) -> PatchIndex:
    """Return the index at `path` (.jsonl or .npz; a name without suffix takes what is there), checked.

    Args:
        path: the index file.
        root: folder that its paths are relative to.

    Raises:
        DataError: it is missing or damaged, names a missing file, or cells or times beyond it.
    """
    jsonl, npz = path.with_suffix(".jsonl"), path.with_suffix(".npz")
    index = None
    if npz.is_file() and path.suffix != ".jsonl" or (npz.is_file() and jsonl.is_file()):
        index, said = _read_npz(npz)
        if jsonl.is_file() and said != sha256_of(jsonl):
            get_logger().warning("warning: %s: made for another %s, which is read instead", npz, jsonl.name)
            index = None
    if index is None:
        if not jsonl.is_file():
            raise DataError(f"{jsonl}: no such file; run prep_data.py, or name an index file")
        paths, sim, t, box = _read_jsonl(jsonl)
        sims = _open_all(path, paths, root)
        _check(path, sims, sim, t, box)
        return fill(paths, sims, sim, t, box)
    _check(path, _open_all(path, index.sim_paths, root), index.sim, index.t, index.box)
    return index


def _open_all(path: Path, sim_paths: Sequence[str], root: Path) -> list[PreppedSim]:
    for name in sim_paths:
        if not is_file(root / name):
            raise DataError(f"{path}: names {name[:80]!r}, which is not below {root}; run prep_data.py again")
    return [open_prepped(root / name) for name in sim_paths]


def _check(path: Path, sims: Sequence[PreppedSim], sim: np.ndarray, t: np.ndarray, box: np.ndarray) -> None:
    if not len(sim):
        raise DataError(f"{path}: holds no patch; lower --min_active of prep_data.py, or add simulations")
    if sim.min() < 0 or sim.max() >= len(sims):
        raise DataError(f"{path}: names file {sim.max()} of {len(sims)}; run prep_data.py again")
    shapes = np.array([s.shape for s in sims])[sim]
    last = np.array([s.t_valid for s in sims])[sim] - 2
    low, high = box[:, ::2], box[:, 1::2]
    bad = ((low < 0) | (high <= low) | (high > shapes)).any(axis=1) | (t < 0) | (t > last)
    if bad.any():
        i = int(np.argmax(bad))
        raise DataError(
            f"{path}: patch {i} (from 0) has t {t[i]} and box {box[i].tolist()}, expected t up to {last[i]} "
            f"and cells within {tuple(shapes[i].tolist())} of {sims[sim[i]].path.name}; "
            "run prep_data.py again"
        )


def _read_npz(path: Path) -> tuple[PatchIndex, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(info.file_size for info in archive.infolist())
        if declared > _MAX_NPZ_BYTES:
            raise DataError(
                f"{path}: declares {declared} bytes, above {_MAX_NPZ_BYTES}; run prep_data.py again"
            )
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged index ({error}); delete it or run prep_data.py again") from error
    with open_npz(path, "delete it or run prep_data.py again") as stored:
        paths, said = [str(p) for p in stored["sim_paths"]], str(stored["jsonl_sha256"])
        columns = {name: _column(stored[name], name, kind, path) for name, kind in _COLUMNS.items()}
    if any(not np.isfinite(c).all() for c in columns.values()):
        raise DataError(f"{path}: holds NaN or infinite weights; run prep_data.py again")
    n = len(columns["sim"])
    if any(c.shape != ((n, 6) if name == "box" else (n,)) for name, c in columns.items()):
        raise DataError(f"{path}: columns of different lengths; run prep_data.py again")
    return PatchIndex(paths, **columns), said


def _column(values: np.ndarray, name: str, kind: Any, path: Path) -> np.ndarray:
    """Return a stored column in its type; a complex or text one is damage."""
    if values.dtype.kind not in "iufb" or values.ndim != (2 if name == "box" else 1):
        found = f"{values.dtype} of {values.ndim} dimensions"
        raise DataError(f"{path}: {name} is {found}, expected a column of numbers; run prep_data.py again")
    with np.errstate(invalid="ignore", over="ignore"):  # what does not fit is found by the checks that follow
        return values.astype(kind, copy=False)


def _read_jsonl(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    numbers: dict[str, int] = {}
    blocks: list[np.ndarray] = []
    rows: list[list[int]] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(_text_lines(path, file), 1):
            try:
                record = json.loads(line)
                sim = numbers.setdefault(str(record["sim_path"]), len(numbers))
                row = [sim, *(int(record[key]) for key in ("t", *BOX_KEYS))]
                if min(row) < -32768 or max(row) > 32767:
                    raise ValueError("a number beyond 16 bits")
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise DataError(
                    f"{path}, line {number}: {error!r}; expected an object with sim_path, t, "
                    f"{', '.join(BOX_KEYS)}; run prep_data.py again"
                ) from error
            rows.append(row)
            if len(rows) == _LINES_AT_ONCE:
                blocks.append(np.array(rows, dtype=np.int16))
                rows = []
    table = np.concatenate([*blocks, np.array(rows, dtype=np.int16).reshape(-1, 8)])
    return list(numbers), table[:, 0].copy(), table[:, 1].copy(), table[:, 2:].copy()


def _text_lines(path: Path, file: Any) -> Iterator[str]:
    try:
        yield from (line for line in file if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text ({error}); run prep_data.py again") from error
