"""What the flow of water does to the temperature within one step, from the pressures of the moment.

Local, differentiable features in physical units. Letters: B batch, D H W cells along Z (downwards) Y X. P
pressure in bar, T temperature in deg C, a the water that enters a cell within a step, in heat capacities of
that cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from voxel_ode.units import (
    MILLIDARCY,
    PASCAL_PER_BAR,
    ROCK_VOLUMETRIC_HEAT,
    WATER_DENSITY,
    WATER_VOLUMETRIC_HEAT,
)
from voxel_ode.water import density_kg_m3, viscosity_pa_s

GRAVITY = 9.81  # m/s2
SWEEPS = 3  # of the implicit upwind solution; a feature reaches as many cells far
RADIUS = SWEEPS
WATER_RANGE_C = (0.0, 250.0)  # where the properties of liquid water are valid
_PERM_OF_AXIS = (2, 1, 0)  # PermX, PermY, PermZ along Z, Y, X


@dataclass(frozen=True)
class FluxGeometry:
    """What stays the same over the years.

    Attributes:
        faces: for Z, Y and X: k A / h of the face between a cell and the next one, m3 (0 beyond the last
            cell and where water does not flow), [B, D, H, W] each.
        sensitivity: dt C / (V bulk), the inflow number of 1 m3/s, s/m3, [B, D, H, W], 0 off flow cells.
        height_m: dz, [B, 1, 1, 1].
        injected: inflow number of the injectors' water, [B, D, H, W]; 0 where its temperature is unknown.
        injection_c: its temperature, deg C, [B, 1, 1, 1].
    """

    faces: Sequence[torch.Tensor]
    sensitivity: torch.Tensor
    height_m: torch.Tensor
    injected: torch.Tensor
    injection_c: torch.Tensor


def flux_geometry(
    rock_md: torch.Tensor,
    porosity: torch.Tensor,
    flow: torch.Tensor,
    cell_size_m: torch.Tensor,
    dt_s: torch.Tensor,
    source_kg_s: torch.Tensor,
    injection_c: torch.Tensor,
) -> FluxGeometry:
    """Return the geometry of the flow.

    Args:
        rock_md: PermX, PermY, PermZ, [B, 3, D, H, W]; any value off flow cells.
        porosity: [B, D, H, W].
        flow: 1 on cells with water, [B, D, H, W].
        cell_size_m: (dz, dy, dx), [B, 3].
        dt_s: length of a step, [B].
        source_kg_s: water that each cell receives from wells, [B, D, H, W].
        injection_c: temperature of what injectors bring, deg C, [B]; NaN when unknown.
    """
    water = flow > 0
    sizes = cell_size_m.unbind(1)
    volume = sizes[0] * sizes[1] * sizes[2]
    faces = []
    for axis, size in enumerate(sizes):
        k = torch.where(water, rock_md[:, _PERM_OF_AXIS[axis]], 0.0).clamp(min=0.0)
        beyond = next_cell(k, axis)
        harmonic = 2 * k * beyond / (k + beyond).clamp(min=1e-30)
        faces.append(harmonic * _cells(MILLIDARCY * volume / size**2))
    phi = torch.where(water, porosity, 0.0)
    bulk = phi * WATER_VOLUMETRIC_HEAT + (1 - phi) * ROCK_VOLUMETRIC_HEAT
    sensitivity = torch.where(water, _cells(dt_s * WATER_VOLUMETRIC_HEAT / volume) / bulk, 0.0)
    known = torch.isfinite(injection_c)
    injected = source_kg_s.clamp(min=0.0) / WATER_DENSITY * sensitivity * _cells(known.to(sensitivity))
    return FluxGeometry(faces, sensitivity, _cells(sizes[0]), injected, _cells(injection_c.nan_to_num()))


def _cells(values: torch.Tensor) -> torch.Tensor:
    """Return one number a sample, [B], as [B, 1, 1, 1]."""
    return values[:, None, None, None]


def next_cell(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the value of the next cell along an axis (0 Z, 1 Y, 2 X); 0 beyond the last. [B, D, H, W]."""
    return F.pad(x.narrow(axis + 1, 1, x.shape[axis + 1] - 1), _pads(axis, after=1))


