"""Scripts in processes of their own, for what only a fresh process can tell: its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from common import device as devices

ROOT = Path(__file__).resolve().parents[1]
STATUS = Path("/proc/self/status")


def run_script(script: str | Path, *words: object) -> str:
    """Return what a script prints, run on one thread.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # -P: beside the script lie benchmarks that have the names of packages
    command = [sys.executable, "-P", str(script), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def ask(script: str | Path, *words: object) -> Any:
    """Return the JSON value in the last line that a script prints.

    Raises:
        RuntimeError: it failed.
    """
    return json.loads(run_script(script, *words).splitlines()[-1])


def resident_bytes() -> tuple[int, int]:
    """Return the resident memory of this process now and at its peak.

    Where Linux tells them, those of this program alone: `ru_maxrss` begins with the peak of the process that
    started this one. Elsewhere both are the peak.
    """
    if STATUS.is_file():
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        found = {line.partition(":")[0]: line.split() for line in lines}
        return int(found["VmRSS"][1]) * 1024, int(found["VmHWM"][1]) * 1024
    peak = devices.peak_memory_bytes(torch.device("cpu"))
    return peak, peak


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    return resident_bytes()[1]
