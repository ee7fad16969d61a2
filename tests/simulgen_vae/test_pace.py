"""How fast a training goes: what is logged of it, and the processes that read its rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from common.guard import Guard
from simulgen_vae.progress import Pace
from simulgen_vae.train import gather, make_task, make_training, train
from simulgen_vae.training_data import default_workers
from tests.simulgen_vae.cases_vae import config, options, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small data set."""
    return write_data(tmp_path_factory.mktemp("data") / "bumps.npz")


def test_pace_is_logged(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Samples a second and peak memory stand in metrics.jsonl for every phase, beside losses and norms."""
    monkeypatch.setattr("simulgen_vae.train.finish", lambda *_: None)
    train(config(data, use_e2e_training=True), options(tmp_path, log_every=2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lr" in line]
    assert all(line["peak_memory_gib"] > 0.05 for line in steps)
    assert all(0 < line["samples_per_s"] < 1e6 for line in steps if "samples_per_s" in line)
    for name in ("vae", "conditioner", "end_to_end"):
        assert any("samples_per_s" in line and f"{name}_loss" in line for line in steps)


def test_pace_counts_the_latest_steps(monkeypatch: pytest.MonkeyPatch):
    """Eight samples every half second are 16 a second; a pause is no part of it."""
    now = iter([0.0, 0.5, 1.0, 60.0, 60.5])
    monkeypatch.setattr("simulgen_vae.progress.time.perf_counter", lambda: next(now))
    pace = Pace(torch.device("cpu"))
    rates = [pace.step(8).get("samples_per_s") for _ in range(3)]
    pace.pause()
    rates += [pace.step(8).get("samples_per_s") for _ in range(2)]
    assert rates == [None, 16.0, 16.0, None, 16.0]


def test_loader_processes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Many runs in files are read by forked processes, without a flag, and the batches are the same."""
    settings, device = options(tmp_path), torch.device("cpu")
    inputs = gather(config(data, cache="disk"), settings)
    task = make_task(inputs, make_training(inputs, 0, device, tmp_path), settings, Guard(device))
    assert not task.data.in_memory and default_workers(task.data) == 0
    alone = list(task.batches("vae"))[:2]
    monkeypatch.setattr("simulgen_vae.training_data.FEW_SAMPLES", 10)
    monkeypatch.setattr("simulgen_vae.training_data.os.cpu_count", lambda: 2)
    assert default_workers(task.data) == 2
    assert default_workers(dataclasses.replace(task.data, in_memory=True)) == 0
    for one, other in zip(alone, list(task.batches("vae"))[:2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("c", "noise", "weight"))
