"""A tiny adversarial task (two networks, two optimizers, two phases) that proves the loop; a script too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from common import distributed
from common.checkpoint import plain_weights
from common.cli import main, option, parse
from common.device import Precision, resolve_precision
from common.errors import DataError
from common.guard import Guard
from common.loop import train
from common.noise import gaussian
from common.optim import Ema, Updater, adamw, warmup_cosine
from common.run import RunFolder, TrainOptions, machine
from common.sampling import Draw, StepSampler, train_loader
from common.task import Cadence, Phase, Result, Task


@dataclass(frozen=True)
class ToyConfig:
    """A generator that learns to turn noise into points on a line."""

    width: int = option(8, "hidden units")
    steps: int = option(12, "optimizer steps of the first phase; the second has half")
    batch_size: int = option(4, "samples a process and step")
    num_samples: int = option(24, "points on the line")
    accumulate: int = option(1, "pieces of a batch")
    lr: float = option(1e-2, "learning rate")
    batch_norm: bool = option(
        True, "BatchNorm; its statistics are of a rank's batch, hence off to compare ranks"
    )
    dropout: float = option(0.1, "draws from the global generator, so that resume must restore it")
    nan_rank: int = option(-1, "rank whose loss becomes NaN")
    nan_step: int = option(3, "step at which that happens")
    bad_sample: int = option(-1, "sample that holds NaN")
    step_seconds: float = option(0.0, "pause in every step", unit="s")
    crash: str = option("", "start, step, evaluate or save: where rank 1 (or the only one) raises")
    hang: bool = option(False, "rank 1 stops answering at step 3")
    missing_on_rank: int = option(-1, "rank that finds a file missing")


class Points(Dataset[dict[str, Any]]):
    """Points on a line, jittered by noise that depends on the position of the draw alone."""

    def __init__(self, config: ToyConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return self.config.num_samples

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        x = torch.linspace(-1, 1, self.config.num_samples)[draw.index]
        point = torch.stack([x, 2 * x]) + 0.01 * gaussian((2,), self.seed, "jitter", draw.position)
        if draw.index == self.config.bad_sample:
            point[1] = float("nan")
        noise = gaussian((2,), self.seed, "z", draw.position)
        return {"point": point, "noise": noise, "source": f"points/{draw.index}.npy"}


def network(config: ToyConfig, out: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(config.width) if config.batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Linear(2, config.width), norm, nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(config.width, out)
    )


class ToyTask(Task):
    """Critic and generator with a least-squares loss; the second phase trains the generator alone."""

    package = "toy"
    kind = "gan"

    def __init__(self, config: ToyConfig, guard: Guard, precision: Precision, total_steps: int) -> None:
        self.toy = config
        self.config = asdict(config)
        self.normalization = {"mean": 0.0, "std": 1.0}
        self.guard = guard
        self.generator = distributed.parallel(network(config, 2).to(guard.device))
        self.critic = distributed.parallel(network(config, 1).to(guard.device))
        self.ema = Ema(self.generator, 0.99)
        self.phase = ""
        self.updates = []
        for module, ema in ((self.generator, self.ema), (self.critic, None)):
            optimizer = adamw(module, config.lr)
            schedule = warmup_cosine(optimizer, 2, total_steps)
            self.updates.append(
                Updater(
                    module,
                    optimizer,
                    guard,
                    precision,
                    schedule=schedule,
                    max_norm=1.0,
                    ema=ema,
                    accumulate=config.accumulate,
                )
            )

    def start_phase(self, name: str) -> None:
        self.phase = name

    def _misbehave(self, step: int) -> None:
        rank = distributed.rank()
        last = distributed.world_size() - 1
        if self.toy.crash == "step" and step == 3 and rank == last:
            raise ValueError("planted crash in a step")
        if self.toy.hang and step == 3 and rank == last:
            time.sleep(600)
        time.sleep(self.toy.step_seconds)

    def step(self, batch: Any, step: int) -> dict[str, Any]:
        self._misbehave(step)
        poison = (
            float("nan") if step == self.toy.nan_step and distributed.rank() == self.toy.nan_rank else 1.0
        )
        generator, critic = self.updates

        def critic_loss(piece: dict[str, Any]) -> dict[str, torch.Tensor]:
            with torch.no_grad():
                fake = self.generator(piece["noise"])
            real_loss = (self.critic(piece["point"]) - 1).square().mean()
            return {"loss": (real_loss + self.critic(fake).square().mean()) * poison}

        def generator_loss(piece: dict[str, Any]) -> dict[str, torch.Tensor]:
            fake = self.generator(piece["noise"])
            adversarial = (self.critic(fake) - 1).square().mean() if self.phase == "both" else 0.0
            return {"loss": adversarial + (fake[:, 1] - 2 * fake[:, 0]).square().mean()}

        values = {}
        if self.phase == "both":
            values["critic"] = critic.step(critic_loss, batch)["loss"]
        values["generator"] = generator.step(generator_loss, batch)["loss"]
        return {**values, "lr": generator.lr}

    def evaluate(self) -> dict[str, float]:
        if self.toy.crash == "evaluate" and distributed.rank() == distributed.world_size() - 1:
            raise ValueError("planted crash in an evaluation")
        total = {"error": 0.0, "count": 0.0}
        with torch.no_grad():
            for i in distributed.shard(7):
                point = self.ema(gaussian((1, 2), 0, "test", i, device=self.guard.device))[0]
                total["error"] += float((point[1] - 2 * point[0]).abs())
                total["count"] += 1
        total = distributed.reduce_sums(total)
        return {"off_line": total["error"] / total["count"], "count": total["count"]}

    def weights(self) -> dict[str, torch.Tensor]:
        if self.toy.crash == "save" and distributed.rank() == distributed.world_size() - 1:
            raise ValueError("planted crash in saving")
        return plain_weights(self.ema.module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": [u.state_dict() for u in self.updates]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for updater, part in zip(self.updates, state["updates"], strict=True):
            updater.load_state_dict(part)


def train_toy(config: ToyConfig, options: TrainOptions, origins: dict[str, str] | None = None) -> Result:
    """Train the toy as a package would."""
    with machine(options) as device:
        if config.crash == "start" and distributed.rank() == distributed.world_size() - 1:
            raise ValueError("planted crash at the start")
        with distributed.shared_errors():
            if config.missing_on_rank == distributed.rank():
                raise DataError("points/7.npy: no such file, expected points; check --input")
        with RunFolder(options.out, package="toy", config=config, options=options, origins=origins) as folder:
            guard = Guard(device, options.on_nonfinite)
            precision = resolve_precision(options.precision, device)
            total = config.steps + config.steps // 2
            task = ToyTask(config, guard, precision, total)
            dataset = Points(config, options.seed)

            def batches(name_offset: int) -> Any:
                def make(first: int, stop: int) -> Iterable[Any]:
                    sampler = StepSampler(
                        len(dataset), config.batch_size, options.seed, name_offset + first, name_offset + stop
                    )
                    return train_loader(dataset, sampler, num_workers=options.num_workers)

                return make

            phases = [
                Phase("both", config.steps, batches(0)),
                Phase("generator", config.steps // 2, batches(config.steps)),
            ]
            cadence = Cadence(eval_every=6, save_every=5, best_metric="off_line")
            return train(task, phases, folder, options, cadence, guard)


def run(argv: Sequence[str]) -> int:
    parsed = parse(
        argv, ToyConfig, TrainOptions, description=__doc__, presets={"wide": lambda: ToyConfig(width=16)}
    )
    torch.set_num_threads(1)
    return train_toy(parsed.config, parsed.run, parsed.origins).exit_code


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))
    main(run)
