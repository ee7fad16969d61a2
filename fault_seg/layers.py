"""The layers and grid rules that the layouts share: convolution, interpolation, padding, receptive windows.

B batch, C channels, Z Y X grid (Z depth downwards).
"""

from __future__ import annotations

from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """nn.Conv3d of odd kernels and half padding that avoids a slow path of PyTorch on CPUs; the same values.

    For one sample and a small grid PyTorch skips oneDNN for a convolution about a third as fast, forward and
    backward. There the grid is cut in two along z, with the overlap the kernel needs, into a batch of two.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x` [B, C, Z, Y, X]."""
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of `x` with a kernel of the size of this layer's."""
        tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - public, in no __all__
        if tracing or torch.compiler.is_compiling():
            return self._conv_forward(x, weight, bias)
        reach, stride = self.dilation[0] * (self.kernel_size[0] - 1), self.stride[0]
        half, odd = divmod((x.shape[2] - 1) // stride + 1, 2)
        small = len(x) == 1 and x.shape[1:4].numel() <= 20480  # the bound of PyTorch's choice
        if not (small and reach and half and not odd and x.dtype == torch.float32 and x.device.type == "cpu"):
            return self._conv_forward(x, weight, bias)
        padding = int(self.padding[0])
        x = F.pad(x, (0, 0, 0, 0, padding, padding))
        length = stride * (half - 1) + reach + 1
        pair = torch.cat([x.narrow(2, 0, length), x.narrow(2, stride * half, length)])
        pair = F.conv3d(pair, weight, bias, self.stride, (0, padding, padding), self.dilation)
        return torch.cat(pair.split(1), dim=2)


def side_by_side(first: Conv3d, second: Conv3d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of two equal layers on the same `x` by one convolution, which is faster than two."""
    weight = torch.cat([first.weight, second.weight])
    biases = [layer.bias for layer in (first, second) if layer.bias is not None]
    both = first.convolve(x, weight, torch.cat(biases) if biases else None)
    left, right = both.split([len(first.weight), len(second.weight)], dim=1)
    return left, right


def up2(x: Tensor) -> Tensor:
    """Return `x` interpolated trilinearly onto a grid twice as fine (cell centres, align_corners False)."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[EllipsisType | slice, ...]]:
    """Pad [..., Z, Y, X] at the far end of each axis to a multiple; return it and the crop that undoes it.

    Pads by reflection, by repetition where an axis is too thin to reflect, so any size >= 1 works:
    `padded[crop]` equals `x`. The near end stays, hence origins of tiles keep their place.
    """
    crop = (..., *(slice(0, n) for n in x.shape[-3:]))
    for axis in (-3, -2, -1):
        n = x.shape[axis]
        missing = -n % multiple
        if missing:
            index = torch.arange(n + missing, device=x.device)
            mirrored = 2 * (n - 1) - index if missing < n else torch.full_like(index, n - 1)
            x = x.index_select(axis, torch.where(index < n, index, mirrored))
    return x, crop


def check_multiple(x: Tensor, multiple: int) -> None:
    """Raise ValueError unless every size of [B, C, Z, Y, X] is a multiple of `multiple`."""
    if any(n % multiple for n in x.shape[2:]):
        raise ValueError(f"sizes {tuple(x.shape[2:])}, expected multiples of {multiple}: use pad_to_multiple")


def through(stage: nn.Module, window: tuple[int, int]) -> tuple[int, int]:
    """Return the input indices that a chain of convolutions reads for outputs in `window`."""
    first, last = window
    for layer in reversed(list(stage.modules())):
        if isinstance(layer, nn.Conv3d):
            stride, reach = layer.stride[0], layer.kernel_size[0] // 2
            first, last = first * stride - reach, last * stride + reach
    return first, last


def coarser(window: tuple[int, int]) -> tuple[int, int]:
    """Return the indices on the coarse grid that `up2` reads for outputs in `window`."""
    # Output j lies at j/2 - 1/4 of the coarse grid, between two of its points.
    return (window[0] - 1) // 2, (window[1] + 1) // 2
