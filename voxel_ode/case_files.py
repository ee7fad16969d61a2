"""Rebuilding the generator's cases from its own raw or prepped files, to run them with other well rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from common.errors import DataError
from voxel_ode.case import Case
from voxel_ode.parameters import PARAM_NAMES, physical
from voxel_ode.prepped import PreppedSim
from voxel_ode.schema import STATIC_NAMES


def case_of(sim: PreppedSim, first_state: int = -1) -> Case:
    """Return the case of a simulation that this generator made.

    Args:
        sim: an open raw or prepped file.
        first_state: where the case begins: -1 = the initial state, k = output state k (after year k + 1).

    Raises:
        DataError: another simulator made the file, so what injectors inject is unknown here.
    """
    if tuple(sim.param_names) != PARAM_NAMES or sim.cell_size_m is None:
        found = f"{len(sim.params)} parameters from {(sim.param_names or ['no names'])[0]!r}"
        raise DataError(
            f"{sim.path}: not made by this generator ({found}, cell size {sim.cell_size_m}), so its "
            "simulator cannot run it again; use --verify false"
        )
    values = physical(sim.params)
    return replace(
        flow_case(sim, first_state),
        injection_temperature_c=values["injection_temperature"],
        rock_conductivity_w_mk=values["rock_conductivity"],
    )


def flow_case(sim: PreppedSim, first_state: int = -1) -> Case:
    """Return what the flow of water needs of any simulation; what heat needs besides is NaN.

    Args:
        sim: an open raw or prepped file with a cell size, of any simulator.
        first_state: as in `case_of`.
    """
    assert sim.cell_size_m is not None, "the caller checks it"
    static = dict(zip(STATIC_NAMES, sim.static().astype(np.float64), strict=True))
    active, flow = (mask > 0 for mask in sim.masks()[:2])
    pressure, temperature = sim.states(first_state, first_state + 1)[0].astype(np.float64)
    return Case(
        cell_size_m=sim.cell_size_m,
        active=active,
        permeability_md=np.stack([static[name] * flow for name in ("PermX", "PermY", "PermZ")]),
        porosity=np.where(flow, static["Porosity"], 0.0),
        pressure0_bar=np.where(flow, pressure, 0.0),
        temperature0_c=np.where(active, temperature, 0.0),
        fault_id=np.where(active, static["FaultId"], 0).astype(np.int32),
        wells=sim.wells,
        injection_temperature_c=float("nan"),
        rock_conductivity_w_mk=float("nan"),
        params=np.asarray(sim.params),
        param_names=tuple(sim.param_names),
    )
