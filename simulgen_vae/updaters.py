"""The optimizers of a phase: what it minimises, with schedule, averages and guard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common import distributed
from common.device import Precision
from common.guard import Guard
from common.optim import Ema, Updater
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.config import TrainConfig
from simulgen_vae.losses import LOSS_TYPES
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.objectives import (
    ConditionerObjective,
    EndToEndObjective,
    Penalty,
    Reconstruction,
    VaeObjective,
)
from simulgen_vae.progress import CONDITIONER, END_TO_END, VAE, Lengths
from simulgen_vae.schedules import adamw_without, lr_schedule

E2E_TRANSITION = 0.1


@dataclass(frozen=True, eq=False)
class UpdateContext:
    """What the updaters of a phase need beside the networks.

    Attributes:
        config: of the run.
        lengths: of the phase.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        modes: Phi [D, r_s] where a loss decodes fields, else None.
        penalty: further loss of reconstructed coefficients.
    """

    config: TrainConfig
    lengths: Lengths
    guard: Guard
    precision: Precision
    modes: torch.Tensor | None
    penalty: Penalty | None

    def reconstruction(self, phase: str) -> Reconstruction:
        """Return the reconstruction loss of a phase."""
        c = self.config
        if phase == END_TO_END:
            return Reconstruction(c.e2e_loss_function, E2E_TRANSITION, self.modes, penalty=self.penalty)
        return Reconstruction(LOSS_TYPES[c.loss_type], modes=self.modes, penalty=self.penalty)


def phase_updaters(
    name: str, vae: HierarchicalVae, conditioner: Conditioner | None, context: UpdateContext
) -> dict[str, Updater]:
    """Return the updaters of a phase by name; what it must not change asks for no gradients."""
    c = context.config
    vae.requires_grad_(name == VAE)
    if name == VAE:
        objective = VaeObjective(vae, context.reconstruction(name), c.alpha, c.free_bits)
        made = {VAE: make_updater(objective, vae.linear, context, c.lr, c.weight_decay, c.lr_schedule)}
        if c.joint_conditioner and conditioner is not None:
            joint = ConditionerObjective(conditioner)
            made[CONDITIONER] = make_updater(
                joint, vae.linear, context, c.lc_lr, c.lc_weight_decay, c.lr_schedule
            )
        return made
    assert conditioner is not None
    if name == CONDITIONER:
        chosen: nn.Module = ConditionerObjective(conditioner)
    else:
        vae.decoder.requires_grad_(c.e2e_train_decoder)
        for level in vae.decoder.levels:
            level.prior.requires_grad_(False)  # means are decoded: no prior takes part
        weight = c.latent_reg_weight if c.use_latent_regularization else 0.0
        chosen = EndToEndObjective(conditioner, vae, context.reconstruction(name), c.lc_alpha, weight)
    return {name: make_updater(chosen, vae.linear, context, c.lc_lr, c.lc_weight_decay, "cosine")}


def make_updater(
    objective: nn.Module,
    spared: nn.Module,
    context: UpdateContext,
    lr: float,
    weight_decay: float,
    kind: str,
) -> Updater:
    """Return the updater of `objective` over the steps of a phase.

    Args:
        objective: what is minimised, as a module.
        spared: part of it that does not decay beside biases, norms and gains.
        context: of the phase.
        lr: peak learning rate.
        weight_decay: on matrices.
        kind: of the learning-rate schedule.
    """
    config, lengths = context.config, context.lengths
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
        context.guard,
        context.precision,
        schedule=schedule,
        max_norm=config.gradient_clip_val,
        ema=ema,
    )
