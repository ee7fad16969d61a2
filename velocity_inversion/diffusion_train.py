"""Training of the diffusion stage on the corrections that a trained ensemble needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from common import checkpoint as checkpoints
from common import device as devices
from common import distributed, loop
from common.checkpoint import plain_weights
from common.device import Precision, resolve_precision
from common.errors import UserError
from common.files import make_folder
from common.guard import Guard
from common.log import get_logger
from common.optim import Ema, Updater, UpdateTask, adamw, parameter_count, warmup_cosine
from common.run import RunFolder, TrainOptions
from common.sampling import Draw, StepSampler, train_loader
from common.task import Cadence, Phase, Result
from velocity_inversion.config import TrainConfig
from velocity_inversion.denoiser import Denoiser
from velocity_inversion.diffusion import CHANNELS, Conditions, denoise, loss_weight
from velocity_inversion.ensemble import Ensemble, load_ensemble, require_survey
from velocity_inversion.first_stage import CorrectionDataset, FirstStage, Flipped, first_stage, on_work_grid
from velocity_inversion.member import PACKAGE, options_of_part
from velocity_inversion.model import work_grid

DIFFUSION_FILE = "diffusion.pth"
KIND = "diffusion"
SEED_OFFSET = 7_000_003  # apart from every member's
WARMUP = 0.03
FIXED_DRAWS = 4  # noise levels a validation sample is judged at
CONDITIONS = tuple(Conditions.__dataclass_fields__)


def conditions_of(batch: dict[str, Any]) -> Conditions:
    """Return the conditions of a batch."""
    return Conditions(**{name: batch[name] for name in CONDITIONS})


class DiffusionTask(UpdateTask):
    """Training of the denoiser.

    Args:
        config: widths, learning rate.
        ensemble: the first stage.
        valid: corrections that choose the checkpoint.
        rms: of the first stage's validation error, km/s.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        total_steps: of the schedule.
    """

    package, kind = PACKAGE, KIND

    def __init__(
        self,
        config: TrainConfig,
        ensemble: Ensemble,
        valid: CorrectionDataset,
        rms: float,
        guard: Guard,
        precision: Precision,
        total_steps: int,
    ) -> None:
        memory_width = int(valid.stage.memory.shape[-1])
        self.config = {"width": config.diffusion_width, "memory_width": memory_width}
        self.normalization = {"rms": rms, "ensemble": ensemble.sha256, "bounds": list(ensemble.bounds)}
        self.valid, self.rms, self.bounds, self.guard = valid, rms, ensemble.bounds, guard
        network = Denoiser(CHANNELS, config.diffusion_width, memory_width)
        self.network = network.to(guard.device)
        ema = Ema(self.network, config.ema_decay) if config.ema_decay else None
        trained = distributed.parallel(self.network)
        optimizer = adamw(trained, config.diffusion_lr, config.weight_decay)
        schedule = warmup_cosine(optimizer, round(WARMUP * total_steps), total_steps, config.final_lr)
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

    def step(self, batch: dict[str, Any], step: int) -> dict[str, torch.Tensor | float]:
        """Update once."""
        self.network.train()
        values = self.update.step(lambda piece: {"loss": self._loss(self.update.module, piece)}, batch)
        return {f"train_{name}": value for name, value in values.items()} | {"lr": self.update.lr}

    def _loss(self, network: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        sigma = batch["sigma"]
        noisy = batch["target"] + sigma[:, None, None] * batch["noise"]
        found = denoise(network, noisy, sigma, conditions_of(batch), self.rms, self.bounds)
        return (loss_weight(sigma)[:, None, None] * (found - batch["target"]).square()).mean()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the denoising loss of held-out samples at fixed draws, shared among the ranks."""
        network = self.update.averaged.eval()
        mine = list(distributed.shard(FIXED_DRAWS * len(self.valid)))
        total = 0.0
        for first in range(0, len(mine), 8):
            chosen = mine[first : first + 8]
            rows = [self.valid[_fixed(i, len(self.valid))] for i in chosen]
            batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            total += float(self._loss(network, devices.move(batch, self.guard.device))) * len(chosen)
        sums = distributed.reduce_sums({"loss": total, "count": float(len(mine))})
        return {"valid_denoising": sums["loss"] / sums["count"]}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, or the plain ones without averaging."""
        return plain_weights(self.update.averaged)


def _fixed(number: int, count: int) -> Draw:
    """Return draw `number`: the samples in turn, every time with other noise."""
    return Draw(number % count, number)


def train_diffusion(
    config: TrainConfig,
    options: TrainOptions,
    data: Any,
    model_path: Path,
    device: torch.device,
    origins: dict[str, str] | None = None,
) -> Result:
    """Train the diffusion stage of the ensemble at `model_path`; write `diffusion.pth` beside it.

    The run folder is `<out>/diffusion`; it resumes as a member does.

    Args:
        config: of the run.
        options: of the run.
        data: `train.Data`: training samples and the two halves of the validation samples.
        model_path: the ensemble.
        device: where to train.
        origins: of the flags.

    Raises:
        UserError: there is no ensemble yet.
        DataError: it was trained on another grid or other records.
    """
    if not model_path.exists():
        raise UserError(f"--model_path {model_path}: no such ensemble; train one with --stage network first")
    ensemble = load_ensemble(model_path)
    require_survey(ensemble, data.survey, config.train_data_path)
    out = options.out / "diffusion"
    own = options_of_part(options, out, options.seed + SEED_OFFSET)
    train, valid, rms = corrections(ensemble, data, device, own.seed)
    guard = Guard(device, options.on_nonfinite)
    devices.seed_global(own.seed, distributed.rank())
    precision = resolve_precision(options.precision, device)

    def batches(first: int, stop: int) -> Iterable[Any]:
        batch = config.batch_size * config.accumulate
        sampler = StepSampler(len(train), batch, own.seed, first, stop)  # type: ignore[arg-type]
        return train_loader(train, sampler, num_workers=options.num_workers)

    total = config.diffusion_steps
    with RunFolder(out, package=PACKAGE, config=config, options=own, origins=origins) as folder:
        task = DiffusionTask(config, ensemble, valid, rms, guard, precision, total)
        get_logger().info(
            f"diffusion stage: {parameter_count(task.network):,} parameters, {total} steps, "
            f"first stage's validation error {1000 * rms:.0f} m/s RMS"
        )
        every = max(1, total // 20)
        cadence = Cadence(eval_every=every, save_every=every, best_metric="valid_denoising")
        result = loop.train(task, [Phase("diffusion", total, batches)], folder, own, cadence, guard)
    if result.state == "finished" and distributed.is_main():
        best = checkpoints.load(out / "checkpoints/best.pt", package=PACKAGE, kinds=[KIND])
        target = make_folder(ensemble.path.parent) / DIFFUSION_FILE
        checkpoints.save(target, replace(best, training={}, rng=[]))
        get_logger().info(f"wrote {target}")
    distributed.barrier()
    return result


def corrections(
    ensemble: Ensemble, data: Any, device: torch.device, seed: int
) -> tuple[Dataset[Any], CorrectionDataset, float]:
    """Return (training corrections, seen from both sides; held-out ones; RMS of the held-out error, km/s)."""
    factor = work_grid(ensemble.survey.model_shape_zx).factor
    plain = data.plain
    truth = {
        name: on_work_grid(torch.stack([part[i]["vp"][0] for i in range(len(part))]), factor)
        for name, part in (("train", plain), ("valid", data.select))
    }
    held_out = first_stage(ensemble, data.select, device)
    rms = float((truth["valid"] - held_out.v1).square().mean().sqrt())
    valid = CorrectionDataset(held_out, truth["valid"], rms, seed + 1)
    one = first_stage(ensemble, plain, device)
    other = first_stage(ensemble, Flipped(plain, ensemble.survey.x_max_m), device)
    both = FirstStage(*(torch.cat([getattr(one, n), getattr(other, n)]) for n in ("v1", "scale", "memory")))
    sections = torch.cat([truth["train"], truth["train"].flip(-1)])
    return CorrectionDataset(both, sections, rms, seed), valid, rms
