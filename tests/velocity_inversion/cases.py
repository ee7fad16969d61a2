"""A tiny data set, its training configuration, and batches of noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.noise import torch_stream
from common.run import BasicOptions, MachineOptions, TrainOptions
from velocity_inversion.config import TrainConfig
from velocity_inversion.config_data import DataConfig
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.geometry import Survey, openfwi_survey
from velocity_inversion.make_data import make_data
from velocity_inversion.train import MODEL_FILE

RUN = TrainOptions(device="cpu", precision="fp32", tensorboard=False, log_every=1, save_every=2, eval_every=2)
CPU = MachineOptions(device="cpu", precision="fp32")


def tiny_data(out: Path) -> Path:
    """Write a data set of three shots, 24 receivers, half a second."""
    config = DataConfig(
        num_train=6,
        num_val=4,
        num_test=2,
        num_shots=3,
        num_receivers=24,
        record_s=0.5,
        families=("layered", "curved"),
        num_workers=1,
    )
    make_data(config, BasicOptions(), out)
    return out


def tiny_config(data: Path, cache: Path) -> TrainConfig:
    """Return a training of two members and four steps, with the wave equation term."""
    return TrainConfig(
        train_data_path=str(data / "train"),
        val_data_path=str(data / "val"),
        embed_dim=32,
        num_layers=1,
        stem=8,
        num_models=2,
        max_steps=4,
        batch_size=2,
        physics_every=2,
        physics_samples=1,
        physics_start=0.0,
        cache_dir=cache,
        diffusion_steps=4,
        diffusion_width=8,
    )


def rank_config(data: Path, cache: Path, batch_size: int) -> TrainConfig:
    """Return a training of one member and three steps without the wave equation."""
    return replace(
        tiny_config(data, cache), num_models=1, max_steps=3, batch_size=batch_size, physics_every=0
    )


def rank_inference(data: Path, out: Path) -> InferConfig:
    """Return how the ranks predict."""
    return InferConfig(
        model_path=str(out / "run" / MODEL_FILE),
        test_data_path=str(data / "test"),
        use_tta=True,
        misfit="none",
        figures=0,
    )


def random_batch(survey: Survey | None = None, batch: int = 2, length: int = 60) -> dict[str, Any]:
    """Return gathers of noise with the coordinates of a survey."""
    survey = survey or openfwi_survey()
    draw = torch_stream(0, "velocity test")
    shape = (batch, survey.num_shots, length, survey.num_receivers)
    return {
        "gathers": torch.randn(shape, generator=draw),
        "source_xz": torch.from_numpy(survey.sources).float().expand(batch, -1, -1),
        "receiver_xz": torch.from_numpy(survey.receivers).float().expand(batch, -1, -1, -1),
        "live": torch.ones(batch, survey.num_shots, survey.num_receivers, dtype=torch.bool),
        "id": [f"s{i}" for i in range(batch)],
    }
