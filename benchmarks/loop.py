"""What the shared loop costs: per step, per checkpoint, at import. Run: python benchmarks/loop.py.

What is compared is measured alternately in one process, best of several, so that it repeats on a busy
machine. A step does 20 ms of arithmetic, whose time is taken and subtracted, and trains a small network: what
remains holds the loop's cost with cold caches, but not the noise of the arithmetic. The table and
benchmarks/results/loop.json say the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks._table import publish, row  # noqa: E402
from common import checkpoint as checkpoints  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from common.guard import Guard  # noqa: E402
from common.loop import train  # noqa: E402
from common.optim import Updater, adamw, clip_gradients  # noqa: E402
from common.run import RunFolder, TrainOptions  # noqa: E402
from common.task import Cadence, Phase, Task  # noqa: E402

PACKAGES = ("common.loop", "facies_gan", "velocity_inversion", "fault_seg", "simulgen_vae", "voxel_ode")
WIDTH, BATCH, STEPS, ROUNDS = 32, 16, 60, 5
STEP_MS = 20.0
Table = list[dict[str, Any]]


class Work:
    """Matrix products that take about `STEP_MS` on one thread; remembers how long each call took."""

    def __init__(self) -> None:
        self.matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) / 32
        once = best_seconds(lambda: self.matrix @ self.matrix, 20)
        self.products = max(1, round(STEP_MS / 1e3 / once))
        self.seconds: list[float] = []
        self.begins: list[float] = []

    def __call__(self) -> None:
        """Do the work once."""
        began = time.perf_counter()
        x = self.matrix
        for _ in range(self.products):
            x = x @ self.matrix
        self.begins.append(began)
        self.seconds.append(time.perf_counter() - began)

    def rest_seconds(self) -> list[float]:
        """Return what each step took beside the work, and forget everything."""
        whole = [later - earlier for earlier, later in zip(self.begins[:-1], self.begins[1:], strict=True)]
        rest = [w - own for w, own in zip(whole, self.seconds[:-1], strict=True)]
        self.seconds, self.begins = [], []
        return rest[5:]  # the first steps allocate


def network() -> nn.Sequential:
    """Return a small perceptron: its own arithmetic hardly counts, the number of its tensors does."""
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def loss_of(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared error."""
    return (module(batch["x"]) - batch["y"]).square().mean()


def batches(first: int, stop: int) -> Iterable[dict[str, torch.Tensor]]:
    """Yield the same batch again and again: reading data is no part of the comparison."""
    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(BATCH, WIDTH, generator=generator), "y": torch.zeros(BATCH, 1)}
    for _ in range(first, stop):
        yield batch


