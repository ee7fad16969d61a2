"""Quick trainings on hand-made simulations, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.task import Result
from voxel_ode.config import TrainConfig, TrainRunOptions
from voxel_ode.train import train

TINY: dict[str, Any] = {
    "receptive_field_radius": 1,
    "base_channels": 4,
    "depth": 1,
    "multiscale": 1,
    "batch_size": 2,
    "max_steps": 6,
    "lr": 2e-3,
    "ema_decay": 0.9,
    "loss_margin": 1,
    "unroll_steps": 2,
    "conv_backend": "native",
    "aug_flip": True,
    "cache": "ram",
}
QUICK: dict[str, Any] = {
    "device": "cpu",
    "tensorboard": False,
    "log_every": 1,
    "eval_every": 3,
    "save_every": 3,
}


def config(root: Path, **changes: Any) -> TrainConfig:
    """Return a training of six steps of a tiny network: four of one year, two of two."""
    return TrainConfig(**{**TINY, "prepped_root": root, **changes})


def options(out: Path, **changes: Any) -> TrainRunOptions:
    """Return run options for a quick training on the CPU."""
    return TrainRunOptions(out=out, **{**QUICK, **changes})


def run(chosen: TrainConfig, out: Path, **changes: Any) -> Result:
    """Train in this process and return the result."""
    result = train(chosen, options(out, **changes))
    assert result is not None
    return result
