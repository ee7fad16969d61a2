"""Measures of a velocity section: g the truth, p the prediction, both [Z, X] in km/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common import metrics

M_S = 1000.0


def mape(p: np.ndarray, g: np.ndarray) -> float:
    """Return mean |g - p| / (|g| + 1e-8), a fraction."""
    return float(np.mean(np.abs(g - p) / (np.abs(g) + 1e-8)))


def gradient_mae(p: np.ndarray, g: np.ndarray) -> float:
    """Return the mean over both axes of |D p - D g|, m/s a cell."""
    return M_S * float(np.mean([np.abs(np.diff(p - g, axis=a)).mean() for a in (-2, -1)]))


def section_scores(p: np.ndarray, g: np.ndarray, bounds: tuple[float, float]) -> dict[str, float]:
    """Return mape (fraction), mae, rmse (m/s), ssim and gradient_mae (m/s a cell) of one section."""
    return {
        "mape": mape(p, g),
        "mae": M_S * metrics.mae(p, g),
        "rmse": M_S * metrics.rmse(p, g),
        "ssim": metrics.ssim(p, g, bounds[1] - bounds[0]),
        "gradient_mae": gradient_mae(p, g),
    }


def waveform_misfit(simulated: np.ndarray, observed: np.ndarray) -> float:
    """Return ||F(v) - d|| / ||d|| of the gathers [S, T, R] of one sample."""
    return metrics.relative_l2(simulated, observed)


def coverage(p: np.ndarray, g: np.ndarray, half_width: np.ndarray) -> float:
    """Return the share of cells with |g - p| <= half_width."""
    return float(np.mean(np.abs(g - p) <= half_width))


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return {measure: {mean, median, p95}} over samples."""
    names = sorted({name for row in rows for name in row})
    found = {}
    for name in names:
        values = np.array([row[name] for row in rows if name in row])
        found[name] = {
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "p95": float(np.quantile(values, 0.95)),
        }
    return found


def family_summaries(
    rows: Sequence[Mapping[str, float]], families: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return {family: `summary` of its samples}."""
    return {
        family: summary([r for r, f in zip(rows, families, strict=True) if f == family])
        for family in sorted(set(families))
    }


def by_family(rows: Sequence[Mapping[str, float]], families: Sequence[str], name: str) -> dict[str, float]:
    """Return the mean of one measure for each family."""
    return {
        family: float(np.mean([r[name] for r, f in zip(rows, families, strict=True) if f == family]))
        for family in sorted(set(families))
    }
