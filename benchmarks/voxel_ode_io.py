"""What reading costs: patches, file sizes, statistics, index. Run: python benchmarks/voxel_ode_io.py.

One full-size file of 326 x 70 x 76 cells and 30 states, layers 0-60 and 180-186 partly active (15 % of all
cells), with smooth fields that were never simulated, is written by the package, with lzf and with gzip-1, and
the usual way: gzip-4, HDF5's own chunks. The same random active patches of 32^3 cells, two states and eleven
statics, are read from each in turn, best of several rounds; from memory they are copied. The table and
benchmarks/results/voxel_ode_io.json say the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._table import publish, row  # noqa: E402
from common.noise import correlated_gaussian, numpy_stream  # noqa: E402
from common.sampling import Draw  # noqa: E402
from voxel_ode.config_prep import PrepConfig  # noqa: E402
from voxel_ode.dataset import PatchDataset, PatchOptions  # noqa: E402
from voxel_ode.index import PatchIndex, index_of, joined, write_npz  # noqa: E402
from voxel_ode.prep_file import write_prepped  # noqa: E402
from voxel_ode.prepped import PreppedSim, open_prepped  # noqa: E402
from voxel_ode.raw import RawFile  # noqa: E402
from voxel_ode.raw_inputs import RawInputs, depth_fraction, masks_of  # noqa: E402
from voxel_ode.schema import SENTINEL, STATIC_NAMES  # noqa: E402
from voxel_ode.stats import file_stats, stats_dict  # noqa: E402
from voxel_ode.wells import find_wells  # noqa: E402

SHAPE, NUM_STEPS = (326, 70, 76), 30
PATCH, STRIDE = (32, 32, 32), (8, 8, 8)
NUM_READS, ROUNDS, ITEMS = 150, 5, 60
NUM_PARAMS, NUM_SIMS = 26, 40
MOST_INDEX_BYTES = 32
Table = list[dict[str, Any]]
Reader = Callable[[int, tuple[slice, slice, slice]], Any]


class SmoothCase:
    """What the writer needs of a raw file: statics, masks, wells and states, made without simulating."""

    path = Path("v2.4_0001.h5")
    units, dt_s, cell_size_m = "si", 365.25 * 86400.0, (10.0, 50.0, 50.0)
    shape, t_valid = SHAPE, NUM_STEPS

    def __init__(self) -> None:
        rng = numpy_stream(0, "benchmark")
        z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
        layers = (z <= 60) | ((z >= 180) & (z <= 186))
        active = layers & (((y - 35) / 33.8) ** 2 + ((x - 38) / 36.7) ** 2 < 1)
        smooth = [correlated_gaussian(SHAPE, (1.5, 4, 4), rng) for _ in range(3)]
        is_well = np.zeros(SHAPE, bool)
        for k, (line, column) in enumerate(((20, 20), (48, 52))):
            is_well[20 + k : 40, line, column] = True
        rate = np.where(is_well, np.where(x < 30, 50.0, -50.0), 0.0)
        perm = 10 ** (1.7 + 0.4 * smooth[0])
        fields = {
            "FaultId": (smooth[1] > 2.5).astype(float),
            "InjRate": rate,
            "IsActive": active,
            "IsWell": is_well,
            "PermX": perm,
            "PermY": 1.5 * perm,
            "PermZ": 0.1 * perm,
            "Porosity": 0.12 + 0.02 * smooth[1],
            "Pressure0": 200 + 0.98 * z + 0 * y + 0.5 * smooth[2],
            "Temperature0": 70 + 0.4 * z + 0 * y + smooth[2],
            "Depth": depth_fraction(SHAPE),
        }
        static = np.full((len(STATIC_NAMES), *SHAPE), SENTINEL, dtype=np.float32)
        for i, name in enumerate(STATIC_NAMES):
            static[i][active] = fields[name][active]
        nowhere = np.zeros(SHAPE, bool)
        wells = find_wells(is_well, rate, perm)
        self.inputs = RawInputs(static, masks_of(static), nowhere, nowhere, wells, ())
        self.initial = static[[STATIC_NAMES.index("Pressure0"), STATIC_NAMES.index("Temperature0")]]
        self.params = rng.random(NUM_PARAMS)
        self.param_names = [f"param{i}" for i in range(NUM_PARAMS)]
        self._change = np.stack([0.1 * smooth[1], -np.abs(smooth[1])])

    def state(self, t: int) -> np.ndarray:
        """Return pressure and temperature of year t + 1, [2, Z, Y, X]."""
        change = self._change * np.sqrt(t + 1)
        return np.where(self.inputs.masks[0], self.initial + change, SENTINEL)

    def scalars(self) -> np.ndarray:
        """Return field rates that only grow, [T, 5]."""
        return np.linspace(1.0, 2.0, 5 * NUM_STEPS).reshape(NUM_STEPS, 5) * 1e7


def write_usual(path: Path, sim: PreppedSim) -> None:
    """Write statics and states with gzip-4 and HDF5's own chunks."""
    with h5py.File(path, "w") as file:
        file.create_dataset("static", data=sim.static(), chunks=True, compression="gzip", compression_opts=4)
        shape = (sim.t_valid, 2, *sim.shape)
        data = file.create_dataset(
            "outputs_grid", shape, "f4", chunks=True, compression="gzip", compression_opts=4
        )
        chunk = data.chunks[0] if data.chunks else 1
        for first in range(0, sim.t_valid, chunk):
            stop = min(first + chunk, sim.t_valid)
            data[first:stop] = sim.states(first, stop)