class _Task(Task):
    """Supervised training with one updater, clipping and guard, no evaluation."""

    package = "benchmark"

    def __init__(self, guard: Guard, work: Work) -> None:
        self.config, self.normalization = {}, {}
        module = network()
        precision = resolve_precision("fp32", guard.device)
        self.updater = Updater(module, adamw(module, 1e-3), guard, precision, max_norm=1.0)
        self.work = work

    def step(self, batch: Any, step: int) -> dict[str, torch.Tensor | float]:
        self.work()
        return dict(self.updater.step(lambda piece: {"loss": loss_of(self.updater.module, piece)}, batch))

    def evaluate(self) -> dict[str, float]:
        return {}

    def weights(self) -> dict[str, torch.Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def run_loop(folder: Path, work: Work) -> list[float]:
    """Return the seconds beside the work of each step in the loop, logging off."""
    options = TrainOptions(out=folder, log_every=10 * STEPS, tensorboard=False)
    guard = Guard(torch.device("cpu"))
    with RunFolder(folder, package="benchmark", config=options, options=options) as opened:
        train(_Task(guard, work), [Phase("all", STEPS, batches)], opened, options, Cadence(), guard)
    return work.rest_seconds()


def run_bare(work: Work) -> list[float]:
    """Return the seconds beside the work of each step in a plain PyTorch loop with the same clipping."""
    module = network()
    optimizer = adamw(module, 1e-3)
    for batch in batches(0, STEPS):
        work()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(module, batch)
        loss.backward()
        clip_gradients(module.parameters(), 1.0)
        optimizer.step()
    return work.rest_seconds()


def step_rows(folder: Path) -> Table:
    """Measure the overhead of the loop beside a bare loop: medians of steps, best of the rounds."""
    work = Work()
    loop, bare = [], []
    for i in range(ROUNDS):
        with _quiet():
            loop.append(1e3 * statistics.median(run_loop(folder / f"run{i}", work)))
        bare.append(1e3 * statistics.median(run_bare(work)))
    extra = min(loop) - min(bare)
    share = 100 * extra / STEP_MS
    beside: dict[str, Any] = {"baseline": "bare step", "ratio": min(loop) / min(bare)}
    return [
        row("bare step beside 20 ms of work", min(bare), "ms"),
        row("loop step beside 20 ms of work", min(loop), "ms", **beside),
        row("overhead a step", extra, "ms", 0.5, **beside),
        row("overhead of a 20 ms step", share, "%", 3.0, baseline="20 ms of work", ratio=1 + share / 100),
    ]


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the loop's few lines out of the table."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stderr(nothing):
        yield


def best_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the shortest of several calls, s."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def synced_save(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Save as torch does, and wait until the disk has it: the least that survives a loss of power."""
    torch.save(weights, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def checkpoint_rows(folder: Path) -> Table:
    """Measure an atomic, hashed checkpoint of 10 MB beside torch.save."""
    weights = {f"layer{i}.weight": torch.randn(512, 512) for i in range(10)}
    state = checkpoints.Checkpoint("benchmark", "", {}, {}, weights)
    plain, ours, durable = [], [], []
    for i in range(3 * ROUNDS):
        plain.append(best_seconds(lambda i=i: torch.save(weights, folder / f"plain{i}.pt"), 1))
        ours.append(best_seconds(lambda i=i: checkpoints.save(folder / f"ours{i}.pt", state), 1))
        durable.append(best_seconds(lambda i=i: synced_save(weights, folder / f"synced{i}.pt"), 1))
    verify = best_seconds(lambda: checkpoints.load(folder / "ours0.pt"), 3)
    hashing = best_seconds(lambda: checkpoints.content_hash(weights), 3)
    return [
        row("torch.save of 10 MB", 1e3 * min(plain), "ms"),
        row("torch.save of 10 MB and fsync", 1e3 * min(durable), "ms"),
        row("checkpoint of 10 MB", 1e3 * min(ours), "ms"),
        row("of that the SHA-256", 1e3 * hashing, "ms"),
        row("checkpoint beside torch.save", min(ours) / min(plain), "times", 3.0, baseline="torch.save"),
        row(
            "checkpoint beside torch.save and fsync",
            min(ours) / min(durable),
            "times",
            baseline="torch.save and fsync",
        ),
        row("checkpoint read and verified", 1e3 * verify, "ms"),
    ]


IMPORTER = """
import importlib, os, sys, time, torch
for name in sys.argv[1:]:
    if os.fork() == 0:
        began = time.perf_counter()
        importlib.import_module(name)
        print(name, time.perf_counter() - began, flush=True)
        os._exit(0)
    os.wait()
"""


def import_rows() -> Table:
    """Measure what importing each package adds to importing torch, each in its own fork of one process."""
    command = [sys.executable, "-c", IMPORTER, *(name for name in PACKAGES for _ in range(3))]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    times: dict[str, list[float]] = {name: [] for name in PACKAGES}
    for line in answer.stdout.splitlines():
        name, seconds = line.split()
        times[name].append(float(seconds))
    return [
        row(f"import {name} after torch", min(found, default=math.nan), "s") for name, found in times.items()
    ]


def main() -> int:
    """Measure, print, and write benchmarks/results/loop.json."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        rows = step_rows(Path(name)) + checkpoint_rows(Path(name))
    rows += import_rows()
    publish("loop", rows, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
