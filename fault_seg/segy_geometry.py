"""From trace headers to a survey grid: which inline and which crossline each trace belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError, UserError
from fault_seg.segy_format import TRACE_HEADER_BYTES

# Below this share of cells with a trace, two header fields are no numbering of a grid.
_MIN_FILL = 0.05
FIELDS = {
    "field_record": (9, 4),
    "cdp": (21, 4),
    "trace_id": (29, 2),
    "offset": (37, 4),
    "scalar": (71, 2),
    "delay": (109, 2),
    "x": (181, 4),
    "y": (185, 4),
}


@dataclass(frozen=True)
class Geometry:
    """A grid of inlines and crosslines and the place of each trace in it.

    `ilines` [n3] and `xlines` [n2] are the numbers along the axes; `il_index` and `xl_index` [num_traces]
    are places in them; `source` says where the numbers come from.
    """

    source: str
    ilines: np.ndarray
    xlines: np.ndarray
    il_index: np.ndarray
    xl_index: np.ndarray


def header_fields(iline: int, xline: int) -> dict[str, tuple[int, int]]:
    """Return the trace header fields to read: `FIELDS` with the inline and crossline numbers.

    Raises:
        UserError: a byte position is outside the trace header.
    """
    for flag, byte in (("--iline", iline), ("--xline", xline)):
        if not 1 <= byte <= TRACE_HEADER_BYTES - 3:
            raise UserError(f"{flag} {byte}: expected a byte position from 1 to {TRACE_HEADER_BYTES - 3}")
    return {"iline": (iline, 4), "xline": (xline, 4), **FIELDS}


def find_geometry(path: Path, fields: Mapping[str, np.ndarray], iline: int, xline: int) -> Geometry:
    """Return the geometry of a post-stack file from its trace headers.

    The numbers at bytes `iline` and `xline` come first, then field record and CDP (bytes 9 and 21), then a
    grid in CDP coordinates; otherwise the traces are one 2-D line in file order.

    Args:
        path: the file, for messages.
        fields: the fields of `header_fields`, [num_traces] each.
        iline: first byte of the inline number.
        xline: first byte of the crossline number.

    Raises:
        DataError: two traces share an inline and crossline, or the file is pre-stack.
    """
    numbers = fields["iline"], fields["xline"]
    if _is_numbering(*numbers, strict=False):
        _refuse_repeated(path, fields, iline, xline)
        grid = _grid(f"inline byte {iline}, crossline byte {xline}", *numbers)
        if _is_filled(grid):
            return grid
    offsets = np.unique(fields["offset"])
    if len(offsets) > 1:
        raise DataError(
            f"{path}: pre-stack, {len(offsets)} offsets at byte 37 ({offsets[0]} to {offsets[-1]}) and no "
            f"grid at bytes {iline} and {xline}, expected one; stack it first, or pass --iline and --xline"
        )
    numbers = fields["field_record"], fields["cdp"]
    if _is_numbering(*numbers, strict=True):
        grid = _grid("inline byte 9, crossline byte 21", *numbers)
        if _is_filled(grid):
            return grid
    grid = _coordinate_grid(fields["x"].astype(np.float64), fields["y"].astype(np.float64))
    return grid or _line(len(fields["x"]))


def _is_numbering(il: np.ndarray, xl: np.ndarray, *, strict: bool) -> bool:
    """Return whether two fields can number a grid: not both constant, and no unset one with repetitions.

    `strict` asks for unique pairs in any case.
    """
    if len(il) == 1:
        return bool(il[0] or xl[0])
    constant_il, constant_xl = il.min() == il.max(), xl.min() == xl.max()
    if constant_il and constant_xl:
        return False
    unset = (constant_il and il[0] == 0) or (constant_xl and xl[0] == 0)
    return not (strict or unset) or len(_first_repeated(il, xl)) == 0


def _first_repeated(il: np.ndarray, xl: np.ndarray) -> np.ndarray:
    """Return the first two traces of the first (il, xl) that occurs again, or an empty array."""
    order = np.lexsort((np.arange(len(il)), xl, il))
    again = (np.diff(il[order]) == 0) & (np.diff(xl[order]) == 0)
    if not again.any():
        return np.empty(0, dtype=np.int64)
    second = order[1:][again].min()
    return np.array([np.flatnonzero((il == il[second]) & (xl == xl[second]))[0], second])


def _refuse_repeated(path: Path, fields: Mapping[str, np.ndarray], iline: int, xline: int) -> None:
    il, xl = fields["iline"], fields["xline"]
    pair = _first_repeated(il, xl)
    if len(pair) == 0:
        return
    first, second = (int(i) for i in pair)
    offsets = fields["offset"][(il == il[first]) & (xl == xl[first])]
    where = f"inline {il[first]}, crossline {xl[first]}"
    if offsets.min() != offsets.max():
        raise DataError(
            f"{path}: pre-stack, {len(np.unique(fields['offset']))} offsets at byte 37 "
            f"({offsets.min()} to {offsets.max()} at {where}), expected one; stack it first"
        )
    raise DataError(
        f"{path}: {where} is in traces {first + 1} and {second + 1} (bytes {iline} and {xline}), expected 1; "
        "pass the right byte positions with --iline and --xline, or remove the duplicate"
    )


def _axis(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers along an axis and the place of each trace; evenly spaced unless that doubles them.

    The step is the greatest common divisor of the gaps, so that a line that is missing altogether keeps its
    place; a stray number far away does not blow the grid up.
    """
    values, index = np.unique(numbers.astype(np.int64), return_inverse=True)
    if len(values) > 1:
        step = int(np.gcd.reduce(np.diff(values)))
        count = int(values[-1] - values[0]) // step + 1
        if count <= 2 * len(values):
            index = (numbers.astype(np.int64) - values[0]) // step
            values = values[0] + step * np.arange(count)
    return values, index


