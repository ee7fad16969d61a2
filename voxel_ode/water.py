"""Density and viscosity of liquid water; plain arithmetic, so for floats, arrays and tensors alike."""

from __future__ import annotations

from typing import TypeVar

from voxel_ode.units import ZERO_CELSIUS

V = TypeVar("V")  # float, array or tensor


def viscosity_pa_s(temperature_c: V) -> V:
    """Return mu = 2.414e-5 * 10^(247.8 / (T_K - 140)) (Al-Shemmeri 2012)."""
    return 2.414e-5 * 10.0 ** (247.8 / (temperature_c + (ZERO_CELSIUS - 140.0)))  # type: ignore[operator]


def density_kg_m3(temperature_c: V) -> V:
    """Return rho = 1000 (1 - (T + 288.9414)(T - 3.9863)^2 / (508929.2 (T + 68.12963))) (McCutcheon 1993)."""
    t = temperature_c
    return 1000.0 * (1.0 - (t + 288.9414) * (t - 3.9863) ** 2 / (508929.2 * (t + 68.12963)))  # type: ignore[operator]
