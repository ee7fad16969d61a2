"""Names and marks of the simulation files, raw ("v2.4") and prepped, and the order of their channels.

A grid is [Z, Y, X]; Z is depth, axis 0, downwards. The order of the five scalars and of the eleven static
channels is the same in files, tensors and tables.
"""

from __future__ import annotations

import numpy as np

SCHEMA = "v2.4"
SENTINEL = -999.0  # what stands outside the domain of a dataset
_MISSING_FROM = -998.0  # anything at or below is a sentinel, whatever the rounding of the file

STATIC_NAMES = (
    "FaultId",
    "InjRate",
    "IsActive",
    "IsWell",
    "PermX",
    "PermY",
    "PermZ",
    "Porosity",
    "Pressure0",
    "Temperature0",
    "Depth",
)
INPUT_NAMES = STATIC_NAMES[:-1]  # what a raw file holds; Depth is computed
GRID_NAMES = ("Pressure", "Temperature")
SCALAR_NAMES = (
    "FieldEnergyInjectionRate",
    "FieldEnergyProductionRate",
    "FieldEnergyProductionTotal",
    "FieldWaterInjectionRate",
    "FieldWaterProductionRate",
)
MASK_NAMES = ("active", "flow", "thermal")
WELL_FEATURE_NAMES = ("T_inj", "T_prod", "P_inj", "P_prod", "T_active", "P_flow")
PARAMS_NAME = "Input/ParamsScalar"
NUM_PARAMS = 26

# Attributes of a raw file
ATTR_SCHEMA = "schema"
ATTR_UNITS = "units"  # of the file: "si" or "field"; of a dataset: its unit
ATTR_CELL_SIZE = "cell_size_m"  # dz, dy, dx
ATTR_DT_DAYS = "dt_days"  # length of an output step


def is_missing(values: np.ndarray) -> np.ndarray:
    """Return where `values` is a sentinel: NaN, or -998 and below. Integers have no NaN."""
    values = np.asarray(values)
    missing = values <= _MISSING_FROM
    return missing | np.isnan(values) if values.dtype.kind == "f" else missing
