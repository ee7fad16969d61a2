"""3-D convolutions by several routes that give the same numbers, and the choice of the fastest one.

Some CPUs run `conv3d` in fp32 with 16 channels far below their arithmetic speed. The routes: `native`
(PyTorch's own), `pad32` (channels padded with zeros to multiples of 32), `gemm` (one matrix product for each
kernel offset), `bf16` (native in bfloat16, for processors with instructions for it). They differ by rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common import device as devices
from common import distributed

BACKENDS = ("native", "pad32", "bf16", "gemm")
_PAD_TO = 32
_GIVE_UP_AT = 1.5  # a route this many times slower than the best so far is timed once only


class ShiftedGemm(torch.autograd.Function):
    """A "same" convolution as a sum of matrix products over the kernel's offsets.

    With zero padding the rows x[n] ([C]) of neighbouring cells stand at fixed distances in memory, so
        y[n] = sum_k x[n + o_k] W_k
    takes one product of contiguous blocks for each offset o_k, without any gathering.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the convolution of `x` [B, C, D, H, W] with `weight` [O, C, k, k, k], k odd."""
        k = weight.shape[2]
        rows, shape = _padded_rows(x, k // 2)
        offsets, margin = _offsets(shape, k)
        matrices = weight.permute(2, 3, 4, 1, 0).reshape(k**3, weight.shape[1], -1).contiguous()
        out = _sum_of_products(rows, matrices, offsets, margin)
        ctx.save_for_backward(rows, matrices)
        ctx.geometry = (shape, offsets, margin, k)
        return _unpadded(out, shape, k // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return the gradients of input and weight."""
        rows, matrices = ctx.saved_tensors
        shape, offsets, margin, k = ctx.geometry
        grad_rows, _ = _padded_rows(gradient, k // 2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            back = [-offset for offset in offsets]
            grad_x = _unpadded(
                _sum_of_products(grad_rows, matrices.mT.contiguous(), back, margin), shape, k // 2
            )
        if ctx.needs_input_grad[1]:
            parts = torch.empty_like(matrices)
            inner = grad_rows[margin : len(grad_rows) - margin]
            for part, offset in zip(parts, offsets, strict=True):
                torch.mm(rows[margin + offset : len(rows) - margin + offset].mT, inner, out=part)
            grad_weight = parts.reshape(k, k, k, parts.shape[1], -1).permute(4, 3, 0, 1, 2)
        return grad_x, grad_weight


def _padded_rows(x: torch.Tensor, radius: int) -> tuple[torch.Tensor, Sequence[int]]:
    """Return `x` [B, C, D, H, W] with a rim of zeros as rows [cells, C], and the padded [B, D, H, W]."""
    padded = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0) + (radius,) * 6).contiguous()
    return padded.view(-1, padded.shape[-1]), padded.shape[:-1]


def _unpadded(rows: torch.Tensor, shape: Sequence[int], radius: int) -> torch.Tensor:
    """Return rows [cells, C] of a padded box as [B, C, D, H, W] without its rim."""
    inside = tuple(slice(radius, n - radius) for n in shape[1:])
    return rows.view(*shape, -1)[(slice(None), *inside)].permute(0, 4, 1, 2, 3)


def _offsets(shape: Sequence[int], k: int) -> tuple[list[int], int]:
    """Return the distance in rows of every kernel offset, in the order of the kernel, and the largest."""
    _, _, height, width = shape
    reach = range(-(k // 2), k // 2 + 1)
    offsets = [(z * height + y) * width + x for z in reach for y in reach for x in reach]
    return offsets, offsets[-1]


def _sum_of_products(
    rows: torch.Tensor, matrices: torch.Tensor, offsets: list[int], margin: int
) -> torch.Tensor:
    """Return sum_k rows[n + o_k] W_k for all rows but the outer `margin`, which are left undefined."""
    out = rows.new_empty(len(rows), matrices.shape[2])
    inner = out[margin : len(rows) - margin]
    for i, (matrix, offset) in enumerate(zip(matrices, offsets, strict=True)):
        block = rows[margin + offset : len(rows) - margin + offset]
        if i == 0:
            torch.mm(block, matrix, out=inner)
        else:
            inner.addmm_(block, matrix)
    return out


def convolve(x: torch.Tensor, weight: torch.Tensor, backend: str = "native", groups: int = 1) -> torch.Tensor:
    """Return the "same" convolution of `x` [B, C, D, H, W] with `weight` [O, C / groups, k, k, k].

    Args:
        x: input.
        weight: kernels of odd size.
        backend: one of BACKENDS; all but bf16 need groups 1 and fall back to native otherwise.
        groups: as in `conv3d`.
    """
    radius = weight.shape[2] // 2
    if backend == "bf16":
        return F.conv3d(x.bfloat16(), weight.bfloat16(), padding=radius, groups=groups).to(x.dtype)
    if groups > 1 or backend == "native":
        return F.conv3d(x, weight, padding=radius, groups=groups)
    if backend == "gemm":
        return ShiftedGemm.apply(x, weight)
    if backend != "pad32":
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    more_out, more_in = (-n % _PAD_TO for n in weight.shape[:2])
    x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, more_in))
    padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, more_in, 0, more_out))
    return F.conv3d(x, padded, padding=radius)[:, : weight.shape[0]]


