"""Pressures that wells bring about within a year: linear solves that set the state a forecast begins with.

Water hardly yields: a change of rates reaches the whole field within weeks, while heat needs years. A
network that learned the slow years from one state to the next has never seen that jump. It is one linear
system, the pressure equation of `voxel_ode.simulator` with the temperature as it is, and it is solved rather
than learned.
"""

from __future__ import annotations

import math

import numpy as np
from threadpoolctl import threadpool_limits

from common.log import get_logger
from voxel_ode.case_files import flow_case
from voxel_ode.prepped import PreppedSim
from voxel_ode.simulator import Simulator
from voxel_ode.units import PASCAL_PER_BAR, WATER_DENSITY, WATER_VOLUMETRIC_HEAT


def started_pressure(sim: PreppedSim) -> np.ndarray:
    """Return the pressure after the wells' first year, bar [Z, Y, X] float32; 0 off the flow cells.

    Args:
        sim: a raw or prepped file. Without a cell size nothing can be solved: a warning is given and its
            initial pressure returned.

    Raises:
        DataError: the equation could not be solved.
    """
    flow = sim.masks()[1] > 0
    pressure = np.where(flow, sim.states(-1, 0)[0, 0], 0.0).astype(np.float32)
    if sim.cell_size_m is None:
        get_logger().warning(
            f"{sim.path}: no cell size, so the forecast begins with the pressure before the wells ran and "
            "will lag behind; give the file a cell size, or an output to begin with"
        )
        return pressure
    simulator = _ready(sim, -1)
    with threadpool_limits(limits=1):
        simulator.flow_step(sim.dt_s)
    pressure[flow] = simulator.pressure_pa / PASCAL_PER_BAR
    return pressure


def well_responses(sim: PreppedSim, first: int) -> np.ndarray:
    """Return how the pressure answers within a year when a well's rate doubles, bar [W, Z, Y, X] float32.

    Responses of several wells add up: dP = sum of (factor - 1) times response.

    Args:
        sim: a raw or prepped file; without a cell size the responses are zero.
        first: state whose temperature sets the water's viscosity: -1 = initial, k = output k.

    Raises:
        DataError: the equation could not be solved.
    """
    flow, wells = sim.masks()[1] > 0, sim.wells
    found = np.zeros((len(wells), *sim.shape), dtype=np.float32)
    if sim.cell_size_m is None or not len(wells):
        return found
    sources = np.zeros((len(wells), *sim.shape))
    z, y, x = wells.cells.T
    per_cell = wells.signed_rate_kg_s[wells.cell_well] * wells.weight / WATER_DENSITY
    np.add.at(sources, (wells.cell_well, z, y, x), per_cell)
    simulator = _ready(sim, first)
    with threadpool_limits(limits=1):
        response = simulator.pressure_response(sources[:, flow], sim.dt_s)
    found[:, flow] = response / PASCAL_PER_BAR
    return found


def _ready(sim: PreppedSim, first: int) -> Simulator:
    """Return the simulator in state `first`, with cells at injectors as cold as a year makes them.

    T = (T + a T_inj) / (1 + a), a the heat that the year's water could carry over that of the cell: cold
    water is three times as viscous as hot, and it is at the injectors that the pressure rises.
    """
    case = flow_case(sim, first)
    simulator = Simulator(case)
    told = sim.injection_c(first)
    if first < 0 and math.isfinite(told):
        wet = simulator.flow_of_active
        carried = np.maximum(simulator.source, 0.0) * sim.dt_s * WATER_VOLUMETRIC_HEAT
        a = carried / simulator.heat_capacity()[wet]
        simulator.temperature_c[wet] = (simulator.temperature_c[wet] + a * told) / (1.0 + a)
    return simulator
