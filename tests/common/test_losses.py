"""Means over the cells that count."""

from __future__ import annotations

import pytest
import torch

from common.losses import masked_mean


def test_masked_mean():
    """Each sample has its own mean; cells outside the mask and samples without cells give nothing."""
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, 9.0], [50.0, 50.0, 50.0]])
    mask = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert masked_mean(values, mask).tolist() == pytest.approx([2, 9, 0])
    assert masked_mean(values).tolist() == pytest.approx([104 / 3, 7, 50])
