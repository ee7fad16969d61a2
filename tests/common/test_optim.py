"""Schedules, averaged weights, accumulation, clipping and the guarded update, against their formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from common.device import Precision
from common.errors import UserError
from common.guard import Guard, NonFiniteError
from common.optim import (
    Ema,
    Updater,
    UpdateTask,
    adamw,
    clip_gradients,
    parameter_groups,
    split_batch,
    warm_restarts,
    warmup_cosine,
)
from tests.toy_runs import differences

CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)


def network(batch_norm: bool = False) -> nn.Sequential:
    """Return a small network, always with the same weights."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4) if batch_norm else nn.LayerNorm(4)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 1))


def updater(module: nn.Module, **options: Any) -> Updater:
    """Return an updater that takes plain gradient steps of size 1."""
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(module.parameters(), lr=1.0)
    guard = options.pop("guard", None) or Guard(CPU)
    return Updater(module, optimizer, guard, options.pop("precision", FP32), **options)


def batch(size: int = 8) -> dict[str, torch.Tensor]:
    """Return a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(size, 3, generator=generator), "y": torch.randn(size, 1, generator=generator)}


def square_loss(module: nn.Module):
    """Return the loss function of a regression."""
    return lambda piece: {"loss": (module(piece["x"]) - piece["y"]).square().mean()}


def rates(make_schedule, steps: int) -> list[float]:
    """Return the learning rates of the first steps, from a full rate of 2."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make_schedule(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_cosine():
    """Linear up over the warm-up, full at its end, half way down at half time, the floor past the end."""
    found = rates(lambda o: warmup_cosine(o, 4, 24, final_fraction=0.1), 30)
    assert found[:4] == pytest.approx([2 * k / 5 for k in (1, 2, 3, 4)])
    assert found[4] == pytest.approx(2.0)
    assert found[14] == pytest.approx(2 * 0.55)
    expected = [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 20))) for k in range(20)]
    assert found[4:24] == pytest.approx(expected)
    assert found[24:] == pytest.approx([0.2] * 6)


def test_no_warmup_starts_at_full_rate():
    """Without warm-up the first step has the full rate; no rate is ever zero before the end."""
    found = rates(lambda o: warmup_cosine(o, 0, 10), 10)
    assert found[0] == 2.0 and min(found) > 0


def test_warm_restarts():
    """Periods of 4, 8, 16 steps after 2 of warm-up; the full rate at each start (SGDR)."""
    found = rates(lambda o: warm_restarts(o, 4, 2, 0.0, warmup_steps=2), 32)
    assert found[:2] == pytest.approx([2 / 3, 4 / 3])
    assert [k for k, rate in enumerate(found) if rate == pytest.approx(2.0)] == [2, 6, 14, 30]
    assert found[6 + 4] == pytest.approx(1.0) and found[14 + 8] == pytest.approx(1.0)
    assert rates(lambda o: warm_restarts(o, 5), 15) == pytest.approx(
        rates(lambda o: warm_restarts(o, 5), 5) * 3
    )


def test_rates_are_known_numbers():
    """To the last bit: a run that an earlier version stopped goes on with the rates it would have had."""
    falling = [1.0, 0.9397114317029974, 0.775, 0.55, 0.3250000000000001, 0.16028856829700258]
    cosine = [0.25, 0.5, 0.75, *falling, 0.1]
    assert rates(lambda o: warmup_cosine(o, 3, 9, 0.1), 10) == [2 * factor for factor in cosine]
    restarts = [1 / 3, 2 / 3, 1.0, 0.775, 0.3250000000000001, *falling, 1.0]
    assert rates(lambda o: warm_restarts(o, 3, 2, 0.1, 2), 12) == [2 * factor for factor in restarts]


