"""Figures of a set of realisations: entropy, comparison with the reference, data cells, distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.figures import new_figure, save
from facies_gan.images import write_png
from facies_gan.metrics import classical_mds, pattern_distances, reference_crops
from facies_gan.palette import Palette
from facies_gan.wells import WellSet

MOST_COMPARED, MOST_IN_MDS = 6, 40
GREY = (200, 200, 200)


def draw_entropy(path: Path, entropy: np.ndarray, wells: WellSet) -> None:
    """Draw the entropy in bits [H, W] with the data cells."""
    figure, axes = new_figure(1, 1, panel=(5.0, 4.2))
    ax = axes[0, 0]
    image = ax.imshow(entropy, cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=ax, label="entropy (bits)")
    ax.plot(wells.cols, wells.rows, "r.", markersize=2)
    ax.set(xlabel="column (cells)", ylabel="row (cells)", title="what the data leave open")
    save(figure, path)


def draw_comparison(
    path: Path,
    reference: np.ndarray | None,
    realisations: Sequence[np.ndarray],
    palette: Palette,
    wells: WellSet,
) -> None:
    """Draw the reference beside up to six realisations, the data cells marked."""
    panels = [("reference", reference)] if reference is not None else []
    panels += [(f"realisation {i}", grid) for i, grid in enumerate(realisations[:MOST_COMPARED])]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, panel=(2.6, 2.6))
    for ax in axes.reshape(-1)[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, grid) in zip(axes.reshape(-1), panels, strict=False):
        ax.imshow(palette.to_rgb(grid), interpolation="nearest")
        if title != "reference" and len(wells):
            edge = [tuple(c / 255 for c in palette.colors[label]) for label in wells.facies]
            ax.scatter(wells.cols, wells.rows, s=7, c=edge, edgecolors="red", linewidths=0.4)
        ax.set(title=title, xlabel="column (cells)", ylabel="row (cells)")
    save(figure, path)


def draw_well_mask(path: Path, size: tuple[int, int], palette: Palette, wells: WellSet) -> None:
    """Draw the data cells in the colours of their facies over grey, one pixel a cell."""
    picture = np.full((*size, 3), GREY, dtype=np.uint8)
    picture[wells.rows, wells.cols] = palette.to_rgb(wells.facies)
    write_png(path, picture)


def draw_mds(
    path: Path, references: Sequence[np.ndarray], realisations: Sequence[np.ndarray], classes: int
) -> bool:
    """Draw realisations and parts of the reference as points whose distances are those of their patterns.

    Returns:
        False when there are fewer than three images, and nothing was drawn.
    """
    made = list(realisations[:MOST_IN_MDS])
    real: list[np.ndarray] = []
    for reference in references:
        if made and all(n >= m for n, m in zip(reference.shape, made[0].shape, strict=True)):
            real += reference_crops(reference, made[0].shape, max(1, 16 // len(references)))
        else:
            real.append(reference)
    if len(real) + len(made) < 3:
        return False
    points = classical_mds(pattern_distances([*real, *made], classes))
    figure, axes = new_figure(1, 1, panel=(5.0, 4.2))
    ax = axes[0, 0]
    ax.scatter(*points[: len(real)].T, marker="s", label="reference")
    ax.scatter(*points[len(real) :].T, marker="o", label="realisations")
    ax.set(
        xlabel="pattern distance (bits)", ylabel="pattern distance (bits)", title="multi-dimensional scaling"
    )
    ax.legend()
    save(figure, path)
    return True
