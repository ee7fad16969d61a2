"""The errors of several methods on several simulations, gathered year by year."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.metrics import relative_l2
from voxel_ode.metrics import (
    CELL_MEASURES,
    CHANNELS,
    breakthrough_error,
    breakthrough_year,
    cell_scores,
    mean_curve,
    rollout_scores,
)
from voxel_ode.prepped import PreppedSim
from voxel_ode.scalars import OLD_SHARE
from voxel_ode.sections import cut_planes, well_layer
from voxel_ode.units import WATER_HEAT_CAPACITY
from voxel_ode.well_tables import mean_absolute_errors, well_means
from voxel_ode.wells import Wells

MAX_SINGLES = 10  # years of a simulation that are predicted from the truth
PerYear = dict[str, np.ndarray]  # measure_channel -> [years]
OneStep = Callable[[int], np.ndarray]  # t -> state t + 1 from the truth at t, [2, Z, Y, X]


@dataclass
class Scores:
    """What one method did on all simulations so far.

    Attributes:
        rollouts: errors by year, one entry a simulation.
        one_step: errors of single years from the truth, up to ten spread evenly, one entry a simulation.
        wells: temperature at the wells after each predicted year, [T, W] a simulation.
        produced: produced power by year from the wells' temperatures, W, [T] a simulation.
    """

    rollouts: list[PerYear] = field(default_factory=list)
    one_step: list[PerYear] = field(default_factory=list)
    wells: list[np.ndarray] = field(default_factory=list)
    produced: list[np.ndarray] = field(default_factory=list)


def year_scores(state: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Return the cell measures of both channels of one state, {"rmse_P": ..}."""
    domains = (masks[1], masks[0])
    return {
        f"{measure}_{name}": value
        for i, name in enumerate(CHANNELS)
        for measure, value in cell_scores(state[i], truth[i], domains[i]).items()
    }


def stacked(rows: Sequence[Mapping[str, float]]) -> PerYear:
    """Return {name: [years]} of one dictionary a year."""
    return {f"{m}_{c}": np.array([row[f"{m}_{c}"] for row in rows]) for m in CELL_MEASURES for c in CHANNELS}


def produced_power_w(wells: Wells, before_c: np.ndarray, after_c: np.ndarray) -> float:
    """Return sum |q| c_w (0.25 T(t) + 0.75 T(t+1)) over the producers, W; temperatures at the wells [W]."""
    rates = np.where(wells.sign < 0, wells.rate_kg_s, 0.0)
    return float(rates @ (OLD_SHARE * before_c + (1 - OLD_SHARE) * after_c)) * WATER_HEAT_CAPACITY


def score_simulation(
    sim: PreppedSim,
    first: int,
    methods: Mapping[str, Iterator[np.ndarray]],
    one_steps: Mapping[str, OneStep],
    scores: Mapping[str, Scores],
    shown: Sequence[int] = (),
) -> dict[int, dict[str, np.ndarray]]:
    """Run all methods beside the truth, add their errors to `scores`; return "ours" in planes at some years.

    Args:
        sim: with outputs.
        first: index of the given state, 0 or -1.
        methods: name -> states after it, [2, Z, Y, X], bar and deg C.
        one_steps: name -> prediction of a single year.
        scores: name -> where errors go.
        shown: indices of states whose planes are wanted.
    """
    masks = sim.masks()
    layer = well_layer(sim.wells, sim.shape)
    start_c = well_means(sim.wells, sim.states(first, first + 1)[0][1])
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    singles: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    wells_c: dict[str, list[np.ndarray]] = {name: [start_c] for name in methods}
    planes: dict[int, dict[str, np.ndarray]] = {}
    years = range(first + 1, sim.t_valid)
    from_truth = set(np.linspace(years[0], years[-1], min(MAX_SINGLES, len(years))).round().astype(int))
    for t in years:
        truth = sim.states(t, t + 1)[0]
        for name, states in methods.items():
            state = next(states)
            rows[name].append(year_scores(state, truth, masks))
            if t in from_truth:
                singles[name].append(year_scores(one_steps[name](t - 1), truth, masks))
            wells_c[name].append(well_means(sim.wells, state[1]))
            if name == "ours" and t in shown:
                planes[t] = cut_planes(state, masks, layer)
    for name in methods:
        scores[name].rollouts.append(stacked(rows[name]))
        scores[name].one_step.append(stacked(singles[name]))
        scores[name].wells.append(np.stack(wells_c[name][1:]))
        pairs = zip(wells_c[name], wells_c[name][1:], strict=False)
        scores[name].produced.append(np.array([produced_power_w(sim.wells, a, b) for a, b in pairs]))
    return planes


def summarise(
    scores: Scores, sims: Sequence[PreppedSim], first: int, std: Sequence[float], *, per_well: bool
) -> dict[str, Any]:
    """Return the measures of one method over all simulations.

    Args:
        scores: of the method.
        sims: in the same order.
        first: index of the given state.
        std: of P and T in training, bar and deg C, for normalised squared errors.
        per_well: add errors at the wells.
    """
    parts = {"rollout": rollout_scores(scores.rollouts), "one_step": rollout_scores(scores.one_step)}
    for values in parts.values():
        for i, name in enumerate(CHANNELS):
            values[f"mse_normalised_{name}"] = (values[f"rmse_{name}"] / std[i]) ** 2
    found: dict[str, Any] = dict(parts)
    found["by_year"] = {
        name: mean_curve(scores.rollouts, name).tolist() for name in ("rmse_P", "rmse_T", "acc_abs5_T")
    }
    truth_w = [sim.scalars[first + 1 : sim.t_valid, 1] for sim in sims]
    pairs = zip(scores.produced, truth_w, strict=True)
    found["produced_power_error"] = float(np.mean([relative_l2(p, t) for p, t in pairs]))
    if per_well:
        found["wells"] = _well_errors(scores, sims, first)
    return found


def true_well_temperatures(sim: PreppedSim, first: int) -> np.ndarray:
    """Return the true temperature at the wells after each year that is predicted, [T, W]."""
    return np.stack(
        [well_means(sim.wells, sim.states(t, t + 1)[0][1]) for t in range(first + 1, sim.t_valid)]
    )


def _well_errors(scores: Scores, sims: Sequence[PreppedSim], first: int) -> dict[str, Any]:
    with_wells = [i for i, sim in enumerate(sims) if len(sim.wells)]
    if not with_wells:
        return {}
    truth = [true_well_temperatures(sims[i], first) for i in with_wells]
    found = [scores.wells[i] for i in with_wells]
    differences = []
    for i, f, t in zip(with_wells, found, truth, strict=True):
        initial = well_means(sims[i].wells, sims[i].initial()[1])
        producers = sims[i].wells.sign < 0
        years = [breakthrough_year(x[:, producers], initial[producers]) for x in (f, t)]
        differences.append(breakthrough_error(*years, years=len(t)))
    known = [d for d in differences if math.isfinite(d)]
    return {
        "T_mae_by_year": mean_absolute_errors(found, truth).tolist(),
        "T_mae": float(np.mean([np.abs(f - t).mean() for f, t in zip(found, truth, strict=True)])),
        "breakthrough_error_years": float(np.mean(known)) if known else math.nan,
    }
