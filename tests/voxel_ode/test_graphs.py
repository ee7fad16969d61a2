"""A year's step recorded as a graph: fixed buffers give what plain calls give, nothing stops a capture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields as fields_of
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_model import make_fields, make_model
from tests.voxel_ode.cases_rollout import save_model, slab_fields
from voxel_ode import graphs, rollout
from voxel_ode.config_tools import Placement
from voxel_ode.graphs import WARM_UPS, RecordedStep, Work, graph_recorder, recorder_for
from voxel_ode.infer import predict
from voxel_ode.loading import load
from voxel_ode.prepped import open_simulation
from voxel_ode.regions import plan_regions
from voxel_ode.rollout import GridRollout

SHAPE, LAYERS = (17, 6, 5), [(1, 5), (12, 16)]
CPU = torch.device("cpu")
MODELS = [
    {"multiscale": 1},
    {"multiscale": 0, "kernel_mode": "separable", "scalar_head": "pooled", "norm": "running"},
    {"multiscale": 0, "norm": "masked_group"},
]


def again(work: Work) -> Work:
    """Record nothing: repeat the work itself, as a replay would."""
    return work


def grid_rollout(changes: dict, **how: Any) -> GridRollout:
    """Return a rollout over two active slabs."""
    model, fields = make_model(**changes).eval(), slab_fields(SHAPE, LAYERS)
    active = (fields.masks[:, 0] > 0).any(0).numpy()
    return GridRollout(model, fields, plan_regions(active, model), **how)


@torch.no_grad()
@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_replays_equal_plain_steps(changes: dict):
    """Years through recorded steps equal plain ones bit by bit; a later replay leaves kept years alone."""
    expected = list(grid_rollout(changes).steps(3))
    found = list(grid_rollout(changes, record=again).steps(3))
    assert not torch.equal(found[0].state, found[1].state)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.state, other.state) and torch.equal(one.scalars, other.scalars)


def test_buffers_stay_in_place():
    """A replay reads and writes the addresses that were recorded; another shape or type is refused."""
    step = RecordedStep(lambda x: [2 * x, x.sum()], torch.ones(3), again)
    places = [t.data_ptr() for t in (step.given, *step.results)]
    assert [t.tolist() for t in step(torch.tensor([1.0, 2.0, 3.0]))] == [[2, 4, 6], 6]
    assert [t.tolist() for t in step(torch.zeros(3))] == [[0, 0, 0], 0]
    assert [t.data_ptr() for t in (step.given, *step.results)] == places
    for x in (torch.zeros(4), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="recorded for torch.float32 \\[3\\]"):
            step(x)


def test_a_replay_runs_what_was_recorded():
    """Where a replay does nothing, any input gives the recorded results: nothing runs beside it."""

    def once(work: Work) -> Work:
        work()
        return lambda: None

    step = RecordedStep(lambda x: [x + 1], torch.zeros(2), once)
    assert step(torch.full((2,), 5.0))[0].tolist() == [1, 1]


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_remembers_no_casts(enabled: bool):
    """While a step is recorded autocast keeps no casts of weights; afterwards it does as before."""
    seen = []

    def look(x: torch.Tensor) -> list[torch.Tensor]:
        seen.append(torch.is_autocast_cache_enabled())
        return [x]

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=enabled):
        RecordedStep(look, torch.zeros(1), again)
        assert torch.is_autocast_cache_enabled() == enabled
    assert seen == [False]


def test_recorder_warms_up_beside_the_main_stream(monkeypatch: pytest.MonkeyPatch):
    """Warm-ups run on a stream of their own, then one run is captured; graphs share a pool of memory."""
    said: list[str] = []

    @contextlib.contextmanager
    def inside(name: str) -> Iterator[None]:
        said.append(f"{name} begins")
        yield
        said.append(f"{name} ends")

    def stream() -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda _: said.append("wait"))

    backend = SimpleNamespace(
        Stream=stream,
        current_stream=stream,
        stream=lambda _: inside("side"),
        graph_pool_handle=lambda: "pool",
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: said.append("replay")),
        graph=lambda _, pool: inside(pool),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: backend)
    record = graph_recorder(CPU)
    for _ in range(2):
        said.clear()
        replay = record(lambda: said.append("work"))
        warm = ["wait", "side begins", *["work"] * WARM_UPS, "side ends", "wait"]
        assert said == [*warm, "pool begins", "work", "pool ends"]
        replay()
        assert said[-1] == "replay"


def test_other_devices_do_without(monkeypatch: pytest.MonkeyPatch):
    """On a CPU the flag is answered by one line, and nothing is recorded."""
    said: list[str] = []
    monkeypatch.setattr(graphs, "get_logger", lambda: SimpleNamespace(info=said.append))
    assert recorder_for(True, CPU) is None
    for wanted in (False, True):
        graphs.say_unused(wanted, CPU)
    assert said == ["--cuda_graph: does nothing on cpu, kernels run one by one"]


def test_forecast_hands_the_flag_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Placement.cuda_graph reaches every region of a forecast, and changes no number of it."""
    root = prepared(tmp_path)
    model = load(save_model(tmp_path / "model.pt", root), precision="fp32")
    sim = open_simulation(root / "test" / "v2.4_0001.prepped.h5")
    recorded: list[Work] = []
    monkeypatch.setattr(
        rollout, "recorder_for", lambda wanted, _: (lambda w: recorded.append(w) or w) if wanted else None
    )
    expected = predict(model, sim)
    assert not recorded
    found = predict(model, sim, placement=Placement(cuda_graph=True))
    assert len(recorded) == 1
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


