"""The encoder: gathers of any number of shots -> tokens, aligned with the columns of the section.

Letters: B batch, S shots, T time samples, R receivers, L lateral columns, K tokens a column, D width.
Shots share all weights and are told apart by their coordinates alone, so their number is free and their
order cannot matter.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FREQUENCIES = 8
FOURIER = 2 * FREQUENCIES
TOKENS = 2  # K
FOLD_ROWS = 13
WIDE = 40  # more receivers than this are strided by 2 in the stem


def fourier(x: torch.Tensor) -> torch.Tensor:
    """Return [.., 16]: sin and cos of 2^k pi/2 x, k = 0..7, for x in 0..1 of the section's width."""
    scale = 2.0 ** torch.arange(FREQUENCIES, device=x.device, dtype=x.dtype) * (torch.pi / 2)
    angle = x[..., None] * scale
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class MultiScale(nn.Module):
    """x + GELU(GroupNorm([identity, 3x3, 7x3, 15x5] on quarters of a 1x1 convolution)), [.., C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.mix = nn.Conv2d(channels, channels, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(quarter, quarter, size, padding=(size[0] // 2, size[1] // 2))
            for size in ((3, 3), (7, 3), (15, 5))
        )
        self.norm = nn.GroupNorm(_groups(channels), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        parts = self.mix(x).chunk(4, dim=1)
        found = [parts[0], *(branch(p) for branch, p in zip(self.branches, parts[1:], strict=True))]
        return x + functional.gelu(self.norm(torch.cat(found, dim=1)))


def _groups(channels: int) -> int:
    """Return 8 groups, or the largest number below that divides the channels."""
    return next(g for g in range(min(8, channels), 0, -1) if channels % g == 0)


def transformer_layer(width: int, heads: int, dropout: float) -> nn.TransformerEncoderLayer:
    """Return a pre-norm self-attention layer with an MLP of twice the width."""
    return nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )


class SeismicEncoder(nn.Module):
    """Gathers and coordinates -> memory tokens [B, L, K, D] and the x of their columns.

    Args:
        width: D.
        heads: of every attention.
        layers: of the attention over shots and of the fusion over tokens, each.
        dropout: of the transformer layers.
        stem: channels of the first convolution; the next stages have 1.5 and 3 times as many.
    """

    def __init__(
        self, width: int = 128, heads: int = 4, layers: int = 2, dropout: float = 0.0, stem: int = 32
    ) -> None:
        super().__init__()
        middle, deep = stem * 3 // 2, stem * 3
        self.stem = nn.Conv2d(2, stem, (9, 5), stride=(5, 2), padding=(4, 2))
        self.place = nn.Linear(2 * FOURIER + 1, stem)
        self.stem_norm = nn.GroupNorm(_groups(stem), stem)
        self.down1 = nn.Sequential(
            nn.Conv2d(stem, middle, 3, stride=2, padding=1), nn.GroupNorm(_groups(middle), middle), nn.GELU()
        )
        self.scales1 = MultiScale(middle)
        self.down2 = nn.Sequential(
            nn.Conv2d(middle, deep, 3, stride=(2, 1), padding=1), nn.GroupNorm(_groups(deep), deep), nn.GELU()
        )
        self.scales2 = MultiScale(deep)
        self.fold = nn.Conv2d(deep, TOKENS * width, (FOLD_ROWS, 3), padding=(0, 1))
        self.fold_norm = nn.LayerNorm(width)
        self.source = nn.Sequential(nn.Linear(2 * FOURIER, width), nn.GELU(), nn.Linear(width, width))
        self.source_token = nn.Parameter(torch.zeros(TOKENS, width))
        self.shots = nn.ModuleList(transformer_layer(width, heads, dropout) for _ in range(layers))
        self.pool_norm = nn.LayerNorm(width)
        self.pool_query = nn.Parameter(torch.randn(TOKENS, width) * 0.1)
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.pool_mix = nn.Linear(2 * width, width)
        self.column = nn.Linear(FOURIER, width)
        self.column_token = nn.Parameter(torch.zeros(TOKENS, width))
        self.fusion = nn.ModuleList(transformer_layer(width, heads, dropout) for _ in range(layers))
        self.memory_norm = nn.LayerNorm(width)
        self.width = width
        self.checkpointing = False

    def forward(
        self, channels: torch.Tensor, source_x: torch.Tensor, receiver_x: torch.Tensor, live: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (memory [B, L, K, D], column_x [B, L]).

        Args:
            channels: [B, S, 2, T, R], see `preprocess.Amplitude`.
            source_x: [B, S], 0..1 of the section's width.
            receiver_x: [B, S, R], likewise.
            live: [B, S, R]; a shot without a live trace is ignored.
        """
        batch, shots = live.shape[:2]
        features = self._columns(
            channels.flatten(0, 1), source_x.flatten(0, 1), receiver_x.flatten(0, 1), live.flatten(0, 1)
        )
        lateral = features.shape[-1]
        column_x = self._column_x(receiver_x.flatten(0, 1), lateral).unflatten(0, (batch, shots))
        tokens = features.unflatten(1, (TOKENS, self.width)).permute(0, 3, 1, 2)
        tokens = self.fold_norm(tokens).unflatten(0, (batch, shots))  # [B, S, L, K, D]
        shot_x = source_x[..., None].expand_as(column_x)
        place = self.source(torch.cat([fourier(shot_x), fourier(column_x - shot_x)], dim=-1))
        tokens = tokens + place[..., None, :] + self.source_token
        alive = live.any(-1)
        alive = alive | ~alive.any(1, keepdim=True)  # attention needs a shot to look at
        pooled = self._over_shots(tokens, alive)
        weight = alive.to(column_x).unsqueeze(-1)
        column_x = (column_x * weight).sum(1) / weight.sum(1)
        return self._fused(pooled, column_x), column_x

    def _columns(
        self, x: torch.Tensor, source_x: torch.Tensor, receiver_x: torch.Tensor, live: torch.Tensor
    ) -> torch.Tensor:
        """Return [B S, K D, L]: the whole time axis folded into channels, aligned with receivers."""
        stride = 2 if x.shape[-1] > WIDE else 1
        x = functional.conv2d(x, self.stem.weight, self.stem.bias, (5, stride), (4, 2))
        at = _strided(receiver_x, stride, x.shape[-1])
        alive = _strided(live.to(x.dtype), stride, x.shape[-1])
        place = torch.cat([fourier(at), fourier(at - source_x[:, None]), alive[..., None]], dim=-1)
        x = x + self.place(place).transpose(1, 2)[:, :, None].to(x.dtype)
        x = functional.gelu(self.stem_norm(x)) * alive[:, None, None]
        for stage in (self.down1, self.scales1, self.down2, self.scales2):
            x = self._run(stage, x)
        if x.shape[-2] != FOLD_ROWS:
            x = functional.adaptive_avg_pool2d(x, (FOLD_ROWS, x.shape[-1]))
        return self.fold(x).squeeze(2)

    def _run(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and x.requires_grad:
            from torch.utils.checkpoint import checkpoint

            return checkpoint(stage, x, use_reentrant=False)
        return stage(x)

    def _column_x(self, receiver_x: torch.Tensor, lateral: int) -> torch.Tensor:
        stride = 2 if receiver_x.shape[-1] > WIDE else 1
        first = _strided(receiver_x, stride, -(-receiver_x.shape[-1] // stride))
        return _strided(first, 2, lateral)

    def _over_shots(self, tokens: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """Let shots attend to each other at each (column, k), then pool them: [B, L, K, D]."""
        batch, shots, lateral = tokens.shape[:3]
        rows = tokens.permute(0, 2, 3, 1, 4).reshape(-1, shots, self.width)
        ignored = ~alive[:, None, None].expand(batch, lateral, TOKENS, shots).reshape(-1, shots)
        for layer in self.shots:
            rows = layer(rows, src_key_padding_mask=ignored)
        kept = (~ignored).to(rows)[..., None]
        mean = (rows * kept).sum(1) / kept.sum(1)
        keys = self.pool_norm(rows).reshape(batch * lateral, TOKENS * shots, self.width)
        query = self.pool_query.to(keys.dtype).expand(keys.shape[0], -1, -1)
        found, _ = self.pool(
            query, keys, keys, key_padding_mask=ignored.reshape(keys.shape[0], -1), need_weights=False
        )
        both = torch.cat([found.reshape(-1, self.width), mean], dim=-1)
        return self.pool_mix(both).reshape(batch, lateral, TOKENS, self.width)

    def _fused(self, tokens: torch.Tensor, column_x: torch.Tensor) -> torch.Tensor:
        """Let all tokens of the section attend to each other."""
        tokens = tokens + self.column(fourier(column_x))[:, :, None] + self.column_token
        flat = tokens.flatten(1, 2)
        for layer in self.fusion:
            flat = layer(flat)
        return self.memory_norm(flat).unflatten(1, tokens.shape[1:3])


def _strided(values: torch.Tensor, stride: int, count: int) -> torch.Tensor:
    """Return every stride-th value along the last axis: where the outputs of a strided convolution stand."""
    return values[..., ::stride][..., :count]
