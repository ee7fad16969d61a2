"""What the network learns, and from what: gradients of pieces, one batch, late norms, turned reservoirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.device import resolve_precision
from common.guard import Guard
from common.optim import split_batch
from common.run import machine
from common.sampling import Draw
from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_model import make_batch, make_model
from tests.voxel_ode.cases_train import config, options
from voxel_ode.config import TrainConfig
from voxel_ode.dataset import collate
from voxel_ode.layers import RunningNorm
from voxel_ode.train import FREEZE_FROM, VoxelTask
from voxel_ode.train_data import open_splits
from voxel_ode.unroll import UnrolledLoss


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepped root of two training, one validation and one test simulation of 7x6x5 cells."""
    return prepared(tmp_path_factory.mktemp("data"))


def batch_of(task: VoxelTask, count: int, years: int = 1) -> dict[str, Any]:
    """Return the first samples of the training data as a batch."""
    data = task.splits.train.with_steps(years)
    return collate([data[Draw(i, i)] for i in range(count)])


@pytest.fixture
def guard() -> Iterator[Guard]:
    """Return the guard of one process on the CPU."""
    with machine(options(Path())) as device, Guard(device) as found:
        yield found


def task_of(chosen: TrainConfig, guard: Guard) -> VoxelTask:
    """Return the task of a training in fp32."""
    chosen, splits = open_splits(chosen, 0)
    return VoxelTask(chosen, splits, guard, resolve_precision("fp32", guard.device))


@pytest.mark.parametrize("flux_inputs", [True, False])
def test_one_batch_is_learned_by_heart(root: Path, guard: Guard, flux_inputs: bool):
    """The losses of pressure, temperature and scalars of one batch all fall to a small part."""
    chosen = config(
        root, base_channels=16, max_steps=100, unroll_steps=1, lr=1e-2, noise_std=0.0, flux_inputs=flux_inputs
    )
    task = task_of(replace(chosen, loss_margin=0, ema_decay=0.0), guard)
    batch = batch_of(task, 2)
    values = [task.step(batch, step) for step in range(100)]
    for name, share in (("grid_p", 0.1), ("grid_T", 0.1), ("scalar", 0.1)):
        first, last = (float(v[f"train/loss_{name}"]) for v in (values[0], values[-1]))
        assert last < share * first, f"{name}: {first:.3g} -> {last:.3g}"


def gradients(losses: UnrolledLoss, pieces: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean over the pieces of the gradient of each weight."""
    losses.zero_grad()
    for piece in pieces:
        (losses(piece)["loss"] / len(pieces)).backward()
    return {name: p.grad.clone() for name, p in losses.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scalar_head", ["physics", "pooled"])
def test_gradient_of_pieces_is_that_of_the_whole(scalar_head: str):
    """A batch cut into pieces gives the gradient of the whole, whatever each sample's masks hold."""
    batch = make_batch(batch=4, years=2, share=0.6)
    batch["loss_mask"][1, :3] = 0.0
    batch["wells_complete"] = torch.tensor([True, False, True, True])
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    model = make_model(scalar_head=scalar_head, multiscale=1).double()
    losses = UnrolledLoss(model, (1.0, 2.0, 0.5), grad_steps=2)
    whole = gradients(losses, [batch])
    for parts in (2, 4):
        pieces = gradients(losses, split_batch(batch, parts))
        assert pieces.keys() == whole.keys() == dict(losses.named_parameters()).keys()
        for name, expected in whole.items():
            torch.testing.assert_close(pieces[name], expected, rtol=1e-6, atol=1e-9, msg=name)
    assert all(bool(g.abs().max() > 0) for name, g in whole.items() if "film" not in name)


def test_running_norms_freeze_late(root: Path, guard: Guard):
    """Running statistics move in the first part of the training and stand still in the last."""
    task = task_of(config(root, norm="running", max_steps=10, unroll_steps=1), guard)
    batch = batch_of(task, 2)
    norms = [part for part in task.model.modules() if isinstance(part, RunningNorm)]
    seen = []
    for step in range(10):
        task.step(batch, step)
        seen.append(torch.stack([torch.cat([n.running_mean, n.running_var]) for n in norms]).clone())
        assert {n.frozen for n in norms} == {step >= FREEZE_FROM * 10}
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved == [True] * 6 + [False] * 3
