"""The decoder: latents to the features of a trajectory, with the prior of each level on the way.

B batch, T frames, d_i filters of stage i, K levels, nz and nh sizes of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from simulgen_vae.layers import ResidualBlock, ZeroLinear, conv, stage_lengths, zero_conv
from simulgen_vae.spectral import spectral_norm

LOGVAR_MIN, LOGVAR_MAX = -20.0, 6.0


def clamp_logvar(logvar: torch.Tensor) -> torch.Tensor:
    """Return a log-variance inside [-20, 6]."""
    return logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)


class Levels(NamedTuple):
    """What the decoder says of the hierarchical latents, each [B, K, nh].

    `h` are the values used, N(`mean`, exp(`logvar`)) is the prior p(h_l | z, h_<l).
    """

    h: torch.Tensor
    mean: torch.Tensor
    logvar: torch.Tensor


class Posterior(NamedTuple):
    """Residual posterior of the levels and the noise to draw with, each [B, K, nh].

    q(h_l) = N(m_l + shift, exp(v_l + step)); h = m_l + shift + exp((v_l + step) / 2) noise.
    """

    shift: torch.Tensor
    step: torch.Tensor
    noise: torch.Tensor


class Level(nn.Module):
    """One level: up-sampling, prior head, and the way of its latent into the features."""

    def __init__(
        self, before: int, after: int, length: int, latent_dim: int, size: str, spectral: bool, ckpt: bool
    ) -> None:
        super().__init__()
        self.length = length
        self.latent_dim = latent_dim
        self.up = conv(before, after, 3, spectral=spectral)
        self.prior = ZeroLinear(after, 2 * latent_dim)
        self.aux = spectral_norm(nn.Linear(latent_dim, latent_dim * length), spectral)
        self.mix = conv(latent_dim, after, 5, spectral=spectral)
        self.block = ResidualBlock(after, size, spectral=spectral, checkpointing=ckpt)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features at this level's length, [B, d_l, T_l]."""
        if x.shape[-1] != self.length:
            x = F.interpolate(x, size=self.length, mode="linear", align_corners=False)
        return self.up(x)

    def prior_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance of the prior, [B, nh] each."""
        mean, logvar = self.prior(x.mean(dim=-1)).float().chunk(2, dim=1)
        return mean, clamp_logvar(logvar)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Return the features with the latent `h` [B, nh] added, [B, d_l, T_l]."""
        added = self.mix(self.aux(h).unflatten(1, (self.latent_dim, self.length)))
        return self.block(x + added)


class Decoder(nn.Module):
    """Reversed stages of the encoder; `head` makes channels of the last features and starts as zero.

    Args:
        filters: f_0..f_{L-1} of the encoder.
        num_channels: C.
        num_frames: T.
        latent_dim_end: nz.
        latent_dim: nh.
        size: small or large blocks.
        spectral: normalise the hidden layers.
        checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(
        self,
        filters: Sequence[int],
        num_channels: int,
        num_frames: int,
        latent_dim_end: int,
        latent_dim: int,
        *,
        size: str = "small",
        spectral: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths = list(reversed(filters))
        lengths = list(reversed(stage_lengths(num_frames, len(filters))))
        self.start_shape = (widths[0], lengths[0])
        self.start = spectral_norm(nn.Linear(latent_dim_end, widths[0] * lengths[0]), spectral)
        self.first = nn.Sequential(
            conv(widths[0], widths[0], 5, spectral=spectral),
            ResidualBlock(widths[0], size, spectral=spectral, checkpointing=checkpointing),
        )
        self.levels = nn.ModuleList(
            Level(widths[i - 1], widths[i], lengths[i], latent_dim, size, spectral, checkpointing)
            for i in range(1, len(widths))
        )
        self.head = zero_conv(widths[-1], num_channels)

    def forward(
        self, z: torch.Tensor, h: torch.Tensor | None = None, posterior: Posterior | None = None
    ) -> tuple[torch.Tensor, Levels]:
        """Return features [B, d_K, T] and the levels.

        Args:
            z: [B, nz].
            h: the level latents [B, K, nh], when they are known.
            posterior: how to draw them otherwise.
        """
        x = self.first(self.start(z).unflatten(1, self.start_shape))
        used, means, logvars = [], [], []
        for k, level in enumerate(self.levels):
            assert isinstance(level, Level)
            x = level.features(x)
            mean, logvar = level.prior_of(x)
            if h is not None:
                value = h[:, k]
            else:
                assert posterior is not None
                std = torch.exp(0.5 * clamp_logvar(logvar + posterior.step[:, k]))
                value = mean + posterior.shift[:, k] + std * posterior.noise[:, k]
            x = level(x, value)
            used.append(value)
            means.append(mean)
            logvars.append(logvar)
        return x, Levels(torch.stack(used, 1), torch.stack(means, 1), torch.stack(logvars, 1))
