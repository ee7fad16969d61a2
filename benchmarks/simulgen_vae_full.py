"""Training at its full size: 484 runs of 200 frames on 95,008 nodes, 36.8 GB of fields, in 24 GiB of memory.

`python benchmarks/simulgen_vae.py --case full` writes such fields into a small file (travelling waves of four
parameters whose pattern repeats along the mesh, compressed) and starts this program once for each phase, so
that every phase has a peak of its own: the POD basis of the training runs by four streamed passes, the
coefficients of all runs by one, and epochs of the VAE on them. The basis' working memory stands beside
4 D (r_s + 20) floats and one trajectory. --num, --num_modes and --nodes make it smaller.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._child import peak_bytes, resident_bytes  # noqa: E402
from benchmarks._table import NoOptions, row  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.files import write_json  # noqa: E402
from common.guard import Guard  # noqa: E402
from common.metrics import relative_l2  # noqa: E402
from common.noise import numpy_stream  # noqa: E402
from common.run import TrainOptions  # noqa: E402
from simulgen_vae.basis import OVERSAMPLING, Basis, fit_basis  # noqa: E402
from simulgen_vae.canonical import CHUNK_NODES  # noqa: E402
from simulgen_vae.config import TrainConfig  # noqa: E402
from simulgen_vae.field_data import FieldData  # noqa: E402
from simulgen_vae.hdf5_input import fixed_texts  # noqa: E402
from simulgen_vae.preparation import prepare  # noqa: E402
from simulgen_vae.progress import VAE  # noqa: E402
from simulgen_vae.train import Inputs, gather, make_task, make_training  # noqa: E402

PHASES = ("basis", "coefficients", "epochs")
PATTERN = 768  # nodes after which the fields repeat: the rank is higher than any basis here, the file small
MOST_GIB = 24.0  # of memory, for everything
CHECKED_ROWS = 4  # unseen runs whose projection is scored
FULL, SMOKE = (484, 200, 95008, 512), (16, 16, 2000, 24)  # N, T, M, r_s


@dataclass(frozen=True)
class Config:
    """One phase, in a process of its own."""

    phase: str = option("basis", "which", choices=PHASES)
    folder: Path = option(Path("."), "with fields.h5; what a phase makes goes there too")
    num_modes: int = option(FULL[3], "r_s")
    epochs: int = option(3, "of the VAE, after a first one that does not count")
    threads: int = option(2, "CPU threads")


def write_repeating(path: Path, num: int, frames: int, nodes: int) -> None:
    """Write waves [num, frames, nodes, 1] and their parameters [num, 4], one run in memory at a time.

    u(x, t) = sum_k k^-1.5 exp(-d k t) cos(2 pi k (x - s - c t)), with c, d, s and an amplitude a run.
    """
    import h5py

    k = np.arange(1, PATTERN // 2)
    t = np.linspace(0, 1, frames)[:, None]
    params = np.stack([numpy_stream(0, "full size", i).random(4) for i in range(num)])
    chunks = (1, frames, min(nodes, CHUNK_NODES), 1)
    with h5py.File(path, "w") as h5:
        fields = h5.create_dataset("fields", (num, frames, nodes, 1), "f4", chunks=chunks, compression="lzf")
        fields.attrs["names"], fields.attrs["units"] = fixed_texts(["u"]), fixed_texts([""])
        h5.create_dataset("params", data=params.astype(np.float32))
        for i, (speed, damping, place, size) in enumerate(params):
            spectrum = np.zeros((frames, PATTERN // 2 + 1), dtype=np.complex128)
            phase = -2j * np.pi * k * (place + (0.2 + speed) * t)
            spectrum[:, 1:-1] = (0.5 + size) * k**-1.5 * np.exp(phase - 0.05 * damping * k * t)
            pattern = np.fft.irfft(spectrum * PATTERN, n=PATTERN, axis=1).astype(np.float32)
            fields[i] = np.tile(pattern, -(-nodes // PATTERN))[:, :nodes, None]


def settings(config: Config) -> TrainConfig:
    """Return the training that the phases belong to."""
    small = config.num_modes < 64
    return TrainConfig(
        data=str(config.folder / "fields.h5"),
        num_modes=str(config.num_modes),
        epochs=config.epochs + 1,
        filters=(16, 12, 8) if small else (128, 96, 64, 48),
        test_fraction=0.1,
        val_fraction=0.15 if small else 0.1,
    )


def measured_basis(
    data: FieldData, rows: Sequence[int] | np.ndarray, num_modes: int, max_memory: float = 0.0
) -> tuple[Basis, dict[str, float]]:
    """Fit the basis of some rows; return it and its CPU seconds, MB/s, and working memory beside its bound.

    Args:
        data: the fields.
        rows: to fit.
        num_modes: r_s.
        max_memory: of `fit_basis`, GiB.
    """
    before, cpu, wall = resident_bytes()[0], time.process_time(), time.perf_counter()
    basis = fit_basis(data, rows, num_modes, max_memory=max_memory)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    dim, trajectory = data.num_nodes * data.num_fields, 4 * math.prod(data.shape[1:])
    return basis, {
        "cpu_s": cpu,
        "stream": 4 * len(rows) * trajectory / 1e6 / wall,
        "working_bytes": peak_bytes() - before,
        "bound_bytes": 4 * 4 * dim * (basis.num_modes + OVERSAMPLING) + trajectory,
    }


def memory_rows(case: str, cost: Mapping[str, float], smoke: bool) -> list[dict[str, Any]]:
    """Return the lines of a basis' working memory and its bound; at tiny sizes other memory counts more."""
    working, bound = (cost[name] / 2**30 for name in ("working_bytes", "bound_bytes"))
    formula = "4 D (r_s + 20) floats and a trajectory"
    limit, ratio = None if smoke else bound, working / bound
    what = f"{case}: basis, working memory"
    return [
        row(what, working, "GiB", limit, baseline=formula, ratio=ratio),
        row(f"{case}: {formula}", bound, "GiB"),
    ]


