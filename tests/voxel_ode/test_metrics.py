"""The measures of a rollout against values worked out by hand."""

import numpy as np
import pytest

from voxel_ode import metrics

MASKS = np.array([[[[1, 1, 1, 0]]], [[[1, 1, 0, 0]]], [[[0, 0, 1, 0]]]], dtype=np.uint8)


def test_each_channel_counts_on_its_own_domain():
    """Pressure counts on flow cells, temperature on active ones; what stands elsewhere changes nothing."""
    truth = np.full((2, 2, 1, 1, 4), 100.0)
    prediction = truth.copy()
    prediction[:, 0] += np.array([3.0, 4.0, 50.0, 1e9])
    prediction[1, 1] += np.array([6.0, 0.0, 0.0, 1e9])
    scores = metrics.step_scores(prediction, truth, MASKS)
    np.testing.assert_allclose(scores["rmse_P"], np.sqrt([12.5, 12.5]))
    np.testing.assert_allclose(scores["mae_P"], [3.5, 3.5])
    np.testing.assert_allclose(scores["rmse_T"], [0, np.sqrt(12)])
    np.testing.assert_allclose(scores["acc_abs5_T"], [1, 2 / 3])
    np.testing.assert_allclose(scores["acc_abs1_P"], [0, 0])
    np.testing.assert_allclose(scores["acc5pct_P"], [1, 1])
    np.testing.assert_allclose(scores["rel_l2_T"][1], 6 / np.sqrt(3 * 100**2))


def test_a_set_is_summed_as_mean_squares():
    """RMSE over simulations and years is the root of the mean square; shares are means."""
    sets = [{"rmse_T": np.array([3.0, 4.0]), "acc_abs5_T": np.array([1.0, 0.5])}] * 2
    scores = metrics.rollout_scores(sets)
    assert scores["rmse_T"] == pytest.approx(np.sqrt(12.5))
    assert scores["acc_abs5_T"] == pytest.approx(0.75)
    curve = metrics.mean_curve([sets[0], {"rmse_T": np.array([4.0])}], "rmse_T")
    np.testing.assert_allclose(curve, [np.sqrt(12.5), 4.0])


def test_scalar_scores():
    """A rate 10 % too high is outside 5 % and has relative error 0.1."""
    truth = np.array([10.0, 20.0])
    scores = metrics.scalar_scores(1.1 * truth, truth, np.array([1.0, 3.0]))
    assert scores == {"mse": 5.0, "acc5": 0.0, "rel": pytest.approx(0.1)}


def test_breakthrough_is_the_first_cold_year():
    """A drop of more than 1 deg C counts, exactly 1 does not; never is NaN and counts as years + 1."""
    initial = np.array([100.0, 100.0, 100.0])
    temperature = np.array([[100.0, 98.0, 99.0], [98.9, 99.5, 99.0]])
    years = metrics.breakthrough_year(temperature, initial)
    np.testing.assert_array_equal(years, [2, 1, np.nan])
    assert metrics.breakthrough_error(years, np.array([2, 3, 1.0]), 2) == pytest.approx((0 + 2 + 2) / 3)


def test_closed_box_has_no_imbalance():
    """Heat that is stored equals heat injected less heat produced; a leak shows as its share."""
    capacity = np.full((1, 1, 4), 2.0)
    temperature = np.array([10.0, 13.0])[:, None, None, None] * np.ones((1, 1, 1, 4))
    stored = metrics.stored_heat_j(temperature, capacity, MASKS[0])
    np.testing.assert_allclose(stored, [60, 78])
    assert metrics.energy_imbalance(stored, np.array([5.0]), np.array([2.0]), 6.0) == pytest.approx(0)
    assert metrics.energy_imbalance(stored, np.array([4.0]), np.array([2.0]), 6.0) == pytest.approx(0.5)
