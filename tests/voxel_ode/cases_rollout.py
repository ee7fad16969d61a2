"""Checkpoints made by hand and grids with separate active parts, for the tests of forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import Checkpoint, plain_tree, plain_weights, save
from common.noise import torch_stream
from tests.voxel_ode.cases_model import make_batch, parameter_scale
from voxel_ode.config import TrainConfig
from voxel_ode.config_tools import RolloutConfig
from voxel_ode.dataset import read_stats
from voxel_ode.fields import Fields
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.regions import Region
from voxel_ode.train import KIND, PACKAGE, model_config
from voxel_ode.units import INTERNAL_UNITS

SMALL: dict[str, Any] = {"receptive_field_radius": 1, "base_channels": 4, "depth": 1, "multiscale": 1}


def save_model(path: Path, root: Path, *, seed: int = 0, spread: float = 0.1, **changes: Any) -> Path:
    """Write a checkpoint of a small network with random weights, for the data of a prepped root."""
    normalizer = Normalizer.from_stats(read_stats(root / "stats.json"))
    config = TrainConfig(**{**SMALL, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VoxelAutoRegressor(model_config(asdict(config)), normalizer)
    generator = torch_stream(seed, "weights")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn(p.shape, generator=generator) * parameter_scale(p))
    normalization = {**normalizer.state_dict(), "units": dict(INTERNAL_UNITS)}
    weights = plain_weights(model)
    save(path, Checkpoint(PACKAGE, KIND, plain_tree(asdict(config)), normalization, weights, step=3))
    return path


def rollout_config(
    sim: Path | list[Path], model: Path | list[Path], out: Path, **changes: Any
) -> RolloutConfig:
    """Return a rollout of simulations with checkpoints into `out`."""
    sims = [sim] if isinstance(sim, Path) else sim
    models = [model] if isinstance(model, Path) else model
    return RolloutConfig(
        prepped_sim_path=tuple(map(str, sims)), ckpt_path=tuple(map(str, models)), save_path=out, **changes
    )


def slab_fields(shape: tuple[int, int, int], layers: list[tuple[int, int]], seed: int = 0) -> Fields:
    """Return the fields of a batch of two whose active cells lie in some runs of layers only."""
    batch = make_batch(shape, seed=seed)
    inside = torch.zeros(shape)
    for a, b in layers:
        inside[a:b] = 1
    fields = Fields.from_batch(batch)
    changes = {
        name: value * inside
        for name, value in vars(fields).items()
        if value.dim() == 5  # grids
    }
    return replace(fields, **changes)


def is_partition(regions: Sequence[Region], active: np.ndarray) -> bool:
    """Return whether no two cores overlap and every active cell lies in one."""
    count = np.zeros(active.shape, dtype=np.int32)
    for region in regions:
        count[region.core] += 1
    return bool(count.max() <= 1 and (count[active] == 1).all())
