"""What a package hands to the loop: its task, the phases of training, when to evaluate; what comes back."""

from __future__ import annotations

import abc
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from common.checkpoint import Checkpoint
from common.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED_EARLY

Batch = Any


class Task(abc.ABC):
    """What a package trains.

    Attributes:
        package: the package's name.
        kind: which of its networks.
        config: the resolved configuration, plain values.
        normalization: state of the normalisers, plain values.
    """

    package: str
    kind: str = ""
    config: dict[str, Any]
    normalization: dict[str, Any]

    @abc.abstractmethod
    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor | float]:
        """Do optimizer step `step` (from 0) on `batch` and return named scalars, left on the device."""

    @abc.abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Return named scores of the current weights, equal on all ranks; {} when there is none."""

    @abc.abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that inference uses, under plain names."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything beside the step that the next step depends on."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def start_phase(self, name: str) -> None:  # noqa: B027 - most tasks have one phase
        """Prepare for the phase `name`; called when it begins and when a run resumes in it."""

    def accept(self, found: Checkpoint) -> None:  # noqa: B027 - the package and kind are checked already
        """Raise DataError when this task cannot continue from `found`, naming both."""


@dataclass(frozen=True)
class Phase:
    """A stretch of steps over one source of batches.

    Attributes:
        name: told to the task when the phase begins.
        steps: optimizer steps in it.
        batches: (first, stop) -> the batches of the phase's steps first..stop-1, a pure function of the step.
    """

    name: str
    steps: int
    batches: Callable[[int, int], Iterable[Batch]]


@dataclass(frozen=True)
class Cadence:
    """When to evaluate and save, in steps (0 = only at the end), and what is best.

    Attributes:
        eval_every: steps between evaluations.
        save_every: steps between numbered checkpoints.
        steps_per_epoch: to count epochs; 0 when there are none.
        best_metric: name of the score that chooses the best checkpoint; "" keeps none.
        best_is_lower: whether lower is better.
    """

    eval_every: int = 0
    save_every: int = 0
    steps_per_epoch: int = 0
    best_metric: str = ""
    best_is_lower: bool = True


@dataclass
class Result:
    """How a training ended: `state` is "finished" or "stopped" (by `signal`), after `step` steps."""

    state: str
    step: int
    signal: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    best: float | None = None

    @property
    def exit_code(self) -> int:
        """The exit code that tells it to the shell."""
        if self.state == "finished":
            return EXIT_DONE
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_STOPPED_EARLY
