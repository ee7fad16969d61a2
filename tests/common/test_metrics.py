"""Promises of the shared measures: analytic values, invariances, empty cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from common import metrics


def noise(shape, seed=0) -> np.ndarray:
    """Return fixed standard normal noise."""
    return np.random.default_rng(seed).standard_normal(shape)


def test_errors_have_their_analytic_values():
    """RMSE, MAE, relative L2 and PSNR of hand-made errors."""
    truth = np.array([3.0, 4.0, 0.0, 0.0])
    prediction = truth + np.array([1.0, -1.0, 1.0, -3.0])
    assert metrics.rmse(prediction, truth) == pytest.approx(math.sqrt(3))
    assert metrics.mae(prediction, truth) == pytest.approx(1.5)
    assert metrics.relative_l2(prediction, truth) == pytest.approx(math.sqrt(12) / 5)
    assert metrics.psnr(truth + 0.1, truth, data_range=1.0) == pytest.approx(20.0)
    assert metrics.psnr(truth, truth, data_range=1.0) == math.inf


def test_mask_selects_cells_and_tensors_are_taken():
    """Cells outside the mask do not count, even NaN; CPU tensors give the same."""
    t = noise((4, 5))
    p = t + 2
    p[0] = np.nan
    mask = np.ones((4, 5), bool)
    mask[0] = False
    assert metrics.rmse(p, t, mask) == pytest.approx(2)
    assert metrics.mae(torch.from_numpy(p), torch.from_numpy(t), torch.from_numpy(mask)) == pytest.approx(2)


def test_relative_l2_does_not_see_units():
    """Scaling both fields leaves relative L2 as it is; zero truth is defined."""
    p, t = noise((9, 9), 1), noise((9, 9), 2)
    assert metrics.relative_l2(p * 1e5, t * 1e5) == pytest.approx(metrics.relative_l2(p, t))
    assert metrics.relative_l2([0, 0], [0, 0]) == 0 and metrics.relative_l2([1, 0], [0, 0]) == math.inf


def test_empty_selections_are_nan():
    """Where no cell counts, nothing is claimed."""
    nothing = np.zeros(3, bool)
    for measure in (metrics.rmse, metrics.mae, metrics.relative_l2):
        assert math.isnan(measure(np.ones(3), np.ones(3), nothing))
    assert math.isnan(metrics.accuracy_within(np.ones(3), np.ones(3), absolute=1, mask=nothing))
    assert math.isnan(metrics.psnr(np.ones(3), np.ones(3), 1.0, nothing))
    assert math.isnan(metrics.confusion([], []).accuracy)


def test_accuracy_within_tolerance():
    """Absolute and relative tolerances include their limit; NaN is a miss; the floor guards zero truth."""
    truth = np.array([100.0, 100.0, 100.0, 0.0])
    prediction = np.array([105.0, 94.0, np.nan, 1e-10])
    assert metrics.accuracy_within(prediction, truth, relative=0.05) == pytest.approx(0.5)
    assert metrics.accuracy_within(prediction, truth, absolute=6.0) == pytest.approx(0.75)
    assert metrics.accuracy_within(prediction, truth, absolute=1.0) == pytest.approx(0.25)


def brute_force_ssim(p, t, data_range, kernel) -> float:
    """Evaluate the definition window by window."""
    c1, c2, values = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, []
    for corner in itertools.product(*[range(n - k + 1) for n, k in zip(p.shape, kernel.shape, strict=True)]):
        cut = tuple(slice(i, i + k) for i, k in zip(corner, kernel.shape, strict=True))
        a, b = p[cut], t[cut]
        ma, mb = (kernel * a).sum(), (kernel * b).sum()
        va, vb = (kernel * (a - ma) ** 2).sum(), (kernel * (b - mb) ** 2).sum()
        cov = (kernel * (a - ma) * (b - mb)).sum()
        values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(15, 13), (8, 7, 9)])
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("offset", [0.2, 1000])
def test_ssim_equals_its_definition(shape, window, offset):
    """SSIM agrees with a loop over all windows, in 2-D and 3-D."""
    p, t = noise(shape, 1) + offset, noise(shape, 2) * 0.5 + offset
    x = np.arange(5) - 2
    line = np.exp(-(x**2) / (2 * 1.5**2)) if window == "gaussian" else np.ones(5)
    kernel = np.ones(())
    for _ in shape:
        kernel = kernel[..., None] * line
    expected = brute_force_ssim(p, t, 4.0, kernel / kernel.sum())
    assert metrics.ssim(p, t, 4.0, window=window, size=5) == pytest.approx(expected, rel=1e-7)


def test_ssim_is_symmetric_bounded_and_one_for_equal_images():
    """SSIM(x, x) = 1, SSIM(x, y) = SSIM(y, x), falls with noise, and is negative for an inverted image."""
    t = noise((40, 40))
    assert metrics.ssim(t, t, 6.0) == pytest.approx(1.0)
    values = [metrics.ssim(t + s * noise((40, 40), 5), t, 6.0) for s in (0.1, 0.5, 2.0)]
    assert 1 > values[0] > values[1] > values[2] > -1
    assert metrics.ssim(20 + t, 20 - t, 6.0) < 0
    p = t + noise((40, 40), 9)
    assert metrics.ssim(p, t, 6.0) == pytest.approx(metrics.ssim(t, p, 6.0))
    assert metrics.ssim(10 * p, 10 * t, 60.0) == pytest.approx(metrics.ssim(p, t, 6.0))


def test_ssim_on_thin_arrays_and_wrong_arguments():
    """The window shrinks to what fits; a range of 0, an even window and unequal shapes are refused."""
    assert metrics.ssim(np.ones((3, 40)), np.ones((3, 40)), 1.0) == pytest.approx(1.0)
    assert metrics.ssim(noise((1, 4)), noise((1, 4)), 1.0) == pytest.approx(1.0)
    for bad in ({"data_range": 0.0}, {"data_range": 1.0, "size": 4}, {"data_range": 1.0, "window": "box"}):
        with pytest.raises(ValueError):
            metrics.ssim(np.ones((9, 9)), np.ones((9, 9)), **bad)
    with pytest.raises(ValueError, match="differ"):
        metrics.ssim(np.ones((9, 9)), np.ones((9, 8)), 1.0)
    with pytest.raises(ValueError, match="differ"):
        metrics.rmse(np.ones(3), np.ones(4))


def test_confusion_counts_and_ratios():
    """A hand-counted case; Dice = F1 and IoU = Dice / (2 - Dice); counts of parts add up."""
    p = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    t = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    c = metrics.confusion(p, t)
    assert c == metrics.Confusion(2, 2, 1, 3)
    assert (c.precision, c.recall, c.accuracy) == (0.5, pytest.approx(2 / 3), 5 / 8)
    assert c.dice == pytest.approx(4 / 7) and c.iou == pytest.approx(0.4)
    assert c.iou == pytest.approx(c.dice / (2 - c.dice))
    assert metrics.dice(p, t) == c.dice and metrics.iou(t, p) == c.iou
    assert metrics.confusion(p[:3], t[:3]) + metrics.confusion(p[3:], t[3:]) == c
    assert metrics.confusion(p, t, mask=~p) == metrics.Confusion(0, 0, 1, 3)


def test_empty_masks_are_defined():
    """Both empty: 1. One empty: 0."""
    empty, some = np.zeros(4, bool), np.array([0, 1, 0, 0], bool)
    for value in (
        metrics.dice(empty, empty),
        metrics.iou(empty, empty),
        metrics.confusion(empty, empty).precision,
    ):
        assert value == 1.0
    one_sided = metrics.confusion(empty, some)
    assert (one_sided.precision, one_sided.recall, one_sided.dice, one_sided.iou) == (0, 0, 0, 0)
    assert metrics.confusion(some, empty).recall == 0