class Conv(nn.Module):
    """A "same" 3-D convolution of odd kernel size whose route can be chosen.

    Args:
        channels_in: C.
        channels_out: O.
        kernel: k.
        groups: as in `conv3d`.
        bias: whether to add one.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        like = nn.Conv3d(channels_in, channels_out, kernel, groups=groups, bias=bias)
        self.weight, self.bias = like.weight, like.bias
        self.groups = groups
        self.backend = "native"
        self.level = 0  # of the grid that it works on: cells 2^level as long

    def forward(self, x: torch.Tensor, channels: slice = slice(None)) -> torch.Tensor:
        """Return the convolution of `x` [B, C, D, H, W] with the kernels of these input channels."""
        backend = "native" if torch.is_autocast_enabled(x.device.type) else self.backend
        y = convolve(x, self.weight[:, channels], backend, self.groups)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None, None]


@dataclass(frozen=True)
class _Kind:
    """What makes two convolutions cost the same."""

    channels: tuple[int, int]
    kernel: int
    groups: int
    level: int


def _kind(conv: Conv) -> _Kind:
    out, per_group, kernel = conv.weight.shape[:3]
    return _Kind((per_group * conv.groups, out), kernel, conv.groups, conv.level)


def set_backends(module: nn.Module, names: dict[str, str]) -> None:
    """Give each convolution of `module` its route by name; those not named stay as they are."""
    for name, part in module.named_modules():
        if isinstance(part, Conv) and name in names:
            part.backend = names[name]


def backends_of(module: nn.Module) -> dict[str, str]:
    """Return the route of every convolution of `module` by name."""
    return {name: part.backend for name, part in module.named_modules() if isinstance(part, Conv)}


def choose_backends(
    module: nn.Module,
    wish: str,
    shape: Sequence[int],
    device: torch.device,
    *,
    allow_bf16: bool = True,
    seconds: float = 1.0,
) -> dict[str, str]:
    """Return a route for every convolution of `module`: the one wished for, or the fastest when "auto".

    Forward and backward are timed on random numbers, once for each kind of convolution, on rank 0 only. An
    accelerator keeps its native kernels.

    Args:
        module: holds the convolutions.
        wish: one of BACKENDS, or auto.
        shape: (B, D, H, W) of a training batch.
        device: where it will run.
        allow_bf16: whether bf16 may be chosen by auto.
        seconds: about how long the timing may take.
    """
    convs = {name: part for name, part in module.named_modules() if isinstance(part, Conv)}
    if wish != "auto":
        return dict.fromkeys(convs, wish)
    if device.type != "cpu":
        return dict.fromkeys(convs, "native")
    candidates = ["native", "gemm", "pad32"]
    if allow_bf16 and devices.has_fast_bf16(device):
        candidates.append("bf16")
    kinds = sorted({_kind(conv) for conv in convs.values()}, key=repr)
    fastest: dict[_Kind, str] = {}
    if distributed.is_main():
        budget = seconds / max(1, len(kinds))
        fastest = {kind: _fastest(kind, candidates, shape, budget) for kind in kinds}
    names = {name: fastest.get(_kind(conv), "native") for name, conv in convs.items()}
    return distributed.broadcast_object(names)


def _fastest(kind: _Kind, candidates: Sequence[str], shape: Sequence[int], seconds: float) -> str:
    """Return the fastest route for one kind of convolution."""
    if kind.kernel == 1 or kind.groups > 1:
        return "native"
    began = time.perf_counter()
    times: dict[str, float] = {}
    for _ in range(3):
        for name in candidates:
            best = min(times.values(), default=0.0)
            if best and times.get(name, 0.0) > _GIVE_UP_AT * best:
                continue
            times[name] = min(times.get(name, float("inf")), time_convolution(kind, name, shape))
        if time.perf_counter() - began > seconds:
            break
    return min(times, key=lambda name: times[name])


def time_convolution(kind: _Kind, backend: str, shape: Sequence[int]) -> float:
    """Return the seconds of one forward and backward of a kind of convolution on a grid (B, D, H, W).

    The smaller of elapsed and processor time: on a busy machine the clock tells of other programs, and the
    processor time of a route that uses several cores counts each of them.
    """
    batch, *cells = shape
    sizes = [max(1, -(-n // 2**kind.level)) for n in cells]
    layout = torch.channels_last_3d
    x = torch.ones(batch, kind.channels[0], *sizes).contiguous(memory_format=layout).requires_grad_()
    weight = torch.ones(kind.channels[1], kind.channels[0] // kind.groups, *(kind.kernel,) * 3)
    weight.requires_grad_()
    began, used = time.perf_counter(), time.process_time()
    y = convolve(x, weight, backend, kind.groups)
    y.backward(torch.ones_like(y))
    return min(time.perf_counter() - began, time.process_time() - used)
