"""Forecasts on whole grids: active regions only, static stem once, one network or several side by side.

Letters: M networks of an ensemble, B simulations, Z Y X the grid. States are normalised on the device and
become physical when they are handed out, year by year, so that memory does not grow with time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import default_collate

from common import device as devices
from common.errors import DataError, DivergedError
from common.log import get_logger
from voxel_ode.balance import PressureSweeps
from voxel_ode.config_tools import Placement, memory_bytes, tile_sizes
from voxel_ode.constraints import PhysicalLimits
from voxel_ode.dataset import free_memory_bytes
from voxel_ode.fields import Fields
from voxel_ode.graphs import RecordedStep, Recorder, recorder_for
from voxel_ode.items import make_item
from voxel_ode.loading import Model
from voxel_ode.model import StaticFeatures, VoxelAutoRegressor
from voxel_ode.prepped import PreppedSim
from voxel_ode.regions import Region, bytes_a_cell, plan_regions
from voxel_ode.rollout_core import ENERGY_TOTAL, Constraint, Features, Prediction
from voxel_ode.scalars import PooledScalars
from voxel_ode.schema import SENTINEL
from voxel_ode.startup import started_pressure
from voxel_ode.wells import Box, WellReader

FREE_SHARE = 0.5  # of the free memory for the network, when no budget is given


def crop(fields: Fields, box: Box) -> Fields:
    """Return the cells of a box of whole fields, with their origin."""
    values = {
        name: value[(slice(None), slice(None), *box)] if value.dim() == 5 else value
        for name, value in vars(fields).items()
    }
    begin = torch.tensor([s.start for s in box], device=fields.origin.device)
    values["origin"] = fields.origin + begin
    return Fields(**values)


class GridRollout:
    """A network on a grid that is computed region by region; the twin of `rollout_core.Rollout`.

    Args:
        model: the network, in evaluation mode on the device of `fields`.
        fields: the whole grids and their first state.
        regions: whose cores hold every active cell once.
        features: (pressure bar, temperature deg C) -> well features [B, 6].
        constraint: (prediction, state before it) -> state that is kept.
        keep_static: respond to the static channels once and keep that; else anew every year.
        compiled: run the network's step through torch.compile.
        record: record the step of each region and replay it; needs `keep_static` and no gradients.
    """

    def __init__(
        self,
        model: VoxelAutoRegressor,
        fields: Fields,
        regions: Sequence[Region],
        *,
        features: Features | None = None,
        constraint: Constraint | None = None,
        keep_static: bool = True,
        compiled: bool = False,
        record: Recorder | None = None,
    ) -> None:
        self.model, self.fields, self.regions = model, fields, regions
        self.features, self.constraint = features, constraint
        # Regions are few and keep their shapes: kernels for exactly these are the faster ones.
        self._step = torch.compile(model.step, dynamic=False) if compiled else model.step
        self._fixed = [self._static(region, once=True) for region in regions] if keep_static else []
        self._recorded = [
            RecordedStep(partial(self._answer, region, fixed), fields.state[(..., *region.read)], record)
            for region, fixed in zip(regions, self._fixed, strict=bool(self._fixed))
            if record is not None
        ]

    def _static(self, region: Region, *, once: bool) -> StaticFeatures:
        return self.model.static_features(crop(self.fields, region.read), once=once)

    def step(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, StaticFeatures]:
        """Return (state a year later, trunk averaged over active cells as one cell, what scalars need).

        Args:
            state: normalised, [B, 2, Z, Y, X].
        """
        following = torch.zeros_like(state)
        total = count = torch.zeros((), device=state.device)
        fixed = None
        for i, region in enumerate(self.regions):
            fixed = self._fixed[i] if self._fixed else self._static(region, once=False)
            now = state[(..., *region.read)]
            part, *sums = self._recorded[i](now) if self._recorded else self._answer(region, fixed, now)
            following[(..., *region.core)] = part.to(following.dtype)
            if sums:
                total, count = total + sums[0], count + sums[1]
        assert fixed is not None, "no region"
        one = torch.ones(len(state), 1, 1, 1, 1, device=state.device)
        mean = total / count.clamp(min=1.0) if self._is_pooled else one
        return following, mean, replace(fixed, masks=[one])

    @property
    def _is_pooled(self) -> bool:
        return isinstance(self.model.scalar_head, PooledScalars)

    def _answer(self, region: Region, fixed: StaticFeatures, state: torch.Tensor) -> list[torch.Tensor]:
        """Return the core of a region a year later; for pooled scalars also trunk and active cells summed.

        A graph may record it: nothing here waits for the device or depends on values.

        Args:
            region: to compute.
            fixed: its static features.
            state: what it reads, [B, 2, D, H, W].
        """
        part, trunk = self._step(fixed, state)
        core = part[(..., *region.inner)]
        if not self._is_pooled:
            return [core]
        mask = fixed.frame.extract(fixed.masks[0])[(..., *region.inner)]
        inside = fixed.frame.extract(trunk)[(..., *region.inner)].float() * mask
        axes = (2, 3, 4)
        return [core, inside.sum(axes, keepdim=True), mask.sum(axes, keepdim=True)]

    def steps(self, count: int) -> Iterator[Prediction]:
        """Yield `count` predicted years."""
        state = self.fields.state
        well_now, total = self.fields.well_now, self.fields.previous_total
        constraint = self.constraint
        for _ in range(count):
            following, trunk, fixed = self.step(state)
            if constraint is not None:
                following = constraint(following, state)
            well_next = well_now
            if self.features is not None:
                well_next = self.features(*self.model.scales.physical(following.float()).unbind(1))
            z = self.model.scalars(fixed, trunk, well_now, well_next, total)
            values = self.model.scales.physical_scalars(z.float())
            yield Prediction(following, values, well_next)
            state, well_now, total = following, well_next, values[:, ENERGY_TOTAL]


@dataclass(frozen=True)
class Year:
    """One predicted year of B simulations by M networks.

    Attributes:
        states: bar and deg C, [M, B, 2, Z, Y, X], on the device; anything off the domains.
        scalars: W, W, J, kg/s, kg/s, float64 [M, B, 5].
        well_features: [M, B, 6].
        clipped: cells whose pressure and temperature were clipped, [M, B, 2].
    """

    states: torch.Tensor
    scalars: np.ndarray
    well_features: np.ndarray
    clipped: np.ndarray


class Forecast:
    """Several networks on several simulations of one grid, stepped together.

    Args:
        models: of an ensemble, at least one.
        sims: of equal shape.
        placement: regions, budget, constraints.
        first: the state that is given: 0 = first output, -1 = initial.
    """

    def __init__(
        self, models: Sequence[Model], sims: Sequence[PreppedSim], placement: Placement, first: int = 0
    ) -> None:
        self.models, self.sims = models, sims
        active = np.any([sim.masks()[0] > 0 for sim in sims], axis=0)
        budget = budget_bytes(placement, models[0].device) / len(models)
        device = models[0].device
        readers = [WellReader.of(sim.wells, sim.masks()).to(device) for sim in sims]
        self._masks = torch.from_numpy(np.stack([sim.masks() for sim in sims])).to(device)
        started = [started_pressure(sim) for sim in sims] if first < 0 else None
        record = recorder_for(placement.cuda_graph, device)
        self.limits: list[PhysicalLimits | None] = []
        self.rollouts: list[GridRollout] = []
        self.regions: list[Region] = []
        for model in models:
            fields = fields_of(model, sims, first, started)
            limits = None
            if placement.constrain:
                limits = PhysicalLimits(
                    model.network.scales, fields.state, fields.masks, sims, model.normalizer, first
                )
            self.regions = plan_regions(
                active,
                model.network,
                tile=tile_sizes(placement.tile),
                budget_bytes=budget,
                skip_inactive=placement.skip_inactive,
                batch=len(sims),
            )
            self.limits.append(limits)
            keep = fits_at_once(self.regions, model.network, len(sims), budget)
            if record is not None and not keep:
                get_logger().info(
                    "--cuda_graph: the regions' static features do not all fit --max_memory, so kernels run "
                    "one by one"
                )
            with torch.no_grad(), model.precision.autocast():
                rollout = GridRollout(
                    model.network,
                    fields,
                    self.regions,
                    features=lambda p, t: features_of(readers, p, t),
                    constraint=kept_state(model, sims, fields, placement, limits),
                    keep_static=keep,
                    compiled=placement.compile,
                    record=record if keep else None,
                )
            self.rollouts.append(rollout)

    @torch.no_grad()
    def years(self, count: int) -> Iterator[Year]:
        """Yield `count` predicted years.

        Raises:
            DivergedError: a state is not finite; the message says in which year and how many cells.
        """
        running = [rollout.steps(count) for rollout in self.rollouts]
        for k in range(1, count + 1):
            found = []
            for model, steps in zip(self.models, running, strict=True):
                with model.precision.autocast():
                    found.append(next(steps))
            states = torch.stack(
                [m.network.scales.physical(p.state.float()) for m, p in zip(self.models, found, strict=True)]
            )
            self._require_finite(states, k)
            yield Year(
                states,
                np.stack([p.scalars.double().cpu().numpy() for p in found]),
                np.stack([p.well_features.double().cpu().numpy() for p in found]),
                self._clipped(),
            )

    def _require_finite(self, states: torch.Tensor, year: int) -> None:
        domains = self._masks[None, :, [1, 0]] > 0
        bad = (~torch.isfinite(states) & domains).sum((2, 3, 4, 5))
        for m, b in bad.nonzero().tolist():
            raise DivergedError(
                f"{self.sims[b].path}: {int(bad[m, b])} cells are not finite in predicted year {year} of "
                f"{self.models[m].path}; train longer or with --unroll_steps, or predict fewer --steps"
            )

    def _clipped(self) -> np.ndarray:
        none = np.zeros((len(self.sims), 2), dtype=np.int64)
        return np.stack([none if c is None else c.clipped[-1].cpu().numpy() for c in self.limits])


def kept_state(
    model: Model,
    sims: Sequence[PreppedSim],
    fields: Fields,
    placement: Placement,
    limits: PhysicalLimits | None,
) -> Constraint | None:
    """Return what a predicted year passes before it is kept: sweeps over the water balance, then limits.

    Raises:
        DataError: sweeps are asked for, but a file does not say how large its cells are.
    """
    if not placement.pressure_sweeps:
        return limits
    for sim in sims:
        if sim.cell_size_m is None:
            raise DataError(
                f"{sim.path}: does not say how large its cells are (attribute cell_size_m), which "
                "--pressure_sweeps needs; add it, or leave the flag out"
            )
    return PressureSweeps(model.network.scales, fields, placement.pressure_sweeps, limits)


def budget_bytes(placement: Placement, device: torch.device) -> float:
    """Return the memory for the network's tensors, bytes; 0 = no limit known."""
    given = memory_bytes(placement.max_memory)
    if given or device.type != "cpu":
        return given
    return FREE_SHARE * free_memory_bytes()


