"""Reading raw simulations (HDF5, "v2.4"): one file a simulation, checked, in internal units, step by step."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

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
from voxel_ode.raw_inputs import RawInputs, make_inputs, require_cells
from voxel_ode.schema import (
    ATTR_CELL_SIZE,
    ATTR_DT_DAYS,
    ATTR_UNITS,
    GRID_NAMES,
    INPUT_NAMES,
    PARAMS_NAME,
    SCALAR_NAMES,
    SENTINEL,
    is_missing,
)
from voxel_ode.units import DAY, SYSTEMS, System, guess_system, scale_and_offset, system_of_unit

DT_DAYS = 365.25
MAX_MEMORY_GB = 8.0
_RUN_INDEX = re.compile(r"_(\d+)\.h5$")


def run_index(path: str | Path) -> int | None:
    """Return the run index that a file name ends in ("v2.4_0017.h5" -> 17), None when it has none."""
    match = _RUN_INDEX.search(Path(path).name)
    return int(match[1]) if match else None


def find_raw(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the simulations of a folder by run index, and its other .h5 files.

    Raises:
        DataError: the folder is missing or holds no simulation.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; make simulations with make_data.py or name their folder")
    files = sorted(p for p in folder.iterdir() if p.suffix == ".h5" and not p.name.startswith("."))
    numbered = sorted((p for p in files if run_index(p) is not None), key=lambda p: (run_index(p), p.name))
    if not numbered:
        raise DataError(f"{folder}: holds no file named like v2.4_0001.h5, {len(files)} other .h5 files")
    return numbered, [p for p in files if run_index(p) is None]


class RawFile:
    """An open raw simulation. The inputs are read and checked at once, the output states when asked for.

    Args:
        path: the file.
        units: "auto" (unit attributes, else typical values), "si" or "field".
        dt_days: length of an output step where the file has no attribute `dt_days`.
        max_memory_gb: most bytes that the headers may declare, GiB.
        need_outputs: whether group Output must be there; without, a scenario to be predicted is fine too.

    Attributes:
        shape: (Z, Y, X).
        units: "si" or "field".
        dt_s: length of an output step, s.
        cell_size_m: (dz, dy, dx), None when the file does not say.
        params: float64 [P], with `param_names`.
        inputs: statics, masks and wells.
        t_valid: output states before the trailing missing ones; 0 without outputs.
        ignored: output datasets that nobody reads.

    Raises:
        DataError: the file is not a valid simulation; the message names the dataset.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        units: str = "auto",
        dt_days: float = DT_DAYS,
        max_memory_gb: float = MAX_MEMORY_GB,
        need_outputs: bool = True,
    ) -> None:
        self.path = Path(path)
        self._file = open_h5(self.path)
        try:
            with reading(self.path):
                self._open(units, dt_days, max_memory_gb, need_outputs)
        except BaseException:
            self._file.close()
            raise

    def _open(self, units: str, dt_days: float, max_memory_gb: float, need_outputs: bool) -> None:
        grids = {name: dataset_of(self._file, f"Input/{name}") for name in INPUT_NAMES}
        require_numbers(grids["IsActive"], (None, None, None))
        z, y, x = grids["IsActive"].shape
        self.shape = (int(z), int(y), int(x))
        for data in grids.values():
            require_numbers(data, self.shape)
        self._outputs = self._find_outputs(need_outputs)
        require_budget(self.path, [*grids.values(), *self._outputs.values()], max_memory_gb)
        self._read_params()
        stored = {name: self._read(data) for name, data in grids.items()}
        self.units: System = self._find_units(grids, stored) if units == "auto" else _system(units)
        days = attribute(self._file, ATTR_DT_DAYS, float) or attribute(
            self._file.get("Output", self._file), ATTR_DT_DAYS, float
        )
        self.dt_s = DAY * (days or dt_days)
        size = attribute(self._file, ATTR_CELL_SIZE, float, 3)
        self.cell_size_m: tuple[float, float, float] | None = size if size and min(size) > 0 else None
        self.inputs: RawInputs = make_inputs(self.path, stored, self.units)
        self.t_valid = self._find_t_valid()
        if need_outputs and self.t_valid < 2:
            raise DataError(
                f"{self.path}: Output/Temperature: {self.t_valid} valid states, expected 2 or more; "
                "leave this simulation out"
            )

    def _find_outputs(self, needed: bool) -> dict[str, Any]:
        names = [*GRID_NAMES, *SCALAR_NAMES]
        self.ignored: list[str] = []
        if not needed and not has_dataset(self._file, "Output"):
            return {}
        found = {name: dataset_of(self._file, f"Output/{name}") for name in names}
        group: Any = self._file["Output"]
        self.ignored = sorted(set(group) - set(names))
        require_numbers(found["Pressure"], (None, *self.shape))
        num_steps = found["Pressure"].shape[0]
        require_numbers(found["Temperature"], (num_steps, *self.shape))
        for name in SCALAR_NAMES:
            require_numbers(found[name], (num_steps,))
        return found

    def _read_params(self) -> None:
        data = dataset_of(self._file, PARAMS_NAME)
        if data.ndim != 1 or data.dtype.kind not in "fiu":
            raise DataError(
                f"{self.path}: {PARAMS_NAME} holds {data.dtype} of shape {data.shape}, expected numbers (P,)"
            )
        if data.shape[0] > 1 << 20:
            raise DataError(f"{self.path}: {PARAMS_NAME} declares {data.shape[0]} parameters; check the file")
        self.params = data[()].astype(np.float64)
        if not np.isfinite(self.params).all():
            raise DataError(f"{self.path}: {PARAMS_NAME} holds {self.params}, expected finite numbers")
        names = data.attrs.get("names")
        names = [] if names is None else [n.decode() if isinstance(n, bytes) else str(n) for n in names]
        count = len(self.params)
        self.param_names = names if len(names) == count else [f"param{i}" for i in range(count)]

    def _read(self, data: Any) -> np.ndarray:
        with reading(self.path, data.name):
            return data[()]

    def _find_units(self, grids: dict[str, Any], stored: dict[str, np.ndarray]) -> System:
        """Return the system that dataset attributes name, else the file's attribute, else the medians."""
        said = {name: attribute(grids[name], ATTR_UNITS, str) for name in ("Pressure0", "Temperature0")}
        systems: list[System | None] = [system_of_unit(text) for text in said.values() if text]
        known = {system for system in systems if system is not None}
        if len(known) > 1:
            raise DataError(
                f"{self.path}: Pressure0 in {said['Pressure0']} but Temperature0 in {said['Temperature0']}, "
                "expected Pa and K, or bar and degC; say which with --units si or --units field"
            )
        whole = system_of_unit(attribute(self._file, ATTR_UNITS, str) or "")
        for system in SYSTEMS:
            if system in (known or {whole}):
                return system
        active = (stored["IsActive"] > 0.5) & ~is_missing(stored["Temperature0"])
        flow = active & ~is_missing(stored["Pressure0"]) & (stored["Pressure0"] > 0)
        if not flow.any():
            raise DataError(f"{self.path}: Input/Pressure0: no active cell under pressure; check the file")
        medians = (np.median(stored[n][m]) for n, m in (("Pressure0", flow), ("Temperature0", active)))
        return guess_system(str(self.path), *(float(m) for m in medians))

    def _find_t_valid(self) -> int:
        """Return the number of states before the trailing ones that are missing (or all 0) everywhere."""
        if not self._outputs:
            return 0
        data = self._outputs["Temperature"]
        for t in range(data.shape[0] - 1, -1, -1):
            inside = self._read_step("Temperature", t)[self.inputs.masks[0]]
            if not (is_missing(inside) | (inside == 0)).all():
                return t + 1
        return 0

    def _read_step(self, name: str, t: int) -> np.ndarray:
        with reading(self.path, f"Output/{name}, step {t}"):
            return self._outputs[name][t]

    def state(self, t: int) -> np.ndarray:
        """Return pressure (bar) and temperature (deg C) of output state t, float64 [2, Z, Y, X].

        -999 off the active cells; pressure 0 on thermal-only rock.

        Raises:
            DataError: a value is missing or not finite inside its domain.
        """
        active, flow, _ = self.inputs.masks
        state = np.full((2, *self.shape), SENTINEL)
        state[0][active] = 0.0
        for row, name, mask in zip(state, GRID_NAMES, (flow, active), strict=True):
            values = self._read_step(name, t)
            bad = mask & (is_missing(values) | ~np.isfinite(values))
            require_cells(self.path, f"Output/{name}", values, bad, "a finite value in active cells", t)
            if t == 0:
                self._require_explained(name, values)
            scale, offset = scale_and_offset(name, self.units)
            row[mask] = scale * values[mask].astype(np.float64) + offset
        return state

    def _require_explained(self, name: str, values: np.ndarray) -> None:
        """Refuse an initial value that is missing where the output has one: damage, not a domain's edge."""
        missing = self.inputs.unpressured if name == "Pressure" else self.inputs.unexplained
        bad = missing & ~is_missing(values) & (values != 0)
        require_cells(self.path, f"Output/{name}", values, bad, f"none where Input/{name}0 has none", 0)

    @property
    def initial(self) -> np.ndarray:
        """Initial pressure and temperature, float32 [2, Z, Y, X], -999 off the active cells."""
        return self.inputs.static[[INPUT_NAMES.index("Pressure0"), INPUT_NAMES.index("Temperature0")]]

    def scalars(self) -> np.ndarray:
        """Return the five field rates of the valid states, float64 [T, 5], W, W, J, kg/s, kg/s.

        Raises:
            DataError: one is not finite.
        """
        table = np.zeros((self.t_valid, len(SCALAR_NAMES)))
        for k, name in enumerate(SCALAR_NAMES):
            if not self.t_valid:
                break
            with reading(self.path, f"Output/{name}"):
                values = self._outputs[name][: self.t_valid].astype(np.float64)
            bad = ~np.isfinite(values) | (values == SENTINEL)
            if bad.any():
                t = int(np.argmax(bad))
                raise DataError(
                    f"{self.path}: Output/{name}: {values[t]:g} at step {t}, expected a finite number; "
                    "repair the file or leave it out"
                )
            scale, offset = scale_and_offset(name, self.units, self.dt_s)
            table[:, k] = scale * values + offset
        return table

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(Exception):
            self._file.close()

    def __enter__(self) -> RawFile:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _system(units: str) -> System:
    for system in SYSTEMS:
        if units == system:
            return system
    raise ValueError(f"units {units!r}: expected auto, si or field")
