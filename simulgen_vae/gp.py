"""Exact Gaussian processes with many outputs: fit, predict, spread, leave one out, all in float64.

Letters: n rows, d inputs, q outputs, C kernel components. One covariance serves all outputs (the intrinsic
model: cov(Y) = K (x) S), which is what makes thousands of coefficients as cheap as one. The same machinery
with two components (`gp2`) finds a long and a short scale in one sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.log import get_logger
from common.noise import gaussian, numpy_stream
from simulgen_vae.kernels import (
    FAMILIES,
    Hyper,
    concentrated_likelihood,
    covariance,
    factor,
    log_likelihood,
    maximise,
)

MAX_HYPER_ROWS = 500  # rows that choose the parameters
MAX_EXACT_ROWS = 2000  # rows that are conditioned on
SCREEN_ROWS = 200  # rows on which the starts compete


class GaussianProcess(nn.Module):
    """A fitted process: f(x) = mean + k(x, X) alpha, with its spread; plain tensors only.

    Attributes:
        family: covariance family.
        x: [n, d] the rows it is conditioned on.
        mean: [q].
        alpha: [n, q] = K^-1 (Y - mean).
        inverse: [n, n] = K^-1.
        root: [n, q] = L^-1 (Y - mean)/sqrt(n), so that root^T root is the covariance of the outputs.
    """

    x: torch.Tensor
    mean: torch.Tensor
    alpha: torch.Tensor
    inverse: torch.Tensor
    root: torch.Tensor
    log_lengths: torch.Tensor
    logits: torch.Tensor
    log_noise: torch.Tensor

    def __init__(
        self, family: str, num_rows: int, num_inputs: int, num_outputs: int, num_components: int
    ) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"family {family!r}: expected one of {FAMILIES}")
        self.family = family
        n, d, q, c = num_rows, num_inputs, num_outputs, num_components
        shapes = {"x": (n, d), "mean": (q,), "alpha": (n, q), "inverse": (n, n), "root": (n, q)}
        shapes |= {"log_lengths": (c, d), "logits": (c,), "log_noise": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def config(self) -> dict[str, Any]:
        """What `GaussianProcess(**config)` needs to hold the same state."""
        (n, q), (c, d) = self.alpha.shape, self.log_lengths.shape
        return {"family": self.family, "num_rows": n, "num_inputs": d, "num_outputs": q, "num_components": c}

    @property
    def hyper(self) -> Hyper:
        """The parameters of the covariance."""
        return Hyper(self.log_lengths, self.logits, self.log_noise)

    def condition(self, hyper: Hyper, x: torch.Tensor, y: torch.Tensor) -> GaussianProcess:
        """Take over parameters and rows; return itself."""
        matrix = covariance(self.family, hyper, x, x)
        matrix = matrix + torch.exp(hyper.log_noise) * torch.eye(len(x), dtype=x.dtype)
        lower = factor(matrix)
        mean = y.mean(0)
        values = {
            "x": x,
            "mean": mean,
            "alpha": torch.cholesky_solve(y - mean, lower),
            "inverse": torch.cholesky_inverse(lower),
            "root": torch.linalg.solve_triangular(lower, y - mean, upper=False) / math.sqrt(len(x)),
            **hyper._asdict(),
        }
        for name, value in values.items():
            getattr(self, name).copy_(value.detach())
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean prediction [B, q] for inputs [B, d], float64."""
        return self.mean + covariance(self.family, self.hyper, x.double(), self.x) @ self.alpha

    def variance(self, x: torch.Tensor) -> torch.Tensor:
        """Return the predictive variance [B], in units of the outputs' own covariance, noise included."""
        k = covariance(self.family, self.hyper, x.double(), self.x)
        explained = ((k @ self.inverse) * k).sum(1)
        return (1.0 + torch.exp(self.log_noise) - explained).clamp_min(torch.exp(self.log_noise))

    def std(self, x: torch.Tensor) -> torch.Tensor:
        """Return the predictive standard deviation of each output, [B, q]."""
        return torch.sqrt(self.variance(x))[:, None] * self.root.square().sum(0).sqrt()

    def draws(self, x: torch.Tensor, num: int, seed: int) -> torch.Tensor:
        """Return draws of the predictive distribution, [num, B, q], outputs correlated as they are."""
        return self(x) + self.deviations(self.variance(x), num, seed)

    def deviations(self, variance: torch.Tensor, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, B, q] around a mean, of predictive variance [B] (see `variance`)."""
        shape, device = (num, len(variance), len(self.root)), variance.device
        noise = gaussian(shape, seed, "gp draws", device=device, dtype=torch.float64)
        return torch.sqrt(variance)[:, None] * (noise @ self.root)

    def left_out(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction [g, q] of some of its rows given all others, and its variance [g].

        See `leave_out`; the variance is the diagonal of (K^-1)_gg^-1, noise included.
        """
        block, noise = torch.linalg.inv(self.inverse[rows][:, rows]), torch.exp(self.log_noise)
        matrix = covariance(self.family, self.hyper, self.x[rows], self.x)
        targets = self.mean + matrix @ self.alpha + noise * self.alpha[rows]
        return targets - block @ self.alpha[rows], block.diagonal().clamp_min(noise)

    def leave_out(self, groups: torch.Tensor) -> torch.Tensor:
        """Return the prediction of every row without the rows of its own group, [n, q], in closed form.

        y_g - f_g = (K^-1)_gg^-1 (K^-1 y)_g (Rasmussen and Williams 2006, 5.12, for blocks). The mean and the
        parameters stay those of all rows.

        Args:
            groups: [n] int64; a row and its mirror image carry the same number.
        """
        residual = torch.empty_like(self.alpha)
        order = torch.argsort(groups, stable=True)
        _, counts = torch.unique_consecutive(groups[order], return_counts=True)
        for rows in torch.split(order, counts.tolist()):
            residual[rows] = torch.linalg.solve(self.inverse[rows][:, rows], self.alpha[rows])
        return self.targets() - residual

    def targets(self) -> torch.Tensor:
        """Return the outputs [n, q] that it was conditioned on (up to rounding)."""
        matrix = covariance(self.family, self.hyper, self.x, self.x)
        return self.mean + matrix @ self.alpha + torch.exp(self.log_noise) * self.alpha