def fits_at_once(regions: Sequence[Region], network: VoxelAutoRegressor, batch: int, budget: float) -> bool:
    """Return whether the static features of all regions fit half of the budget (0 = no limit)."""
    if not budget or len(regions) == 1:
        return True
    per_cell = 4.0 * batch * (network.config.base_channels + network.num_static + 8)
    largest = max(region.num_cells for region in regions) * bytes_a_cell(network, batch)
    return sum(region.num_cells for region in regions) * per_cell + largest <= budget


def fields_of(
    model: Model, sims: Sequence[PreppedSim], first: int, started: Sequence[np.ndarray] | None = None
) -> Fields:
    """Return the whole grids of some simulations in state `first`, on the model's device.

    Args:
        model: whose numbers normalise them.
        sims: of equal shape.
        first: 0 = first output; -1 = initial, with the pressure that the wells bring about at once.
        started: that pressure of each simulation, bar [Z, Y, X]; none = solve for it here.
    """
    items = [make_item(sim, first, 0, model.normalizer) for sim in sims]
    if first < 0:
        for item, sim, bar in zip(items, sims, started or map(started_pressure, sims), strict=True):
            temperature = sim.states(first, first + 1)[0, 1]
            state = np.stack([bar, temperature])
            item["states"][0] = model.normalizer.state_to_normalized(torch.from_numpy(state), item["masks"])
            active, flow = (mask > 0 for mask in sim.masks()[:2])
            item["well_features"][0] = torch.from_numpy(sim.wells.features(bar, temperature, active, flow))
    return Fields.first_of(devices.move(default_collate(items), model.device))


def features_of(
    readers: Sequence[WellReader], pressure: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """Return the well features of each simulation, [B, 6], from grids [B, Z, Y, X]."""
    each = zip(readers, pressure, temperature, strict=True)
    return torch.stack([reader.features(p, t) for reader, p, t in each])


def with_sentinels(state: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return bar and deg C, float32 [..., 2, Z, Y, X]: -999 off the active cells, pressure 0 on thermal rock.

    Args:
        state: [..., 2, Z, Y, X], anything off the domains.
        masks: [3, Z, Y, X]: active, flow, thermal.
    """
    active, flow = masks[0] > 0, masks[1] > 0
    out = np.full(state.shape, SENTINEL, dtype=np.float32)
    out[..., 0, :, :, :] = np.where(flow, state[..., 0, :, :, :], np.where(active, 0.0, SENTINEL))
    out[..., 1, :, :, :] = np.where(active, state[..., 1, :, :, :], SENTINEL)
    return out


def num_states(sim: PreppedSim, init: str, steps: int, *, default: int = 30) -> int:
    """Return how many states a forecast has: as asked for, else as the file, else 30."""
    return steps or sim.t_valid or default
