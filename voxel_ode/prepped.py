"""Prepped simulations: one file each, physical values in internal units, read by patch or whole.

/static (11, Z, Y, X) f32 and /outputs_grid (T, 2, Z, Y, X) hold -999 off the active cells, pressure 0 on
thermal-only rock. Chunks without active cells were never written; HDF5 fills them with -999. The same object
is made in memory from a raw file, so that everything downstream knows one form.

State t is the one after year t + 1, t = 0 .. t_valid - 1; state -1 is the initial one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.errors import DataError
from common.hdf5 import open_h5
from voxel_ode.h5_files import (
    attribute,
    dataset_of,
    has_dataset,
    reading,
    require_budget,
    require_numbers,
)
from voxel_ode.parameters import PARAM_NAMES, physical
from voxel_ode.raw import DT_DAYS, MAX_MEMORY_GB, RawFile
from voxel_ode.raw_inputs import depth_fraction
from voxel_ode.schema import INPUT_NAMES, SCALAR_NAMES, SENTINEL, STATIC_NAMES, WELL_FEATURE_NAMES
from voxel_ode.units import WATER_HEAT_CAPACITY
from voxel_ode.wells import Box, Wells

PREPPED_SCHEMA = "strata.voxel_ode.prepped/1"
SUFFIX = ".prepped.h5"
GRID_DATASETS = ("static", "masks", "outputs_grid", "initial")
Shape = tuple[int, int, int]
_INJECTED = SCALAR_NAMES.index("FieldEnergyInjectionRate")


@dataclass
class PreppedSim:
    """One simulation: small tables in memory, grids read from the file (or from memory) by box.

    Attributes:
        path: the file.
        shape: (Z, Y, X).
        t_valid: output states; 0 for a scenario without outputs.
        units: "si" or "field", of the raw file.
        dt_s: length of an output step, s.
        cell_size_m: (dz, dy, dx), None when unknown.
        params: float64 [P], with `param_names`.
        scalars: float64 [T, 5], W, W, J, kg/s, kg/s.
        well_features: float64 [T + 1, 6], row 0 of the initial state, row k of state k - 1.
        wells: all of the simulation.
        bbox: (z0, z1, y0, y1, x0, x1) of the active cells.
        slabs: runs (z0, z1) of layers with active cells.
        source_sha256: of the raw file; "" when that was read directly.
        warnings: what was odd about the raw file.
        told_injection_c: temperature of what injectors bring, deg C, when the user tells it.
        arrays: grids held in memory, by dataset name; empty when they are read from the file.
    """

    path: Path
    shape: Shape
    t_valid: int
    units: str
    dt_s: float
    cell_size_m: tuple[float, float, float] | None
    params: np.ndarray
    param_names: list[str]
    scalars: np.ndarray
    well_features: np.ndarray
    wells: Wells
    bbox: tuple[int, ...]
    slabs: list[tuple[int, int]]
    source_sha256: str = ""
    warnings: tuple[str, ...] = ()
    told_injection_c: float | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    _handle: tuple[int, h5py.File] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The raw file's stem, e.g. "v2.4_0001"."""
        return self.path.name.removesuffix(SUFFIX).removesuffix(".h5")

    @property
    def whole(self) -> Box:
        """The box of the whole grid."""
        z, y, x = self.shape
        return slice(0, z), slice(0, y), slice(0, x)

    def injection_c(self, first: int = 0) -> float:
        """Return what injectors bring, deg C: as told, else the parameter, else heat over c_w q of a year.

        NaN when nothing tells; a forecast from the initial state (`first` -1) knows no year's heat.
        """
        if self.told_injection_c is not None:
            return self.told_injection_c
        if tuple(self.param_names) == PARAM_NAMES:
            return physical(self.params)["injection_temperature"]
        rate = float(self.wells.total_rates_kg_s[0])
        if first < 0 or not self.t_valid or rate <= 0:
            return math.nan
        return float(self.scalars[0, _INJECTED]) / (rate * WATER_HEAT_CAPACITY)

    @property
    def num_bytes(self) -> int:
        """Bytes of the grids in memory."""
        return int(np.prod(self.shape)) * (4 * (2 * self.t_valid + len(STATIC_NAMES) + 2) + 3)

    def static(self, box: Box | None = None) -> np.ndarray:
        """Return the physical statics of a box, float32 [11, ...]; a file of ten channels gets Depth here."""
        box = box or self.whole
        static = self._get("static", (slice(None), *box)).astype(np.float32, copy=False)
        if len(static) == len(INPUT_NAMES):
            depth = depth_fraction(self.shape)[box]
            static = np.concatenate([static, np.where(self.masks(box)[0] > 0, depth, SENTINEL)[None]])
        return static

    def masks(self, box: Box | None = None) -> np.ndarray:
        """Return the masks active, flow, thermal of a box, uint8 [3, ...]."""
        return self._get("masks", (slice(None), *(box or self.whole)))

    def initial(self, box: Box | None = None) -> np.ndarray:
        """Return the initial pressure and temperature of a box, float32 [2, ...], bar and deg C."""
        return self._get("initial", (slice(None), *(box or self.whole))).astype(np.float32, copy=False)

    def states(self, first: int, stop: int, box: Box | None = None) -> np.ndarray:
        """Return the states first .. stop - 1 of a box, float32 [n, 2, ...]; state -1 is the initial one."""
        if not -1 <= first < stop <= max(self.t_valid, 0):
            raise DataError(
                f"{self.path}: states {first} to {stop - 1} asked for, it has -1 (initial) to "
                f"{self.t_valid - 1}"
            )
        box = box or self.whole
        later = slice(max(first, 0), stop)
        parts = [self.initial(box)[None]] if first < 0 else []
        if later.stop > later.start:
            grids = self._get("outputs_grid", (later, slice(None), *box))
            parts.append(grids.astype(np.float32, copy=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def load(self) -> PreppedSim:
        """Read all grids into memory (float32) and return itself."""
        if not self.arrays:
            names = [name for name in GRID_DATASETS if name != "masks"]
            arrays = {name: self._get(name, ...).astype(np.float32, copy=False) for name in names}
            self.arrays = {**arrays, "masks": self._get("masks", ...)}
            self.close()
        return self

    def _get(self, name: str, place: Any) -> np.ndarray:
        if self.arrays:
            return self.arrays[name][place]
        with reading(self.path, name):
            data: Any = self._open()[name]
            return data[place]

    def _open(self) -> h5py.File:
        """Return the file as this very process opened it: a handle must not cross a fork."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), open_h5(self.path))
        return self._handle[1]

    def close(self) -> None:
        """Close the file if this process has opened it."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs; it opens the file itself."""
        return {**vars(self), "_handle": None}

    @classmethod
    def from_raw(
        cls,
        raw: RawFile | str | Path,
        *,
        units: str = "auto",
        dt_days: float = DT_DAYS,
        max_memory_gb: float = MAX_MEMORY_GB,
    ) -> PreppedSim:
        """Return a raw simulation as the same object in memory; one without group Output has t_valid 0.

        Raises:
            DataError: the file is not valid.
        """
        if not isinstance(raw, RawFile):
            options = {"units": units, "dt_days": dt_days, "max_memory_gb": max_memory_gb}
            with RawFile(raw, need_outputs=False, **options) as opened:
                return cls.from_raw(opened)
        inputs = raw.inputs
        outputs = np.empty((raw.t_valid, 2, *raw.shape), dtype=np.float32)
        features = [inputs.wells.features(*raw.initial, *inputs.masks[:2])]
        for t in range(raw.t_valid):
            state = raw.state(t)
            outputs[t] = state
            features.append(inputs.wells.features(*state, *inputs.masks[:2]))
        arrays = {
            "static": inputs.static,
            "masks": inputs.masks.astype(np.uint8),
            "outputs_grid": outputs,
            "initial": raw.initial,
        }
        return cls(
            path=raw.path,
            shape=raw.shape,
            t_valid=raw.t_valid,
            units=raw.units,
            dt_s=raw.dt_s,
            cell_size_m=raw.cell_size_m,
            params=raw.params,
            param_names=raw.param_names,
            scalars=raw.scalars(),
            well_features=np.stack(features),
            wells=inputs.wells,
            bbox=bounding_box(inputs.masks[0]),
            slabs=active_slabs(inputs.masks[0]),
            warnings=inputs.warnings,
            arrays=arrays,
        )


def open_prepped(path: str | Path, max_memory_gb: float = 64.0) -> PreppedSim:
    """Return a prepped simulation; its grids stay in the file until they are asked for.

    Raises:
        DataError: it is damaged, of another form, or its datasets do not fit together.
    """
    path = Path(path)
    with open_h5(path) as file, reading(path):
        return _read_tables(path, file, max_memory_gb)


def open_simulation(path: str | Path, **raw_options: Any) -> PreppedSim:
    """Return a simulation from a prepped file or, in memory, from a raw one; which one is seen from inside.

    Args:
        path: the file.
        **raw_options: units, dt_days and max_memory_gb of `PreppedSim.from_raw`.
    """
    with open_h5(path) as file, reading(path):
        is_raw = has_dataset(file, "Input") and not has_dataset(file, "masks")
    return PreppedSim.from_raw(path, **raw_options) if is_raw else open_prepped(path)


def _read_tables(path: Path, file: h5py.File, max_memory_gb: float) -> PreppedSim:
    schema = attribute(file, "schema", str)
    if schema is not None and schema != PREPPED_SCHEMA:
        raise DataError(f"{path}: schema {schema!r}, expected {PREPPED_SCHEMA!r}; run prep_data.py again")
    grids = {name: dataset_of(file, name) for name in GRID_DATASETS}
    require_numbers(grids["static"], (None, None, None, None))
    num_static, *size = grids["static"].shape
    if num_static not in (len(INPUT_NAMES), len(STATIC_NAMES)):
        raise DataError(
            f"{path}: /static has {num_static} channels, expected {len(STATIC_NAMES)} (10 without Depth); "
            "run prep_data.py again"
        )
    shape: Shape = (int(size[0]), int(size[1]), int(size[2]))
    require_numbers(grids["masks"], (3, *shape))
    require_numbers(grids["initial"], (2, *shape))
    require_numbers(grids["outputs_grid"], (None, 2, *shape))
    t_valid = grids["outputs_grid"].shape[0]
    require_budget(path, list(grids.values()), max_memory_gb)
    wells = _read_wells(file, shape)
    return PreppedSim(
        path=path,
        shape=shape,
        t_valid=t_valid,
        units=attribute(file, "units_in", str) or "si",
        dt_s=attribute(file, "dt_s", float) or DT_DAYS * 86400.0,
        cell_size_m=attribute(file, "cell_size_m", float, 3),
        params=_table(file, "params_scalar", (None,)),
        param_names=_param_names(file),
        scalars=_table(file, "outputs_scalar", (t_valid, len(SCALAR_NAMES))),
        well_features=_table(file, "well_features", (t_valid + 1, len(WELL_FEATURE_NAMES))),
        wells=wells,
        bbox=attribute(file, "bbox", int, 6) or (0, shape[0], 0, shape[1], 0, shape[2]),
        slabs=_slabs(file, shape),
        source_sha256=attribute(file, "source_sha256", str) or "",
    )


def _table(file: h5py.File, name: str, shape: tuple[int | None, ...], kind: type = float) -> np.ndarray:
    data = dataset_of(file, name)
    found = tuple(data.shape)
    fits = len(found) == len(shape) and all(s in (None, n) for n, s in zip(found, shape, strict=True))
    if data.dtype.kind not in "fiu" or not fits or math.prod(found) > 1 << 28:
        raise DataError(
            f"{file.filename}: /{name} holds {data.dtype} of shape {found}, expected numbers {shape}; "
            "run prep_data.py again"
        )
    values = data[()]
    if kind is float:
        return values.astype(np.float64)
    limits = np.iinfo(kind)
    if not ((values >= limits.min) & (values <= limits.max)).all():  # NaN is in no range
        raise DataError(
            f"{file.filename}: /{name} holds NaN or values beyond {limits.min} to {limits.max}, expected "
            "whole numbers; run prep_data.py again"
        )
    return values.astype(kind)


def well_cells(path: str | Path, cells: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the places (z, y, x) of the wells' cells, int32 [N, 3], of the first columns of a table [N, 4].

    Raises:
        DataError: NaN or a cell outside the grid.
    """
    at = cells[:, :3]
    if not ((at >= 0) & (at < shape)).all():  # before the cast, which is undefined for NaN
        raise DataError(f"{path}: /wells names cells outside the grid {tuple(shape)}; run prep_data.py again")
    return at.astype(np.int32)


def _read_wells(file: h5py.File, shape: Shape) -> Wells:
    cells = _table(file, "wells/cells", (None, 4))
    sign = _table(file, "wells/sign", (None,), np.int8)
    owner = _table(file, "wells/cell_well", (len(cells),), np.int32)
    rate = _table(file, "wells/rate", (len(sign),))
    at = well_cells(file.filename, cells, shape)
    if len(owner) and not 0 <= owner.min() <= owner.max() < len(sign):
        raise DataError(
            f"{file.filename}: /wells/cell_well names wells {owner.min()} to {owner.max()} of {len(sign)}; "
            "run prep_data.py again"
        )
    return Wells(sign, rate, at, cells[:, 3], owner)


def _param_names(file: h5py.File) -> list[str]:
    try:
        return [str(name) for name in json.loads(attribute(file, "param_names", str) or "[]")]
    except ValueError:
        return []


def _slabs(file: h5py.File, shape: Shape) -> list[tuple[int, int]]:
    slabs = np.asarray(file.attrs.get("slabs", [[0, shape[0]]])).reshape(-1, 2)
    return [(int(a), int(b)) for a, b in slabs]


def bounding_box(active: np.ndarray) -> tuple[int, ...]:
    """Return (z0, z1, y0, y1, x0, x1) of the active cells."""
    found: list[int] = []
    for axis in range(3):
        used = np.flatnonzero(active.any(axis=tuple(a for a in range(3) if a != axis)))
        found += [int(used[0]), int(used[-1]) + 1]
    return tuple(found)


def active_slabs(active: np.ndarray) -> list[tuple[int, int]]:
    """Return the runs (z0, z1) of consecutive layers that hold active cells."""
    used = np.concatenate([[0], active.any(axis=(1, 2)).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(used))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
