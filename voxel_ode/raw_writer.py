"""Writing a simulation as a raw file of the "v2.4" schema, in SI or field units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.errors import DataError
from common.files import atomic_path
from common.hdf5 import open_h5
from voxel_ode.case import Case
from voxel_ode.h5_files import H5_ERRORS, dataset_of
from voxel_ode.schema import (
    ATTR_CELL_SIZE,
    ATTR_DT_DAYS,
    ATTR_SCHEMA,
    ATTR_UNITS,
    INPUT_NAMES,
    PARAMS_NAME,
    SCALAR_NAMES,
    SCHEMA,
    SENTINEL,
)
from voxel_ode.simulator import Simulation
from voxel_ode.units import DAY, YEAR, System, from_internal, unit_name

COMPRESSION: dict[str, dict[str, Any]] = {
    "lzf": {"compression": "lzf"},
    "gzip1": {"compression": "gzip", "compression_opts": 1},
    "none": {},
}
_CHUNK_BYTES = 2**20


def input_grids(case: Case) -> dict[str, np.ndarray]:
    """Return the input grids of a case by name, [Z, Y, X] in internal units, -999 on inactive cells.

    IsActive has no sentinel. Active cells off faults and wells hold 0.
    """
    wells = case.wells
    at = tuple(np.asarray(wells.cells).T)
    is_well, rate = np.zeros(case.shape, dtype=np.int32), np.zeros(case.shape)
    is_well[at] = 1
    rate[at] = (wells.sign * wells.rate_kg_s)[wells.cell_well]
    k_x, k_y, k_z = case.permeability_md
    grids = {
        "FaultId": case.fault_id.astype(np.int32),
        "InjRate": rate,
        "IsWell": is_well,
        "PermX": k_x,
        "PermY": k_y,
        "PermZ": k_z,
        "Porosity": case.porosity,
        "Pressure0": case.pressure0_bar,
        "Temperature0": case.temperature0_c,
    }
    marked = {
        name: np.where(case.active, grid, np.asarray(SENTINEL, grid.dtype)) for name, grid in grids.items()
    }
    marked["IsActive"] = case.active.astype(np.uint8)
    return {name: marked[name] for name in INPUT_NAMES}


def write_raw(
    path: str | Path,
    case: Case,
    run: Simulation | None,
    *,
    system: System = "si",
    compression: str = "gzip1",
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a case and its run to `path`, whole or not at all.

    Args:
        path: `v2.4_0001.h5` and the like.
        case: the reservoir.
        run: its yearly states; None writes a scenario without outputs.
        system: units on disk.
        compression: "lzf", "gzip1" or "none", with shuffle and a checksum of every chunk.
        attributes: further attributes of the file.

    Raises:
        DataError: the disk is full.
    """
    packing = {**COMPRESSION[compression], "shuffle": True, "fletcher32": True}
    datasets: dict[str, np.ndarray] = {f"Input/{name}": grid for name, grid in input_grids(case).items()}
    datasets[PARAMS_NAME] = np.asarray(case.params, dtype=np.float64)
    if run is not None:
        outside = ~np.broadcast_to(case.active, run.pressure_bar.shape)
        datasets["Output/Pressure"] = np.where(outside, SENTINEL, run.pressure_bar)
        datasets["Output/Temperature"] = np.where(outside, SENTINEL, run.temperature_c)
        for k, name in enumerate(SCALAR_NAMES):
            datasets[f"Output/{name}"] = run.scalars[:, k]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                ATTR_SCHEMA: SCHEMA,
                ATTR_UNITS: system,
                ATTR_CELL_SIZE: np.array(case.cell_size_m, dtype=np.float64),
                ATTR_DT_DAYS: YEAR / DAY,
                **(attributes or {}),
            }
        )
        for name, values in datasets.items():
            _write_dataset(file, name, values, system, packing)
        if case.param_names:
            file[PARAMS_NAME].attrs["names"] = list(case.param_names)


def _write_dataset(
    file: h5py.File, name: str, values: np.ndarray, system: System, packing: dict[str, Any]
) -> None:
    short = name.rpartition("/")[2]
    stored = values if values.dtype.kind in "iu" else from_internal(short, values, system)
    dataset = file.create_dataset(name, data=stored, chunks=chunk_shape(stored.shape), **packing)
    dataset.attrs[ATTR_UNITS] = unit_name(short, system)


def chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return chunks of whole layers of one step, about a megabyte of float64."""
    if len(shape) < 3:
        return shape
    layer = shape[-1] * shape[-2] * 8
    layers = min(shape[-3], max(1, _CHUNK_BYTES // layer))
    return (*(1 for _ in shape[:-3]), layers, *shape[-2:])


def read_whole(path: str | Path) -> dict[str, Any]:
    """Read every value of a raw file, so that each checksum is tested, and return its attributes.

    Raises:
        DataError: it cannot be read to the end or lacks a dataset.
    """
    needed = {f"Input/{name}" for name in INPUT_NAMES} | {PARAMS_NAME}
    needed |= {f"Output/{name}" for name in ("Pressure", "Temperature", *SCALAR_NAMES)}
    try:
        with open_h5(path) as file:
            for name in sorted(needed):
                dataset_of(file, name)[()]
            return dict(file.attrs)
    except H5_ERRORS as error:
        raise DataError(f"{path}: is damaged ({error}); make this simulation again") from error
