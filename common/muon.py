"""Orthogonal updates of kernels, the heart of Muon: rare directions are learned as fast as common ones.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import torch

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # lifts small singular values fastest (Jordan et al.)
ITERATIONS = 5


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """Return `update` [num_out, ...], seen as a matrix, with its singular values brought into about 0.7..1.2.

    X <- a X + (b A + c A A) X with A = X X^T, five times, from X = update / |update|_F (Newton-Schulz).
    """
    a, b, c = QUINTIC
    x = update.reshape(len(update), -1)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).reshape(update.shape)
