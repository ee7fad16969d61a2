"""The one step loop: which step comes next, guard, logging, evaluation, saving, signals, resume.

A package brings a `Task`, which owns its networks, optimizers, schedules, scaler and averaged weights. The
loop owns the rest, so that a GAN's alternating updates, a VAE's phases and a supervised step are each some
straight lines in their own `train.py`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence

import torch

from common import checkpoint as checkpoints
from common import device as devices
from common import distributed
from common.checkpoint import Checkpoint
from common.errors import DataError, DivergedError
from common.guard import Guard, NonFiniteError, learning_rates, nonfinite_source
from common.log import RunLog, get_logger
from common.profiling import profiler
from common.run import RunFolder, TrainOptions
from common.store import CheckpointStore
from common.task import Batch, Cadence, Phase, Result, Task


def train(
    task: Task,
    phases: Sequence[Phase],
    folder: RunFolder,
    options: TrainOptions,
    cadence: Cadence,
    guard: Guard,
) -> Result:
    """Train `task` through `phases`, from the start or from where an earlier process stopped.

    Args:
        task: what is trained; its updates must ask `guard` before they change weights.
        phases: in order; steps are counted through all of them.
        folder: of the run, open.
        options: the shared flags.
        cadence: of evaluations and checkpoints; the flags of `options` override it where they are not 0.
        guard: the agreement of the ranks.

    Raises:
        DivergedError: a loss or gradient is not finite, on any rank; no weight was changed by it.
        DataError: no usable checkpoint to resume from, or the disk is full.
    """
    run = _Run(task, phases, folder, options, cadence, guard)
    try:
        with guard:
            return run.run()
    except BaseException as error:
        error.add_note(f"rank {distributed.rank()} of {distributed.world_size()}, step {run.step}")
        with contextlib.suppress(Exception):
            folder.status("failed", step=run.step)
        raise
    finally:
        if run.log is not None:
            run.log.close()


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        task: Task,
        phases: Sequence[Phase],
        folder: RunFolder,
        options: TrainOptions,
        cadence: Cadence,
        guard: Guard,
    ) -> None:
        self.task = task
        self.phases = phases
        self.folder = folder
        self.store = CheckpointStore(folder.checkpoints, folder.layout, options.keep_last)
        self.options = options
        self.cadence = cadence
        self.guard = guard
        self.eval_every = options.eval_every or cadence.eval_every
        self.save_every = options.save_every or cadence.save_every
        self.total = sum(phase.steps for phase in phases)
        self.step = 0
        self.saved_step = self.evaluated_step = -1
        self.best: float | None = None
        self.scores: dict[str, float] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.log: RunLog | None = None

    def run(self) -> Result:
        self._resume()
        layout = self.folder.layout
        self.log = RunLog(
            self.folder.path,
            total_steps=self.total,
            start_step=self.step,
            tensorboard=self.folder.path / layout.tensorboard if self.options.tensorboard else None,
            wandb_project=self.options.wandb,
            config=self.task.config,
        )
        per_epoch = self.cadence.steps_per_epoch
        epochs = f" = {self.total / per_epoch:.4g} epochs of {per_epoch} steps" if per_epoch else ""
        self.log.info(
            f"{self.total} steps{epochs} on {distributed.world_size()} rank(s), {self.guard.device}"
        )
        profiled = self.options.use_profiler and distributed.is_main()
        with profiler(profiled, self.options.profile_steps, self.folder.path / "profile") as window:
            for phase, first in self._phases_left():
                self.task.start_phase(phase.name)
                for batch in phase.batches(self.step - first, phase.steps):
                    self._one_step(batch)
                    window.step()
                    stop_signal = self.guard.should_stop()
                    if stop_signal:
                        return self._stop(stop_signal)
        self._finish()
        return Result("finished", self.step, scores=self.scores, best=self.best)

    def _phases_left(self) -> Iterator[tuple[Phase, int]]:
        first = 0
        for phase in self.phases:
            if self.step < first + phase.steps:
                yield phase, first
            first += phase.steps

    def _one_step(self, batch: Batch) -> None:
        batch = devices.move(batch, self.guard.device)
        try:
            values = self.task.step(batch, self.step)
        except NonFiniteError as error:
            raise self._diverged(error, batch) from error
        self.step += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else torch.as_tensor(value)
            self.counts[name] = self.counts.get(name, 0) + 1
        if self.step % self.options.log_every == 0 or self.step == self.total:
            self._log_window()
        is_best = self._due(self.eval_every) and self._evaluate()
        if is_best or self._due(self.save_every):
            self._save(is_best=is_best)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log_window(self) -> None:
        assert self.log is not None
        names = sorted(self.sums)
        if not names:
            return
        means = [self.sums[name].float().to(self.guard.device) / self.counts[name] for name in names]
        values = dict(zip(names, distributed.reduce_mean(torch.stack(means)).tolist(), strict=True))
        self.log.metrics(self.step, values)
        self.sums, self.counts = {}, {}

    def _evaluate(self) -> bool:
        """Score the task and return whether it is the best so far."""
        assert self.log is not None
        self.evaluated_step = self.step
        state = devices.rng_state(self.guard.device)
        self.scores = self.task.evaluate()
        devices.set_rng_state(state, self.guard.device)
        if not self.scores:
            return False
        self.log.metrics(self.step, self.scores)
        if not self.cadence.best_metric:
            return False
        score = self.scores[self.cadence.best_metric]
        better = self.best is None or (score < self.best if self.cadence.best_is_lower else score > self.best)
        if better and score == score:
            self.best = score
            return True
        return False

    def _finish(self) -> None:
        is_best = self.evaluated_step != self.step and self._evaluate()
        if is_best or self.saved_step != self.step:
            self._save(is_best=is_best)
        self.folder.status("finished", step=self.step)

    def _stop(self, number: int) -> Result:
        assert self.log is not None
        if self.saved_step != self.step:
            self._save(only_last=True)
        self.folder.status("stopped", step=self.step, signal=number)
        name = signal.Signals(number).name
        self.log.info(f"{name}: stopped after step {self.step}; continue with --resume auto")
        return Result("stopped", self.step, number, self.scores, self.best)

    def _save(self, *, is_best: bool = False, only_last: bool = False) -> None:
        """Save the whole state; all ranks take part, rank 0 writes."""
        per_epoch = self.cadence.steps_per_epoch
        loop_state = {
            "best": self.best,
            "scores": self.scores,
            "evaluated_step": self.evaluated_step,
            "sums": dict(self.sums),
            "counts": dict(self.counts),
        }
        state = Checkpoint(
            package=self.task.package,
            kind=self.task.kind,
            config=self.task.config,
            normalization=self.task.normalization,
            state_dict=self.task.weights(),
            training={"task": self.task.state_dict(), "loop": loop_state},
            step=self.step,
            epoch=self.step // per_epoch if per_epoch else 0,
            rng=distributed.gather_objects(devices.rng_state(self.guard.device)),
        )
        with distributed.shared_errors():
            if distributed.is_main():
                self.store.save_last(state) if only_last else self.store.save(state, is_best=is_best)
        self.saved_step = self.step

    def _resume(self) -> None:
        if not self.options.resume:
            return
        path, found = None, None
        with distributed.shared_errors():
            if distributed.is_main():
                path = self.store.find(self.options.resume, self.task.package)
        path = distributed.broadcast_object(path)
        if path is None:
            get_logger().info(f"{self.store.folder}: no checkpoint yet, starting at step 0")
            return
        with distributed.shared_errors():
            found = checkpoints.load(path, package=self.task.package, kinds=[self.task.kind])
            if not found.training:
                raise DataError(f"{path}: an exported model without training state; use a run's checkpoint")
            self.task.accept(found)
        assert found is not None
        self.task.load_state_dict(found.training["task"])
        loop_state = found.training["loop"]
        self.best, self.step = loop_state["best"], found.step
        if path.parent.resolve() == self.store.folder.resolve():  # another run's state is not saved here yet
            self.saved_step = found.step
        self.sums = {name: value.to(self.guard.device) for name, value in loop_state["sums"].items()}
        self.counts = loop_state["counts"]
        self.scores, self.evaluated_step = loop_state["scores"], loop_state["evaluated_step"]
        if len(found.rng) == distributed.world_size():
            devices.set_rng_state(found.rng[distributed.rank()], self.guard.device)
        get_logger().info(f"{path}: continuing after step {self.step}")

    def _diverged(self, error: NonFiniteError, batch: Batch) -> DivergedError:
        last = self.store.last
        good = f"last good checkpoint {last}" if last.exists() else "no checkpoint yet"
        rates = ", ".join(f"{rate:.3g}" for rate in learning_rates(self.task.state_dict()))
        skipped = f" after {error.in_a_row} in a row" if error.in_a_row > 1 else ""
        source = next((s for s in distributed.gather_objects(nonfinite_source(batch)) if s), "")
        cause = f"the batch holds NaN or Inf ({source})" if source else "the input is finite"
        advice = "repair the data" if source else "lower the learning rate or clip gradients"
        diverged = DivergedError(
            f"non-finite at step {self.step}{skipped}: {error.worst()}; learning rate {rates}; {cause}; "
            f"{good}; {advice}"
        )
        diverged.shared = distributed.is_distributed()
        return diverged
