"""Pieces of the encoder and the decoder: residual blocks that let amplitude through, lengths, sliced maps.

B batch, C channels, T frames, D channels of a whole mesh.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from simulgen_vae.spectral import spectral_norm

SLICE = 8192  # channels that exist on the device at once without a front end
GAIN_START = 0.1
SIZES = ("small", "large")


def stage_lengths(num_frames: int, num_stages: int) -> list[int]:
    """Return T_0..T_{L-1}: T_i = ceil(T_{i-1} / 2) while T_{i-1} >= 8, else T_{i-1}."""
    lengths = [num_frames]
    while len(lengths) < num_stages:
        last = lengths[-1]
        lengths.append((last + 1) // 2 if last >= 8 else last)
    return lengths


def num_groups(channels: int) -> int:
    """Return the groups of a GroupNorm: max(1, min(8, C // 16)), lowered to a divisor of C."""
    groups = max(1, min(8, channels // 16))
    while channels % groups:
        groups -= 1
    return groups


def norm(channels: int) -> nn.GroupNorm:
    """Return the GroupNorm of `channels`."""
    return nn.GroupNorm(num_groups(channels), channels)


def conv(in_channels: int, out_channels: int, kernel: int, *, spectral: bool, stride: int = 1) -> nn.Module:
    """Return a Conv1d that keeps T (over `stride`), spectrally normalised when asked."""
    layer = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
    return spectral_norm(layer, spectral)


class ResidualBlock(nn.Module):
    """x + g branch(x): the norms sit on the branch only, so the amplitude survives on the identity path.

    small: GN GELU Conv3 GN GELU Conv3; large: GN GELU Conv5 (C -> 2C) GN GELU Conv5 GN GELU Conv1 (-> C).

    Args:
        channels: C.
        size: small or large.
        spectral: normalise the convolutions.
        checkpointing: recompute the branch in the backward pass.
    """

    def __init__(self, channels: int, size: str, *, spectral: bool, checkpointing: bool = False) -> None:
        super().__init__()
        wide = channels if size == "small" else 2 * channels
        steps = [(channels, channels, 3)] * 2
        if size == "large":
            steps = [(channels, wide, 5), (wide, wide, 5), (wide, channels, 1)]
        parts: list[nn.Module] = []
        for before, after, kernel in steps:
            parts += [norm(before), nn.GELU(), conv(before, after, kernel, spectral=spectral)]
        self.branch = nn.Sequential(*parts)
        self.gain = nn.Parameter(torch.tensor(GAIN_START))
        self.checkpointing = checkpointing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, C, T]."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            y = checkpoint(self.branch, x, use_reentrant=False)
            assert isinstance(y, torch.Tensor)
        else:
            y = self.branch(x)
        return x + self.gain * y


class ZeroLinear(nn.Linear):
    """Linear on flattened [B, ...], weights zero at the start and a chosen bias."""

    def __init__(self, in_features: int, out_features: int, bias: torch.Tensor | None = None) -> None:
        super().__init__(in_features, out_features)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.bias.zero_() if bias is None else self.bias.copy_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, out]."""
        return super().forward(x.flatten(1))


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv1d:
    """Return a Conv1d of kernel 1 that starts as zero."""
    layer = nn.Conv1d(in_channels, out_channels, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def slices(num_channels: int) -> list[slice]:
    """Return the runs of at most `SLICE` channels."""
    return [slice(a, min(a + SLICE, num_channels)) for a in range(0, num_channels, SLICE)]


def sliced_stem(x: torch.Tensor, scale: torch.Tensor, stem: nn.Conv1d) -> torch.Tensor:
    """Return stem(x / scale), [B, f_0, T], of an `x` [B, D, T] that may lie in host memory.

    One slice of channels is moved at a time, and moved again in the backward pass.
    """
    assert stem.bias is not None
    weight, total = stem.weight, stem.bias[:, None].float()

    def part(piece: torch.Tensor, divisor: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return F.conv1d(piece.to(kernel.device) / divisor, kernel)

    for run in slices(x.shape[1]):
        arguments = (x[:, run], scale[run], weight[:, run])
        if len(slices(x.shape[1])) == 1 or not torch.is_grad_enabled():
            total = total + part(*arguments)
        else:
            total = total + checkpoint(part, *arguments, use_reentrant=False)
    return total
