"""What a prediction costs beside the simulation it stands for. Run: python benchmarks/simulgen_vae_infer.py.

For wave and advdiff (64 x 32 cells, 50 frames): CPU milliseconds a trajectory of every predictor, decoding
included, one at a time and in batches, with error bars, and as a torch.export graph (an ONNX one too where
its libraries are installed), whose fields have to be the model's; the simulator's own CPU time on the same
thread; how much memory a long stream of predictions takes; and decoding a large mesh. Weights are trained
for a moment only: times do not depend on their values. --smoke runs tiny sizes and stores nothing. The table
and benchmarks/results/simulgen_vae_infer.json say the same.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._table import NoOptions, publish, row, show  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.run import BasicOptions, MachineOptions, TrainOptions  # noqa: E402
from simulgen_vae import direct, field_net, gp2  # noqa: E402
from simulgen_vae.config import TrainConfig  # noqa: E402
from simulgen_vae.config_data import MakeDataConfig  # noqa: E402
from simulgen_vae.config_infer import InferConfig  # noqa: E402
from simulgen_vae.config_tools import EvaluateConfig  # noqa: E402
from simulgen_vae.evaluate import open_for, rows_of  # noqa: E402
from simulgen_vae.export import (  # noqa: E402
    MAX_DIFFERENCE,
    NUM_CHECKED,
    exported_program,
    held_out,
    relative_difference,
)
from simulgen_vae.export_onnx import read_onnx, require_onnx, write_onnx  # noqa: E402
from simulgen_vae.graph import Model, SurrogateGraph, load  # noqa: E402
from simulgen_vae.grids import Grid  # noqa: E402
from simulgen_vae.infer import infer, predict  # noqa: E402
from simulgen_vae.make_data import make_data  # noqa: E402
from simulgen_vae.predictor import Predictor  # noqa: E402
from simulgen_vae.synthetic import GENERATORS  # noqa: E402
from simulgen_vae.train import train  # noqa: E402

BATCH = 16
CALLS = 40  # that a 95 % quantile is taken of
SMALL, LARGE = (16, 8), (64, 50)  # cells along x, twice those along y; frames
ONE_SIMULATION = {"advdiff": 205.0, "wave": 91.0}  # CPU ms: twice 13.1 s and 5.8 s for 128 runs
STREAM_GIB = 0.125  # --max_memory of the stream
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Config:
    """Sizes of the measurement."""

    smoke: bool = option(False, "tiny sizes, nothing is stored")
    repeats: int = option(15, "calls whose median counts")


def cpu_ms(function: Callable[[], Any], repeats: int, share: float = 0.5) -> float:
    """Return the CPU milliseconds that a share of the calls stays below, after a warm-up."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            began = time.process_time()
            function()
            times.append(1e3 * (time.process_time() - began))
    return float(np.quantile(times[1:], share))