def test_task_of_one_updater():
    """Its state is that of its updater: what is loaded into another task goes on with the same bits."""

    class One(UpdateTask):
        def __init__(self) -> None:
            module = network()
            optimizer = torch.optim.SGD(module.parameters(), lr=2.0)
            self.update = updater(module, optimizer=optimizer, schedule=warmup_cosine(optimizer, 1, 9))

        def step(self, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor | float]:
            return {}

        def evaluate(self) -> dict[str, float]:
            return {}

        def weights(self) -> dict[str, torch.Tensor]:
            return {}

    first, second = One(), One()
    assert first.update.schedule is not None
    first.update.optimizer.step()
    first.update.schedule.step()
    second.load_state_dict(first.state_dict())
    assert second.update.lr == first.update.lr == 2.0
    assert first.state_dict().keys() == {"module", "optimizer", "schedule", "scaler", "ema"}


def test_parameter_groups():
    """Kernels decay; biases, norms and frozen parameters do not; each trained parameter is in one group."""
    module = network()
    module[3].weight.requires_grad_(False)
    decayed, plain = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight)]
    expected = {id(module[i].bias) for i in (0, 1, 3)} | {id(module[1].weight)}
    assert {id(p) for p in plain["params"]} == expected


def test_weight_decay_shrinks_kernels_only():
    """With zero gradients one AdamW step multiplies kernels by 1 - lr * decay and leaves biases alone."""
    module = network()
    before = copy.deepcopy(module.state_dict())
    optimizer = adamw(module, lr=0.1, weight_decay=0.5)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, value in module.state_dict().items():
        factor = 0.95 if before[name].dim() > 1 else 1.0
        assert torch.allclose(value, before[name] * factor, atol=1e-7), name


def test_ema_formula():
    """The average follows a_n = d_n a + (1 - d_n) w with d_n = min(decay, (1+n)/(10+n)), buffers too."""
    module = network(batch_norm=True)
    ema = Ema(module, decay=0.3)
    expected: dict[str, torch.Tensor] = {}
    for n in range(6):
        module(torch.randn(5, 3) + n)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        ema.update(module)
        decay = min(0.3, (1 + n) / (10 + n))
        for name, value in module.state_dict().items():
            if n == 0 or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in ema.module.state_dict().items():
        assert torch.allclose(value.double(), expected[name].double(), atol=1e-6), name
    assert int(ema.module.state_dict()["1.num_batches_tracked"]) == 6
    assert not ema.module.training and not any(p.requires_grad for p in ema.parameters())


def test_averaged_network():
    """An updater gives the averaged network, and without averaging the trained one, below its wrappers."""
    module = network()
    ema = Ema(module)
    assert updater(module, ema=ema).averaged is ema.module
    assert updater(module).averaged is module
    assert updater(torch.compile(module)).averaged is module


def test_ema_goes_on_after_reload():
    """An average that was saved and loaded moves on exactly as one that was not."""
    module = network(batch_norm=True)
    ema, fresh = Ema(module, 0.9), None
    for n in range(8):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1)
        ema.update(module)
        if n == 3:
            fresh = Ema(network(batch_norm=True), 0.9)
            fresh.load_state_dict(copy.deepcopy(ema.state_dict()))
        elif fresh is not None:
            fresh.update(module)
    assert fresh is not None and not differences(dict(ema.state_dict()), dict(fresh.state_dict()))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(parts: int):
    """A batch in pieces gives the losses, gradient norm and weights of the whole batch."""
    whole, cut = network(), network()
    a = updater(whole).step(square_loss(whole), batch())
    b = updater(cut, accumulate=parts).step(square_loss(cut), batch())
    assert all(torch.allclose(a[name], b[name], rtol=1e-5) for name in ("loss", "gradient_norm"))
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_split_batch():
    """Pieces of nested batches keep samples together, in order; unequal pieces are refused."""
    pieces = split_batch({"x": torch.arange(6), "inner": {"names": list("abcdef")}}, 3)
    assert [p["x"].tolist() for p in pieces] == [[0, 1], [2, 3], [4, 5]]
    assert [p["inner"]["names"] for p in pieces] == [["a", "b"], ["c", "d"], ["e", "f"]]
    for size, parts in ((5, 2), (4, 3), (2, 4)):
        with pytest.raises(UserError, match=f"batch of {size} samples cannot be cut into {parts}"):
            split_batch({"x": torch.zeros(size, 2)}, parts)


