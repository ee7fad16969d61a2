"""The network: encoder, decoder, and the velocity with its error scale.

Letters: B batch, S shots, T time samples, R receivers, Z depth, X horizontal, L columns, K tokens, D width,
H W patch rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from velocity_inversion.encoder import TOKENS, SeismicEncoder, transformer_layer
from velocity_inversion.preprocess import Amplitude

MAPS = 16  # feature maps that patches are made of
CONTENT = 32
LOG_SCALE_RANGE = (-6.0, 1.0)
LARGEST_WORK_GRID = 256  # cells along an axis; finer sections are predicted coarser and interpolated


@dataclass(frozen=True)
class WorkGrid:
    """The grid that the decoder fills: the section's own, or a coarser one.

    Attributes:
        section: (Z, X) of the section.
        factor: section cells a work cell.
        patch: (rows, columns) of a patch in work cells.
    """

    section: tuple[int, int]
    factor: int
    patch: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(Z, X) in work cells."""
        return math.ceil(self.section[0] / self.factor), math.ceil(self.section[1] / self.factor)

    @property
    def patches(self) -> tuple[int, int]:
        """(H, W)."""
        return math.ceil(self.shape[0] / self.patch[0]), math.ceil(self.shape[1] / self.patch[1])


def work_grid(section: tuple[int, int]) -> WorkGrid:
    """Return the decoder's grid: patches of 5 x 5 cells, of 8 x 4 where the section is fine and deep."""
    factor = math.ceil(max(section) / LARGEST_WORK_GRID)
    return WorkGrid(section, factor, (5, 5) if factor == 1 else (8, 4))