class DeviceOnly(TorchDispatchMode):
    """Refuses numbers that come from the host's memory, which a capture cannot copy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, unless it brings a tensor from the host."""
        found = func(*args, **(kwargs or {}))
        parts = found if isinstance(found, tuple | list) else [found]
        for part in parts:
            assert not isinstance(part, torch.Tensor) or part.is_meta, f"{func} makes a tensor of the host"
        return found


def without_values(x: Any) -> Any:
    """Return tensors, and dataclasses and lists of them, on a device that knows shapes only."""
    if isinstance(x, torch.Tensor):
        return x.to("meta")
    if isinstance(x, list | tuple):
        return type(x)(without_values(part) for part in x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{f.name: without_values(getattr(x, f.name)) for f in fields_of(x)})
    return x


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [*MODELS, {"multiscale": 2}, {"kernel_mode": "dense"}, {"flux_inputs": False, "predict": "absolute"}],
    ids=str,
)
def test_a_step_can_be_captured(changes: dict, monkeypatch: pytest.MonkeyPatch):
    """A step asks for no value: it runs where tensors have none, so it neither waits nor branches on data."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _=None: False)  # unknown on that device
    grid = grid_rollout(changes)
    for region, fixed in zip(grid.regions, grid._fixed, strict=True):
        state = grid.fields.state[(..., *region.read)].to("meta")
        grid.model.to("meta")
        with DeviceOnly():
            part = grid._answer(region, without_values(fixed), state)[0]
        assert part.shape[2:] == tuple(s.stop - s.start for s in region.core)


@pytest.mark.parametrize("bad", [lambda x: x[x > 0], lambda x: x * x.max().item(), lambda x: x.cpu()])
def test_the_check_would_see_it(bad: Any):
    """Masks as indices, numbers read and copies to the host fail where tensors have no values."""
    with pytest.raises((RuntimeError, NotImplementedError)), DeviceOnly():
        bad(torch.zeros(3, device="meta"))
    with pytest.raises(AssertionError, match="host"), DeviceOnly():
        torch.tensor([1.0, 2.0])


@pytest.mark.slow
def test_compiled_steps_equal_plain_ones():
    """torch.compile of the step agrees with the plain one to rounding, on both slabs, in one piece."""
    changes = {"multiscale": 1}
    torch._dynamo.reset()
    with torch.no_grad():
        expected = list(grid_rollout(changes).steps(2))
        found = list(grid_rollout(changes, compiled=True, record=again).steps(2))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.state, other.state, rtol=1e-5, atol=1e-5)
    model, fields = make_model(**changes).eval(), make_fields((4, 4, 4))
    with torch.no_grad():
        told = torch._dynamo.explain(model.step)(model.static_features(fields), fields.state)
    assert told.graph_break_count == 0
