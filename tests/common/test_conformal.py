"""Split conformal prediction: the rank that covers, and binary numbers that would miss it by one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from common.conformal import conformal_rank


@pytest.mark.parametrize("percent", [5, 14, 28, 50, 55, 56, 80, 81, 90, 99])
def test_rank_is_exact(percent: int):
    """The rank is the ceiling of the exact product, for every number of scores."""
    for n in range(1, 2000):
        assert conformal_rank(n, percent / 100) == math.ceil(Fraction(percent, 100) * (n + 1))


def test_product_is_rounded_first():
    """25 * 0.56 is 14.000000000000002 in binary, and its ceiling another rank."""
    assert conformal_rank(24, 0.56) == 14 and math.ceil(25 * 0.56) == 15


def test_rank_covers():
    """The score of that rank holds a new one in just its share of cases."""
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random((4000, 19)), axis=1)
    held = rng.random(4000) <= scores[:, conformal_rank(19, 0.8) - 1]
    assert held.mean() == pytest.approx(16 / 20, abs=0.02)
