"""Small cases for the tests of the simulator: channels and columns with known answers, turned cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from voxel_ode.case import Case
from voxel_ode.synthetic import GridConfig, make_case
from voxel_ode.wells import Wells, find_wells

TINY = GridConfig((12, 10, 10), (10.0, 50.0, 50.0), 3)


def tiny_case(index: int = 1, seed: int = 3) -> Case:
    """Return a case of the generator on the smallest grid."""
    return make_case(seed, index, TINY)


def box_case(
    shape: tuple[int, int, int],
    cell_size_m: tuple[float, float, float] = (10.0, 10.0, 10.0),
    *,
    permeability_md: float = 100.0,
    porosity: float = 0.1,
    temperature_c: np.ndarray | float = 100.0,
    rates: np.ndarray | None = None,
    conductivity: float = 2.5,
) -> Case:
    """Return a homogeneous closed box at 200 bar with `rates` [Z, Y, X] kg/s where there are wells."""
    full = np.ones(shape)
    rates = np.zeros(shape) if rates is None else rates
    wells = find_wells(rates != 0, rates, permeability_md * full)
    return Case(
        cell_size_m=cell_size_m,
        active=full > 0,
        permeability_md=permeability_md * np.stack([full] * 3),
        porosity=porosity * full,
        pressure0_bar=200.0 * full,
        temperature0_c=temperature_c * full,
        fault_id=np.zeros(shape, dtype=np.int32),
        wells=wells,
        injection_temperature_c=40.0,
        rock_conductivity_w_mk=conductivity,
        params=np.zeros(26),
    )


def without_wells(case: Case) -> Case:
    """Return the case with all its wells shut."""
    return case.with_rates(0.0 * case.wells.rate_kg_s)


def turned(case: Case, move: Callable[[Any], Any], swaps: bool) -> Case:
    """Return the case with every grid moved by `move` (last two axes); `swaps`: X and Y change places."""
    k_x, k_y, k_z = (move(k) for k in case.permeability_md)
    permeability = np.stack([k_y, k_x, k_z] if swaps else [k_x, k_y, k_z])
    grids = {
        name: move(getattr(case, name))
        for name in ("active", "porosity", "pressure0_bar", "temperature0_c", "fault_id")
    }
    rate = move(rate_grid(case.wells, case.shape))
    return replace(
        case, permeability_md=permeability, wells=find_wells(rate != 0, rate, permeability[0]), **grids
    )


def rate_grid(wells: Wells, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the whole well's signed rate on each of its cells, 0 elsewhere, [Z, Y, X]."""
    rate = np.zeros(shape)
    rate[tuple(wells.cells.T)] = wells.signed_rate_kg_s[wells.cell_well]
    return rate
