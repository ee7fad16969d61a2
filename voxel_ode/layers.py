"""Norms, conditioning and residual blocks of the network.

Letters: B batch, C channels, D H W cells along Z Y X, P parameters. Activations are in channels-last order
and zero on inactive cells wherever a convolution reads them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from voxel_ode.convolutions import Conv

NORMS = ("channel", "running", "group1", "masked_group")
LOCAL_NORMS = ("channel", "running")
EPSILON = 1e-5
Film = tuple[torch.Tensor, torch.Tensor]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel: purely local (Ba, Kiros and Hinton 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        """Normalise `x` [B, C, D, H, W]."""
        rows = x.permute(0, 2, 3, 4, 1)
        return F.layer_norm(rows, rows.shape[-1:], self.weight, self.bias, EPSILON).permute(0, 4, 1, 2, 3)


class GroupNorm(nn.Module):
    """Mean and variance over all channels and cells of a sample, or over its active cells only."""

    def __init__(self, channels: int, *, masked: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.masked = masked

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalise `x` [B, C, D, H, W] with `mask` [B, 1, D, H, W]."""
        if not self.masked:
            return F.group_norm(x, 1, self.weight, self.bias, EPSILON)
        mean, variance = masked_moments(x, mask)
        return _scaled(x, mean, variance, self.weight, self.bias)


class RunningNorm(nn.modules.batchnorm._NormBase):
    """Statistics of a sample's active cells while learning, their running averages afterwards.

    `frozen` (set late in training) and evaluation use the averages; the norm is then local. The averages are
    buffers that `common.distributed.average_buffers` keeps equal over ranks.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, momentum: float = 0.05) -> None:
        super().__init__(1, EPSILON, momentum, affine=False, track_running_stats=True)
        self.share = momentum
        self.gain = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))
        self.frozen = False

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalise `x` [B, C, D, H, W] with `mask` [B, 1, D, H, W]."""
        if self.frozen or not self.training:
            mean, variance = (b.view(1, 1, 1, 1, 1) for b in (self.running_mean, self.running_var))
        else:
            mean, variance = masked_moments(x, mask)
            with torch.no_grad():
                self.running_mean.lerp_(mean.float().mean().view(1), self.share)
                self.running_var.lerp_(variance.float().mean().view(1), self.share)
        return _scaled(x, mean, variance, self.gain, self.offset)


def masked_moments(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance over channels and active cells, [B, 1, 1, 1, 1] each, in fp32."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    axes = (1, 2, 3, 4)
    count = (mask.sum(axes, keepdim=True) * x.shape[1]).clamp(min=1.0)
    mean = (x * mask).sum(axes, keepdim=True) / count
    return mean, ((x - mean).square() * mask).sum(axes, keepdim=True) / count


def _scaled(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    scale = torch.rsqrt(variance + EPSILON) * gain[:, None, None, None]
    return (x - mean) * scale + offset[:, None, None, None]


def make_norm(name: str, channels: int) -> nn.Module:
    """Return the norm `name` for this many channels."""
    if name == "channel":
        return ChannelNorm(channels)
    if name == "running":
        return RunningNorm(channels)
    return GroupNorm(channels, masked=name == "masked_group")


def modulate(x: torch.Tensor, film: Film) -> torch.Tensor:
    """Return (1 + gamma) x + beta with gamma, beta [B, C] (FiLM, Perez et al. 2018)."""
    gamma, beta = (part[:, :, None, None, None] for part in film)
    return torch.addcmul(x + beta, x, gamma)


def make_film(num_inputs: int, channels: int) -> nn.Linear:
    """Return the layer that gives (gamma, beta) of a block; zero at the start, so it changes nothing."""
    film = nn.Linear(num_inputs, 2 * channels)
    nn.init.zeros_(film.weight)
    nn.init.zeros_(film.bias)
    return film


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM after the second norm; x = SiLU(x + h) on active cells."""

    def __init__(self, channels: int, kernel: int, norm: str, num_film: int, level: int = 0) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, kernel)
        self.norm1 = make_norm(norm, channels)
        self.conv2 = Conv(channels, channels, kernel)
        self.norm2 = make_norm(norm, channels)
        self.film = make_film(num_film, channels)
        self.conv1.level = self.conv2.level = level
        self.radius = 2 * (kernel // 2)

    def forward(self, x: torch.Tensor, film: Film, mask: torch.Tensor) -> torch.Tensor:
        """Return the block's output for `x` [B, C, D, H, W] and `mask` [B, 1, D, H, W]."""
        h = F.silu(self.norm1(self.conv1(x), mask)) * mask
        h = modulate(self.norm2(self.conv2(h), mask), film)
        return F.silu(x + h) * mask


class SeparableBlock(nn.Module):
    """One large depthwise convolution, then a perceptron over the channels of each voxel."""

    def __init__(self, channels: int, kernel: int, norm: str, num_film: int, level: int = 0) -> None:
        super().__init__()
        self.depthwise = Conv(channels, channels, kernel, groups=channels, bias=True)
        self.norm = make_norm(norm, channels)
        self.film = make_film(num_film, channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = nn.Linear(4 * channels, channels)
        self.depthwise.level = level
        self.radius = kernel // 2

    def forward(self, x: torch.Tensor, film: Film, mask: torch.Tensor) -> torch.Tensor:
        """Return the block's output for `x` [B, C, D, H, W] and `mask` [B, 1, D, H, W]."""
        h = modulate(self.norm(self.depthwise(x), mask), film)
        rows = self.contract(F.silu(self.expand(h.permute(0, 2, 3, 4, 1))))
        return (x + rows.permute(0, 4, 1, 2, 3)) * mask


def make_block(
    kernel_mode: str, channels: int, kernel: int, norm: str, num_film: int, level: int
) -> nn.Module:
    """Return a block of `kernel_mode`: stem (3^3), dense (k^3) or separable (depthwise k^3)."""
    if kernel_mode == "separable":
        return SeparableBlock(channels, kernel, norm, num_film, level)
    return ResidualBlock(channels, kernel if kernel_mode == "dense" else 3, norm, num_film, level)


def pooled(x: torch.Tensor, mask: torch.Tensor, coarse_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `x` over the active ones of each 2^3 cells; 0 where none is.

    Args:
        x: [B, C, D, H, W], zero on inactive cells; even D, H, W.
        mask: [B, 1, D, H, W].
        coarse_mask: [B, 1, D/2, H/2, W/2] of cells with any active one.
    """
    share = F.avg_pool3d(mask, 2)
    return F.avg_pool3d(x, 2) / torch.where(coarse_mask > 0, share, torch.ones_like(share))


def coarser(mask: torch.Tensor) -> torch.Tensor:
    """Return [B, 1, D/2, H/2, W/2]: 1 where any of 2^3 cells is active."""
    return F.max_pool3d(mask, 2)


def spread(x: torch.Tensor) -> torch.Tensor:
    """Return `x` [B, C, D, H, W] with each cell repeated as 2^3 cells."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
