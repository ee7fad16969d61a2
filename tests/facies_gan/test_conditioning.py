"""Random data for training: true, counted, of every kind, and a function of their position."""

from __future__ import annotations

import numpy as np

from facies_gan.conditioning import ConditioningRule, draw_conditioning
from facies_gan.wells import WellSet
from tests.facies_gan.cases_gan import bands

LABELS = bands((40, 50), 4)
RULE = ConditioningRule()


def draws(count: int, rule: ConditioningRule = RULE, wells: WellSet | None = None) -> list[WellSet]:
    """Return the data of the first positions."""
    return [draw_conditioning(LABELS, wells, rule, 3, 0, i) for i in range(count)]


def test_data_are_the_sections_own():
    """Every datum has the facies of its cell, no cell comes twice, and a position always gives the same."""
    for i, wells in enumerate(draws(60)):
        assert wells.matches(LABELS).all()
        assert len({*zip(wells.rows.tolist(), wells.cols.tolist(), strict=True)}) == len(wells)
        again = draw_conditioning(LABELS, None, RULE, 3, 0, i)
        assert np.array_equal(wells.rows, again.rows) and np.array_equal(wells.cols, again.cols)


def test_shares_and_limits():
    """Three in ten samples have no data; wells number 1 to 8 and points 1 to 64, half each."""
    found = draws(600)
    none = np.mean([len(w) == 0 for w in found])
    points = [w for w in found if len(w) and np.bincount(w.well_id).max() == 1]
    wells = [w for w in found if len(w) and np.bincount(w.well_id).max() > 1]
    assert 0.24 < none < 0.36
    assert 0.7 < len(points) / len(wells) < 1.4
    assert max(len(w) for w in points) <= 64 and max(w.num_wells for w in wells) == 8
    assert not any(len(w) for w in draws(40, ConditioningRule(no_well_prob=1.0)))
    assert all(len(w) == 0 for w in draws(40, ConditioningRule(max_wells=0, max_points=0, no_well_prob=0.0)))


def test_wells_of_every_kind():
    """There are full and partial columns and dipping wells; rows only where the image is a map."""
    kinds = {"full": 0, "part": 0, "dipping": 0, "row": 0}
    for rule in (RULE, ConditioningRule(rows_too=True)):
        for wells in draws(200, rule):
            for number in np.unique(wells.well_id):
                rows, cols = wells.rows[wells.well_id == number], wells.cols[wells.well_id == number]
                if len(rows) < 4:
                    continue
                if len(set(cols)) == 1:
                    kinds["full" if len(rows) == 40 else "part"] += 1
                elif len(set(rows)) == 1:
                    kinds["row"] += 1
                else:
                    kinds["dipping"] += 1
        assert all(kinds[name] for name in ("full", "part", "dipping"))
        assert (kinds["row"] > 0) == rule.rows_too


def test_file_wells_and_fixed_columns():
    """Wells of files join every second sample and win in their cells; masked columns are always there."""
    own = WellSet.from_columns((LABELS + 1) % 4, [7])
    joined = [
        np.count_nonzero((w.cols == 7) & (w.facies != LABELS[w.rows, w.cols])) for w in draws(200, wells=own)
    ]
    assert 0.35 < np.mean([n == 40 for n in joined]) < 0.65
    always = draws(20, ConditioningRule(always=(11,), no_well_prob=1.0))
    assert all(np.count_nonzero(w.cols == 11) == 40 for w in always)
