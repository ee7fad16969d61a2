"""The baseline layout `unet`: a 3-D U-Net for fault probability alone (after FaultSeg3D, Wu et al. 2019).

B batch, C channels, Z Y X grid (Z depth downwards).
Levels of 16, 32 and 64 channels and 128 at the bottom (1/8 grid), two convolutions each; 1,460,289 values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fault_seg.layers import Conv3d, check_multiple, coarser, through, up2

CHANNELS = (16, 32, 64, 128)


def _double(num_in: int, num_out: int) -> nn.Sequential:
    """Return twice: 3x3x3 convolution, BatchNorm3d, ReLU."""
    layers: list[nn.Module] = []
    for channels in (num_in, num_out):
        layers += [
            Conv3d(channels, num_out, 3, padding=1, bias=False),
            nn.BatchNorm3d(num_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Fault probability from the normalised image [B, 1, Z, Y, X]; sizes are multiples of 8.

    `forward` returns {"fault_logit": [B, 1, Z, Y, X]} in float32; the probability is its sigmoid.
    """

    kind = "infer"
    heads = ("fault",)
    in_channels = 1
    multiple = 8
    local_outputs = {"fault": ("fault_logit",)}

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(i, o) for i, o in zip((1, *CHANNELS), CHANNELS, strict=False))
        self.up = nn.ModuleList(
            _double(below + here, here) for below, here in zip(CHANNELS[:0:-1], CHANNELS[-2::-1], strict=True)
        )
        self.out = Conv3d(CHANNELS[0], 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logit of the fault probability.

        Raises:
            ValueError: a size is no multiple of 8.
        """
        check_multiple(x, self.multiple)
        skips = []
        for stage in self.down[:-1]:
            skips.append(stage(x))
            x = F.max_pool3d(skips[-1], 2)
        x = self.down[-1](x)
        for stage in self.up:
            x = stage(torch.cat([up2(x), skips.pop()], dim=1))
        return {"fault_logit": self.out(x).float()}

    def input_window(self, output: str, window: tuple[int, int]) -> tuple[int, int]:
        """Return the input indices, first and last along any axis, that the output in `window` depends on."""
        for stage in reversed(self.up):
            window = coarser(through(stage, window))
        window = through(self.down[-1], window)
        for stage in reversed(self.down[:-1]):
            first, last = window
            window = through(stage, (2 * first, 2 * last + 1))  # max-pooling of two
        return window
