"""InversionNet (Wu and Lin 2019): the convolutional encoder-decoder that others compare with.

Shots are channels, so it is tied to five shots of 1000 samples at 70 receivers and a section of 70 x 70;
other layouts are resampled to that and back. Letters: B batch, S shots, T time samples, R receivers, Z depth,
X horizontal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from velocity_inversion.geometry import Survey

GATHER = (1000, 70)
SECTION = (70, 70)
SHOTS = 5


def resampling_notice(survey: Survey) -> str:
    """Return what to tell a user whose data must be resampled to the network's shapes; "" for none."""
    shots, receivers, (z, x) = survey.num_shots, survey.num_receivers, survey.model_shape_zx
    if (shots, receivers, (z, x)) == (SHOTS, GATHER[1], SECTION):
        return ""
    return (
        f"InversionNet is made for {SHOTS} shots, {GATHER[1]} receivers, {SECTION[0]} x {SECTION[1]} cells; "
        f"{shots} shots, {receivers} receivers and {z} x {x} cells are resampled to that and back"
    )


def _block(before: int, after: int, size: Any, stride: Any = 1, padding: Any = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)
    )


def _up(before: int, after: int, size: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(before, after, size, stride, padding), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)
    )


class InversionNet(nn.Module):
    """Gathers -> velocity in km/s, 24,409,123 weights.

    Args:
        section: (Z, X) of the section wanted.
        bounds: velocities that tanh's -1 and 1 stand for, km/s.
    """

    def __init__(self, section: tuple[int, int] = SECTION, bounds: tuple[float, float] = (1.5, 4.5)) -> None:
        super().__init__()
        self.section, self.bounds = section, bounds
        along_time = ((3, 1), (2, 1), (1, 0)), ((3, 1), 1, (1, 0))
        layers = [_block(SHOTS, 32, (7, 1), (2, 1), (3, 0))]
        for before, after in ((32, 64), (64, 64), (64, 128)):
            layers += [_block(before, after, *along_time[0]), _block(after, after, *along_time[1])]
        for before, after in ((128, 128), (128, 256), (256, 256)):
            layers += [_block(before, after, 3, 2, 1), _block(after, after, 3, 1, 1)]
        layers.append(_block(256, 512, (8, 9)))
        layers += [_up(512, 512, 5), _block(512, 512, 3, 1, 1)]
        for before, after in ((512, 256), (256, 128), (128, 64), (64, 32)):
            layers += [_up(before, after, 4, 2, 1), _block(after, after, 3, 1, 1)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.Conv2d(32, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Tanh())

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return "vp" [B, 1, Z, X] in km/s and "log_scale", zero: it knows no error.

        Args:
            batch: "channels" [B, S, 2, T, R]; the second channel, the plain signed logarithm, is used.
        """
        x = self._resampled(batch["channels"][:, :, 1])
        u = self.last(functional.pad(self.layers(x), (-5, -5, -5, -5)))
        low, high = self.bounds
        with torch.autocast(x.device.type, enabled=False):
            v = low + (high - low) * 0.5 * (u.float() + 1)
            if self.section != SECTION:
                v = functional.interpolate(v, self.section, mode="bilinear", align_corners=False)
        return {"vp": v, "log_scale": torch.zeros_like(v)}

    def set_mean_profile(self, profile: torch.Tensor) -> None:
        """Start near a mean depth profile [Z] in km/s: its mean becomes the output's bias."""
        low, high = self.bounds
        start = ((float(profile.mean()) - low) / (high - low) * 2 - 1) * 0.999
        with torch.no_grad():
            self.last[1].get_parameter("bias").fill_(torch.atanh(torch.tensor(start)))

    def _resampled(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, 5, 1000, 70] from gathers [B, S, T, R]."""
        if x.shape[1] != SHOTS:
            chosen = torch.linspace(0, x.shape[1] - 1, SHOTS, device=x.device).round().long()
            x = x[:, chosen]
        if tuple(x.shape[-2:]) != GATHER:
            x = functional.interpolate(x, GATHER, mode="bilinear", align_corners=False)
        return x
