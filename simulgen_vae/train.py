"""Training in one command: VAE, conditioner, end to end, predictors, guard, calibration."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import device as devices
from common import distributed, loop
from common.checkpoint import plain_tree
from common.device import resolve_precision
from common.errors import DataError, UserError
from common.files import write_json
from common.guard import Guard
from common.log import get_logger
from common.run import RunFolder, TrainOptions, machine
from common.task import Cadence, Phase, Result
from simulgen_vae.conditioner import Conditioner, ConditionerShape
from simulgen_vae.config import TrainConfig
from simulgen_vae.constraints import (
    CoefficientPenalty,
    Constraints,
    Settings,
    arrays_to_store,
    make_constraints,
)
from simulgen_vae.field_data import FieldData
from simulgen_vae.launch import advise_on_divergence, explain_set_up, require_launcher
from simulgen_vae.model import HierarchicalVae, VaeShape, parameter_count
from simulgen_vae.model_files import (
    FOLDER,
    LOSS_FILE,
    MODEL,
    Surrogate,
    find_model,
    read_surrogate,
    write_latents,
    write_losses,
    write_surrogate,
)
from simulgen_vae.phases import PACKAGE, SurrogateTask
from simulgen_vae.predictors_phase import Outcome, hold_contest
from simulgen_vae.preparation import (
    input_type_of,
    open_data,
    prepare,
    provenance_of,
    sample_set,
    split_of,
    start_of,
)
from simulgen_vae.progress import CONDITIONER, END_TO_END, PHASES, VAE, lengths_of
from simulgen_vae.scoring import field_errors, posterior_means
from simulgen_vae.split import Split, write_split
from simulgen_vae.training_data import TrainingData
from simulgen_vae.uncertainty import keep_for_calibration

EVALUATIONS = 40  # at most so many in a phase, unless --eval_every says otherwise
ADVICE = "use --batch_size {half}, --load_all 0 and --checkpointing 1"


@dataclass(eq=False)
class Inputs:
    """What a training works on: the data, who trains on which sample, and the VAE that was given."""

    config: TrainConfig
    data: FieldData
    split: Split
    calibration: np.ndarray
    given: Surrogate | None

    @property
    def train_vae(self) -> bool:
        """Whether there is a VAE to train."""
        return self.given is None


def train(config: TrainConfig, options: TrainOptions, origins: dict[str, str] | None = None) -> Result | None:
    """Train as `config` says into `options.out`; None after a dry run.

    Raises:
        UserError: wrong flags, or an output folder that cannot be used.
        DataError: bad data, no VAE to build on, or nothing to resume from.
        DivergedError: a loss became NaN or infinite.
    """
    require_launcher(config.use_ddp)
    advice = ADVICE.format(half=max(1, config.batch_size // 2))
    with explain_set_up(), machine(options) as device, devices.explain_out_of_memory(advice):
        with distributed.shared_errors():
            inputs = gather(config, options)
        if options.dry_run:
            training = make_training(inputs, options.seed, device, None)
            describe(make_task(inputs, training, options, Guard(device)))
            return None
        # The conditioner alone is a run of its own, beside the one that it builds on.
        run_path = options.out / CONDITIONER if config.lc_only else options.out
        folder = RunFolder(run_path, package=PACKAGE, config=inputs.config, options=options, origins=origins)
        with folder, advise_on_divergence():
            training = make_training(inputs, options.seed, device, run_path)
            guard = Guard(device, options.on_nonfinite)
            task = make_task(inputs, training, options, guard)
            describe_networks(task)
            result = loop.train(task, phases_of(task, options), folder, options, cadence_of(task), guard)
            if result.state == "finished":
                finish(task, inputs, options)
            return result


def gather(config: TrainConfig, options: TrainOptions) -> Inputs:
    """Open the data, split it, and read the VAE that the run builds on, all checked."""
    given = None
    if config.lc_only or (config.use_e2e_training and config.e2e_vae_model_path):
        given = read_surrogate(find_model(config.vae_path or options.out / FOLDER / MODEL))
        config = with_shapes_of(config, given)
    data = open_data(config)
    if given is None:
        split = split_of(config, data, options.seed)
        split, calibration = keep_for_calibration(split, data.num_samples, options.seed)
    else:
        split, calibration = given.split, given.calibration_rows
        require_same(config, data, given)
    constraints_for(config, data, torch.ones(data.num_fields))  # to refuse bad flags before anything is made
    if not input_type_of(config, data) and config.lc_only:
        raise DataError(f"{data.path}: no parameters and no pictures; --lc_only needs one of them")
    return Inputs(config, data, split, calibration, given)


def with_shapes_of(config: TrainConfig, given: Surrogate) -> TrainConfig:
    """Return `config` with everything that the given VAE fixes."""
    kept = ("front_end", "num_modes", "energy", "size", "latent_dim_end", "latent_dim", "filters", "alpha")
    values = {name: given.config[name] for name in (*kept, "spectral_norm", "train_linear", "symmetry")}
    values["filters"] = tuple(values["filters"])
    return dataclasses.replace(config, **values)


def require_same(config: TrainConfig, data: FieldData, given: Surrogate) -> None:
    """Raise DataError unless `data` is what the given VAE was trained on."""
    own = (data.num_nodes, data.num_fields, data.num_frames)
    theirs = (given.basis.num_nodes, given.basis.num_fields, given.vae.shape.frames)
    if own != theirs:
        raise DataError(
            f"{data.path}: nodes, fields, frames {own}, the VAE was trained on {theirs}; name its data"
        )
    if given.config["provenance"] != provenance_of(config, data, given.split):
        raise DataError(
            f"{data.path}: not the data set that the VAE was trained on (its content or its split differ); "
            "name that one with --data, or train the VAE again"
        )


def make_training(inputs: Inputs, seed: int, device: torch.device, folder: Path | None) -> TrainingData:
    """Return the prepared rows; the basis of a given VAE is kept."""
    basis = inputs.given.basis if inputs.given is not None else None
    return prepare(inputs.config, inputs.data, inputs.split, seed, device, folder, basis)


def make_task(inputs: Inputs, training: TrainingData, options: TrainOptions, guard: Guard) -> SurrogateTask:
    """Return the task with its networks."""
    config = inputs.config
    if inputs.given is not None:
        vae = inputs.given.vae
    else:
        shape = vae_shape_of(config, training)
        start = start_of(training, shape.num_latents)
        vae = HierarchicalVae(shape, start, alpha=config.alpha, checkpointing=config.checkpointing)
    conditioner = None
    kind = input_type_of(config, inputs.data)
    if kind:
        conditioner = Conditioner(conditioner_shape_of(config, kind, inputs.data.num_params, vae.shape))
    has_net = conditioner is not None
    epochs = {
        VAE: config.epochs if inputs.train_vae else 0,
        CONDITIONER: config.lc_epochs if has_net else 0,
        END_TO_END: config.e2e_epochs if has_net and config.use_e2e_training else 0,
    }
    num_rows = len(training.train_rows)
    lengths = {
        name: lengths_of(count, config.batch_size, num_rows, "batch_size")
        if name == VAE
        else lengths_of(count, config.lc_batch_size, num_rows, "lc_batch_size")
        for name, count in epochs.items()
    }
    precision = resolve_precision(options.precision, guard.device)
    basis = training.front_end.basis
    constraints = constraints_for(config, inputs.data, basis.field_std)
    penalty = CoefficientPenalty(constraints, basis, device=guard.device) if constraints.is_soft else None
    return SurrogateTask(
        config,
        training,
        vae,
        conditioner,
        lengths,
        guard,
        precision,
        options.seed,
        compiled=options.compile,
        penalty=penalty,
    )


def constraints_for(config: TrainConfig, data: FieldData, field_std: torch.Tensor) -> Constraints:
    """Return what the flags ask predictions of this data set to keep.

    Raises:
        UserError: the flags do not fit each other or the data.
        DataError: the file of known nodes is bad.
    """
    return make_constraints(
        Settings.of(asdict(config)),
        shape=(data.num_frames, data.num_nodes, data.num_fields),
        field_names=data.field_names,
        field_std=field_std,
        time=torch.from_numpy(np.asarray(data.time, dtype=np.float32)),
        grid_shape=data.grid_shape,
    )


def vae_shape_of(config: TrainConfig, training: TrainingData) -> VaeShape:
    """Return the sizes of the VAE."""
    return VaeShape(
        *training.shape,
        filters=config.filters,
        size=config.size,
        latent_dim_end=config.latent_dim_end,
        latent_dim=config.latent_dim,
        spectral_norm=config.spectral_norm,
        train_linear=config.train_linear,
    )


def conditioner_shape_of(
    config: TrainConfig, kind: str, num_params: int, shape: VaeShape
) -> ConditionerShape:
    """Return the sizes of the conditioner."""
    return ConditionerShape(
        input_type=kind,
        num_params=num_params if kind in ("csv", "fusion") else 0,
        num_main=shape.latent_dim_end,
        num_levels=shape.num_levels * shape.latent_dim,
        filters=config.lc_filters,
        dropout=config.dropout,
        use_attention=config.use_attention,
        fusion_encoder=config.fusion_encoder,
        image_threshold=config.image_threshold,
    )


def phases_of(task: SurrogateTask, options: TrainOptions) -> list[Phase]:
    """Return the phases; what is left of one is the task's own count, which an early stop cuts."""

    def source(name: str) -> Any:
        return lambda _first, _stop: task.batches(name, options.num_workers)

    return [Phase(name, task.lengths[name].steps, source(name)) for name in PHASES]


