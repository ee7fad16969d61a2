"""A year's step as a graph of kernels: recorded once on buffers that stay in place, replayed every year.

A step of a small region launches some hundred kernels, and launching them one by one can cost more than
running them. A CUDA graph launches all at once, but reads and writes fixed addresses: inputs are copied into
one buffer, results out of others, and everything between lives in a pool of memory that graphs replayed one
after another may share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from common import device as devices
from common.log import get_logger

Work = Callable[[], None]
Recorder = Callable[[Work], Work]  # work on fixed buffers -> what repeats it
WARM_UPS = 2  # after the one that finds the results' shapes: kernels are compiled and chosen by then


class RecordedStep:
    """A function of one tensor whose work is recorded once and repeated on buffers that stay in place.

    What it returns is overwritten by the next call. The function must not wait for the device, nor change
    shapes or what it does with values, and it must read tensors that outlive this object only.

    Args:
        function: x -> tensors.
        example: of x; its shape and type are those of every later x.
        record: makes work repeatable; see `graph_recorder`.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        example: torch.Tensor,
        record: Recorder,
    ) -> None:
        self.function = function
        self.given = example.clone(memory_format=torch.contiguous_format)
        # Casts that autocast remembers would die with its context, under a graph that still reads them.
        remembers = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            self.results = [torch.empty_like(x) for x in function(self.given)]
            self._replay = record(self._work)
        finally:
            torch.set_autocast_cache_enabled(remembers)

    def _work(self) -> None:
        for kept, found in zip(self.results, self.function(self.given), strict=True):
            kept.copy_(found)

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the function of `x`, in buffers that the next call overwrites.

        Raises:
            ValueError: `x` has another shape or type than the example.
        """
        if x.shape != self.given.shape or x.dtype != self.given.dtype:
            raise ValueError(
                f"{x.dtype} {list(x.shape)}: recorded for {self.given.dtype} {list(self.given.shape)}"
            )
        self.given.copy_(x)
        self._replay()
        return self.results


def graph_recorder(device: torch.device) -> Recorder:
    """Return what records work on a CUDA device as a graph; graphs of one recorder share their memory.

    They must be replayed one after another, on one stream.
    """
    backend: Any = torch.get_device_module(device)
    pool = backend.graph_pool_handle()

    def record(work: Work) -> Work:
        side = backend.Stream()  # what a first run sets up must not end in the graph, nor in the main stream
        side.wait_stream(backend.current_stream())
        with backend.stream(side):
            for _ in range(WARM_UPS):
                work()
        backend.current_stream().wait_stream(side)
        graph = backend.CUDAGraph()
        with backend.graph(graph, pool=pool):
            work()
        return graph.replay

    return record


def recorder_for(wanted: bool, device: torch.device) -> Recorder | None:
    """Return the recorder of a device; None when none is wanted or the device knows no graphs."""
    return graph_recorder(device) if wanted and devices.is_cuda(device) else None


def say_unused(wanted: bool, device: torch.device) -> None:
    """Say in one line that --cuda_graph changes nothing on this device."""
    if wanted and not devices.is_cuda(device):
        get_logger().info(f"--cuda_graph: does nothing on {device.type}, kernels run one by one")
