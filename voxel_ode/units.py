"""Units: bar, deg C, mD, kg/s, W and J inside; SI or field units in files.

Every conversion is linear, internal = scale * stored + offset, so each dataset needs two numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from common.errors import DataError
from voxel_ode.schema import SENTINEL, is_missing

DAY = 86400.0  # s
YEAR = 365.25 * DAY  # s
PASCAL_PER_BAR = 1e5
ZERO_CELSIUS = 273.15  # K
MILLIDARCY = 9.869233e-16  # m2
WATER_DENSITY = 1000.0  # kg/m3 of a standard cubic metre, and of the flow equations
WATER_HEAT_CAPACITY = 4200.0  # J/kg/K
WATER_VOLUMETRIC_HEAT = WATER_DENSITY * WATER_HEAT_CAPACITY  # J/m3/K
ROCK_VOLUMETRIC_HEAT = 2.3e6  # J/m3/K

System = Literal["si", "field"]
SYSTEMS: tuple[System, ...] = ("si", "field")

_KINDS = {
    "Pressure0": "pressure",
    "Pressure": "pressure",
    "Temperature0": "temperature",
    "Temperature": "temperature",
    "InjRate": "rate",
    "FieldEnergyInjectionRate": "power",
    "FieldEnergyProductionRate": "power",
    "FieldEnergyProductionTotal": "energy",
    "FieldWaterInjectionRate": "step_rate",
    "FieldWaterProductionRate": "step_rate",
    "PermX": "permeability",
    "PermY": "permeability",
    "PermZ": "permeability",
    "Porosity": "fraction",
}
_UNIT_NAMES = {
    "si": {
        "pressure": "Pa",
        "temperature": "K",
        "rate": "kg/s",
        "step_rate": "kg/s",
        "power": "W",
        "energy": "J",
        "permeability": "mD",
        "fraction": "1",
    },
    "field": {
        "pressure": "bar",
        "temperature": "degC",
        "rate": "Sm3/day",
        "step_rate": "Sm3",  # volume of the step
        "power": "kJ",  # energy of the step
        "energy": "kJ",
        "permeability": "mD",
        "fraction": "1",
    },
}
INTERNAL_UNITS = {"Pressure": "bar", "Temperature": "degC", "InjRate": "kg/s", "Perm": "mD"}


def unit_name(name: str, system: System) -> str:
    """Return the unit of a dataset (last part of its path) in a system; "1" for plain numbers."""
    return _UNIT_NAMES[system][_KINDS.get(name, "fraction")]


def scale_and_offset(name: str, system: System, dt_s: float = YEAR) -> tuple[float, float]:
    """Return (scale, offset) of dataset `name`: internal = scale * stored + offset.

    Args:
        name: last part of the dataset's path; one without a unit gives (1, 0).
        system: of the stored values.
        dt_s: length of an output step, for volumes and energies "a step", s.
    """
    unit = unit_name(name, system)
    return {
        "Pa": (1.0 / PASCAL_PER_BAR, 0.0),
        "K": (1.0, -ZERO_CELSIUS),
        "Sm3/day": (WATER_DENSITY / DAY, 0.0),
        "Sm3": (WATER_DENSITY / dt_s, 0.0),
        "kJ": (1000.0 if _KINDS.get(name) == "energy" else 1000.0 / dt_s, 0.0),
    }.get(unit, (1.0, 0.0))


def to_internal(name: str, values: np.ndarray, system: System, dt_s: float = YEAR) -> np.ndarray:
    """Return stored values in internal units, float64; sentinels stay as they are."""
    scale, offset = scale_and_offset(name, system, dt_s)
    with np.errstate(invalid="ignore"):  # a signalling NaN of a damaged file becomes a quiet one
        values = np.asarray(values, dtype=np.float64)
    return np.where(_not_given(name, values), values, scale * values + offset)


def from_internal(name: str, values: np.ndarray, system: System, dt_s: float = YEAR) -> np.ndarray:
    """Return internal values as they are stored in `system`, float64; sentinels stay as they are."""
    scale, offset = scale_and_offset(name, system, dt_s)
    values = np.asarray(values, dtype=np.float64)
    return np.where(_not_given(name, values), values, (values - offset) / scale)


def _not_given(name: str, values: np.ndarray) -> np.ndarray:
    """Return where there is no value.

    Rates and powers may lie far below -999 (a producer's Sm3/day do), so that only -999 itself counts there.
    """
    if _KINDS.get(name) in ("rate", "step_rate", "power", "energy"):
        return np.isnan(values) | (values == SENTINEL)
    return is_missing(values)


def system_of_unit(unit: str) -> System | None:
    """Return the system that a dataset's `units` attribute speaks of; None when it does not tell.

    "Pa", "K", "kg/s", "W" and "J" are SI; "bar", "degC", "C", "Sm3/day", "Sm3" and "kJ" are field units.
    """
    word = unit.strip().lower().replace("°", "deg").replace(" ", "")
    if word in {"si", "pa", "k", "kelvin", "pascal", "kg/s", "w", "j"}:
        return "si"
    if word in {"field", "bar", "bara", "degc", "c", "celsius", "sm3/day", "sm3/d", "sm3", "kj"}:
        return "field"
    return None


def guess_system(source: str, median_pressure: float, median_temperature: float) -> System:
    """Return the system of a file without unit attributes from its medians over valid cells.

    A median pressure above 1e4 is Pa, a median temperature above 200 is K.

    Args:
        source: named in the message.
        median_pressure: over flow cells, as stored.
        median_temperature: over active cells, as stored.

    Raises:
        DataError: pressure and temperature speak of different systems.
    """
    by_pressure: System = "si" if median_pressure > 1e4 else "field"
    by_temperature: System = "si" if median_temperature > 200 else "field"
    if by_pressure != by_temperature:
        raise DataError(
            f"{source}: median pressure {median_pressure:g} looks like {unit_name('Pressure', by_pressure)} "
            f"but median temperature {median_temperature:g} like {unit_name('Temperature', by_temperature)}; "
            "say which with --units si or --units field"
        )
    return by_pressure
