"""Means of losses over the cells that count."""

from __future__ import annotations

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean of each sample where `mask` is 1, [B]; 0 for a sample without such cells.

    Args:
        values: [B, ...].
        mask: 0 or 1, of the same shape; None = all cells.
    """
    if mask is None:
        return values.flatten(1).mean(1)
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
