"""Which predictors enter the contest, given the number of runs, mesh, symmetry and the time allowed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from common.log import get_logger
from simulgen_vae import direct, field_net, gp2
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.contest import FOLDS, SMALL, Contender
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.pairs import LatentNetPredictor, fit_latent_gp
from simulgen_vae.predictor import TrainingSet

DIRECT_ROWS, DIRECT_ROWS_MIRRORED = 200, 80  # runs from which the plain networks are worth their time
LEAST_STEPS = 600  # of field_net; below it is not tried
GPS, NETS = ("gp2", "vae_gp"), ("vae_net",)
_DIRECT = direct.DirectOptions()


def gp2_contender() -> Contender:
    """Return POD + Gaussian process with two scales."""
    return Contender("gp2", gp2.fit_predictor, lambda p, rows: p.leave_one_out(rows))


def direct_contender(options: direct.DirectOptions | None = None) -> Contender:
    """Return the plain networks; a fold trains one network instead of three."""
    options = options or direct.DirectOptions()
    single = dataclasses.replace(options, num_nets=1)
    return Contender(
        "direct",
        lambda rows: direct.fit_predictor(rows, options),
        fit_fold=lambda rows: direct.fit_predictor(rows, single),
    )


def field_net_contender(steps: int, num_folds: int) -> Contender:
    """Return the grid network, trained for `steps` steps, with `num_folds` folds held out."""
    options = field_net.FieldNetOptions(steps=steps)
    return Contender(
        "field_net",
        lambda rows: field_net.fit_predictor(rows, options),
        num_folds=max(1, num_folds),
        wide=True,
    )


def vae_gp_contender(vae: HierarchicalVae) -> Contender:
    """Return Gaussian processes to the VAE's latents."""
    return Contender("vae_gp", lambda rows: fit_latent_gp(rows, vae), lambda p, rows: p.leave_one_out(rows))


def vae_net_contender(
    vae: HierarchicalVae,
    conditioner: Conditioner,
    refit: Callable[[TrainingSet], Conditioner],
    ensemble: int = 1,
) -> Contender:
    """Return the conditioner that was trained on all rows.

    Args:
        vae: whose decoder stands behind it.
        conditioner: trained on all rows.
        refit: trains another one, on a fold's rows or for the ensemble, with the set's seed.
        ensemble: conditioners that predict together; a fold trains one.
    """
    config = {"kind": "vae_net"}

    def fit(rows: TrainingSet) -> LatentNetPredictor:
        others = [refit(dataclasses.replace(rows, seed=rows.seed + k)) for k in range(1, ensemble)]
        return LatentNetPredictor(config, vae, conditioner, others).eval()

    return Contender(
        "vae_net",
        fit,
        fit_fold=lambda rows: LatentNetPredictor(config, vae, refit(rows)).eval(),
    )


def direct_is_worth_it(train: TrainingSet) -> bool:
    """Tell whether there are enough rows for the plain networks."""
    return len(train) >= (DIRECT_ROWS if train.symmetry is None else DIRECT_ROWS_MIRRORED)


def direct_seconds(train: TrainingSet, options: direct.DirectOptions) -> float:
    """Return the CPU time of all trainings of the plain networks, from that of two epochs of one."""

    def cost(epochs: int) -> float:
        started = time.process_time()
        direct.fit_predictor(train, dataclasses.replace(options, num_nets=1, epochs=epochs))
        return time.process_time() - started

    short = cost(1)
    per_epoch = max(cost(3) - short, 0.02 * short) / 2
    trainings = options.num_nets + (0 if len(train) >= SMALL else FOLDS)
    return per_epoch * options.epochs * trainings


def plan_field_net(train: TrainingSet, max_cpu_s: float, *, force: bool = False) -> tuple[int, int]:
    """Return (optimizer steps of a training, folds held out) that `max_cpu_s` allows; (0, 0) = leave it.

    A few steps are timed first. Where time is short, folds are given up before steps: a network that was
    trained too little would lose a contest that it should win.
    """
    if not field_net.fits(train):
        return 0, 0
    wanted = field_net.steps_for(len(train) * (1 if train.symmetry is None else 2))
    most = 0 if len(train) >= SMALL else FOLDS
    if force:
        return wanted, most
    affordable = int(max_cpu_s / max(seconds_per_step(train), 1e-6))
    for folds in range(most, 0, -1):
        if affordable // (folds + 1) >= wanted:
            return wanted, folds
    least = min(most, 1)
    steps = min(wanted, affordable // (least + 1))
    return (steps, least) if steps >= LEAST_STEPS else (0, 0)


def seconds_per_step(train: TrainingSet) -> float:
    """Return the CPU time of one optimizer step of field_net, measured on a few rows."""
    few = train.subset(torch.arange(min(len(train), 8)))

    def cost(steps: int) -> float:
        started = time.process_time()
        field_net.fit_predictor(few, field_net.FieldNetOptions(steps=steps))
        return time.process_time() - started

    short = cost(1)
    return max(cost(4) - short, 0.1 * short) / 3


def choose_contenders(
    train: TrainingSet,
    *,
    conditioner: str = "auto",
    field_net_flag: str = "auto",
    max_cpu_s: float = 600.0,
    direct_options: direct.DirectOptions | None = None,
    latent: tuple[Contender, ...] = (),
) -> list[Contender]:
    """Return the contenders for `--conditioner`, gp2 always first.

    Args:
        train: the training rows.
        conditioner: auto, net, gp, direct or field_net.
        field_net_flag: auto, on or off.
        max_cpu_s: CPU seconds for those whose cost can be chosen.
        direct_options: of the plain networks.
        latent: the contenders through the VAE (vae_net, vae_gp), where they exist.
    """
    chosen = [gp2_contender()]
    wanted = {"net": NETS, "gp": GPS}.get(conditioner, (*GPS, *NETS) if conditioner == "auto" else ())
    chosen += [c for c in latent if c.name in wanted]
    if conditioner == "direct" or (conditioner == "auto" and direct_is_worth_it(train)):
        seconds = 0.0 if conditioner == "direct" else direct_seconds(train, direct_options or _DIRECT)
        if seconds <= max_cpu_s:
            chosen.append(direct_contender(direct_options))
        else:
            get_logger().info("direct: left out, about %.0f CPU s, --max_cpu_s %g", seconds, max_cpu_s)
    force = field_net_flag == "on" or conditioner == "field_net"
    if force or (field_net_flag == "auto" and conditioner == "auto"):
        steps, num_folds = plan_field_net(train, max_cpu_s, force=force)
        if steps:
            chosen.append(field_net_contender(steps, num_folds))
        else:
            get_logger().info(
                "field_net: left out (no regular grid, or --max_cpu_s %g is too little)", max_cpu_s
            )
    return chosen
