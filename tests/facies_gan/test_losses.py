"""The loss terms against their formulas, and the weights that make windows stand for the image."""

from __future__ import annotations

import math

import pytest
import torch

from facies_gan import losses
from facies_gan.canvas import coverage, draw_start, equal_weights
from facies_gan.resample import Extent


@pytest.mark.parametrize("size", [(12, 17), (40, 25)])
def test_penalty_of_a_linear_critic(size: tuple[int, int]):
    """For D(x) = mean over cells of w . x the penalty is (||w|| - 1)^2, at any size."""
    w = torch.tensor([0.6, -1.1, 2.0])
    critic = lambda x: (x * w.view(1, 3, 1, 1)).sum(1).mean((1, 2))  # noqa: E731
    real, fake = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    penalty = losses.gradient_penalty(critic, real, fake, torch.rand(2))
    assert float(penalty) == pytest.approx((float(w.norm()) - 1) ** 2, rel=1e-5)


def test_penalty_is_of_each_sample():
    """Every sample has its own point on its own line, and its penalty does not depend on the others."""
    seen = []

    def critic(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return x.square().mean((1, 2, 3))

    real, fake = torch.ones(3, 2, 12, 12), torch.zeros(3, 2, 12, 12)
    eps = torch.tensor([0.1, 0.5, 0.9])
    together = losses.gradient_penalty(critic, real, fake, eps)
    assert seen[0].mean((1, 2, 3)).tolist() == pytest.approx([0.1, 0.5, 0.9])
    alone = [
        losses.gradient_penalty(critic, real[i : i + 1], fake[i : i + 1], eps[i : i + 1]) for i in range(3)
    ]
    assert float(together) == pytest.approx(float(sum(alone)) / 3, rel=1e-6)
    assert float(alone[0]) != pytest.approx(float(alone[2]), rel=1e-3)


def test_penalty_reaches_the_critic():
    """The penalty can be differentiated with respect to the critic's weights."""
    w = torch.tensor([2.0, 0.0], requires_grad=True)
    critic = lambda x: (x * w.view(1, 2, 1, 1)).sum(1).mean((1, 2))  # noqa: E731
    losses.gradient_penalty(
        critic, torch.rand(1, 2, 12, 12), torch.rand(1, 2, 12, 12), torch.rand(1)
    ).backward()
    assert w.grad.tolist() == pytest.approx([2.0, 0.0], abs=1e-4)  # d (||w|| - 1)^2 = 2 (||w|| - 1)


@pytest.mark.parametrize("width", [16, 48])
@pytest.mark.parametrize("wells", [1, 4, 16])
def test_well_loss_has_one_scale(width: int, wells: int):
    """The loss is the mean cross-entropy at data, for any number of wells and any width; 0 without data."""
    logits = torch.zeros(1, 2, 10, width)
    logits[:, 0] = 1.0
    real = torch.zeros(1, 2, 10, width)
    real[:, 1] = 1.0
    mask = torch.zeros(1, 10, width)
    mask[:, :, :wells] = 1
    assert float(losses.well_loss(logits, real, mask)) == pytest.approx(math.log(1 + math.e), rel=1e-5)
    assert float(losses.well_loss(logits, real, torch.zeros_like(mask))) == 0


def test_well_loss_is_least_at_the_sections_own_share():
    """With a target of 0.57 the best probability is 0.57, not the datum's 1."""
    real = torch.tensor([0.43, 0.57]).view(1, 2, 1, 1)
    mask = torch.ones(1, 1, 1)
    values = {p: float(losses.well_loss(torch.tensor([1 - p, p]).log().view(1, 2, 1, 1), real, mask))
              for p in (0.3, 0.57, 0.996)}  # fmt: skip
    assert min(values, key=values.get) == 0.57


def test_well_loss_of_draws_asks_for_their_mean():
    """Draws that share a datum's cell out, one wholly and one not, are as good as two that each show half."""
    real = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
    mask = torch.ones(1, 1, 1)
    alike = torch.zeros(2, 2, 1, 1)
    apart = torch.tensor([[9.0, -9.0], [-9.0, 9.0]]).view(2, 2, 1, 1)
    found = [float(losses.well_loss(logits, real, mask, 2)) for logits in (alike, apart)]
    assert found == pytest.approx([math.log(2), math.log(2)], abs=1e-3)
    assert float(losses.well_loss(apart[:1], real, mask)) > 4


def test_diversity_of_equal_and_opposite_draws():
    """Equal draws cost 1, opposite ones exp(-10), and cells with data do not count."""
    a = torch.zeros(1, 2, 8, 8)
    a[:, 0] = 1
    equal, opposite = torch.stack([a, a], 1), torch.stack([a, 1 - a], 1)
    nothing = torch.zeros(1, 8, 8)
    assert float(losses.diversity_loss(equal, nothing)) == 1
    assert float(losses.diversity_loss(opposite, nothing)) == pytest.approx(math.exp(-10))
    half = nothing.clone()
    half[:, :4] = 1
    differs_at_data = torch.stack([a, torch.where(half[:, None] > 0, 1 - a, a)], 1)
    assert float(losses.diversity_loss(differs_at_data, half)) == pytest.approx(1)


def test_proportion_loss():
    """Value and gradient are those of sum_c (p_c - q_c)^2."""
    fake, real = torch.rand(4, 3, 6, 5, requires_grad=True), torch.rand(2, 3, 6, 5)
    plain = (fake.mean((0, 2, 3)) - real.mean((0, 2, 3))).square().sum()
    (expected,) = torch.autograd.grad(plain, fake)
    loss = losses.proportion_loss(fake, real)
    loss.backward()
    assert float(loss) == pytest.approx(float(plain))
    torch.testing.assert_close(fake.grad, expected)


def test_variogram_loss():
    """It is the sum over lags of squared gaps of gamma and of the contrast; equal batches have none."""
    stripes = torch.zeros(1, 2, 12, 12)
    stripes[:, 0, ::2] = 1
    stripes[:, 1, 1::2] = 1
    flat = torch.full_like(stripes, 0.5)
    # Stripes: gamma(1) = 1/2 across, 0 at even lags and along; mean o^2 = 1/2. Grey: 0 and 1/4.
    assert float(losses.variogram_loss(flat, stripes)) == pytest.approx(2 * (0.5**2 + 0.25**2))
    assert float(losses.variogram_loss(stripes.flip(1), stripes)) == pytest.approx(0)
    real, fake = torch.rand(2, 3, 9, 14), torch.rand(4, 3, 9, 14, requires_grad=True)
    losses.variogram_loss(fake, real).backward()
    towards = (fake - 100 * fake.grad).detach()
    assert losses.variogram_loss(towards, real) < losses.variogram_loss(fake, real)
    assert float(losses.variogram_loss(real.repeat_interleave(2, 0), real)) == pytest.approx(0, abs=1e-12)


def test_variogram_loss_of_windows():
    """Weights count cells: those of weight 0 change nothing, equal weights are as none."""
    real, fake = torch.rand(1, 2, 20, 20), torch.rand(2, 2, 20, 20)
    plain = losses.variogram_loss(fake, real)
    assert float(losses.variogram_loss(fake, real, torch.ones(1, 20, 20))) == pytest.approx(float(plain))
    weights = torch.ones(1, 20, 20)
    weights[:, :, 8:] = 0
    other = fake.clone()
    other[..., 16:] = torch.rand(2, 2, 20, 4)  # beyond the longest pair of a cell that counts
    assert torch.equal(
        losses.variogram_loss(other, real, weights), losses.variogram_loss(fake, real, weights)
    )


def test_windows_stand_for_the_whole_image():
    """The weighted mean of a score map, over all places a window can have, is the mean of the whole map."""
    side, count, margin = 41, 16, 5
    scores = torch.rand(side - 2 * margin, dtype=torch.float64)
    starts = [draw_start(side, count, (i + 0.5) / 100_000) for i in range(100_000)]
    assert min(starts) == 0 and max(starts) == side - count
    chance = torch.bincount(torch.tensor(starts), minlength=side - count + 1) / len(starts)
    estimate = sum(
        p * (scores[s : s + count - 2 * margin] * equal_weights(Extent(side, s, count), margin)).mean()
        for s, p in enumerate(chance.tolist())
    )
    assert float(estimate) == pytest.approx(float(scores.mean()), rel=1e-3)
    assert coverage(side, side, margin).eq(1).all()


def channel(gap: float) -> torch.Tensor:
    """Return shares [1, 2, 8, 9] of a channel along row 3, with a weak cell of share `gap` in column 5."""
    x = torch.zeros(1, 2, 8, 9)
    x[:, 1, 3] = 0.9
    x[:, 1, 3, 5] = gap
    x[:, 1, 6, 7] = 0.9
    x[:, 0] = 1 - x[:, 1]
    return x


def test_flood_by_hand():
    """A cell is as well connected with the line as the weakest cell of its best path; others not at all."""
    reached = losses.flood(channel(0.3), -1, 0.0)[0, 1]
    assert reached[3].tolist() == pytest.approx([0.9] * 5 + [0.3] * 4)
    assert float(reached[6, 7]) == 0 and float(losses.flood(channel(0.3), -2, 0.8)[0, 1, 6, 7]) > 0.8
    maze = torch.zeros(1, 1, 5, 5)
    maze[0, 0, :, 0] = maze[0, 0, 4] = maze[0, 0, 3:, 4] = 1.0
    assert torch.equal(losses.flood(maze, -1, 0.0), maze)  # along and up again


def test_connectivity_loss_closes_gaps():
    """It is 0 for equal batches and grows with the gap; the weak cell answers for all that lies behind it."""
    real = channel(0.9)
    found = [float(losses.connectivity_loss(channel(gap), real, (0.9, 0.0))) for gap in (0.9, 0.6, 0.1)]
    assert found[0] == pytest.approx(0, abs=1e-9) and found[0] < found[1] < found[2]
    fake = channel(0.3).requires_grad_(True)
    losses.flood(fake, -1, 0.0)[0, 1, 3, 1:].sum().backward()
    assert fake.grad[0, 1, 3, 5:].tolist() == [4.0, 0.0, 0.0, 0.0]


def test_connectivity_of_a_rare_facies_hardly_counts():
    """One stray cell of a facies that the section lacks costs little, a whole line of it much."""
    real = torch.zeros(1, 2, 32, 32)
    real[:, 0] = 1
    costs = []
    for cells in (1, 32):
        fake = real.clone()
        fake[0, 0, 7, :cells], fake[0, 1, 7, :cells] = 0, 1
        costs.append(float(losses.connectivity_loss(fake, real, (0.9, 0.0))))
    assert 0 < costs[0] < 0.02 and costs[1] > 0.5
