"""Measures of trajectories: answers that can be written down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulgen_vae import metrics


def field() -> np.ndarray:
    """Return a field [3, 4, 2] whose second component is a hundred times smaller."""
    values = np.random.default_rng(0).standard_normal((3, 4, 2))
    return values * [100.0, 1.0]


def test_a_scaled_prediction():
    """A prediction of 1.1 times the truth has 10 % error in every norm that is relative."""
    truth = field()
    scores = metrics.score_sample(1.1 * truth, truth)
    assert scores["relative_l2"] == pytest.approx(0.1) == scores["macro_relative_l2"]
    assert scores["r2"] == pytest.approx(1 - (0.1 * np.sqrt((truth**2).mean()) / truth.std()) ** 2)
    assert scores["max_error"] == pytest.approx(0.1 * np.abs(truth).max())


def test_small_fields_count():
    """Losing the small field hardly moves the total error, and moves the mean over fields by a half."""
    truth = field()
    found = truth * [1.0, 0.0]
    assert metrics.score_sample(found, truth)["relative_l2"] < 0.05
    assert metrics.macro_relative_l2(found, truth) == pytest.approx(0.5)


def test_the_largest_error_is_found():
    """Frame, node and field of the largest error are those where it was put."""
    truth = field()
    found = truth.copy()
    found[1, 3, 0] -= 7.0
    assert metrics.largest_error(found, truth) == (pytest.approx(7.0), 1, 3, 0)


def test_error_against_time():
    """The frames' squared errors add up to the square of the whole, and empty frames divide by nothing."""
    truth = field()
    truth[0] = 0.0
    found = truth + np.random.default_rng(1).standard_normal(truth.shape)
    curve = metrics.error_against_time(found, truth)
    assert np.isfinite(curve).all()
    assert (curve**2).mean() == pytest.approx(metrics.score_sample(found, truth)["relative_l2"] ** 2)


def test_a_constant_truth():
    """VRMSE of a constant field is 0 when it is met, infinite when it is not."""
    flat = np.ones((2, 3, 1))
    assert metrics.vrmse(flat, flat) == 0.0 and metrics.vrmse(flat + 1, flat) == math.inf


def test_summary_keeps_the_worst():
    """Mean, median, 95 % quantile and maximum of known errors."""
    scores = [
        {"relative_l2": e, "macro_relative_l2": e, "vrmse": e, "r2": 1 - e, "max_error": 10 * e}
        for e in np.linspace(0, 1, 101)
    ]
    found = metrics.summarise(scores)
    assert found["relative_l2"] == pytest.approx(0.5) == found["relative_l2_median"]
    assert found["relative_l2_p95"] == pytest.approx(0.95) and found["relative_l2_max"] == 1.0
    assert found["max_error"] == 10.0


def test_constraints_by_hand():
    """Conservation sees what is added, the boundary sees its own nodes, bounds see the worst value."""
    truth = np.zeros((2, 12, 1))
    truth[1] = 1.0
    found = truth.copy()
    found[1, 5] += 3.0
    conserved, change = metrics.conservation_error(found, truth)
    assert conserved == pytest.approx(3.0 / math.sqrt(2)) and change == pytest.approx(12 / math.sqrt(2))
    edge = metrics.edge_nodes((3, 4))
    assert sorted(set(range(12)) - set(edge.tolist())) == [5, 6]
    assert metrics.boundary_error(found, truth, edge)[0] == 0.0
    assert metrics.bound_violation(found, 0.0, 1.0) == pytest.approx(3.0)
    assert metrics.bound_violation(truth, 0.0, 1.0) == 0.0


def test_crps_of_a_normal():
    """CRPS is std (sqrt 2 - 1)/sqrt pi at the centre, the distance far away, least at the truth's std."""
    zero = np.zeros(1)
    centre = metrics.normal_crps(zero, zero + 2.0, zero)
    assert centre == pytest.approx(2 * (math.sqrt(2) - 1) / math.sqrt(math.pi))
    assert metrics.normal_crps(zero, zero + 0.01, zero + 5.0) == pytest.approx(5.0, rel=2e-3)
    truth = np.random.default_rng(0).standard_normal(20000)
    scores = [metrics.normal_crps(0 * truth, np.full_like(truth, s), truth) for s in (0.5, 1.0, 2.0)]
    assert scores[1] == min(scores)


def test_coverage_curve_of_normal_errors():
    """Normal errors with the right std lie on the diagonal, and coverage counts points inside."""
    ratios = np.abs(np.random.default_rng(0).standard_normal(100_000))
    levels = np.linspace(0.1, 0.9, 9)
    _, observed = metrics.coverage_curve(ratios, 1.6449, 0.9, levels)
    assert np.abs(observed - levels).max() < 0.01
    assert metrics.coverage(np.zeros(4), np.ones(4), np.array([0.5, -0.9, 1.0, 2.0])) == 0.75
