"""The published multitask layout `mtl` (Gao 2024, GJI): three task decoders over one residual U encoder.

B batch, C channels, Z Y X grid (Z depth downwards). n is the width of a block.

Module names are those of the published checkpoints, so their state dicts load without a map: 194 tensors and
14,481,061 values (infer), 214 and 14,492,009 (refine, which has `input1` .. `input5`). InstanceNorm measures
every volume it sees, so tiles differ from the whole volume; the smallest size is 16 voxels an axis.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fault_seg.layers import Conv3d

HEADS = ("fault", "dhr", "rgt")

MIN_SIZE = 16


class Conv(nn.Module):
    """3x3x3 convolution with bias, then InstanceNorm3d (no affine, no running statistics), then ReLU."""

    def __init__(
        self, num_in: int, num_out: int, dilation: int = 1, *, norm: bool = True, relu: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv3d(num_in, num_out, 3, padding=dilation, dilation=dilation)]
        if norm:
            layers.append(nn.InstanceNorm3d(num_out))
        if relu:
            layers.append(nn.ReLU(inplace=True))
        self.c = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return features on the grid of `x`."""
        return self.c(x)


def _up_onto(x: Tensor, skip: Tensor) -> Tensor:
    """Return (x interpolated to twice its size and zero-padded to the grid of `skip`, skip) concatenated."""
    x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    pad: list[int] = []
    for axis in (4, 3, 2):
        missing = skip.shape[axis] - x.shape[axis]
        pad += [missing // 2, missing - missing // 2]
    return torch.cat([F.pad(x, pad) if any(pad) else x, skip], dim=1)


class ResidualU3(nn.Module):
    """Residual U block with three poolings (first level)."""

    def __init__(self, num_in: int, n: int) -> None:
        super().__init__()
        self.conv0 = Conv(num_in, n)
        self.conv1 = Conv(n, n)
        self.conv2 = Conv(n, 2 * n)
        self.conv3 = Conv(2 * n, 4 * n)
        self.convd = Conv(4 * n, 16 * n, dilation=2)
        self.up3 = Conv(20 * n, 4 * n)
        self.up2 = Conv(6 * n, 2 * n)
        self.up1 = Conv(3 * n, n)
        self.up0 = Conv(n, n)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, n, Z, Y, X]; every axis has at least 16 voxels."""
        base = self.conv0(x)
        level1 = self.conv1(base)
        level2 = self.conv2(F.max_pool3d(level1, 2))
        level3 = self.conv3(F.max_pool3d(level2, 2))
        bottom = self.convd(F.max_pool3d(level3, 2))
        y = self.up3(_up_onto(bottom, level3))
        y = self.up2(_up_onto(y, level2))
        y = self.up1(_up_onto(y, level1))
        return self.up0(y) + base


class ResidualU2(nn.Module):
    """Residual U block with two poolings (second level)."""

    def __init__(self, num_in: int, n: int) -> None:
        super().__init__()
        self.conv0 = Conv(num_in, n)
        self.conv1 = Conv(n, n)
        self.conv2 = Conv(n, 2 * n)
        self.convd = Conv(2 * n, 8 * n, dilation=2)
        self.up2 = Conv(10 * n, 2 * n)
        self.up1 = Conv(3 * n, n)
        self.up0 = Conv(n, n)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, n, Z, Y, X]; every axis has at least 8 voxels."""
        base = self.conv0(x)
        level1 = self.conv1(base)
        level2 = self.conv2(F.max_pool3d(level1, 2))
        bottom = self.convd(F.max_pool3d(level2, 2))
        y = self.up2(_up_onto(bottom, level2))
        y = self.up1(_up_onto(y, level1))
        return self.up0(y) + base


