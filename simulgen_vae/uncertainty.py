"""Error bars: a standard deviation for every node and frame, calibrated by split conformal prediction.

Letters: B batch, n rows, T frames, M nodes, V fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.conformal import conformal_rank
from common.errors import UserError
from common.noise import numpy_stream
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet
from simulgen_vae.split import Split

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis
    from simulgen_vae.contest import Contest

NUM_DRAWS = 16
LEAST_ROWS = 9  # of calibration; fewer cannot promise 90 %
OVER = ("auto", "points", "trajectories")  # what --coverage is a share of
POINTS_FROM = 19  # rows from which "auto" counts points; with fewer their rule leaves out next to none
LEVELS = 1000  # steps of a profile
SEPARATE_FROM = 200  # runs from which a tenth is kept for calibration alone
FLOOR = 1e-4  # of the root mean square residual: no point is certain


Truth = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """What turns a standard deviation into a band.

    Attributes:
        residual_std: [T, M, V] root mean square held-out residual, physical units.
        factor: half width of the band in standard deviations; 0 = refused.
        coverage: share of points that a band is to hold.
        num_rows: trajectories whose scores calibrated.
        reason: why there is no factor; "" when there is.
        over: "points": the mean share over trajectories is `coverage`; "trajectories": a trajectory has that
            share with probability `coverage`.
    """

    residual_std: torch.Tensor
    factor: float
    coverage: float
    num_rows: int
    reason: str = ""
    over: str = "trajectories"


def residual_std(errors2: torch.Tensor) -> torch.Tensor:
    """Return the root mean square over rows of squared residuals [n, T, M, V], floored above 0."""
    mean = errors2.double().mean(0)
    return torch.sqrt(mean + (FLOOR**2) * mean.mean() + 1e-60).float()


def held_out_residual_std(
    basis: Basis, held_out: torch.Tensor, rows: TrainingSet, truth: Truth | None = None
) -> torch.Tensor:
    """Return `residual_std` of held-out predictions c_hat [n, r_s, T] of `rows`, one by one."""
    total: torch.Tensor | None = None
    for i, found in enumerate(held_out):
        square = (basis.decode(found) - _true_field(rows, i, truth)).double().square()
        total = square if total is None else total + square
    if total is None:
        raise ValueError("no rows to take residuals of")
    return residual_std((total / len(held_out))[None])


def _true_field(rows: TrainingSet, i: int, truth: Truth | None) -> torch.Tensor:
    return rows.basis.decode(rows.c[i]) if truth is None else truth(i)


def field_std(
    predictor: Predictor,
    inputs: Inputs,
    basis: Basis,
    residual: torch.Tensor,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> torch.Tensor:
    """Return the standard deviation of the predicted fields, [B, T, M, V], physical units.

    std^2 = s^2(x) + residual^2, s the spread of seeded draws of the predictor, decoded. Every row is drawn
    for alone: its bar does not depend on its batch.
    """
    rows = []
    with torch.no_grad():
        for b in range(len(inputs.params)):
            one = inputs.rows(slice(b, b + 1))
            draws = predictor.draws(one, num_draws, seed)[:, 0]
            rows.append(_spread(basis, draws))
        return torch.sqrt(torch.stack(rows) + residual.square())


def _spread(basis: Basis, draws: torch.Tensor) -> torch.Tensor:
    """Return the variance over draws [k, r_s, T] of the decoded fields, [T, M, V], one draw in memory."""
    centre = basis.decode(draws.mean(0))
    total = torch.zeros_like(centre)
    for draw in draws:
        total += (basis.decode(draw) - centre).square()
    return total / max(1, len(draws) - 1)


def held_out_profiles(
    basis: Basis,
    contest: Contest,
    residual: torch.Tensor,
    truth: Truth | None = None,
    *,
    seed: int = 0,
) -> torch.Tensor:
    """Return the profile of every row of a contest, predicted by one who had not seen it, [n, LEVELS + 1].

    Cross-conformal prediction (Vovk 2015; Barber et al. 2021, jackknife+): each training row serves once. Its
    own residual is taken out of the `residual` that scales it. `truth` as in `calibrate`.
    """
    rows, profiles = contest.rows, []
    for i, found in enumerate(contest.held_out):
        error = basis.decode(found) - _true_field(rows, i, truth)
        rest = without_own(residual, error, len(contest.held_out))
        with torch.no_grad():
            own = _spread(basis, found + contest.spread(i, NUM_DRAWS, seed))
        profiles.append(ratio_profile(error, torch.sqrt(own + rest.square())))
    return torch.stack(profiles)


def without_own(residual: torch.Tensor, error: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return `residual_std` of the other rows, given that of all and the error of one, [T, M, V]."""
    if num_rows < 2:
        return residual
    square = residual.double().square()
    others = (num_rows * square - error.double().square()) / (num_rows - 1)
    return torch.sqrt(torch.maximum(others, FLOOR**2 * square.mean())).float()


