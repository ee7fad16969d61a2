"""Tiny images, options and trained pyramids that several tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common.device import Precision
from common.guard import Guard
from facies_gan.config import RunOptions, TrainingOptions
from facies_gan.generator import Architecture, ScaleGenerator
from facies_gan.images import write_label_png
from facies_gan.model_card import ModelCard
from facies_gan.model_files import find_model
from facies_gan.noise_field import plane_noise
from facies_gan.palette import Palette
from facies_gan.resample import Extent
from facies_gan.run_files import blocks_from, flat_weights, model_checkpoint
from facies_gan.setup import Setup, prepare
from facies_gan.simulator import Simulator
from facies_gan.train import FaciesTask, train

COLORS7 = np.array(
    [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
)
CPU = torch.device("cpu")


def palette(num_classes: int = 2) -> Palette:
    """Return a palette whose first facies is black."""
    return Palette.from_colors(COLORS7[:num_classes])


def bands(shape: tuple[int, int] = (32, 40), num_classes: int = 2, seed: int = 0) -> np.ndarray:
    """Return labels uint8 [H, W] of wavy bands that hold every facies."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    waves = rows + 3 * np.sin(cols / 5 + rng.uniform(0, 6)) + rng.uniform(0, 6)
    return (np.floor(waves / 4) % num_classes).astype(np.uint8)


def write_image(path: Path, labels: np.ndarray | None = None, num_classes: int = 2) -> Path:
    """Write labels as a PNG and return its path."""
    labels = bands(num_classes=num_classes) if labels is None else labels
    write_label_png(path, labels, palette(num_classes).colors)
    return path


def write_folder(root: Path, count: int = 3, num_classes: int = 4, shape: tuple[int, int] = (24, 30)) -> Path:
    """Write a data root of facies images."""
    for i in range(count):
        write_image(root / "facies" / f"xz_crossline_{i:03d}.png", bands(shape, num_classes, i), num_classes)
    return root


def options(**changes: Any) -> TrainingOptions:
    """Return a training of three tiny scales in two groups, the finest seen through windows."""
    small: dict[str, Any] = {
        "min_size": 12,
        "max_size": 64,
        "crop_size": 24,
        "stop_scale": 2,
        "num_feature": 4,
        "min_num_feature": 4,
        "num_iter": 3,
        "coarse_iter_factor": 1.0,
        "generator_steps": 1,
        "discriminator_steps": 1,
        "num_diversity_samples": 2,
        "gp_interval": 2,
        "num_generated_per_real": 1,
    }
    return TrainingOptions(**{**small, **changes})


def run_options(out: Path, **changes: Any) -> RunOptions:
    """Return the flags of a quiet run on the CPU."""
    quiet: dict[str, Any] = {
        "out": out,
        "use_cpu": True,
        "precision": "fp32",
        "tensorboard": False,
        "num_workers": 1,
        "log_every": 2,
        "threads": 1,
    }
    return RunOptions(**{**quiet, **changes})


def trained(folder: Path, *, num_classes: int = 2, run: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Train on one image of bands and return the run's folder."""
    image = write_image(folder / "image.png", num_classes=num_classes)
    changes = {"training_image": image, "cache_dir": folder / "cache", **changes}
    train(options(**changes), run_options(folder / "run", **(run or {})))
    return folder / "run"


def task_of(folder: Path, **changes: Any) -> tuple[FaciesTask, Setup]:
    """Return a task ready to start, on one image of bands."""
    image = write_image(folder / "image.png")
    changes = {"training_image": image, "cache_dir": folder / "cache", **changes}
    run = run_options(folder / "run")
    setup = prepare(options(**changes), run)
    return FaciesTask(setup, Guard(CPU), Precision(CPU, torch.float32), run), setup


def random_model(
    num_classes: int = 2,
    mode: str = "noise",
    size: tuple[int, int] = (40, 48),
    width: int = 8,
    **changes: Any,
) -> Simulator:
    """Return an untrained model of three scales whose labels vary from cell to cell."""
    features = (width,) * 3
    architecture = Architecture(num_classes, num_classes + 1, 3, features)
    card = ModelCard(
        architecture=architecture,
        palette=palette(num_classes),
        fractions=(0.36, 0.6, 1.0),
        size=size,
        native=size,
        mode=mode,
        injects=(False, False, True),
        amplitudes=(1.0, 0.5, 0.5),
        has_data=True,
        **changes,
    )
    blocks = [ScaleGenerator(architecture, k, torch.Generator().manual_seed(k)) for k in range(3)]
    enliven(blocks)
    return Simulator(card, blocks, CPU)


def enliven(blocks: list[ScaleGenerator]) -> None:
    """Make labels vary from cell to cell: as first drawn, the last layer says almost nothing."""
    for k, block in enumerate(blocks):
        last = block.convolutions[-1]
        last.weight.data *= 20
        classes = last.weight.shape[0]
        conditions = block.convolutions[1].weight.shape[1] - block.convolutions[0].weight.shape[0]
        prior = torch.full((1, classes, 60, 60), 1 / classes) if k else None
        noise = plane_noise((Extent(60, 0, 60), Extent(60, 0, 60)), 3, 0, "calibration")[None]
        with torch.no_grad():  # every facies about as likely
            logits = block(noise, torch.zeros(1, conditions, 60, 60), prior)
        last.bias.data -= logits.mean((0, 2, 3))


def enliven_run(folder: Path) -> None:
    """Give the model of a run lively weights."""
    found = find_model(folder)
    card = ModelCard.from_dict(found.normalization)
    blocks = blocks_from(card, found.state_dict, folder)
    enliven(blocks)
    weights = flat_weights({k: block.state_dict() for k, block in enumerate(blocks)})
    checkpoints.save(folder / "model.pt", model_checkpoint(card, weights, found.config, found.step))
