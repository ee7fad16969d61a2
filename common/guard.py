"""One small tensor that all ranks agree on before an update: is all of it finite, was a stop asked for?"""

from __future__ import annotations

import math
import signal
from types import FrameType
from typing import Any

import torch

from common import distributed

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MAX_SKIPPED_IN_A_ROW = 10


class NonFiniteError(Exception):
    """A loss or a gradient norm is NaN or infinite on some rank; nothing was updated.

    Attributes:
        values: the checked values of every rank, in rank order.
        in_a_row: how many updates in a row were left out, this one counted.
    """

    def __init__(self, values: list[dict[str, float]], in_a_row: int) -> None:
        super().__init__(f"non-finite after {in_a_row} in a row: {values}")
        self.values = values
        self.in_a_row = in_a_row

    def worst(self) -> str:
        """Return the values of the rank that has most non-finite ones, for a message.

        Averaging over ranks spreads a NaN gradient to all of them; the losses tell where it began.
        """
        bad = [sum(not math.isfinite(value) for value in values.values()) for values in self.values]
        rank = bad.index(max(bad))
        text = ", ".join(f"{name} {value:.4g}" for name, value in self.values[rank].items())
        return f"{text} on rank {rank}" if len(self.values) > 1 else text


class Guard:
    """The agreement of all ranks on two flags: a number was not finite, a signal asked to stop.

    `agree` reduces both in one all-reduce (maximum). Whoever updates weights calls it between the backward
    pass and the update. Signal handlers only set a flag; it counts once the ranks have agreed on it.

    Args:
        device: where the reduction runs.
        on_nonfinite: "stop" raises at the first non-finite value, "skip" leaves the update out and raises
            after ten in a row.
    """

    def __init__(self, device: torch.device, on_nonfinite: str = "stop") -> None:
        self.device = device
        self.on_nonfinite = on_nonfinite
        self.skipped = 0
        self.stop_signal = 0  # the number of the agreed signal, 0 = none
        self._caught_signal = 0
        self._in_a_row = 0
        self._clean = True  # no update was left out since the last step boundary
        self._fresh = False
        self._old_handlers: dict[int, Any] = {}

    def agree(self, values: dict[str, torch.Tensor]) -> bool:
        """Return True when every value is finite on every rank, so that the update may go ahead.

        Args:
            values: named scalars to check, for example the loss and the gradient norm.

        Raises:
            NonFiniteError: some value is not finite and the policy says stop.
        """
        flags = torch.zeros(2, device=self.device)
        if values:
            stacked = torch.stack([v.detach().float().reshape(()) for v in values.values()])
            flags[0] = (~torch.isfinite(stacked)).any()
        flags[1] = self._caught_signal
        nonfinite, signal_number = distributed.reduce_max(flags).tolist()
        self.stop_signal = int(signal_number)
        self._fresh = True
        if not nonfinite:
            return True
        self._clean = False
        self.skipped += 1
        self._in_a_row += 1
        if self.on_nonfinite == "stop" or self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            mine = {name: float(value) for name, value in values.items()}
            raise NonFiniteError(distributed.gather_objects(mine), self._in_a_row)
        return False

    def should_stop(self) -> int:
        """Return the agreed stop signal at a step boundary, 0 for none; agrees now if this step did not."""
        if not self._fresh:
            self.agree({})
        self._fresh = False
        if self._clean:  # a step with one good update of two does not end a row of bad ones
            self._in_a_row = 0
        self._clean = True
        return self.stop_signal

    def __enter__(self) -> Guard:
        """Catch SIGTERM, SIGINT and SIGUSR1 until the end of the block."""
        for number in STOP_SIGNALS:
            self._old_handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if self._caught_signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C stops at once
        self._caught_signal = number


def learning_rates(state: Any) -> list[float]:
    """Return the learning rates found in a task's state, in order of appearance, each once."""
    found: list[float] = []
    if isinstance(state, dict) and isinstance(state.get("param_groups"), list):
        found = [float(group["lr"]) for group in state["param_groups"]]
    elif isinstance(state, dict | list):
        values = state.values() if isinstance(state, dict) else state
        found = [rate for value in values for rate in learning_rates(value)]
    return list(dict.fromkeys(found))


def nonfinite_source(batch: Any) -> str:
    """Name the input of `batch` that holds NaN or Inf: its file where the batch names files, else its key.

    A batch names files by a key "source": a list with one string a sample.
    """
    if not isinstance(batch, dict):
        return ""
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0:
            bad = ~torch.isfinite(value).flatten(1).all(1) if value.dim() > 1 else ~torch.isfinite(value)
            if bad.any():
                sample = int(bad.nonzero()[0, 0])
                sources = batch.get("source")
                return str(sources[sample]) if sources else f"{key}, sample {sample} of the batch"
    return ""
