"""Diffusion in the form of Karras et al. 2022 (EDM): preconditioning, loss, sampler, conditions.

What is sampled is r = 0.5 (v_true - v_1) / rms: the correction of the first stage's section, scaled to the
standard deviation 0.5 that the constants below are for. Letters: B batch, K samples, Z depth, X horizontal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

SIGMA_DATA = 0.5
P_MEAN, P_STD = -1.2, 1.2
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
RHO = 7.0
CHANNELS = 7  # noisy r, v_1, error scale, background, its flag, wells, their mask


def preconditioning(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (c_skip, c_out, c_in, c_noise) of noise levels, table 1 of Karras et al. 2022."""
    total = sigma.square() + SIGMA_DATA**2
    c_skip = SIGMA_DATA**2 / total
    c_out = sigma * SIGMA_DATA / total.sqrt()
    return c_skip, c_out, 1 / total.sqrt(), sigma.log() / 4


def loss_weight(sigma: torch.Tensor) -> torch.Tensor:
    """Return lambda(sigma) = 1 / c_out^2: every noise level counts alike."""
    return (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()


def training_sigma(rng: np.random.Generator) -> float:
    """Draw a noise level: ln(sigma) ~ N(P_mean, P_std^2)."""
    return float(np.exp(rng.normal(P_MEAN, P_STD)))


def sampling_sigmas(steps: int) -> torch.Tensor:
    """Return [steps + 1] noise levels from 80 down to 0.002, then 0: equation 5 with rho 7."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1).double()
    top, bottom = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return torch.cat([(top + ramp * (bottom - top)) ** RHO, torch.zeros(1).double()])


@dataclass(frozen=True)
class Conditions:
    """What is known about sections [B, Z, X]; velocities in km/s.

    Attributes:
        v1: the first stage's section.
        scale: its Laplace error scale.
        memory: [B, N, D], the encoder's tokens.
        gathers: [B] bool, whether the tokens may be looked at.
        background: a smooth section.
        has_background: [B] bool.
        wells: velocities where `mask` is 1.
        mask: 1 in cells that a well crosses.
    """

    v1: torch.Tensor
    scale: torch.Tensor
    memory: torch.Tensor
    gathers: torch.Tensor
    background: torch.Tensor
    has_background: torch.Tensor
    wells: torch.Tensor
    mask: torch.Tensor

    def repeated(self, count: int) -> Conditions:
        """Return every section `count` times, one after another."""
        return replace(
            self, **{name: value.repeat_interleave(count, 0) for name, value in self.__dict__.items()}
        )

    def channels(self, rms: float, bounds: tuple[float, float]) -> torch.Tensor:
        """Return [B, 6, Z, X]: what stands beside the noisy correction, in its own scale."""
        middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
        flag = self.has_background[:, None, None].to(self.v1)
        return torch.stack(
            [
                (self.v1 - middle) / half,
                self.scale / rms,
                SIGMA_DATA * (self.background - self.v1) / rms * flag,
                flag.expand_as(self.v1),
                SIGMA_DATA * (self.wells - self.v1) / rms * self.mask,
                self.mask,
            ],
            dim=1,
        )


def denoise(
    network: nn.Module,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    conditions: Conditions,
    rms: float,
    bounds: tuple[float, float],
) -> torch.Tensor:
    """Return D(r + n; sigma) = c_skip (r + n) + c_out F(c_in (r + n); c_noise), [B, Z, X]; sigma [B]."""
    c_skip, c_out, c_in, c_noise = (
        c.to(noisy.dtype)[:, None, None] if i < 3 else c.to(noisy.dtype)
        for i, c in enumerate(preconditioning(sigma))
    )
    x = torch.cat([(c_in * noisy)[:, None], conditions.channels(rms, bounds)], dim=1)
    found = network(x, c_noise, conditions.memory, conditions.gathers)[:, 0]
    return c_skip * noisy + c_out * found.to(noisy.dtype)


def heun(
    denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], noise: torch.Tensor, steps: int
) -> torch.Tensor:
    """Return samples from standard normal `noise` [B, Z, X]: algorithm 1, deterministic, second order."""
    sigmas = sampling_sigmas(steps)
    x = (noise.double() * sigmas[0]).to(noisy_type := noise.dtype)
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        level = torch.full((len(x),), float(now), device=x.device, dtype=noisy_type)
        slope = (x - denoiser(x, level)) / float(now)
        moved = x + float(after - now) * slope
        if after > 0:
            level = torch.full_like(level, float(after))
            other = (moved - denoiser(moved, level)) / float(after)
            moved = x + float(after - now) * 0.5 * (slope + other)
        x = moved
    return x
