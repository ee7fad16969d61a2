"""Better well rates: gradients of the energy through the forecast, checked in the true simulator.

One factor a well within bounds; total injection equals total production. Letters: W wells, n their cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from common.errors import DataError, DivergedError, UserError
from common.log import get_logger
from voxel_ode.config_tools import OptimiseConfig
from voxel_ode.energy import discount_factors, net_power_w, pumping_power_w
from voxel_ode.fields import Fields
from voxel_ode.loading import Model
from voxel_ode.model import StaticFeatures
from voxel_ode.prepped import PreppedSim
from voxel_ode.regions import active_boxes, reach_in_coarse_cells
from voxel_ode.rollout import crop, fields_of
from voxel_ode.startup import well_responses
from voxel_ode.wells import Box, WellReader, Wells

INJECTED, PRODUCED, TOTAL = 0, 1, 2
PENALTY = 0.1  # of the energy at the start, for a mean square excess of 1 bar
TOLERANCE = 1e-9
MAX_BISECTIONS = 200


@dataclass(frozen=True)
class Balance:
    """What the rate factors must keep to: box bounds and linear equations.

    Attributes:
        low, high: bounds of a factor.
        groups: (wells, coefficients, sum): sum of coefficient times factor over the wells.
    """

    low: float
    high: float
    groups: Sequence[tuple[np.ndarray, np.ndarray, float]]

    @classmethod
    def of(cls, wells: Wells, bounds: tuple[float, ...], total: str) -> Balance:
        """Return the constraints of a simulation: rates of both signs summed, or only their difference, kept.

        Raises:
            UserError: they leave nothing to move.
        """
        running = np.flatnonzero(wells.signed_rate_kg_s != 0)
        if total == "fixed":
            groups = [running[wells.sign[running] == sign] for sign in (1, -1)]
            groups = [g for g in groups if len(g)]
            if all(len(g) == 1 for g in groups):
                raise UserError(
                    f"--total fixed: {len(running)} well(s), one of each sign at most, so no rate can move; "
                    "use --total free, or a simulation with two doublets"
                )
            chosen = [(g, wells.rate_kg_s[g]) for g in groups]
        else:
            chosen = [(running, wells.signed_rate_kg_s[running])] if len(running) else []
        if not chosen or bounds[0] == bounds[1]:
            raise UserError("--bounds: no rate can move; name other bounds, or a simulation with wells")
        return cls(bounds[0], bounds[1], [(g, q, float(q.sum())) for g, q in chosen])

    def project(self, factors: np.ndarray) -> np.ndarray:
        """Return the nearest factors [W] that keep to the constraints; wells in no group keep 1.

        f = clip(f0 - lambda q) with lambda from bisection: the sum of q f falls with lambda.
        """
        found = np.ones_like(factors)
        for wells, q, total in self.groups:
            start = factors[wells]

            def moved(shift: float, start: np.ndarray = start, q: np.ndarray = q) -> np.ndarray:
                return np.clip(start - shift * q, self.low, self.high)

            reach = (np.abs(start).max() + self.high + 1.0) / np.abs(q).min()
            low, high = -reach, reach
            for _ in range(MAX_BISECTIONS):
                middle = 0.5 * (low + high)
                if float(q @ moved(middle)) > total:
                    low = middle
                else:
                    high = middle
                if high - low < TOLERANCE * reach:
                    break
            found[wells] = moved(0.5 * (low + high))
        return found

    def tangent(self, gradient: np.ndarray) -> np.ndarray:
        """Return the part of a gradient [W] along which the sums stay; wells in no group do not move.

        Without it a step whose size is the same for every well would move all rates of a sign together, and
        the projection would take it back.
        """
        found = np.zeros_like(gradient)
        for wells, q, _ in self.groups:
            g = gradient[wells]
            found[wells] = g - (g @ q) / (q @ q) * q
        return found


class RateForecast:
    """The energy that a network predicts as a differentiable function of the rate factors.

    Args:
        model: the network.
        sim: the simulation.
        config: horizon, objective, discount, pressure limits.
    """

    def __init__(self, model: Model, sim: PreppedSim, config: OptimiseConfig) -> None:
        self.model, self.sim, self.config = model, sim, config
        self.first = 0 if config.init == "output0" else -1
        device = model.device
        fields = fields_of(model, [sim], self.first)
        self.box = self._active_box(model, sim)
        self.fields = crop(fields, self.box)
        wells = sim.wells
        self.reader = WellReader.of(self._cropped(wells), self.fields.masks[0]).to(device)
        self.cell_well = torch.from_numpy(wells.cell_well).long().to(device)
        self.share = torch.from_numpy(wells.weight).float().to(device)
        self.sign = torch.from_numpy(wells.sign.astype(np.float32)).to(device)
        self.rate = torch.from_numpy(wells.rate_kg_s).float().to(device)
        responses = torch.from_numpy(well_responses(sim, self.first)).to(device)
        std = model.normalizer.grid_std[0].to(device)
        self.responses = responses[(slice(None), *self.box)] / std  # normalised pressure a unit of factor
        self.weights = torch.from_numpy(discount_factors(config.horizon, config.discount_rate)).to(device)
        names = model.normalizer.static_channels
        self.rate_channel = names.index("InjRate") if "InjRate" in names else None

    @staticmethod
    def _active_box(model: Model, sim: PreppedSim) -> Box:
        """Return the smallest aligned box around all active cells."""
        boxes = active_boxes(sim.masks()[0] > 0, model.network.multiple, reach_in_coarse_cells(model.network))
        if not model.network.uses_local_norm:
            return sim.whole
        z, y, x = (
            slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in range(3)
        )
        return z, y, x

    def _cropped(self, wells: Wells) -> Wells:
        begin = np.array([s.start for s in self.box], dtype=np.int32)
        return replace(wells, cells=wells.cells - begin)

    def _with_factors(self, factors: torch.Tensor) -> tuple[Fields, WellReader]:
        """Return fields and well reader of changed rates; both depend on `factors` [W]."""
        f, normalizer = self.fields, self.model.normalizer
        rates = self.rate * factors
        per_cell = (self.sign * rates)[self.cell_well]
        z, y, x = self.reader.cells.unbind(1)
        source = f.well_source.index_put(
            (torch.zeros_like(z), torch.zeros_like(z), z, y, x), per_cell * self.share
        )
        static = f.static
        if self.rate_channel is not None:
            i = self.rate_channel
            value = (per_cell - normalizer.static_mean[i].to(z.device)) / normalizer.static_std[i].to(
                z.device
            )
            static = static.index_put((torch.zeros_like(z), torch.full_like(z, i), z, y, x), value)
        totals = [(rates * (self.sign == s)).sum() for s in (1, -1)]
        means = []
        for s, total in zip((1, -1), totals, strict=True):
            of_well = torch.where(self.sign == s, rates, torch.zeros_like(rates)) / total.clamp_min(1e-9)
            means.append(of_well[self.cell_well] * self.share)
        reader = replace(self.reader, injector=means[0], producer=means[1])
        changed = replace(f, static=static, well_source=source, well_rates=torch.stack(totals)[None])
        return changed, reader

    def energy(self, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (discounted energy of the objective, J; mean square excess of the pressure limits, bar2)."""
        fields, reader = self._with_factors(factors)
        network = self.model.network
        fixed = network.static_features(fields)
        state, total = self._answered(fields.state, factors), fields.previous_total
        scales = network.scales
        well_now = reader.features(*scales.physical(state).unbind(1))
        value, excess = torch.zeros((), dtype=torch.float64, device=state.device), state.new_zeros(())
        for k in range(self.config.horizon):
            state, z, well_next = checkpoint(
                self._year, fixed, reader, state, well_now, total, use_reentrant=False
            )
            rates = scales.physical_scalars(z.float())
            value = value + self.weights[k] * self._power(rates, well_next, fields.well_rates).double().sum()
            excess = excess + self._excess(scales.physical(state)[:, 0], fields.masks[:, 1])
            well_now, total = well_next, rates[:, TOTAL]
        return value * float(self.sim.dt_s), excess / self.config.horizon

    def _answered(self, state: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Return the first state with the pressure as the changed rates make it within the year."""
        change = torch.einsum("w,wzyx->zyx", factors.to(state) - 1.0, self.responses)
        return torch.cat([state[:, :1] + change, state[:, 1:]], dim=1)

    def _year(
        self,
        fixed: StaticFeatures,
        reader: WellReader,
        state: torch.Tensor,
        well_now: torch.Tensor,
        total: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        network = self.model.network
        following, trunk = network.step(fixed, state)
        well_next = reader.features(*network.scales.physical(following).unbind(1))
        return following, network.scalars(fixed, trunk, well_now, well_next, total), well_next

    def _power(self, rates: torch.Tensor, well: torch.Tensor, well_rates: torch.Tensor) -> torch.Tensor:
        if self.config.objective == "produced_energy":
            return rates[:, PRODUCED]
        pumping = pumping_power_w(well_rates[:, 0], well[:, 2], well[:, 3])
        return net_power_w(rates[:, PRODUCED], rates[:, INJECTED], pumping)

    def _excess(self, pressure: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Return the mean square of what the pressure lies outside its limits, bar2; 0 without limits."""
        if not self.config.pressure_limits:
            return pressure.new_zeros(())
        low, high = self.config.pressure_limits
        outside = (low - pressure).relu() + (pressure - high).relu()
        return (outside.square() * flow).sum() / flow.sum().clamp_min(1.0)


@dataclass(frozen=True)
class Candidate:
    """Rate factors [W] and what the network predicts for them: energy (J) and score."""

    factors: np.ndarray
    energy_j: float
    score: float


def search(
    forecast: RateForecast,
    balance: Balance,
    config: OptimiseConfig,
    watch: Callable[[int, Candidate], None] | None = None,
) -> list[Candidate]:
    """Return the start and up to `config.candidates` of the best iterates of a projected Adam ascent.

    Args:
        forecast: of the energy.
        balance: what factors must keep to.
        config: iterations and step.
        watch: called with each iterate.

    Raises:
        DivergedError: the predicted energy is not finite.
    """
    factors = np.ones(len(forecast.sim.wells))
    free = torch.from_numpy(factors.copy()).float().to(forecast.model.device).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=config.lr)
    found: list[Candidate] = []
    scale = 0.0
    for i in range(config.iterations + 1):
        energy, excess = forecast.energy(free)
        scale = scale or max(abs(float(energy.detach())), 1.0)
        score = energy / scale - PENALTY * excess
        values = [float(x.detach()) for x in (energy, score)]
        if not math.isfinite(values[-1]):
            raise DivergedError(
                f"{forecast.sim.path}: the predicted energy of iteration {i} is not finite; lower --lr, "
                "narrow --bounds or shorten --horizon"
            )
        factors = free.detach().double().cpu().numpy()
        found.append(Candidate(factors.copy(), *values))
        if watch is not None:
            watch(i, found[-1])
        if i == config.iterations:
            break
        optimizer.zero_grad()
        (-score).backward()
        if free.grad is not None:
            along = balance.tangent(free.grad.double().cpu().numpy())
            free.grad.copy_(torch.from_numpy(along).to(free))
        optimizer.step()
        with torch.no_grad():
            moved = balance.project(free.double().cpu().numpy())
            free.copy_(torch.from_numpy(moved).to(free))
    return [found[0], *best_of(found[1:], config.candidates)]


def best_of(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the `count` candidates of highest score that are not nearly the same."""
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        if all(np.abs(candidate.factors - other.factors).max() > 1e-3 for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def require_searchable(sim: PreppedSim, config: OptimiseConfig) -> None:
    """Raise DataError unless the simulation has the state that the search begins with."""
    if config.init == "output0" and sim.t_valid == 0:
        raise DataError(f"{sim.path}: has no group Output to begin with; use --init initial")


def say(i: int, candidate: Candidate) -> None:
    """Log one iterate."""
    get_logger().info(f"iteration {i}: predicted energy {candidate.energy_j:.6g} J")
