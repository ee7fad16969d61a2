"""What tests of whole runs share: a quick toy training, child processes, comparison of what runs left."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimizer of a process imports: once here, not in every child

from common.run import TrainOptions
from common.task import Result
from tests.toy import ToyConfig, train_toy


def options(out: Path, **changes: Any) -> TrainOptions:
    """Return run options for a quick training on the CPU in fp32."""
    quick: dict[str, Any] = {"device": "cpu", "precision": "fp32", "tensorboard": False, "log_every": 4}
    return TrainOptions(out=out, **{**quick, **changes})


def train(out: Path, config: ToyConfig | None = None, **changes: Any) -> Result:
    """Train the toy in this process."""
    return train_toy(config or ToyConfig(), options(out, **changes))


def fork(function: Callable[[], Any], output: Path | None = None) -> int:
    """Run `function` in a copy of this process, which exits with what it returns, and return its pid.

    A fork from a process that has imported torch starts in milliseconds instead of seconds.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        target = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the child
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)
        code = int(function() or 0)
    except SystemExit as done:
        code = 0 if done.code is None else done.code if isinstance(done.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, timeout_s: float = 60.0) -> int:
    """Return the exit code of a child (minus the signal that killed it); kill it after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"child {pid} was still running after {timeout_s} s")


def run(function: Callable[[], Any], output: Path | None = None, timeout_s: float = 60.0) -> int:
    """Run `function` in a child and return its exit code."""
    return wait(fork(function, output), timeout_s)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the places where two trees of tensors and plain values differ in a single bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}/{key}" for key in a.keys() ^ b.keys()]
        return found + [
            d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}/{key}")
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint as anyone would."""
    return torch.load(path, weights_only=True)


def records(out: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the time they were written."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def status(out: Path) -> dict[str, Any]:
    """Return status.json."""
    return json.loads((out / "status.json").read_text(encoding="utf-8"))
