"""Year after year on a whole grid: the network reads its own predictions.

The state stays normalised on the device; static channels pass the stem once, FiLM is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from voxel_ode.fields import Fields
from voxel_ode.model import StaticFeatures, VoxelAutoRegressor

Features = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Constraint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ENERGY_TOTAL = 2


@dataclass(frozen=True)
class Prediction:
    """One predicted year.

    Attributes:
        state: normalised pressure and temperature, [B, 2, D, H, W], 0 off their domains.
        scalars: physical field rates of the year, [B, 5].
        well_features: deg C and bar after the year, [B, 6].
    """

    state: torch.Tensor
    scalars: torch.Tensor
    well_features: torch.Tensor


class Rollout:
    """A network on one grid, ready to be stepped.

    Args:
        model: the network, in evaluation mode on the device of `fields`.
        fields: the reservoir and its first state; `well_next` is not read.
        features: (pressure bar, temperature deg C, [B, D, H, W] each) -> well features [B, 6]; see
            `voxel_ode.wells.WellReader`. Without it the features of `fields` stay as they are.
        constraint: (normalised prediction, normalised state before it) -> normalised state that is kept.
    """

    def __init__(
        self,
        model: VoxelAutoRegressor,
        fields: Fields,
        *,
        features: Features | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.model = model
        self.fields = fields
        self.features = features
        self.constraint = constraint
        self.fixed: StaticFeatures = model.static_features(fields)

    def steps(self, count: int) -> Iterator[Prediction]:
        """Yield `count` predicted years; differentiable unless under `torch.no_grad`."""
        state = self.fields.state
        well_now, total = self.fields.well_now, self.fields.previous_total
        for _ in range(count):
            following, trunk = self.model.step(self.fixed, state)
            if self.constraint is not None:
                following = self.constraint(following, state)
            well_next = self._read_wells(following, well_now)
            z = self.model.scalars(self.fixed, trunk, well_now, well_next, total)
            values = self.model.scales.physical_scalars(z)
            yield Prediction(following, values, well_next)
            state, well_now, total = following, well_next, values[:, ENERGY_TOTAL]

    def _read_wells(self, state: torch.Tensor, well_now: torch.Tensor) -> torch.Tensor:
        if self.features is None:
            return well_now
        pressure, temperature = self.model.scales.physical(state.float()).unbind(1)
        return self.features(pressure, temperature)
