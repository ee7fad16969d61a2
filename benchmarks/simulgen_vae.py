"""What the surrogate reaches and costs. Run: python benchmarks/simulgen_vae.py --case wave --seed 0.

Cases: wave, advdiff and burgers train and evaluate through the users' commands and print ratios to baselines
that are fitted in the same run on the same rows (lower is better); wave is inverted too. scale streams an
HDF5 file through the POD front end in a process of its own and prints seconds, MB/s and peak memory. speed
times epochs with and without front end, and the decoder beside the solvers. gp fits our Gaussian process
beside scikit-learn's. full trains on 484 runs of 200 frames and 95,008 nodes (half an hour of CPU time, 3 GB
of disk). all runs everything but full; --smoke runs tiny sizes. The table and
benchmarks/results/simulgen_vae.json say the same; a case and seed replace their own rows in that file. Ratios
come from one run; times are CPU seconds.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._child import peak_bytes  # noqa: E402
from benchmarks._simulgen_vae_quality import BURGERS, quality  # noqa: E402
from benchmarks._table import row, show, store_case  # noqa: E402
from benchmarks.simulgen_vae_full import measured_basis, memory_rows  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.errors import EXIT_LEFT_OUT  # noqa: E402
from common.guard import Guard  # noqa: E402
from common.noise import numpy_stream  # noqa: E402
from common.run import TrainOptions  # noqa: E402
from simulgen_vae import advdiff, wave  # noqa: E402
from simulgen_vae.basis import fit_basis  # noqa: E402
from simulgen_vae.config import TrainConfig  # noqa: E402
from simulgen_vae.field_data import FieldData  # noqa: E402
from simulgen_vae.fields import open_fields  # noqa: E402
from simulgen_vae.gp import fit_gp, likelihood_of  # noqa: E402
from simulgen_vae.grids import Grid  # noqa: E402
from simulgen_vae.hdf5_input import fixed_texts  # noqa: E402
from simulgen_vae.progress import VAE  # noqa: E402
from simulgen_vae.reduced import reduce_one  # noqa: E402
from simulgen_vae.train import gather, make_task, make_training  # noqa: E402

CASES = ("wave", "advdiff", "burgers", "scale", "speed", "gp")
CHILDREN = ("scale_child", "speed_child")  # processes that scale and speed start
RESULT = ROOT / "benchmarks" / "results" / "simulgen_vae.json"
WHOLE_MESH_S, WHOLE_MESH_GB = 1.0, 1.0  # an epoch and the memory of a whole-mesh model of 4.15 M weights
GP_TOLERANCE = 0.002  # of scikit-learn's log-likelihood: what lies so near is as likely
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Config:
    """What to measure."""

    case: str = option("all", "what to measure", choices=("all", *CASES, "full", *CHILDREN))
    smoke: bool = option(False, "tiny sizes, no targets")
    num: int = option(0, "simulations; 0 = 128 of wave and advdiff, 484 of full")
    num_modes: int = option(0, "r_s of full; 0 = 512")
    nodes: int = option(0, "M of full; 0 = 95008")
    max_cpu_s: float = option(0.0, "--max_cpu_s of the trainings; 0 = that of the case", unit="s")
    threads: int = option(2, "CPU threads of the trainings")
    real_data: Path = option(ROOT.parent / "shared/data", f"folder with {BURGERS}")
    max_memory: float = option(0.5, "bound of the front end in scale", unit="GiB")
    file: str = option("", "HDF5 file of scale_child and speed_child")


@dataclass(frozen=True)
class Options:
    """How it is run."""

    seed: int = option(0, "of data, split and training")


# scale


def write_large(path: Path, num: int, frames: int, nodes: int, rank: int = 12) -> None:
    """Write travelling low-rank fields [num, frames, nodes, 1] and a little noise, one by one."""
    import h5py

    x = np.linspace(0, 1, nodes, dtype=np.float32)
    t = np.linspace(0, 1, frames, dtype=np.float32)
    with h5py.File(path, "w") as h5:
        chunk = (1, frames, min(nodes, 16384), 1)
        fields = h5.create_dataset("fields", (num, frames, nodes, 1), "f4", chunks=chunk, fletcher32=True)
        fields.attrs["names"], fields.attrs["units"] = fixed_texts(["u"]), fixed_texts([""])
        for i in range(num):
            rng = numpy_stream(0, "large", i)
            u = 1e-3 * rng.standard_normal((frames, nodes), dtype=np.float32)
            for k in range(1, rank):
                a, b = rng.standard_normal(2).astype(np.float32)
                u += (a * np.cos(k * t) + b * np.sin(k * t))[:, None] * np.sin(np.pi * k * x) / k
            fields[i] = u[..., None]


def scale(config: Config, folder: Path) -> Rows:
    """Fit and apply the front end in a process of its own, so that its peak memory is its own."""
    path = folder / "large.h5"
    num, frames, nodes = (4, 20, 2000) if config.smoke else (8, 200, 95008)
    write_large(path, num, frames, nodes)
    found = child("scale", path, config)
    megabytes = num * frames * nodes * 4 / 1e6
    return [
        row("scale: fields", megabytes, "MB"),
        row("scale: modes", found["modes"], "-"),
        row("scale: basis, 4 passes", found["cpu_s"], "CPU s"),
        row("scale: basis, stream", found["stream"], "MB/s"),
        *memory_rows("scale", found, config.smoke),
        row("scale: coefficients, 1 pass", found["reduce_s"], "CPU s"),
        row("scale: peak memory", found["peak_bytes"] / 1e9, "GB", None if config.smoke else 1.5),
    ]


def child(case: str, path: Path, config: Config) -> dict[str, float]:
    """Measure the part of a case that has a process of its own; return what it prints as JSON."""
    command = [sys.executable, __file__, "--case", f"{case}_child", "--file", str(path)]
    command += ["--max_memory", str(config.max_memory)] + (["--smoke"] if config.smoke else [])
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def scale_child(config: Config) -> dict[str, float]:
    """Stream the file through the front end and return what it cost."""
    data = open_fields(config.file)
    modes = 6 if config.smoke else 128
    basis, cost = measured_basis(data, range(data.num_samples), modes, config.max_memory)
    began = time.process_time()
    for i in range(data.num_samples):
        reduce_one(data, basis, i)
    return {
        **cost,
        "modes": basis.num_modes,
        "reduce_s": time.process_time() - began,
        "peak_bytes": peak_bytes(),
    }


# speed


def speed(config: Config, folder: Path) -> Rows:
    """Time an epoch with POD at three mesh sizes and without, the decoder, and the solvers."""
    num, frames, modes = (16, 8, 4) if config.smoke else (80, 32, 64)
    sizes = (64, 128) if config.smoke else (1024, 2048, 32768)
    lines, seconds = [], {}
    for nodes in sizes:
        path = folder / f"speed{nodes}.h5"
        write_large(path, num, frames, nodes)
        seconds[nodes], _ = epoch_seconds(path, folder, config, num_modes=str(modes))
        lines.append(row(f"speed: epoch of {num} runs, pod, {nodes} nodes", seconds[nodes], "CPU s"))
    lines[0]["at_most"] = None if config.smoke else 1.0  # a whole-mesh model of this size takes 1.0 to 2.4 s
    middle = sizes[-2]
    plain, _ = epoch_seconds(folder / f"speed{middle}.h5", folder, config, front_end="none")
    lines += [
        row(f"speed: epoch of {num} runs, none, {middle} nodes", plain, "CPU s"),
        row(
            f"speed: pod / none, {middle} nodes",
            seconds[middle] / plain,
            "ratio",
            None if config.smoke else 1.0,
            baseline="front end none",
        ),
        row(
            f"speed: pod, {sizes[-1]} / {middle} nodes",
            seconds[sizes[-1]] / seconds[middle],
            "ratio",
            None if config.smoke else 1.1,
            baseline=f"{middle} nodes",
        ),
    ]
    return lines + rival_rows(config, folder) + solver_rows(config)


def rival_rows(config: Config, folder: Path) -> Rows:
    """Time an epoch at the sizes that a public whole-mesh model is known for, in a process of its own."""
    num, frames, nodes = (16, 8, 64) if config.smoke else (86, 32, 1024)
    path = folder / "rival.h5"
    write_large(path, num, frames, nodes)  # 64 of 86 train
    found = child("speed", path, config)
    seconds, peak, most = found["epoch_s"], found["peak_bytes"] / 1e9, None if config.smoke else WHOLE_MESH_S
    what, other = f"{found['runs']} runs of {frames} x {nodes}", "a whole-mesh model"
    return [
        row(f"speed: epoch, {what}", seconds, "CPU s", most, baseline=other, ratio=seconds / WHOLE_MESH_S),
        row(
            f"speed: peak memory of the process that trains on {what}",
            peak,
            "GB",
            baseline=other,
            ratio=peak / WHOLE_MESH_GB,
        ),
    ]


def speed_child(config: Config) -> dict[str, float]:
    """Time an epoch on the file and return the training runs, the seconds and the peak memory."""
    modes, folder = 4 if config.smoke else 64, Path(config.file).parent
    seconds, runs = epoch_seconds(Path(config.file), folder, config, num_modes=str(modes))
    return {"runs": runs, "epoch_s": seconds, "peak_bytes": peak_bytes()}


def epoch_seconds(path: Path, folder: Path, config: Config, **changes: str) -> tuple[float, int]:
    """Return the CPU seconds of an epoch of the VAE, the best of eight after a first one, and its runs."""
    filters = (16, 12, 8) if config.smoke else (128, 96, 64, 48)
    chosen = TrainConfig(data=str(path), epochs=10, filters=filters, test_fraction=0.1, val_fraction=0.15)
    chosen = replace(chosen, **changes)
    options = TrainOptions(out=folder / "none", device="cpu", precision="fp32")
    inputs = gather(chosen, options)
    training = make_training(inputs, 0, torch.device("cpu"), None)
    task = make_task(inputs, training, options, Guard(torch.device("cpu")))
    task.start_phase(VAE)
    times, per_epoch, began = [], task.lengths[VAE].per_epoch, time.process_time()
    for step, batch in enumerate(task.batches(VAE)):
        task.step(batch, step)
        if (step + 1) % per_epoch == 0:
            times.append(time.process_time() - began)
            began = time.process_time()
    inputs.data.close()
    return min(times[1:-1]), len(inputs.split.train)


def solver_rows(config: Config) -> Rows:
    """Return what decoding a trajectory costs beside the generators' own solvers on the same grid."""
    grid = Grid(16, 8) if config.smoke else Grid(64, 32)
    frames = 5 if config.smoke else 50
    modes, nodes = 64, grid.nx * grid.ny
    c, phi = torch.randn(modes, frames), torch.randn(nodes, modes)
    decode = best_of(lambda: c.T @ phi.T)
    lines = [row("speed: decoding a trajectory", 1e3 * decode, "CPU ms")]
    for name, solver in (("advdiff", advdiff), ("wave", wave)):
        params = solver.draw(numpy_stream(0, "solver", 0))
        seconds = best_of(lambda s=solver, p=params: s.simulate(p, grid, frames), 2)
        lines += [
            row(f"speed: {name} solver", 1e3 * seconds, "CPU ms"),
            row(f"speed: {name} solver / decoding", seconds / decode, "times", baseline="solver"),
        ]
    return lines


