"""Gaussian processes: analytic answers, gradients, closed-form leave-one-out, likelihood beside others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.noise import numpy_stream
from simulgen_vae.gp import GaussianProcess, fit_gp, fit_gp2, likelihood_of, thin
from simulgen_vae.kernels import FAMILIES, Hyper, concentrated_likelihood, correlation, covariance


def smooth(num: int, seed: int = 0, dim: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [n, d] and three smooth outputs of them [n, 3]."""
    x = torch.from_numpy(numpy_stream(seed, "test gp").standard_normal((num, dim)))
    y = torch.stack([torch.sin(x[:, 0]), 0.1 * x[:, 1] * x[:, 0], torch.cos(2 * x[:, 1])], 1)
    return x, y


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_correlations(family: str):
    """Every family is 1 at distance 0, falls, and gives a positive definite matrix."""
    distance = correlation(family, torch.linspace(0, 4, 50, dtype=torch.float64) ** 2)
    assert distance[0] == pytest.approx(1.0, abs=1e-8) and (distance.diff() < 0).all()
    x, _ = smooth(30)
    hyper = Hyper(torch.zeros(1, 2).double(), torch.zeros(1).double(), torch.tensor(-9.0).double())
    assert torch.linalg.eigvalsh(covariance(family, hyper, x, x)).min() > -1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_the_likelihood(family: str):
    """The gradient of the concentrated likelihood equals central differences in every parameter."""
    x, y = smooth(12)
    centred = y - y.mean(0)
    gram = centred @ centred.T
    vector = np.array([0.3, -0.2, -0.9, -1.1, 0.2, -0.4, -3.0])  # 2 components x 2 lengths, 2 logits, noise
    _, gradient = concentrated_likelihood(family, 2, vector, x, gram)
    for k in range(len(vector)):
        step = np.eye(len(vector))[k] * 1e-5
        up, _ = concentrated_likelihood(family, 2, vector + step, x, gram)
        down, _ = concentrated_likelihood(family, 2, vector - step, x, gram)
        assert gradient[k] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-6)


def test_one_row_by_hand():
    """With one other row the posterior is k y: the textbook formula for a single observation."""
    x = torch.tensor([[0.0], [1.0]]).double()
    y = torch.tensor([[-1.0], [1.0]]).double()
    hyper = Hyper(
        torch.zeros(1, 1).double(), torch.zeros(1).double(), torch.tensor(math.log(0.5), dtype=torch.float64)
    )
    process = GaussianProcess("rbf", 2, 1, 1, 1).condition(hyper, x, y)
    k = math.exp(-0.5)
    matrix = np.array([[1.5, k], [k, 1.5]])
    at = np.array([math.exp(-0.125), math.exp(-0.125)])
    solved = np.linalg.solve(matrix, [-1.0, 1.0])
    middle = torch.tensor([[0.5]]).double()
    assert float(process(middle)) == pytest.approx(at @ solved, abs=1e-12)
    expected = 1.5 - at @ np.linalg.solve(matrix, at)
    assert float(process.variance(middle)) == pytest.approx(expected, rel=1e-12)


def test_leave_one_out_is_refitting():
    """The closed form equals conditioning again without the group, with mean and parameters kept."""
    x, y = smooth(20)
    groups = torch.arange(10).repeat(2)
    process = fit_gp(x, y, groups=groups)
    found = process.leave_out(groups)
    for group in (0, 7):
        out, rest = groups == group, groups != group
        k = covariance(process.family, process.hyper, x, x)
        noisy = k[rest][:, rest] + torch.exp(process.log_noise) * torch.eye(int(rest.sum())).double()
        expected = process.mean + k[out][:, rest] @ torch.linalg.solve(noisy, y[rest] - process.mean)
        assert torch.allclose(found[out], expected, atol=1e-6)


def test_smooth_functions_are_learned():
    """Sixty rows of smooth functions leave less than one percent of error, with either fit."""
    x, y = smooth(60)
    new_x, new_y = smooth(200, seed=1)
    inside = (new_x.abs() < 1.5).all(1)
    for process in (fit_gp(x, y), fit_gp2(x, y)):
        error = (process(new_x) - new_y)[inside].norm() / new_y[inside].norm()
        assert error < 0.01


def test_two_scales_are_found():
    """Draws of a process with a long and a short scale give both back, likelier than one scale can be."""
    x = torch.linspace(-2, 2, 60).double()[:, None]
    true = Hyper(
        torch.log(torch.tensor([[1.5], [0.1]])).double(), torch.tensor([1.0, -1.0]).double(), x[0, 0]
    )
    lower = torch.linalg.cholesky(covariance("rbf", true, x, x) + 1e-8 * torch.eye(60))
    y = lower @ torch.from_numpy(numpy_stream(0, "test two scales").standard_normal((60, 20)))
    one = fit_gp(x, y, families=("rbf",), num_starts=3)
    two = fit_gp(x, y, families=("rbf",), num_components=2, num_starts=4)
    assert likelihood_of(two, y) > likelihood_of(one, y) + 10
    assert two.log_lengths.exp().flatten().sort().values.tolist() == pytest.approx([0.1, 1.5], rel=0.3)


def test_irrelevant_input_gets_a_long_length():
    """Automatic relevance determination: an input that does nothing ends up far longer than one that does."""
    x, y = smooth(60, dim=3)
    lengths = fit_gp(x, y).log_lengths.exp()[0]
    assert lengths[2] > 5 * lengths[:2].max()


def test_as_likely_as_scikit_learn():
    """The concentrated likelihood is at least as high as scikit-learn's for the same model and rows."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, y = smooth(40)
    y = y + 0.02 * torch.from_numpy(numpy_stream(0, "test noise").standard_normal(y.shape))
    centred = y - y.mean(0)
    kernel = ConstantKernel(0.3, (1e-8, 1e8)) * RBF([1.0, 1.0], (1e-2, 1e3)) + WhiteKernel(1e-4, (1e-9, 1))
    theirs = GaussianProcessRegressor(kernel, alpha=0.0).fit(x.numpy(), centred.numpy())
    ours = fit_gp(x, y, families=("rbf",))
    assert likelihood_of(ours, y) >= theirs.log_marginal_likelihood_value_ - 0.01


def test_spread_is_that_of_the_process():
    """Draws of a process have its own standard deviation, and it is small at rows and large far away."""
    x, y = smooth(40)
    process = fit_gp(x, y)
    at = torch.cat([x[:1], x[:1] + 50.0])
    draws = process.draws(at, 4000, seed=0)
    assert torch.allclose(draws.std(0), process.std(at), rtol=0.1)
    assert process.std(at)[0].max() < 0.1 * process.std(at)[1].min()


def test_state_travels():
    """A process rebuilt from its configuration and state gives the same numbers bit for bit."""
    x, y = smooth(15)
    process = fit_gp2(x, y)
    again = GaussianProcess(**process.config)
    again.load_state_dict(process.state_dict())
    assert torch.equal(again(x + 0.1), process(x + 0.1))
    at = (x[:2] + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(again, at)


def test_subsets_keep_groups_whole():
    """A limited number of rows never parts a sample from its mirror image."""
    groups = torch.arange(30).repeat(2)
    kept = thin(groups, 21, seed=0)
    assert len(kept) == 20 and torch.equal(torch.bincount(groups[kept]).unique(), torch.tensor([0, 2]))
