"""Training: the task, and `train(config, options)`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from common import device as devices
from common import distributed, loop
from common.checkpoint import Checkpoint, plain_tree, plain_weights
from common.device import Precision, resolve_precision
from common.errors import DataError
from common.guard import Guard
from common.log import get_logger
from common.optim import Ema, Updater, parameter_count, warmup_cosine
from common.run import RunFolder, machine
from common.sampling import StepSampler, train_loader
from common.task import Cadence, Phase, Result, Task
from voxel_ode.config import ModelConfig, TrainConfig, TrainRunOptions
from voxel_ode.convolutions import backends_of, choose_backends, set_backends
from voxel_ode.dataset import PatchDataset, collate
from voxel_ode.layers import RunningNorm
from voxel_ode.memory import memory_table, saved_bytes
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.scores import ROLLOUT_SCORE, one_step_scores, rollout_scores
from voxel_ode.train_data import Splits, open_splits
from voxel_ode.train_files import CheckpointFolder, checkpoint_layout, next_command, remembered_routes
from voxel_ode.unroll import UnrolledLoss, curriculum

PACKAGE = "voxel_ode"
KIND = "voxel_autoregressor"
FREEZE_FROM = 0.7  # fraction of the training after which running norms keep their averages
START_BATCHES, EVAL_BATCHES = 10, 50
LARGE_WEIGHTS = 50_000_000
FLOW_RATE = 10.0  # learning rate of the flow's weight over that of the rest
ADVICE = (
    "lower --batch_size (8, 4, 2), --base_channels (64) or --depth (8), add --activation_checkpointing, or "
    "prepare patches of 24"
)
ARCHITECTURE = tuple(f.name for f in fields(ModelConfig) if f.name != "activation_checkpointing")


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Return the architecture in the plain values of a training's configuration."""
    return ModelConfig(**{f.name: config[f.name] for f in fields(ModelConfig) if f.name in config})


def optimizer_of(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays kernels and matrices, but no norm, bias, single number or FiLM layer.

    The weight of the flow's change is one number that starts at 0 and belongs near 0.1; at the rate of the
    kernels it would still be on its way when they have learned to do without it.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.dim() > 1 and "film" not in name]
    flow = [p for name, p in named if name.endswith("flow_weight")]
    plain = [p for name, p in named if (p.dim() <= 1 or "film" in name) and not name.endswith("flow_weight")]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": flow, "weight_decay": 0.0, "lr": FLOW_RATE * config.lr},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), foreach=True)