def cadence_of(task: SurrogateTask) -> Cadence:
    """Return when to evaluate and save: every epoch, but at most forty times a phase."""
    longest = max(lengths.steps for lengths in task.lengths.values())
    per_epoch = task.lengths[VAE].per_epoch
    every = max(per_epoch, -(-longest // EVALUATIONS))
    return Cadence(eval_every=every, save_every=every, steps_per_epoch=per_epoch)


def finish(task: SurrogateTask, inputs: Inputs, options: TrainOptions) -> None:
    """Score the networks, hold the contest, calibrate, and write model_save; rank 0 alone works."""
    with distributed.shared_errors():
        if distributed.is_main():
            _finish(task, inputs, options)
    distributed.barrier()


def _finish(task: SurrogateTask, inputs: Inputs, options: TrainOptions) -> None:
    training, config, data = task.data, inputs.config, inputs.data
    folder = options.out / FOLDER
    best = task.best_weights()
    cpu = torch.device("cpu")
    for name, module in task.networks().items():
        module.load_state_dict(best[name])
        module.to(cpu).eval().requires_grad_(False)
    has_inputs = training.params is not None or training.images is not None
    outcome = _contest(task, inputs, options) if has_inputs else None
    rows = range(data.num_samples)
    write_latents(folder, *posterior_means(training, rows, task.vae, cpu))
    errors = field_errors(training, data, task.vae)
    write_losses(options.out / LOSS_FILE, data.sample_id, inputs.split.codes(data.num_samples), errors)
    write_split(folder / "split.json", inputs.split, data.sample_id)
    write_surrogate(folder, _surrogate(task, inputs, outcome), outcome.beaten if outcome else None)
    log = get_logger()
    held_out = errors[torch.from_numpy(inputs.split.validation)]
    log.info("auto-encoding: mean relative L2 %.3g on validation samples", float(held_out.mean()))
    if config.plot < 2:
        from simulgen_vae.training_figures import draw_training

        draw_training(options.out, show=config.plot == 0)
    if outcome is not None:
        write_json(folder / "guard.json", outcome.contest.verdict.document())
        log.info(outcome.contest.verdict.line)


def _surrogate(task: SurrogateTask, inputs: Inputs, outcome: Outcome | None) -> Surrogate:
    """Return everything that was found, as one object."""
    data, training = inputs.data, task.data
    uses = {"uses_params": training.params is not None, "uses_images": training.images is not None}
    return Surrogate(
        config={**task.config, **_names(data), **uses},
        basis=training.front_end.basis,
        vae=task.vae,
        conditioner=task.conditioner,
        predictor=outcome.contest.winner if outcome else None,
        calibration=outcome.calibration if outcome else None,
        split=inputs.split,
        calibration_rows=inputs.calibration,
        arrays=_arrays(data, inputs),
        symmetry=data.symmetry,
    )


def _contest(task: SurrogateTask, inputs: Inputs, options: TrainOptions) -> Outcome:
    split, seed = inputs.split, options.seed
    calibration = inputs.calibration if len(inputs.calibration) else split.validation
    train, validation, bars = (
        sample_set(task.data, rows, seed) for rows in (split.train, split.validation, calibration)
    )
    apart = len(inputs.calibration) > 0
    return hold_contest(
        inputs.config,
        task.vae,
        task.conditioner,
        train,
        validation,
        bars,
        seed,
        fields=lambda row: torch.from_numpy(inputs.data.trajectory(row)),
        set_apart=apart,
    )


def _names(data: FieldData) -> dict[str, Any]:
    """Return what inference must know of the data, as plain values."""
    found = {
        "field_names": data.field_names,
        "units": data.units,
        "param_names": data.param_names,
        "grid_shape": data.grid_shape,
        "num_samples": data.num_samples,
        "data_path": str(data.path),
        "attributes": data.attributes,
    }
    return plain_tree(found)


def _arrays(data: FieldData, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Return what inference must know of the data, as tensors."""
    found = {"time": data.time, "coords": data.coords, "mask": data.mask}
    if data.params is not None:
        found["train_params"] = data.params[inputs.split.train]
    shape = (data.num_frames, data.num_nodes, data.num_fields)
    found |= arrays_to_store(Settings.of(asdict(inputs.config)), shape)
    found |= {f"cells_{name}": value for name, value in data.cells.items()}
    return {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in found.items() if v is not None}


def describe_networks(task: SurrogateTask) -> None:
    """Say what is trained, and how long."""
    log = get_logger()
    counts = ", ".join(f"{n} {parameter_count(m):,} parameters" for n, m in task.networks().items())
    shape = task.vae.shape
    log.info(
        f"{counts}; {shape.channels} channels, {shape.frames} frames, {shape.num_latents} latents, stages of "
        f"{' '.join(map(str, shape.lengths))} frames, {task.precision.name}"
    )
    world = distributed.world_size()
    for name, length in task.lengths.items():
        if length.steps:
            log.info(
                f"{name}: {length.steps} steps = {length.steps / length.per_epoch:.4g} epochs of "
                f"{length.per_epoch} steps, batch {length.batch} x {world} = {length.batch * world}"
            )


def describe(task: SurrogateTask) -> None:
    """Run one batch of the first phase without keeping anything, and print what there is."""
    describe_networks(task)
    name = next((n for n in PHASES if task.lengths[n].steps), None)
    if name is None:
        raise UserError("--epochs, --lc_epochs and --e2e_epochs leave nothing to do; raise one")
    task.start_phase(name)
    batch = devices.move(next(iter(task.batches(name))), task.guard.device)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            get_logger().info(f"{key}: {list(value.shape)}")
    values = task.step(batch, 0)
    get_logger().info(", ".join(f"{key} {float(value):.4g}" for key, value in values.items()))