class DilatedU(nn.Module):
    """Residual U block with dilations 2, 4, 8 in place of poolings (third level)."""

    def __init__(self, num_in: int, n: int) -> None:
        super().__init__()
        self.conv0 = Conv(num_in, n)
        self.conv1 = Conv(n, n)
        self.conv2 = Conv(n, 2 * n, dilation=2)
        self.conv3 = Conv(2 * n, 2 * n, dilation=4)
        self.convd = Conv(2 * n, 4 * n, dilation=8)
        self.up3 = Conv(6 * n, 2 * n, dilation=4)
        self.up2 = Conv(4 * n, 2 * n, dilation=2)
        self.up1 = Conv(3 * n, n)
        self.up0 = Conv(n, n)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, n, Z, Y, X] on the grid of `x`."""
        base = self.conv0(x)
        level1 = self.conv1(base)
        level2 = self.conv2(level1)
        level3 = self.conv3(level2)
        y = self.up3(torch.cat([self.convd(level3), level3], dim=1))
        y = self.up2(torch.cat([y, level2], dim=1))
        y = self.up1(torch.cat([y, level1], dim=1))
        return self.up0(y) + base


class Decoder(nn.Module):
    """From the three encoder maps to `num_out` channels on the full grid."""

    def __init__(self, num_out: int, last_kernel: int) -> None:
        super().__init__()
        self.decoder2 = ResidualU2(64 + 32, 32)
        self.decoder1 = ResidualU3(32 + 16, 16)
        self.out = nn.Sequential(
            Conv3d(16, 16, 3, padding=1),
            Conv3d(16, 16, 3, padding=1),
            Conv3d(16, num_out, last_kernel, padding=last_kernel // 2),
        )

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """Return [B, num_out, Z, Y, X]."""
        x = self.decoder2(torch.cat([_resize(quarter, half), half], dim=1))
        return self.out(self.decoder1(torch.cat([_resize(x, full), full], dim=1)))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=True)


class SubDecoder(nn.Module):
    """One fault attribute, before its sigmoid, from the 16 channels of the fault decoder."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        widths = (16, 32, 32, 32, 16)
        self.conv = nn.Sequential(*(Conv(widths[i], widths[i + 1], norm=norm) for i in range(4)))
        self.out = nn.Sequential(Conv(16, 1, norm=False, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit [B, 1, Z, Y, X]."""
        return self.out(x + self.conv(x)).float()


class MultitaskNet(nn.Module):
    """Published layout: the image [B, 1, Z, Y, X] (infer) or five volumes [B, 5, Z, Y, X] (refine) to all.

    The channels of refine are rgt, dhr, fsem, fdip, fstrike as in files (angles over 180 degrees, gated).
    `forward` returns float32 tensors [B, 1, Z, Y, X], those of the chosen heads: fault_logit; fsem, its
    sigmoid; dip and strike, sigmoids in 0..1 (angle over 180 degrees), ungated; fdip and fstrike, the same
    times fsem (what the published files hold); dhr; rgt in 0..1.
    """

    multiple = 1

    def __init__(self, kind: str = "infer", heads: Iterable[str] = HEADS) -> None:
        super().__init__()
        self.kind = kind
        self.heads = tuple(head for head in HEADS if head in tuple(heads))
        self.in_channels = 5 if kind == "refine" else 1
        if kind == "refine":
            for i in range(1, 6):
                self.add_module(f"input{i}", nn.Sequential(Conv(1, 4), Conv(4, 4)))
        self.encoder1 = ResidualU3(20 if kind == "refine" else 1, 16)
        self.encoder2 = ResidualU2(16, 32)
        self.encoder3 = DilatedU(32, 64)
        if "rgt" in self.heads:
            self.decoder_rgt = Decoder(1, last_kernel=1)
        if "dhr" in self.heads:
            self.decoder_dhr = Decoder(1, last_kernel=1)
        if "fault" in self.heads:
            self.decoder_fault = Decoder(16, last_kernel=3)
            self.subdecoder_fault_semantic = SubDecoder(norm=False)
            self.subdecoder_fault_dip = SubDecoder(norm=True)
            self.subdecoder_fault_strike = SubDecoder(norm=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the heads for `x` [B, 1 or 5, Z, Y, X].

        Raises:
            ValueError: an axis has fewer than 16 voxels.
        """
        if min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(f"sizes {tuple(x.shape[2:])}: mtl needs at least {MIN_SIZE} voxels an axis")
        if self.kind == "refine":
            x = torch.cat([getattr(self, f"input{i + 1}")(x[:, i : i + 1]) for i in range(5)], dim=1)
        full = self.encoder1(x)
        half = self.encoder2(F.max_pool3d(full, 2))
        maps = full, half, self.encoder3(F.max_pool3d(half, 2))
        outputs: dict[str, Tensor] = {}
        if "rgt" in self.heads:
            outputs["rgt"] = torch.sigmoid(self.decoder_rgt(*maps).float())
        if "dhr" in self.heads:
            outputs["dhr"] = self.decoder_dhr(*maps).float()
        if "fault" in self.heads:
            trunk = self.decoder_fault(*maps)
            outputs["fault_logit"] = self.subdecoder_fault_semantic(trunk)
            outputs["fsem"] = torch.sigmoid(outputs["fault_logit"])
            outputs["dip"] = torch.sigmoid(self.subdecoder_fault_dip(trunk))
            outputs["strike"] = torch.sigmoid(self.subdecoder_fault_strike(trunk))
            outputs["fdip"] = outputs["dip"] * outputs["fsem"]
            outputs["fstrike"] = outputs["strike"] * outputs["fsem"]
        return outputs
