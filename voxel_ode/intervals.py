"""Spread of an ensemble, and intervals that cover what they say: split-conformal factors a channel and year.

The score of a cell is |truth - mean| / scale, with scale = sqrt(std^2 + floor^2) of an ensemble and 1 of a
single network. Its (1 - alpha)(1 + 1/n) quantile over the calibration cells, times the scale, is the half
width of an interval that covers a share 1 - alpha of cells like those (Vovk et al. 2005; Lei et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from common.conformal import conformal_rank
from common.errors import DataError
from common.files import read_json, write_json
from voxel_ode.loading import Model

SCHEMA = "strata.voxel_ode.calibration/1"
NOMINAL = 0.8  # coverage of P10 to P90
FLOOR_SHARE = 0.05  # of a year's change: members that agree are not certain
PERCENTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Calibration:
    """Factors of the intervals.

    Attributes:
        checkpoints: SHA-256 of the networks' weights, sorted.
        init: how the forecasts began.
        nominal: share of cells that an interval shall cover.
        factors: {"P": [years], "T": [years]}: half width over scale.
        floors: {"P": bar, "T": deg C} of the scale; 0 for a single network, whose scale is 1.
        pressure_sweeps: over the water balance in the forecasts.
    """

    checkpoints: list[str]
    init: str
    nominal: float
    factors: dict[str, list[float]]
    floors: dict[str, float]
    pressure_sweeps: int = 0

    def half_width(self, std: np.ndarray, channel: str, year: int) -> np.ndarray:
        """Return the half width of the interval in predicted year 1.., in bar or deg C; any shape."""
        factors = self.factors[channel]
        return factors[min(year, len(factors)) - 1] * scale_of(std, self.floors[channel])


def scale_of(std: np.ndarray, floor: float) -> np.ndarray:
    """Return sqrt(std^2 + floor^2), or 1 for a single network (floor 0)."""
    return np.sqrt(std**2 + floor**2) if floor > 0 else np.ones_like(std)


def floors_of(models: Sequence[Model]) -> dict[str, float]:
    """Return the floor of the scale for each channel, bar and deg C; 0 for a single network."""
    if len(models) == 1:
        return {"P": 0.0, "T": 0.0}
    rms = models[0].normalizer.delta_rms.tolist()
    return {"P": FLOOR_SHARE * rms[0], "T": FLOOR_SHARE * rms[1]}


def conformal_factor(scores: np.ndarray, nominal: float = NOMINAL) -> float:
    """Return the least score that at least ceil((n + 1) nominal) of n calibration scores do not exceed."""
    n = len(scores)
    if n == 0:
        return math.nan
    rank = min(n, conformal_rank(n, nominal))
    return float(np.partition(scores, rank - 1)[rank - 1])


def fingerprint(models: Sequence[Model]) -> list[str]:
    """Return the weights' hashes, sorted."""
    return sorted(model.sha256 for model in models)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write calibration.json."""
    write_json(path, {"schema": SCHEMA, **asdict(calibration)})


def load_calibration(path: Path, models: Sequence[Model]) -> Calibration:
    """Return what `save_calibration` wrote for these very networks.

    Raises:
        DataError: it cannot be read, or is of other networks.
    """
    try:
        document = read_json(path, "run evaluate.py --calibrate again")
        if document.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        found = Calibration(**document)
        good = all(
            found.factors[c] and all(f >= 0 for f in found.factors[c]) and found.floors[c] >= 0 for c in "PT"
        )
        if not good:
            raise ValueError("negative or no factors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no calibration of evaluate.py ({error}); run evaluate.py --calibrate again"
        ) from error
    if found.checkpoints != fingerprint(models):
        raise DataError(
            f"{path}: made for other checkpoints than the {len(models)} of --ckpt_path; run evaluate.py "
            "--calibrate with these"
        )
    return found


def spread_of(states: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return mean, std and percentiles over the members of states [M, ...], each [...]."""
    values = states.double()
    ordered = values.sort(dim=0).values
    found = {name: percentile(ordered, q) for name, q in zip(("p10", "p50", "p90"), PERCENTILES, strict=True)}
    found |= {"mean": values.mean(0), "std": values.std(0, unbiased=False)}
    return {name: value.float() for name, value in found.items()}


def percentile(ordered: torch.Tensor, share: float) -> torch.Tensor:
    """Return the percentile of members sorted along axis 0, linear between neighbours; for any size of grid.

    `torch.quantile` does the same for up to 16 million values, which five full grids exceed.
    """
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)


def calibrated(
    mean: np.ndarray, std: np.ndarray, calibration: Calibration, year: int
) -> dict[str, np.ndarray]:
    """Return "std", "p10", "p50", "p90" of states [2, Z, Y, X] from calibrated half widths."""
    half = np.stack([calibration.half_width(std[i], channel, year) for i, channel in enumerate("PT")])
    return {"std": std, "p10": mean - half, "p50": mean, "p90": mean + half}
