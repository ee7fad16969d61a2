"""Finding and reading a model: a run folder, model.pt, a checkpoint, or a folder of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint
from common.device import Precision
from common.errors import DataError
from common.log import get_logger
from facies_gan import run_files
from facies_gan.config import PACKAGE
from facies_gan.model_card import ModelCard, read_card
from facies_gan.simulator import Simulator


def find_model(path: str | Path) -> Checkpoint:
    """Return the content of the model that `path` means.

    A file is taken as it is. Of a run's folder: model.pt, else the folders of its scales, else its last
    checkpoint. Of a folder of runs: the newest run, which is said.

    Raises:
        DataError: nothing there, or a file of another package or kind, or a damaged one.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected a run of train.py; check --model_path")
    if path.is_file():
        return checkpoints.load(path, package=PACKAGE, kinds=[run_files.KIND])
    if not _is_run(path):
        runs = sorted((p for p in path.iterdir() if p.is_dir() and _is_run(p)), key=_written)
        if not runs:
            raise DataError(
                f"{path}: holds no run, expected model.pt in it or in a folder below; check the path"
            )
        get_logger().info(f"{path}: using its newest run {runs[-1].name}")
        path = runs[-1]
    if (path / "model.pt").is_file():
        return checkpoints.load(path / "model.pt", package=PACKAGE, kinds=[run_files.KIND])
    if (path / "0" / "generator.pt").is_file():
        get_logger().info(f"{path}: no model.pt, taking the folders of the scales")
        return run_files.assemble(path)
    return checkpoints.load(path / "checkpoints" / "last.pt", package=PACKAGE, kinds=[run_files.KIND])


def _is_run(folder: Path) -> bool:
    names = ("model.pt", "0/generator.pt", "checkpoints/last.pt")
    return any((folder / name).is_file() for name in names)


def _written(folder: Path) -> float:
    names = ("model.pt", "0/generator.pt", "checkpoints/last.pt")
    return max((folder / name).stat().st_mtime for name in names if (folder / name).is_file())


def load(
    path: str | Path, device: torch.device | str = "cpu", *, precision: Precision | None = None
) -> Simulator:
    """Return a model ready to generate, from what `find_model` finds.

    Raises:
        DataError: as `find_model`, or the weights do not fit their description.
    """
    found = find_model(path)
    card = read_card(found.normalization, path)
    total = len(card.fractions)
    if card.num_trained < total:
        get_logger().warning(
            "warning: %s: %d of %d scales are trained, generating at %d x %d",
            path, card.num_trained, total, *card.scales(card.size)[card.num_trained - 1],
        )  # fmt: skip
        card = truncated(card)
    return Simulator(
        card, run_files.blocks_from(card, found.state_dict, path), torch.device(device), precision
    )


def truncated(card: ModelCard) -> ModelCard:
    """Return the card of a model in training as if its finest trained scale were the last."""
    top = card.num_trained - 1
    size = card.scales(card.size)[top]
    fractions = tuple(f / card.fractions[top] for f in card.fractions[:top]) + (1.0,)
    return replace(card, fractions=fractions, size=size, injects=card.injects[: top + 1])