def best_of(function: Callable[[], Any], count: int = 5) -> float:
    """Return the least CPU seconds of several calls."""
    times = []
    for _ in range(count):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


# Gaussian processes


def gp(config: Config, data: FieldData) -> Rows:
    """Fit one process with one ARD kernel for all POD scores here and in scikit-learn, on equal rows."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    num = 40 if config.smoke else 800
    basis = fit_basis(data, range(num), 12)
    c = np.stack([reduce_one(data, basis, i) for i in range(num)]).reshape(num, -1)
    u, s, _ = np.linalg.svd(c - c.mean(0), full_matrices=False)
    y = u[:, :16] * s[:16]
    assert data.params is not None
    x = (data.params[:num] - data.params[:num].mean(0)) / data.params[:num].std(0)
    began = time.process_time()
    ours = fit_gp(torch.from_numpy(x), torch.from_numpy(y), num_starts=2)
    own_seconds, own = time.process_time() - began, likelihood_of(ours, torch.from_numpy(y))
    lengths: Any = np.full(x.shape[1], 4.0)
    kernel: Any = ConstantKernel(float((y**2).mean()), (1e-9, 1e9)) * Matern(lengths, (1e-2, 1e4), 2.5)
    began = time.process_time()
    theirs: Any = GaussianProcessRegressor(kernel + WhiteKernel(1e-4, (1e-12, 1e3)), alpha=1e-10).fit(
        x, y - y.mean(0)
    )
    seconds, other = time.process_time() - began, float(theirs.log_marginal_likelihood_value_)
    return [
        row(f"gp: ours, {num} rows of {x.shape[1]} inputs", own_seconds, "CPU s"),
        row("gp: scikit-learn", seconds, "CPU s"),
        row(
            "gp: ours / scikit-learn",
            own_seconds / seconds,
            "ratio",
            None if config.smoke else 1.0,
            baseline="scikit-learn",
        ),
        *likelihood_rows(own / num, other / num, config.smoke),
    ]


def likelihood_rows(own: float, other: float, smoke: bool) -> Rows:
    """Return the log-likelihoods a row of data: ours has to be as high as scikit-learn's, or nearly."""
    least, unit = None if smoke else other - GP_TOLERANCE * abs(other), "nats a row"
    ours = row("gp: log-likelihood, ours", own, unit, least=least, baseline="scikit-learn", ratio=own / other)
    return [ours, row("gp: log-likelihood, scikit-learn", other, unit)]


