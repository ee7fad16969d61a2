"""Scales that train together: who they are, and their joint forward pass.

Gradients of a fine scale's losses flow through the coarser ones of its group (ConSinGAN, Hinz et al. 2021);
the scales below the group are frozen. Legend as in `generator.py`; m noise draws of each of B sections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from facies_gan.canvas import ScaleBox, part_of, upsample
from facies_gan.config import TrainingOptions
from facies_gan.critic import ScaleCritic
from facies_gan.generator import Pass, ScaleGenerator, run_scale

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class GroupPlan:
    """A group of consecutive scales and how it trains.

    Attributes:
        index: of the group.
        scales: k of its scales, coarse to fine.
        iterations: generator-critic iterations.
        batch_size: sections a process.
        draws: m, noise draws a section.
        crop: window of the scales whose grid is larger.
        diversity: weight of the diversity term.
        variogram: weight of the variogram term.
        connectivity: weight of the connectivity term.
    """

    index: int
    scales: tuple[int, ...]
    iterations: int
    batch_size: int
    draws: int
    crop: int
    diversity: float = 1.0
    variogram: float = 0.0
    connectivity: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GroupPlan:
        """Return what `to_dict` described."""
        return cls(**{**values, "scales": tuple(values["scales"])})


def plan_groups(options: TrainingOptions, earlier: Sequence[GroupPlan] = ()) -> list[GroupPlan]:
    """Return the groups of a training.

    Args:
        options: of the training.
        earlier: groups of a run that is continued: their scales stay together, finer ones follow.
    """
    bounds = [plan.scales for plan in earlier]
    first = bounds[-1][-1] + 1 if bounds else options.start_scale
    for k in range(first, options.stop_scale + 1, options.num_parallel_scales):
        bounds.append(tuple(range(k, min(k + options.num_parallel_scales, options.stop_scale + 1))))
    plans = []
    for index, scales in enumerate(bounds):
        factor = options.coarse_iter_factor if scales[0] == 0 else 1.0
        factor *= _at(options.group_iter_factor, index, 1.0)
        plans.append(
            GroupPlan(
                index,
                scales,
                max(1, round(options.num_iter * factor)),
                _at(options.group_batch_size, index, options.batch_size),
                _at(options.group_diversity_samples, index, options.num_diversity_samples),
                _at(options.group_crop_size, index, options.crop_size),
                _at(options.group_lambda_diversity, index, options.lambda_diversity),
                _at(options.group_lambda_variogram, index, options.lambda_variogram),
                _at(options.group_lambda_connectivity, index, options.lambda_connectivity),
            )
        )
    return plans


def _at(values: tuple[T, ...], index: int, otherwise: T) -> T:
    return values[min(index, len(values) - 1)] if values else otherwise


@dataclass(frozen=True)
class ScaleInput:
    """What one scale of a group reads.

    Attributes:
        noise: [B m, Z, h, w], times its amplitude.
        condition: [B, E, h, w], on the input boxes.
        boxes: of each of the B samples.
        below: boxes of the coarser scale; empty at scale 0.
        rebuilt_prior: [B, C, h, w], what the scale rebuilds the section from; at scale 0 the fixed noise
            [1, Z, h, w] of an anchor; None = no reconstruction in this pass.
        rebuilt_condition: data of the anchor at scale 0, [1, E, h, w].
    """

    noise: torch.Tensor
    condition: torch.Tensor
    boxes: list[ScaleBox]
    below: list[ScaleBox]
    rebuilt_prior: torch.Tensor | None = None
    rebuilt_condition: torch.Tensor | None = None


@dataclass(frozen=True)
class ScaleResult:
    """What one scale of a group gives, on its window.

    Attributes:
        logits: [B m, C, H, W].
        fake: probabilities after injection.
        rebuilt: the reconstruction [B or 1, C, H, W]; None without.
    """

    logits: torch.Tensor
    fake: torch.Tensor
    rebuilt: torch.Tensor | None


class GroupGenerator(nn.Module):
    """The generators of a group.

    Args:
        blocks: by scale.
        injects: whether a scale takes the data's facies at its cells.
        mode: what lies beyond the grid.
        compiled: runs a block through torch.compile.
    """

    def __init__(
        self,
        blocks: dict[int, ScaleGenerator],
        injects: Sequence[bool],
        mode: str,
        compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda block: block,
    ) -> None:
        super().__init__()
        self.scales = sorted(blocks)
        self.blocks = nn.ModuleDict({str(k): blocks[k] for k in self.scales})
        self.injects = list(injects)
        self.mode = mode
        self._run = {k: compiled(blocks[k]) for k in self.scales}
        self._borders = {k: blocks[k].border for k in self.scales}

    def forward(self, previous: torch.Tensor | None, inputs: Sequence[ScaleInput]) -> list[ScaleResult]:
        """Return the results of the group's scales.

        Args:
            previous: [B m, C, h, w], output of the scale below the group on its boxes; None at scale 0.
            inputs: of each scale.
        """
        results = []
        for k, given in zip(self.scales, inputs, strict=True):
            prior = None
            if previous is not None:
                sources = [box.output for box in given.below]
                prior = upsample(previous, sources, [box.input for box in given.boxes], self.mode)
            done, rebuilt = self._one(k, given, prior)
            previous = done.output
            box = given.boxes[0]
            window = [part_of(values, box.output, box.core) for values in (done.logits, done.output)]
            results.append(ScaleResult(window[0], window[1], rebuilt))
        return results

    def _one(self, k: int, given: ScaleInput, prior: torch.Tensor | None) -> tuple[Pass, torch.Tensor | None]:
        """Run the fakes, and with them the reconstruction when there is one."""
        block, border = self._run[k], self._borders[k]
        draws = given.noise.shape[0] // given.condition.shape[0]
        condition = given.condition.repeat_interleave(draws, dim=0)
        if given.rebuilt_prior is None:
            return run_scale(block, border, given.noise, condition, prior, injects=self.injects[k]), None
        if prior is None:  # scale 0 rebuilds an anchor, perhaps of another size
            own = given.rebuilt_condition
            assert own is not None
            again = run_scale(block, border, given.rebuilt_prior, own, None, injects=self.injects[k])
            return run_scale(
                block, border, given.noise, condition, None, injects=self.injects[k]
            ), again.output
        count = given.noise.shape[0]
        silence = given.noise.new_zeros(given.condition.shape[0], *given.noise.shape[1:])
        both = run_scale(
            block,
            border,
            torch.cat([given.noise, silence]),
            torch.cat([condition, given.condition]),
            torch.cat([prior, given.rebuilt_prior]),
            injects=self.injects[k],
        )
        box = given.boxes[0]
        rebuilt = part_of(both.output[count:], box.output, box.core)
        return Pass(both.logits[:count], both.plain[:count], both.output[:count]), rebuilt


class GroupCritic(nn.Module):
    """The critics of a group.

    Args:
        critics: by scale.
    """

    def __init__(self, critics: dict[int, ScaleCritic]) -> None:
        super().__init__()
        self.scales = sorted(critics)
        self.critics = nn.ModuleDict({str(k): critics[k] for k in self.scales})

    def of(self, scale: int) -> ScaleCritic:
        """Return the critic of a scale."""
        return self.critics[str(scale)]  # type: ignore[return-value]

    def forward(
        self, facies: Sequence[torch.Tensor], conditions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the score map of each scale."""
        triples = zip(self.scales, facies, conditions, strict=True)
        return [self.of(k)(x, condition) for k, x, condition in triples]
