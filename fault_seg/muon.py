"""Muon: momentum whose updates of convolution kernels are made orthogonal; everything else by AdamW.

A step of gradient descent moves a kernel mostly along few directions, those of its largest singular values.
With all singular values brought to about one, rare directions are learned as fast as common ones (Jordan et
al. 2024, "Muon: an optimizer for hidden layers in neural networks"). In short trainings that is worth more
than it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.muon import MOMENTUM, orthogonal

KERNEL_LR = 10.0  # learning rate of the kernels over that of everything else
MIN_CHANNELS = 8  # kernels with fewer outputs, or one input, have too few directions


class Muon(torch.optim.AdamW):
    """AdamW for gains, biases and small kernels; orthogonal momentum for the other kernels.

    Args:
        module: what is trained.
        lr: learning rate of AdamW; kernels take `KERNEL_LR` times as much.
        weight_decay: of all kernels, on the scale of `lr`.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        kernels = [p for p in trained if _is_wide(p)]
        small = [p for p in trained if p.dim() > 1 and not _is_wide(p)]
        plain = [p for p in trained if p.dim() <= 1]
        groups = [
            {"params": small, "weight_decay": weight_decay, "orthogonal": False},
            {"params": plain, "weight_decay": 0.0, "orthogonal": False},
            {"params": kernels, "weight_decay": weight_decay, "orthogonal": True},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, foreach=True)

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient once."""
        for group in self.param_groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    self._step_kernel(parameter, group["lr"], group["weight_decay"])
        return super().step(closure)

    @torch.no_grad()
    def _step_kernel(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        """Update one kernel, and hide its gradient from AdamW."""
        gradient = parameter.grad
        if gradient is None:
            return
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # where AdamW looks for one when a state is loaded
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonal(gradient.lerp(momentum, MOMENTUM).float())
        rows, columns = len(update), update[0].numel()
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(update, alpha=-KERNEL_LR * lr * max(1.0, rows / columns) ** 0.5)
        parameter.grad = None


def _is_wide(parameter: Tensor) -> bool:
    """Return whether a parameter is a kernel [out, in, ...] with directions to make orthogonal."""
    return parameter.dim() > 1 and parameter.shape[0] >= MIN_CHANNELS and parameter.shape[1] > 1
