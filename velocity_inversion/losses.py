"""The parts of the training loss; v and t are velocities in km/s, [B, 1, Z, X]."""

from __future__ import annotations

import torch


def depth_weights(num_depths: int, slope: float, like: torch.Tensor) -> torch.Tensor:
    """Return weights [Z, 1] that fall linearly from 1 at the top to 1 - slope at the bottom."""
    return torch.linspace(1, 1 - slope, num_depths, device=like.device, dtype=like.dtype)[:, None]


def mape_loss(v: torch.Tensor, t: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Return mean w |v - t| / t."""
    return (weight * (v - t).abs() / t).mean()


def l2_loss(v: torch.Tensor, t: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Return mean w (v - t)^2."""
    return (weight * (v - t).square()).mean()


def gradient_loss(v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return mean |D_z v - D_z t| + mean |D_x v - D_x t|: differences of the truth, so edges stay."""
    e = v - t
    return e.diff(dim=-2).abs().mean() + e.diff(dim=-1).abs().mean()


def bounds_loss(v: torch.Tensor, v_min: float, v_max: float) -> torch.Tensor:
    """Return mean[relu(v_min - v)^2 + relu(v - v_max)^2]."""
    return ((v_min - v).relu().square() + (v - v_max).relu().square()).mean()


def scale_loss(log_scale: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return mean(log 2b + |v - t| / b), b = exp(s): the Laplace likelihood of the error, v detached."""
    error = (v.detach() - t).abs()
    return (torch.log(torch.tensor(2.0)) + log_scale + error * torch.exp(-log_scale)).mean()


def waveform_loss(simulated: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples and shots of ||F(v) - d||_1 / ||d||_1, gathers [B, S, T, R]."""
    misfit = (simulated - observed).abs().sum((-2, -1))
    return (misfit / observed.abs().sum((-2, -1)).clamp_min(1e-20)).mean()
