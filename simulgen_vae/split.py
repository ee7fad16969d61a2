"""Which samples train, which choose, which judge: seeded, by group, stored, never made twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import read_json, write_json
from common.noise import numpy_stream
from simulgen_vae.field_data import FieldData
from simulgen_vae.paths import existing_file

PARTS = ("train", "validation", "test")
MIN_TRAIN, MIN_VALIDATION = 8, 2


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the three parts, sorted.

    Attributes:
        train: int64 rows that anything is fitted on.
        validation: int64 rows that choose among models.
        test: int64 rows that are only ever evaluated.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        for name in PARTS:
            object.__setattr__(self, name, np.sort(np.asarray(getattr(self, name), dtype=np.int64)))

    def codes(self, num_samples: int) -> np.ndarray:
        """Return int8 [N]: 0 train, 1 validation, 2 test, -1 unused."""
        codes = np.full(num_samples, -1, dtype=np.int8)
        for code, name in enumerate(PARTS):
            codes[getattr(self, name)] = code
        return codes

    def require_enough(self, where: str) -> None:
        """Raise DataError when there is too little to train on or to choose with."""
        if len(self.train) < MIN_TRAIN or len(self.validation) < MIN_VALIDATION:
            raise DataError(
                f"{where}: {len(self.train)} training and {len(self.validation)} validation samples, "
                f"expected at least {MIN_TRAIN} and {MIN_VALIDATION}; add runs or change --val_fraction or "
                "--test_fraction"
            )


def make_split(
    data: FieldData,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    split_file: str | Path = "",
    group: np.ndarray | None = None,
) -> Split:
    """Return the split of `data`: that of `split_file`, else the file's own, else a seeded one by group.

    A file that marks training and test samples only keeps its test samples; validation samples are then drawn
    from the training ones. `group` [N] overrides the groups of the file.

    Raises:
        DataError: a part is too small, or the split file does not fit.
    """
    groups = data.group if group is None else np.asarray(group)
    if split_file:
        split = read_split(split_file, data.sample_id)
    elif data.given_split is not None:
        split = _from_codes(data, val_fraction, seed, groups)
    else:
        rows = np.arange(data.num_samples)
        num_test, num_val = (round(f * data.num_samples) for f in (test_fraction, val_fraction))
        test, rest = _draw(rows, num_test, groups, seed, "test")
        validation, train = _draw(rest, num_val, groups, seed, "validation")
        split = Split(train, validation, test)
    split.require_enough(str(split_file or data.path))
    return split


def _from_codes(data: FieldData, val_fraction: float, seed: int, groups: np.ndarray | None) -> Split:
    codes = np.asarray(data.given_split)
    if not np.isin(codes, (0, 1, 2)).all():
        raise DataError(f"{data.path}: split holds {np.unique(codes)}, expected 0 to 2 for {PARTS}")
    train, validation, test = (np.flatnonzero(codes == k) for k in range(3))
    if not len(validation):
        validation, train = _draw(train, round(val_fraction * len(train)), groups, seed, "validation")
    return Split(train, validation, test)


def _draw(
    rows: np.ndarray, count: int, groups: np.ndarray | None, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (drawn, left): whole groups in random order until `count` rows are drawn."""
    labels = rows if groups is None else groups[rows]
    order = numpy_stream(seed, f"split {purpose}").permutation(np.unique(labels))
    chosen: list[Any] = []
    total = 0
    for label in order:
        if total >= count:
            break
        chosen.append(label)
        total += int((labels == label).sum()) if groups is not None else 1
    taken = np.isin(labels, chosen)
    return rows[taken], rows[~taken]


def write_split(path: str | Path, split: Split, sample_id: Sequence[str]) -> None:
    """Write the split as JSON: part -> sample ids."""
    write_json(path, {name: [sample_id[i] for i in getattr(split, name)] for name in PARTS})


def read_split(path: str | Path, sample_id: Sequence[str]) -> Split:
    """Read a split that `write_split` wrote, or one of row numbers.

    Raises:
        UserError: there is no such file.
        DataError: it is no split of these samples.
    """
    existing_file(path, "--split_file", "a JSON file with the lists of each part")
    document = read_json(path, f"expected lists {', '.join(PARTS)}")
    if not isinstance(document, dict) or not all(isinstance(document.get(k), list) for k in PARTS):
        raise DataError(f"{path}: expected an object with the lists {', '.join(PARTS)}")
    row_of = {name: i for i, name in enumerate(sample_id)}
    parts = []
    for name in PARTS:
        rows = [_row(value, row_of, path) for value in document[name]]
        parts.append(np.array(rows, dtype=np.int64))
    every = np.concatenate(parts)
    if len(np.unique(every)) != len(every):
        raise DataError(f"{path}: a sample stands twice, expected each in one part only")
    return Split(*parts)


def _row(value: Any, row_of: dict[str, int], path: str | Path) -> int:
    if isinstance(value, str) and value in row_of:
        return row_of[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(row_of):
        return value
    raise DataError(f"{path}: unknown sample {value!r}, expected ids or rows 0..{len(row_of) - 1}")
