"""Spectral normalisation whose power iteration is an explicit act, and which folds into plain weights.

Miyato et al. 2018 (arXiv 1802.05957): W / sigma(W), with sigma the largest singular value of W seen as a
matrix [out, rest]. The iteration is run once an update by the trainer, not inside the forward pass: a
recomputed forward (activation checkpointing) then sees the very weights of the first one, and a forward
never changes state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

EPSILON = 1e-12
START_ITERATIONS = 15


class SpectralNorm(nn.Module):
    """W -> W / sigma, with the singular vectors of the last power iteration held as buffers.

    Args:
        weight: [out, ...] at the start.
        generator: of the first guess.
    """

    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, weight: torch.Tensor, generator: torch.Generator | None = None) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        guess = torch.randn(matrix.shape[1], generator=generator)
        self.register_buffer("left", torch.zeros(matrix.shape[0]))
        self.register_buffer("right", guess / guess.norm())
        self.iterate(weight, START_ITERATIONS)

    @torch.no_grad()
    def iterate(self, weight: torch.Tensor, count: int = 1) -> None:
        """Move the singular vectors towards those of `weight` by `count` power iterations, in place."""
        matrix = weight.detach().flatten(1).float()
        for _ in range(count):
            self.left.copy_(_unit(matrix @ self.right))
            self.right.copy_(_unit(matrix.T @ self.left))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` / sigma; averaged singular vectors (EMA) are brought to unit length first."""
        sigma = _unit(self.left) @ (weight.flatten(1) @ _unit(self.right))
        return weight / (sigma + EPSILON)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / (vector.norm() + EPSILON)


def spectral_norm(layer: nn.Module, enabled: bool = True) -> nn.Module:
    """Return `layer` (a convolution or Linear) with its weight normalised, when `enabled`."""
    if enabled:
        assert isinstance(layer.weight, torch.Tensor)
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


def iterate(module: nn.Module) -> None:
    """Run one power iteration in every normalised layer of `module`; call it once before an update."""
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrizations: Any = layer.parametrizations
            chain = parametrizations["weight"]
            for part in chain:
                if isinstance(part, SpectralNorm):
                    part.iterate(chain.original)


def fold(module: nn.Module) -> nn.Module:
    """Replace every normalised weight of `module` by its present value, in place, and return it."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module
