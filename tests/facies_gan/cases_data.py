"""Small facies data roots and grids that several tests read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from facies_gan.images import write_png
from facies_gan.metrics_patterns import CopyCheck
from facies_gan.palette import Palette

COLORS4 = np.array([(0, 0, 0), (0, 0, 255), (0, 255, 0), (255, 0, 0)], dtype=np.uint8)  # sorted by R, G, B


def options(**values: Any) -> Any:
    """Return data flags: those given, defaults for the rest."""
    return SimpleNamespace(
        **{"input_path": Path("data"), "training_image": None, "hard_data": None, **values}
    )


def random_labels(shape: tuple[int, int] = (16, 20), num_classes: int = 4, seed: int = 0) -> np.ndarray:
    """Return labels [H, W] with every class in them."""
    labels = np.random.default_rng(seed).integers(0, num_classes, shape).astype(np.uint8)
    labels.flat[:num_classes] = np.arange(num_classes)
    return labels


def blocky_labels(shape: tuple[int, int], num_classes: int = 2, seed: int = 0, block: int = 4) -> np.ndarray:
    """Return labels [H, W] in random squares of `block` cells."""
    small = np.random.default_rng(seed).integers(0, num_classes, tuple(-(-n // block) for n in shape))
    return np.kron(small, np.ones((block, block)))[: shape[0], : shape[1]].astype(np.uint8)


def write_root(root: Path, stems: tuple[str, ...] = ("a", "b"), shape: tuple[int, int] = (16, 20)) -> dict:
    """Write facies images of four colours; return {stem: labels}."""
    palette = Palette.from_colors(COLORS4)
    labels = {stem: random_labels(shape, seed=i) for i, stem in enumerate(stems)}
    for stem, grid in labels.items():
        write_png(root / "facies" / f"{stem}.png", palette.to_rgb(grid))
    return labels


def is_copy(check: CopyCheck) -> bool:
    """Return whether patches resemble the reference more than it resembles itself."""
    return check.median > check.band_95
