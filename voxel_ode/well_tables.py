"""What happens at each well: temperature and pressure by year, energy, the year of thermal breakthrough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from voxel_ode.metrics import breakthrough_year
from voxel_ode.predictions import Predictions
from voxel_ode.scalars import OLD_SHARE
from voxel_ode.units import WATER_HEAT_CAPACITY
from voxel_ode.wells import Wells

INJECTED, PRODUCED = 0, 1  # columns of the field rates


def well_means(wells: Wells, grid: np.ndarray) -> np.ndarray:
    """Return the mean of a grid [..., Z, Y, X] at each well, weighted by its cells' shares, [..., W]."""
    z, y, x = wells.cells.T
    at_cells = np.asarray(grid)[..., z, y, x].astype(np.float64) * wells.weight
    out = np.zeros((*at_cells.shape[:-1], len(wells)))
    for well in range(len(wells)):
        out[..., well] = at_cells[..., wells.cell_well == well].sum(axis=-1)
    return out


def well_energy_w(
    wells: Wells, before_c: np.ndarray, after_c: np.ndarray, injected_w: float, produced_w: float
) -> np.ndarray:
    """Return the power that each well carries in a year, W [W], whose sums by sign are the field's rates.

    A producer's share follows from |q| c_w (0.25 T(t) + 0.75 T(t+1)), an injector's from q c_w T(t+1).

    Args:
        wells: of the simulation.
        before_c: temperature at the wells before the year, [W].
        after_c: after it, [W].
        injected_w: the field's injected power.
        produced_w: the field's produced power.
    """
    over_the_year = OLD_SHARE * before_c + (1 - OLD_SHARE) * after_c
    mean = np.where(wells.sign < 0, over_the_year, after_c)
    power = wells.rate_kg_s * WATER_HEAT_CAPACITY * np.maximum(mean, 0.0)
    for sign, total in ((1, injected_w), (-1, produced_w)):
        mine = wells.sign == sign
        found = power[mine].sum()
        if found > 0:
            power[mine] *= total / found
    return power


def well_rows(predictions: Predictions) -> list[dict[str, Any]]:
    """Return one row a well and year, as the CSV holds them; truth columns are None where it is not known."""
    wells = predictions.wells
    initial = well_means(wells, predictions.initial)
    states = np.stack([well_means(wells, predictions.state(k)) for k in range(predictions.num_states)])
    truth = np.full_like(states, np.nan)
    for k in range(predictions.num_truth):
        truth[k] = well_means(wells, predictions.state(k, "ground_truth"))
    power = _powers(wells, initial[1], states[:, 1], predictions.scalars)
    cumulative = np.cumsum(power, axis=0) * predictions.dt_s
    breakthrough = breakthrough_year(states[:, 1], initial[1])
    known = predictions.num_truth == predictions.num_states
    true_breakthrough = breakthrough_year(truth[:, 1], initial[1]) if known else np.full(len(wells), np.nan)
    rows = []
    for w in range(len(wells)):
        cells = wells.cells[wells.cell_well == w]
        for k in range(predictions.num_states):
            rows.append(
                {
                    "well": w,
                    "sign": int(wells.sign[w]),
                    "y": int(cells[0, 1]),
                    "x": int(cells[0, 2]),
                    "cells": len(cells),
                    "year": k + 1,
                    "predicted": int(k >= predictions.first_predicted),
                    "rate_kg_s": float(wells.sign[w] * wells.rate_kg_s[w]),
                    "T_mean_C": states[k, 1, w],
                    "P_mean_bar": states[k, 0, w],
                    "energy_W": power[k, w],
                    "cumulative_J": cumulative[k, w],
                    "T_truth_C": _or_none(truth[k, 1, w]),
                    "P_truth_bar": _or_none(truth[k, 0, w]),
                    "breakthrough_year": _or_none(breakthrough[w]),
                    "breakthrough_year_truth": _or_none(true_breakthrough[w]),
                }
            )
    return rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _powers(wells: Wells, initial_c: np.ndarray, after_c: np.ndarray, scalars: np.ndarray) -> np.ndarray:
    """Return [T, W]: the power of each well and year."""
    before = np.concatenate([initial_c[None], after_c[:-1]])
    each = zip(before, after_c, scalars, strict=True)
    return np.stack([well_energy_w(wells, b, a, s[INJECTED], s[PRODUCED]) for b, a, s in each])


def mean_absolute_errors(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean |T error| at the wells by year [T] over simulations, each [T, W]."""
    years = min(len(t) for t in truth)
    errors = np.concatenate(
        [np.abs(f[:years] - t[:years]) for f, t in zip(found, truth, strict=True)], axis=1
    )
    return errors.mean(axis=1)
