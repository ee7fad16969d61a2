"""How far each phase of a training is, and what its best result was."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import nn

from common import device as devices
from common import distributed
from common.checkpoint import plain_weights
from common.errors import UserError
from common.log import get_logger
from common.sampling import steps_of

VAE, CONDITIONER, END_TO_END = "vae", "conditioner", "end_to_end"
PHASES = (VAE, CONDITIONER, END_TO_END)
PACE_STEPS = 10
Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Of one phase: steps done, best score and its weights, evaluations without gain, stopped early."""

    done: int = 0
    score: float = float("inf")
    weights: Weights = field(default_factory=dict)
    stale: int = 0
    stopped: bool = False

    def offer(self, score: float, patience: int) -> bool:
        """Take note of a score; return whether it is the best. After `patience` others the phase stops."""
        better = score < self.score
        self.score = min(score, self.score)
        self.stale = 0 if better else self.stale + 1
        self.stopped = self.stopped or bool(patience and self.stale >= patience)
        return better


class Pace:
    """How fast a training goes and what memory it takes, as of its latest steps.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # An accelerator works behind the host's back: only several steps together tell its speed.
        self._ends: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS + 1)

    def step(self, samples: int) -> dict[str, float]:
        """Take note of the end of a step of `samples` a process; return samples a second and peak memory."""
        self._ends.append((time.perf_counter(), samples))
        found = {"peak_memory_gib": devices.peak_memory_bytes(self.device) / 2**30}
        seconds = self._ends[-1][0] - self._ends[0][0]
        if seconds > 0:
            done = sum(count for _, count in list(self._ends)[1:]) * distributed.world_size()
            found["samples_per_s"] = done / seconds
        return found

    def pause(self) -> None:
        """Forget the steps so far: what comes now is no training."""
        self._ends.clear()


@dataclass(frozen=True)
class Lengths:
    """Of one phase: steps in all, steps an epoch, samples a process and step."""

    steps: int
    per_epoch: int
    batch: int


def lengths_of(epochs: int, batch: int, num_rows: int, flag: str) -> Lengths:
    """Return the steps of `epochs` epochs; a batch larger than the data is clipped, with a warning.

    Raises:
        UserError: there are fewer rows than processes.
    """
    world = distributed.world_size()
    most = num_rows // world
    if most < 1:
        raise UserError(f"{num_rows} training rows on {world} processes: expected one a process; use fewer")
    if batch > most:
        get_logger().warning("warning: --%s %d clipped to %d, the training rows a process", flag, batch, most)
    batch = min(batch, most)
    return Lengths(steps_of(epochs, num_rows, batch * world), steps_of(1, num_rows, batch * world), batch)


def plain_copy(module: nn.Module) -> Weights:
    """Return a copy of the weights of `module` on the CPU, which later updates leave alone."""
    return {name: value.clone() for name, value in plain_weights(module).items()}


def part_of(weights: Weights, name: str) -> Weights:
    """Return the weights under the prefix `name.`, without it."""
    return {key[len(name) + 1 :]: value for key, value in weights.items() if key.startswith(f"{name}.")}
