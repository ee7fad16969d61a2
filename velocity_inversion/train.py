"""Training of an ensemble: members one after another, then their weights; `train(config, options)`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import checkpoint as checkpoints
from common import device as devices
from common import distributed, loop
from common.device import resolve_precision
from common.errors import DataError, UserError
from common.files import make_folder, require_writable, write_json
from common.guard import Guard
from common.log import get_logger
from common.noise import numpy_stream
from common.optim import parameter_count
from common.run import RunFolder, TrainOptions, machine
from common.sampling import StepSampler, steps_of, train_loader
from common.task import Cadence, Phase, Result
from velocity_inversion.config import TrainConfig
from velocity_inversion.dataset import ShotDataset, collate, split_rows
from velocity_inversion.diffusion_train import train_diffusion
from velocity_inversion.ensemble import (
    MODEL_FILE,
    Calibration,
    Ensemble,
    differences,
    fit_weights,
    save_ensemble,
)
from velocity_inversion.geometry import Survey
from velocity_inversion.inversionnet import resampling_notice
from velocity_inversion.member import (
    Member,
    MemberTask,
    Statistics,
    fit_statistics,
    options_of_part,
    preprocessing_of,
    steps_within,
)
from velocity_inversion.predictions import calibrate, predict_members
from velocity_inversion.sources import Source, open_source, require_disjoint

SPLIT_FILE = "split.json"
MEMBER_SEED = 1_000_003  # between members' seeds


@dataclass(frozen=True)
class Data:
    """What a training reads: training samples (also as they are), samples that choose, that calibrate."""

    survey: Survey
    train: ShotDataset
    plain: ShotDataset
    select: ShotDataset
    calibrate: ShotDataset
    statistics: Statistics


def open_sources(config: TrainConfig) -> tuple[Source, Source]:
    """Open and check training and validation data; without --val_data_path both are the same.

    Raises:
        DataError: missing, broken or mismatching data.
    """
    source = open_source(config.train_data_path)
    other = open_source(config.val_data_path) if config.val_data_path else source
    if not other.has_truth:
        raise DataError(f"{config.val_data_path}: validation data without velocities")
    if other is not source:
        require_disjoint(source, other)
        if differ := differences(source.survey, other.survey, preprocessing_of(config)):
            raise DataError(
                f"{config.val_data_path}: differs from {config.train_data_path} in {'; '.join(differ)}; "
                "validate on such data as are trained on"
            )
    low, high = source.survey.v_bounds_km_s
    if low < config.v_min or high > config.v_max:
        raise DataError(
            f"{config.train_data_path}: velocities of {low:g} to {high:g} km/s, the network is bounded to "
            f"{config.v_min:g} to {config.v_max:g}; widen --v_min --v_max"
        )
    return source, other


def open_data(config: TrainConfig, seed: int, out: Path, *, resumed: bool, store: bool = True) -> Data:
    """Open and check the data; the split is stored in split.json and read back on resume.

    Raises:
        DataError: missing, broken or mismatching data.
    """
    source, other = open_sources(config)
    if other is source:
        train_rows, valid_rows = split_rows(source, config.val_fraction, seed)
    else:
        train_rows, valid_rows = list(range(len(source))), list(range(len(other)))
    halves = split_rows_in_half([other.ids[i] for i in valid_rows], valid_rows, seed)
    split = {
        "train": [source.ids[i] for i in train_rows],
        "select": [other.ids[i] for i in halves[0]],
        "calibrate": [other.ids[i] for i in halves[1]],
    }
    if store:
        _store_split(out / SPLIT_FILE, split, resumed=resumed)
    preprocessing = preprocessing_of(config)
    cache = config.cache_dir if config.cache_data else None
    held_out = partial(ShotDataset, other, preprocessing, cache_dir=cache, training=True)
    train = ShotDataset(
        source,
        preprocessing,
        rows=train_rows,
        cache_dir=cache,
        training=True,
        flips=config.augment,
        augment_probability=config.augment_probability if config.augment else 0.0,
        scaling=config.augment_scaling,
        family_balanced=config.family_balanced,
        keeps_clean=config.physics_every > 0,
        seed=seed,
    )
    plain = ShotDataset(source, preprocessing, rows=train_rows, cache_dir=cache, training=True)
    statistics = fit_statistics(plain, source.survey)
    return Data(source.survey, train, plain, held_out(rows=halves[0]), held_out(rows=halves[1]), statistics)


def split_rows_in_half(ids: list[str], rows: list[int], seed: int) -> tuple[list[int], list[int]]:
    """Return (rows that choose checkpoints and weights, rows that only calibrate); one row does both."""
    if len(rows) < 2:
        return rows, rows
    order = sorted(range(len(rows)), key=lambda i: numpy_stream(seed, f"half {ids[i]}").random())
    half = (len(rows) + 1) // 2
    return sorted(rows[i] for i in order[:half]), sorted(rows[i] for i in order[half:])


def _store_split(path: Path, split: dict[str, list[str]], *, resumed: bool) -> None:
    if resumed and path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored != split:
            raise DataError(f"{path}: the samples of this run differ from those found now; restore the data")
    elif distributed.is_main():
        write_json(path, split)


def train(config: TrainConfig, options: TrainOptions, origins: dict[str, str] | None = None) -> Result | None:
    """Train as `config` says below `options.out`; None after a dry run.

    Members go to `member_00`, `member_01`, ...; each is a run folder of its own and resumes on its own. The
    ensemble goes to `models/best_ensemble_model.pth`.

    Raises:
        UserError: the output folder cannot be used.
        DataError: bad training data, or nothing to resume from.
        DivergedError: a loss became NaN or infinite.
    """
    if config.use_amp and options.precision == "auto":
        gpu = devices.is_cuda(devices.resolve_device(options.device))
        options = replace(options, precision="fp16" if gpu else "bf16")
    advice = "lower --batch_size, set --cache_data false, or add --gradient_checkpointing"
    with machine(options) as device, devices.explain_out_of_memory(advice):
        with distributed.shared_errors():
            if distributed.is_main() and not options.dry_run:
                require_writable(options.out)
            data = open_data(
                config, options.seed, options.out, resumed=bool(options.resume), store=not options.dry_run
            )
        if options.dry_run:
            _describe(config, data, device)
            return None
        result = None
        if config.stage != "diffusion":
            result = _train_network(config, options, origins, data, device)
        if config.stage != "network" and (result is None or result.state == "finished"):
            path = Path(config.model_path) if config.model_path else options.out / MODEL_FILE
            result = train_diffusion(config, options, data, path, device, origins)
        return result


def _train_network(
    config: TrainConfig,
    options: TrainOptions,
    origins: dict[str, str] | None,
    data: Data,
    device: torch.device,
) -> Result:
    """Train the members that are wanted and, where all are, write the ensemble."""
    result = None
    count = 1 if config.model == "inversionnet" else config.num_models
    wanted = range(count) if config.member < 0 else [config.member]
    for k in [] if config.assemble else wanted:
        result = train_member(k, config, options, origins, data, device)
        if result.state != "finished":
            return result
    if config.member < 0 or config.assemble:
        with distributed.shared_errors():
            if distributed.is_main():
                assemble(config, options, data, device)
        distributed.barrier()
    return result or Result("finished", 0)


def member_folder(out: Path, member: int) -> Path:
    """Return the run folder of a member."""
    return out / f"member_{member:02d}"


def train_member(
    k: int,
    config: TrainConfig,
    options: TrainOptions,
    origins: dict[str, str] | None,
    data: Data,
    device: torch.device,
) -> Result:
    """Train member `k`, or return at once when a resumed run finds it finished."""
    out = member_folder(options.out, k)
    if options.resume and _finished(out):
        get_logger().info(f"{out}: finished before")
        return Result("finished", 0)
    config = config.variant(k)
    if config.model == "inversionnet" and (notice := resampling_notice(data.survey)):
        get_logger().warning(notice)
    own = options_of_part(options, out, options.seed + MEMBER_SEED * k)
    devices.seed_global(own.seed, distributed.rank())
    guard = Guard(device, options.on_nonfinite)
    precision = resolve_precision(options.precision, device)
    batch = config.batch_size * config.accumulate
    per_epoch = max(1, steps_of(1, len(data.train), batch * distributed.world_size()))

    def batches(first: int, stop: int) -> Iterable[Any]:
        sampler = StepSampler(len(data.train), batch, own.seed, first, stop)
        workers, pinned = options.num_workers, devices.is_cuda(device)
        return train_loader(data.train, sampler, num_workers=workers, collate=collate, pin_memory=pinned)

    def make(total: int) -> MemberTask:
        given = config, data.survey, data.statistics, data.select, guard, precision, total, per_epoch
        return MemberTask(*given, compiled=options.compile, figures_dir=out / "figures")

    with RunFolder(out, package="velocity_inversion", config=config, options=own, origins=origins) as folder:
        total = steps_of(config.num_epochs, len(data.train), batch * distributed.world_size())
        total = min(total, config.max_steps) if config.max_steps else total
        if config.max_cpu_s:
            total = _steps_of_budget(total, make, batches, config.max_cpu_s, own)
        task = make(total)
        name = "InversionNet" if config.model == "inversionnet" else "member"
        get_logger().info(f"{name} {k}: {parameter_count(task.member):,} parameters, {total} steps")
        every = min(max(per_epoch, total // 20), total)
        cadence = Cadence(every, every, steps_per_epoch=per_epoch, best_metric="valid_mape")
        started = time.process_time()
        result = loop.train(task, [Phase("train", total, batches)], folder, own, cadence, guard)
        get_logger().info(f"member {k}: {time.process_time() - started:.0f} CPU s, best MAPE {result.best}")
        return result


def _steps_of_budget(
    most: int,
    make: Callable[[int], MemberTask],
    batches: Callable[[int, int], Iterable[Any]],
    budget_cpu_s: float,
    own: TrainOptions,
) -> int:
    """Return the steps, at most `most`, that fit the budget; a resumed member keeps those of its file."""
    path = own.out / "steps.json"
    if own.resume and path.exists():
        return int(json.loads(path.read_text(encoding="utf-8"))["total_steps"])
    total = min(most, steps_within(partial(make, most), batches, budget_cpu_s))
    devices.seed_global(own.seed, distributed.rank())
    if distributed.is_main():
        write_json(path, {"total_steps": total, "max_cpu_s": budget_cpu_s})
    return total


def _finished(out: Path) -> bool:
    status = out / "status.json"
    if not status.exists():
        return False
    return json.loads(status.read_text(encoding="utf-8")).get("state") == "finished"


def assemble(config: TrainConfig, options: TrainOptions, data: Data, device: torch.device) -> Ensemble:
    """Fit the weights of trained members on the choosing half, calibrate on the other, write the ensemble.

    Raises:
        UserError: a member is not trained yet.
    """
    count = 1 if config.model == "inversionnet" else config.num_models
    states, configs = [], []
    for k in range(count):
        path = member_folder(options.out, k) / "checkpoints/best.pt"
        if not path.exists():
            raise UserError(f"{path}: member {k} is not trained; run --member {k} first")
        states.append(checkpoints.load(path, package="velocity_inversion").state_dict)
        configs.append(config.variant(k))
    ensemble = Ensemble(
        options.out / MODEL_FILE,
        tuple(configs),
        data.survey,
        torch.full((count,), 1 / count),
        tuple(states),
        Calibration(),
        data.statistics.mean_section,
    )
    found = predict_members(ensemble, data.select, device)
    truth = torch.stack([data.select[i]["vp"][0] for i in range(len(data.select))])
    ensemble = replace(ensemble, weights=fit_weights(found.velocities, truth))
    ensemble = replace(ensemble, calibration=calibrate(ensemble, data.select, data.calibrate, device))
    make_folder(ensemble.path.parent)
    save_ensemble(ensemble.path, ensemble)
    _tell_scores(options.out / "models/ensemble.json", ensemble, found.velocities, truth)
    get_logger().info(f"wrote {ensemble.path}")
    return ensemble


def _tell_scores(path: Path, ensemble: Ensemble, velocities: torch.Tensor, truth: torch.Tensor) -> None:
    """Print and write what weights and smoothing are worth on the samples that chose them.

    Args:
        path: of the file.
        ensemble: with its weights.
        velocities: of its members, [M, N, Z, X], km/s.
        truth: [N, Z, X], km/s.
    """
    mixed = torch.einsum("m,mnzx->nzx", ensemble.weights, velocities)
    each = [float(((v - truth).abs() / truth).mean()) for v in velocities]
    uniform = float(((velocities.mean(0) - truth).abs() / truth).mean())
    score = float(((mixed - truth).abs() / truth).mean())
    get_logger().info(
        f"validation MAPE: weighted {score:.4f}, uniform {uniform:.4f}, members "
        f"{' '.join(f'{m:.4f}' for m in each)}; weights {' '.join(f'{w:.2f}' for w in ensemble.weights)}"
    )
    write_json(
        path,
        {
            "mape_weighted": score,
            "mape_uniform": uniform,
            "mape_members": each,
            "weights": ensemble.weights.tolist(),
            "smoothing_gain": ensemble.calibration.smoothing_gain,
        },
    )
    gain = ensemble.calibration.smoothing_gain
    get_logger().info(
        f"post-processing (smoothing) changes the validation MAPE by {-gain:+.5f}: it "
        f"{'helps' if gain > 0 else 'does not help'}"
    )


def _describe(config: TrainConfig, data: Data, device: torch.device) -> None:
    """Run one batch through one member and print what there is."""
    member = Member(config.variant(0), data.survey)
    member.start_from(data.statistics, mean_start=config.mean_start)
    get_logger().info(
        f"{len(data.train)} training, {len(data.select)} choosing, {len(data.calibrate)} calibrating"
    )
    for name, part in member.net.named_children():
        get_logger().info(f"{name}: {parameter_count(part):,} parameters")
    get_logger().info(f"in all {parameter_count(member):,} parameters, {config.num_models} members")
    batch = collate([data.train[i % len(data.train)] for i in range(config.batch_size)])
    batch = devices.move(batch, device)
    found = member.to(device)(batch)
    for name, value in {**batch, **found}.items():
        if isinstance(value, torch.Tensor):
            get_logger().info(f"{name}: {list(value.shape)}")
