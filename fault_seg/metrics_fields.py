"""Measures of the continuous outputs: fault angles, relative geological time (rgt), denoised image (dhr).

Cubes are NumPy arrays [n1, n2, n3] (z downwards, crossline y, inline x). Angles are in file units, degrees
over 180: dip in (0, 1), strike in [0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from fault_seg.angles import normal_from_angles
from fault_seg.metrics_fault import Array

HORIZON_LEVELS = np.arange(1, 11) / 11
ANGLE_BINS = 9000  # of 0..90 degrees: a pooled median is known to 0.005 degrees


def normal_angle_deg(fdip: Array, fstrike: Array, true_fdip: Array, true_fstrike: Array) -> Array:
    """Return the angle in degrees, 0..90, between the sign-free normals of two sets of (dip, strike)."""
    normals = [
        normal_from_angles(
            torch.as_tensor(d, dtype=torch.float64) * 180, torch.as_tensor(s, dtype=torch.float64) * 180
        ).numpy()
        for d, s in ((fdip, fstrike), (true_fdip, true_fstrike))
    ]
    # The cross product keeps small angles exact where the arc cosine of a float near 1 does not.
    sine = np.linalg.norm(np.cross(normals[0], normals[1], axis=0), axis=0)
    return np.degrees(np.arctan2(sine, np.abs((normals[0] * normals[1]).sum(axis=0))))


def strike_error_deg(fstrike: Array, true_fstrike: Array) -> Array:
    """Return the strike error modulo 180 degrees, 0..90."""
    difference = np.abs(np.asarray(fstrike, dtype=np.float64) - true_fstrike) % 1.0
    return 180 * np.minimum(difference, 1 - difference)


def dip_error_deg(fdip: Array, fstrike: Array, true_fdip: Array, true_fstrike: Array) -> Array:
    """Return the dip error in degrees, 0..180.

    (d, s) and (180 - d, s + 180) are one plane, so where the nearer way between the strikes crosses 180 the
    dip is mirrored first: dip 80 at strike 179 and dip 100 at strike 1 differ by 0.
    """
    difference = np.asarray(fstrike, dtype=np.float64) - true_fstrike
    crosses = np.abs(np.round(difference)).astype(np.int64) % 2 == 1
    dip = np.where(crosses, 1 - np.asarray(fdip, dtype=np.float64), fdip)
    return 180 * np.abs(dip - true_fdip)


def angle_scores(
    fdip: Array, fstrike: Array, true_fdip: Array, true_fstrike: Array, fault: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the angle measures over the true fault voxels; NaN when there are none.

    `fdip_mae` and `fstrike_mae` are the plain mean absolute errors in file units, which do not know that
    strike wraps; they stand beside the others for comparison with published figures.
    """
    names = (
        "angle_mean_deg",
        "angle_median_deg",
        "dip_error_deg",
        "strike_error_deg",
        "fdip_mae",
        "fstrike_mae",
    )
    if not fault.any():
        return dict.fromkeys(names, float("nan"))
    four = [np.asarray(a[fault], dtype=np.float64) for a in (fdip, fstrike, true_fdip, true_fstrike)]
    angle = normal_angle_deg(*four)
    values = (
        angle.mean(),
        np.median(angle),
        dip_error_deg(*four).mean(),
        strike_error_deg(four[1], four[3]).mean(),
        np.abs(four[0] - four[2]).mean(),
        np.abs(four[1] - four[3]).mean(),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def pooled_angle_median(
    predictions: Sequence[Mapping[str, Array]], truths: Sequence[Mapping[str, Array]]
) -> float:
    """Return the median angle in degrees between normals over the true fault voxels of all cubes together.

    Only counts in `ANGLE_BINS` equal bins are kept, whatever the number of cubes; the answer is the mean of
    the centres of the bins that hold the two middle voxels. NaN when no cube has a fault.
    """
    counts = np.zeros(ANGLE_BINS, np.int64)
    for found, true in zip(predictions, truths, strict=True):
        fault = true["fsem"] > 0.5
        four = (found["fdip"], found["fstrike"], true["fdip"], true["fstrike"])
        angle = normal_angle_deg(*(np.asarray(a[fault], dtype=np.float64) for a in four))
        counts += np.histogram(angle, ANGLE_BINS, (0, 90))[0]
    total = int(counts.sum())
    if not total:
        return float("nan")
    middle = np.searchsorted(counts.cumsum(), [(total - 1) // 2, total // 2], side="right")
    return float((middle.mean() + 0.5) * 90 / ANGLE_BINS)


def affine_fit(rgt: Array, true_rgt: Array) -> Array:
    """Return a * rgt + b with the least-squares (a, b) over the cube; a constant rgt gives the mean."""
    x = np.asarray(rgt, dtype=np.float64)
    y = np.asarray(true_rgt, dtype=np.float64)
    variance = x.var()
    slope = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance > 0 else 0.0
    return slope * (x - x.mean()) + y.mean()


def min_max(values: Array) -> Array:
    """Return `values` rescaled to 0..1; zeros when they are constant."""
    x = np.asarray(values, dtype=np.float64)
    span = x.max() - x.min()
    return (x - x.min()) / span if span > 0 else np.zeros_like(x)


def mean_absolute_error(values: Array, true_values: Array) -> float:
    """Return mean |values - true_values|."""
    return float(np.abs(np.asarray(values, dtype=np.float64) - true_values).mean())


def ssim(values: Array, true_values: Array, data_range: float = 1.0, window: int = 7) -> float:
    """Return the mean structural similarity over uniform windows (Wang et al. 2004, eq. 13), edges cut off.

    A window larger than an axis is cut to the largest odd length that fits it.
    """
    x, y = (np.asarray(a, dtype=np.float64) for a in (values, true_values))
    size = [min(window, n - 1 + n % 2) for n in x.shape]
    mean_x, mean_y, xx, yy, xy = (
        ndimage.uniform_filter(a, size)  # pyright: ignore[reportArgumentType] - one an axis is allowed
        for a in (x, y, x * x, y * y, x * y)
    )
    scale = np.prod(size) / max(np.prod(size) - 1, 1)  # unbiased variance
    var_x, var_y, cov = (
        scale * (a - b) for a, b in ((xx, mean_x**2), (yy, mean_y**2), (xy, mean_x * mean_y))
    )
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    score = (
        (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    inner = tuple(slice(s // 2, n - s // 2) for s, n in zip(size, x.shape, strict=True))
    return float(score[inner].mean())


def horizon_depth(rgt: Array, level: float) -> Array:
    """Return the depth in samples [n2, n3] where a trace first reaches `level`; NaN where it never does.

    Linear interpolation between the last sample below and the first sample at or above the level.
    """
    reached = (rgt[1:] >= level) & (rgt[:-1] < level)
    upper = reached.argmax(axis=0)
    above = np.take_along_axis(rgt, upper[None], axis=0)[0].astype(np.float64)
    below = np.take_along_axis(rgt, upper[None] + 1, axis=0)[0].astype(np.float64)
    found = reached.any(axis=0)
    step = np.where(found, below - above, 1.0)
    return np.where(found, upper + (level - above) / step, np.nan)


def horizon_errors(rgt: Array, true_rgt: Array, levels: Array = HORIZON_LEVELS) -> Array:
    """Return |depth error| in samples of all horizon picks that both cubes have, flat.

    `rgt` must be on the scale of `true_rgt` (see `affine_fit`).
    """
    errors = [np.abs(horizon_depth(rgt, v) - horizon_depth(true_rgt, v)) for v in levels]
    errors = np.stack(errors)
    return errors[np.isfinite(errors)]


def share_increasing(rgt: Array) -> float:
    """Return the share of vertical neighbour pairs in which rgt grows with depth."""
    return float((np.diff(rgt, axis=0) > 0).mean())


def rgt_scores(rgt: Array, true_rgt: Array) -> dict[str, float]:
    """Return the rgt measures of one cube; errors in rgt units (0..1) or in samples as named."""
    fitted = affine_fit(rgt, true_rgt)
    errors = horizon_errors(fitted, true_rgt)
    nothing = errors.size == 0
    return {
        "rgt_mae": mean_absolute_error(fitted, true_rgt),
        "rgt_mae_min_max": mean_absolute_error(min_max(rgt), true_rgt),
        "rgt_ssim": ssim(min_max(rgt), true_rgt),
        "horizon_median_samples": float("nan") if nothing else float(np.median(errors)),
        "horizon_p90_samples": float("nan") if nothing else float(np.percentile(errors, 90)),
        "rgt_share_increasing": share_increasing(rgt),
    }


def psnr(values: Array, true_values: Array) -> float:
    """Return 10 log10(range^2 / MSE) in dB with the range max - min of the truth; infinite if equal."""
    true = np.asarray(true_values, dtype=np.float64)
    error = ((values - true) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10((true.max() - true.min()) ** 2 / error))


def correlation(values: Array, true_values: Array) -> float:
    """Return Pearson's correlation over the cube; 0 when either is constant."""
    x = np.asarray(values, dtype=np.float64) - np.mean(values, dtype=np.float64)
    y = np.asarray(true_values, dtype=np.float64) - np.mean(true_values, dtype=np.float64)
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else 0.0


def bandwidth(values: Array) -> float:
    """Return the -6 dB bandwidth in cycles per sample of the mean vertical amplitude spectrum.

    The share of the spectrum (0..0.5, Hann taper, fourfold padding) at or above half its peak.
    """
    n1 = values.shape[0]
    trace = (values - values.mean(axis=0)) * np.hanning(n1 + 2)[1:-1, None, None]
    amplitude = np.abs(np.fft.rfft(trace, n=4 * n1, axis=0)).mean(axis=(1, 2))
    if amplitude.max() == 0:
        return 0.0
    return float(0.5 * (amplitude >= 0.5 * amplitude.max()).mean())


def bandwidth_ratio(values: Array, image: Array) -> float:
    """Return the bandwidth of `values` over that of the input `image`; NaN for a constant input."""
    base = bandwidth(image)
    return bandwidth(values) / base if base > 0 else float("nan")


def dhr_scores(dhr: Array, true_dhr: Array, image: Array | None = None) -> dict[str, float]:
    """Return the measures of the denoised image; the bandwidth ratio only when the input `image` is given."""
    scores = {"dhr_psnr_db": psnr(dhr, true_dhr), "dhr_correlation": correlation(dhr, true_dhr)}
    if image is not None:
        scores["dhr_bandwidth_ratio"] = bandwidth_ratio(dhr, image)
    return scores
