"""The networks of fault_seg: the high-resolution layout `hr`, and what all three layouts share.

B batch, C channels, Z Y X grid (Z depth downwards, Y crosslines, X inlines; n1 n2 n3 of the files).
A (8, full grid), Bf (24, 1/2), Cf (64, 1/4), E (64, 1/8) and G (64, 1/16) are the feature maps of `hr`.

Every layer of `hr` is local (batch normalisation with running statistics, no pooling over space), so its
outputs at a voxel depend only on voxels within the receptive radius, and tiles with that halo are exact.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.errors import UserError
from fault_seg.angles import normal_from_angles, outer_from_normal
from fault_seg.layers import (
    Conv3d,
    check_multiple,
    coarser,
    pad_to_multiple,
    side_by_side,
    through,
    up2,
)
from fault_seg.mtl import MultitaskNet
from fault_seg.unet import UNet

__all__ = [
    "HighResolutionNet",
    "build_network",
    "fuse_batch_norm",
    "pad_to_multiple",
    "receptive_radius",
    "refine_input",
    "rgt_calibration",
]

NETWORKS = ("hr", "mtl", "unet")
KINDS = ("infer", "refine")
HEADS = ("fault", "dhr", "rgt")
REFINE_INPUTS = ("rgt", "dhr", "fsem", "fdip", "fstrike")


class ConvBlock(nn.Module):
    """Conv3d without bias, BatchNorm3d, SiLU: num_in to num_out channels, grid over `stride`."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.conv = Conv3d(num_in, num_out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm3d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        return self.activate(self.conv(x))

    def activate(self, x: Tensor) -> Tensor:
        """Return normalised and activated features of what the convolution made."""
        return _silu(self.norm(x))


class ResidualBlock(nn.Module):
    """SiLU(x + BN(conv(ConvBlock(x)))), the number of channels kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.conv = Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`."""
        return _silu(self.norm(self.conv(self.first(x))) + x)


def _silu(x: Tensor) -> Tensor:
    # In place where no gradient needs the argument: inference keeps one feature map less.
    return F.silu(x, inplace=not torch.is_grad_enabled())


