"""The last phase: predictors compete, one ships, its error bars are calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.log import get_logger
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.config import TrainConfig
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.predictor import Predictor, TrainingSet
from simulgen_vae.refit import RefitOptions, fit_conditioner
from simulgen_vae.uncertainty import (
    Calibration,
    Truth,
    calibrate,
    held_out_profiles,
    held_out_residual_std,
)

if TYPE_CHECKING:
    from simulgen_vae.contest import Contender, Contest, Fields

ONLY = {"net": "vae_net", "gp": "gp2", "direct": "direct", "field_net": "field_net", "auto": "vae_net"}
SHOWN = ("vae_gp", "gp2")  # in every evaluation, whoever won
FOLDS_AND_ONE = 6  # trainings of the conditioner that share --max_cpu_s


@dataclass(frozen=True, eq=False)
class Outcome:
    """The contest, and the calibration of its winner."""

    contest: Contest
    calibration: Calibration

    @property
    def beaten(self) -> dict[str, Predictor]:
        """The fitted predictors that an evaluation shows beside the one that ships, by name."""
        found, ships = self.contest.candidates, self.contest.winner.name
        return {name: found[name].predictor for name in SHOWN if name in found and name != ships}


def hold_contest(
    config: TrainConfig,
    vae: HierarchicalVae,
    conditioner: Conditioner | None,
    train: TrainingSet,
    validation: TrainingSet,
    calibration: TrainingSet,
    seed: int,
    *,
    fields: Fields | None = None,
    set_apart: bool = False,
) -> Outcome:
    """Fit the predictors that `config` asks for, let them compete, and calibrate the winner.

    Args:
        config: of the run.
        vae: trained, on the CPU.
        conditioner: trained, on the CPU.
        train: training samples.
        validation: samples that choose, where there are many.
        calibration: samples for the error bars.
        seed: of the draws.
        fields: the true fields; None = decoded coefficients, which leave out what the basis does not hold.
        set_apart: `calibration` was kept for that alone; else, being few, what the contest held out joins it.
    """
    from simulgen_vae.contest import run_contest

    contenders = contenders_of(config, vae, conditioner, train)
    contest = run_contest(contenders, train, validation, fields)
    truth = truth_of(contest.rows, fields)
    residual = held_out_residual_std(train.basis, contest.held_out, contest.rows, truth)
    more = None
    if not set_apart and not contest.by_validation:
        more = held_out_profiles(train.basis, contest, residual, truth, seed=seed)
    own, over = truth_of(calibration, fields), config.coverage_over
    bars = calibrate(
        contest.winner, calibration, own, residual, config.coverage, more=more, over=over, seed=seed
    )
    if bars.reason:
        get_logger().warning("warning: no calibrated error bars: %s", bars.reason)
    return Outcome(contest, bars)


def truth_of(rows: TrainingSet, fields: Fields | None) -> Truth | None:
    """Return what gives the true field of the i-th of some rows; None without fields."""
    numbers = rows.rows
    if fields is None or numbers is None:
        return None
    return lambda i: fields(int(numbers[i]))


def contenders_of(
    config: TrainConfig, vae: HierarchicalVae, conditioner: Conditioner | None, train: TrainingSet
) -> list[Contender]:
    """Return the predictors that `config` asks for; without --guard the one that ships."""
    from simulgen_vae.contenders import choose_contenders, vae_gp_contender, vae_net_contender

    latent = [vae_gp_contender(vae)]
    if conditioner is not None:
        shape = conditioner.shape
        refit_options = RefitOptions(
            epochs=config.lc_epochs,
            batch=config.lc_batch_size,
            lr=config.lc_lr,
            weight_decay=config.lc_weight_decay,
            max_cpu_s=config.max_cpu_s / (FOLDS_AND_ONE + config.ensemble - 1),
        )

        def refit(rows: TrainingSet) -> Conditioner:
            return fit_conditioner(rows, vae, shape, refit_options)

        latent.append(vae_net_contender(vae, conditioner, refit, config.ensemble))
    found = choose_contenders(
        train,
        conditioner=config.conditioner,
        field_net_flag=config.field_net,
        max_cpu_s=config.max_cpu_s,
        latent=tuple(latent),
    )
    if config.guard:
        return found
    chosen = [c for c in found if c.name == ONLY[config.conditioner]] or found[:1]
    get_logger().info("--guard 0: %s ships without a contest", chosen[0].name)
    return chosen
