"""White noise on the cells of an endless plane: a function of (seed, purpose, indices) and the cell alone.

The plane is drawn in blocks, each from a stream of its own, so that a tile holds the numbers of the whole and
no grid is too large. Cells may have negative indices (the halo).
"""

from __future__ import annotations

import torch

from common.noise import torch_stream
from facies_gan.canvas import Box

BLOCK = 64


def plane_noise(box: Box, channels: int, seed: int, purpose: str, *indices: int) -> torch.Tensor:
    """Return standard normal noise [channels, h, w] of the cells of `box`, on the CPU."""
    (_, top, height), (_, left, width) = box
    noise = torch.empty(channels, height, width)
    for row in range(top // BLOCK, (top + height - 1) // BLOCK + 1):
        rows = max(row * BLOCK, top), min((row + 1) * BLOCK, top + height)
        for col in range(left // BLOCK, (left + width - 1) // BLOCK + 1):
            cols = max(col * BLOCK, left), min((col + 1) * BLOCK, left + width)
            stream = torch_stream(seed, purpose, *indices, row, col)
            block = torch.randn(channels, BLOCK, BLOCK, generator=stream)
            noise[:, rows[0] - top : rows[1] - top, cols[0] - left : cols[1] - left] = block[
                :,
                rows[0] - row * BLOCK : rows[1] - row * BLOCK,
                cols[0] - col * BLOCK : cols[1] - col * BLOCK,
            ]
    return noise
