"""The encoder: reduced coefficients of a trajectory to the residual posterior of every latent.

B batch, C channels (spatial modes), T frames, f_i filters of stage i, K levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from simulgen_vae.layers import ResidualBlock, ZeroLinear, conv, sliced_stem, stage_lengths

INPUT_FLOOR = 1e-3  # relative to the strongest mode; keeps weak modes from becoming pure noise


class Encoder(nn.Module):
    """Strided residual stages with zero-initialised heads: at the start the posterior is the linear one.

    Args:
        filters: f_0..f_{L-1}.
        sigma: standard deviation of each channel, [C].
        num_frames: T.
        latent_dim_end: size of z.
        latent_dim: size of each hierarchical level.
        logvar: start of the log-variances, [latent_dim_end + K * latent_dim].
        size: small or large blocks.
        spectral: normalise the hidden layers.
        checkpointing: recompute the blocks in the backward pass.
    """

    input_scale: torch.Tensor

    def __init__(
        self,
        filters: Sequence[int],
        sigma: torch.Tensor,
        num_frames: int,
        latent_dim_end: int,
        latent_dim: int,
        logvar: torch.Tensor,
        *,
        size: str = "small",
        spectral: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        lengths = stage_lengths(num_frames, len(filters))
        self.register_buffer("input_scale", (sigma + INPUT_FLOOR * sigma.max()).clamp_min(1e-12)[:, None])
        self.stem = nn.Conv1d(len(sigma), filters[0], 1)
        self.time = nn.Parameter(torch.zeros(filters[0], num_frames))
        options = {"spectral": spectral, "checkpointing": checkpointing}
        self.blocks = nn.ModuleList(ResidualBlock(f, size, **options) for f in filters)
        self.downs = nn.ModuleList(
            conv(filters[i - 1], filters[i], 3, spectral=spectral, stride=1 + (lengths[i] < lengths[i - 1]))
            for i in range(1, len(filters))
        )
        self.top = _head(filters[-1] * lengths[-1], latent_dim_end, logvar[:latent_dim_end])
        num_levels = len(filters) - 1
        parts = logvar[latent_dim_end:].split(latent_dim) if num_levels else ()
        self.taps = nn.ModuleList(
            _head(filters[num_levels - 1 - k] * lengths[num_levels - 1 - k], latent_dim, parts[k])
            for k in range(num_levels)
        )

    def forward(self, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return shift [B, nz], log-variance [B, nz], level shifts and log-variance steps [B, K, nh].

        Args:
            c: [B, C, T], in host memory or on the device.
        """
        x = sliced_stem(c, self.input_scale, self.stem) + self.time
        features = []
        for i, block in enumerate(self.blocks):
            x = block(self.downs[i - 1](x) if i else x)
            features.append(x)
        shift, logvar = self.top(x).float().chunk(2, dim=1)
        deepest_first = reversed(features[:-1])
        pairs = [tap(f).float().chunk(2, dim=1) for tap, f in zip(self.taps, deepest_first, strict=True)]
        level_shift = torch.stack([p[0] for p in pairs], dim=1)
        level_step = torch.stack([p[1] for p in pairs], dim=1)
        return shift, logvar, level_shift, level_step


def _head(in_features: int, latents: int, logvar: torch.Tensor) -> ZeroLinear:
    return ZeroLinear(in_features, 2 * latents, torch.cat([torch.zeros(latents), logvar]))
