"""The inputs of a raw simulation in internal units, with the three masks; what is wrong with them, named.

Outside its domain a dataset may hold -999 (anything at or below -998), NaN or 0: the masks decide, not the
values there. active = IsActive with a temperature; flow = active, porous and under pressure; thermal = active
and not flow: rock that only conducts heat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError
from voxel_ode.schema import SENTINEL, STATIC_NAMES, is_missing
from voxel_ode.units import System, scale_and_offset, unit_name
from voxel_ode.wells import Wells, find_wells

BALANCE_TOLERANCE = 0.05  # of injected and produced totals
Grids = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RawInputs:
    """Inputs of one simulation.

    Attributes:
        static: float32 [11, Z, Y, X], physical and internal units, -999 off the active cells.
        masks: bool [3, Z, Y, X]: active, flow, thermal.
        unexplained: cells marked active without an initial temperature, bool [Z, Y, X].
        unpressured: porous active cells whose initial pressure is a sentinel, bool [Z, Y, X].
        wells: of the simulation.
        warnings: one line each.
    """

    static: np.ndarray
    masks: np.ndarray
    unexplained: np.ndarray
    unpressured: np.ndarray
    wells: Wells
    warnings: tuple[str, ...]


def make_inputs(path: Path, stored: Grids, system: System) -> RawInputs:
    """Return the inputs for the grids of group Input as they are `stored` (name -> [Z, Y, X]).

    Raises:
        DataError: a value inside its domain is missing, infinite or negative, no cell is active or flows, or
            a well perforates an inactive cell.
    """
    marked = _positive(stored["IsActive"])
    without_temperature = is_missing(stored["Temperature0"])
    active = marked & ~without_temperature
    porosity = _zero_where_missing(stored["Porosity"])
    pressure = _zero_where_missing(stored["Pressure0"])
    unknown = active & (pressure > 0) & is_missing(stored["Porosity"])
    _require(path, "Porosity", stored["Porosity"], unknown, "a porosity where the pressure is above 0")
    flow = active & (porosity > 0) & (pressure > 0)
    for name, mask in (("IsActive", active), ("Porosity", flow)):
        if not mask.any():
            kind = "active" if name == "IsActive" else "flow (porous, under pressure)"
            raise DataError(f"{path}: Input/{name}: no {kind} cells; check the file with check_h5.py")
    physical = {
        "FaultId": np.where(_positive(stored["FaultId"]), stored["FaultId"], 0),
        "IsActive": active,
        "IsWell": _positive(stored["IsWell"]),
        "Porosity": porosity,
        "Pressure0": np.where(flow, _internal("Pressure0", pressure, system), 0.0),
        "Temperature0": _internal("Temperature0", stored["Temperature0"], system),
        "Depth": depth_fraction(active.shape),
    }
    for name in ("PermX", "PermY", "PermZ"):
        _require(path, name, stored[name], flow & is_missing(stored[name]), "a permeability")
        physical[name] = _internal(name, _zero_where_missing(stored[name]), system)
    _require_plausible(path, stored, physical, active)
    warnings, rate = _well_rates(path, stored, physical["IsWell"], marked, system)
    physical["InjRate"] = rate
    wells = find_wells(physical["IsWell"], rate, physical["PermX"])
    if (marked & without_temperature).any():
        warnings.append(
            f"{path}: {int((marked & without_temperature).sum())} cells marked active without a temperature "
            "count as inactive"
        )
    static = np.full((len(STATIC_NAMES), *active.shape), SENTINEL, dtype=np.float32)
    for i, name in enumerate(STATIC_NAMES):
        static[i][active] = physical[name][active]
    return RawInputs(
        static,
        np.stack([active, flow, active & ~flow]),
        marked & without_temperature,
        active & (porosity > 0) & is_missing(stored["Pressure0"]),
        wells,
        tuple(warnings + balance_warnings(path, wells)),
    )


def _require_plausible(path: Path, stored: Grids, physical: Grids, active: np.ndarray) -> None:
    """Raise DataError when a property of active cells is infinite or NaN, or one of the rock negative."""
    for name in ("PermX", "PermY", "PermZ", "Porosity", "Temperature0", "Pressure0"):
        bad = ~np.isfinite(physical[name])
        if not name.startswith(("Temperature", "Pressure")):
            bad |= physical[name] < 0
        _require(path, name, stored[name], active & bad, "a finite value, not negative")


def depth_fraction(shape: tuple[int, ...]) -> np.ndarray:
    """Return z / (Z - 1), float32 [Z, Y, X]: 0 at the top of the grid, 1 at its bottom."""
    z = np.arange(shape[0], dtype=np.float32) / max(1, shape[0] - 1)
    return np.broadcast_to(z[:, None, None], shape)


def masks_of(static: np.ndarray) -> np.ndarray:
    """Return the masks [active, flow, thermal], bool [3, Z, Y, X], of physical statics with -999 off them."""
    index = {name: i for i, name in enumerate(STATIC_NAMES)}
    active = static[index["IsActive"]] > 0.5
    flow = active & (static[index["Porosity"]] > 0) & (static[index["Pressure0"]] > 0)
    return np.stack([active, flow, active & ~flow])


def balance_warnings(path: Path, wells: Wells) -> list[str]:
    """Return what is odd about the rates: a well without one, injection far from production."""
    found = []
    if (wells.sign == 0).any():
        found.append(f"{path}: Input/InjRate: rate 0 on {int((wells.sign == 0).sum())} well(s)")
    injected, produced = wells.total_rates_kg_s
    if abs(injected - produced) > BALANCE_TOLERANCE * max(injected, produced, 1e-12):
        found.append(
            f"{path}: Input/InjRate: {injected:.4g} kg/s injected, {produced:.4g} kg/s produced, "
            f"more than {BALANCE_TOLERANCE:.0%} apart"
        )
    return found


def require_cells(
    path: Path, name: str, values: np.ndarray, bad: np.ndarray, expected: str, step: int | None = None
) -> None:
    """Raise DataError naming dataset, step, first cell and its value when any cell is `bad`."""
    if not bad.any():
        return
    z, y, x = np.argwhere(bad)[0]
    when = "" if step is None else f"step {step}, "
    raise DataError(
        f"{path}: {name}: {values[z, y, x]:g} at {when}z {z} y {y} x {x} (from 0; {int(bad.sum())} cells), "
        f"expected {expected}; repair the file or leave it out"
    )


def _require(path: Path, name: str, values: np.ndarray, bad: np.ndarray, expected: str) -> None:
    require_cells(path, f"Input/{name}", values, bad, expected)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float32, copy=False), nan=0.0) > 0.5


def _zero_where_missing(values: np.ndarray) -> np.ndarray:
    return np.where(is_missing(values) & ~np.isinf(values), 0, values)


def _internal(name: str, values: np.ndarray, system: System) -> np.ndarray:
    scale, offset = scale_and_offset(name, system)
    return scale * values.astype(np.float64) + offset


def _well_rates(
    path: Path, stored: Grids, is_well: np.ndarray, marked: np.ndarray, system: System
) -> tuple[list[str], np.ndarray]:
    """Return warnings and the rate of each cell's well, kg/s, 0 off the wells.

    Production in Sm3/day is far below -998, so only -999 itself and NaN mean "no rate" here.
    """
    rates = stored["InjRate"]
    _require(path, "IsWell", stored["IsWell"], is_well & ~marked, "wells on active cells only")
    _require(
        path, "InjRate", rates, is_well & np.isinf(rates), f"a finite rate in {unit_name('InjRate', system)}"
    )
    given = ~(np.isnan(rates) | (rates == SENTINEL))
    strays = int((given & (rates != 0) & ~is_well).sum())
    warnings = (
        [f"{path}: Input/InjRate: {strays} cells with a rate but no well are ignored"] if strays else []
    )
    return warnings, np.where(is_well & given, _internal("InjRate", np.where(given, rates, 0), system), 0.0)
