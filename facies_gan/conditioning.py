"""Random hard data for training: wells and points cut from the section itself, new ones for every sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.noise import numpy_stream
from facies_gan.wells import WellSet

DEVIATED_SHARE = 0.25
FULL_SHARE = 0.5
FILE_SHARE = 0.5
MAX_DIP = 1.5  # columns a row, of a deviated well


@dataclass(frozen=True)
class ConditioningRule:
    """How often and how much a sample is conditioned.

    Attributes:
        max_wells: most random wells.
        max_points: most random points.
        no_well_prob: chance of no random data at all.
        rows_too: wells may run along rows (a map has no vertical direction).
        always: columns that are wells in every sample.
    """

    max_wells: int = 8
    max_points: int = 64
    no_well_prob: float = 0.3
    rows_too: bool = False
    always: tuple[int, ...] = ()


def well_path(shape: tuple[int, int], rng: np.random.Generator, *, along_rows: bool) -> np.ndarray:
    """Return cells [n, 2] (row, col) of a straight well: a whole line, a part of it, or a dipping one."""
    length, width = shape[::-1] if along_rows else shape
    first, last = 0, length
    if rng.random() >= FULL_SHARE:
        size = int(rng.integers(max(2, length // 8), length + 1))
        first = int(rng.integers(0, length - size + 1))
        last = first + size
    along = np.arange(first, last)
    dip = rng.uniform(-MAX_DIP, MAX_DIP) if rng.random() < DEVIATED_SHARE else 0.0
    across = np.rint(rng.integers(0, width) + dip * (along - first)).astype(np.int64)
    cells = np.stack([along, across], axis=1)[(across >= 0) & (across < width)]
    return cells[:, ::-1] if along_rows else cells


def random_cells(
    shape: tuple[int, int], rule: ConditioningRule, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the random wells of a sample, each cells [n, 2]; half of the samples with data get points."""
    if rng.random() < rule.no_well_prob:
        return []
    points = rng.random() < 0.5
    if (points or rule.max_wells == 0) and rule.max_points > 0:
        count = min(int(rng.integers(1, rule.max_points + 1)), shape[0] * shape[1])
        flat = rng.choice(shape[0] * shape[1], size=count, replace=False)
        return [np.array([divmod(int(cell), shape[1])]) for cell in flat]
    if rule.max_wells == 0:
        return []
    count = int(rng.integers(1, rule.max_wells + 1))
    along_rows = rule.rows_too and rng.random() < 0.5
    return [well_path(shape, rng, along_rows=along_rows) for _ in range(count)]


def draw_conditioning(
    labels: np.ndarray,
    file_wells: WellSet | None,
    rule: ConditioningRule,
    seed: int,
    *position: int,
) -> WellSet:
    """Return the data of the training sample at `position`, a pure function of (seed, position).

    Random data are true to the section; file wells join with probability one half and win where both know a
    cell; the columns `always` come last.

    Args:
        labels: the section [H, W].
        file_wells: its own data.
        rule: how much to draw.
        seed: of the run.
        position: group and place in the row of all samples.
    """
    rng = numpy_stream(seed, "training data", *position)
    wells = [cells for cells in random_cells(labels.shape, rule, rng) if len(cells)]
    found = WellSet.empty()
    if wells:
        cells = np.concatenate(wells)
        ids = np.repeat(np.arange(len(wells)), [len(part) for part in wells])
        rows, cols = cells[:, 0], cells[:, 1]
        names = tuple(f"random {i}" for i in range(len(wells)))
        found = WellSet.from_cells(rows, cols, labels[rows, cols], ids, names)
    if file_wells is not None and rng.random() < FILE_SHARE:
        found = file_wells.merged(found)
    return found.merged(WellSet.from_columns(labels, rule.always)) if rule.always else found
