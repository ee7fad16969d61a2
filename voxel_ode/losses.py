"""The training loss: squared errors of pressure, temperature and the five field rates.

Every term is a mean over samples of a mean within the sample, so that a batch cut into pieces, or shared
among ranks, gives the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.losses import masked_mean


def grid_losses(
    prediction: torch.Tensor, truth: torch.Tensor, domains: torch.Tensor, units: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return L_P and L_T: the masked means of ((x' - truth) / u)^2.

    Args:
        prediction: normalised, [B, 2, D, H, W].
        truth: same shape.
        domains: where the loss counts for P and T, [B, 2, D, H, W].
        units: u in normalised units, [2].
    """
    square = ((prediction - truth) / units[:, None, None, None]).square()
    pressure, temperature = (masked_mean(square[:, i], domains[:, i]).mean() for i in range(2))
    return pressure, temperature


def scalar_loss(prediction: torch.Tensor, truth: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return L_s: the mean squared error of the five normalised scalars.

    Args:
        prediction: [B, 5].
        truth: [B, 5].
        counts: 0 for a sample that does not count, [B].
    """
    return ((prediction - truth).square().mean(dim=1) * counts).mean()


def weighted_sum(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return w_P L_P + w_T L_T + w_s L_s."""
    return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum()