def reader_of(sim: PreppedSim) -> Reader:
    """Return the reading of one patch, two states and the statics, into memory of its own."""
    if sim.arrays:
        return lambda t, box: (sim.states(t, t + 2, box).copy(), sim.static(box).copy())
    return lambda t, box: (sim.states(t, t + 2, box), sim.static(box))


def usual_reader(file: h5py.File) -> Reader:
    """Return the same from the usual file."""
    grids, static = cast(Any, file["outputs_grid"]), cast(Any, file["static"])
    everything = slice(None)
    return lambda t, box: (grids[(slice(t, t + 2), everything, *box)], static[(everything, *box)])


def rates(readers: dict[str, Reader], index: PatchIndex) -> dict[str, float]:
    """Return the patches a second of each reader, taken in turn, best of the rounds."""
    places = numpy_stream(0, "benchmark places").integers(0, len(index), NUM_READS)
    best = dict.fromkeys(readers, 0.0)
    for _ in range(ROUNDS):
        for name, read in readers.items():
            began = time.process_time()
            for i in places:
                read(int(index.t[i]), index.slices(int(i)))
            best[name] = max(best[name], NUM_READS / (time.process_time() - began))
    return best


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call and what it returned."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def item_rate(dataset: PatchDataset) -> float:
    """Return whole training items a second: read, normalised, turned, with noise."""
    draws = [Draw(i % len(dataset), i) for i in range(ITEMS)]
    return ITEMS / cpu_seconds(lambda: [dataset[draw] for draw in draws])[0]


def index_rows(index: PatchIndex, folder: Path) -> Table:
    """Measure the index of forty such files without --min_active, in memory and as a file."""
    whole = np.arange(1596 * (NUM_STEPS - 1)) % len(index)
    many = joined([index.take(whole)] * NUM_SIMS)
    weights = np.zeros(len(many))
    path = folder / "index.npz"
    write_npz(many, path, "")
    count = len(many)
    return [
        row(f"index of {count} patches", (many.num_bytes + weights.nbytes) / 1e6, "MB", most=100.0),
        row("index, a patch", many.num_bytes / count, "B", most=MOST_INDEX_BYTES),
        row("weight that it is drawn with, a patch", weights.nbytes / count, "B"),
        row("index file (.npz), a patch", path.stat().st_size / count, "B", most=MOST_INDEX_BYTES),
    ]


def measure(folder: Path) -> Table:
    """Write the files, read them, and return the table."""
    case = cast(RawFile, SmoothCase())
    paths = {name: folder / f"{name}.prepped.h5" for name in ("lzf", "gzip1")}
    writing = {}
    for name, path in paths.items():
        flags = PrepConfig(input_root=folder, compression=name)
        writing[name], _ = cpu_seconds(lambda p=path, f=flags: write_prepped(case, p, f, ""))
    sims = {name: open_prepped(path) for name, path in paths.items()}
    usual = folder / "usual.h5"
    write_usual(usual, sims["lzf"])
    indexing, index = cpu_seconds(
        lambda: index_of(open_prepped(paths["lzf"]), paths["lzf"].name, PATCH, STRIDE, 0.01)
    )
    counting, stats = cpu_seconds(lambda: file_stats(paths["lzf"], 0, NUM_PARAMS, [True] * 5))
    described = stats_dict(stats, "binary", case.param_names, "benchmark")
    options = PatchOptions(turns=True, flips=True, noise_std=0.01, loss_margin=4)
    items = {"none": item_rate(PatchDataset(index, folder, described, options))}
    memory = open_prepped(paths["lzf"]).load()
    items["ram"] = item_rate(PatchDataset(index, folder, described, options, sims=[memory]))
    with h5py.File(usual) as file:
        readers = {"usual": usual_reader(file), **{name: reader_of(sim) for name, sim in sims.items()}}
        found = rates({**readers, "ram": reader_of(memory)}, index)
    size = {name: path.stat().st_size for name, path in {**paths, "usual": usual}.items()}
    plain = "gzip-4, own chunks"
    return [
        row("active cells", 100 * float(case.inputs.masks[0].mean()), "%"),
        row("patches of 32^3, gzip-4, own chunks", found["usual"], "1/s"),
        row("patches of 32^3, lzf", found["lzf"], "1/s"),
        row("patches of 32^3, gzip-1", found["gzip1"], "1/s"),
        row("patches of 32^3, --cache ram", found["ram"], "1/s"),
        row("lzf beside gzip-4", found["lzf"] / found["usual"], "times", least=1.3, baseline=plain),
        row("gzip-1 beside gzip-4", found["gzip1"] / found["usual"], "times", least=1.3, baseline=plain),
        row("--cache ram beside gzip-4", found["ram"] / found["usual"], "times", least=3.0, baseline=plain),
        row("size, gzip-4, own chunks", size["usual"] / 1e6, "MB"),
        row("size of lzf beside gzip-4", size["lzf"] / size["usual"], "times", most=1.2, baseline=plain),
        row("size of gzip-1 beside gzip-4", size["gzip1"] / size["usual"], "times", most=1.2, baseline=plain),
        row("whole items, lzf", items["none"], "1/s"),
        row("whole items, --cache ram", items["ram"], "1/s"),
        row("writing, lzf", writing["lzf"], "CPU s"),
        row("patch index of the file", indexing, "CPU s"),
        row("statistics of the file", counting, "CPU s", most=2.0),
        *index_rows(index, folder),
    ]


def main() -> int:
    """Measure, print, and write benchmarks/results/voxel_ode_io.json."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name))
    publish("voxel_ode_io", rows, began, h5py=h5py.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
