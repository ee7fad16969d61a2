"""Pressures that agree with their wells: some sweeps over the water balance after each predicted year.

Where rock conducts well a hundredth of a bar moves much water, so errors of the predicted pressure that look
small make water circulate between neighbouring cells, and cold water reach producers too early. Damped
Jacobi sweeps over the balance of each cell, sum of outflows = water from wells, remove what differs from cell
to cell and leave what is smooth, which the network is good at.
"""

from __future__ import annotations

import torch

from voxel_ode import flux
from voxel_ode.fields import Fields
from voxel_ode.model import Scales
from voxel_ode.rollout_core import Constraint
from voxel_ode.units import PASCAL_PER_BAR, WATER_DENSITY
from voxel_ode.water import viscosity_pa_s

DAMPING = 0.85


class PressureSweeps:
    """Relaxes predicted pressures towards the water balance of flow cells; temperatures stay.

    P_i <- P_i - 0.85 (sum_f flow out of i - q_i / rho0) / sum_f k A / (h mu)

    Args:
        scales: of the network.
        fields: the whole grids.
        sweeps: how often.
        then: what limits the result, if anything.
    """

    def __init__(self, scales: Scales, fields: Fields, sweeps: int, then: Constraint | None = None) -> None:
        self.scales, self.sweeps, self.then = scales, sweeps, then
        source_kg_s = fields.well_source[:, 0]
        self.geometry = flux.flux_geometry(
            fields.rock,
            fields.porosity[:, 0],
            fields.masks[:, 1],
            fields.cell_size,
            fields.dt_s,
            source_kg_s,
            fields.injection_c,
        )
        self.source_m3_s = source_kg_s / WATER_DENSITY

    def __call__(self, following: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return `following` with relaxed pressures, within the limits if there are any, [B, 2, Z, Y, X]."""
        pressure, temperature = self.scales.physical(following.float()).unbind(1)
        relaxed = (self.relaxed(pressure, temperature) - self.scales.mean[0]) / self.scales.std[0]
        relaxed = torch.where(self._conductance(temperature) > 0, relaxed.to(following), following[:, 0])
        kept = torch.stack([relaxed, following[:, 1]], dim=1)
        return kept if self.then is None else self.then(kept, state)

    def relaxed(self, pressure_bar: torch.Tensor, temperature_c: torch.Tensor) -> torch.Tensor:
        """Return the pressure after the sweeps, bar [B, Z, Y, X]."""
        conductance = self._conductance(temperature_c)
        inside, conductance = conductance > 0, conductance.clamp(min=1e-30)
        for _ in range(self.sweeps):
            excess = torch.where(inside, self._excess(pressure_bar, temperature_c), 0.0)
            pressure_bar = pressure_bar - DAMPING * excess / conductance
        return pressure_bar

    def imbalance(self, pressure_bar: torch.Tensor, temperature_c: torch.Tensor) -> torch.Tensor:
        """Return what leaves each cell beyond what its wells bring, m3/s [B, Z, Y, X]; 0 off flow cells."""
        return torch.where(
            self._conductance(temperature_c) > 0, self._excess(pressure_bar, temperature_c), 0.0
        )

    def _excess(self, pressure_bar: torch.Tensor, temperature_c: torch.Tensor) -> torch.Tensor:
        flows = flux.face_flows(self.geometry, pressure_bar, temperature_c)
        out = torch.stack([f - flux.previous_cell(f, axis) for axis, f in enumerate(flows)]).sum(0)
        return out - self.source_m3_s

    def _conductance(self, temperature_c: torch.Tensor) -> torch.Tensor:
        """Return the flow out of each cell for a bar more than around it, m3/s/bar [B, Z, Y, X]."""
        mu = viscosity_pa_s(temperature_c.clamp(*flux.WATER_RANGE_C))
        total = torch.zeros_like(mu)
        for axis, face in enumerate(self.geometry.faces):
            one = face * (2.0 * PASCAL_PER_BAR / (mu + flux.next_cell(mu, axis)))
            total = total + one + flux.previous_cell(one, axis)
        return total
