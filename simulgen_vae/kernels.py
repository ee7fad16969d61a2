"""Covariance functions with one length per input, and the likelihood that chooses their parameters.

Letters: n rows, d inputs, q outputs, C components. All outputs share one covariance, so that their whole
influence on its parameters is the Gram matrix G = Y Y^T, [n, n]: the cost does not depend on q.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

FAMILIES = ("matern52", "rbf")
MIN_NOISE, MAX_NOISE = 1e-9, 1.0
MIN_LENGTH, MAX_LENGTH = 3e-2, 1e3


class Hyper(NamedTuple):
    """Parameters of k(x, x') = sum_c w_c k_c(x, x') + noise [x = x'], with sum_c w_c = 1.

    The overall variance is not among them: the likelihood is concentrated over it.
    """

    log_lengths: torch.Tensor  # [C, d]
    logits: torch.Tensor  # [C], w = softmax
    log_noise: torch.Tensor  # [], relative to the variance of the signal

    def pack(self) -> np.ndarray:
        """Return all parameters as one vector, float64 [C d + C + 1]."""
        return torch.cat([self.log_lengths.reshape(-1), self.logits, self.log_noise.reshape(1)]).numpy()

    @classmethod
    def unpack(cls, vector: torch.Tensor, num_components: int) -> Hyper:
        """Return the parameters that `pack` put into a vector."""
        split = vector.numel() - num_components - 1
        lengths, logits, noise = torch.split(vector, [split, num_components, 1])
        return cls(lengths.reshape(num_components, -1), logits, noise[0])


def correlation(family: str, squared: torch.Tensor) -> torch.Tensor:
    """Return the correlation at squared scaled distances r^2.

    rbf: exp(-r^2/2); matern52: (1 + sqrt5 r + 5 r^2/3) exp(-sqrt5 r), Rasmussen and Williams 2006, 4.9, 4.17.
    """
    if family == "rbf":
        return torch.exp(-0.5 * squared)
    r = torch.sqrt(5.0 * squared + 1e-20)  # the offset keeps the gradient finite at r = 0
    return (1.0 + r + r * r / 3.0) * torch.exp(-r)


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return |a_i - b_j|^2, [m, n], from a [m, d] and b [n, d]."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2.0 * a @ b.T
    return squares.clamp_min(0.0)


def covariance(family: str, hyper: Hyper, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return sum_c w_c k_c(a_i, b_j) without noise, [m, n]; 1 on the diagonal where a = b."""
    weights = torch.softmax(hyper.logits, 0)
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    for weight, log_lengths in zip(weights, hyper.log_lengths, strict=True):
        inverse = torch.exp(-log_lengths)
        total = total + weight * correlation(family, squared_distance(a * inverse, b * inverse))
    return total


def factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the lower Cholesky factor; a matrix that rounding made indefinite gets the least jitter."""
    jitter = 0.0
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(8):
        lower, info = torch.linalg.cholesky_ex(matrix + jitter * eye)
        if int(info) == 0:
            return lower
        jitter = max(1e-10, 10 * jitter)
    raise ValueError("the covariance of these inputs is not positive definite; are inputs NaN?")


def concentrated_likelihood(
    family: str, num_components: int, vector: np.ndarray, x: torch.Tensor, gram: torch.Tensor
) -> tuple[float, np.ndarray]:
    """Return the negative log-likelihood per output without constants, and its gradient.

    f = (n/2) log tr(K^-1 G) + (1/2) log|K|; the variance that all outputs share in the mean is concentrated
    out. df/dK = K^-1/2 - (n/2) K^-1 G K^-1 / tr(K^-1 G), and autograd carries that on to the parameters.

    Args:
        family: of `FAMILIES`.
        num_components: C.
        vector: packed parameters.
        x: [n, d] float64 inputs.
        gram: [n, n] float64, of the centred outputs.
    """
    leaf = torch.from_numpy(vector.copy()).requires_grad_()
    hyper = Hyper.unpack(leaf, num_components)
    n = len(x)
    matrix = covariance(family, hyper, x, x) + torch.exp(hyper.log_noise) * torch.eye(n, dtype=x.dtype)
    with torch.no_grad():
        lower = factor(matrix)
        inverse = torch.cholesky_inverse(lower)
        solved = inverse @ gram
        trace = solved.diagonal().sum().clamp_min(1e-300)
        value = 0.5 * n * torch.log(trace) + lower.diagonal().log().sum()
        slope = 0.5 * inverse - (0.5 * n / trace) * (solved @ inverse)
    matrix.backward(slope)
    assert leaf.grad is not None
    return float(value), leaf.grad.numpy()


def log_likelihood(value: float, num_rows: int, num_outputs: int) -> float:
    """Return the full Gaussian log-likelihood of all outputs from the concentrated value.

    With one variance for all outputs, sigma^2 = tr(K^-1 G)/(n q), the sum over q outputs is
    -q f - (n q / 2) (1 + log(2 pi / (n q))).
    """
    n, q = num_rows, num_outputs
    return -q * value - 0.5 * n * q * (1.0 + math.log(2 * math.pi / (n * q)))


def maximise(
    family: str, start: Hyper, x: torch.Tensor, gram: torch.Tensor, max_iterations: int
) -> tuple[Hyper, float]:
    """Return the parameters near `start` of the highest likelihood (L-BFGS-B in boxes), and its f."""
    from scipy.optimize import minimize

    components, d = start.log_lengths.shape
    bounds = [(math.log(MIN_LENGTH), math.log(MAX_LENGTH))] * (components * d)
    bounds += [(-8.0, 8.0)] * components + [(math.log(MIN_NOISE), math.log(MAX_NOISE))]
    low, high = np.array(bounds).T
    result = minimize(
        lambda v: concentrated_likelihood(family, components, v, x, gram),
        np.clip(start.pack(), low, high),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": max_iterations, "maxcor": 20},
    )
    return Hyper.unpack(torch.from_numpy(np.array(result.x)), components), float(result.fun)
