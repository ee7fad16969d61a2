"""Muon: momentum whose updates of kernels are made orthogonal; everything else by AdamW.

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

from common.optim import parameter_groups

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # lifts small singular values fastest (Jordan et al.)
ITERATIONS = 5
KERNEL_LR = 10.0  # learning rate of the kernels over that of everything else
MIN_CHANNELS = 8  # kernels with fewer outputs have too few directions


class Muon(torch.optim.AdamW):
    """AdamW for gains, biases and small kernels; orthogonal momentum for the other kernels [out, in, ...].

    Args:
        module: what is trained.
        lr: of AdamW; kernels [rows, columns] take KERNEL_LR max(1, rows / columns)^0.5 times as much.
        weight_decay: of all kernels, on the scale of `lr`.
        min_inputs: kernels with fewer inputs are small ones too.
        kernel_decay: weight decay of the orthogonal kernels where it is another one.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        weight_decay: float,
        *,
        min_inputs: int = 2,
        kernel_decay: float | None = None,
    ) -> None:
        matrices, plain = parameter_groups(module, weight_decay)
        kernels = [p for p in matrices["params"] if _is_wide(p, min_inputs)]
        small = [p for p in matrices["params"] if not _is_wide(p, min_inputs)]
        decay = weight_decay if kernel_decay is None else kernel_decay
        groups = [
            {**matrices, "params": small, "orthogonal": False},
            {**plain, "orthogonal": False},
            {"params": kernels, "weight_decay": decay, "orthogonal": True},
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


def orthogonal(update: Tensor) -> Tensor:
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


def _is_wide(parameter: Tensor, min_inputs: int) -> bool:
    """Return whether a parameter is a kernel [out, in, ...] with directions to make orthogonal."""
    return parameter.dim() > 1 and parameter.shape[0] >= MIN_CHANNELS and parameter.shape[1] >= min_inputs
