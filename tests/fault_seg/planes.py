"""Angles between planes."""

from __future__ import annotations

import torch


def angle_between_deg(n1: torch.Tensor, n2: torch.Tensor) -> torch.Tensor:
    """Return the angle 0..90 in degrees between planes with unit normals [3, ...], whatever their signs.

    atan2(|n1 x n2|, |n1 . n2|) is accurate near 0 and 90 degrees, where acos and asin lose half their digits.
    """
    dtype = torch.promote_types(n1.dtype, n2.dtype)
    n1, n2 = torch.broadcast_tensors(n1.to(dtype), n2.to(dtype))
    sine = torch.linalg.vector_norm(torch.linalg.cross(n1, n2, dim=0), dim=0)
    return torch.rad2deg(torch.atan2(sine, (n1 * n2).sum(0).abs()))