def _grid(source: str, il: np.ndarray, xl: np.ndarray) -> Geometry:
    ilines, il_index = _axis(il)
    xlines, xl_index = _axis(xl)
    return Geometry(source, ilines, xlines, il_index, xl_index)


def _is_filled(grid: Geometry) -> bool:
    """Return whether the traces fill a grid; a line across it (one trace a row and column) does not."""
    num_traces, num_cells = len(grid.il_index), len(grid.ilines) * len(grid.xlines)
    if min(len(grid.ilines), len(grid.xlines)) == 1:
        return True
    crossing = len(np.unique(grid.il_index)) == num_traces == len(np.unique(grid.xl_index))
    return not crossing and num_traces >= _MIN_FILL * num_cells


def _line(num_traces: int) -> Geometry:
    along = np.arange(num_traces)
    return Geometry(
        "2-D line in file order", np.ones(1, dtype=np.int64), along + 1, np.zeros_like(along), along
    )


def _coordinate_grid(x: np.ndarray, y: np.ndarray) -> Geometry | None:
    """Return the rectangular, maybe rotated grid of points (x, y) in file order, or None if they form none.

    The commonest step between successive traces is the crossline direction; distances across it fall on
    evenly spaced inlines. Both spacings are refined by a straight-line fit, then each point must lie within
    a third of a cell of its node.
    """
    step = np.stack([np.diff(x), np.diff(y)], axis=1)
    step = step[np.any(step != 0, axis=1)]
    if len(step) < 3:
        return None
    step[(step[:, 0] < 0) | ((step[:, 0] == 0) & (step[:, 1] < 0))] *= -1  # lines may run to and fro
    kinds, counts = np.unique(step, axis=0, return_counts=True)
    common = kinds[counts.argmax()]
    near = np.linalg.norm(step - common, axis=1) < 0.3 * np.linalg.norm(common)
    along = step[near].mean(axis=0)
    length = float(np.linalg.norm(along))
    u = ((x - x[0]) * along[0] + (y - y[0]) * along[1]) / length
    v = ((y - y[0]) * along[0] - (x - x[0]) * along[1]) / length
    sorted_v = np.sort(v)
    cuts = np.flatnonzero(np.diff(sorted_v) > 0.2 * length)
    if len(cuts) == 0:
        return None  # one straight line
    centres = np.array([part.mean() for part in np.split(sorted_v, cuts + 1)])
    il_index = _lattice(v, float(np.median(np.diff(centres))))
    xl_index = _lattice(u, length)
    if il_index is None or xl_index is None or len(_first_repeated(il_index, xl_index)):
        return None
    grid = _grid("CDP x and y, bytes 181 and 185", il_index + 1, xl_index + 1)
    return grid if _is_filled(grid) else None


def _lattice(values: np.ndarray, step: float) -> np.ndarray | None:
    """Return the node 0, 1, 2 ... of each value on a lattice of about `step`, or None where none fits."""
    start = values.min()
    for _ in range(2):
        node = np.rint((values - start) / step)
        if node.max() == 0:
            break
        step, start = np.polyfit(node, values, 1)
    if np.abs(values - start - step * node).max() > abs(step) / 3:
        return None
    return (node - node.min()).astype(np.int64)
