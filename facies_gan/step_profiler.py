"""A window of the profiler inside a training: one Chrome trace of bounded size, or signposts on a Mac."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from common import device as devices
from common.log import get_logger

WARM_UP = 5
MOST_BYTES = 100_000_000
BYTES_AN_EVENT = 400  # of the trace, measured on CPU traces without shapes or stacks


class StepProfiler:
    """Profiles `num_steps` iterations after five that warm up.

    On a CPU and on an NVIDIA GPU the trace goes to `<folder>/profiler_trace.json` (open it in Perfetto or in
    chrome://tracing). On a Mac's GPU the iterations are signposts for Instruments.

    Args:
        folder: of the run.
        num_steps: of the window.
        device: where the training runs.
    """

    def __init__(self, folder: Path, num_steps: int, device: torch.device) -> None:
        self.path = folder / "profiler_trace.json"
        self.num_steps = max(1, num_steps)
        self.device = device
        self.signposts = device.type != "cpu" and not devices.is_cuda(device)
        self._seen = 0
        self._running: Any = None
        self._stack = contextlib.ExitStack()

    def before(self) -> None:
        """Begin the window when it is time; called before every iteration."""
        if self._seen == WARM_UP and self._running is None:
            if self.signposts:
                _open_instruments()
                self._running = self._stack.enter_context(torch.mps.profiler.profile(mode="interval"))
            else:
                kinds = [torch.profiler.ProfilerActivity.CPU]
                kinds += [torch.profiler.ProfilerActivity.CUDA] if devices.is_cuda(self.device) else []
                self._running = self._stack.enter_context(
                    torch.profiler.profile(activities=kinds, acc_events=True)
                )
        self._seen += 1

    def after(self) -> None:
        """End the window when it is full; called after every iteration."""
        if self._running is not None and self._seen >= WARM_UP + self.num_steps:
            self.close()

    def close(self) -> None:
        """Write the trace of a window that is open; say so where the training ended before it."""
        if self._running is None:
            if self._seen <= WARM_UP:
                get_logger().warning(
                    "warning: --use_profiler: nothing profiled in %d iterations, the profile begins after %d",
                    self._seen, WARM_UP,
                )  # fmt: skip
            return
        count = self._seen - WARM_UP
        running, self._running, self._seen = self._running, None, sys.maxsize
        self._stack.close()
        if self.signposts:
            return
        size = len(running.events()) * BYTES_AN_EVENT
        if size > MOST_BYTES:
            get_logger().warning(
                "warning: the profile would take %d MB, more than %d; lower --profile_steps",
                size // 1_000_000, MOST_BYTES // 1_000_000,
            )  # fmt: skip
            return
        running.export_chrome_trace(str(self.path))
        get_logger().info(f"{self.path}: profile of {count} iterations, open it in chrome://tracing")


def _open_instruments() -> None:
    """Say how signposts are recorded, and try once to open Instruments."""
    get_logger().info(
        "--use_profiler: start the Logging instrument in Instruments and its recording before training"
    )
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            subprocess.Popen(["open", "-a", "Instruments"])
