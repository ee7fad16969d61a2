"""Devices, precisions and memory formats: what is chosen, and what is refused in words."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from common import device as devices
from common.errors import DataError, UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def pretend(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 0, apple: bool = False) -> list[int]:
    """Make torch report these devices; return the list of GPUs that become current."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    return chosen


def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch):
    """`auto` is a GPU, else Apple's, else the CPU."""
    pretend(monkeypatch)
    assert devices.resolve_device() == CPU
    pretend(monkeypatch, apple=True)
    assert devices.resolve_device("auto").type == "mps"
    pretend(monkeypatch, gpus=2, apple=True)
    assert devices.resolve_device("auto") == torch.device("cuda", 0)


def test_each_rank_gets_its_gpu(monkeypatch: pytest.MonkeyPatch):
    """Under a launcher `auto` and `cuda` are the GPU of the local rank; a number wins over it."""
    chosen = pretend(monkeypatch, gpus=4)
    assert devices.resolve_device("auto", local_rank=3).index == 3
    assert devices.resolve_device("cuda", local_rank=2).index == 2
    assert devices.resolve_device("cuda:1", local_rank=2).index == 1
    assert chosen == [3, 2, 1]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "mps:0", "cuda:-1", ""])
def test_unknown_devices(name: str, monkeypatch: pytest.MonkeyPatch):
    """A name that is none is a usage error that lists the names."""
    pretend(monkeypatch, gpus=1, apple=True)
    with pytest.raises(UserError, match="expected auto, cpu, cuda, cuda:N or mps"):
        devices.resolve_device(name)


def test_absent_devices(monkeypatch: pytest.MonkeyPatch):
    """A device that is not there is a usage error that says what to do."""
    pretend(monkeypatch, gpus=2)
    for name, text in (("cuda:5", "2 CUDA devices found"), ("mps", "not available")):
        with pytest.raises(UserError, match=text + ".*--device cpu"):
            devices.resolve_device(name)
    with pytest.raises(UserError, match="2 CUDA devices found"):
        devices.resolve_device("cuda", local_rank=2)


def test_auto_precision(monkeypatch: pytest.MonkeyPatch):
    """`auto` is bf16 only where the machine is fast at it and the package allows it."""
    monkeypatch.setattr(devices, "has_fast_bf16", lambda _device: True)
    assert devices.resolve_precision("auto", CPU).name == "bf16"
    assert devices.resolve_precision("auto", CPU, allow_bf16=False).name == "fp32"
    monkeypatch.setattr(devices, "has_fast_bf16", lambda _device: False)
    assert devices.resolve_precision("auto", CPU).name == "fp32"
    assert devices.resolve_precision("bf16", CPU).name == "bf16"


def test_refused_precisions():
    """An unknown precision, and fp16 on a CPU, are usage errors."""
    with pytest.raises(UserError, match="expected one of auto, fp32, bf16, fp16"):
        devices.resolve_precision("fp8", CPU)
    with pytest.raises(UserError, match="fp16"):
        devices.resolve_precision("fp16", CPU)


def test_autocast_and_scaler():
    """bf16 computes in bf16, fp32 changes nothing; only fp16 scales the loss."""
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        precision = devices.resolve_precision(name, CPU)
        with precision.autocast():
            assert layer(x).dtype == dtype
        assert not precision.scaler().is_enabled()
        assert precision.scaler().scale(torch.ones(())) == 1.0
    assert devices.Precision(CPU, torch.float16).scaler().is_enabled()


def test_channels_last_changes_no_value():
    """Channels-last order leaves weights and results as they are, in 2-D and 3-D."""
    for layer, x in (
        (nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)),
        (nn.Conv3d(3, 4, 3), torch.randn(1, 3, 6, 6, 6)),
    ):
        expected, names = layer(x), list(layer.state_dict())
        network = devices.channels_last(nn.Sequential(layer, nn.BatchNorm2d(4)))
        order = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        assert layer.weight.is_contiguous(memory_format=order)
        assert devices.like_weights(x).is_contiguous(memory_format=order)
        assert torch.allclose(network[0](devices.like_weights(x)), expected, atol=1e-6)
        assert list(layer.state_dict()) == names and isinstance(layer.weight, nn.Parameter)


def test_move_keeps_structure():
    """Dicts, lists, tuples and named tuples keep their types; what is no tensor passes through."""
    pair = namedtuple("pair", "a b")
    batch = {"x": torch.ones(2), "list": [torch.zeros(1), "name"], "tuple": (torch.ones(1), 3), "n": None}
    moved = devices.move({**batch, "pair": pair(torch.ones(1), 2)}, torch.device("meta"))
    assert moved["x"].is_meta and moved["list"][0].is_meta and moved["tuple"][0].is_meta
    assert moved["list"][1] == "name" and moved["tuple"][1] == 3 and moved["n"] is None
    assert isinstance(moved["pair"], pair) and moved["pair"].a.is_meta and moved["pair"].b == 2


def test_random_state_round_trip():
    """Dropout drawn after restoring a state equals dropout drawn after saving it."""
    state = devices.rng_state(CPU)
    first = torch.rand(4)
    devices.set_rng_state(state, CPU)
    assert torch.equal(first, torch.rand(4))
    devices.seed_global(3, rank=0)
    rank_0 = torch.rand(4)
    devices.seed_global(3, rank=1)
    assert not torch.equal(rank_0, torch.rand(4)), "two ranks drop the same units"


def test_deterministic_switch():
    """The switch goes on and off."""
    devices.set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    devices.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_compile_switch(monkeypatch: pytest.MonkeyPatch):
    """Compilation happens on request only."""
    monkeypatch.setattr(torch, "compile", lambda f: ("compiled", f))
    assert devices.compile_if(False, abs) is abs
    assert devices.compile_if(True, abs) == ("compiled", abs)


def test_out_of_memory_is_explained():
    """A failed allocation becomes one line with advice; other errors pass unchanged."""
    with pytest.raises(DataError, match="out of memory: .*; lower --batch_size"), advice():
        torch.empty(10**15)
    with pytest.raises(DataError, match="lower --batch_size"), advice():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="shapes"), advice():
        raise RuntimeError("shapes differ")


def advice():
    """Return the context under test."""
    return devices.explain_out_of_memory("lower --batch_size")


def test_peak_memory_counts_bytes():
    """The peak of a process that holds torch is more than 50 MB and less than the machine's memory."""
    assert 50e6 < devices.peak_memory_bytes(CPU) < 1e12
    devices.synchronize(CPU)


def test_few_threads_are_given_back():
    """Inside there is one thread; the number from before returns, also after an error."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError), devices.few_threads():
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mine", [None, "77"])
def test_threads_sleep_soon_but_the_users_setting_counts(monkeypatch: pytest.MonkeyPatch, mine: str | None):
    """OpenMP reads how long threads spin when torch is loaded: common sets it before, unless it is set."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if mine is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", mine)
    code = "import os, sys, common; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == (mine or "1000")