def ratio_profile(error: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return the quantiles of |error|/std over all points at the levels 0..LEVELS / LEVELS, [LEVELS + 1].

    A band of `profile[k]` standard deviations holds a share k / LEVELS of the points, or more.
    """
    ratio = np.sort((error.abs() / std).double().flatten().numpy())
    ends = -(-np.arange(LEVELS + 1) * ratio.size // LEVELS)
    return torch.from_numpy(ratio[np.maximum(ends, 1) - 1])


def trajectory_scores(profiles: torch.Tensor, coverage: float) -> torch.Tensor:
    """Return the factor that holds the share `coverage` of the points of each trajectory, [n]."""
    return profiles[:, min(LEVELS, math.ceil(round(coverage * LEVELS, 6)))]


def _require_rows(num_rows: int, coverage: float) -> None:
    least = max(LEAST_ROWS, math.ceil(coverage / (1 - coverage) - 1e-9))
    if num_rows < least:
        raise UserError(
            f"{num_rows} calibration trajectories, expected {least} or more for --coverage {coverage:g}; "
            "raise --val_fraction or lower --coverage"
        )


def points_factor(profiles: torch.Tensor, coverage: float) -> float:
    """Return the least factor whose band holds `coverage` of a new trajectory's points in the mean.

    (n R(factor) + 1) / (n + 1) <= 1 - coverage, R the mean share of points outside over n exchangeable
    trajectories: conformal risk control with a loss of at most 1 (Angelopoulos, Bates, Fisch, Lei and
    Schuster 2024, arXiv 2208.02814, theorems 1 and 2). It is conservative by at most 2 / (n + 1), however
    unlike the trajectories are; a band in which nine of ten trajectories have nine tenths of their points
    holds far more than that in the mean.

    Raises:
        UserError: there are too few trajectories for this coverage.
    """
    _require_rows(len(profiles), coverage)
    rows = profiles.double().numpy()
    allowed = (1 - coverage) * (len(rows) + 1) - 1 + 1e-9  # sum of the shares outside

    def is_enough(factor: float) -> bool:
        inside = np.maximum((rows <= factor).sum(1) - 1, 0) / LEVELS
        return float((1.0 - inside).sum()) <= allowed

    candidates = np.unique(rows)
    low, high = 0, len(candidates) - 1  # the largest leaves nothing outside
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(candidates[middle]) else (middle + 1, high)
    return float(candidates[high])


def factor_of(profiles: torch.Tensor, coverage: float, over: str) -> tuple[float, str]:
    """Return the factor of some calibration trajectories, and which of the two rules gave it."""
    if over == "auto":
        over = "points" if len(profiles) >= POINTS_FROM else "trajectories"
    if over == "points":
        return points_factor(profiles, coverage), over
    return conformal_factor(trajectory_scores(profiles, coverage), coverage), over


def conformal_factor(scores: torch.Tensor, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest of n exchangeable scores.

    The score of a new trajectory is at most this with probability `coverage` or more.

    Raises:
        UserError: there are too few scores for this coverage.
    """
    _require_rows(len(scores), coverage)
    return float(scores.double().sort().values[conformal_rank(len(scores), coverage) - 1])


def calibrate(
    predictor: Predictor,
    rows: TrainingSet,
    truth: Truth | None,
    residual: torch.Tensor,
    coverage: float,
    *,
    more: torch.Tensor | None = None,
    over: str = "auto",
    seed: int = 0,
) -> Calibration:
    """Return the calibration from rows that the predictor has not learned from; refused below 9 of them.

    Args:
        predictor: what ships.
        rows: calibration rows.
        truth: index of a row -> its field [T, M, V]; None = decoded from its coefficients, which leaves out
            what the basis does not hold.
        residual: [T, M, V] of `held_out_residual_std`.
        coverage: share of points, 0..1.
        more: of `held_out_profiles`, where there are too few rows to calibrate on.
        over: of `OVER`.
        seed: of the draws.
    """
    profiles = [] if more is None else list(more)
    for i in range(len(rows)):
        one = rows.subset(torch.tensor([i]))
        inputs = one.inputs()
        with torch.no_grad():
            found = rows.basis.decode(predictor(inputs)[0])
        std = field_std(predictor, inputs, rows.basis, residual, seed=seed)[0]
        profiles.append(ratio_profile(found - _true_field(rows, i, truth), std))
    every = torch.stack(profiles) if profiles else torch.zeros(0, LEVELS + 1)
    try:
        (factor, rule), reason = factor_of(every, coverage, over), ""
    except UserError as error:
        factor, rule, reason = 0.0, over, str(error)
    return Calibration(residual, factor, coverage, len(profiles), reason, rule)


def calibration_rows(train: torch.Tensor, num_samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows to train on, rows kept for calibration): a tenth of all from `SEPARATE_FROM` runs on.

    With fewer runs nothing is set aside: the validation split and what the contest held out calibrate.
    """
    if num_samples < SEPARATE_FROM:
        return train, train[:0]
    count = min(round(0.1 * num_samples), len(train) // 2)
    order = torch.from_numpy(numpy_stream(seed, "calibration rows").permutation(len(train)))
    return train[order[count:].sort().values], train[order[:count].sort().values]


def keep_for_calibration(split: Split, num_samples: int, seed: int) -> tuple[Split, np.ndarray]:
    """Return the split without the rows kept for calibration, and those; validation serves in small data."""
    train_rows, kept = calibration_rows(torch.from_numpy(split.train), num_samples, seed)
    return Split(train_rows.numpy(), split.validation, split.test), kept.numpy()
