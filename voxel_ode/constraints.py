"""What a predicted year must keep to: heat makes no new extremes, pressure stays near what was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from voxel_ode.model import Scales
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim

WIDENED = 0.5  # of the trained range, on either side
NOTICED = 1e-4  # of a standard deviation: a smaller correction is rounding


def injection_estimate_c(sim: PreppedSim, normalizer: Normalizer, first: int = 0) -> float:
    """Return what injectors bring, deg C, as far as `first` knows; else below all that was trained on."""
    known = sim.injection_c(first)
    if math.isfinite(known):
        return known
    low, high = widened_range(normalizer, "Temperature")
    return low if math.isfinite(high) else -math.inf


def widened_range(normalizer: Normalizer, name: str) -> tuple[float, float]:
    """Return the trained range of a grid channel with half its width added on both sides; open if unknown."""
    known = normalizer.channel_range.get("grid", {}).get(name)
    if known is None:
        return -math.inf, math.inf
    low, high = known
    margin = WIDENED * (high - low)
    return low - margin, high + margin


class PhysicalLimits:
    """Clips predictions of some simulations to physical limits and counts the clipped cells.

    - T within [min(injection estimate, current min), current max] of the active cells (maximum principle of
      advection and conduction);
    - P of flow cells within the trained range widened by half, or the first state's own where that is wider.

    Args:
        scales: of the network.
        state: normalised first state, [B, 2, Z, Y, X].
        masks: [B, 3, Z, Y, X].
        sims: B simulations.
        normalizer: of the network's training.
        first: state that the forecast begins with, 0 or -1.

    Attributes:
        clipped: int [B, 2] for each year so far: cells whose pressure and temperature were moved.
    """

    def __init__(
        self,
        scales: Scales,
        state: torch.Tensor,
        masks: torch.Tensor,
        sims: Sequence[PreppedSim],
        normalizer: Normalizer,
        first: int = 0,
    ) -> None:
        self.domains = masks[:, [1, 0]] > 0
        mean, std = scales.mean, scales.std
        low, high = widened_range(normalizer, "Pressure")
        first_low, first_high = (e[:, 0] for e in _extremes(state, self.domains))
        self.lowest_p = first_low.clamp(max=float((low - mean[0]) / std[0]))
        self.highest_p = first_high.clamp(min=float((high - mean[0]) / std[0]))
        estimates = [injection_estimate_c(sim, normalizer, first) for sim in sims]
        self.coldest = (torch.tensor(estimates).to(state) - mean[1]) / std[1]
        self.clipped: list[torch.Tensor] = []

    def __call__(self, following: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return `following` within the limits that the state before it sets, [B, 2, Z, Y, X]."""
        lowest, highest = _extremes(state, self.domains)
        low = torch.stack([self.lowest_p, torch.minimum(self.coldest, lowest[:, 1])], dim=1)
        high = torch.stack([self.highest_p, highest[:, 1]], dim=1)
        kept = torch.minimum(torch.maximum(following, _cells(low)), _cells(high))
        kept = torch.where(self.domains, kept, following)
        self.clipped.append(((kept - following).abs() > NOTICED).sum((2, 3, 4)))
        return kept


def _extremes(state: torch.Tensor, domains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return least and greatest value of both channels inside their domains, [B, 2] each."""
    low = torch.where(domains, state, math.inf).amin((2, 3, 4))
    return low, torch.where(domains, state, -math.inf).amax((2, 3, 4))


def _cells(values: torch.Tensor) -> torch.Tensor:
    return values[:, :, None, None, None]


def range_warnings(sim: PreppedSim, normalizer: Normalizer, most: float = 0.02) -> list[str]:
    """Return one line when a simulation lies outside what was trained on, [] when it does not.

    A parameter outside the training range counts, and a channel of which more than `most` of the cells lie
    outside the 0.1 to 99.9 percentiles of training.
    """
    found = [*_odd_parameters(sim, normalizer), *_odd_channels(sim, normalizer, most)]
    return [f"{sim.name}: outside the training data: {', '.join(found)}"] if found else []


def _odd_parameters(sim: PreppedSim, normalizer: Normalizer) -> list[str]:
    low, high = normalizer.param_min.numpy(), normalizer.param_max.numpy()
    slack = 1e-6 * (abs(low) + abs(high))
    odd = (sim.params < low - slack) | (sim.params > high + slack)
    return [
        f"{sim.param_names[i] if i < len(sim.param_names) else i} {sim.params[i]:.3g} "
        f"(trained {low[i]:.3g}..{high[i]:.3g})"
        for i in odd.nonzero()[0][:5]
    ]


def _odd_channels(sim: PreppedSim, normalizer: Normalizer, most: float) -> list[str]:
    from voxel_ode.schema import STATIC_NAMES

    static, masks = sim.static(), sim.masks() > 0
    found = []
    ranges: dict[str, Any] = normalizer.channel_range.get("static", {})
    for i, name in enumerate(STATIC_NAMES):
        if name not in ranges or name in ("IsActive", "IsWell", "Depth", "FaultId"):
            continue
        mask = masks[1] if name.startswith(("Perm", "Pressure")) else masks[0]
        if name == "InjRate":
            mask = masks[0] & (static[STATIC_NAMES.index("IsWell")] > 0.5)
        low, high = ranges[name]
        slack = 1e-6 * (abs(low) + abs(high))
        values = static[i][mask]
        share = float(((values < low - slack) | (values > high + slack)).mean()) if values.size else 0.0
        if share > most:
            found.append(f"{name} in {share:.0%} of the cells (trained {low:.3g}..{high:.3g})")
    return found
