"""Error bars: split conformal promises, refusals, and a spread that is that of the draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.noise import numpy_stream
from simulgen_vae import gp2
from simulgen_vae.contenders import direct_contender, gp2_contender
from simulgen_vae.contest import enter, pair_spread, run_contest
from simulgen_vae.direct import DirectOptions
from simulgen_vae.gp import GaussianProcess
from simulgen_vae.predictor import Inputs, Predictor
from simulgen_vae.predictors_phase import hold_contest
from simulgen_vae.uncertainty import (
    calibrate,
    calibration_rows,
    conformal_factor,
    factor_of,
    field_std,
    held_out_profiles,
    held_out_residual_std,
    points_factor,
    ratio_profile,
    residual_std,
    trajectory_scores,
    without_own,
)
from tests.simulgen_vae.cases_predictors import FRAMES, bumps, rows_for, training_set
from tests.simulgen_vae.cases_vae import config, tiny_vae


@pytest.mark.parametrize("num", [9, 19, 60])
def test_conformal_covers(num: int):
    """Over many sets of exchangeable scores the factor holds a new one in 90 % of cases, never much less."""
    rng = numpy_stream(0, "test conformal", num)
    held = [
        float(rng.lognormal()) <= conformal_factor(torch.from_numpy(rng.lognormal(size=num)), 0.9)
        for _ in range(3000)
    ]
    exact = np.ceil((num + 1) * 0.9) / (num + 1)
    assert np.mean(held) == pytest.approx(exact, abs=0.02)
    assert np.mean(held) >= 0.9 - 0.02


def test_covers_090_with_many():
    """With 199 scores the coverage is 0.90 within 0.03."""
    rng = numpy_stream(1, "test conformal")
    held = [
        float(rng.exponential()) <= conformal_factor(torch.from_numpy(rng.exponential(size=199)), 0.9)
        for _ in range(1500)
    ]
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("num", "coverage"), [(8, 0.5), (8, 0.9), (15, 0.99), (0, 0.9)])
def test_too_few_are_refused(num: int, coverage: float):
    """Fewer than nine scores, or fewer than the coverage asks for, are refused with the number needed."""
    with pytest.raises(UserError, match="calibration trajectories, expected"):
        conformal_factor(torch.rand(num), coverage)


def test_score_holds_its_share():
    """A band of the score's width holds just the share of points that it was asked for."""
    rng = numpy_stream(0, "test score")
    error, std = torch.from_numpy(rng.standard_normal(1000)), torch.from_numpy(rng.uniform(0.5, 2, 1000))
    profile = ratio_profile(error, std)
    for share in (0.9, 0.333, 1.0):
        score = float(trajectory_scores(profile[None], share)[0])
        assert float((error.abs() <= score * std * (1 + 1e-12)).double().mean()) == pytest.approx(share)


@pytest.mark.parametrize("num", [19, 40])
def test_the_mean_share_of_points_is_kept(num: int):
    """Of unlike trajectories 0.90 of all points are inside, or up to 2 / (n + 1) more, not always 0.95."""
    rng = numpy_stream(2, "test points", num)
    shares: dict[str, list[float]] = {"points": [], "trajectories": []}
    one = torch.ones(200)
    for _ in range(60):
        ratios = rng.lognormal(sigma=0.6, size=(num + 40, 1)) * np.abs(rng.standard_normal((num + 40, 200)))
        profiles = torch.stack([ratio_profile(torch.from_numpy(r), one) for r in ratios[:num]])
        for over, found in shares.items():
            found.append(float((ratios[num:] <= factor_of(profiles, 0.9, over)[0]).mean()))
    assert 0.895 <= np.mean(shares["points"]) <= 0.905 + 2 / (num + 1)
    assert np.mean(shares["trajectories"]) > max(0.95, np.mean(shares["points"]))


