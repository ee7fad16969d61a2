"""The generator of cases: a dipping, faulted reservoir between tight rock, with doublets of wells.

Everything is a function of (seed, index, attempt). Directions (azimuths, which horizontal axis is the
permeable one) and positions are draws of their own and no parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from common.noise import correlated_gaussian, numpy_stream
from voxel_ode.case import Case
from voxel_ode.parameters import PARAM_NAMES, physical
from voxel_ode.schema import NUM_PARAMS
from voxel_ode.simulator import GRAVITY
from voxel_ode.units import PASCAL_PER_BAR, WATER_DENSITY
from voxel_ode.wells import Wells, find_wells

GENERATOR_VERSION = 1
TOP_DEPTH_M = 2000.0
SURFACE_TEMPERATURE_C = 10.0
SURFACE_PRESSURE_PA = 1e5
BAND = (0.12, 0.88)  # top and bottom of the active rock, shares of the depth axis
MAX_THERMAL_LAYERS = 3  # at the top and at the bottom; an eighth of the layers where that is less
CORRELATION_CELLS = (1.5, 4.0, 4.0)
POROSITY_SPREAD, POROSITY_RANGE = 0.03, (0.01, 0.3)
NUM_FAULTS, FAULT_THICKNESS_CELLS, FAULT_DIP_DEG = 3, 1.8, (55.0, 85.0)
WELL_MARGIN_CELLS, WELL_DISTANCE_CELLS, PERFORATION_GAP_CELLS = 3, 4.0, 2
TIGHTEST_WELL = 0.5  # of the median permeability-thickness: tighter columns are not drilled
_PLACEMENTS = 400  # tries to place all wells of a case


@dataclass(frozen=True)
class GridConfig:
    """The grid of a case and how many doublets it may have."""

    shape: tuple[int, int, int] = (32, 24, 24)
    cell_size_m: tuple[float, float, float] = (10.0, 50.0, 50.0)
    max_doublets: int = 3


def make_case(seed: int, index: int, grid: GridConfig, attempt: int = 0) -> Case:
    """Return case `index` of a seed; another `attempt` is another draw of all of it.

    Raises:
        UserError: no doublet fits into the grid.
    """

    def stream(purpose: str) -> np.random.Generator:
        return numpy_stream(seed, f"voxel_ode {purpose}", index, attempt)

    params = stream("parameters").random(NUM_PARAMS)
    values = physical(params)
    active, flow = band(stream("dip"), grid.shape, values["dip"])
    fault_id = faults(stream("faults"), grid) * active
    permeability = permeability_md(stream("permeability"), grid.shape, values, fault_id) * flow
    field = correlated_gaussian(grid.shape, CORRELATION_CELLS, stream("porosity"))
    porosity = np.clip(values["porosity"] + POROSITY_SPREAD * field.astype(np.float64), *POROSITY_RANGE)
    depth = TOP_DEPTH_M + grid.cell_size_m[0] * (np.arange(grid.shape[0]) + 0.5)[:, None, None]
    temperature = SURFACE_TEMPERATURE_C + values["temperature_gradient"] * depth
    pressure = (WATER_DENSITY * GRAVITY * depth + SURFACE_PRESSURE_PA) / PASCAL_PER_BAR
    return Case(
        cell_size_m=grid.cell_size_m,
        active=active,
        permeability_md=permeability,
        porosity=porosity * flow,
        pressure0_bar=pressure * flow,
        temperature0_c=temperature * active,
        fault_id=fault_id,
        wells=place_wells(stream("wells"), grid, permeability[0], values["well_rate"]),
        injection_temperature_c=values["injection_temperature"],
        rock_conductivity_w_mk=values["rock_conductivity"],
        params=params,
        param_names=PARAM_NAMES,
    )


def band(rng: np.random.Generator, shape: tuple[int, int, int], dip: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the active rock and the part of it that water moves through, bool [Z, Y, X] each.

    Args:
        rng: of the azimuth.
        shape: (Z, Y, X).
        dip: cells that the band sinks per cell along its random azimuth; the centre keeps its depth.
    """
    layers = shape[0]
    azimuth = rng.uniform(0.0, 2.0 * np.pi)
    z, y, x = np.indices(shape, dtype=np.float64) + 0.5
    sink = dip * (np.cos(azimuth) * (y - shape[1] / 2) + np.sin(azimuth) * (x - shape[2] / 2))
    thermal = min(MAX_THERMAL_LAYERS, max(1, layers // 8))
    top, bottom = BAND[0] * layers + sink, BAND[1] * layers + sink
    active = (z >= top) & (z < bottom)
    return active, active & (z >= top + thermal) & (z < bottom - thermal)


def faults(rng: np.random.Generator, grid: GridConfig) -> np.ndarray:
    """Return the id 1..3 of the fault zone of each cell, 0 outside, int32 [Z, Y, X]; later ones cut."""
    places = np.moveaxis(np.indices(grid.shape, dtype=np.float64) + 0.5, 0, -1)
    zone = np.zeros(grid.shape, dtype=np.int32)
    for number in range(1, NUM_FAULTS + 1):
        dip, azimuth = np.deg2rad(rng.uniform(*FAULT_DIP_DEG)), rng.uniform(0.0, 2.0 * np.pi)
        normal_m = (np.cos(dip), np.sin(dip) * np.cos(azimuth), np.sin(dip) * np.sin(azimuth))
        normal = np.multiply(normal_m, grid.cell_size_m)  # of the same plane, in cells
        normal /= np.linalg.norm(normal)
        through = rng.uniform(0.25, 0.75, 3) * grid.shape
        zone[np.abs((places - through) @ normal) < FAULT_THICKNESS_CELLS / 2] = number
    return zone


def permeability_md(
    rng: np.random.Generator, shape: tuple[int, int, int], values: dict[str, float], fault_id: np.ndarray
) -> np.ndarray:
    """Return permeability along x, y, z, [3, Z, Y, X]: log-normal, changed in faults, more along one axis."""
    field = correlated_gaussian(shape, CORRELATION_CELLS, rng).astype(np.float64)
    log10_k = values["mean_log10_permeability"] + values["sigma_log10_permeability"] * field
    for number in range(1, NUM_FAULTS + 1):
        log10_k[fault_id == number] += values[f"fault{number}_log10_multiplier"]
    horizontal = 10.0**log10_k
    along_x = bool(rng.integers(2))
    more = horizontal * values["horizontal_anisotropy"]
    k_x, k_y = (more, horizontal) if along_x else (horizontal, more)
    return np.stack([k_x, k_y, horizontal * values["vertical_anisotropy"]])


def perforations(kx_md: np.ndarray) -> np.ndarray:
    """Return the cells that a vertical well in each column would be open to, bool [Z, Y, X].

    That is the flow interval but two cells at each end, fewer where it is too thin for that.
    """
    flow = kx_md > 0
    count = flow.sum(axis=0)
    gap = np.minimum(PERFORATION_GAP_CELLS, np.maximum(count - 1, 0) // 2)
    place = np.cumsum(flow, axis=0)  # 1, 2, .. down the interval
    return flow & (place > gap) & (place <= count - gap)


def place_wells(rng: np.random.Generator, grid: GridConfig, kx_md: np.ndarray, rate_kg_s: float) -> Wells:
    """Return 1..max_doublets doublets, alternately injector and producer, all at one rate.

    Where fewer fit than were drawn, as many as fit.

    Raises:
        UserError: not one doublet fits.
    """
    wanted = int(rng.integers(1, grid.max_doublets + 1))
    open_cells = perforations(kx_md)
    thickness = (kx_md * open_cells).sum(axis=0)
    best = best_spread(rng, drillable_columns(thickness, TIGHTEST_WELL), 2 * wanted)
    if len(best) < 2:  # a small grid has few columns to choose from
        best = best_spread(rng, drillable_columns(thickness, 0.0), 2)
    if len(best) < 2:
        raise UserError(
            f"--grid {' '.join(map(str, grid.shape))}: no two wells more than {WELL_DISTANCE_CELLS:g} cells "
            f"apart and {WELL_MARGIN_CELLS} from the side fit; use at least 12 10 10"
        )
    is_well, rate = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape)
    for number, (y, x) in enumerate(best[: len(best) // 2 * 2]):
        is_well[:, y, x] = open_cells[:, y, x]
        rate[open_cells[:, y, x], y, x] = rate_kg_s if number % 2 == 0 else -rate_kg_s
    return find_wells(is_well, rate, kx_md)


def drillable_columns(thickness_md: np.ndarray, tightest: float) -> np.ndarray:
    """Return the (y, x) of the columns that may be drilled, [n, 2]: away from the sides, not too tight.

    Args:
        thickness_md: permeability-thickness of the perforations, [Y, X].
        tightest: share of the median that a column must have.
    """
    inside = np.zeros(thickness_md.shape, dtype=bool)
    inside[WELL_MARGIN_CELLS:-WELL_MARGIN_CELLS, WELL_MARGIN_CELLS:-WELL_MARGIN_CELLS] = True
    inside &= thickness_md > 0
    if not inside.any():
        return np.zeros((0, 2), dtype=np.int64)
    return np.argwhere(inside & (thickness_md >= tightest * np.median(thickness_md[inside])))


def best_spread(rng: np.random.Generator, columns: np.ndarray, number: int) -> np.ndarray:
    """Return `number` of the columns [n, 2] in random order, far from each other; fewer where it must be."""
    best: np.ndarray = np.zeros((0, 2), dtype=np.int64)
    for _ in range(_PLACEMENTS):
        chosen = spread_out(rng.permutation(columns), number)
        best = chosen if len(chosen) > len(best) else best
        if len(best) == number:
            break
    return best


def spread_out(columns: np.ndarray, number: int) -> np.ndarray:
    """Return up to `number` of the columns [n, 2], in their order, each > 4 cells from those before."""
    chosen: list[np.ndarray] = []
    for column in columns:
        if all(np.hypot(*(column - other)) > WELL_DISTANCE_CELLS for other in chosen):
            chosen.append(column)
            if len(chosen) == number:
                break
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)
