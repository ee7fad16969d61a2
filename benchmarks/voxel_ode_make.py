"""What the generator of reservoirs costs and how exact it is. Run: python benchmarks/voxel_ode_make.py.

One reservoir of the preset demo (32 x 24 x 24 cells, 30 yearly states) is simulated and written: CPU seconds,
what is created or lost of water and of heat in the worst year, which bounds the whole run, and how far the
field rates worked out from the wells' true temperatures, without any learned correction, are from those of
the simulator. The table and benchmarks/results/voxel_ode_make.json say the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._table import publish, row  # noqa: E402
from voxel_ode.case import Case  # noqa: E402
from voxel_ode.config_make import MakeDataConfig, demo, smoke  # noqa: E402
from voxel_ode.make_data import file_name, grid_config  # noqa: E402
from voxel_ode.prepped import PreppedSim  # noqa: E402
from voxel_ode.raw_writer import write_raw  # noqa: E402
from voxel_ode.scalars import RATES, physical_rates  # noqa: E402
from voxel_ode.simulator import Simulation, simulate  # noqa: E402
from voxel_ode.synthetic import make_case  # noqa: E402

SEED, INDEX = 0, 1
MOST_SECONDS, MOST_IMBALANCE = 8.4, 1e-6
MOST_WATER, MOST_PRODUCED, MOST_INJECTED = 1e-6, 1e-3, 1e-2  # relative errors of the rates
Table = list[dict[str, Any]]


def simulated(config: MakeDataConfig) -> tuple[Case, Simulation, float]:
    """Return the first case of the preset, its run, and the CPU seconds of making and running it."""
    began = time.process_time()
    case = make_case(SEED, INDEX, grid_config(config))
    run = simulate(case, config.num_steps, config.substeps, config.history_years)
    return case, run, time.process_time() - began


def cost_rows(config: MakeDataConfig, case: Case, seconds: float) -> Table:
    """Return the size of the case and what its simulation took."""
    cells = " x ".join(map(str, config.grid))
    return [
        row("active cells", float(case.active.sum()), ""),
        row("wells", float(len(case.wells)), ""),
        row(f"simulating {config.num_steps} years of {cells} cells", seconds, "CPU s", most=MOST_SECONDS),
    ]


def balance_rows(run: Simulation) -> Table:
    """Return what is created or lost in the worst year; over all years together it is no more."""
    water, heat = (float(np.abs(errors).max()) for errors in (run.mass_error, run.energy_error))
    shares = "of what is injected", "of what is produced"
    return [
        row(f"water created or lost in the worst year, {shares[0]}", water, "share", most=MOST_IMBALANCE),
        row(f"heat created or lost in the worst year, {shares[1]}", heat, "share", most=MOST_IMBALANCE),
    ]


def rate_errors(sim: PreppedSim) -> np.ndarray:
    """Return the relative errors of rates from true fields, [years, 4]; the first year has no year before it.

    Order: energy injected and produced, water injected and produced.
    """
    features = torch.from_numpy(sim.well_features)[1:]
    rates = torch.from_numpy(sim.wells.total_rates_kg_s)[None].expand(len(features) - 1, 2)
    found = physical_rates(features[:-1], features[1:], rates).numpy()
    return np.abs(found / sim.scalars[1:][:, RATES] - 1)


def rate_rows(errors: np.ndarray) -> Table:
    """Return the errors of the field rates: medians of the powers, the worst of the water.

    Args:
        errors: from `rate_errors`.
    """
    injected, produced, *_ = (float(v) for v in np.median(errors, axis=0))
    water = float(errors[:, 2:].max())
    what = "from the wells' true temperatures"
    return [
        row("water rates of the field, largest relative error", water, "share", most=MOST_WATER),
        row(f"produced power {what}, median relative error", produced, "share", most=MOST_PRODUCED),
        row(f"injected power {what}, median relative error", injected, "share", most=MOST_INJECTED),
    ]


def measure(config: MakeDataConfig, folder: Path) -> Table:
    """Simulate, write the file, read it again, and return the table."""
    simulated(smoke())  # imports, and first calls of the solvers
    case, run, seconds = simulated(config)
    path = folder / file_name(INDEX)
    began = time.process_time()
    write_raw(path, case, run)
    writing = time.process_time() - began
    sim = PreppedSim.from_raw(path)
    return [
        *cost_rows(config, case, seconds),
        row("writing the file", writing, "CPU s"),
        row("size of the file", path.stat().st_size / 1e6, "MB"),
        *balance_rows(run),
        *rate_rows(rate_errors(sim)),
    ]


def main() -> int:
    """Measure, print, and write benchmarks/results/voxel_ode_make.json."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(demo(), Path(name))
    publish("voxel_ode_make", rows, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