class VelocityDecoder(nn.Module):
    """Memory tokens -> (u, s) on the section: the velocity before its activation and the log error scale.

    Args:
        grid: work grid of the section.
        width: D.
        heads: of every attention.
        layers: decoder layers.
        dropout: of the layers.
    """

    def __init__(
        self, grid: WorkGrid, width: int = 128, heads: int = 4, layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.grid = grid
        rows, columns = grid.patches
        self.position = nn.Parameter(torch.randn(rows, columns, width) * 0.1)
        self.content = nn.Linear(TOKENS * width, rows * CONTENT)
        self.query = nn.Linear(CONTENT, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.direct = nn.Linear(TOKENS * width, grid.shape[0])
        self.patch = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, MAPS * math.prod(grid.patch))
        )
        self.head = nn.Sequential(
            nn.Conv2d(MAPS + 1, 24, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(24, 2, 3, padding=1),
        )
        with torch.no_grad():
            self.direct.weight.mul_(0.5)

    def forward(
        self, memory: torch.Tensor, column_x: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (u, s), each [B, 1, Z, X] on the work grid.

        Args:
            memory: [B, L, K, D].
            column_x: [B, L], places of the columns, 0..1 of the section's width, ascending.
            start: [Z], u of the mean depth profile on the work grid.
        """
        batch = memory.shape[0]
        rows, columns = self.grid.patches
        flat = memory.flatten(2)  # [B, L, K D]
        content = self.content(flat).unflatten(-1, (rows, CONTENT)).permute(0, 2, 3, 1)  # [B, H, 32, L]
        content = at_columns(content, column_x, columns).permute(0, 1, 3, 2)
        query = (self.position + self.query(content)).flatten(1, 2)
        tokens = memory.flatten(1, 2)
        for layer in self.layers:
            query = layer(query, tokens)
        z, x = self.grid.shape
        direct = at_columns(self.direct(flat).transpose(1, 2), column_x, x)[:, None]
        u = start[None, None, :, None] + direct
        maps = self.patch(self.norm(query)).reshape(batch, rows, columns, MAPS, *self.grid.patch)
        maps = maps.permute(0, 3, 1, 4, 2, 5).reshape(batch, MAPS, rows * self.grid.patch[0], -1)
        change, scale = self.head(torch.cat([maps[..., :z, :x], u.to(maps.dtype)], dim=1)).chunk(2, dim=1)
        return u + change, scale


def at_columns(values: torch.Tensor, column_x: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate [B, .., L] known at `column_x` [B, L] linearly to `count` cell centres over 0..1.

    Outside the columns the nearest value holds.
    """
    wanted = (torch.arange(count, device=values.device, dtype=torch.float32) + 0.5) / count
    places = column_x.float().contiguous()
    length = places.shape[1]
    if length == 1:
        return values.expand(*values.shape[:-1], count)
    right = torch.searchsorted(places, wanted.expand(places.shape[0], -1).contiguous()).clamp(1, length - 1)
    low, high = places.gather(1, right - 1), places.gather(1, right)
    share = ((wanted - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).to(values.dtype)
    shape = (places.shape[0], *([1] * (values.ndim - 2)), count)
    index = right.reshape(shape).expand(*values.shape[:-1], count)
    share = share.reshape(shape)
    return values.gather(-1, index - 1) * (1 - share) + values.gather(-1, index) * share


class VelocityNet(nn.Module):
    """One member of the ensemble: gathers -> (velocity, error scale) in km/s.

    Args:
        section: (Z, X) of the section.
        x_max_m: x of its last column.
        bounds: lowest and highest velocity, km/s.
        embed_dim, num_heads, num_layers, dropout: size of encoder and decoder.
        activation: "sigmoid" keeps the velocity within the bounds; "softplus" above the lowest.
        stem: channels of the encoder's first convolution.
    """

    def __init__(
        self,
        section: tuple[int, int],
        x_max_m: float,
        bounds: tuple[float, float] = (1.5, 4.5),
        *,
        embed_dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.0,
        activation: str = "sigmoid",
        stem: int = 32,
    ) -> None:
        super().__init__()
        self.grid = work_grid(section)
        self.x_max_m, self.bounds, self.activation = x_max_m, bounds, activation
        self.encoder = SeismicEncoder(embed_dim, num_heads, num_layers, dropout, stem)
        self.decoder = VelocityDecoder(self.grid, embed_dim, num_heads, num_layers, dropout)
        self.register_buffer("start", torch.zeros(self.grid.shape[0]))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.get_parameter("bias"))
        last = self.decoder.head[-1]
        with torch.no_grad():
            last.get_parameter("weight").mul_(0.3)

    def set_mean_profile(self, profile: torch.Tensor) -> None:
        """Start from a mean depth profile [Z] in km/s: what the activation must be given to return it."""
        coarse = functional.interpolate(profile[None, None].float(), self.grid.shape[0], mode="linear")[0, 0]
        self.get_buffer("start").copy_(self.inverse_activation(coarse))

    def velocity(self, u: torch.Tensor) -> torch.Tensor:
        """Return the velocity in km/s of the decoder's u."""
        low, high = self.bounds
        if self.activation == "softplus":
            v = low + functional.softplus(u)
            return v if self.training else v.clamp(max=high)
        return low + (high - low) * torch.sigmoid(u)

    def inverse_activation(self, v: torch.Tensor) -> torch.Tensor:
        """Return the u of a velocity in km/s strictly within the bounds."""
        low, high = self.bounds
        v = v.clamp(low + 0.01 * (high - low), high - 0.01 * (high - low))
        if self.activation == "softplus":
            return torch.log(torch.expm1(v - low))
        return torch.logit((v - low) / (high - low))

    def memory(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoder's (memory, column_x) of a batch with "channels" and coordinates."""
        source_x = batch["source_xz"][..., 0] / self.x_max_m
        receiver_x = batch["receiver_xz"][..., 0] / self.x_max_m
        return self.encoder(batch["channels"], source_x, receiver_x, batch["live"])

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return "vp" [B, 1, Z, X] km/s and "log_scale" [B, 1, Z, X].

        Args:
            batch: "channels" [B, S, 2, T, R], "source_xz" [B, S, 2], "receiver_xz" [B, S, R, 2], "live".
        """
        memory, column_x = self.memory(batch)
        with torch.autocast(memory.device.type, enabled=False):
            u, scale = self.decoder(memory.float(), column_x, self.start)
            z, x = self.grid.section
            if self.grid.factor > 1:
                size = [n * self.grid.factor for n in self.grid.shape]
                u, scale = (
                    functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in (u, scale)
                )
            v = self.velocity(u[..., :z, :x])
            return {"vp": v, "log_scale": scale[..., :z, :x].clamp(*LOG_SCALE_RANGE)}


def with_channels(batch: Mapping[str, Any], amplitude: Amplitude) -> dict[str, Any]:
    """Return the batch with its two amplitude channels [B, S, 2, T, R]; dead traces are zero."""
    channels = amplitude.channels(batch["gathers"], batch["source_xz"], batch["receiver_xz"])
    return {**batch, "channels": channels * batch["live"][:, :, None, None, :]}


__all__ = [
    "VelocityDecoder",
    "VelocityNet",
    "WorkGrid",
    "transformer_layer",
    "with_channels",
    "work_grid",
]