class HighResolutionNet(nn.Module):
    """Small high-resolution network: one image (infer) or nine channels (refine) to all tasks at once.

    `kind` infer takes [B, 1, Z, Y, X], the normalised image; refine takes [B, 9, Z, Y, X] of `refine_input`.
    Sizes are multiples of `multiple` (4; 16 with the rgt head), see `pad_to_multiple`. `forward` returns
    float32 tensors on the input grid, those of the chosen heads:
        fault_logit [B, 1]; orient [B, 6], an estimate of n n^T as (Nzz, Nyy, Nxx, Nzy, Nzx, Nyx);
        dhr [B, 1]; delta [B, 1], voxels to add to the solved geological time.
    In refine, fault_logit and dhr are corrections added to those of the input.
    """

    local_outputs = {"fault": ("fault_logit", "orient"), "dhr": ("dhr",)}

    def __init__(self, kind: str = "infer", heads: Iterable[str] = HEADS) -> None:
        super().__init__()
        self.kind = kind
        self.heads = tuple(head for head in HEADS if head in tuple(heads))
        self.in_channels = 9 if kind == "refine" else 1
        self.multiple = 16 if "rgt" in self.heads else 4
        self.stem = nn.Sequential(ConvBlock(self.in_channels, 8), ConvBlock(8, 8))
        self.down1 = nn.Sequential(ConvBlock(8, 24, stride=2), ResidualBlock(24), ResidualBlock(24))
        self.down2 = nn.Sequential(ConvBlock(24, 64, stride=2), *(ResidualBlock(64) for _ in range(3)))
        self.squeeze1 = ConvBlock(64, 24, kernel=1)
        self.up1 = nn.Sequential(ConvBlock(48, 24), ResidualBlock(24))
        if "fault" in self.heads or "dhr" in self.heads:
            self.squeeze0 = ConvBlock(24, 8, kernel=1)
            self.up0 = ConvBlock(16, 16)
        if "fault" in self.heads:
            self.fault_head = nn.Sequential(ConvBlock(16, 8), Conv3d(8, 1, 3, padding=1))
            self.orient_head = nn.Sequential(ConvBlock(24, 16), Conv3d(16, 6, 3, padding=1))
            # Faults are rare: start at p = 0.08. A correction starts at nothing.
            nn.init.constant_(self.fault_head.get_parameter("1.bias"), -2.5 if kind == "infer" else 0.0)
        if "dhr" in self.heads:
            self.dhr_head = nn.Sequential(ConvBlock(16, 8), Conv3d(8, 1, 3, padding=1))
        if "rgt" in self.heads:
            self.context8 = nn.Sequential(ConvBlock(64, 64, stride=2), ResidualBlock(64))
            self.context16 = nn.Sequential(ConvBlock(64, 64, stride=2), ResidualBlock(64))
            self.context_mix8 = ConvBlock(64, 64, kernel=1)
            self.context_mix4 = ConvBlock(64, 16, kernel=1)
            self.rgt_head = nn.Sequential(ConvBlock(40, 16), Conv3d(16, 1, 3, padding=1))
            nn.init.zeros_(self.rgt_head.get_parameter("1.weight"))
            nn.init.zeros_(self.rgt_head.get_parameter("1.bias"))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the heads for `x` [B, 1 or 9, Z, Y, X].

        Raises:
            ValueError: a size is no multiple of `multiple`.
        """
        check_multiple(x, self.multiple)
        full = self.stem(x)
        half = self.down1(full)
        quarter = self.down2(half)
        features = self.up1(torch.cat([up2(self.squeeze1(quarter)), half], dim=1))
        outputs: dict[str, Tensor] = {}
        if "rgt" in self.heads:
            context = up2(self._context(quarter))
            outputs["delta"] = up2(self.rgt_head(torch.cat([features, context], dim=1)).float())
        if "fault" in self.heads:
            outputs["orient"] = up2(self.orient_head(features).float())
        if "fault" in self.heads or "dhr" in self.heads:
            top = self.up0(torch.cat([up2(self.squeeze0(features)), full], dim=1))
            outputs |= self._full_grid_outputs(top)
        if self.kind == "refine":
            outputs["fault_logit"] = outputs["fault_logit"] + 4 * x[:, 2:3]
            outputs["dhr"] = outputs["dhr"] + x[:, 1:2]
        return outputs

    def _full_grid_outputs(self, top: Tensor) -> dict[str, Tensor]:
        """Return fault_logit and dhr, those of the chosen heads."""
        if "dhr" not in self.heads:
            return {"fault_logit": self.fault_head(top).float()}
        if "fault" not in self.heads:
            return {"dhr": self.dhr_head(top).float()}
        fault, dhr = cast(ConvBlock, self.fault_head[0]), cast(ConvBlock, self.dhr_head[0])
        of_fault, of_dhr = side_by_side(fault.conv, dhr.conv, top)
        return {
            "fault_logit": self.fault_head[1](fault.activate(of_fault)).float(),
            "dhr": self.dhr_head[1](dhr.activate(of_dhr)).float(),
        }

    def _context(self, quarter: Tensor) -> Tensor:
        """Return 16 channels on the 1/4 grid that have seen the maps down to 1/16."""
        eighth = self.context8(quarter)
        # Always float32: bf16 convolutions on maps of few voxels gave infinite weight gradients on CPUs.
        with torch.autocast(quarter.device.type, enabled=False):
            sixteenth = self.context16(eighth if eighth.dtype == torch.float64 else eighth.float())
        mixed = self.context_mix8(eighth + up2(sixteenth))
        return self.context_mix4(up2(mixed) + quarter)

    def input_window(self, output: str, window: tuple[int, int]) -> tuple[int, int]:
        """Return the input indices, first and last along any axis, that `output` in `window` depends on.

        `output` is one of `local_outputs`. Skip connections read less than the path through the 1/4 grid.
        """
        if output == "orient":
            half = through(self.orient_head, coarser(window))
        else:
            head = self.fault_head if output == "fault_logit" else self.dhr_head
            half = coarser(through(nn.Sequential(self.up0, head), window))
        quarter = coarser(through(self.up1, half))
        return through(nn.Sequential(self.stem, self.down1, self.down2), quarter)


def receptive_radius(network: nn.Module, heads: Iterable[str] = HEADS) -> int | None:
    """Return how far, in voxels along an axis, the local outputs of `heads` see; None: over the whole volume.

    Computed from the layers. Local outputs are those of fault (logit and orient) and dhr; the time correction
    of the rgt head reaches further and is not counted. Layouts that normalise over space (mtl) give None.
    """
    if not hasattr(network, "input_window"):
        return None
    local = cast(HighResolutionNet | UNet, network)
    radius = 0
    for output in [name for head in heads for name in local.local_outputs.get(head, ())]:
        for j in range(local.multiple):  # the window depends on the place within the coarsest cell
            first, last = local.input_window(output, (j, j))
            radius = max(radius, j - first, last - j)
    return radius


def rgt_calibration(rgt: Tensor, fsem: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what turns relative geological time into voxels: (slope, offset), each [B, 1, 1, 1, 1].

    `slope` is the mean of d rgt/dz over vertical pairs off faults (fsem < 0.5; -1, unlabelled, is left out);
    `offset` the mean of rgt/slope - z. So rgt/slope - offset is a time in voxels which is z on average.
    """
    step = rgt.diff(dim=2)
    free = torch.ones_like(step) if fsem is None else neighbours(off_fault(fsem), 2)
    dims = (1, 2, 3, 4)
    slope = (step * free).sum(dims, keepdim=True) / free.sum(dims, keepdim=True).clamp(min=1)
    # A constant or missing rgt has no slope; that of flat layers leaves it finite.
    slope = torch.where(slope > 1e-6, slope, 1.0 / max(rgt.shape[2] - 1, 1))
    z = torch.arange(rgt.shape[2], device=rgt.device, dtype=rgt.dtype).view(1, 1, -1, 1, 1)
    return slope, (rgt / slope - z).mean(dims, keepdim=True)


