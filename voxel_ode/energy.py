"""What doublets earn: heat produced, or what is left of it after reinjection and pumping, discounted.

Plain arithmetic, for arrays and tensors alike: the search for better rates and its check share these lines.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from voxel_ode.units import PASCAL_PER_BAR, WATER_DENSITY

Objective = Literal["produced_energy", "net_energy"]
OBJECTIVES: tuple[Objective, ...] = ("produced_energy", "net_energy")
PUMP_EFFICIENCY = 0.6


def pumping_power_w(injection_kg_s: Any, injector_bar: Any, producer_bar: Any) -> Any:
    """Return the power of the pumps, q / rho0 (P_inj - P_prod) / efficiency, W.

    Args:
        injection_kg_s: total rate that circulates, kg/s.
        injector_bar: mean pressure at the injectors, weighted by rate.
        producer_bar: the same at the producers.
    """
    return injection_kg_s / WATER_DENSITY * (injector_bar - producer_bar) * (PASCAL_PER_BAR / PUMP_EFFICIENCY)


def net_power_w(produced_w: Any, injected_w: Any, pumping_w: Any) -> Any:
    """Return heat produced less heat injected and pumping, W."""
    return produced_w - injected_w - pumping_w


def discount_factors(num_years: int, rate: float) -> np.ndarray:
    """Return (1 + rate)^-k for years k = 0 .. num_years - 1, float64."""
    return (1.0 + rate) ** -np.arange(num_years, dtype=np.float64)
