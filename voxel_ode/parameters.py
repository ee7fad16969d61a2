"""The unit-cube parameters of the generator: what each of the 26 means and the range it is spread over.

None of them is a direction: azimuths and positions are drawn apart, so that turning or flipping a case leaves
its parameters as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxel_ode.schema import NUM_PARAMS


@dataclass(frozen=True)
class Parameter:
    """One parameter u in [0, 1] that stands for low + u (high - low)."""

    name: str
    low: float
    high: float
    unit: str


PARAMETERS: dict[int, Parameter] = {
    0: Parameter("dip", 0.0, 0.18, "cells down per cell along"),
    2: Parameter("mean_log10_permeability", 1.2, 2.2, "log10 mD"),
    3: Parameter("sigma_log10_permeability", 0.2, 0.6, "log10 mD"),
    4: Parameter("porosity", 0.08, 0.16, "fraction"),
    5: Parameter("fault1_log10_multiplier", -2.0, 1.0, "log10"),
    6: Parameter("fault2_log10_multiplier", -2.0, 1.0, "log10"),
    7: Parameter("fault3_log10_multiplier", -2.0, 1.0, "log10"),
    8: Parameter("horizontal_anisotropy", 1.0, 2.0, "ratio"),
    9: Parameter("vertical_anisotropy", 0.05, 0.3, "kz/kx"),
    10: Parameter("well_rate", 30.0, 80.0, "kg/s"),
    11: Parameter("temperature_gradient", 0.03, 0.045, "K/m"),
    12: Parameter("injection_temperature", 35.0, 55.0, "degC"),
    13: Parameter("rock_conductivity", 2.0, 3.2, "W/m/K"),
}
PARAM_NAMES = tuple(PARAMETERS[i].name if i in PARAMETERS else f"spare_{i}" for i in range(NUM_PARAMS))


def physical(params: np.ndarray) -> dict[str, float]:
    """Return what unit-cube parameters [26] stand for, by name."""
    return {p.name: p.low + float(params[i]) * (p.high - p.low) for i, p in PARAMETERS.items()}
