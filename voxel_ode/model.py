"""The autoregressive network: a reservoir now -> its pressure, temperature and field rates a year later.

Letters: B batch, S static channels, C channels of the trunk, P parameters, D H W cells along Z (depth,
downwards) Y X. States are normalised pressure and temperature, 0 off their domains (flow and active cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.device import like_weights
from voxel_ode import flux, layers, scalars
from voxel_ode.config import ModelConfig
from voxel_ode.convolutions import Conv
from voxel_ode.fields import Fields, Frame
from voxel_ode.layers import Film
from voxel_ode.normalize import Normalizer

NUM_GRIDS = 2  # pressure, temperature
STATE_INPUTS = 2
FLUX_STATIC = 1  # the wells' source
FLUX_DYNAMIC = 4  # P - P0, T - T0, change of T by the flow, inflow number
BLOCKS_A_LEVEL = 2
QUIET_GATE = 0.02  # of the temperature change where no front is near, in delta_rms
DRAWDOWN_SHARE = 0.05  # of |P - P0| that a year may change by, for an output of 1
FLOW_GAIN = 10.0  # so that the weight of the flow's change is learned within some steps


@dataclass(frozen=True)
class StaticFeatures:
    """What stays the same over the years of a rollout; grids are aligned to the coarse cells.

    Attributes:
        frame: how the samples stand in the aligned boxes.
        inputs: static input channels, [B, S(+1), D, H, W].
        stem: the stem's response to them, [B, C, D, H, W]; None to compute it every step.
        films: (gamma, beta) of every block, in the order of `VoxelAutoRegressor.blocks`.
        masks: active cells of every level, [B, 1, D / 2^l, ...].
        domains: flow and active cells, [B, 2, D, H, W].
        initial: state before the first year, [B, 2, D, H, W].
        geometry: of the flow; None without flux inputs.
        params: [B, P].
        well_rates: kg/s, [B, 2].
        dt_s: [B].
    """

    frame: Frame
    inputs: torch.Tensor
    stem: torch.Tensor | None
    films: Sequence[Film]
    masks: Sequence[torch.Tensor]
    domains: torch.Tensor
    initial: torch.Tensor
    geometry: flux.FluxGeometry | None
    params: torch.Tensor
    well_rates: torch.Tensor
    dt_s: torch.Tensor


class Scales(nn.Module):
    """The numbers of the normaliser as buffers, so that they follow the network to its device."""

    mean: torch.Tensor
    std: torch.Tensor
    delta_rms: torch.Tensor
    scalar_mean: torch.Tensor
    scalar_std: torch.Tensor
    scalar_log: torch.Tensor

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        for name, values in (
            ("mean", normalizer.grid_mean),
            ("std", normalizer.grid_std),
            ("delta_rms", normalizer.delta_rms),
            ("scalar_mean", normalizer.scalar_mean),
            ("scalar_std", normalizer.scalar_std),
            ("scalar_log", normalizer.scalar_log1p > 0),
        ):
            self.register_buffer(name, torch.as_tensor(values).clone(), persistent=False)

    def step_units(self) -> torch.Tensor:
        """Return delta_rms in normalised units, [2, 1, 1, 1]."""
        return (self.delta_rms / self.std)[:, None, None, None]

    def physical(self, state: torch.Tensor) -> torch.Tensor:
        """Return pressure in bar and temperature in deg C, [B, 2, D, H, W]."""
        return state * self.std[:, None, None, None] + self.mean[:, None, None, None]

    def wells(self, features: torch.Tensor) -> torch.Tensor:
        """Return well features [B, 6] (T T P P T P) in normalised units."""
        order = [1, 1, 0, 0, 1, 0]
        return (features - self.mean[order]) / self.std[order]

    def scalars(self, physical: torch.Tensor) -> torch.Tensor:
        """Return normalised scalars [B, 5] of physical ones."""
        logs = torch.log1p(physical.clamp(min=0.0))
        return (torch.where(self.scalar_log, logs, physical) - self.scalar_mean) / self.scalar_std

    def physical_scalars(self, normalized: torch.Tensor) -> torch.Tensor:
        """Return physical scalars [B, 5] of normalised ones; never below 0 where a logarithm was taken."""
        values = normalized * self.scalar_std + self.scalar_mean
        return torch.where(self.scalar_log, torch.expm1(values.clamp(min=0.0, max=85.0)), values)


class VoxelAutoRegressor(nn.Module):
    """One year of a geothermal reservoir on a grid of any size.

    Args:
        config: the architecture.
        normalizer: of the training data; gives the numbers of static channels and parameters too.
    """

    def __init__(self, config: ModelConfig, normalizer: Normalizer) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales(normalizer)
        c, kernel = config.base_channels, 2 * config.receptive_field_radius + 1
        num_params = len(normalizer.param_mean)
        self.num_static = len(normalizer.static_channels) + (FLUX_STATIC if config.flux_inputs else 0)
        num_inputs = self.num_static + STATE_INPUTS + (FLUX_DYNAMIC if config.flux_inputs else 0)
        self.stem = Conv(num_inputs, c, kernel)
        self.stem_norm = layers.make_norm(config.norm, c)
        self.shared_film, num_film = _shared_film(num_params, config.film_hidden)
        levels = [level for level in range(1, config.multiscale + 1) for _ in range(BLOCKS_A_LEVEL)]
        self.blocks = nn.ModuleList(
            layers.make_block(config.kernel_mode, c, kernel, config.norm, num_film, level)
            for level in [*levels, *[0] * config.depth]
        )
        self.rise = nn.ModuleList(Conv(c, c, 1) for _ in range(config.multiscale))
        self.head = Conv(c, c, 3)
        self.head_norm = layers.make_norm(config.norm, c)
        self.is_gated = config.flux_inputs and config.predict == "delta"
        self.out = Conv(c + (num_inputs if self.is_gated else 0), NUM_GRIDS, 1, bias=True)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]
        if self.is_gated:
            self.flow_weight = nn.Parameter(torch.zeros(()))
        physics = config.scalar_head == "physics"
        self.scalar_head = scalars.RateCorrection(num_params) if physics else scalars.PooledScalars(c)

    @property
    def multiple(self) -> int:
        """Tiles must begin at multiples of this many cells of the full grid."""
        return 2**self.config.multiscale

    @property
    def uses_local_norm(self) -> bool:
        """Whether a cell's result depends on the cells within `receptive_radius` only."""
        return self.config.norm in layers.LOCAL_NORMS

    @property
    def receptive_radius(self) -> int:
        """How many cells away an input can change an output; the halo of exact tiles.

        A coarse feature reaches `reach` cells beyond its own coarse cell, which may itself end 2^l - 1 cells
        away from the cell that it is spread to.
        """
        reach = furthest = self.config.receptive_field_radius
        for level in range(1, self.config.multiscale + 1):
            blocks = self.blocks[BLOCKS_A_LEVEL * (level - 1) : BLOCKS_A_LEVEL * level]
            reach += 2**level * sum(int(block.radius) for block in blocks)  # type: ignore[arg-type]
            furthest = max(furthest, reach + 2**level - 1)
        trunk = self.blocks[BLOCKS_A_LEVEL * self.config.multiscale :]
        furthest += sum(int(block.radius) for block in trunk) + 1  # type: ignore[arg-type]
        return furthest + (flux.RADIUS if self.config.flux_inputs else 0)

    def static_features(self, fields: Fields, *, once: bool = True) -> StaticFeatures:
        """Return what does not change from year to year.

        Args:
            fields: the reservoir; its state is not used.
            once: respond to the static channels now and add the state's response each year (the stem is
                linear); False leaves the stem whole, which is cheaper for a single step.
        """
        frame = Frame.of(fields.origin, fields.static.shape[2:], self.multiple)
        masks = frame.embed(fields.masks)
        levels = [masks[:, :1]]
        for _ in range(self.config.multiscale):
            levels.append(layers.coarser(levels[-1]))
        inputs = frame.embed(fields.static) * levels[0]
        geometry = None
        if self.config.flux_inputs:
            rock, porosity = frame.embed(fields.rock), frame.embed(fields.porosity)[:, 0]
            source_kg_s = frame.embed(fields.well_source)[:, 0]
            geometry = flux.flux_geometry(
                rock,
                porosity,
                masks[:, 1],
                fields.cell_size,
                fields.dt_s,
                source_kg_s,
                fields.injection_c,
            )
            source = flux.source_number(source_kg_s, geometry)
            inputs = torch.cat([inputs, source[:, None]], dim=1)
        inputs = like_weights(inputs)
        return StaticFeatures(
            frame=frame,
            inputs=inputs,
            stem=self.stem(inputs, slice(0, self.num_static)) if once else None,
            films=self._films(fields.params),
            masks=levels,
            domains=torch.cat([masks[:, 1:2], levels[0]], dim=1),
            initial=frame.embed(fields.initial),
            geometry=geometry,
            params=fields.params,
            well_rates=fields.well_rates,
            dt_s=fields.dt_s,
        )

    def _films(self, params: torch.Tensor) -> list[Film]:
        embedded = self.shared_film(params)
        return [block.film(embedded).to(params.dtype).chunk(2, dim=1) for block in self.blocks]  # type: ignore[operator]

    def step(self, fixed: StaticFeatures, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (normalised state one year later [B, 2, D, H, W], the trunk's aligned features).

        Args:
            fixed: from `static_features`.
            state: normalised state now, [B, 2, D, H, W].
        """
        now = fixed.frame.embed(state) * fixed.domains
        dynamic, flow_change = self._dynamic_inputs(fixed, now)
        dynamic = like_weights(dynamic)
        inputs = torch.cat([fixed.inputs, dynamic], dim=1) if self.is_gated or fixed.stem is None else None
        if fixed.stem is None:
            x = self.stem(inputs)
        else:
            x = fixed.stem + self.stem(dynamic, slice(self.num_static, None))
        x = self._trunk(F.silu(self.stem_norm(x, fixed.masks[0])) * fixed.masks[0], fixed)
        h = F.silu(self.head_norm(self.head(x), fixed.masks[0])) * fixed.masks[0]
        g = self.out(torch.cat([h, inputs], dim=1) if self.is_gated else h).to(state.dtype)  # type: ignore[list-item]
        if self.config.predict == "absolute":
            following = g * fixed.domains
        else:
            if self.is_gated:
                gates = [self._gated_pressure(fixed, now, g[:, :1]), self._gated(g[:, 1:], flow_change)]
                g = torch.cat(gates, dim=1)
            following = now + self.scales.step_units() * g * fixed.domains
        return fixed.frame.extract(following), x

    def _dynamic_inputs(self, fixed: StaticFeatures, now: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the channels that change with the state, and the flow's change of T in delta_rms."""
        if fixed.geometry is None:
            return now, now[:, :0]
        pressure, temperature = self.scales.physical(now).unbind(1)
        change, inflow = flux.flux_features(fixed.geometry, pressure, temperature)
        change = (change / self.scales.delta_rms[1])[:, None]
        grown = (now - fixed.initial) * fixed.domains
        return torch.cat([now, grown, change, torch.asinh(inflow)[:, None]], dim=1), change

    def _gated_pressure(self, fixed: StaticFeatures, now: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return the change of P in delta_rms: a share of what the wells have changed already.

        Rock that conducts well feels the wells by a hundredth of the pressure of tight rock, so that a year's
        change is near a common share of |P - P0| everywhere, but in bar it differs as much as permeability.
        An error that is small in tight rock would drive any flow in the other.
        """
        drawdown = (now - fixed.initial)[:, :1] * fixed.domains[:, :1] / self.scales.step_units()[:1]
        gate = DRAWDOWN_SHARE * (F.max_pool3d(drawdown.abs(), 3, stride=1, padding=1) + 1.0)
        return gate * g

    def _gated(self, g: torch.Tensor, flow_change: torch.Tensor) -> torch.Tensor:
        """Return the change of T in delta_rms: what the flow brings, and a correction near fronts only."""
        gate = F.max_pool3d(flow_change.abs(), 3, stride=1, padding=1) + QUIET_GATE
        return FLOW_GAIN * self.flow_weight * flow_change + gate * g

    def _trunk(self, x: torch.Tensor, fixed: StaticFeatures) -> torch.Tensor:
        """Return the features after the coarse levels and the trunk's blocks."""
        ladder = [x]
        for level in range(1, self.config.multiscale + 1):
            first = BLOCKS_A_LEVEL * (level - 1)
            x = layers.pooled(ladder[-1], fixed.masks[level - 1], fixed.masks[level])
            ladder.append(self._run_blocks(x, fixed, first, first + BLOCKS_A_LEVEL, level))
        for level in range(self.config.multiscale, 0, -1):
            risen = layers.spread(self.rise[level - 1](ladder[level]))
            ladder[level - 1] = (ladder[level - 1] + risen) * fixed.masks[level - 1]
        first = BLOCKS_A_LEVEL * self.config.multiscale
        return self._run_blocks(ladder[0], fixed, first, len(self.blocks), 0)

    def _run_blocks(
        self, x: torch.Tensor, fixed: StaticFeatures, first: int, stop: int, level: int
    ) -> torch.Tensor:
        for i in range(first, stop):
            arguments: tuple[Any, ...] = (x, fixed.films[i], fixed.masks[level])
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.blocks[i], *arguments, use_reentrant=False)
            else:
                x = self.blocks[i](*arguments)
        return x

    def scalars(
        self,
        fixed: StaticFeatures,
        trunk: torch.Tensor,
        well_now: torch.Tensor,
        well_next: torch.Tensor,
        previous_total: torch.Tensor,
    ) -> torch.Tensor:
        """Return the five normalised scalars of the year, [B, 5].

        Args:
            fixed: from `static_features`.
            trunk: from `step`.
            well_now: well features at t, deg C and bar, [B, 6].
            well_next: well features at t+1, [B, 6].
            previous_total: energy produced until t, J, [B].
        """
        if isinstance(self.scalar_head, scalars.PooledScalars):
            return self.scalar_head(trunk, fixed.masks[0]).to(previous_total.dtype)
        rates = scalars.physical_rates(well_now, well_next, fixed.well_rates)
        z = self.scales.scalars(scalars.with_total(rates, previous_total, fixed.dt_s))
        correction = self.scalar_head(
            self.scales.wells(well_now), self.scales.wells(well_next), fixed.well_rates, fixed.params
        )
        order = list(scalars.RATES)
        z = z.index_add(1, torch.tensor(order, device=z.device), correction.to(z.dtype))
        rates = self.scales.physical_scalars(z)[:, order]
        total = self.scales.scalars(scalars.with_total(rates, previous_total, fixed.dt_s))
        return torch.cat([z[:, :2], total[:, 2:3], z[:, 3:]], dim=1)

    def forward(self, fields: Fields) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (normalised state one year later [B, 2, D, H, W], normalised scalars [B, 5])."""
        fixed = self.static_features(fields, once=False)
        following, trunk = self.step(fixed, fields.state)
        values = self.scalars(fixed, trunk, fields.well_now, fields.well_next, fields.previous_total)
        return following, values


def _shared_film(num_params: int, hidden: int) -> tuple[nn.Module, int]:
    """Return the layers before FiLM, and the number of their outputs."""
    if not hidden:
        return nn.Identity(), num_params
    return nn.Sequential(
        nn.Linear(num_params, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
    ), hidden
