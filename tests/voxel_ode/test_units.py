"""Units: known conversions, there and back, sentinels kept, what attributes and medians tell."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from common.errors import DataError
from voxel_ode.schema import INPUT_NAMES, SCALAR_NAMES, is_missing
from voxel_ode.units import (
    SYSTEMS,
    YEAR,
    System,
    from_internal,
    guess_system,
    system_of_unit,
    to_internal,
    unit_name,
)

KNOWN = [
    ("Pressure", "si", 2.5e7, 250.0),  # Pa, bar
    ("Temperature0", "si", 373.15, 100.0),  # K, deg C
    ("Pressure", "field", 250.0, 250.0),
    ("InjRate", "field", 86.4, 1.0),  # Sm3/day, kg/s
    ("FieldWaterInjectionRate", "field", YEAR / 1000.0, 1.0),  # Sm3 a year, kg/s
    ("FieldEnergyProductionRate", "field", YEAR / 1000.0, 1.0),  # kJ a year, W
    ("FieldEnergyProductionTotal", "field", 1.0, 1000.0),  # kJ, J
    ("FieldEnergyProductionRate", "si", 7.0, 7.0),
    ("PermX", "field", 12.0, 12.0),
]


@pytest.mark.parametrize(("name", "system", "stored", "internal"), KNOWN)
def test_known_values(name: str, system: System, stored: float, internal: float):
    """Stored values become the internal ones that a table of units gives."""
    assert to_internal(name, np.array([stored]), system)[0] == pytest.approx(internal, rel=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", [*INPUT_NAMES, "Pressure", "Temperature", *SCALAR_NAMES])
def test_there_and_back(name: str, system: System):
    """Writing and reading gives the value back, for any sign and step length; sentinels stay."""
    lowest = 0.5 if name.startswith("Pressure") else -80.0
    values = np.array([lowest, 0.0, 35.5, 271.25, -999.0, np.nan])
    stored = from_internal(name, values, system, dt_s=1e6)
    np.testing.assert_allclose(to_internal(name, stored, system, dt_s=1e6), values, rtol=1e-12, atol=1e-10)
    assert is_missing(stored[-2:]).all()


def test_large_production_is_no_sentinel():
    """80 kg/s produced are -6912 Sm3/day, far below -999, and are still a rate."""
    assert to_internal("InjRate", np.array([-6912.0]), "field")[0] == pytest.approx(-80.0)


def test_missing():
    """NaN and -998 and below are missing; whole numbers have no NaN."""
    found = is_missing(np.array([np.nan, -999.0, -998.0, -12345.0, -997.9, 0.0]))
    assert found.tolist() == [True, True, True, True, False, False]
    assert is_missing(np.array([-999, 0, 3])).tolist() == [True, False, False]


def test_unit_names_tell_their_system():
    """The unit that is written for a dataset names its system again when it is read."""
    for system in SYSTEMS:
        for name in ("Pressure", "Temperature", "FieldEnergyProductionTotal"):
            assert system_of_unit(unit_name(name, system)) == system
    assert system_of_unit("mD") is None


def test_guess():
    """Medians tell the system; when they disagree the message names both and the flag."""
    assert guess_system("a.h5", 2.3e7, 360.0) == "si"
    assert guess_system("a.h5", 230.0, 90.0) == "field"
    with pytest.raises(DataError, match=r"a.h5: .*230.*bar.*360.*K.*--units") as error:
        guess_system("a.h5", 230.0, 360.0)
    assert "\n" not in str(error.value)


def test_a_signalling_nan_stays_quiet():
    """Stored bits that are a signalling NaN become NaN, without a warning."""
    stored = np.array([0x7F800001, 0x42C80000], dtype=np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = to_internal("Temperature", stored, "si")
    assert np.isnan(found[0]) and np.isfinite(found[1])