def test_which_rule():
    """Points count from 19 runs on, unless the user says; both refuse what they cannot promise."""
    profiles = torch.from_numpy(np.sort(numpy_stream(0, "test rule").exponential(size=(19, 1001)), axis=1))
    assert factor_of(profiles, 0.9, "auto") == (points_factor(profiles, 0.9), "points")
    few = conformal_factor(trajectory_scores(profiles[:18], 0.9), 0.9)
    assert factor_of(profiles[:18], 0.9, "auto") == (few, "trajectories")
    assert points_factor(profiles[:9], 0.9) == float(profiles[:9].max())  # nothing may lie outside
    for over in ("points", "trajectories"):
        with pytest.raises(UserError, match="19 calibration trajectories, expected 99"):
            factor_of(profiles, 0.99, over)


def test_calibrated_bars_cover_new_samples():
    """GP bars calibrated on 30 bumps hold between 80 and 100 % of the points of 30 others, averaged."""
    train = training_set(40)
    contest = run_contest([gp2_contender()], train, None)
    residual = held_out_residual_std(train.basis, contest.held_out, contest.rows)
    assert residual.shape == (4, 64, 1) and (residual > 0).all()
    rows, truth = rows_for(train, 30, seed=1)
    found = calibrate(contest.winner, rows, lambda i: truth[i], residual, 0.9)
    assert found.reason == "" and found.num_rows == 30
    new, new_truth = rows_for(train, 30, seed=2)
    std = field_std(contest.winner, new.inputs(), train.basis, residual)
    prediction = train.basis.decode(contest.winner(new.inputs()))
    inside = ((prediction - new_truth).abs() <= found.factor * std).double().mean()
    assert 0.8 <= float(inside) <= 1.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_left_out_spread_is_that_of_the_others(symmetric: bool):
    """In closed form a row's prediction and variance without its group are those of a process without it."""
    rows = training_set(14, symmetric=symmetric)
    process = gp2.fit_predictor(rows).process
    group = torch.tensor([3, 17] if symmetric else [3])
    rest = torch.tensor([k for k in range(len(process.x)) if k not in group.tolist()])
    y = process.targets()
    alone = GaussianProcess(process.family, len(rest), process.x.shape[1], y.shape[1], 2)
    alone.condition(process.hyper, process.x[rest], y[rest])
    mean, variance = process.left_out(group)
    assert torch.allclose(variance, alone.variance(process.x[group]), rtol=1e-4)
    groups = torch.arange(14).repeat(2 if symmetric else 1)
    assert torch.allclose(mean, process.leave_out(groups)[group], atol=1e-8 * float(y.abs().max()))


def test_a_row_does_not_scale_itself():
    """The residual that scales a held-out row is that of the other rows."""
    errors = torch.from_numpy(numpy_stream(0, "test own").standard_normal((7, 4, 5, 1)))
    errors[2] *= 10
    others = residual_std(errors[[0, 1, 3, 4, 5, 6]].square())
    found = without_own(residual_std(errors.square()), errors[2], 7)
    assert torch.allclose(found, others, rtol=1e-3)


@pytest.mark.parametrize("members", [("gp2",), ("gp2", "direct")])
def test_held_out_rows_calibrate(members: tuple[str, ...]):
    """Few validation rows: training rows, each predicted without itself, join; new bumps are covered."""
    train = training_set(36)
    options = DirectOptions(width=16, depth=2, num_nets=2, epochs=10)
    invited = [gp2_contender(), direct_contender(options)][: len(members)]
    contest = run_contest(invited, train, None)
    residual = held_out_residual_std(train.basis, contest.held_out, contest.rows)
    profiles = held_out_profiles(train.basis, contest, residual)
    assert len(profiles) == 36 and (trajectory_scores(profiles, 0.9) > 0).all()
    rows, _ = rows_for(train, 4, seed=1)
    alone = calibrate(contest.winner, rows, None, residual, 0.9)
    joined = calibrate(contest.winner, rows, None, residual, 0.9, more=profiles)
    wide = calibrate(contest.winner, rows, None, residual, 0.9, more=profiles, over="trajectories")
    assert alone.factor == 0.0 and joined.num_rows == 40 and 0 < joined.factor < wide.factor
    assert (joined.over, wide.over) == ("points", "trajectories")
    new, truth = rows_for(train, 40, seed=2)
    std = field_std(contest.winner, new.inputs(), train.basis, residual)
    error = (train.basis.decode(contest.winner(new.inputs())) - truth).abs()
    assert 0.8 <= float((error <= joined.factor * std).double().mean()) <= 1.0


