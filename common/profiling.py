"""A bounded window of the profiler: some steps of a training, as a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from common.errors import UserError
from common.files import make_folder


class Steps(Protocol):
    """What the loop tells the end of each step."""

    def step(self) -> None:
        """End a step."""


class _Nothing:
    def step(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def profiler(enabled: bool, num_steps: int, folder: Path) -> Iterator[Steps]:
    """Yield a profiler of `num_steps` steps, after one that waits and one that warms up, or nothing at all.

    The trace goes to `<folder>/trace.json` when the window closes.

    Raises:
        UserError: the window is empty.
    """
    if not enabled:
        yield _Nothing()
        return
    if num_steps < 1:
        raise UserError(f"--profile_steps {num_steps}: expected 1 or more")
    target = make_folder(folder) / "trace.json"
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=num_steps, repeat=1),
        on_trace_ready=lambda profile: profile.export_chrome_trace(str(target)),
    ) as running:
        yield running