def train_briefly(kind: str, config: Config, folder: Path) -> Path:
    """Write a data set and a run that ships the VAE behind its conditioner; return the run."""
    (nx, frames), num = (SMALL, 24) if config.smoke else (LARGE, 64)
    data = folder / f"{kind}.h5"
    sizes: dict[str, Any] = {"num": num, "nx": nx, "ny": nx // 2, "frames": frames}
    make_data(MakeDataConfig(kind=kind, path=str(data), figures=False, **sizes), BasicOptions())
    settings = TrainConfig(
        data=str(data),
        epochs=1,
        lc_epochs=1,
        conditioner="net",
        guard=False,
        field_net="off",
        input_type="csv",
        max_cpu_s=1.0,
        val_fraction=0.15,
    )
    train(settings, TrainOptions(out=folder / kind, device="cpu", precision="fp32", tensorboard=False))
    return folder / kind


def other_predictors(model: Model, run: Path) -> dict[str, Predictor]:
    """Return the remaining predictors, fitted to the same rows for a moment."""
    data = open_for(model.surrogate, EvaluateConfig(model=str(run)))
    rows = rows_of(model.surrogate, data, model.surrogate.split.train, 0)
    data.close()
    brief = direct.DirectOptions(epochs=1)
    return {
        "gp2": gp2.fit_predictor(rows),
        "direct": direct.fit_predictor(rows, brief).requires_grad_(False),
        "field_net": field_net.fit_predictor(rows, field_net.FieldNetOptions(steps=2)),
    }


def solver_ms(kind: str, config: Config) -> float:
    """Return the CPU milliseconds of one simulation."""
    generator = GENERATORS[kind]
    nx, frames = SMALL if config.smoke else LARGE
    grid, params = Grid(nx, nx // 2), generator.params(0, 0)
    return cpu_ms(lambda: generator.simulate(params, grid, frames), 3)


def simulation_row(kind: str, value: float, smoke: bool) -> dict[str, Any]:
    """Return the line of a simulator's CPU milliseconds, with what they may be at full size."""
    return row(f"{kind}: one simulation", value, "CPU ms", None if smoke else ONE_SIMULATION[kind])


def prediction_rows(kind: str, config: Config, run: Path) -> Rows:
    """Measure every predictor beside the simulator."""
    model = load(run)
    params = model.surrogate.arrays["train_params"].float()[:1]
    batch = params.expand(BATCH, -1).contiguous()
    solver = solver_ms(kind, config)
    lines = [simulation_row(kind, solver, config.smoke)]
    shipped = model.require_graph().predictor
    for name, predictor in {"vae_net": shipped, **other_predictors(model, run)}.items():
        model.surrogate.predictor = predictor
        model.graph = graph = SurrogateGraph(model.surrogate, model.constraints).eval()
        one = cpu_ms(lambda g=graph: g(params), config.repeats)
        many = cpu_ms(lambda g=graph: g(batch), config.repeats) / BATCH
        bars = cpu_ms(lambda: predict(model, params), config.repeats)
        program, is_free = exported_program(graph, (batch,))
        module = program.module()
        exported = cpu_ms(lambda m=module: m(params), config.repeats)
        limit = None if config.smoke else 1.0
        lines += [
            row(f"{kind}, {name}: one trajectory", one, "CPU ms"),
            row(
                f"{kind}, {name}: one trajectory / one simulation",
                one / solver,
                "ratio",
                limit,
                baseline="one simulation",
            ),
            row(f"{kind}, {name}: each of {BATCH} together", many, "CPU ms"),
            row(f"{kind}, {name}: with error bars", bars, "CPU ms"),
            row(f"{kind}, {name}: torch.export graph", exported, "CPU ms"),
            *parity_rows(f"{kind}, {name}: torch.export graph", model, module, is_free),
            *onnx_rows(f"{kind}, {name}: ONNX graph", model, program, is_free),
        ]
    return lines


def parity_rows(what: str, model: Model, run: Callable[[torch.Tensor], Any], is_free: bool) -> Rows:
    """Return how far an exported graph is from the model on eight inputs, and both their slowest calls.

    Args:
        what: is compared.
        model: whose graph takes parameters alone.
        run: the exported graph, [B, P] -> [B, T, M, V].
        is_free: whether it takes any B; else 1.
    """
    graph, inputs = model.require_graph(), held_out(model, None, NUM_CHECKED).inputs(range(NUM_CHECKED))
    with torch.no_grad():
        parts = inputs.params.split(NUM_CHECKED if is_free else 1)
        fields = np.concatenate([np.asarray(run(part)) for part in parts])
        difference = relative_difference(fields, graph(inputs.params).numpy())
    one = inputs.params[:1]
    slow, eager = (cpu_ms(lambda f=f: f(one), CALLS, 0.95) for f in (run, graph))
    return [
        row(f"{what}, largest difference to the model", difference, "of the largest value", MAX_DIFFERENCE),
        row(f"{what}, 95 % quantile", slow, "CPU ms", baseline="the model", ratio=slow / eager),
    ]


def onnx_rows(what: str, model: Model, program: torch.export.ExportedProgram, is_free: bool) -> Rows:
    """Return the same of an ONNX file; nothing without its libraries."""
    try:
        require_onnx()
    except UserError:
        return []
    graph = model.require_graph()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predictor.onnx"
        write_onnx(path, graph, program)
        run = read_onnx(path, graph)
        return parity_rows(what, model, lambda params: run([params]), is_free)


def decode_rows(config: Config) -> Rows:
    """Measure decoding a large mesh, one matrix product, beside the solver scaled to its cells and frames."""
    frames, modes, nodes = (8, 4, 256) if config.smoke else (200, 512, 95008)
    nx, known = SMALL if config.smoke else LARGE
    c, basis = torch.randn(frames, modes), torch.randn(modes, nodes)
    decode = cpu_ms(lambda: c @ basis, 3)
    # its sparse factors grow faster than the cells, so this is less than it would take
    solver = solver_ms("advdiff", config) * nodes / (nx * nx // 2) * frames / known
    what, rival = f"decode {frames} frames of {nodes:,} nodes from {modes} modes", "solver of advdiff, scaled"
    return [
        row(what, decode, "CPU ms", baseline=rival, ratio=decode / solver),
        row(rival, solver, "CPU ms"),
    ]


def stream_rows(config: Config, run: Path, folder: Path) -> Rows:
    """Measure a long stream of predictions into one file: seconds, and memory beyond a short one."""
    model = load(run)
    known = model.surrogate.arrays["train_params"].numpy()
    num = 64 if config.smoke else 600
    peaks = []
    for count in (16, num):
        np.save(folder / "many.npy", known[np.arange(count) % len(known)])
        flags = InferConfig(
            model=str(run), params=str(folder / "many.npy"), std=False, figures=False, max_memory=STREAM_GIB
        )
        began = time.process_time()
        infer(flags, MachineOptions(device="cpu", precision="fp32"), folder / f"stream{count}")
        seconds = time.process_time() - began
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    megabytes = (folder / f"stream{num}" / "fields.h5").stat().st_size / 2**20
    return [
        row(f"stream of {num} trajectories, {megabytes:.0f} MiB", 1e3 * seconds / num, "CPU ms each"),
        row("its memory beyond that of 16 trajectories", peaks[1] - peaks[0], "MiB", 1.5 * 1024 * STREAM_GIB),
    ]


def measure(config: Config, folder: Path) -> Rows:
    """Return all lines."""
    lines = []
    for kind in GENERATORS:
        run = train_briefly(kind, config, folder)
        lines += prediction_rows(kind, config, run)
        if kind == "wave":
            lines += stream_rows(config, run, folder)
    return lines + decode_rows(config)


def run(argv: Sequence[str]) -> None:
    """Measure, print, and write benchmarks/results/simulgen_vae_infer.json."""
    config = parse(argv, Config, NoOptions, description=__doc__).config
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        lines = measure(config, Path(name))
    if config.smoke:
        show(lines)
    else:
        publish("simulgen_vae_infer", lines, began)


if __name__ == "__main__":
    main(run)
