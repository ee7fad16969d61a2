"""Training of the pyramid, group by group from coarse to fine: the task, and `train(options, run)`."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from common import device as devices
from common import distributed, loop
from common.checkpoint import Checkpoint, plain_tree
from common.device import Precision, resolve_precision
from common.errors import DataError
from common.guard import Guard
from common.log import get_logger
from common.noise import torch_stream
from common.optim import parameter_count
from common.run import RunFolder, machine
from common.task import Cadence, Phase, Result, Task
from facies_gan import run_files
from facies_gan.config import PACKAGE, RunOptions, TrainingOptions
from facies_gan.critic import ScaleCritic
from facies_gan.generator import ScaleGenerator, copy_equal_shapes
from facies_gan.group import GroupPlan
from facies_gan.group_trainer import GroupTrainer, Pyramid
from facies_gan.model_card import ModelCard
from facies_gan.previews import Previews
from facies_gan.samples import Batch
from facies_gan.setup import LAYOUT, Setup, prepare, resolve_run
from facies_gan.simulator import Simulator
from facies_gan.step_profiler import StepProfiler

DRY_RUN_SECTIONS = 2
ADVICE = "lower --batch_size, --crop_size or --num_diversity_samples, or use --precision bf16"


class FaciesTask(Task):
    """Adversarial training of a pyramid of generators.

    Args:
        setup: data, sizes, groups and first weights.
        guard: the agreement of the ranks.
        precision: of the generators.
        run: the shared flags.
    """

    package = PACKAGE
    kind = run_files.KIND

    def __init__(self, setup: Setup, guard: Guard, precision: Precision, run: RunOptions) -> None:
        self.setup, self.guard, self.precision, self.run = setup, guard, precision, run
        self.config = {**plain_tree(asdict(setup.options)), "seed": run.seed}
        self.blocks: list[ScaleGenerator] = []
        self.critics: list[ScaleCritic] = []
        self.amplitudes: list[float] = []
        self.trainer: GroupTrainer | None = None
        self.previews: Previews | None = None
        self.profiler: StepProfiler | None = None
        self._started = time.perf_counter()
        self._samples_seen = 0
        for k in range(setup.plans[0].scales[0]):  # scales of an earlier model, below --start_scale
            self._add_scale(k)

    @property
    def normalization(self) -> dict[str, Any]:  # type: ignore[override]
        """The facts that generation needs beside the weights."""
        return self.card().to_dict()

    def card(self) -> ModelCard:
        """Return the card of the scales built so far."""
        return self.setup.card(self.amplitudes)

    def start_phase(self, name: str) -> None:
        """Freeze the scales done and build those of the group, unless it is under way."""
        index = int(name.split()[-1]) - 1
        if self.trainer is not None and self.trainer.plan.index == index:
            return
        self._freeze()
        plan = self.setup.plans[index]
        with distributed.shared_errors():
            if distributed.is_main() and self.previews is not None:
                # Final weights and, where scales were added, the facts of the larger pyramid.
                self._write_scales(self.previews, range(plan.scales[0]))
        for k in plan.scales:
            self._add_scale(k)
        self._build(plan)

    def _freeze(self) -> None:
        """Give the scales of the group that ended their averaged weights."""
        if self.trainer is not None:
            for k, weights in self.trainer.averaged().items():
                self.blocks[k].load_state_dict(weights)
            self.trainer = None

    def _add_scale(self, k: int) -> None:
        """Build scale k: from an earlier model, else like the scale before it where shapes agree."""
        architecture, seed = self.setup.architecture, self.run.seed
        block = ScaleGenerator(architecture, k, torch_stream(seed, "generator weights", k))
        critic = ScaleCritic(architecture, k, torch_stream(seed, "critic weights", k))
        if k:
            copy_equal_shapes(block, self.blocks[k - 1])
            copy_equal_shapes(critic, self.critics[k - 1])
        if k in self.setup.first_weights:
            block.load_state_dict(self.setup.first_weights[k])
        if k in self.setup.first_critics:
            critic.load_state_dict(self.setup.first_critics[k])
        self.blocks.append(block.to(self.guard.device))
        self.critics.append(critic.to(self.guard.device))
        self.amplitudes.append(self.setup.amplitude(k))

    def _build(self, plan: GroupPlan) -> None:
        s = self.setup
        top = plan.scales[-1]
        pyramid = Pyramid(
            self.blocks[: top + 1],
            self.amplitudes,
            s.injects,
            s.mode,
            s.architecture.noise_channels,
            s.architecture.num_classes,
            s.options.use_wells,
        )
        critics = {k: self.critics[k] for k in plan.scales}
        self.trainer = GroupTrainer(
            plan, pyramid, critics, s.options, self.guard, self.precision, self.run.seed,
            compiled=self.run.compile,
        )  # fmt: skip

    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor | float]:
        """Do one generator-critic iteration."""
        assert self.trainer is not None
        if self.profiler is not None:
            self.profiler.before()
        values: dict[str, Any] = dict(self.trainer.step(batch.to(self.guard.device)))
        if self.profiler is not None:
            self.profiler.after()
        plan = self.trainer.plan
        self._samples_seen += plan.batch_size * distributed.world_size()
        if self.previews is not None:
            self.previews.scalars(step + 1, values, plan.scales)
        values["LearningRate/generator"] = self.trainer.g.lr
        values["LearningRate/discriminator"] = self.trainer.d.lr
        values["Training/Samples_Processed"] = float(self._samples_seen)
        values["Training/Elapsed_Time_Minutes"] = (time.perf_counter() - self._started) / 60
        return values

    def evaluate(self) -> dict[str, float]:
        """Write the run's files and previews, and return scores of the anchors' realisations."""
        scores: dict[str, float] = {}
        if distributed.is_main() and self.previews is not None:
            self.write_files()
            simulator = Simulator(self.card(), self.averaged_blocks(), self.guard.device)
            scores = self.previews.draw(simulator)
        return distributed.broadcast_object(scores)

    def averaged_blocks(self) -> list[ScaleGenerator]:
        """Return copies of all generators with averaged weights."""
        card = self.card()
        return run_files.blocks_from(card, self.weights(), "the model in training")

    def write_files(self) -> None:
        """Write model.pt and the folders of the scales; on rank 0."""
        assert self.trainer is not None and self.previews is not None
        folder, first = self.previews.folder, self.trainer.plan.scales[0]
        absent = [k for k in range(first) if not (folder / str(k) / "generator.pt").is_file()]
        self._write_scales(self.previews, [*absent, *self.trainer.plan.scales])
        model = run_files.model_checkpoint(self.card(), self.weights(), self.config, self.previews.step)
        run_files.checkpoints.save(folder / "model.pt", model)

    def _write_scales(self, previews: Previews, scales: Iterable[int]) -> None:
        """Write the folders of some scales."""
        card, weights = self.card(), self._weights_by_scale()
        for k in scales:
            critic = self.critics[k].state_dict()
            run_files.write_scale(previews.folder, k, card, weights[k], critic, self.config, previews.step)

    def _weights_by_scale(self) -> dict[int, Any]:
        own = self.trainer.averaged() if self.trainer else {}
        return {k: own.get(k) or block.state_dict() for k, block in enumerate(self.blocks)}

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights of all generators."""
        return run_files.flat_weights(self._weights_by_scale())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on."""
        assert self.trainer is not None
        first = self.trainer.plan.scales[0]
        return {
            "group": self.trainer.plan.index,
            "plans": [plan.to_dict() for plan in self.setup.plans],
            "generators": [block.state_dict() for block in self.blocks[:first]],
            "critics": [critic.state_dict() for critic in self.critics[:first]],
            "trainer": self.trainer.state_dict(),
            "amplitudes": list(self.amplitudes),
            "samples_seen": self._samples_seen,
            "fractions": list(self.setup.fractions),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        plan = self.setup.plans[state["group"]]
        self.blocks, self.critics, self.amplitudes, self.trainer = [], [], [], None
        for k in range(plan.scales[-1] + 1):
            self._add_scale(k)
        self.amplitudes = list(state["amplitudes"])
        frozen = zip(state["generators"], state["critics"], strict=True)
        for k, (generator, critic) in enumerate(frozen):
            self.blocks[k].load_state_dict(generator)
            self.critics[k].load_state_dict(critic)
        self._build(plan)
        assert self.trainer is not None
        self.trainer.load_state_dict(state["trainer"])
        self._samples_seen = state["samples_seen"]

    def accept(self, found: Checkpoint) -> None:
        """Refuse to continue a run of other networks or other facies."""
        card = ModelCard.from_dict(found.normalization)
        palette = self.setup.data.palette
        if card.palette != palette:
            raise DataError(
                f"--resume: the model has the facies {card.palette.to_dict()}, these data "
                f"{palette.to_dict()}; use the data of the first start"
            )
        own, theirs = self.setup.architecture, card.architecture
        shared = min(len(own.features), len(theirs.features))
        ours, other = (
            {**asdict(a), "features": list(a.features[:shared]), "padding_mode": mode}
            for a, mode in ((own, self.setup.mode), (theirs, card.mode))
        )
        if ours != other:
            differing = [name for name in ours if ours[name] != other[name]]
            raise DataError(
                f"--resume: the checkpoint has {differing[0]} {other[differing[0]]}, this run "
                f"{ours[differing[0]]}; use the flags of the first start"
            )


def train(options: TrainingOptions, run: RunOptions, origins: dict[str, str] | None = None) -> Result | None:
    """Train as `options` say into `run.out`; None after a dry run.

    Raises:
        UserError: the flags do not fit together, or the output folder cannot be used.
        DataError: bad training data, or nothing to resume from.
        DivergedError: a loss became NaN or infinite.
    """
    run = resolve_run(options, run, origins or {})
    with machine(run) as device, devices.explain_out_of_memory(ADVICE):
        with distributed.shared_errors():
            setup = prepare(options, run, device)
        guard = Guard(device, run.on_nonfinite)
        precision = resolve_precision(run.precision, device)
        task = FaciesTask(setup, guard, precision, run)
        phases = [
            Phase(f"group {plan.index + 1}", plan.iterations, functools.partial(setup.samples.batches, plan))
            for plan in setup.plans
        ]
        _describe(setup, precision)
        if run.dry_run:
            _try_one_batch(task, setup.plans)
            return None
        folder = RunFolder(
            run.out, package=PACKAGE, config=options, options=run, origins=origins, layout=LAYOUT
        )
        with folder:
            if distributed.is_main():
                if not run.resume:
                    run_files.remove_scales(folder.path)
                run_files.write_start(folder.path, options, setup.stored)
            task.previews = Previews(folder.path, setup, run)
            if run.use_profiler and distributed.is_main():
                task.profiler = StepProfiler(folder.path, run.profile_steps, device)
            cadence = Cadence(eval_every=run.eval_every or run.save_every, save_every=run.save_every)
            try:
                result = loop.train(task, phases, folder, setup.loop_options(run), cadence, guard)
                if result.state == "stopped" and distributed.is_main():
                    task.write_files()
                return result
            finally:
                task.previews.close()
                if task.profiler is not None:
                    task.profiler.close()


def _describe(setup: Setup, precision: Precision) -> None:
    """Say the sizes, the groups, the weights and what they need."""
    log = get_logger()
    sizes = ", ".join(f"{h} x {w}" for h, w in setup.samples.sizes[0])
    native = setup.data.sections[0].shape
    classes = setup.data.num_classes
    log.info(f"{len(setup.data)} sections of {native[0]} x {native[1]} cells, {classes} facies")
    log.info(f"scales (H x W): {sizes}; finest cell = {setup.native_cell:.3g} native; padding {setup.mode}")
    generators = sum(parameter_count(b) for b in _networks(setup, ScaleGenerator))
    critics = sum(parameter_count(b) for b in _networks(setup, ScaleCritic))
    log.info(f"{generators:,} parameters in generators, {critics:,} in critics, {precision.name}")
    for plan in setup.plans:
        scales = " ".join(map(str, plan.scales))
        log.info(
            f"group {plan.index + 1}: scales {scales}, {plan.iterations} iterations of {plan.batch_size} "
            f"sections x {plan.draws} draws, windows of {plan.crop}"
        )
    log.info(f"about {setup.memory_bytes() / 2**30:.2f} GiB for activations and data")


def _networks(setup: Setup, kind: Any) -> list[Any]:
    return [kind(setup.architecture, k) for k in range(setup.options.stop_scale + 1)]


def _try_one_batch(task: FaciesTask, plans: Sequence[GroupPlan]) -> None:
    """Run one iteration of every group without keeping anything, and say its shapes and time.

    Of a large batch only a few sections are run: the time grows with their number.
    """
    total = 0.0
    for plan in plans:
        task.start_phase(f"group {plan.index + 1}")
        few = replace(plan, batch_size=min(plan.batch_size, DRY_RUN_SECTIONS))
        batch = task.setup.samples.batch(few, 0)
        for k, real in zip(plan.scales, batch.real, strict=True):
            shapes = ([plan.batch_size, *grid.shape[1:]] for grid in (real, batch.condition[k]))
            get_logger().info("scale {}: sections {}, conditioning {}".format(k, *shapes))
        started = time.perf_counter()
        values = task.step(batch, 0)
        loss = float(values["Mean/G_Total"])
        devices.synchronize(task.guard.device)
        seconds = (time.perf_counter() - started) * plan.batch_size / few.batch_size
        total += seconds * plan.iterations
        told = "" if few == plan else f", reckoned from {few.batch_size} of {plan.batch_size} sections"
        get_logger().info(
            f"group {plan.index + 1}: {seconds:.2f} s an iteration{told}, generator loss {loss:.3g}"
        )
    get_logger().info(f"about {total / 60:.1f} minutes in all on this machine")
