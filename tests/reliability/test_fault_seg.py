"""fault_seg killed outright at random moments: training goes on to the same weights, inference runs again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fault_seg.config import TrainConfig
from fault_seg.infer import infer
from fault_seg.train import train
from tests.fault_seg.cases import QUICK, infer_config, make_cubes, noisy_layers, save_model
from tests.toy_runs import differences, fork, load, options, status, wait
from tests.toy_runs import run as run_child

pytestmark = pytest.mark.reliability
NUM_KILLS = 10


def seconds_of(function: Callable[[], Any], said: Path) -> float:
    """Run `function` in a child to its end and return how long it took."""
    started = time.monotonic()
    assert run_child(function, said) == 0, said.read_text()
    return time.monotonic() - started


def killed(function: Callable[[], Any], after: float, said: Path) -> bool:
    """Run `function` in a child and kill it after some seconds; tell whether it was still running."""
    pid = fork(function, said)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL


def test_killed_training(tmp_path: Path):
    """SIGKILL at a random time, then --resume auto: ten of ten end with bitwise equal weights and state."""
    data = make_cubes(tmp_path / "data", ntrain=4)
    config = TrainConfig(data=data, crop=(16,), batch_train=2, epochs=4, dhr=False, rgt=False, ema=0.9)

    def training(out: Path, resume: str = "") -> Callable[[], Any]:
        return lambda: train(config, options(out, resume=resume, save_every=1, num_workers=0)) and 0

    said = tmp_path / "said.txt"
    whole = seconds_of(training(tmp_path / "whole"), said)
    expected = {name: load(tmp_path / "whole" / name) for name in ("last.ckpt", "best.ckpt")}
    moments = random.Random(7)
    interrupted = 0
    for i in range(NUM_KILLS):
        out = tmp_path / f"run{i}"
        interrupted += killed(training(out), moments.uniform(0.1, 0.9) * whole, said)
        assert run_child(training(out, "auto"), said) == 0, said.read_text()
        assert status(out)["state"] == "finished" and not list(out.rglob("*.part"))
        for name, document in expected.items():
            assert differences(load(out / name), document) == [], f"{name} after kill {i}"
    assert interrupted >= NUM_KILLS // 2


def test_killed_inference(tmp_path: Path):
    """SIGKILL at a random time leaves no half output; the same command then gives what it always gives."""
    model = save_model(tmp_path / "model.ckpt")
    np.save(tmp_path / "in.npy", noisy_layers((40, 40, 100)))
    names = [f"o.{name}.npy" for name in ("fsem", "fdip", "fstrike", "rgt", "dhr")]

    def inference(folder: Path) -> Callable[[], Any]:
        config = infer_config(tmp_path / "in.npy", model, folder / "o", block=32, overlap="8")
        return lambda: infer(config, replace(QUICK, overwrite=True)) and 0

    said = tmp_path / "said.txt"
    whole = seconds_of(inference(tmp_path / "whole"), said)
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in names}
    moments = random.Random(8)
    out = tmp_path / "out"
    for _ in range(NUM_KILLS):
        killed(inference(out), moments.uniform(0.05, 1.0) * whole, said)
        for path in out.glob("o.*.npy"):
            assert path.read_bytes() == expected[path.name]  # whole or not there
    assert run_child(inference(out), said) == 0, said.read_text()
    assert {p.name for p in out.iterdir()} == {*names, "o.json"}
    assert {name: (out / name).read_bytes() for name in names} == expected
