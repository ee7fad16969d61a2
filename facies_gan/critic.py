"""The conditional patch critic of one scale: how real do the facies around each cell look, given the data?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from common import device as devices
from facies_gan.generator import SLOPE, Architecture, initialise


class ScaleCritic(nn.Module):
    """Facies and conditioning to a map of scores, [B, 1, H - 2p, W - 2p]; no normalisation, no padding.

    Without statistics over space or batch the score of a sample does not depend on the others, which the
    gradient penalty needs (Gulrajani et al. 2017, section 4).

    Args:
        architecture: of the pyramid.
        scale: index k.
        stream: of the first weights; None = torch's global one.
    """

    def __init__(self, architecture: Architecture, scale: int, stream: torch.Generator | None = None) -> None:
        super().__init__()
        a = architecture
        width = a.features[scale]
        options: dict[str, Any] = {"kernel_size": a.kernel_size, "padding": a.padding}
        hidden = [nn.Conv2d(width, width, **options) for _ in range(a.num_layers - 2)]
        first = nn.Conv2d(a.num_classes + a.condition_channels, width, **options)
        self.convolutions = nn.ModuleList([first, *hidden, nn.Conv2d(width, 1, **options)])
        initialise(self.convolutions, None, stream)
        devices.channels_last(self)

    def forward(self, facies: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the score map.

        Args:
            facies: probabilities or one-hot classes [B, C, H, W].
            condition: [B, E, H, W]; E may be 0.
        """
        x = devices.like_weights(torch.cat([facies, condition], dim=1))
        *hidden, last = self.convolutions
        for layer in hidden:
            x = F.leaky_relu(layer(x), SLOPE)
        return last(x)