def test_clipping():
    """Gradients longer than the limit are scaled to it and the true norm is returned; 0 is off."""
    for limit, expected in ((1.0, 1.0), (10.0, 5.0), (0.0, 5.0)):
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([3.0, 4.0])
        assert float(clip_gradients([p], limit)) == pytest.approx(5.0)
        assert float(p.grad.norm()) == pytest.approx(expected, rel=1e-5)


def test_clipped_update_moves_by_the_limit():
    """With plain gradient descent of rate 1 the weights move by exactly the clipped norm."""
    module = network()
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    update = updater(module, max_norm=1e-3)
    norm = update.step(square_loss(module), batch())["gradient_norm"]
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert norm > 1e-2 and float((after - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nonfinite_stops_before_the_update(what: str):
    """A NaN loss, or a finite one with an infinite gradient, leaves weights, moments and EMA alone."""
    module = network()
    optimizer = adamw(module, 1e-2)
    update = updater(module, optimizer=optimizer, ema=Ema(module), schedule=warmup_cosine(optimizer, 1, 9))
    update.step(square_loss(module), batch())
    before = copy.deepcopy(update.state_dict())

    def bad(piece: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        y = module(piece["x"])
        if what == "loss":
            return {"loss": y.mean() * math.nan}
        return {"loss": (y * 0).abs().sqrt().sum()}  # the slope of sqrt at 0 is infinite

    with pytest.raises(NonFiniteError):
        update.step(bad, batch())
    assert not differences(before, update.state_dict())


def test_skipping_counts_and_gives_up():
    """With the policy "skip" bad updates are left out and counted; ten in a row stop."""
    module, guard = network(), Guard(CPU, "skip")
    update = updater(module, guard=guard, optimizer=torch.optim.SGD(module.parameters(), lr=0.01))
    bad, good = lambda p: {"loss": module(p["x"]).mean() * math.nan}, square_loss(module)
    before = copy.deepcopy(module.state_dict())
    for _ in range(9):
        update.step(bad, batch())
        guard.should_stop()
    assert guard.skipped == 9 and not differences(dict(before), dict(module.state_dict()))
    update.step(good, batch())
    guard.should_stop()  # the loop asks at each step boundary
    assert differences(dict(before), dict(module.state_dict()))
    for _ in range(9):
        update.step(bad, batch())
    with pytest.raises(NonFiniteError) as caught:
        update.step(bad, batch())
    assert caught.value.in_a_row == 10 and guard.skipped == 19


def test_scaler_skip_is_no_error():
    """With a scaler an overflowing gradient skips the update and lowers the scale; a NaN loss still stops."""
    module = network()
    update = updater(module)
    update.scaler = torch.amp.GradScaler("cpu", init_scale=1e38, enabled=True)
    before = copy.deepcopy(module.state_dict())
    update.step(lambda p: {"loss": module(p["x"]).square().mean() * 1e3}, batch())
    assert not differences(dict(before), dict(module.state_dict()))
    assert update.scaler.get_scale() < 1e38
    with pytest.raises(NonFiniteError):
        update.step(lambda p: {"loss": module(p["x"]).mean() * math.nan}, batch())


def test_state_round_trip():
    """An updater restored from its state goes on bit for bit."""

    def fresh() -> Updater:
        module = network(batch_norm=True)
        optimizer = adamw(module, 1e-2)
        schedule = warmup_cosine(optimizer, 2, 20)
        return updater(module, optimizer=optimizer, schedule=schedule, ema=Ema(module), max_norm=1.0)

    first, second = fresh(), fresh()
    for _ in range(3):
        first.step(square_loss(first.module), batch())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.lr == first.lr
    for update in (first, second):
        update.step(square_loss(update.module), batch())
    assert not differences(first.state_dict(), second.state_dict())