def measure(case: str, config: Config, seed: int) -> Rows:
    """Return the lines of one case."""
    real = config.real_data / BURGERS
    if case in ("burgers", "gp") and not real.is_file():
        print(f"{case}: left out, {real} is not there")
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case in ("wave", "advdiff", "burgers"):
            return quality(case, config, seed, folder)
        if case == "gp":
            return gp(config, open_fields(real))
        if case == "full":
            from benchmarks import simulgen_vae_full

            sizes = {"num": config.num, "num_modes": config.num_modes, "nodes": config.nodes}
            return simulgen_vae_full.measure(folder, **sizes, threads=config.threads, smoke=config.smoke)
        return {"scale": scale, "speed": speed}[case](config, folder)


def save(case: str, lines: Rows, seconds: float, config: Config, seed: int) -> None:
    """Replace the lines of a case in the stored result; tiny runs are not stored."""
    if config.smoke or not lines:
        return
    told = f"python benchmarks/simulgen_vae.py --case {case}" + (f" --seed {seed}" if seed else "")
    result = {
        "rows": lines,
        "seed": seed,
        "command": told + ("" if config.threads == Config.threads else f" --threads {config.threads}"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, one thread",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }
    store_case(RESULT, f"{case}, seed {seed}" if seed else case, result)


def run(argv: Sequence[str]) -> int:
    """Measure, print, write benchmarks/results/simulgen_vae.json; another exit code when nothing was."""
    parsed = parse(argv, Config, Options, description=__doc__)
    config, seed = parsed.config, parsed.run.seed
    torch.set_num_threads(1)
    if config.case in CHILDREN:
        print(json.dumps({"scale_child": scale_child, "speed_child": speed_child}[config.case](config)))
        return 0
    measured = 0
    for case in CASES if config.case == "all" else (config.case,):
        began = time.perf_counter()
        lines = measure(case, config, seed)
        save(case, lines, time.perf_counter() - began, config, seed)
        if lines:
            show(lines)
        measured += len(lines)
    return 0 if measured else EXIT_LEFT_OUT


if __name__ == "__main__":
    main(run)
