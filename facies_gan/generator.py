"""The generator of one scale: unpadded convolutions that refine the coarser scale's class probabilities.

Legend: B batch, C facies, Z noise channels, E conditioning channels (C + 1 of data, then seismic),
F features, h w the input box, p the border lost on each side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from common import device as devices

SLOPE = 0.2
SMALLEST_PROBABILITY = 0.01  # of the coarser scale, before its logarithm
OUTPUT_STD = 0.02
MAX_FEATURES = 128


@dataclass(frozen=True)
class Architecture:
    """What the networks of all scales share.

    Attributes:
        num_classes: facies C.
        condition_channels: E.
        noise_channels: Z.
        features: F of every scale.
        num_layers: convolutions of a network.
        kernel_size: odd.
        padding: zeros around the input of every convolution; 0 keeps it exact under tiling.
    """

    num_classes: int
    condition_channels: int
    noise_channels: int
    features: tuple[int, ...]
    num_layers: int = 5
    kernel_size: int = 3
    padding: int = 0

    @property
    def shrink(self) -> int:
        """Cells that one convolution loses on each side."""
        return (self.kernel_size - 1) // 2 - self.padding

    @property
    def border(self) -> int:
        """Cells that a network loses on each side."""
        return self.num_layers * self.shrink

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Return what `dataclasses.asdict` described."""
        return cls(**{**values, "features": tuple(values["features"])})


def feature_widths(num_scales: int, first: int, least: int, growth: int) -> tuple[int, ...]:
    """Return f_k = clamp(first * 2^floor(k / growth), least, 128); growth 0 keeps the width."""
    doublings = [k // growth if growth else 0 for k in range(num_scales)]
    return tuple(min(max(first * 2**n, least), MAX_FEATURES) for n in doublings)


def pixel_norm(x: torch.Tensor, *, inplace: bool = False) -> torch.Tensor:
    """Return x / sqrt(mean_c x^2 + 1e-8): of one pixel only, so tiles and batches change nothing.

    (ProGAN, Karras et al. 2018, section 4.2)
    """
    factor = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)
    return x.mul_(factor) if inplace else x * factor


def crop(x: torch.Tensor, width: int) -> torch.Tensor:
    """Return x [..., h, w] without `width` cells on each side."""
    return x[..., width : x.shape[-2] - width, width : x.shape[-1] - width] if width else x


def initialise(convolutions: nn.ModuleList, last_std: float | None, stream: torch.Generator | None) -> None:
    """Draw hidden weights by Kaiming's rule (slope 0.2), the last ones from N(0, last_std^2) when given."""
    for i, layer in enumerate(convolutions):
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        if last_std is not None and i == len(convolutions) - 1:
            nn.init.normal_(weight, 0.0, last_std, generator=stream)
        else:
            nn.init.kaiming_normal_(weight, a=SLOPE, generator=stream)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class ScaleGenerator(nn.Module):
    """Noise, conditioning and the coarser scale's probabilities to logits of the facies.

    The conditioning enters every hidden layer again, cropped to its extent and never resized, so that a datum
    stays in its cell.

    Args:
        architecture: of the pyramid.
        scale: index k; scale 0 has no coarser one.
        stream: of the first weights; None = torch's global one.
    """

    def __init__(self, architecture: Architecture, scale: int, stream: torch.Generator | None = None) -> None:
        super().__init__()
        a = architecture
        self.shrink, self.border = a.shrink, a.border
        width = a.features[scale]
        first = a.noise_channels + a.condition_channels + (a.num_classes if scale else 0)
        options: dict[str, Any] = {"kernel_size": a.kernel_size, "padding": a.padding}
        hidden = [nn.Conv2d(width + a.condition_channels, width, **options) for _ in range(a.num_layers - 2)]
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(first, width, **options), *hidden, nn.Conv2d(width, a.num_classes, **options)]
        )
        initialise(self.convolutions, OUTPUT_STD, stream)
        devices.channels_last(self)

    def forward(
        self, noise: torch.Tensor, condition: torch.Tensor, prior: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits [B, C, h - 2p, w - 2p]: log(clamp(prior, 0.01, 1)) + residual.

        Args:
            noise: [B, Z, h, w], times its amplitude.
            condition: [B, E, h, w]; E may be 0.
            prior: [B, C, h, w], probabilities of the coarser scale, None at scale 0.
        """
        parts = [noise, condition] if prior is None else [noise, condition, prior]
        x = devices.like_weights(torch.cat(parts, dim=1))
        *hidden, last = self.convolutions
        inplace = not torch.is_grad_enabled()  # the same values without new arrays
        for i, layer in enumerate(hidden):
            if i and condition.shape[1]:
                x = torch.cat([x, crop(condition, i * self.shrink).to(x.dtype)], dim=1)
            x = pixel_norm(F.leaky_relu(layer(x), SLOPE, inplace=inplace), inplace=inplace)
        residual = last(x).float()
        if prior is None:
            return residual
        return crop(prior.float(), self.border).clamp(SMALLEST_PROBABILITY, 1).log() + residual


class Pass(NamedTuple):
    """What a scale gives.

    Attributes:
        logits: [B, C, h, w].
        plain: their softmax, before injection.
        output: probabilities after injection.
    """

    logits: torch.Tensor
    plain: torch.Tensor
    output: torch.Tensor


def run_scale(
    block: Callable[..., torch.Tensor],
    border: int,
    noise: torch.Tensor,
    condition: torch.Tensor,
    prior: torch.Tensor | None,
    *,
    injects: bool,
) -> Pass:
    """Run one scale on its input box.

    Args:
        block: a `ScaleGenerator`, compiled or not.
        border: cells it loses on each side.
        noise: [B, Z, h, w], times its amplitude.
        condition: [B, E, h, w], the data first.
        prior: [B, C, h, w] or None.
        injects: whether cells with data take their facies.
    """
    logits = block(noise, condition, prior)
    plain = torch.softmax(logits, dim=1)
    if not injects:
        return Pass(logits, plain, plain)
    data = crop(condition, border)[:, : logits.shape[1] + 1]
    return Pass(logits, plain, inject(plain, data))


def inject(probabilities: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Return m w + (1 - m) o: the data's facies where there are data, the network's elsewhere.

    Args:
        probabilities: o [B, C, h, w].
        data: [B, C + 1, h, w], proportions w of the data's facies and the mask m.
    """
    num_classes = probabilities.shape[1]
    mask = data[:, num_classes : num_classes + 1]
    return torch.where(mask > 0, data[:, :num_classes], probabilities)


def copy_equal_shapes(target: nn.Module, source: nn.Module) -> None:
    """Copy into `target` every tensor of `source` that has the same name and shape."""
    found = source.state_dict()
    own = target.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            if name in found and found[name].shape == tensor.shape:
                tensor.copy_(found[name])