def fit(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Fit the basis of the training runs and keep it; return what it cost."""
    data, rows = inputs.data, inputs.split.train
    basis, cost = measured_basis(data, rows, config.num_modes)
    np.savez(config.folder / "basis.npz", **{n: t.numpy() for n, t in basis.state_dict().items()})
    return {**cost, "rows": len(rows), "basis_bytes": basis.modes.numel() * 4}


def reduce(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Reduce all runs as a training does, keep that, and project some unseen runs; return what it cost."""
    data = inputs.data
    with np.load(config.folder / "basis.npz") as stored:
        basis = Basis.from_dict({name: torch.from_numpy(np.asarray(stored[name])) for name in stored})
    cpu, wall = time.process_time(), time.perf_counter()
    training = prepare(
        inputs.config, data, inputs.split, 0, torch.device("cpu"), config.folder / "run", basis
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    errors = []
    for number in inputs.split.test[:CHECKED_ROWS]:
        u = data.trajectory(int(number))
        c = training.fetch([int(number)])[0]
        errors.append(relative_l2(basis.decode(c).numpy(), u))
    count = data.num_samples * math.prod(training.shape)
    megabytes = math.prod(data.shape) * 4 / 1e6
    return {"cpu_s": cpu, "stream": megabytes / wall, "bytes": 4 * count, "error": max(errors)}


def train(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Train epochs of the VAE on the kept coefficients; return the seconds of each."""
    device = torch.device("cpu")
    options = TrainOptions(out=config.folder / "run", device="cpu", precision="fp32")
    training = make_training(inputs, 0, device, config.folder / "run")
    task = make_task(inputs, training, options, Guard(device))
    task.start_phase(VAE)
    cpu, wall, began = [], [], (time.process_time(), time.perf_counter())
    for step, batch in enumerate(task.batches(VAE)):
        task.step(batch, step)
        if (step + 1) % task.lengths[VAE].per_epoch == 0:
            cpu.append(time.process_time() - began[0])
            wall.append(time.perf_counter() - began[1])
            began = (time.process_time(), time.perf_counter())
    return {"cpu_s": min(cpu[1:]), "wall_s": min(wall[1:])}


def run(argv: Sequence[str]) -> None:
    """Run one phase and write <folder>/<phase>.json."""
    config = parse(argv, Config, NoOptions, description=__doc__).config
    torch.set_num_threads(config.threads)
    inputs = gather(settings(config), TrainOptions(out=config.folder / "run", device="cpu"))
    found = {"basis": fit, "coefficients": reduce, "epochs": train}[config.phase](config, inputs)
    inputs.data.close()
    found["peak_bytes"] = peak_bytes()
    write_json(config.folder / f"{config.phase}.json", found)


def measure(
    folder: Path, *, num: int, num_modes: int, nodes: int, threads: int, smoke: bool
) -> list[dict[str, Any]]:
    """Write the fields, run every phase in its own process, and return the lines; 0 = the full size."""
    sizes = SMOKE if smoke else FULL
    num, frames, nodes, modes = num or sizes[0], sizes[1], nodes or sizes[2], num_modes or sizes[3]
    began = time.process_time()
    write_repeating(folder / "fields.h5", num, frames, nodes)
    wrote = time.process_time() - began
    (folder / "run").mkdir(exist_ok=True)
    found = {}
    for phase in PHASES:
        command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder)]
        command += ["--num_modes", str(modes), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found[phase] = json.loads((folder / f"{phase}.json").read_text(encoding="utf-8"))
        print(f"full: {phase} done", flush=True)
    basis, reduced, epochs = (found[phase] for phase in PHASES)
    chunk = 4 * frames * nodes
    peak = max(part["peak_bytes"] for part in found.values())
    least = peak_bytes()  # of the writer, which is this process
    return [
        row("full: fields", num * chunk / 1e9, "GB"),
        row("full: the same in the file", (folder / "fields.h5").stat().st_size / 1e9, "GB"),
        row("full: writing them", wrote, "CPU s"),
        row(f"full: basis of {basis['rows']} runs, {modes} modes, 4 passes", basis["cpu_s"], "CPU s"),
        row("full: basis, stream", basis["stream"], "MB/s"),
        row("full: basis", basis["basis_bytes"] / 1e6, "MB"),
        *memory_rows("full", basis, smoke),
        row("full: coefficients of all runs, 1 pass", reduced["cpu_s"], "CPU s"),
        row("full: coefficients, stream", reduced["stream"], "MB/s"),
        row("full: coefficients", reduced["bytes"] / 1e6, "MB"),
        row("full: projection of unseen runs, the worst", reduced["error"], "relative L2"),
        row("full: epoch of the VAE", epochs["cpu_s"], "CPU s"),
        row(f"full: epoch of the VAE, {threads} threads", epochs["wall_s"], "s"),
        *(row(f"full: peak memory, {n}", found[n]["peak_bytes"] / 2**30, "GiB") for n in PHASES),
        row("full: peak memory", max(peak, least) / 2**30, "GiB", None if smoke else MOST_GIB),
    ]


if __name__ == "__main__":
    main(run)
