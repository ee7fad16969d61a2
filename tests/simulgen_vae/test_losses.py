"""Losses and schedules against analytic answers and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from simulgen_vae.losses import (
    field_error,
    kl_residual,
    kl_standard,
    kl_total,
    latent_loss,
    pointwise,
    relative_weights,
)
from simulgen_vae.objectives import Reconstruction
from simulgen_vae.schedules import adamw_without, cycle_ends, kl_weight, lr_schedule


def monte_carlo_kl(mean: float, logvar: float, prior_mean: float, prior_logvar: float) -> float:
    """Return KL(q || p) of two normals as the mean of log q - log p over draws of q."""
    draws = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = mean + math.exp(logvar / 2) * draws
    log_q = -0.5 * (draws.square() + logvar)
    log_p = -0.5 * ((x - prior_mean).square() / math.exp(prior_logvar) + prior_logvar)
    return float((log_q - log_p).mean())


@pytest.mark.parametrize(("mu", "logvar"), [(0.7, -1.0), (-1.5, 0.4)])
def test_kl_of_the_main_latent(mu: float, logvar: float):
    """KL to the standard normal equals Monte Carlo within 1 %."""
    found = float(kl_standard(torch.tensor(mu), torch.tensor(logvar)))
    assert found == pytest.approx(monte_carlo_kl(mu, logvar, 0.0, 0.0), rel=0.01)


@pytest.mark.parametrize("prior", [(0.0, 0.0), (2.0, -1.5), (-3.0, 1.2)])
def test_kl_of_a_level(prior: tuple[float, float]):
    """The residual KL equals Monte Carlo within 1 % and is 0 without residual, for any prior."""
    mean, logvar = prior
    shift, step = 0.6, -0.8
    found = float(kl_residual(torch.tensor(shift), torch.tensor(step), torch.tensor(logvar)))
    assert found == pytest.approx(monte_carlo_kl(mean + shift, logvar + step, mean, logvar), rel=0.01)
    assert float(kl_residual(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(logvar))) == 0.0


def test_free_bits():
    """A dimension under its free nats costs exactly those, and gets no gradient."""
    kl = torch.tensor([[0.1, 3.0], [0.3, 5.0]], requires_grad=True)
    total = kl_total(kl, 0.5)
    total.backward()
    assert float(total) == pytest.approx(0.5 + 4.0)
    assert kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]
    assert float(kl_total(kl)) == pytest.approx(0.2 + 4.0)


def test_pointwise_losses():
    """The four losses of one error below and one above the transition."""
    error = torch.tensor([0.05, -3.0])
    expected = {"MSE": [0.0025, 9.0], "MAE": [0.05, 3.0], "SmoothL1": [0.00125, 2.5], "Huber": [0.00125, 2.5]}
    for kind, values in expected.items():
        assert pointwise(error, kind).tolist() == pytest.approx(values)
    assert pointwise(error, "Huber", 0.1).tolist() == pytest.approx([0.00125, 0.1 * (3 - 0.05)])
    assert pointwise(error, "SmoothL1", 0.1).tolist() == pytest.approx([0.0125, 3 - 0.05])


def test_mean_square_of_coefficients_is_that_of_fields():
    """The mean square of c equals that of the standardised field, so loss 1 needs no decoding."""
    generator = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(40, 6, generator=generator))[0]
    error = torch.randn(3, 6, 5, generator=generator)
    decoded = field_error(error, modes, 40)
    assert float(decoded.square().mean()) == pytest.approx(float(error.square().mean()), rel=1e-5)
    whole = Reconstruction("MAE", modes=modes).of_difference(error)
    torch.testing.assert_close(whole, decoded.abs().mean(dim=(1, 2)))


def test_channel_subset_is_unbiased():
    """The mean over subsets that share the channels out is the loss of all channels."""
    generator = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(40, 6, generator=generator))[0]
    error = torch.randn(3, 6, 5, generator=generator)
    whole = Reconstruction("Huber", modes=modes).of_difference(error)
    parts = torch.randperm(40, generator=generator).chunk(4)
    means = [Reconstruction("Huber", modes=modes, channels=p).of_difference(error) for p in parts]
    torch.testing.assert_close(torch.stack(means).mean(dim=0), whole)


def test_relative_weights():
    """Weights are 1 on average, equal for equal norms, and at most 21 times the mean's."""
    weights = relative_weights(torch.tensor([1.0, 1.0, 4.0, 0.0]))
    assert float(weights.mean()) == pytest.approx(1.0)
    assert weights[0] == weights[1] > weights[2]
    assert float(weights[3] / weights[0]) == pytest.approx((1 / 1.5 + 0.05) / 0.05, rel=1e-5)


def test_latent_loss():
    """Main and hierarchical errors are averaged apart and then weighed."""
    assert float(latent_loss(torch.full((2, 4), 2.0), torch.full((2, 6), 3.0), (10.0, 1.0))) == 49.0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_beta(kind: str):
    """Beta at 0, .3E, .55E, .8E and E: init, init, half way, 1, 1."""
    found = [kl_weight(x, 1e-3, 0.3, 0.8, kind) for x in (0.0, 0.3, 0.55, 0.8, 1.0)]
    assert found == pytest.approx([1e-3, 1e-3, (1 + 1e-3) / 2, 1.0, 1.0])


def rates(total: int, **changes: object) -> list[float]:
    """Return the learning rate of every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    settings = {"lr": 1e-2, "eta_min": 1e-5, "warmup_fraction": 0.1, **changes}
    schedule = lr_schedule(optimizer, total, **settings)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("kind", ["cosine", "warm_restarts"])
@pytest.mark.parametrize("total", [2, 3, 7, 50, 331])
def test_learning_rate_ends_at_the_floor(kind: str, total: int):
    """Whatever the number of steps, the last one has the smallest rate and none is above the peak."""
    found = rates(total, kind=kind, first_cycle=10)
    assert found[-1] == pytest.approx(1e-5) and max(found) <= 1e-2 * (1 + 1e-12)
    assert max(found) > 0.5e-2


def test_warm_restarts():
    """Cycles double, the last is stretched over what is left, and each begins at the peak."""
    assert cycle_ends(75, 10, 2) == [10, 30, 75] and cycle_ends(7, 10, 2) == [7]
    found = rates(75, kind="warm_restarts", first_cycle=10, warmup_fraction=0.0)
    assert [found[i] for i in (0, 10, 30)] == pytest.approx([1e-2] * 3)
    assert [found[i] for i in (9, 29, 74)] == pytest.approx([1e-5] * 3)


def test_what_decays():
    """Matrices decay; biases, gains, norms and the spared module do not."""
    spared = nn.Linear(3, 3)
    module = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm": nn.GroupNorm(1, 2), "spared": spared})
    decayed, plain = adamw_without(module, spared, 1e-3, 0.1).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0 and len(plain["params"]) == 5
