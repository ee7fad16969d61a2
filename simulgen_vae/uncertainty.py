"""Error bars: a standard deviation for every node and frame, calibrated by split conformal prediction.

Letters: B batch, n rows, T frames, M nodes, V fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.errors import UserError
from common.noise import numpy_stream
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet
from simulgen_vae.split import Split

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis
    from simulgen_vae.contest import Contest

NUM_DRAWS = 16
LEAST_ROWS = 9  # of calibration; fewer cannot promise 90 %
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
    """

    residual_std: torch.Tensor
    factor: float
    coverage: float
    num_rows: int
    reason: str = ""


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


def held_out_scores(
    basis: Basis,
    contest: Contest,
    residual: torch.Tensor,
    coverage: float,
    truth: Truth | None = None,
    *,
    seed: int = 0,
) -> torch.Tensor:
    """Return the score of every row of a contest, predicted by one who had not seen it, [n].

    Cross-conformal prediction (Vovk 2015; Barber et al. 2021, jackknife+): each training row serves once. Its
    own residual is taken out of the `residual` that scales it. `truth` as in `calibrate`.
    """
    rows, scores = contest.rows, []
    for i, found in enumerate(contest.held_out):
        error = basis.decode(found) - _true_field(rows, i, truth)
        rest = without_own(residual, error, len(contest.held_out))
        with torch.no_grad():
            own = _spread(basis, found + contest.spread(i, NUM_DRAWS, seed))
        scores.append(trajectory_score(error, torch.sqrt(own + rest.square()), coverage))
    return torch.tensor(scores, dtype=torch.float64)


def without_own(residual: torch.Tensor, error: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return `residual_std` of the other rows, given that of all and the error of one, [T, M, V]."""
    if num_rows < 2:
        return residual
    square = residual.double().square()
    others = (num_rows * square - error.double().square()) / (num_rows - 1)
    return torch.sqrt(torch.maximum(others, FLOOR**2 * square.mean())).float()


def trajectory_score(error: torch.Tensor, std: torch.Tensor, coverage: float) -> float:
    """Return the `coverage` quantile over all points of |error|/std: the factor that holds that share."""
    ratio = (error.abs() / std).flatten()
    k = min(ratio.numel(), max(1, math.ceil(coverage * ratio.numel())))
    return float(ratio.kthvalue(k).values)


def conformal_factor(scores: torch.Tensor, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest of n exchangeable scores.

    The score of a new trajectory is at most this with probability `coverage` or more (Vovk et al. 2005;
    Angelopoulos and Bates 2023, arXiv 2107.07511, section 1).

    Raises:
        UserError: there are too few scores for this coverage.
    """
    n = len(scores)
    k = math.ceil(round((n + 1) * coverage, 9))
    if n < LEAST_ROWS or k > n:
        least = max(LEAST_ROWS, math.ceil(coverage / (1 - coverage) - 1e-9))
        raise UserError(
            f"{n} calibration trajectories, expected {least} or more for --coverage {coverage:g}; "
            "raise --val_fraction or lower --coverage"
        )
    return float(scores.double().sort().values[k - 1])


def calibrate(
    predictor: Predictor,
    rows: TrainingSet,
    truth: Truth | None,
    residual: torch.Tensor,
    coverage: float,
    *,
    more_scores: Sequence[float] = (),
    seed: int = 0,
) -> Calibration:
    """Return the calibration from rows that the predictor has not learned from; refused below 9 scores.

    Args:
        predictor: what ships.
        rows: calibration rows.
        truth: index of a row -> its field [T, M, V]; None = decoded from its coefficients, which leaves out
            what the basis does not hold.
        residual: [T, M, V] of `held_out_residual_std`.
        coverage: share of points, 0..1.
        more_scores: of `held_out_scores`, where there are too few rows to calibrate on.
        seed: of the draws.
    """
    scores = list(more_scores)
    for i in range(len(rows)):
        one = rows.subset(torch.tensor([i]))
        inputs = one.inputs()
        with torch.no_grad():
            found = rows.basis.decode(predictor(inputs)[0])
        std = field_std(predictor, inputs, rows.basis, residual, seed=seed)[0]
        scores.append(trajectory_score(found - _true_field(rows, i, truth), std, coverage))
    try:
        factor, reason = conformal_factor(torch.tensor(scores), coverage), ""
    except UserError as error:
        factor, reason = 0.0, str(error)
    return Calibration(residual, factor, coverage, len(scores), reason)


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
