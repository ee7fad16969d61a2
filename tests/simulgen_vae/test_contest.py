"""The guard: who ships, ties, pairs, cross-validation that leaks nothing, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.metrics import relative_l2
from common.noise import torch_stream
from simulgen_vae import contenders, contest, gp2
from simulgen_vae.basis import fit_basis
from simulgen_vae.contenders import (
    choose_contenders,
    direct_contender,
    direct_is_worth_it,
    gp2_contender,
    plan_field_net,
)
from simulgen_vae.contest import Candidate, Contender, fold_numbers, judge, run_contest
from simulgen_vae.direct import DirectOptions
from simulgen_vae.field_metric import FieldMetric
from simulgen_vae.pairs import Pair
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet
from simulgen_vae.reduced import reduce_all
from tests.simulgen_vae.cases_predictors import bumps, data_of, rows_for, training_set


class Constant(Predictor):
    """The mean of the rows it was fitted to."""

    def __init__(self, rows: TrainingSet) -> None:
        super().__init__({"kind": "constant"})
        self.mean = rows.c.mean(0)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the mean for every row."""
        return self.mean.expand(len(inputs.params), -1, -1)


def candidate(name: str, truth: torch.Tensor, error: float, sign: float = 1.0) -> Candidate:
    """Return a candidate whose every prediction is the truth times 1 + error."""
    return Candidate(name, Predictor({}), (1 + sign * error) * truth, "validation", 0.0)


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    """Return twenty bumps."""
    return training_set(20)


def test_the_best_ships(rows: TrainingSet):
    """Far from a tie, the lowest mean error wins whatever its rank, and entries are in order."""
    metric = FieldMetric(rows.basis)
    found = judge([candidate("field_net", rows.c, 0.01), candidate("gp2", rows.c, 0.2)], rows.c, metric)
    assert found.members == ("field_net",)
    means = [e.mean for e in found.entries]
    assert means == sorted(means)


def test_ties_go_to_the_simpler(rows: TrainingSet):
    """Within one percent the simpler ships, beyond it the better: never more than that above the best."""
    metric = FieldMetric(rows.basis)
    for gap, expected in ((1.009, "gp2"), (1.02, "direct")):
        found = judge([candidate("direct", rows.c, 0.1), candidate("gp2", rows.c, 0.1 * gap)], rows.c, metric)
        assert found.members == (expected,)
        shipped = next(e for e in found.entries if e.name == found.ships and e.weight == found.weight)
        assert shipped.mean <= 1.01 * found.entries[0].mean


def test_opposite_errors_make_a_pair(rows: TrainingSet):
    """Two candidates whose errors cancel ship together with equal weights."""
    metric = FieldMetric(rows.basis)
    found = judge(
        [candidate("gp2", rows.c, 0.1), candidate("field_net", rows.c, 0.1, sign=-1)], rows.c, metric
    )
    assert found.members == ("gp2", "field_net") and found.weight == 0.5 and found.ships == "gp2+field_net"
    assert "weights 0.5 and 0.5" in found.line


def test_non_finite_predictions_lose(rows: TrainingSet):
    """A network that diverged cannot ship, not even in a pair."""
    metric = FieldMetric(rows.basis)
    broken = candidate("direct", rows.c, float("nan"))
    assert judge([broken, candidate("gp2", rows.c, 0.5)], rows.c, metric).members == ("gp2",)


@pytest.mark.parametrize("num_fields", [1, 2])
def test_scored_as_an_evaluation_scores(num_fields: int):
    """With few modes and unequal fields the contest's error counts what no mode holds."""
    u, params = bumps(16)
    u = np.concatenate([u, 30.0 * u[..., ::-1, :] ** 2 + 5.0], axis=-1)[..., :num_fields]
    data = data_of(u, params)
    basis = fit_basis(data, range(16), 3)
    found = TrainingSet(
        torch.from_numpy(reduce_all(data, basis)), torch.from_numpy(params), basis, rows=torch.arange(16)
    )
    guess = found.c + 0.2 * torch.randn(found.c.shape, generator=torch_stream(0, "test guess"))
    metric = contest.metric_of(found, lambda row: torch.from_numpy(u[row]))
    exact = [relative_l2(basis.decode(c).numpy(), truth) for c, truth in zip(guess, u, strict=True)]
    scored = metric.relative_l2(guess, found.c)
    np.testing.assert_allclose(scored.numpy(), exact, rtol=1e-4)
    assert (scored > 1.01 * contest.metric_of(found, None).relative_l2(guess, found.c)).any()
    held = run_contest([Contender("gp2", Constant)], found, None, lambda row: torch.from_numpy(u[row]))
    mean = np.mean([relative_l2(basis.decode(c).numpy(), u[i]) for i, c in enumerate(held.held_out)])
    assert held.verdict.entries[0].mean == pytest.approx(mean, rel=1e-4)


def test_where_pod_gp_is_best_it_ships(rows: TrainingSet):
    """On smooth data a Gaussian process is optimal: it ships, and the last line says so plainly."""
    found = run_contest([gp2_contender(), Contender("direct", Constant)], rows, None)
    assert found.verdict.members == ("gp2",)
    assert found.verdict.line.startswith("POD+GPR is as good here; shipping it")
    assert found.winner is found.candidates["gp2"].predictor
    document = found.verdict.document()
    assert document["ships"] == "gp2" and {"direct", "gp2"} <= {e["name"] for e in document["candidates"]}


