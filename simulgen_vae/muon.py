"""Muon for short trainings: kernels move along orthogonal matrices, everything else by AdamW.

The momentum of a kernel, seen as a matrix, is replaced by the nearest matrix whose singular values are about
one, so that rare directions are learned as fast as common ones (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks").
"""

from __future__ import annotations

import torch
from torch import nn

from common.muon import MOMENTUM, orthogonal
from common.optim import adamw

LEAST_WIDTH = 8  # kernels with fewer outputs have too few directions


class Muon:
    """Orthogonal momentum for wide kernels [out, in, ...], AdamW for what is left; no state to resume from.

    Args:
        module: what is trained.
        lr: of AdamW.
        kernel_lr: of the kernels, times sqrt(max(1, rows / columns)).
        weight_decay: of all kernels, in units of each learning rate.
    """

    def __init__(self, module: nn.Module, lr: float, kernel_lr: float, weight_decay: float) -> None:
        self.kernels = [p for p in module.parameters() if p.dim() > 1 and min(p.shape[:2]) >= LEAST_WIDTH]
        self.momenta = [torch.zeros_like(p) for p in self.kernels]
        self.kernel_lr, self.weight_decay = kernel_lr, weight_decay
        self.rest = adamw(module, lr, weight_decay)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update everything with a gradient once, at `factor` times the learning rates."""
        for kernel, momentum in zip(self.kernels, self.momenta, strict=True):
            if kernel.grad is None:
                continue
            momentum.lerp_(kernel.grad, 1 - MOMENTUM)
            update = orthogonal(torch.lerp(kernel.grad, momentum, MOMENTUM).flatten(1))
            rate = factor * self.kernel_lr
            kernel.mul_(1 - rate * self.weight_decay)
            kernel.sub_(
                update.view_as(kernel), alpha=rate * max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            )
            kernel.grad = None  # AdamW leaves it alone
        for group in self.rest.param_groups:
            group["lr"] = factor * group.setdefault("peak", group["lr"])
        self.rest.step()
