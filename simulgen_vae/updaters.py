"""One optimizer of a phase, with its schedule, averages and guard."""

from __future__ import annotations

from torch import nn

from common import distributed
from common.device import Precision
from common.guard import Guard
from common.optim import Ema, Updater
from simulgen_vae.config import TrainConfig
from simulgen_vae.progress import Lengths
from simulgen_vae.schedules import adamw_without, lr_schedule


def make_updater(
    objective: nn.Module,
    spared: nn.Module,
    config: TrainConfig,
    lengths: Lengths,
    guard: Guard,
    precision: Precision,
    *,
    lr: float,
    weight_decay: float,
    kind: str,
) -> Updater:
    """Return the updater of `objective` over the steps of a phase.

    Args:
        objective: what is minimised, as a module.
        spared: part of it that does not decay beside biases, norms and gains.
        config: of the run.
        lengths: of the phase.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        lr: peak learning rate.
        weight_decay: on matrices.
        kind: of the learning-rate schedule.
    """
    ema = Ema(objective, config.ema) if config.ema else None
    trained = distributed.parallel(objective)
    optimizer = adamw_without(trained, spared, lr, weight_decay)
    schedule = lr_schedule(
        optimizer,
        lengths.steps,
        lr=lr,
        eta_min=config.eta_min,
        warmup_fraction=config.warmup_fraction,
        kind=kind,
        first_cycle=config.lr_t0 * lengths.per_epoch,
        growth=config.lr_t_mult,
    )
    return Updater(
        trained,
        optimizer,
        guard,
        precision,
        schedule=schedule,
        max_norm=config.gradient_clip_val,
        ema=ema,
    )
