"""The hierarchical VAE of whole trajectories: linear start, residual encoder and decoder.

B batch, C channels (r_s spatial modes, or D = M V without a front end), T frames, K levels, nz and nh sizes
of the latents, n = nz + K nh.  Latents in order: z, h_1, ..., h_K; h_1 is the deepest level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from simulgen_vae.decoder import Decoder, Posterior, clamp_logvar
from simulgen_vae.encoder import Encoder
from simulgen_vae.layers import SIZES, stage_lengths
from simulgen_vae.linear_part import LinearPart, pad_modes, start_logvar
from simulgen_vae.spectral import fold


@dataclass(frozen=True)
class VaeShape:
    """Everything that fixes the weights' shapes; plain values, stored in checkpoints.

    Attributes:
        channels: C.
        frames: T.
        filters: f_0..f_{L-1} of the encoder, the decoder has them reversed.
        size: small or large residual blocks.
        latent_dim_end: nz.
        latent_dim: nh.
        spectral_norm: normalise hidden layers.
        train_linear: the linear part is trained too.
    """

    channels: int
    frames: int
    filters: tuple[int, ...] = (128, 96, 64, 48)
    size: str = "small"
    latent_dim_end: int = 32
    latent_dim: int = 8
    spectral_norm: bool = True
    train_linear: bool = False

    def __post_init__(self) -> None:
        """Check that every stage has at least one channel and one frame."""
        object.__setattr__(self, "filters", tuple(int(f) for f in self.filters))
        least = min(self.channels, self.frames, self.latent_dim, self.latent_dim_end, *self.filters)
        if least < 1 or len(self.filters) < 2:
            raise ValueError(
                f"channels {self.channels}, frames {self.frames}, latents {self.latent_dim_end} and "
                f"{self.latent_dim}, filters {self.filters}: expected two or more filters, all 1 or more"
            )
        if self.size not in SIZES:
            raise ValueError(f"--size {self.size}: expected one of {', '.join(SIZES)}")

    @property
    def num_levels(self) -> int:
        """K."""
        return len(self.filters) - 1

    @property
    def num_latents(self) -> int:
        """Number of latents n = nz + K nh."""
        return self.latent_dim_end + self.num_levels * self.latent_dim

    @property
    def lengths(self) -> list[int]:
        """Frames of the stages."""
        return stage_lengths(self.frames, len(self.filters))

    def state(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "filters": list(self.filters)}


class Start(NamedTuple):
    """The linear solution that a network starts from.

    Attributes:
        mean: cbar [C, T].
        modes: W [m, C, T], orthonormal, strongest first.
        scales: s [m], standard deviations of the scores.
        sigma: standard deviation of each channel over samples and frames, [C].
    """

    mean: torch.Tensor
    modes: torch.Tensor
    scales: torch.Tensor
    sigma: torch.Tensor


def empty_start(shape: VaeShape) -> Start:
    """Return a start of the right shapes whose values a checkpoint will fill."""
    size = (shape.channels, shape.frames)
    count = shape.num_latents
    return Start(torch.zeros(size), torch.zeros(count, *size), torch.zeros(count), torch.ones(size[0]))


class VaeOutput(NamedTuple):
    """Reduced coefficients and every distribution of one pass.

    Attributes:
        features: last features of the decoder, [B, f_0, T].
        zeta: all latents used, [B, n].
        mu: posterior mean of z, [B, nz].
        logvar: posterior log-variance of z, [B, nz].
        shift: dm of the levels, [B, K, nh].
        step: dv of the levels, [B, K, nh].
        h: level latents used, [B, K, nh].
        prior_mean: m of the levels, [B, K, nh].
        prior_logvar: v of the levels, [B, K, nh].
    """

    features: torch.Tensor
    zeta: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor
    shift: torch.Tensor
    step: torch.Tensor
    h: torch.Tensor
    prior_mean: torch.Tensor
    prior_logvar: torch.Tensor


class HierarchicalVae(nn.Module):
    """LSH-VAE (Lee et al. 2023, arXiv 2307.06816) on POD coefficients, residual to the linear solution.

    Args:
        shape: sizes.
        start: the linear solution.
        alpha: reconstruction weight, which sets the start of the variances.
        checkpointing: recompute the residual blocks in the backward pass.
    """

    sigma: torch.Tensor

    def __init__(
        self, shape: VaeShape, start: Start, *, alpha: float = 1e6, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        modes, scales = pad_modes(start.modes, start.scales, shape.num_latents)
        self.linear = LinearPart(start.mean, modes, scales, trained=shape.train_linear)
        self.register_buffer("sigma", start.sigma.clone()[:, None])
        logvar = start_logvar(scales, alpha, shape.channels * shape.frames)
        sizes = (shape.latent_dim_end, shape.latent_dim)
        options = {"size": shape.size, "spectral": shape.spectral_norm, "checkpointing": checkpointing}
        self.encoder = Encoder(shape.filters, start.sigma, shape.frames, *sizes, logvar, **options)
        self.decoder = Decoder(shape.filters, shape.channels, shape.frames, *sizes, **options)

    def forward(
        self, c: torch.Tensor, noise: torch.Tensor | None = None, encoder_input: torch.Tensor | None = None
    ) -> VaeOutput:
        """Encode c [B, C, T] and decode a draw of its posterior (its mean without `noise`).

        Args:
            c: coefficients, in host memory or on the device.
            noise: standard normal [B, n].
            encoder_input: what the encoder sees instead of `c` (augmented).
        """
        seen = c if encoder_input is None else encoder_input
        nz, nh = self.shape.latent_dim_end, self.shape.latent_dim
        scores = self.linear.scores(seen)
        shift, logvar, level_shift, level_step = self.encoder(seen)
        mu, logvar = scores[:, :nz] + shift, clamp_logvar(logvar)
        level_shift = level_shift + scores[:, nz:].unflatten(1, (self.shape.num_levels, nh))
        if noise is None:
            z, level_noise = mu, torch.zeros_like(level_shift)
        else:
            z = mu + torch.exp(0.5 * logvar) * noise[:, :nz]
            level_noise = noise[:, nz:].unflatten(1, (self.shape.num_levels, nh))
        features, levels = self.decoder(z, posterior=Posterior(level_shift, level_step, level_noise))
        zeta = torch.cat([z, levels.h.flatten(1)], dim=1)
        return VaeOutput(features, zeta, mu, logvar, level_shift, level_step, *levels)

    def channels_of(
        self, features: torch.Tensor, zeta: torch.Tensor, channels: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return c_hat = cbar + W^T diag(s) zeta + sigma_k head(features) on some channels, [B, ., T]."""
        head = self.decoder.head
        assert head.bias is not None
        residual = F.conv1d(features, head.weight[channels], head.bias[channels]).float()
        return self.linear.field(zeta, channels) + self.sigma[channels] * residual

    def reconstruct(self, c: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return c_hat [B, C, T] of c [B, C, T] at the posterior mean, or at a draw of it."""
        output = self(c, noise)
        return self.channels_of(output.features, output.zeta)

    def latents(self, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the posterior means z [B, nz] and h [B, K, nh] of c [B, C, T]."""
        output = self(c)
        return output.mu, output.h

    def decode(self, z: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Return c_hat [B, C, T] of the latents z [B, nz] and h [B, K, nh]."""
        features, _ = self.decoder(z, h=h)
        return self.channels_of(features, torch.cat([z, h.flatten(1)], dim=1))

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Return c_hat [B, C, T] of a draw of the prior from standard normal noise [B, n]."""
        nz = self.shape.latent_dim_end
        level_noise = noise[:, nz:].unflatten(1, (self.shape.num_levels, self.shape.latent_dim))
        zero = torch.zeros_like(level_noise)
        features, levels = self.decoder(noise[:, :nz], posterior=Posterior(zero, zero, level_noise))
        return self.channels_of(features, torch.cat([noise[:, :nz], levels.h.flatten(1)], dim=1))

    def levels_of(self, h: torch.Tensor) -> torch.Tensor:
        """Return level latents [B, K, nh] of a flat [B, K nh]."""
        return h.unflatten(1, (self.shape.num_levels, self.shape.latent_dim))


def parameter_count(module: nn.Module) -> int:
    """Return the number of trained parameters; a normalised weight counts once, the linear part not."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def build_vae(
    state: dict[str, Any], weights: dict[str, torch.Tensor], *, folded: bool = False
) -> HierarchicalVae:
    """Return the network that `VaeShape.state` describes with `weights` loaded, ready for inference.

    Args:
        state: the shape.
        weights: of the network, plain names.
        folded: fold the spectral norms, for export.
    """
    shape = VaeShape(**state)
    vae = HierarchicalVae(shape, empty_start(shape))
    vae.load_state_dict(weights)
    vae.eval().requires_grad_(False)
    if folded:
        fold(vae)
    return vae
