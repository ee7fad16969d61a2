"""One member of the ensemble with its statistics, and its training task.

Letters: B batch, S shots, T time samples, R receivers, Z depth, X horizontal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from common import device as devices
from common import distributed
from common.checkpoint import plain_tree, plain_weights
from common.device import Precision
from common.guard import Guard
from common.muon import Muon
from common.optim import Ema, Updater, UpdateTask, adamw, warm_restarts, warmup_cosine
from common.run import TrainOptions
from velocity_inversion.config import TrainConfig
from velocity_inversion.criterion import VelocityInversionLoss
from velocity_inversion.dataset import Preprocessing, collate
from velocity_inversion.geometry import Survey
from velocity_inversion.inversionnet import InversionNet
from velocity_inversion.metrics import section_scores
from velocity_inversion.model import VelocityNet, with_channels
from velocity_inversion.preprocess import NUM_OFFSETS, Amplitude, fit_amplitude
from velocity_inversion.sections import draw_validation

PACKAGE = "velocity_inversion"
BETAS = (0.9, 0.98)
STATISTICS_SAMPLES = 200
VALID_BATCH = 8
SHOWN = 4  # validation samples drawn at each evaluation


@dataclass(frozen=True)
class Statistics:
    """What the training data say before any training: amplitude tables and the mean depth profile.

    Attributes:
        amplitude: how amplitudes become channels.
        profile: [Z], mean velocity by depth, km/s.
        mean_section: [Z, X], mean velocity, km/s: the simplest baseline.
    """

    amplitude: Amplitude
    profile: torch.Tensor
    mean_section: torch.Tensor


def fit_statistics(dataset: Dataset[Any], survey: Survey) -> Statistics:
    """Fit the statistics on up to 200 training samples, spread evenly."""
    count = len(dataset)  # type: ignore[arg-type]
    chosen = torch.linspace(0, count - 1, min(count, STATISTICS_SAMPLES)).round().long().tolist()
    samples = [dataset[i] for i in chosen]
    mean = torch.zeros(survey.model_shape_zx, dtype=torch.float64)
    for sample in samples:
        mean += sample["vp"][0].double() / len(samples)
    amplitude = fit_amplitude(samples, survey.x_max_m + survey.dx_m)
    return Statistics(amplitude, mean.mean(1).float(), mean.float())


class Member(nn.Module):
    """A network that takes gathers as they are: its amplitude statistics are part of its weights.

    Args:
        config: which network.
        survey: whose sections and geometry.
    """

    sigma: torch.Tensor
    table_mean: torch.Tensor
    table_deviation: torch.Tensor

    def __init__(self, config: TrainConfig, survey: Survey) -> None:
        super().__init__()
        bounds = config.v_min, config.v_max
        self.net: VelocityNet | InversionNet
        if config.model == "inversionnet":
            self.net = InversionNet(survey.model_shape_zx, bounds)
        else:
            self.net = VelocityNet(
                survey.model_shape_zx,
                survey.x_max_m,
                bounds,
                embed_dim=config.embed_dim,
                num_heads=config.num_heads,
                num_layers=config.num_layers,
                dropout=config.dropout,
                activation=config.activation,
                stem=config.stem,
            )
            self.net.encoder.checkpointing = config.gradient_checkpointing
        length = preprocessing_of(config).length(survey)
        self.largest_offset_m = survey.x_max_m + survey.dx_m
        self.register_buffer("sigma", torch.ones(()))
        self.register_buffer("table_mean", torch.zeros(NUM_OFFSETS, length))
        self.register_buffer("table_deviation", torch.ones(NUM_OFFSETS, length))

    def start_from(self, statistics: Statistics, *, mean_start: bool = True) -> None:
        """Take over the statistics of the training data."""
        amplitude = statistics.amplitude
        self.sigma.fill_(amplitude.sigma)
        self.table_mean.copy_(amplitude.mean)
        self.table_deviation.copy_(amplitude.deviation)
        if mean_start:
            self.net.set_mean_profile(statistics.profile)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return "vp" and "log_scale", each [B, 1, Z, X], of a batch of gathers and coordinates."""
        return self.net(self.with_channels(batch))

    def with_channels(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with its amplitude channels."""
        amplitude = Amplitude(
            self.sigma,  # type: ignore[arg-type]
            self.table_mean,
            self.table_deviation,
            self.largest_offset_m,
        )
        return with_channels(batch, amplitude)


def preprocessing_of(config: TrainConfig) -> Preprocessing:
    """Return filter and decimation that a configuration asks for."""
    return Preprocessing(config.net_dt_s, config.bandpass_low_hz, config.bandpass_high_hz)


class MemberTask(UpdateTask):
    """Training of one member.

    Args:
        config: of this member.
        survey: of the data.
        statistics: of the training data.
        valid: held-out samples that choose the checkpoint.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        total_steps: of the schedule.
        steps_per_epoch: to count periods of warm restarts.
        compiled: whether to run the network through torch.compile.
        figures_dir: where each evaluation draws the first validation samples; none = nowhere.
    """

    package = PACKAGE

    def __init__(
        self,
        config: TrainConfig,
        survey: Survey,
        statistics: Statistics,
        valid: Dataset[Any],
        guard: Guard,
        precision: Precision,
        total_steps: int,
        steps_per_epoch: int,
        *,
        compiled: bool = False,
        figures_dir: Path | None = None,
    ) -> None:
        self.train_config, self.survey, self.figures_dir = config, survey, figures_dir
        self.done = 0
        self.kind = "inversionnet" if config.model == "inversionnet" else "member"
        self.config = plain_tree(asdict(config))
        self.normalization = {"survey": survey.to_dict()}
        self.valid, self.guard, self.total_steps = valid, guard, total_steps
        self.bounds = config.v_min, config.v_max
        member = Member(config, survey)
        member.start_from(statistics, mean_start=config.mean_start)
        self.member = member.to(guard.device)
        ema = Ema(self.member, config.ema_decay) if config.ema_decay else None
        trained = distributed.parallel(self.member)
        name, rate = config.rule()
        if name == "muon":
            optimizer = Muon(trained, rate, config.weight_decay)
        else:
            optimizer = adamw(trained, rate, config.weight_decay, BETAS)
        warmup = round(config.warmup_fraction * total_steps)
        if config.schedule == "cosine":
            schedule = warmup_cosine(optimizer, warmup, total_steps, config.final_lr)
        else:
            period = config.t0_epochs * steps_per_epoch
            schedule = warm_restarts(optimizer, period, config.t_mult, config.final_lr)
        self.update = Updater(
            trained,
            optimizer,
            guard,
            precision,
            schedule=schedule,
            max_norm=config.grad_clip,
            accumulate=config.accumulate,
            ema=ema,
        )
        self.criterion = VelocityInversionLoss(config, survey)
        self._forward = devices.compile_if(compiled, trained)
        self._physics = False

    def step(self, batch: dict[str, Any], step: int) -> dict[str, torch.Tensor | float]:
        """Update once."""
        self.member.train()
        self.done = step + 1
        every = self.train_config.physics_every
        start = self.train_config.physics_start * self.total_steps
        self._physics = bool(every) and step >= start and step % every == 0
        values = self.update.step(self._loss, batch)
        return {f"train_{name}": value for name, value in values.items()} | {"lr": self.update.lr}

    def _loss(self, piece: dict[str, Any]) -> dict[str, torch.Tensor]:
        parts = self.criterion(self._forward(piece), piece, physics=self._physics)
        total = parts.pop("total")
        return {**{f"loss_{name}": value for name, value in parts.items()}, "loss": total}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return mean validation MAPE, MAE, RMSE and SSIM, shared among the ranks."""
        member = self.update.averaged.eval()
        names = ("mape", "mae", "rmse", "ssim")
        sums = dict.fromkeys(names, 0.0)
        mine = list(distributed.shard(len(self.valid)))  # type: ignore[arg-type]
        for first in range(0, len(mine), VALID_BATCH):
            batch = collate([self.valid[i] for i in mine[first : first + VALID_BATCH]])
            with self.update.precision.autocast():
                found = member(devices.move(batch, self.guard.device))["vp"]
            sections, truths = found.float().cpu().numpy(), batch["vp"].numpy()
            if not first and self.figures_dir is not None and distributed.is_main():
                path = self.figures_dir / f"valid_step{self.done:06d}.png"
                shown = slice(0, SHOWN)
                draw_validation(path, sections[shown, 0], truths[shown, 0], self.survey, self.bounds)
            for p, g in zip(sections, truths, strict=True):
                scores = section_scores(p[0], g[0], self.bounds)
                for name in names:
                    sums[name] += scores[name]
        total = distributed.reduce_sums({**sums, "count": float(len(mine))})
        return {f"valid_{name}": total[name] / total["count"] for name in names}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, or the plain ones without averaging."""
        return plain_weights(self.update.averaged)


def steps_within(
    make_task: Callable[[], MemberTask], batches: Callable[[int, int], Iterable[Any]], budget_cpu_s: float
) -> int:
    """Return how many steps fit a budget of process CPU seconds, by timing steps of a task to throw away.

    A schedule needs its number of steps, and an exact resume needs it fixed; so the budget is turned into
    steps once. Rank 0's answer counts.
    """
    task = make_task()
    marks = []
    for step, batch in enumerate(batches(0, 5)):
        task.step(devices.move(batch, task.guard.device), step)
        marks.append(time.process_time())
    each = sorted(b - a for a, b in zip(marks[1:], marks[2:], strict=False))
    middle = each[len(each) // 2]
    return distributed.broadcast_object(max(1, round(budget_cpu_s / max(middle, 1e-6))))


def options_of_part(options: TrainOptions, out: Path, seed: int) -> TrainOptions:
    """Return the options of one part of a run in its own folder, which resumes if it has begun there."""
    resume = options.resume if (out / "checkpoints").is_dir() else ""
    overwrite = options.overwrite or bool(options.resume and not resume)
    return replace(options, seed=seed, out=out, resume=resume, overwrite=overwrite)
