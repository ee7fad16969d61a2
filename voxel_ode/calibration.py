"""Fitting the intervals of a forecast on validation simulations, and counting what they cover on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from common.errors import UserError
from voxel_ode.config_tools import Placement
from voxel_ode.intervals import (
    NOMINAL,
    Calibration,
    calibrated,
    conformal_factor,
    fingerprint,
    floors_of,
    scale_of,
    spread_of,
)
from voxel_ode.loading import Model
from voxel_ode.prepped import PreppedSim
from voxel_ode.rollout import Forecast

Spread = tuple[int, np.ndarray, np.ndarray, np.ndarray]


def _years(models: Sequence[Model], sim: PreppedSim, placement: Placement, init: str) -> Iterator[Spread]:
    """Yield (year from 1, mean, std, truth) of each predicted year, [2, Z, Y, X] in bar and deg C."""
    first = 0 if init == "output0" else -1
    forecast = Forecast(models, [sim], placement, first)
    for k, year in enumerate(forecast.years(sim.t_valid - 1 - first), start=1):
        found = spread_of(year.states[:, 0])
        truth = sim.states(first + k, first + k + 1)[0]
        yield k, found["mean"].cpu().numpy(), found["std"].cpu().numpy(), truth


def fit(models: Sequence[Model], sims: Sequence[PreppedSim], placement: Placement, init: str) -> Calibration:
    """Return split-conformal factors for each channel and predicted year from calibration simulations.

    Raises:
        UserError: there is no simulation to calibrate on.
    """
    usable = [sim for sim in sims if sim.t_valid > 1]
    if not usable:
        raise UserError(
            "--calibrate: the data set has no validation simulations; prepare some with --num_val"
        )
    floors = floors_of(models)
    scores: dict[str, dict[int, list[np.ndarray]]] = {"P": {}, "T": {}}
    for sim in usable:
        domains = dict(zip("TP", sim.masks()[:2] > 0, strict=True))
        for k, mean, std, truth in _years(models, sim, placement, init):
            for i, channel in enumerate("PT"):
                inside = domains[channel]
                scale = scale_of(std[i][inside], floors[channel])
                found = np.abs(truth[i][inside] - mean[i][inside]) / scale
                scores[channel].setdefault(k, []).append(found)
    factors = {
        channel: [conformal_factor(np.concatenate(by_year[k])) for k in sorted(by_year)]
        for channel, by_year in scores.items()
    }
    return Calibration(fingerprint(models), init, NOMINAL, factors, floors, placement.pressure_sweeps)


def coverage(
    models: Sequence[Model],
    sims: Sequence[PreppedSim],
    placement: Placement,
    calibration: Calibration,
) -> dict[str, float]:
    """Return the share of cells and years whose truth lies in the calibrated interval, {"P": .., "T": ..}."""
    inside, count = {"P": 0, "T": 0}, {"P": 0, "T": 0}
    for sim in sims:
        domains = dict(zip("TP", sim.masks()[:2] > 0, strict=True))
        for k, mean, std, truth in _years(models, sim, placement, calibration.init):
            bounds = calibrated(mean, std, calibration, k)
            for i, channel in enumerate("PT"):
                mask = domains[channel]
                low, high, value = (v[i][mask] for v in (bounds["p10"], bounds["p90"], truth))
                inside[channel] += int(((value >= low) & (value <= high)).sum())
                count[channel] += value.size
    return {channel: inside[channel] / max(1, count[channel]) for channel in count}
