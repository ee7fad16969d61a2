"""The terms of the critics' and generators' losses, each for one scale.

B batch, C facies, H W grid or window; `real` is the section's own area average, `data` the conditioning
[B, C + 1, H, W] of proportions and mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from common import distributed

LAGS = (1, 2, 4, 8)  # cells, of the variogram term
RARE = 0.01  # share of a facies below which its connectivity counts less


def mean_score(scores: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return D(x_b|c), the mean [B] of each score map [B, 1, h, w], with `weights` [B, h, w] for windows."""
    scores = scores[:, 0] if weights is None else scores[:, 0] * weights
    return scores.mean(dim=(1, 2))


def gradient_penalty(
    critic: Callable[[torch.Tensor], torch.Tensor], real: torch.Tensor, fake: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """Return GP = mean_b (sqrt(H W) ||grad_x D(x_b)||_2 - 1)^2, x_b = eps_b real + (1 - eps_b) fake.

    The norm is over C, H and W. D is a mean over H W cells, so its gradient shrinks like 1 / sqrt(H W): with
    the factor the penalty means the same at every scale (for D(x) = mean(w . x) it is (||w|| - 1)^2).
    (Gulrajani et al. 2017, equation 3)

    Args:
        critic: [B, C, H, W] -> mean scores [B].
        real: [B, C, H, W].
        fake: [B, C, H, W].
        eps: [B], uniform in (0, 1), one a sample.
    """
    share = eps.view(-1, 1, 1, 1)
    x = (share * real + (1 - share) * fake.detach()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    area = x.shape[-2] * x.shape[-1]
    # The tiny term keeps the root differentiable where a critic is flat.
    norm = (gradient.square().sum(dim=(1, 2, 3)) * area + 1e-12).sqrt()
    return (norm - 1).square().mean()


def well_loss(logits: torch.Tensor, real: torch.Tensor, mask: torch.Tensor, draws: int = 1) -> torch.Tensor:
    """Return the mean over samples of the cross-entropy at cells with data, before injection.

    The target is the section's own proportions `real`, not the datum: a datum fills a fraction of a coarse
    cell, and painting the whole cell with it would pull every datum into the middle of a body. With several
    draws their mean probability is compared: the datum does not tell the share of its coarse cell, and draws
    that each had to show the expected share would never put a datum beside the edge of a body.

    Args:
        logits: [B m, C, H, W], m = `draws` in a row for each sample.
        real: [B, C, H, W].
        mask: [B, H, W], 1 at data; a sample without data adds 0.
        draws: m.
    """
    logs = torch.log_softmax(logits, dim=1).view(real.shape[0], draws, *real.shape[1:])
    entropy = -(real * (logs.logsumexp(dim=1) - math.log(draws))).sum(dim=1)
    count = mask.sum(dim=(1, 2)).clamp(min=1)
    return ((entropy * mask).sum(dim=(1, 2)) / count).mean()


def reconstruction_loss(output: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the probabilities [B, C, H, W]."""
    return (output - real).square().mean()


def diversity_loss(fakes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs i < j of exp(-10 MSE(fake_i, fake_j)) on cells without data.

    Args:
        fakes: [B, m, C, H, W], m noise draws of each section.
        mask: [B, H, W], 1 at data.
    """
    draws = fakes.shape[1]
    free = (1 - mask)[:, None, None]
    cells = free.sum(dim=(2, 3, 4)).clamp(min=1)[:, 0] * fakes.shape[2]
    parts = []
    for i in range(draws):
        for j in range(i + 1, draws):
            error = ((fakes[:, i] - fakes[:, j]).square() * free[:, 0]).sum(dim=(1, 2, 3)) / cells
            parts.append(torch.exp(-10 * error))
    return torch.stack(parts).mean() if parts else fakes.new_zeros(())


def proportion_loss(
    fake: torch.Tensor, real: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return sum_c (p_c(fake batch) - p_c(real batch))^2 with the batch of all ranks.

    Args:
        fake: [Bf, C, H, W].
        real: [B, C, H, W], Bf a multiple of B.
        weights: [B, H, W] of windows.
    """
    return _squared_gap(_mean(fake, weights), _mean(real, weights))


def variogram_loss(
    fake: torch.Tensor, real: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return sum_c,h (gamma_c(h; fake batch) - gamma_c(h; real batch))^2 with the batch of all ranks.

    gamma_c(h) = mean (o_c(x) - o_c(x + h))^2 / 2 along both axes, and mean o_c^2 for h = 0, which holds the
    contrast: critics of small batches leave it to drift, and the diversity term raises it.

    Args:
        fake: [Bf, C, H, W].
        real: [B, C, H, W], Bf a multiple of B.
        weights: [B, H, W] of windows; a pair counts as its first cell.
    """
    pairs = [(_mean(fake.square(), weights), _mean(real.square(), weights))]
    for axis in (-2, -1):
        for lag in LAGS:
            if 2 * lag <= fake.shape[axis]:
                pairs.append((_gamma(fake, weights, axis, lag), _gamma(real, weights, axis, lag)))
    return _squared_gap(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))


def connectivity_loss(
    fake: torch.Tensor,
    real: torch.Tensor,
    places: tuple[float, float],
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum over facies and lines of (reach(fake batch) - reach(real batch))^2, all ranks together.

    The reach is the share of a facies that is connected with a line across the grid: a row, and a column. Its
    gradient finds the weakest cell of the path to whatever is cut off, and so closes gaps in bodies. A facies
    with less than one cell in a hundred is reckoned as if it had that many.

    Args:
        fake: [Bf, C, H, W].
        real: [B, C, H, W], Bf a multiple of B.
        places: of the row and of the column, shares of the height and of the width.
        weights: [B, H, W] of windows.
    """
    reaches = []
    for x in (fake, real):
        size = _mean(x, weights)
        lines = [_mean(flood(x, axis, place), weights) for axis, place in zip((-2, -1), places, strict=True)]
        size = (size + 1e-6).clamp(min=RARE)
        reaches.append(torch.cat([line / size for line in lines]))
    return _squared_gap(reaches[0], reaches[1])


def flood(x: torch.Tensor, axis: int, place: float) -> torch.Tensor:
    """Return how strongly each cell is connected with a line, [B, C, H, W]: the best path's weakest cell.

    Reconstruction by dilation of the line under x, over the 4 neighbours (Vincent 1993, section III), for as
    many steps as the grid has cells along its longer side. It works on the ranks of the cells, which say at
    the end whose value it is: the gradient goes to that cell, and the steps need no memory.

    Args:
        x: probabilities.
        axis: -2 = the line is a row, -1 = a column.
        place: of the line, from 0 to 1.
    """
    height, width = x.shape[-2:]
    cells = x.reshape(-1, height * width)
    order = cells.detach().argsort(dim=1)
    places = torch.arange(1, height * width + 1, device=x.device, dtype=torch.float32)
    ranks = torch.empty_like(cells, dtype=torch.float32).scatter_(1, order, places.expand_as(cells))
    ranks = ranks.view(-1, height, width)
    start = min(int(place * x.shape[axis]), x.shape[axis] - 1)
    reached = F.pad(torch.zeros_like(ranks), (1, 1, 1, 1))  # 0 = not reached; a frame that never is
    inner = reached[:, 1:-1, 1:-1]
    line = (slice(None), start) if axis == -2 else (slice(None), slice(None), start)
    inner[line] = ranks[line]
    for _ in range(max(height, width)):
        best = torch.maximum(reached[:, :-2, 1:-1], reached[:, 2:, 1:-1])
        best = torch.maximum(best, reached[:, 1:-1, :-2])
        best = torch.maximum(best, reached[:, 1:-1, 2:])
        inner.copy_(torch.minimum(torch.maximum(best, inner), ranks))
    weakest = inner.reshape(cells.shape[0], -1).long()
    return F.pad(cells.gather(1, order), (1, 0)).gather(1, weakest).view_as(x)


def _gamma(x: torch.Tensor, weights: torch.Tensor | None, axis: int, lag: int) -> torch.Tensor:
    """Return gamma_c(lag) along an axis, [C]."""
    count = x.shape[axis] - lag
    step = x.narrow(axis, 0, count) - x.narrow(axis, lag, count)
    return _mean(step.square(), None if weights is None else weights.narrow(axis, 0, count)) / 2


def _mean(x: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return the mean [C] over the batch [B m, C, H, W] and its cells, with `weights` [B, H, W]."""
    if weights is not None:
        x = x * weights.repeat_interleave(x.shape[0] // weights.shape[0], dim=0)[:, None]
    return x.mean(dim=(0, 2, 3))


def _squared_gap(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the sum of (fake - real)^2 for batch means [K], with the batch of all ranks.

    Its gradient is that of the whole batch: the difference is averaged over ranks, and each rank's part flows
    through its own cells.
    """
    difference = distributed.reduce_mean((fake - real).detach())
    surrogate = (2 * difference * fake).sum()
    return surrogate - surrogate.detach() + difference.square().sum()