def previous_cell(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the value of the cell before along an axis (0 Z, 1 Y, 2 X); 0 before the first."""
    return F.pad(x.narrow(axis + 1, 0, x.shape[axis + 1] - 1), _pads(axis, before=1))


def _pads(axis: int, before: int = 0, after: int = 0) -> list[int]:
    pads = [0] * 6
    pads[2 * (2 - axis)], pads[2 * (2 - axis) + 1] = before, after
    return pads


def face_flows(
    geometry: FluxGeometry, pressure_bar: torch.Tensor, temperature_c: torch.Tensor
) -> list[torch.Tensor]:
    """Return the flow from each cell to the next one along Z, Y and X, m3/s, [B, D, H, W] each.

    f = k A/h * 2 / (mu_i + mu_j) * (P_i - P_j + rho g (z_j - z_i)), rho the mean of both cells.
    """
    t = temperature_c.clamp(*WATER_RANGE_C)
    mu, rho = viscosity_pa_s(t), density_kg_m3(t)
    flows = []
    for axis, face in enumerate(geometry.faces):
        drop = (pressure_bar - next_cell(pressure_bar, axis)) * PASCAL_PER_BAR
        if axis == 0:
            drop = drop + 0.5 * (rho + next_cell(rho, axis)) * GRAVITY * geometry.height_m
        flows.append(face * (2.0 / (mu + next_cell(mu, axis))) * drop)
    return flows


def inflow_numbers(geometry: FluxGeometry, flows: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return for each axis [a from the cell before, a from the next cell], a >= 0, [B, D, H, W] each."""
    s = geometry.sensitivity
    return [[previous_cell(f, i).relu() * s, (-f).relu() * s] for i, f in enumerate(flows)]


def upwind(
    geometry: FluxGeometry, temperature_c: torch.Tensor, inflow: Sequence[Sequence[torch.Tensor]]
) -> torch.Tensor:
    """Return the temperature after the step, from some sweeps over the implicit upwind equations.

    X = T, then X <- (T + a_w T_inj + sum_j a_j X_j) / (1 + a_w + sum_j a_j) with the neighbours j that water
    comes from and the injectors' water a_w.
    """
    total = torch.stack([geometry.injected, *(a for pair in inflow for a in pair)]).sum(0)
    given = temperature_c + geometry.injected * geometry.injection_c
    x = temperature_c
    for _ in range(SWEEPS):
        carried = given
        for axis, (from_before, from_next) in enumerate(inflow):
            carried = carried + from_before * previous_cell(x, axis) + from_next * next_cell(x, axis)
        x = carried / (1 + total)
    return x


def flux_features(
    geometry: FluxGeometry, pressure_bar: torch.Tensor, temperature_c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the flow brings within one step: the change of temperature and the inflow number.

    Args:
        geometry: of the flow.
        pressure_bar: [B, D, H, W]; only differences between flow cells count.
        temperature_c: [B, D, H, W].

    Returns:
        (X - T in deg C, sum a), [B, D, H, W] each, both 0 off flow cells.
    """
    inflow = inflow_numbers(geometry, face_flows(geometry, pressure_bar, temperature_c))
    total = torch.stack([a for pair in inflow for a in pair]).sum(0)
    return upwind(geometry, temperature_c, inflow) - temperature_c, total


def source_number(source_kg_s: torch.Tensor, geometry: FluxGeometry) -> torch.Tensor:
    """Return asinh of the inflow number of the wells' water in each cell, [B, D, H, W]."""
    return torch.asinh(source_kg_s / WATER_DENSITY * geometry.sensitivity)
