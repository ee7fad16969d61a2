"""The split is seeded, whole by group, never drawn twice, and large enough."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import DataError
from simulgen_vae.split import Split, make_split, read_split, write_split
from tests.simulgen_vae.cases_data import case


@pytest.fixture
def data(tmp_path):
    """Return 40 samples."""
    return case(tmp_path / "a.h5", num=40)


def parts(split: Split) -> list[set[int]]:
    """Return the three parts as sets."""
    return [set(p.tolist()) for p in (split.train, split.validation, split.test)]


def test_parts_are_disjoint_whole_and_seeded(data):
    """Each sample is in one part, sizes follow the fractions, the seed decides alone."""
    split = make_split(data, 0.1, 0.2, seed=3)
    train, validation, test = parts(split)
    assert (len(train), len(validation), len(test)) == (28, 4, 8)
    assert train | validation | test == set(range(40))
    assert parts(make_split(data, 0.1, 0.2, seed=3)) == [train, validation, test]
    assert parts(make_split(data, 0.1, 0.2, seed=4)) != [train, validation, test]


def test_test_rows_do_not_depend_on_the_validation_fraction(data):
    """Changing what chooses never moves a sample into or out of the test."""
    tests = [parts(make_split(data, f, 0.2))[2] for f in (0.05, 0.1, 0.3)]
    assert tests[0] == tests[1] == tests[2]


def test_groups_stay_together(data):
    """Samples of a group are on one side only."""
    group = np.arange(40) // 4
    split = make_split(data, 0.1, 0.2, group=group)
    labels = [set(group[list(p)]) for p in parts(split)]
    assert not labels[0] & labels[1] and not labels[0] & labels[2] and not labels[1] & labels[2]
    assert len(split.test) == 8


def test_a_given_split_is_kept(tmp_path):
    """What the file says holds; without validation rows these are drawn from training rows."""
    codes = np.repeat([0, 1, 2], [20, 8, 12])
    given = make_split(case(tmp_path / "a.h5", num=40, arrays={"split": codes}))
    assert np.array_equal(given.codes(40), codes)
    codes = np.repeat([0, 2], [30, 10])
    split = make_split(case(tmp_path / "b.h5", num=40, arrays={"split": codes}))
    assert np.array_equal(split.test, np.arange(30, 40)) and len(split.validation) == 3


def test_file_round_trip(data, tmp_path):
    """A written split comes back by sample ids, also when the samples stand in another order."""
    split = make_split(data)
    path = tmp_path / "split.json"
    write_split(path, split, data.sample_id)
    assert parts(read_split(path, data.sample_id)) == parts(split)
    assert parts(make_split(data, split_file=path, seed=9)) == parts(split)
    turned = read_split(path, data.sample_id[::-1])
    assert set((39 - turned.test).tolist()) == parts(split)[2]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "no valid JSON"),
        ('{"train": [1]}', "expected an object with the lists"),
        ('{"train": [0, 1], "validation": [1], "test": []}', "stands twice"),
        ('{"train": ["x"], "validation": [], "test": []}', "unknown sample 'x'"),
        ('{"train": [77], "validation": [], "test": []}', "unknown sample 77"),
    ],
)
def test_bad_split_files(data, tmp_path, document: str, message: str):
    """Damage, repetition and strangers are named."""
    path = tmp_path / "split.json"
    path.write_text(document)
    with pytest.raises(DataError, match=message):
        read_split(path, data.sample_id)


def test_missing_split_file(data, tmp_path):
    """A split file that is not there is a matter of data."""
    with pytest.raises(DataError, match="--split_file .*: no such file, expected a JSON file"):
        make_split(data, split_file=tmp_path / "absent.json")


def test_too_few_samples(data, tmp_path):
    """Fewer than 8 training or 2 validation samples are refused with what to do."""
    with pytest.raises(DataError, match="7 training and 2 validation"):
        rows = {"train": list(range(7)), "validation": [7, 8], "test": [9]}
        (tmp_path / "s.json").write_text(json.dumps(rows))
        make_split(data, split_file=tmp_path / "s.json")
    with pytest.raises(DataError, match="0 validation"):
        make_split(data, 0.0, 0.2)
