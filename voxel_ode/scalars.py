"""Field rates of one year from the wells' temperatures: energy and water in and out, produced energy in all.

Order of the scalars: energy injection rate (W), energy production rate (W), energy production total (J),
water injection rate, water production rate (kg/s). A row of well features holds mean T at injectors, T at
producers, P at injectors, P at producers (weighted by the rates), T of active and P of flow cells.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from voxel_ode.units import WATER_HEAT_CAPACITY

OLD_SHARE = 0.25  # of the temperature before the year in the mean over the year
RATES = (0, 1, 3, 4)
TOTAL = 2
HIDDEN = 64


def physical_rates(well_now: torch.Tensor, well_next: torch.Tensor, rates_kg_s: torch.Tensor) -> torch.Tensor:
    """Return the four rates (W, W, kg/s, kg/s) of a year, [B, 4], without any learned part.

    Injected energy  = q_inj c_w T_inj(t+1),  produced energy = q_prod c_w (0.25 T_prod(t) + 0.75 T_prod(t+1))

    Args:
        well_now: well features at t, deg C and bar, [B, 6].
        well_next: well features at t+1, [B, 6].
        rates_kg_s: total injection and production, both >= 0, [B, 2].
    """
    injected, produced = rates_kg_s.unbind(1)
    over_the_year = OLD_SHARE * well_now[:, 1] + (1 - OLD_SHARE) * well_next[:, 1]
    energy_in = injected * WATER_HEAT_CAPACITY * well_next[:, 0]
    energy_out = produced * WATER_HEAT_CAPACITY * over_the_year
    return torch.stack([energy_in, energy_out, injected, produced], dim=1)


def with_total(rates: torch.Tensor, previous_total: torch.Tensor, dt_s: torch.Tensor) -> torch.Tensor:
    """Return all five scalars, [B, 5]: the total grows by the produced power times the step.

    Args:
        rates: [B, 4], W and kg/s.
        previous_total: J, [B].
        dt_s: length of the step, [B].
    """
    total = previous_total + rates[:, 1] * dt_s
    return torch.cat([rates[:, :2], total[:, None], rates[:, 2:]], dim=1)


class RateCorrection(nn.Module):
    """A small perceptron that corrects the four rates in normalised space; zero at the start."""

    def __init__(self, num_params: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(12 + num_params, HIDDEN)
        self.out = nn.Linear(HIDDEN, len(RATES))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, well_now: torch.Tensor, well_next: torch.Tensor, rates_kg_s: torch.Tensor, params: torch.Tensor
    ) -> torch.Tensor:
        """Return the correction of the normalised rates, [B, 4].

        Args:
            well_now: normalised well features at t, [B, 6]; the first four count.
            well_next: normalised well features at t+1, [B, 6].
            rates_kg_s: [B, 2].
            params: [B, P].
        """
        x = torch.cat([well_now[:, :4], well_next, torch.log1p(rates_kg_s), params], dim=1)
        return self.out(F.silu(self.hidden(x)))


class PooledScalars(nn.Module):
    """All five normalised scalars from the mean of the trunk over active cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, 5)

    def forward(self, trunk: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return [B, 5] for `trunk` [B, C, D, H, W] and `mask` [B, 1, D, H, W]."""
        count = mask.sum((2, 3, 4)).clamp(min=1.0)
        mean = (trunk * mask).sum((2, 3, 4)) / count
        return self.out(F.silu(self.hidden(mean)))
