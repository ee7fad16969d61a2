"""Measures of a fault mask or a fault probability against labels, voxel by voxel and with a tolerance.

Cubes are NumPy arrays [n1, n2, n3] (z, crossline, inline). Labels are 1 fault, 0 no fault, -1 unlabelled;
unlabelled voxels count nowhere. Only the fault class is scored, never a mean with the background. Two empty
masks agree (ratios 1), one empty mask fails (ratios 0); measures without any meaning then are NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Counts = tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]
Scalar = TypeVar("Scalar", bound=np.generic)


def labelled(probability: Array, labels: Array) -> tuple[Array, Mask]:
    """Return the probabilities and the boolean truth of the labelled voxels, both flat."""
    known = labels >= 0
    return probability[known], labels[known] > 0.5


def fault_masks(probability: Array, labels: Array, threshold: float) -> tuple[Mask, Mask]:
    """Return the predicted and the true mask as cubes, both False where the label is -1."""
    return (probability >= threshold) & (labels >= 0), labels > 0.5


def ratio(numerator: float | np.integer, denominator: float | np.integer, *, other_empty: bool) -> float:
    """Return numerator / denominator; for an empty denominator 1 when the other mask is empty too, else 0."""
    if denominator > 0:
        return float(numerator / denominator)
    return 1.0 if other_empty else 0.0


def precision(predicted: Mask, true: Mask) -> float:
    """Return |P and T| / |P|."""
    return ratio(np.count_nonzero(predicted & true), np.count_nonzero(predicted), other_empty=not true.any())


def recall(predicted: Mask, true: Mask) -> float:
    """Return |P and T| / |T|."""
    return precision(true, predicted)


def f1_of(precision_value: float, recall_value: float) -> float:
    """Return the harmonic mean of precision and recall, 0 when both are 0."""
    total = precision_value + recall_value
    return 2 * precision_value * recall_value / total if total > 0 else 0.0


def f1(predicted: Mask, true: Mask) -> float:
    """Return F1 = 2 P R / (P + R) from precision P and recall R."""
    return f1_of(precision(predicted, true), recall(predicted, true))


def iou(predicted: Mask, true: Mask) -> float:
    """Return |P and T| / |P or T| (Jaccard)."""
    return ratio(np.count_nonzero(predicted & true), np.count_nonzero(predicted | true), other_empty=True)


def dice(predicted: Mask, true: Mask) -> float:
    """Return 2 |P and T| / (|P| + |T|)."""
    both = np.count_nonzero(predicted & true)
    return ratio(2 * both, np.count_nonzero(predicted) + np.count_nonzero(true), other_empty=True)


def average_precision(probability: Array, labels: Array) -> float:
    """Return AP = sum_i (R_i - R_(i-1)) P_i over falling thresholds; NaN without any fault voxel.

    Recall only moves at the probabilities of fault voxels, so two sorts give the whole sum. Ties share one
    threshold, so a constant probability scores the base rate.
    """
    p, true = labelled(probability, labels)
    positive = np.sort(p[true])
    if positive.size == 0:
        return float("nan")
    everything = np.sort(p)
    thresholds, hits_at = np.unique(positive, return_counts=True)
    hits = positive.size - np.searchsorted(positive, thresholds, side="left")
    called = everything.size - np.searchsorted(everything, thresholds, side="left")
    return float(np.sum(hits_at * (hits / called)) / positive.size)


def hd95(predicted: Mask, true: Mask) -> float:
    """Return the 95th percentile Hausdorff distance in voxels; NaN when a mask is empty.

    The larger of the two directed 95th percentiles, over the border voxels of either mask.
    """
    if not (predicted.any() and true.any()):
        return float("nan")
    borders = [mask & ~np.asarray(ndimage.binary_erosion(mask), dtype=bool) for mask in (predicted, true)]
    directed = [
        np.percentile(np.asarray(ndimage.distance_transform_edt(~there))[here], 95)
        for here, there in (borders, borders[::-1])
    ]
    return float(max(directed))


def expected_calibration_error(probability: Array, labels: Array, bins: int = 15) -> float:
    """Return sum_b (N_b / N) |mean p - fault share| over equal-width bins of p (Guo et al. 2017)."""
    p, true = labelled(probability, labels)
    if p.size == 0:
        return float("nan")
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    sum_p = np.bincount(which, weights=p, minlength=bins)
    sum_true = np.bincount(which, weights=true, minlength=bins)
    return float(np.abs(sum_p - sum_true).sum() / p.size)


def ball_offsets(radius: float, dimensions: int) -> list[tuple[int, ...]]:
    """Return the integer offsets within Euclidean `radius`; radius 2 gives 33 in 3-D and 13 in 2-D."""
    reach = range(-int(radius), int(radius) + 1)
    return [o for o in itertools.product(reach, repeat=dimensions) if sum(i * i for i in o) <= radius**2]


def ball_maximum(values: NDArray[Scalar], radius: float, axes: Sequence[int] = (0, 1, 2)) -> NDArray[Scalar]:
    """Return the maximum of `values` within Euclidean `radius` along `axes`, same shape and dtype."""
    reach = int(radius)
    width = [(reach, reach) if axis in axes else (0, 0) for axis in range(values.ndim)]
    lowest = False if values.dtype == np.bool_ else -np.inf
    padded = np.pad(values, width, constant_values=lowest)
    result = values.copy()
    for offset in ball_offsets(radius, len(axes)):
        start = [0] * values.ndim
        for axis, step in zip(axes, offset, strict=True):
            start[axis] = step + reach
        window = tuple(slice(s, s + n) for s, n in zip(start, values.shape, strict=True))
        np.maximum(result, padded[window], out=result)
    return result


def tolerant_iou_of(f1_value: float) -> float:
    """Return the intersection over union that belongs to an F1: F1 / (2 - F1)."""
    return f1_value / (2 - f1_value)


def tolerant_f1(predicted: Mask, true: Mask, radius: float = 2) -> float:
    """Return F1 where a voxel is a hit when the other set has a voxel within Euclidean `radius`."""
    return f1_of(
        precision(predicted, ball_maximum(true, radius) if true.any() else true),
        precision(true, ball_maximum(predicted, radius) if predicted.any() else predicted),
    )


def count_above(values: Array, thresholds: Array) -> NDArray[np.int64]:
    """Return how many `values` are >= each threshold."""
    return values.size - np.searchsorted(np.sort(values, axis=None), thresholds, side="left")


def tolerant_counts(probability: Array, labels: Array, thresholds: Array, radius: float) -> Counts:
    """Return (hits among predicted, predicted, hits among true, true), each an array over `thresholds`.

    The maximum of p within the ball turns "some predicted voxel is near" into one comparison, so all
    thresholds cost one pass. `radius` 0 gives the plain counts.
    """
    true = labels > 0.5
    p = np.where(labels >= 0, probability, -np.inf)
    near_true = ball_maximum(true, radius) & (labels >= 0)
    best_near = ball_maximum(p, radius)
    return (
        count_above(p[near_true], thresholds),
        count_above(p[labels >= 0], thresholds),
        count_above(best_near[true], thresholds),
        np.full(len(thresholds), np.count_nonzero(true)),
    )


def f1_from_counts(counts: Sequence[NDArray[np.integer]]) -> Array:
    """Return F1 from the four arrays of counts, with the same rule for empty sets as `f1`."""
    hits_predicted, predicted, hits_true, true = (np.asarray(c, dtype=np.float64) for c in counts)
    p = np.divide(hits_predicted, predicted, out=(true == 0).astype(np.float64), where=predicted > 0)
    r = np.divide(hits_true, true, out=(predicted == 0).astype(np.float64), where=true > 0)
    return np.divide(2 * p * r, p + r, out=np.zeros_like(p), where=p + r > 0)