def off_fault(fsem: Tensor) -> Tensor:
    """Return 1 where a voxel is labelled and no fault, else 0, in the type of `fsem`."""
    return ((fsem >= 0) & (fsem < 0.5)).to(fsem.dtype)


def neighbours(mask: Tensor, dim: int) -> Tensor:
    """Return the products of neighbours along `dim`: 1 where both ends of a pair are in the mask."""
    n = mask.shape[dim]
    return mask.narrow(dim, 1, n - 1) * mask.narrow(dim, 0, n - 1)


def refine_input(
    rgt: Tensor,
    dhr: Tensor,
    fsem: Tensor,
    fdip: Tensor,
    fstrike: Tensor,
    *,
    calibration: tuple[Tensor, Tensor] | None = None,
    first_z: int = 0,
) -> Tensor:
    """Return the nine input channels [B, 9, Z, Y, X] of kind refine from five volumes [B, 1, Z, Y, X].

    Channels: rgt in voxels minus z (mean 0); dhr, normalised as the image; logit(clip(fsem, 0.01, 0.99))/4;
    the six components of fsem * n n^T, which do not jump where strike wraps. `fdip` and `fstrike` are ungated
    angles over 180 degrees; where both are 0 there is no angle, and the six are 0. A tile passes the
    `calibration` (see `rgt_calibration`) of its whole volume and the index `first_z` of its first sample, and
    gets the values that the whole volume has there.
    """
    slope, offset = rgt_calibration(rgt, fsem) if calibration is None else calibration
    z = torch.arange(first_z, first_z + rgt.shape[2], device=rgt.device, dtype=rgt.dtype).view(1, 1, -1, 1, 1)
    anomaly = rgt / slope - z - offset
    logit = torch.logit(fsem.clamp(0.01, 0.99)) / 4
    normal = normal_from_angles(180 * fdip[:, 0], 180 * fstrike[:, 0])
    known = ((fdip != 0) | (fstrike != 0)).to(fsem.dtype)
    outer = known * outer_from_normal(normal).movedim(0, 1)
    return torch.cat([anomaly, dhr, logit, fsem.clamp(0, 1) * outer], dim=1)


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """Return an inference copy of `network` with every BatchNorm3d folded into the convolution before it."""
    network = copy.deepcopy(network).eval()
    for part in network.modules():
        conv, norm = getattr(part, "conv", None), getattr(part, "norm", None)
        if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            part.conv = fuse_conv_bn_eval(conv, norm)
            part.norm = nn.Identity()
    return network


def build_network(network: str, kind: str = "infer", heads: Iterable[str] = HEADS) -> nn.Module:
    """Return a freshly initialised network: layout hr, mtl or unet; kind infer or refine; its heads.

    Raises:
        UserError: a name is unknown, no head is chosen, or the layout has no such kind or heads.
    """
    heads = tuple(heads)
    if network not in NETWORKS or kind not in KINDS:
        raise UserError(
            f"network {network!r} of kind {kind!r}: expected one of {NETWORKS} and one of {KINDS}"
        )
    if not heads or not set(heads) <= set(HEADS):
        raise UserError(f"heads {heads}: expected at least one of {HEADS}")
    if kind == "refine" and set(heads) != set(HEADS):
        raise UserError(f"heads {heads}: a refine network needs all of {HEADS}")
    if network == "unet":
        if kind != "infer" or "fault" not in heads:
            raise UserError(
                f"network unet, kind {kind}, heads {heads}: unet is for infer with the fault head"
            )
        return UNet()
    return HighResolutionNet(kind, heads) if network == "hr" else MultitaskNet(kind, heads)