class VoxelTask(Task):
    """Supervised training of the autoregressive network.

    Args:
        config: what to train.
        splits: training, validation and test data.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        backends: how convolutions are computed, by name; {} leaves them native.
        eval_every: steps between one-year scores.
        rollout_every: steps between rollouts.
        compiled: whether to run the loss through torch.compile.
    """

    package = PACKAGE
    kind = KIND

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        guard: Guard,
        precision: Precision,
        *,
        eval_every: int = 0,
        rollout_every: int = 0,
        compiled: bool = False,
    ) -> None:
        self.train_config = config
        self.splits = splits
        self.guard = guard
        self.config = plain_tree(asdict(config))
        self.normalization = {**splits.normalizer.state_dict(), "units": dict(splits.units)}
        self.model = build_model(config, splits.normalizer).to(guard.device)
        losses = UnrolledLoss(self.model, config.loss_weights, config.unroll_grad_steps)
        ema = Ema(losses, config.ema_decay) if config.ema_decay else None
        self.losses = distributed.parallel(losses)
        self.update = Updater(
            self.losses,
            optimizer := optimizer_of(losses, config),
            guard,
            precision,
            schedule=warmup_cosine(
                optimizer,
                min(config.warmup_steps, config.max_steps // 10),
                config.max_steps,
                config.min_lr_ratio,
            ),
            max_norm=config.grad_clip,
            accumulate=config.accum_steps,
            ema=ema,
        )
        self._forward = devices.compile_if(compiled, self.losses)
        self.eval_every, self.rollout_every = eval_every, rollout_every
        self.steps_done = 0
        self.files: CheckpointFolder | None = None
        self._timed_from: tuple[float, int] | None = None  # (moment, steps done then), for patches/s

    @property
    def averaged(self) -> VoxelAutoRegressor:
        """The network that is scored and saved, in evaluation mode."""
        return self.update.averaged.model.eval()  # type: ignore[return-value, operator]

    def choose_backends(self, shape: Sequence[int], allow_bf16: bool) -> None:
        """Choose how convolutions are computed for batches (B, D, H, W); see `convolutions`."""
        names = choose_backends(
            self.model,
            self.train_config.conv_backend,
            shape,
            self.guard.device,
            allow_bf16=allow_bf16,
        )
        self.use_backends(names)

    def use_backends(self, names: dict[str, str]) -> None:
        """Compute the convolutions, those of the averaged weights too, by these routes."""
        set_backends(self.model, names)
        set_backends(self.update.averaged.model, names)  # type: ignore[arg-type]

    def loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the parts of the loss and their weighted sum "loss"."""
        parts = self._forward(batch)
        distributed.average_buffers(self.model)  # of running norms, so that the ranks stay equal
        return parts

    def step(self, batch: dict[str, Any], step: int) -> dict[str, torch.Tensor | float]:
        """Update once on the patches of `batch`."""
        values = self._start_scores() if step == 0 else {}
        if self._timed_from is None:
            self._timed_from = (time.perf_counter(), step)
        if self.files is not None:
            self.files.name_best()
        self.model.train()
        frozen = step >= FREEZE_FROM * self.train_config.max_steps
        for part in self.model.modules():
            if isinstance(part, RunningNorm):
                part.frozen = frozen
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        found = self.update.step(self.loss, tensors)
        self.steps_done = step + 1
        loss, norm = found.pop("loss"), found.pop("gradient_norm")
        values |= {f"train/loss_{name}": value for name, value in found.items()}
        return {**values, "train/loss_total": loss, "train/gradient_norm": norm, "lr": self.update.lr}

    def _start_scores(self) -> dict[str, Any]:
        """Return the scores of the untrained network on some validation batches, as start/..."""
        if self.splits.val is None:
            return {}
        found = self._one_step(self.splits.val, START_BATCHES, "start")
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def _one_step(self, data: PatchDataset, num_batches: int, prefix: str) -> dict[str, float]:
        size = self.train_config.batch_size
        return one_step_scores(self.averaged, data, num_batches, size, self.update.precision, prefix)

    def evaluate(self) -> dict[str, float]:
        """Return the scores that are due at this step; the test data are scored, but choose nothing."""
        self._say_speed()
        scores: dict[str, float] = {}
        step, last = self.steps_done, self.steps_done >= self.train_config.max_steps
        if last or (self.eval_every and step % self.eval_every == 0):
            for prefix, data in (("val", self.splits.val), ("test", self.splits.test)):
                if data is not None:
                    scores |= self._one_step(data, EVAL_BATCHES, prefix)
        sims = self.splits.rollout_simulations(self.train_config.rollout_eval_sims)
        if sims and (last or (self.rollout_every and step % self.rollout_every == 0)):
            scores |= rollout_scores(self.averaged, sims, self.splits.normalizer, self.update.precision)
        if scores and self.splits.can_choose(self.train_config):
            scores.setdefault(ROLLOUT_SCORE, math.nan)
        return scores

    def _say_speed(self) -> None:
        """Say how many patches a second were learned from since the last scores."""
        if self._timed_from is None:
            return
        moment, step = self._timed_from
        c = self.train_config
        patches = (self.steps_done - step) * c.batch_size * c.accum_steps * distributed.world_size()
        get_logger().info(f"{patches / max(time.perf_counter() - moment, 1e-9):.3g} patches/s")
        self._timed_from = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, or the plain ones without averaging."""
        return plain_weights(self.update.averaged.model)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return network, optimizer, schedule, averages and how convolutions are computed."""
        return {
            **self.update.state_dict(),
            "backends": backends_of(self.model),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; routes of convolutions too, since they differ by rounding."""
        self.update.load_state_dict(state)
        self.use_backends(state["backends"])
        self.steps_done = int(state["steps_done"])

    def accept(self, found: Checkpoint) -> None:
        """Refuse to continue from another architecture or other data."""
        for name in ARCHITECTURE:
            if found.config.get(name) != self.config[name]:
                raise DataError(
                    f"--resume: the checkpoint has {name} {found.config.get(name)}, this run "
                    f"{self.config[name]}; use the flags of the first start"
                )
        other = self.splits.normalizer.difference(Normalizer.from_dict(found.normalization))
        if other:
            raise DataError(
                f"--resume: the checkpoint's normalisation differs in {other}; "
                "use the data of the first start"
            )


def build_model(config: TrainConfig, normalizer: Normalizer) -> VoxelAutoRegressor:
    """Return the network of `config` with fresh weights, in channels-last order."""
    model = VoxelAutoRegressor(model_config(asdict(config)), normalizer)
    if parameter_count(model) > LARGE_WEIGHTS:
        get_logger().warning(
            "warning: %s weights; --kernel_mode stem has the large kernel in the first layer only",
            f"{parameter_count(model):,}",
        )
    devices.channels_last(model)
    return model


def precision_of(config: TrainConfig, options: TrainRunOptions, device: torch.device) -> Precision:
    """Return the autocast: --use_amp is fp16 on CUDA and bf16 elsewhere; auto without it is fp32."""
    name = options.precision
    if name == "auto":
        name = ("fp16" if devices.is_cuda(device) else "bf16") if config.use_amp else "fp32"
    return resolve_precision(name, device)


def train(
    config: TrainConfig, options: TrainRunOptions, origins: dict[str, str] | None = None
) -> Result | None:
    """Train as `config` says into `options.out`; None after a dry run.

    Raises:
        UserError: a flag or the output folder cannot be used.
        DataError: bad data, or nothing to resume from.
        DivergedError: a loss became NaN or infinite.
    """
    options = with_environment(options)
    with machine(options) as device, devices.explain_out_of_memory(ADVICE):
        with distributed.shared_errors():
            config, splits = open_splits(config, options.seed)
        guard = Guard(device, options.on_nonfinite)
        rollout_every = config.rollout_eval_every or options.save_every
        with distributed.shared_errors():
            task = VoxelTask(
                config,
                splits,
                guard,
                precision_of(config, options, device),
                eval_every=options.eval_every,
                rollout_every=rollout_every,
                compiled=options.compile,
            )
        task.choose_backends((config.batch_size, *splits.patch_shape), options.precision != "fp32")
        phases = make_phases(config, splits.train, options, device)
        describe(task, config)
        if options.dry_run:
            dry_run(task, phases)
            return None
        options = replace(options, eval_every=math.gcd(options.eval_every, rollout_every))
        return _run(task, phases, options, origins)


def _run(
    task: VoxelTask, phases: list[Phase], options: TrainRunOptions, origins: dict[str, str] | None
) -> Result:
    """Train in the run's folder, whose checkpoints may lie elsewhere."""
    config = task.train_config
    layout = checkpoint_layout(options, origins)
    files = CheckpointFolder(options.out / layout.checkpoints, options)
    try:
        with RunFolder(
            options.out, package=PACKAGE, config=config, options=options, origins=origins, layout=layout
        ) as folder:
            files.forget_best()
            task.use_backends(remembered_routes(options, backends_of(task.model)))
            task.files = files
            chooses = task.splits.can_choose(config)
            cadence = Cadence(best_metric=ROLLOUT_SCORE if chooses else "", best_is_lower=True)
            result = loop.train(task, phases, folder, options, cadence, task.guard)
            if not chooses:
                get_logger().warning("warning: no validation rollouts: the last state counts as the best")
                files.last_is_best()
            files.name_best()
            if result.exit_code == 0:
                get_logger().info(f"next: {next_command(config.prepped_root, files.folder)}")
            return result
    finally:
        files.close()


def with_environment(options: TrainRunOptions) -> TrainRunOptions:
    """Return the options with Weights & Biases resolved; tell that library and NCCL by the environment."""
    if not options.nccl_p2p:
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
    if options.wandb_run_name:
        os.environ["WANDB_NAME"] = options.wandb_run_name
    if options.use_wandb and not options.wandb:
        return replace(options, wandb=os.environ.get("WANDB_PROJECT", "voxel-ode"))
    return options


def make_phases(
    config: TrainConfig, data: PatchDataset, options: TrainRunOptions, device: torch.device
) -> list[Phase]:
    """Return one phase for each number of years of the curriculum, over one row of samples."""
    pinned = devices.is_cuda(device) if options.pin_memory is None else options.pin_memory
    phases, first_step = [], 0
    for years, steps in curriculum(config.max_steps, config.unroll_steps, config.unroll_start):
        samples = data.with_steps(years)

        def batches(
            first: int, stop: int, samples: PatchDataset = samples, offset: int = first_step
        ) -> Iterable[Any]:
            size = config.batch_size * config.accum_steps
            sampler = StepSampler(len(samples), size, options.seed, offset + first, offset + stop)
            return train_loader(
                samples, sampler, num_workers=options.num_workers, collate=collate, pin_memory=pinned
            )

        phases.append(Phase(f"{years} year{'s' * (years > 1)}", steps, batches))
        first_step += steps
    return phases


def describe(task: VoxelTask, config: TrainConfig) -> None:
    """Say what is trained, on what, and how its convolutions are computed."""
    routes = backends_of(task.model)
    used = ", ".join(f"{list(routes.values()).count(name)} {name}" for name in sorted(set(routes.values())))
    reach = "" if task.model.uses_local_norm else " (norm over the whole region: no tiles)"
    stages = curriculum(config.max_steps, config.unroll_steps, config.unroll_start)
    get_logger().info(
        f"{config.kernel_mode} network of {parameter_count(task.model):,} weights, receptive radius "
        f"{task.model.receptive_radius} cells{reach}, {task.update.precision.name}, convolutions: {used}"
    )
    total = config.batch_size * config.accum_steps * distributed.world_size()
    years = ", ".join(f"{steps} steps of {k}" for k, steps in stages)
    get_logger().info(f"{total} patches a step; years in a row: {years}")


def dry_run(task: VoxelTask, phases: Sequence[Phase]) -> None:
    """Run one batch without keeping anything; print shapes, losses and the memory that batches take."""
    batch = devices.move(next(iter(phases[-1].batches(0, 1))), task.guard.device)
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            get_logger().info(f"{name}: {list(value.shape)}")
    one = {name: value[:1] for name, value in batch.items() if isinstance(value, torch.Tensor)}
    with task.update.precision.autocast():
        size = saved_bytes(lambda: task.loss(one)["loss"])
    sizes = (1, 2, 4, 8, 16, 32, task.train_config.batch_size)
    get_logger().info(memory_table(task.model, size, sizes))
    values = task.step(batch, 0)
    get_logger().info(", ".join(f"{name} {float(value):.4g}" for name, value in values.items()))