def starts(num_inputs: int, num_components: int, count: int, seed: int) -> list[Hyper]:
    """Return start values: the first component long, the second shorter, lengths jittered."""
    found = []
    for i in range(count):
        rng = numpy_stream(seed, "gp start", num_components, i)
        base = math.log(math.sqrt(num_inputs)) + (0.0, 0.7, -0.4, 0.4)[i % 4]
        lengths = torch.full((num_components, num_inputs), base, dtype=torch.float64)
        lengths += torch.from_numpy(0.3 * (i > 0) * rng.standard_normal((num_components, num_inputs)))
        for c in range(1, num_components):
            lengths[c] -= (1.2, 0.8, 1.8, 2.8)[i % 4] * c
        logits = torch.zeros(num_components, dtype=torch.float64)
        noise = torch.tensor(math.log((1e-3, 1e-5, 1e-4, 1e-2)[i % 4]), dtype=torch.float64)
        found.append(Hyper(lengths, logits, noise))
    return found


def thin(groups: torch.Tensor, limit: int, seed: int) -> torch.Tensor:
    """Return at most `limit` row numbers, whole groups only, spread at random; all rows when they fit."""
    if len(groups) <= limit:
        return torch.arange(len(groups))
    names, counts = torch.unique(groups, return_counts=True)
    order = torch.from_numpy(numpy_stream(seed, "gp rows", limit).permutation(len(names)))
    kept = names[order][torch.cumsum(counts[order], 0) <= limit]
    return torch.nonzero(torch.isin(groups, kept))[:, 0]


def choose_hyper(
    x: torch.Tensor,
    y: torch.Tensor,
    groups: torch.Tensor,
    *,
    family: str,
    num_components: int,
    num_starts: int,
    seed: int,
) -> tuple[Hyper, float]:
    """Return the parameters of the highest likelihood over several starts, and its f per row.

    The starts compete on few rows; the best two finish on at most `MAX_HYPER_ROWS`.
    """
    few, many = thin(groups, SCREEN_ROWS, seed), thin(groups, MAX_HYPER_ROWS, seed)

    def gram(rows: torch.Tensor) -> torch.Tensor:
        centred = y[rows] - y[rows].mean(0)
        matrix = centred @ centred.T
        return matrix / matrix.diagonal().mean().clamp_min(1e-300)

    first = gram(few)
    screened = [
        maximise(family, start, x[few], first, 60)
        for start in starts(x.shape[1], num_components, num_starts, seed)
    ]
    screened.sort(key=lambda item: item[1])
    second = gram(many)
    finished = [maximise(family, hyper, x[many], second, 150) for hyper, _ in screened[:2]]
    hyper, value = min(finished, key=lambda item: item[1])
    return hyper, value / len(many)


def fit_gp(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    families: Sequence[str] = ("matern52",),
    num_components: int = 1,
    num_starts: int = 2,
    seed: int = 0,
) -> GaussianProcess:
    """Fit one process to all outputs; the family of the highest likelihood is kept.

    Args:
        x: [n, d] inputs of about unit spread.
        y: [n, q] outputs.
        weights: [q] importance of each output for the choice of the parameters; default 1.
        groups: [n] rows that belong together (a sample and its mirror image); default each its own.
        families: covariance families to try.
        num_components: 1, or 2 for gp2.
        num_starts: starts of the search in each family.
        seed: of starts and row choices.
    """
    x, y = x.double(), y.double()
    groups = torch.arange(len(x)) if groups is None else groups
    kept = thin(groups, MAX_EXACT_ROWS, seed)
    if len(kept) < len(x):
        get_logger().warning(
            f"GP: {len(x)} rows, exact to {MAX_EXACT_ROWS}; a seeded subset of {len(kept)} is used"
        )
        x, y, groups = x[kept], y[kept], groups[kept]
    weighted = y if weights is None else y * weights.double()
    found: dict[str, tuple[Hyper, float]] = {}
    for family in families:
        found[family] = choose_hyper(
            x,
            weighted,
            groups,
            family=family,
            num_components=num_components,
            num_starts=num_starts,
            seed=seed,
        )
    best = min(found, key=lambda name: found[name][1])
    process = GaussianProcess(best, len(x), x.shape[1], y.shape[1], num_components)
    return process.condition(found[best][0], x, y)


def fit_gp2(
    x: torch.Tensor, y: torch.Tensor, *, groups: torch.Tensor | None = None, seed: int = 0
) -> GaussianProcess:
    """Fit a sum of a long and a short covariance, RBF or Matern-5/2, whichever the data make likelier."""
    return fit_gp(x, y, groups=groups, families=FAMILIES, num_components=2, num_starts=4, seed=seed)


def likelihood_of(process: GaussianProcess, y: torch.Tensor) -> float:
    """Return the log-likelihood of all outputs [n, q] under a fitted process at its best variance."""
    centred = y.double() - y.double().mean(0)
    value, _ = concentrated_likelihood(
        process.family, len(process.logits), process.hyper.pack(), process.x, centred @ centred.T
    )
    return log_likelihood(value, len(y), y.shape[1])
