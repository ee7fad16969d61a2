"""Measures that several packages use: pure functions on arrays, in float64.

Every function takes NumPy arrays (or what `np.asarray` makes one of: CPU tensors, lists). A `mask` selects
the cells that count. Where no cell counts, an error measure is NaN: nothing was measured.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage


def _selected(
    prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    p, t = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} differ in shape")
    if mask is None:
        return p.reshape(-1), t.reshape(-1)
    inside = np.broadcast_to(np.asarray(mask, dtype=bool), p.shape)
    return p[inside], t[inside]


def rmse(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return the root mean square error, sqrt(mean (p - t)^2), in the data's unit."""
    p, t = _selected(prediction, truth, mask)
    return float(np.sqrt(np.mean((p - t) ** 2))) if p.size else math.nan


def mae(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return the mean absolute error, mean |p - t|, in the data's unit."""
    p, t = _selected(prediction, truth, mask)
    return float(np.mean(np.abs(p - t))) if p.size else math.nan


def relative_l2(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return ||p - t|| / ||t||. For t = 0 it is 0 when p = 0 too, else infinite."""
    p, t = _selected(prediction, truth, mask)
    if p.size == 0:
        return math.nan
    error, size = float(np.linalg.norm(p - t)), float(np.linalg.norm(t))
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def psnr(prediction: ArrayLike, truth: ArrayLike, data_range: float, mask: ArrayLike | None = None) -> float:
    """Return the peak signal-to-noise ratio 20 log10(data_range / RMSE) in dB; infinite when equal."""
    _require_range(data_range)
    error = rmse(prediction, truth, mask)
    return math.inf if error == 0 else 20 * math.log10(data_range / error)


def accuracy_within(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    absolute: float = 0.0,
    relative: float = 0.0,
    floor: float = 1e-8,
    mask: ArrayLike | None = None,
) -> float:
    """Return the share of cells with |p - t| <= absolute + relative * max(|t|, floor), 0..1.

    NaN predictions count as misses.
    """
    p, t = _selected(prediction, truth, mask)
    if p.size == 0:
        return math.nan
    return float(np.mean(np.abs(p - t) <= absolute + relative * np.maximum(np.abs(t), floor)))


def ssim(
    prediction: ArrayLike,
    truth: ArrayLike,
    data_range: float,
    *,
    window: str = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
) -> float:
    """Return the structural similarity of two images or volumes, mean over windows that lie inside.

    SSIM = (2 mu_p mu_t + c1)(2 s_pt + c2) / ((mu_p^2 + mu_t^2 + c1)(s_p^2 + s_t^2 + c2)),
    c1 = (0.01 L)^2, c2 = (0.03 L)^2, L = `data_range`; means, variances and covariance are weighted by the
    window, whose weights sum to 1 (Wang, Bovik, Sheikh and Simoncelli 2004, equations 13 to 16).

    Args:
        prediction: [..] of any number of axes, usually [Z, X] or [Z, Y, X].
        truth: same shape.
        data_range: L, the span of possible values.
        window: "gaussian" (standard deviation `sigma` cells) or "uniform".
        size: window length on each axis, odd; shrunk to the largest odd length that fits a thin axis.
        sigma: of the Gaussian, in cells.

    Raises:
        ValueError: shapes differ, the range is not positive, the window is unknown or even.
    """
    shape = np.shape(truth)
    p, t = (x.reshape(shape) for x in _selected(prediction, truth, None))
    _require_range(data_range)
    if window not in ("gaussian", "uniform") or size % 2 == 0 or size < 1:
        raise ValueError(f"window {window!r} of size {size}: expected gaussian or uniform, odd")
    if p.size == 0:
        return math.nan
    kernels = [_window(min(size, n - 1 + n % 2), window, sigma) for n in p.shape]

    # Variances are shift-invariant; without a common offset their difference of squares stays accurate.
    offset = float(t.mean())
    mu_p, mu_t = _local_mean(p - offset, kernels), _local_mean(t - offset, kernels)
    var_p = _local_mean((p - offset) ** 2, kernels) - mu_p**2
    var_t = _local_mean((t - offset) ** 2, kernels) - mu_t**2
    covariance = _local_mean((p - offset) * (t - offset), kernels) - mu_p * mu_t
    mu_p, mu_t = mu_p + offset, mu_t + offset
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mu_p * mu_t + c1) * (2 * covariance + c2)
    return float(np.mean(top / ((mu_p**2 + mu_t**2 + c1) * (var_p + var_t + c2))))


def _local_mean(x: np.ndarray, kernels: list[np.ndarray]) -> np.ndarray:
    """Return the weighted means of all windows that lie inside."""
    for axis, kernel in enumerate(kernels):
        margin = len(kernel) // 2
        x = ndimage.correlate1d(x, kernel, axis=axis)
        x = x[(slice(None),) * axis + (slice(margin, x.shape[axis] - margin),)]
    return x


def _window(size: int, window: str, sigma: float) -> np.ndarray:
    x = np.arange(size) - size // 2
    weights = np.exp(-(x**2) / (2 * sigma**2)) if window == "gaussian" else np.ones(size)
    return weights / weights.sum()


def _require_range(data_range: float) -> None:
    if not data_range > 0:
        raise ValueError(f"data_range {data_range}: expected the positive span of possible values")


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of a binary decision; counts of several samples add with `+`.

    A ratio 0/0 is 1 when prediction and truth are both empty (nothing to find, nothing found), else 0.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    def __add__(self, other: Confusion) -> Confusion:
        """Return the counts of both samples together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Confusion(*(a + b for a, b in pairs))

    def _ratio(self, top: float, bottom: float) -> float:
        if bottom:
            return top / bottom
        return 1.0 if self.true_positive + self.false_positive + self.false_negative == 0 else 0.0

    @property
    def precision(self) -> float:
        """TP / (TP + FP): how much of what was found is real."""
        return self._ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """TP / (TP + FN): how much of what is real was found."""
        return self._ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), the F1 score."""
        hits = 2 * self.true_positive
        return self._ratio(hits, hits + self.false_positive + self.false_negative)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), intersection over union."""
        union = self.true_positive + self.false_positive + self.false_negative
        return self._ratio(self.true_positive, union)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all; NaN when nothing was counted."""
        total = sum(dataclasses.astuple(self))
        return (self.true_positive + self.true_negative) / total if total else math.nan


def confusion(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> Confusion:
    """Return the counts for two boolean arrays of one shape."""
    p, t = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    if p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} differ in shape")
    inside = np.True_ if mask is None else np.broadcast_to(np.asarray(mask, dtype=bool), p.shape)
    counts = (np.count_nonzero(x & inside) for x in (p & t, p & ~t, ~p & t, ~p & ~t))
    return Confusion(*(int(n) for n in counts))


def dice(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return 2 |P and T| / (|P| + |T|) of two boolean arrays; 1 when both are empty."""
    return confusion(prediction, truth, mask).dice


def iou(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return |P and T| / |P or T| of two boolean arrays; 1 when both are empty."""
    return confusion(prediction, truth, mask).iou
