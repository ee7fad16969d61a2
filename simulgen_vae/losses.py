"""The loss: reconstruction of standardised fields, Kullback-Leibler terms, their weights.

B batch, C channels, T frames, K levels. Everything here is in float32 or better, whatever the networks use.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

LOSS_TYPES = {1: "MSE", 2: "MAE", 3: "SmoothL1", 4: "Huber"}
CHANNEL_SUBSET = 4096  # channels of the mesh that meet a loss other than the mean square in one step
RELATIVE_FLOOR = 0.05


def pointwise(error: torch.Tensor, kind: str, transition: float = 1.0) -> torch.Tensor:
    """Return the loss of each element of `error`, same shape.

    Args:
        error: prediction minus truth.
        kind: MSE, MAE, SmoothL1 or Huber.
        transition: where SmoothL1 (beta) and Huber (delta) pass from quadratic to linear.
    """
    zero = torch.zeros_like(error)
    if kind == "MSE":
        return error.square()
    if kind == "MAE":
        return error.abs()
    if kind == "SmoothL1":
        return F.smooth_l1_loss(error, zero, reduction="none", beta=transition)
    return F.huber_loss(error, zero, reduction="none", delta=transition)


def field_error(error: torch.Tensor, modes: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Return the standardised field that a difference of coefficients means, on the rows of `modes`.

    u/std = sqrt(D / r_s) Phi c, so that the mean squares of both are equal.

    Args:
        error: [B, r_s, T].
        modes: rows of Phi, [d, r_s].
        num_channels: D of the whole mesh.
    """
    return math.sqrt(num_channels / modes.shape[1]) * torch.matmul(modes, error)


def kl_standard(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Return KL(N(mu, e^logvar) || N(0, 1)) of each dimension, in nats.

    KL = (mu^2 + e^logvar - logvar - 1) / 2        (Kingma and Welling 2014, appendix B)
    """
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1.0)


def kl_residual(shift: torch.Tensor, step: torch.Tensor, prior_logvar: torch.Tensor) -> torch.Tensor:
    """Return KL(N(m + shift, e^(v + step)) || N(m, e^v)) of each dimension, in nats.

    KL = (shift^2 / e^v - 1 + e^step - step) / 2   (NVAE, Vahdat and Kautz 2020, arXiv 2007.03898, eq. 2)
    """
    return 0.5 * (shift.square() * torch.exp(-prior_logvar) - 1.0 + step.exp() - step)


def kl_total(kl: torch.Tensor, free_bits: float = 0.0) -> torch.Tensor:
    """Return the sum over dimensions of the batch mean of `kl` [B, ...], each at least `free_bits` nats.

    A dimension below the floor gets no gradient from it (Kingma et al. 2016, arXiv 1606.04934).
    """
    mean = kl.flatten(1).mean(dim=0)
    return (mean.clamp_min(free_bits) if free_bits > 0 else mean).sum()


def relative_weights(norm2: torch.Tensor) -> torch.Tensor:
    """Return weights 1 / (norm2 / mean + 0.05) of samples with squared norms `norm2` [N], mean 1."""
    weights = 1.0 / (norm2 / norm2.mean().clamp_min(1e-30) + RELATIVE_FLOOR)
    return weights / weights.mean()


def latent_loss(main: torch.Tensor, levels: torch.Tensor, weights: tuple[float, float]) -> torch.Tensor:
    """Return weights[0] mean(main^2) + weights[1] mean(levels^2) of errors in z-scored latents."""
    return weights[0] * main.square().mean() + weights[1] * levels.square().mean()
