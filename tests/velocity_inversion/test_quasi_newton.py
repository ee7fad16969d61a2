"""L-BFGS on a section: its budget, its bounds, its preconditioner, its gain over first-order steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from velocity_inversion import quasi_newton
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.refine import OPTIMIZERS, RefineSettings, refine
from velocity_inversion.simulate import default_simulation, simulate
from velocity_inversion.synthetic import make_section

BOUNDS = (1.5, 4.5)


class Valley:
    """A quadratic whose curvature falls a thousandfold over depth, as the shots' light does."""

    def __init__(self, target: float = 3.0) -> None:
        self.target, self.seen = target, list[torch.Tensor]()
        self.curvature = torch.logspace(0, -3, 20)[:, None].expand(20, 16)

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """Return the loss of a section and remember it."""
        self.seen.append(v.detach().clone())
        return (self.curvature * (v - self.target).square()).mean()


def descend(valley: Valley, evaluations: int, start: float = 2.5) -> torch.Tensor:
    """Descend from a constant section."""
    section = torch.full((20, 16), start)
    return quasi_newton.descend(
        section, valley, lambda change: change, evaluations=evaluations, first_step=0.05, bounds=BOUNDS
    )


def test_every_evaluation_is_counted_and_the_best_is_kept():
    """As many calls as asked for, the start first; the result is the best of them, within the bounds."""
    valley = Valley()
    found = descend(valley, 7)
    assert len(valley.seen) == 7 and bool((valley.seen[0] == 2.5).all())
    assert float((valley.seen[1] - valley.seen[0]).abs().max()) == pytest.approx(0.05, rel=1e-3)
    losses = [float(Valley()(v)) for v in valley.seen]
    torch.testing.assert_close(found, valley.seen[losses.index(min(losses))])
    beyond = Valley(9.0)
    assert float(descend(beyond, 20).max()) == BOUNDS[1]
    assert max(float(v.max()) for v in beyond.seen) <= BOUNDS[1]


def test_weakly_lit_cells_move_as_far_as_others():
    """Ten evaluations bring the depths, a thousandth as curved, near their target too."""
    found = descend(Valley(), 10)
    assert float((found[0] - 3).abs().max()) < 0.05 and float((found[-1] - 3).abs().max()) < 0.25


def test_nothing_to_gain_returns_the_start():
    """Without a gradient, with one evaluation, or where it is not finite, the section stays."""
    for valley, evaluations in ((Valley(2.5), 5), (Valley(), 1), (Valley(float("nan")), 5)):
        assert bool((descend(valley, evaluations) == 2.5).all())


def test_a_trial_that_fails_does_not_win():
    """Sections whose loss is not finite are never returned."""
    valley = Valley()

    def loss(v: torch.Tensor) -> torch.Tensor:
        value = valley(v)
        return value if len(valley.seen) < 4 else value * float("nan")

    start = torch.full((20, 16), 2.5)
    found = quasi_newton.descend(
        start, loss, lambda change: change, evaluations=8, first_step=0.05, bounds=BOUNDS
    )
    assert bool(torch.isfinite(found).all())
    assert float(Valley()(found)) < float(Valley()(start))


def test_more_is_gained_than_with_adam():
    """From smoothed truth, the same number of simulations explains the gathers better than Adam's."""
    survey = replace(openfwi_survey(2, 8), num_samples=400)
    simulation = default_simulation(survey)
    truth = torch.from_numpy(make_section((70, 70), "layered_increasing", 1, "quasi newton", 0).vp)
    with torch.no_grad():
        observed = simulate(truth[None], simulation)[0]
    start = torch.nn.functional.avg_pool2d(truth[None], 13, 1, 6, count_include_pad=False)[0]
    found = {
        name: refine(start, observed, simulation, RefineSettings(iterations=6, optimizer=name))
        for name in OPTIMIZERS
    }
    assert found["lbfgs"].misfit < found["adam"].misfit < found["adam"].start_misfit
    assert len(found["lbfgs"].history) == 1 + 6