def test_folds_leak_nothing(rows: TrainingSet):
    """Each row of a cross-validation is predicted by the mean of the other folds alone."""
    folds = fold_numbers(len(rows), 5, rows.seed)
    assert torch.bincount(folds).tolist() == [4] * 5
    found, _ = contest.cross_validate(Constant, rows)
    for k in (0, 7):
        assert torch.allclose(found[k], rows.c[folds != folds[k]].mean(0))


def test_many_rows_use_the_validation_split(rows: TrainingSet, monkeypatch: pytest.MonkeyPatch):
    """From `SMALL` training rows on, every contender is scored on the validation split."""
    monkeypatch.setattr(contest, "SMALL", 20)
    validation, _ = rows_for(rows, 6, seed=3)
    found = run_contest([gp2_contender(), Contender("direct", Constant)], rows, validation)
    assert {c.how for c in found.candidates.values()} == {"validation"}
    assert found.rows is validation and len(found.held_out) == 6


def test_networks_compete_too(rows: TrainingSet):
    """A direct network enters by 5-fold; a pair that wins is the mix it says, and predicts finite fields."""
    options = DirectOptions(width=16, depth=2, num_nets=2, epochs=20)
    found = run_contest([direct_contender(options), Contender("field_net", Constant)], rows, None)
    names = {e.name for e in found.verdict.entries}
    assert names == {"direct", "field_net", "direct+field_net"}
    assert torch.isfinite(found.winner(rows.inputs())).all()
    if isinstance(found.winner, Pair):
        assert found.winner.weight == found.verdict.weight


def test_who_is_invited():
    """Small data get the Gaussian process; a symmetry lets networks in earlier; flags invite by name."""
    few = training_set(20)
    names = [c.name for c in choose_contenders(few, field_net_flag="off")]
    assert names == ["gp2"]
    assert [c.name for c in choose_contenders(few, conditioner="direct")] == ["gp2", "direct"]
    forced = choose_contenders(few, field_net_flag="on")
    assert [c.name for c in forced] == ["gp2", "field_net"]
    assert [c.name for c in choose_contenders(few, max_cpu_s=0.01)] == ["gp2"]
    assert not direct_is_worth_it(training_set(110))
    assert direct_is_worth_it(training_set(110, symmetric=True))


def test_time_limits_the_grid_network(monkeypatch: pytest.MonkeyPatch):
    """Short of time, folds are given up before steps, then the network; without a grid there is none."""
    rows = training_set(20)
    monkeypatch.setattr(contenders, "seconds_per_step", lambda _rows: 0.1)
    wanted, folds = plan_field_net(rows, 1e6)
    assert folds == 5 and wanted >= 600
    assert plan_field_net(rows, 0.1 * 3.5 * wanted) == (wanted, 2)
    assert plan_field_net(rows, 0.1 * wanted) == (0, 0)
    rows.grid_shape = None
    assert plan_field_net(rows, 1e6) == (0, 0)


def test_time_limits_the_plain_networks(monkeypatch: pytest.MonkeyPatch):
    """The plain networks enter when all their trainings fit --max_cpu_s; asked for by name they always do."""
    rows = training_set(110, symmetric=True)
    assert contenders.direct_seconds(rows, DirectOptions(width=8, depth=1, epochs=4)) > 0
    monkeypatch.setattr(contenders, "direct_seconds", lambda *_: 50.0)
    for limit, names in ((60.0, ["gp2", "direct"]), (40.0, ["gp2"])):
        found = choose_contenders(rows, field_net_flag="off", max_cpu_s=limit)
        assert [c.name for c in found] == names
    assert len(choose_contenders(rows, conditioner="direct", max_cpu_s=40.0)) == 2


def test_some_folds_score_some_rows(rows: TrainingSet):
    """With one fold held out all are scored on its rows; the winner keeps all that it held out itself."""
    short = Contender("direct", Constant, num_folds=1)
    found = run_contest([gp2_contender(), short], rows, None)
    assert all(len(c.held_out) == 4 for c in found.candidates.values())
    assert all(torch.isfinite(c.held_out).all() for c in found.candidates.values())
    assert "(1 of them)" in next(e.how for e in found.verdict.entries if e.name == "direct")
    assert found.verdict.members == ("gp2",) and len(found.rows) == 20 == len(found.held_out)
    alone = run_contest([short], rows, None)
    assert len(alone.rows) == 4 == len(alone.held_out) and torch.isfinite(alone.held_out).all()
    assert torch.equal(alone.rows.c, rows.c[fold_numbers(20, 5, rows.seed) == 0])


def test_leave_one_out_is_honest():
    """The closed form on training rows is close to the error on new rows, and far from the training error."""
    rows = training_set(30)
    predictor = gp2.fit_predictor(rows)
    metric = FieldMetric(rows.basis)
    new, _ = rows_for(rows, 60, seed=5)
    loo = float(metric.relative_l2(predictor.leave_one_out(rows), rows.c).mean())
    test = float(metric.relative_l2(predictor(new.inputs()), new.c).mean())
    fit = float(metric.relative_l2(predictor(rows.inputs()), rows.c).mean())
    assert 0.4 * test < loo < 3 * test and fit < 0.2 * loo


def test_guard_json(tmp_path: Path, rows: TrainingSet):
    """The verdict is plain values that JSON holds."""
    from common.files import write_json

    found = run_contest([gp2_contender()], rows, None)
    write_json(tmp_path / "guard.json", found.verdict.document())
    assert "leave-one-out" in (tmp_path / "guard.json").read_text()
