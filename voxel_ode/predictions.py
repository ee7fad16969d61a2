"""predictions.h5: predicted states and field rates in the units of the input, truth and errors beside them.

It also holds what exports need (masks, wells, cell size), so that they work without a network.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.errors import DataError
from common.files import atomic_path
from common.hdf5 import open_h5
from voxel_ode.h5_files import (
    attribute,
    dataset_of,
    has_dataset,
    reading,
    require_budget,
    require_numbers,
)
from voxel_ode.metrics import CELL_MEASURES, CHANNELS, cell_scores, energy_imbalance, stored_heat_j
from voxel_ode.prep_file import active_chunks
from voxel_ode.prepped import PreppedSim, well_cells
from voxel_ode.rollout import with_sentinels
from voxel_ode.schema import GRID_NAMES, SCALAR_NAMES, SENTINEL, STATIC_NAMES
from voxel_ode.units import (
    ROCK_VOLUMETRIC_HEAT,
    WATER_VOLUMETRIC_HEAT,
    System,
    from_internal,
    scale_and_offset,
    to_internal,
)
from voxel_ode.wells import Wells

SCHEMA = "strata.voxel_ode.predictions/1"
SERIES = "predictions.pvd"  # of the ParaView files in a folder
SPREAD = ("std", "p10", "p50", "p90")
CHUNK = 16
MAX_TABLE_GB = 64.0  # as a prepped file may declare
_STORAGE: dict[str, Any] = {"compression": "lzf", "shuffle": True, "fletcher32": True}


def heat_capacity_j_k(sim: PreppedSim) -> np.ndarray:
    """Return V (phi C + (1 - phi) Cr) of each cell, J/K [Z, Y, X]; 1 J/K where cell sizes are unknown."""
    porosity = np.where(sim.masks()[1] > 0, sim.static()[STATIC_NAMES.index("Porosity")], 0.0)
    volume = float(np.prod(sim.cell_size_m)) if sim.cell_size_m else 1.0
    return volume * (porosity * WATER_VOLUMETRIC_HEAT + (1.0 - porosity) * ROCK_VOLUMETRIC_HEAT)


class PredictionWriter:
    """Writes one simulation's forecast state by state; see `writing`."""

    def __init__(self, file: h5py.File, sim: PreppedSim, num_states: int, *, with_spread: bool) -> None:
        self.file, self.sim = file, sim
        self.masks = sim.masks()
        self.units: System = "field" if sim.units == "field" else "si"
        self.boxes = active_chunks(self.masks[0])
        self.num_truth = min(num_states, sim.t_valid)
        self.scores: list[dict[str, float]] = []
        self.clipped: list[np.ndarray] = []
        self._heat = heat_capacity_j_k(sim)
        self._stored: list[float] = []
        self._rates: list[np.ndarray] = []
        grids = ["predicted/outputs_grid"]
        grids += [f"predicted/{name}" for name in SPREAD] if with_spread else []
        for name in grids:
            self._create(name, num_states)
        if self.num_truth:
            self._create("ground_truth/outputs_grid", self.num_truth)
        self._scalars = np.full((num_states, len(SCALAR_NAMES)), np.nan)

    def _create(self, name: str, num_states: int) -> None:
        chunks = (1, 2, *(min(CHUNK, n) for n in self.sim.shape))
        shape = (num_states, 2, *self.sim.shape)
        self.file.create_dataset(name, shape, np.float32, chunks=chunks, fillvalue=SENTINEL, **_STORAGE)

    def write(
        self,
        k: int,
        state: np.ndarray,
        scalars: np.ndarray,
        *,
        spread: Mapping[str, np.ndarray] | None = None,
        clipped: np.ndarray | None = None,
        given: bool = False,
    ) -> None:
        """Write state k.

        Args:
            k: index in the file.
            state: bar and deg C, [2, Z, Y, X], anything off the domains.
            scalars: W, W, J, kg/s, kg/s, [5].
            spread: "std", "p10", "p50", "p90" in bar and deg C, each as `state`.
            clipped: cells whose pressure and temperature were clipped, [2].
            given: the state is the one that the forecast begins with.
        """
        state = with_sentinels(state, self.masks)
        self._put("predicted/outputs_grid", k, state)
        for name, values in (spread or {}).items():
            self._put(f"predicted/{name}", k, with_sentinels(values, self.masks), is_difference=name == "std")
        self._scalars[k] = scalars
        self.clipped.append(np.zeros(2, dtype=np.int64) if clipped is None else clipped)
        if k < self.num_truth:
            truth = self.sim.states(k, k + 1)[0]
            self._put("ground_truth/outputs_grid", k, truth)
            self.scores.append(self._score(state, truth))
        self._stored.append(float(stored_heat_j(state[1], self._heat, self.masks[0])))
        if not given:
            self._rates.append(np.asarray(scalars[:2], dtype=np.float64))

    def _score(self, state: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        domains = {"P": self.masks[1], "T": self.masks[0]}
        return {
            f"{measure}_{name}": value
            for channel, name in enumerate(CHANNELS)
            for measure, value in cell_scores(state[channel], truth[channel], domains[name]).items()
        }

    def _put(self, name: str, k: int, state: np.ndarray, *, is_difference: bool = False) -> None:
        """Store bar and deg C in the file's units, chunks with active cells only."""
        stored = np.empty_like(state)
        for channel, grid in enumerate(GRID_NAMES):
            if is_difference:
                scale, _ = scale_and_offset(grid, self.units)
                outside = state[channel] == SENTINEL
                stored[channel] = np.where(outside, SENTINEL, state[channel] / scale)
            else:
                stored[channel] = from_internal(grid, state[channel], self.units)
        data: Any = self.file[name]
        for box in self.boxes:
            data[(k, slice(None), *box)] = stored[(slice(None), *box)]

    def energy_error(self) -> float:
        """Return the imbalance of the predicted years, relative to the heat produced; NaN when unknown."""
        if len(self._rates) < 1 or self.sim.cell_size_m is None or len(self._stored) <= len(self._rates):
            return float("nan")
        rates = np.stack(self._rates)
        stored = np.array(self._stored[-len(rates) - 1 :])
        return energy_imbalance(stored, rates[:, 0], rates[:, 1], self.sim.dt_s)

    def start_heat(self, temperature_c: np.ndarray) -> None:
        """Note the heat before the first year, where that state is not written."""
        self._stored.insert(0, float(stored_heat_j(temperature_c, self._heat, self.masks[0])))

    def close(self, attributes: Mapping[str, Any]) -> None:
        """Write tables, truth of the rates, errors and attributes."""
        self.file["predicted/outputs_scalar"] = self._in_units(self._scalars)
        if self.num_truth:
            self.file["ground_truth/outputs_scalar"] = self._in_units(self.sim.scalars[: self.num_truth])
            for measure in CELL_MEASURES:
                for name in CHANNELS:
                    key = f"{measure}_{name}"
                    self.file[f"metrics/per_step/{key}"] = np.array([s[key] for s in self.scores])
        self.file["clipped_cells"] = np.stack(self.clipped)
        self._write_site()
        self.file.attrs.update(
            {
                "schema": SCHEMA,
                "source": self.sim.path.name,
                "units": self.units,
                "dt_s": self.sim.dt_s,
                "energy_balance_error": self.energy_error(),
                **{
                    k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in attributes.items()
                },
            }
        )
        if self.sim.cell_size_m:
            self.file.attrs["cell_size_m"] = self.sim.cell_size_m

    def _in_units(self, table: np.ndarray) -> np.ndarray:
        columns = [
            from_internal(name, table[:, i], self.units, self.sim.dt_s) for i, name in enumerate(SCALAR_NAMES)
        ]
        return np.stack(columns, axis=1)

    def _write_site(self) -> None:
        """Write what exports need: masks, the initial state and the wells."""
        packing: dict[str, Any] = {"compression": "lzf"}
        self.file.create_dataset("site/masks", data=self.masks, **packing)
        initial = with_sentinels(self.sim.initial(), self.masks)  # bar and deg C
        self.file.create_dataset("site/initial", data=initial, **packing)
        wells = self.sim.wells
        self.file["site/wells/sign"] = wells.sign
        self.file["site/wells/rate"] = wells.rate_kg_s
        self.file["site/wells/cells"] = np.column_stack([wells.cells.astype(np.float64), wells.weight])
        self.file["site/wells/cell_well"] = wells.cell_well


@contextlib.contextmanager
def writing(
    path: Path, sim: PreppedSim, num_states: int, *, with_spread: bool = False
) -> Iterator[PredictionWriter]:
    """Yield a writer; the file appears under its name when the block ends well, after `close`."""
    needed = 8 * int(np.prod(sim.shape)) // 4
    with atomic_path(path, needed_bytes=needed) as temporary, h5py.File(temporary, "w") as file:
        yield PredictionWriter(file, sim, num_states, with_spread=with_spread)


@dataclass
class Predictions:
    """An open predictions file, read state by state in bar, deg C, W, J and kg/s.

    Attributes:
        path: the file.
        num_states: predicted states, the given one included.
        num_truth: of them with truth.
        first_predicted: index of the first that the network made.
        masks: [3, Z, Y, X].
        initial: bar and deg C, [2, Z, Y, X].
        wells: of the simulation.
        scalars: [T, 5]; `truth_scalars` [num_truth, 5].
        cell_size_m: (dz, dy, dx), metres; ones when unknown.
        dt_s: length of a step.
    """

    path: Path
    num_states: int
    num_truth: int
    first_predicted: int
    masks: np.ndarray
    initial: np.ndarray
    wells: Wells
    scalars: np.ndarray
    truth_scalars: np.ndarray
    cell_size_m: tuple[float, float, float]
    dt_s: float
    units: System

    def state(self, k: int, group: str = "predicted") -> np.ndarray:
        """Return state k of "predicted" or "ground_truth", bar and deg C, float64 [2, Z, Y, X]."""
        with open_h5(self.path) as file, reading(self.path, group):
            data: Any = file[f"{group}/outputs_grid"]
            stored = data[k]
        grids = [to_internal(name, stored[i], self.units) for i, name in enumerate(GRID_NAMES)]
        return np.stack(grids)


def open_predictions(path: str | Path) -> Predictions:
    """Return the predictions in a file of `writing`.

    Raises:
        DataError: it is missing, damaged or of another form.
    """
    path = Path(path)
    with open_h5(path) as file, reading(path):
        if attribute(file, "schema", str) != SCHEMA:
            raise DataError(f"{path}: no predictions of rollout.py (schema {SCHEMA!r}); name such a file")
        grid = dataset_of(file, "predicted/outputs_grid")
        require_numbers(grid, (None, 2, None, None, None))
        num_states, _, *shape = grid.shape
        units: System = "field" if attribute(file, "units", str) == "field" else "si"
        dt_s = attribute(file, "dt_s", float) or 1.0
        num_truth = 0
        truth = np.zeros((0, len(SCALAR_NAMES)))
        if has_dataset(file, "ground_truth/outputs_grid"):
            known = dataset_of(file, "ground_truth/outputs_grid")
            require_numbers(known, (None, 2, *shape))
            num_truth = known.shape[0]
            truth = _scalars(file, "ground_truth", units, dt_s)
        cells = _numbers(file, "site/wells/cells", None, 4)
        wells = Wells(
            _numbers(file, "site/wells/sign", None),
            _numbers(file, "site/wells/rate", None),
            well_cells(path, cells, shape),
            cells[:, 3],
            _numbers(file, "site/wells/cell_well", None),
        )
        return Predictions(
            path=path,
            num_states=int(num_states),
            num_truth=int(num_truth),
            first_predicted=attribute(file, "first_predicted_index", int) or 0,
            masks=_numbers(file, "site/masks", 3, *shape),
            initial=_numbers(file, "site/initial", 2, *shape).astype(np.float64),
            wells=wells,
            scalars=_scalars(file, "predicted", units, dt_s),
            truth_scalars=truth,
            cell_size_m=attribute(file, "cell_size_m", float, 3) or (1.0, 1.0, 1.0),
            dt_s=dt_s,
            units=units,
        )


def _numbers(file: h5py.File, name: str, *shape: int | None) -> np.ndarray:
    """Return a dataset of real numbers of `shape`; None stands for any length."""
    data = dataset_of(file, name)
    require_numbers(data, shape)
    require_budget(file.filename, [data], MAX_TABLE_GB)
    return data[()]


def _scalars(file: h5py.File, group: str, units: System, dt_s: float) -> np.ndarray:
    table = _numbers(file, f"{group}/outputs_scalar", None, len(SCALAR_NAMES))
    columns = [to_internal(name, table[:, i], units, dt_s) for i, name in enumerate(SCALAR_NAMES)]
    return np.stack(columns, axis=1)
