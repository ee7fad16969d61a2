"""Errors of predicted trajectories in physical units, and of their error bars; pure NumPy, float64.

Letters: n samples, T frames, M nodes, V fields. A trajectory is [T, M, V].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.metrics import relative_l2, rmse

Scores = dict[str, float]


def vrmse(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return RMSE / standard deviation of the truth; for a constant truth 0 when met, else infinite."""
    error, spread = rmse(prediction, truth), float(np.std(np.asarray(truth, dtype=np.float64)))
    if spread == 0:
        return 0.0 if error == 0 else math.inf
    return error / spread


def r2(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return 1 - sum (p - t)^2 / sum (t - mean t)^2, the coefficient of determination."""
    return 1.0 - vrmse(prediction, truth) ** 2


def macro_relative_l2(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over fields of each field's own relative L2: small fields count like large ones."""
    fields = range(truth.shape[-1])
    return float(np.mean([relative_l2(prediction[..., v], truth[..., v]) for v in fields]))


def largest_error(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, int, int, int]:
    """Return (max |p - t|, frame, node, field) of a trajectory."""
    error = np.abs(np.asarray(prediction, dtype=np.float64) - truth)
    frame, node, field = np.unravel_index(int(np.argmax(error)), error.shape)
    return float(error[frame, node, field]), int(frame), int(node), int(field)


def error_against_time(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return ||p_t - t_t|| / sqrt(mean over frames of ||t_t||^2), [T].

    The common denominator keeps frames in which nothing happens yet from dividing by nothing.
    """
    p, t = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    size = math.sqrt(float((t**2).sum()) / len(t))
    error = np.sqrt(((p - t) ** 2).reshape(len(t), -1).sum(1))
    return error / size if size > 0 else np.where(error > 0, np.inf, 0.0)


def score_sample(prediction: np.ndarray, truth: np.ndarray) -> Scores:
    """Return the measures of one trajectory."""
    worst, frame, node, field = largest_error(prediction, truth)
    return {
        "relative_l2": relative_l2(prediction, truth),
        "macro_relative_l2": macro_relative_l2(prediction, truth),
        "vrmse": vrmse(prediction, truth),
        "r2": r2(prediction, truth),
        "max_error": worst,
        "max_error_frame": float(frame),
        "max_error_node": float(node),
        "max_error_field": float(field),
    }


def summarise(scores: Sequence[Mapping[str, float]]) -> Scores:
    """Return mean, median, 95 % quantile and maximum of relative L2, and the means of the other measures."""
    errors = np.array([s["relative_l2"] for s in scores])
    summary = {
        "relative_l2": float(errors.mean()),
        "relative_l2_median": float(np.median(errors)),
        "relative_l2_p95": float(np.quantile(errors, 0.95)),
        "relative_l2_max": float(errors.max()),
    }
    for name in ("macro_relative_l2", "vrmse", "r2"):
        summary[name] = float(np.mean([s[name] for s in scores]))
    summary["max_error"] = float(max(s["max_error"] for s in scores))
    return summary


# --- what a field should obey ---


def conservation_error(values: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return cRMSE: the RMSE of the field's sum over nodes at each frame, and the truth's own change of it.

    Args:
        values: [T, M] or [T, M, V].
        truth: same shape; the second number is the RMS change of its sum from the first frame on.
    """
    p, t = (np.asarray(a, dtype=np.float64).sum(axis=1) for a in (values, truth))
    return float(np.sqrt(np.mean((p - t) ** 2))), float(np.sqrt(np.mean((t - t[:1]) ** 2)))


def boundary_error(values: np.ndarray, truth: np.ndarray, nodes: np.ndarray) -> tuple[float, float]:
    """Return bRMSE: the RMSE on the boundary `nodes`, and the truth's own RMS there; [T, M, V] both."""
    return rmse(values[:, nodes], truth[:, nodes]), rmse(truth[:, nodes], np.zeros_like(truth[:, nodes]))


def bound_violation(values: np.ndarray, low: float, high: float) -> float:
    """Return how far the worst value lies outside [low, high]; 0 when all lie inside."""
    values = np.asarray(values, dtype=np.float64)
    return float(max(0.0, low - values.min(), values.max() - high))


def edge_nodes(grid_shape: tuple[int, int]) -> np.ndarray:
    """Return the nodes on the rim of a regular grid, node = iy nx + ix."""
    ny, nx = grid_shape
    number = np.arange(ny * nx).reshape(ny, nx)
    inside = np.zeros((ny, nx), dtype=bool)
    inside[1:-1, 1:-1] = True
    return number[~inside]


# --- error bars ---


def coverage(prediction: np.ndarray, half_width: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of points with |t - p| <= half width."""
    return float(np.mean(np.abs(np.asarray(truth) - prediction) <= half_width))


def normal_crps(prediction: np.ndarray, std: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean continuous ranked probability score of N(p, std^2), in the field's unit.

    std (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), z = (t - p)/std   (Gneiting and Raftery 2007, equation 21)
    """
    from scipy.special import ndtr

    std = np.asarray(std, dtype=np.float64)
    z = (np.asarray(truth, dtype=np.float64) - prediction) / std
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return float(np.mean(std * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))))


def coverage_curve(
    ratios: np.ndarray, factor: float, nominal: float, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (levels, observed shares) of bands around the prediction that normal theory scales.

    The band of level p has the half width factor std q(p)/q(nominal), q the two-sided normal quantile: at
    `nominal` it is the calibrated band.

    Args:
        ratios: |t - p|/std of all points.
        factor: calibrated half width at `nominal`, in standard deviations.
        nominal: calibrated coverage.
        levels: shares 0..1.
    """
    from scipy.special import ndtri

    quantile = ndtri(0.5 + 0.5 * np.clip(levels, 0, 1 - 1e-12))
    widths = factor * quantile / ndtri(0.5 + 0.5 * nominal)
    ordered = np.sort(np.asarray(ratios, dtype=np.float64).reshape(-1))
    return levels, np.searchsorted(ordered, widths, side="right") / max(1, ordered.size)