def test_what_the_basis_leaves_out_widens_the_band():
    """With few spatial modes the band still holds its share of the true field, which no decoding reaches."""
    u, _ = bumps(40)
    train = dataclasses.replace(training_set(40, num_modes=3), rows=torch.arange(40))
    vae, settings = tiny_vae(channels=3, frames=FRAMES), config(Path("none"), conditioner="gp")
    new, truth = rows_for(train, 40, seed=2)
    shares = []
    for fields in (None, lambda row: torch.from_numpy(u[row])):
        found = hold_contest(settings, vae, None, train, train.subset(torch.arange(0)),
                             train.subset(torch.arange(0)), 0, fields=fields)  # fmt: skip
        bars = found.calibration
        std = field_std(found.contest.winner, new.inputs(), train.basis, bars.residual_std)
        with torch.no_grad():
            error = (train.basis.decode(found.contest.winner(new.inputs())) - truth).abs()
        shares.append(float((error <= bars.factor * std).double().mean()))
    assert shares[0] < 0.8 < shares[1]


def test_pairs_keep_their_spread_when_left_out():
    """The held-out deviations of a mix hold both members' own and their disagreement, centred on 0."""
    train = training_set(20)
    options = DirectOptions(width=16, depth=2, num_nets=2, epochs=5)
    found = [enter(contender, train, None) for contender in (gp2_contender(), direct_contender(options))]
    own = [c.spread(3, 4000, 0).std(0) for c in found]
    gap = 0.5 * (found[0].held_out[3] - found[1].held_out[3]).abs()
    mixed = pair_spread(*found, 0.5)(3, 4000, 0)
    expected = torch.sqrt(0.25 * own[0].square() + 0.25 * own[1].square() + gap.square())
    assert torch.allclose(mixed.std(0), expected, rtol=0.1, atol=0.02 * float(expected.max()))
    assert mixed.mean(0).abs().max() < 0.1 * float(expected.max())


def test_few_rows_give_no_factor():
    """Eight calibration rows: no factor, and the reason is kept for whoever asks."""
    train = training_set(16)
    predictor = gp2.fit_predictor(train)
    rows, _ = rows_for(train, 8, seed=1)
    found = calibrate(predictor, rows, None, torch.ones(4, 64, 1), 0.9)
    assert found.factor == 0.0 and "expected 9 or more" in found.reason


def test_bars_do_not_depend_on_the_batch():
    """A row's bar is the same alone and among others, and larger far from the training rows."""
    train = training_set(24)
    predictor = gp2.fit_predictor(train)
    rows, _ = rows_for(train, 3, seed=1)
    inputs = rows.inputs()
    residual = torch.full((4, 64, 1), 1e-3)
    together = field_std(predictor, inputs, train.basis, residual)
    alone = field_std(predictor, inputs.rows(slice(1, 2)), train.basis, residual)
    assert torch.equal(together[1:2], alone)
    far = Inputs(inputs.params + torch.tensor([5.0, 0.0, 0.0]))
    assert field_std(predictor, far, train.basis, residual).mean() > 3 * together.mean()


def test_without_own_spread_the_residual_remains():
    """A predictor that knows no spread has the held-out residual as its bar."""

    class Fixed(Predictor):
        def forward(self, inputs: Inputs) -> torch.Tensor:
            return torch.zeros(len(inputs.params), *shape)

    train = training_set(12)
    shape = train.c.shape[1:]
    residual = torch.rand(4, 64, 1) + 0.1
    std = field_std(Fixed({}), train.inputs().rows(slice(0, 2)), train.basis, residual)
    assert torch.allclose(std, residual.expand(2, -1, -1, -1), rtol=1e-6)


def test_calibration_tenth():
    """From 200 runs on a tenth is kept apart, disjoint and seeded; below nothing is."""
    rows = torch.arange(140)
    kept, apart = calibration_rows(rows, 200, seed=0)
    assert len(apart) == 20 and torch.equal(torch.cat([kept, apart]).sort().values, rows)
    assert torch.equal(calibration_rows(rows, 200, seed=0)[1], apart)
    assert len(calibration_rows(rows, 199, seed=0)[1]) == 0
