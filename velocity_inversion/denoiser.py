"""The U-Net of the diffusion stage.

Letters: B batch, C channels, Z depth, X horizontal, N memory tokens of width D.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

GROUPS = 8
HEADS = 4
EMBEDDING = 128
NOISE_FREQUENCIES = 16
MULTIPLE = 4  # two halvings


class NoiseLevel(nn.Module):
    """Fourier features of c_noise = ln(sigma) / 4, then a small perceptron: [B] -> [B, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * NOISE_FREQUENCIES, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        scale = torch.exp(torch.linspace(0, math.log(64.0), NOISE_FREQUENCIES, device=noise.device))
        angle = noise[:, None] * scale
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), the second norm scaled and shifted by the noise level."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.level = nn.Linear(EMBEDDING, 2 * after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Apply the block to [B, C, Z, X]."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.level(level)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Cells attend to each other, then to the memory of the gathers."""

    def __init__(self, channels: int, memory_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.own = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.other = nn.MultiheadAttention(
            channels, HEADS, kdim=memory_width, vdim=memory_width, batch_first=True
        )

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Apply it to [B, C, Z, X] and memory [B, N, D]."""
        rows = x.flatten(2).transpose(1, 2)
        h = self.norm1(rows)
        rows = rows + self.own(h, h, h, need_weights=False)[0]
        rows = rows + self.other(self.norm2(rows), memory, memory, need_weights=False)[0]
        return rows.transpose(1, 2).reshape(x.shape)


class Denoiser(nn.Module):
    """F of the preconditioned denoiser: [B, C, Z, X], ln(sigma) / 4, memory -> [B, 1, Z, X].

    Three levels of width, 2 width and 3 width channels, two residual blocks each, attention at the lowest.
    Sections of any size are padded to multiples of four by replication and cropped again.

    Args:
        channels: C.
        width: channels of the first level.
        memory_width: D of the memory tokens.
    """

    def __init__(self, channels: int, width: int = 32, memory_width: int = 128) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 3 * width
        self.level = NoiseLevel()
        self.first = nn.Conv2d(channels, a, 3, padding=1)
        self.down = nn.ModuleList([_pair(a, a), _pair(b, b), _pair(c, c)])
        self.halve = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in ((a, b), (b, c))
        )
        self.attention = Attention(c, memory_width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, memory_width))  # the memory of unknown gathers
        self.up = nn.ModuleList([_pair(2 * c, c), _pair(c + b, b), _pair(b + a, a)])
        self.norm = nn.GroupNorm(GROUPS, a)
        self.last = nn.Conv2d(a, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.get_parameter("bias"))

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor, memory: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """Apply the network.

        Args:
            x: [B, C, Z, X].
            noise: [B], ln(sigma) / 4.
            memory: [B, N, D].
            known: [B] bool, false where the gathers are to be ignored.
        """
        z, deep = x.shape[-2:]
        x = functional.pad(x, (0, -deep % MULTIPLE, 0, -z % MULTIPLE), mode="replicate")
        memory = torch.where(known[:, None, None], memory, self.nothing.to(memory))
        level = self.level(noise)
        x = self.first(x)
        kept = []
        for i, blocks in enumerate(self.down):
            x = self.halve[i - 1](x) if i else x
            for block in blocks:  # type: ignore[union-attr]
                x = block(x, level)
            kept.append(x)
        x = self.attention(x, memory)
        for i, blocks in enumerate(self.up):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest") if i else x
            x = torch.cat([x, kept.pop()], dim=1)
            for block in blocks:  # type: ignore[union-attr]
                x = block(x, level)
        return self.last(functional.silu(self.norm(x)))[..., :z, :deep]


def _pair(before: int, after: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(before, after), ResidualBlock(after, after)])
