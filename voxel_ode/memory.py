"""How much memory a training step takes: what autograd keeps for one sample, and the weights' share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

BYTES_A_WEIGHT = 20  # weight, gradient, two moments of AdamW and the average, fp32
GIB = float(2**30)


def saved_bytes(function: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward of `function`, each storage counted once."""
    seen: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(seen.values())


def estimate_gib(module: nn.Module, bytes_a_sample: int, batch_size: int) -> float:
    """Return the memory of a step on a batch, GiB: kept activations, weights and optimizer.

    Args:
        module: what is trained.
        bytes_a_sample: from `saved_bytes` of one sample, weights included.
        batch_size: samples a process.
    """
    num_weights = sum(p.numel() for p in module.parameters())
    activations = max(0, bytes_a_sample - 4 * num_weights) * batch_size
    return (activations + BYTES_A_WEIGHT * num_weights) / GIB


def memory_table(module: nn.Module, bytes_a_sample: int, batch_sizes: Sequence[int]) -> str:
    """Return one line: the estimate for each batch size."""
    sizes = sorted(set(batch_sizes))
    parts = [f"batch {n}: {estimate_gib(module, bytes_a_sample, n):.2g} GiB" for n in sizes]
    return "estimated memory a process, " + ", ".join(parts)
