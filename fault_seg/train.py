"""Training of one network: the task, and `train(config, options)`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common import device as devices
from common import distributed, loop
from common.checkpoint import Checkpoint, plain_tree, plain_weights
from common.device import Precision, resolve_precision
from common.errors import DataError, UserError
from common.guard import Guard
from common.log import get_logger
from common.muon import Muon
from common.noise import numpy_stream
from common.optim import Ema, Updater, UpdateTask, adamw, parameter_count, warmup_cosine
from common.run import Layout, RunFolder, TrainOptions, machine
from common.sampling import Draw, StepSampler, steps_of, train_loader
from common.task import Cadence, Phase, Result
from fault_seg import calibration
from fault_seg.config import TrainConfig
from fault_seg.first_estimates import estimate_from, network_input, replaced
from fault_seg.infer import load
from fault_seg.losses import published_loss, strata_loss
from fault_seg.maps import stack_maps, volumes_from
from fault_seg.metrics import score_cube
from fault_seg.model import build_network, pad_to_multiple, receptive_radius
from fault_seg.start import freeze, inference_network, start_from
from fault_seg.train_data import make_datasets

PACKAGE = "fault_seg"
LAYOUT = Layout(
    checkpoints=".", numbered="epoch={epoch}.ckpt", last="last.ckpt", best="best.ckpt", tensorboard="."
)
FINAL_LR_FRACTION = 0.02
CLIP_NORM = 1.0
MULTIPLE = 16  # the total stride of the networks
WARM_SHARE = 0.1  # of the steps before a refining network meets its own output
MAX_CALIBRATION_CUBES = 16
VALID_SCORES = ("ap", "tol_iou", "angle_median_deg", "rgt_mae", "dhr_psnr_db")


class FaultTask(UpdateTask):
    """Supervised training of one fault_seg network.

    Args:
        config: what to train.
        valid: held-out samples.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        total_steps: of the schedule.
        compiled: whether to run the network through torch.compile.
        seed: of the steps on the network's own output.
    """

    package = PACKAGE

    def __init__(
        self,
        config: TrainConfig,
        valid: Dataset[Any],
        guard: Guard,
        precision: Precision,
        total_steps: int,
        *,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        self.train_config = config
        self.seed, self.total_steps = seed, total_steps
        self.kind = config.task
        self.config = {**plain_tree(asdict(config)), "heads": list(config.heads)}
        self.normalization: dict[str, Any] = {"rule": "clipped z-score per survey"}
        self.valid = valid
        self.guard = guard
        network = devices.channels_last(build_network(config.network, config.task, config.heads))
        radius = receptive_radius(network, config.heads)
        self.config |= {} if radius is None else {"receptive_radius": radius}
        if config.init:
            start_from(network, config)
        self.frozen = freeze(network) if config.freeze else []
        self.inference = inference_network(config, guard.device)
        self.network = network.to(guard.device)
        ema = Ema(self.network, config.ema) if config.ema else None
        trained = distributed.parallel(self.network)
        optimizer = {"adamw": adamw, "muon": Muon}[config.optimizer](
            trained, config.peak_lr, config.weight_decay
        )
        schedule = warmup_cosine(optimizer, config.warmup_steps, total_steps, FINAL_LR_FRACTION)
        self.update = Updater(
            trained,
            optimizer,
            guard,
            precision,
            schedule=schedule,
            max_norm=CLIP_NORM,
            accumulate=config.accumulate,
            ema=ema,
        )
        self._forward = devices.compile_if(compiled, trained)

    def loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the parts of the loss and their weighted sum "loss".

        A batch with samples to replay counts them with the share that was asked for.
        """
        parts = self._loss_of(batch)
        if "replay" not in batch:
            return parts
        old, share = self._loss_of(batch["replay"]), self.train_config.replay
        total = (1 - share) * parts["loss"] + share * old["loss"]
        return {**parts, "loss_replay": old["loss"], "loss": total}

    def _loss_of(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        given = network_input(batch, self.kind, self.train_config.network)
        return self._parts(self._outputs(self._forward, given), batch)

    def _outputs(self, network: Any, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs on the grid of `image` of any size; what pads it never meets the loss."""
        padded, inside = pad_to_multiple(image, MULTIPLE)
        outputs = network(devices.like_weights(padded))
        return outputs if padded is image else {name: value[inside] for name, value in outputs.items()}

    def _parts(self, outputs: dict[str, torch.Tensor], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        c = self.train_config
        if c.loss == "published":
            parts = published_loss(outputs, batch)
        else:
            weights = {"fault": c.w_fault, "orient": c.w_orient, "dhr": c.w_dhr, "rgt": c.w_rgt}
            parts = strata_loss(outputs, batch, weights)
        total = parts.pop("total")
        return {**{f"loss_{name}": value for name, value in parts.items()}, "loss": total}

    def step(self, batch: dict[str, Any], step: int) -> dict[str, torch.Tensor | float]:
        """Update once on the crops of `batch`."""
        if self.kind == "refine":
            batch = self.estimated(batch, step)
        self.network.train()
        for part in self.frozen:
            part.eval()
        values = self.update.step(self.loss, batch)
        return {f"train_{name}": value for name, value in values.items()} | {"lr": self.update.lr}

    @torch.no_grad()
    def estimated(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """Return the batch with first estimates as refinement meets them.

        With an inference network every other sample gets what that makes of its image. In a share of the
        steps the refining network is run once and its output is what it has to improve: it is applied to its
        own output again and again.
        """
        everyone = torch.ones(len(batch["fsem"]), dtype=torch.bool, device=self.guard.device)
        with self.update.precision.autocast():
            if self.inference is not None:
                outputs = self._outputs(self.inference, batch["image"])
                estimate = estimate_from(outputs, batch["solved_tau"])
                batch = replaced(batch, estimate, batch["use_inference"].bool())
            draw = numpy_stream(self.seed, "fault_seg/second pass", step).random()
            if step >= WARM_SHARE * self.total_steps and draw < self.train_config.second_pass:
                network = self.update.averaged.eval()
                given = network_input(batch, self.kind, self.train_config.network)
                estimate = estimate_from(self._outputs(network, given), batch["first_tau"])
                batch = replaced(batch, estimate, everyone)
        return batch

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return mean losses and scores over the validation cubes, shared among the ranks."""
        network = self.update.averaged.eval()
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        mine = list(distributed.shard(len(self.valid)))  # type: ignore[arg-type]
        size = self.train_config.batch_valid
        for first in range(0, len(mine), size):
            items = [self.valid[Draw(i, i)] for i in mine[first : first + size]]
            for scores in self._scores_of(network, items):
                for name, value in scores.items():
                    if math.isfinite(value):
                        sums[name] = sums.get(name, 0.0) + value
                        counts[name] = counts.get(name, 0.0) + 1
        names = sorted({name for names in distributed.gather_objects(list(sums)) for name in names})
        total = distributed.reduce_sums({name: sums.get(name, 0.0) for name in names})
        count = distributed.reduce_sums({name: counts.get(name, 0.0) for name in names})
        scores = {name: total[name] / count[name] for name in names}
        if scores:  # cubes without a fault, say, leave the score that chooses the best undefined
            scores.setdefault(best_metric(self.train_config), math.nan)
        return scores

    def _scores_of(self, network: nn.Module, items: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
        """Return the losses and scores of each of some whole held-out cubes, which go through together."""
        names = [name for name in items[0] if name != "source"]
        batch = {n: torch.stack([item[n] for item in items]).to(self.guard.device) for n in names}
        with self.update.precision.autocast():
            outputs = self._outputs(network, network_input(batch, self.kind, self.train_config.network))
        return [
            self._scores_of_cube(
                {name: value[i : i + 1] for name, value in outputs.items()},
                {name: value[i : i + 1] for name, value in batch.items()},
                item,
            )
            for i, item in enumerate(items)
        ]

    def _scores_of_cube(
        self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], item: dict[str, Any]
    ) -> dict[str, float]:
        scores = {f"valid_{name}": float(value) for name, value in self._parts(outputs, batch).items()}
        maps = stack_maps(outputs)[0].cpu().numpy()
        truth = {n: v[0].numpy() for n, v in item.items() if n != "source" and v.dim() == 4}
        found = volumes_from(maps, self.train_config.heads, self.train_config.network, truth.get("tau"))
        measures = score_cube(found, truth, 0.5)
        return scores | {f"valid_{name}": measures[name] for name in VALID_SCORES if name in measures}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, or the plain ones without averaging."""
        return plain_weights(self.update.averaged)

    def accept(self, found: Checkpoint) -> None:
        """Refuse to continue from another layout, set of heads or optimizer."""
        for name in ("network", "heads", "optimizer"):
            theirs = found.config.get(name, "adamw")  # checkpoints from before the choice say no optimizer
            if theirs != self.config[name]:
                raise DataError(
                    f"--resume: the checkpoint has {name} {theirs}, this run "
                    f"{self.config[name]}; use the flags of the first start"
                )


def best_metric(config: TrainConfig) -> str:
    """Return the name of the validation score that chooses the best checkpoint."""
    return "valid_tol_iou" if config.fault else "valid_rgt_mae" if config.rgt else "valid_loss"


def train(config: TrainConfig, options: TrainOptions, origins: dict[str, str] | None = None) -> Result | None:
    """Train as `config` says into `options.out`; None after a dry run.

    Raises:
        UserError: the output folder cannot be used.
        DataError: bad training data, or nothing to resume from.
        DivergedError: a loss became NaN or infinite.
    """
    _require_torchrun(config)
    if config.synthetic and (origins or {}).get("data") == "command line":
        raise UserError("--data and --synthetic exclude each other; leave one out, or add --synthetic false")
    advice = "lower --batch_train or --crop, or use a device with more memory"
    with machine(options) as device, devices.explain_out_of_memory(advice):
        with distributed.shared_errors():
            train_set, valid_set = make_datasets(config, options.seed)
        batch = config.batch_train * config.accumulate
        _require_samples(config, len(train_set))
        per_epoch = max(1, steps_of(1, len(train_set), batch * distributed.world_size()))
        total = config.steps or steps_of(config.epochs, len(train_set), batch * distributed.world_size())
        guard = Guard(device, options.on_nonfinite)
        precision = resolve_precision(options.precision, device)
        with distributed.shared_errors():
            task = FaultTask(
                config, valid_set, guard, precision, total, compiled=options.compile, seed=options.seed
            )

        def batches(first: int, stop: int) -> DataLoader[Any] | Iterable[Any]:
            sampler = StepSampler(len(train_set), batch, options.seed, first, stop)
            return train_loader(
                train_set, sampler, num_workers=options.num_workers, pin_memory=devices.is_cuda(device)
            )

        if options.dry_run:
            _describe(task, batches(0, 1), config)
            return None
        folder = RunFolder(
            options.out, package=PACKAGE, config=config, options=options, origins=origins, layout=LAYOUT
        )
        with folder:
            cadence = _cadence(config, per_epoch, total)
            _describe_network(task, config)
            before = task.evaluate() if config.labels else {}
            result = loop.train(task, [Phase("train", total, batches)], folder, options, cadence, guard)
            _say_what_was_forgotten(before, result)
            if result.state == "finished":
                _calibrate(task, folder, config)
            return result


def _cadence(config: TrainConfig, per_epoch: int, total: int) -> Cadence:
    """Return an evaluation and a checkpoint an epoch."""
    return Cadence(
        eval_every=min(per_epoch, total),
        save_every=min(per_epoch, total),
        steps_per_epoch=per_epoch,
        best_metric=best_metric(config),
        best_is_lower=not config.fault,
    )


def _require_samples(config: TrainConfig, number: int) -> None:
    """Refuse a batch that is larger than the data set."""
    if config.batch_train > number:
        raise DataError(
            f"--batch_train {config.batch_train}: more than the {number} training samples; lower it"
        )


def _require_torchrun(config: TrainConfig) -> None:
    """Answer --nodes and --gpus_per_node with the command that starts so many processes."""
    wanted = config.nodes * config.gpus_per_node
    if wanted > 1 and not distributed.launched():
        nodes = f"--nnodes {config.nodes} " if config.nodes > 1 else "--standalone "
        raise UserError(
            f"--nodes {config.nodes} --gpus_per_node {config.gpus_per_node}: start it with torchrun "
            f"{nodes}--nproc_per_node {config.gpus_per_node} scripts/fault_seg/train.py and the other flags"
        )


def _say_what_was_forgotten(before: dict[str, float], result: Result) -> None:
    """Log the score on synthetic cubes before and after fine-tuning."""
    name = "valid_tol_iou"
    if name in before and name in result.scores:
        get_logger().info(
            f"Tol-IoU@2 on held-out synthetic cubes: {before[name]:.3f} before, "
            f"{result.scores[name]:.3f} after"
        )


def _calibrate(task: FaultTask, folder: RunFolder, config: TrainConfig) -> None:
    """Fit temperature and threshold of the checkpoints that users take, on validation cubes; on rank 0."""
    with distributed.shared_errors():
        if distributed.is_main():
            paths = [folder.checkpoints / name for name in (LAYOUT.last, LAYOUT.best)]
            paths = [path for path in paths if path.is_file()]
            same = len(paths) == 2 and paths[0].samefile(paths[1])
            for group in [paths] if same else [[path] for path in paths]:
                found = _fitted(task, group[0], config)
                for path in group:
                    calibration.store(path, found)
                said = ", ".join(f"{n} {v:.4g}" for n, v in found.items()) or "nothing to calibrate on"
                get_logger().info(f"{' and '.join(path.name for path in group)}: {said}")


def _fitted(task: FaultTask, path: Path, config: TrainConfig) -> dict[str, Any]:
    """Return the calibration of the checkpoint at `path`."""
    model = load(path, task.guard.device, precision=task.update.precision.name)
    model.temperature, model.keeps_residual = 1.0, True
    number = min(len(task.valid), MAX_CALIBRATION_CUBES)  # type: ignore[arg-type]
    items = [task.valid[Draw(i, i)] for i in range(number)]
    return calibration.calibrate(model, items, config.rgt_residual)


def _describe_network(task: FaultTask, config: TrainConfig) -> None:
    radius = receptive_radius(task.network, config.heads)
    reach = f"receptive radius {radius} voxels" if radius is not None else "statistics over the whole volume"
    get_logger().info(
        f"{config.network} {config.task}, heads {' '.join(config.heads)}: "
        f"{parameter_count(task.network):,} parameters, {reach}, {task.update.precision.name}"
    )


def _describe(task: FaultTask, batches: Iterable[Any], config: TrainConfig) -> None:
    """Run one batch without keeping anything, and print what there is."""
    _describe_network(task, config)
    batch = devices.move(next(iter(batches)), task.guard.device)
    for part, tensors in (("", batch), *((f"{k}.", v) for k, v in batch.items() if isinstance(v, dict))):
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor):
                get_logger().info(f"{part}{name}: {list(value.shape)}")
    values = task.step(batch, 0)
    get_logger().info(", ".join(f"{name} {float(value):.4g}" for name, value in values.items()))
