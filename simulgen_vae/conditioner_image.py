"""Encoders of a picture of the case: a residual CNN with attention, and a small vision transformer.

B batch; pictures are [B, 1, 256, 256] with values in 0..1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.device import like_weights
from simulgen_vae.layers import norm

IMAGE_SIZE = 256
CNN_WIDTHS = (32, 64, 128, 256)
POOLED = 4
ATTENTION_REDUCTION = 16
PATCH, VIT_WIDTH, VIT_LAYERS, VIT_HEADS, VIT_RATIO = 16, 64, 2, 4, 2
VIT_DROP_PATH = 0.1


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean over space (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // ATTENTION_REDUCTION)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` [B, C, Y, X] with each channel scaled."""
        return x * torch.sigmoid(self.gate(x.mean(dim=(2, 3))))[:, :, None, None]


class SpatialAttention(nn.Module):
    """A gate for each place from mean and maximum over channels (CBAM, Woo et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` [B, C, Y, X] with each place scaled."""
        seen = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.gate(seen))


class CnnStage(nn.Module):
    """A residual block of two convolutions, with both attentions when asked."""

    def __init__(self, before: int, after: int, stride: int, use_attention: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1),
            norm(after),
            nn.GELU(),
            nn.Conv2d(after, after, 3, padding=1),
            norm(after),
        )
        attention = (SqueezeExcitation(after), SpatialAttention()) if use_attention else ()
        self.attention = nn.Sequential(*attention)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, after, Y / stride, X / stride]."""
        return F.gelu(self.skip(x) + self.attention(self.branch(x)))


class CnnEncoder(nn.Module):
    """Features of a picture and where things are in it: coordinates in, a 4 x 4 pooling out.

    Args:
        use_attention: channel and spatial attention.
    """

    num_features = CNN_WIDTHS[-1]

    def __init__(self, use_attention: bool = True) -> None:
        super().__init__()
        width = CNN_WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3), norm(width), nn.GELU(), nn.MaxPool2d(3, 2, 1)
        )
        befores = (width, *CNN_WIDTHS[:-1])
        self.stages = nn.Sequential(
            *(
                CnnStage(before, after, 1 + (i > 0), use_attention)
                for i, (before, after) in enumerate(zip(befores, CNN_WIDTHS, strict=True))
            )
        )
        self.project = nn.Linear(CNN_WIDTHS[-1] * POOLED**2, self.num_features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return [B, 256] of pictures [B, 1, 256, 256]."""
        x = self.stages(self.stem(like_weights(with_coordinates(image))))
        # 256 / 2^5 = 8 is a multiple of 4: an average over 2 x 2 is the adaptive pooling, and exports.
        x = F.avg_pool2d(x, x.shape[-1] // POOLED)
        return self.project(x.flatten(1))


def with_coordinates(image: torch.Tensor) -> torch.Tensor:
    """Return [B, 3, Y, X]: the picture in -1..1, and the coordinates y and x in -1..1 (CoordConv)."""
    b, _, ny, nx = image.shape
    y = torch.linspace(-1, 1, ny, device=image.device, dtype=image.dtype)[:, None].expand(b, 1, ny, nx)
    x = torch.linspace(-1, 1, nx, device=image.device, dtype=image.dtype)[None, :].expand(b, 1, ny, nx)
    return torch.cat([2 * image - 1, y, x], dim=1)


class DropPath(nn.Module):
    """Stochastic depth of each sample (Huang et al. 2016); off at inference."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` [B, ...], with whole samples zeroed in training and the rest scaled up."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * kept / (1.0 - self.rate)


class VitLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, tokens, width]."""
        b, n, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + self.drop_path(self.out(mixed))
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))


class TinyVit(nn.Module):
    """A vision transformer of two layers on 256 patches, mean pooled (Dosovitskiy et al. 2021)."""

    num_features = VIT_WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, VIT_WIDTH, PATCH, stride=PATCH)
        tokens = (IMAGE_SIZE // PATCH) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, VIT_WIDTH))
        self.layers = nn.Sequential(
            *(VitLayer(VIT_WIDTH, VIT_HEADS, VIT_RATIO, VIT_DROP_PATH) for _ in range(VIT_LAYERS))
        )
        self.norm = nn.LayerNorm(VIT_WIDTH)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return [B, 64] of pictures [B, 1, 256, 256]."""
        tokens = self.patches(2 * image - 1).flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.layers(tokens)).mean(dim=1)


def binarised(image: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Return `image` (0..1), or 1 where it is at least `threshold` of 0-255 and 0 elsewhere."""
    return image if threshold is None else (image >= threshold / 255.0).to(image.dtype)
