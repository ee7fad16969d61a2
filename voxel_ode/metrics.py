"""Measures of a rollout: pressure on flow cells, temperature on active cells, field rates, wells, energy.

Letters: T years, Z Y X grid, W wells. Pressure in bar, temperature in deg C, rates in kg/s and W, energy
in J.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.metrics import accuracy_within, mae, relative_l2, rmse

CHANNELS = ("P", "T")
ABSOLUTE = (5.0, 1.0)  # bar and deg C that count as close
RELATIVE = 0.05
BREAKTHROUGH_DROP_C = 1.0
CELL_MEASURES = ("rmse", "mae", "rel_l2", "acc_abs5", "acc_abs1", "acc5pct")


def cell_scores(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return the six cell measures of one channel.

    Args:
        prediction: [..., Z, Y, X] in bar or deg C.
        truth: same shape.
        mask: [Z, Y, X], the channel's domain.

    Returns:
        rmse and mae (bar or deg C), rel_l2, and the shares of cells within 5 units (acc_abs5), within 1 unit
        (acc_abs1) and within 5 % of the truth (acc5pct).
    """
    inside = np.asarray(mask, dtype=bool)
    p, t = prediction[..., inside], truth[..., inside]
    within = {f"acc_abs{limit:g}": accuracy_within(p, t, absolute=limit) for limit in ABSOLUTE}
    return {
        "rmse": rmse(p, t),
        "mae": mae(p, t),
        "rel_l2": relative_l2(p, t),
        **within,
        "acc5pct": accuracy_within(p, t, relative=RELATIVE),
    }


def step_scores(prediction: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Return {"rmse_P": [T], ...}: the cell measures of each channel and year.

    Args:
        prediction: [T, 2, Z, Y, X], pressure in bar and temperature in deg C.
        truth: same shape.
        masks: [3, Z, Y, X], active, flow and thermal cells.
    """
    domains = {"P": masks[1], "T": masks[0]}
    scores: dict[str, list[float]] = {f"{name}_{c}": [] for name in CELL_MEASURES for c in CHANNELS}
    for p, t in zip(prediction, truth, strict=True):
        for channel, name in enumerate(CHANNELS):
            for measure, value in cell_scores(p[channel], t[channel], domains[name]).items():
                scores[f"{measure}_{name}"].append(value)
    return {name: np.array(values) for name, values in scores.items()}


def rollout_scores(per_step: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Return the scores of a set of rollouts: root of the mean square for RMSE, the mean for the rest.

    Args:
        per_step: what `step_scores` returned, one a simulation.
    """
    scores = {}
    for name in per_step[0]:
        values = np.concatenate([steps[name] for steps in per_step])
        scores[name] = float(np.sqrt(np.mean(values**2)) if name.startswith("rmse") else np.mean(values))
    return scores


def mean_curve(per_step: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    """Return the score by year [T]: root mean square (RMSE) or mean of the simulations that last so long."""
    years = max(len(steps[name]) for steps in per_step)
    table = np.full((len(per_step), years), math.nan)
    for row, steps in zip(table, per_step, strict=True):
        row[: len(steps[name])] = steps[name]
    squared = name.startswith("rmse")
    mean = np.nanmean(table**2 if squared else table, axis=0)
    return np.sqrt(mean) if squared else mean


def scalar_scores(prediction: np.ndarray, truth: np.ndarray, normalized: np.ndarray) -> dict[str, float]:
    """Return mean squared error (normalised), share within 5 % and relative error of one field rate.

    Args:
        prediction: [T] physical.
        truth: [T] physical.
        normalized: [T], the difference of both after normalisation.
    """
    return {
        "mse": float(np.mean(normalized**2)),
        "acc5": accuracy_within(prediction, truth, relative=RELATIVE),
        "rel": relative_l2(prediction, truth),
    }


def breakthrough_year(temperature: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Return [W]: the first year of a well more than 1 deg C below its initial temperature; NaN if never.

    Args:
        temperature: [T, W] at the end of years 1..T, deg C.
        initial: [W], deg C.
    """
    cold = temperature < initial - BREAKTHROUGH_DROP_C
    return np.where(cold.any(0), cold.argmax(0) + 1.0, math.nan)


def breakthrough_error(prediction: np.ndarray, truth: np.ndarray, years: int) -> float:
    """Return the mean |difference| of breakthrough years; a well without one counts as years + 1.

    Args:
        prediction: [W] of `breakthrough_year`.
        truth: [W].
        years: length of the rollout.
    """
    last = years + 1.0
    p, t = (np.where(np.isnan(x), last, x) for x in (prediction, truth))
    return float(np.mean(np.abs(p - t))) if p.size else math.nan


def stored_heat_j(temperature: np.ndarray, heat_capacity: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Return sum V c T over active cells, J, for each leading index.

    Args:
        temperature: [..., Z, Y, X], deg C.
        heat_capacity: [Z, Y, X], J/K a cell (volume times bulk heat capacity).
        active: [Z, Y, X].
    """
    inside = np.asarray(active, dtype=bool)
    return temperature[..., inside].astype(np.float64) @ heat_capacity[inside].astype(np.float64)


def energy_imbalance(
    stored_j: np.ndarray, injected_w: np.ndarray, produced_w: np.ndarray, dt_s: float
) -> float:
    """Return (change of stored heat - (injected - produced)) / produced over the years of a rollout.

    Args:
        stored_j: [T + 1], before the first year and after each.
        injected_w: [T], yearly means.
        produced_w: [T].
        dt_s: seconds a year.
    """
    produced = float(np.sum(produced_w)) * dt_s
    if produced == 0:
        return math.nan
    change = float(stored_j[-1] - stored_j[0])
    return (change - (float(np.sum(injected_w)) * dt_s - produced)) / produced
