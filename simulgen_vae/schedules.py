"""What changes during training, as functions of the step: the weight of the KL terms, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from common.optim import half_cosine, parameter_groups, warmed_up

KL_SCHEDULES = ("linear", "cosine")
LR_SCHEDULES = ("cosine", "warm_restarts")


def adamw_without(module: nn.Module, spared: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over `module`; biases, norms, gains and all of `spared` do not decay."""
    decayed, plain = parameter_groups(module, weight_decay)
    own = {id(p) for p in spared.parameters()}
    plain["params"] += [p for p in decayed["params"] if id(p) in own]
    decayed["params"] = [p for p in decayed["params"] if id(p) not in own]
    return torch.optim.AdamW([decayed, plain], lr=lr, foreach=True)


def kl_weight(progress: float, init: float, start: float, end: float, kind: str = "linear") -> float:
    """Return beta at `progress` in 0..1: `init` up to `start`, then a ramp to 1 at `end`, then 1.

    Args:
        progress: share of the training that is done.
        init: beta before the ramp.
        start: where the ramp begins.
        end: where it ends.
        kind: linear, or cosine for a half cosine.
    """
    if progress >= end:
        return 1.0
    if progress <= start:
        return init
    share = (progress - start) / (end - start)
    if kind == "cosine":
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    return init + (1.0 - init) * share


def cycle_ends(total: int, first: int, factor: int) -> list[int]:
    """Return the ends of the cosine cycles over `total` steps; the last cycle ends exactly at `total`.

    A cycle that would not be whole is given to the one before it.

    Args:
        total: steps.
        first: length of the first cycle, cut to `total`.
        factor: growth from one cycle to the next.
    """
    length = max(1, min(first, total))
    ends = [length]
    while ends[-1] + length * factor <= total:
        length *= factor
        ends.append(ends[-1] + length)
    ends[-1] = total
    return ends


def _cosine(share: float, floor: float) -> float:
    return half_cosine(math.pi * min(1.0, share), floor)


def cosine_factor(total: int, warmup: int, floor: float) -> Callable[[int], float]:
    """Return step -> factor of the learning rate: linear warm-up, one cosine, `floor` at the last step."""
    return warmed_up(warmup, lambda step: _cosine(step / max(1, total - 1 - warmup), floor))


def restarts_factor(total: int, warmup: int, floor: float, first: int, growth: int) -> Callable[[int], float]:
    """Return step -> factor: warm-up, then cosine cycles (SGDR, Loshchilov and Hutter 2017).

    The last cycle is stretched so that the very last step has the factor `floor`.
    """
    ends = cycle_ends(max(1, total - warmup), first, growth)

    def factor(step: int) -> float:
        begin = 0
        for end in ends:
            if step < end:
                return _cosine((step - begin) / max(1, end - 1 - begin), floor)
            begin = end
        return floor

    return warmed_up(warmup, factor)


def lr_schedule(
    optimizer: torch.optim.Optimizer,
    total: int,
    *,
    lr: float,
    eta_min: float,
    warmup_fraction: float,
    kind: str = "cosine",
    first_cycle: int = 1,
    growth: int = 2,
) -> LambdaLR:
    """Return the schedule of the learning rate over `total` steps; it ends at `eta_min`.

    Args:
        optimizer: its base rate is `lr`.
        total: steps.
        lr: peak learning rate.
        eta_min: learning rate of the last step.
        warmup_fraction: share of the steps with a linear warm-up.
        kind: cosine or warm_restarts.
        first_cycle: steps of the first cycle of warm_restarts.
        growth: of the cycles.
    """
    warmup = min(int(warmup_fraction * total), max(0, total - 1))
    floor = min(1.0, eta_min / lr)
    if kind == "warm_restarts":
        return LambdaLR(optimizer, restarts_factor(total, warmup, floor, first_cycle, growth))
    return LambdaLR(optimizer, cosine_factor(total, warmup, floor))
