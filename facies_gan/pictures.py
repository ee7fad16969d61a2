"""Figures of a set of realisations: entropy, comparison with the reference, data cells, distances."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from common.figure_style import house_look
from common.figures import OURS, TRUTH, new_figure, save
from facies_gan.images import write_png
from facies_gan.metrics import classical_mds, pattern_distances, reference_crops
from facies_gan.palette import Palette
from facies_gan.wells import WellSet

MOST_COMPARED, MOST_IN_MDS = 6, 40
LEAST_IN_WELL = 5  # data of one well from which on it is marked as a well, not datum by datum
GREY = (200, 200, 200)
EDGE = "#D55E00"
P = ParamSpec("P")
R = TypeVar("R")


def in_house_look(draw: Callable[P, R]) -> Callable[P, R]:
    """Return a drawing function whose texts have the house's look."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with house_look():
            return draw(*args, **kwargs)

    return wrapped


def panel_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the size of a panel in inches that suits a section's form."""
    ratio = min(max(shape[0] / shape[1], 0.4), 1.6)
    return 2.9, 2.6 * ratio + 0.3


def _extent(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Return the frame in which cells count from 1."""
    return 0.5, shape[1] + 0.5, shape[0] + 0.5, 0.5


def draw_grid(ax: Any, grid: np.ndarray, palette: Palette, title: str, wells: WellSet | None = None) -> None:
    """Draw labels [H, W] in their colours, with the data marked."""
    ax.imshow(palette.to_rgb(grid), interpolation="nearest", extent=_extent(grid.shape))
    if wells is not None and len(wells):
        mark_wells(ax, wells)
    ax.set(title=title, xlabel="column (cells)", ylabel="row (cells)")


def draw_map(
    ax: Any, values: np.ndarray, title: str, label: str, colours: str, top: float, wells: WellSet
) -> None:
    """Draw a map [H, W] of 0 to `top` with its colour bar below, and the data."""
    look: dict[str, Any] = {"interpolation": "nearest", "extent": _extent(values.shape)}
    image = ax.imshow(values, cmap=colours, vmin=0, vmax=top, **look)
    ax.figure.colorbar(image, ax=ax, label=label, location="bottom", fraction=0.05, pad=0.02)
    mark_wells(ax, wells)
    ax.set(title=title, xlabel="column (cells)", ylabel="row (cells)")


def mark_wells(ax: Any, wells: WellSet, *, lines: bool = False) -> None:
    """Mark single data by open circles, wells of many data by a triangle at their top (and a line)."""
    if not len(wells):
        return
    sizes = np.bincount(wells.well_id)
    single = sizes[wells.well_id] < LEAST_IN_WELL
    ax.scatter(
        wells.cols[single] + 1,
        wells.rows[single] + 1,
        s=22,
        facecolors="none",
        edgecolors=EDGE,
        linewidths=1.1,
    )
    for number in np.flatnonzero(sizes >= LEAST_IN_WELL):
        cols = wells.cols[wells.well_id == number] + 1
        rows = wells.rows[wells.well_id == number] + 1
        if lines:
            ax.plot(cols, rows, color=EDGE, linewidth=0.6)
        top = rows.argmin()
        ax.plot(cols[top], rows[top] - 0.5, marker="v", color=EDGE, markersize=4, clip_on=False)


def draw_legend(figure: Any, palette: Palette, wells: WellSet | None = None) -> None:
    """Say below the panels which colour is which facies, and what marks data."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=tuple(np.asarray(color) / 255), edgecolor="#666666", linewidth=0.6, label=name)
        for color, name in zip(palette.colors, palette.names, strict=True)
    ]
    sizes = np.bincount(wells.well_id) if wells is not None and len(wells) else np.zeros(0)
    look: dict[str, Any] = {"linestyle": "none", "color": EDGE}
    if (sizes >= LEAST_IN_WELL).any():
        handles.append(Line2D([], [], marker="v", markersize=5, label="well", **look))
    if ((sizes > 0) & (sizes < LEAST_IN_WELL)).any():
        handles.append(Line2D([], [], marker="o", markersize=5, fillstyle="none", label="datum", **look))
    columns = max(1, int(figure.get_figwidth() / 1.5))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), frameon=False
    )


@in_house_look
def draw_entropy(path: Path, entropy: np.ndarray, wells: WellSet, num_classes: int) -> None:
    """Draw the entropy in bits [H, W], 0 to that of equal chances, with the data cells."""
    width, height = panel_size(entropy.shape)
    figure, axes = new_figure(1, 1, panel=(1.6 * width, 1.6 * height + 0.4))
    top = float(np.log2(num_classes))
    draw_map(axes[0, 0], entropy, "what the data leave open", "entropy (bits)", "viridis", top, wells)
    save(figure, path)


@in_house_look
def draw_comparison(
    path: Path,
    reference: np.ndarray | None,
    realisations: Sequence[np.ndarray],
    palette: Palette,
    wells: WellSet,
    indices: Sequence[int] = range(MOST_COMPARED),
) -> None:
    """Draw the reference beside up to six realisations, the data cells marked.

    Args:
        path: of the figure.
        reference: labels; None = there is none.
        realisations: labels, all of one size.
        palette: the facies.
        wells: the data.
        indices: of the realisations, as in the names of their files.
    """
    panels = [("reference", reference)] if reference is not None else []
    shown = zip(indices, realisations[:MOST_COMPARED], strict=False)
    panels += [(f"realisation {index}", grid) for index, grid in shown]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, panel=panel_size(realisations[0].shape))
    for ax in axes.reshape(-1)[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, grid) in zip(axes.reshape(-1), panels, strict=False):
        draw_grid(ax, grid, palette, title, None if title == "reference" else wells)
    draw_legend(figure, palette, wells)
    save(figure, path)


def draw_well_mask(path: Path, size: tuple[int, int], palette: Palette, wells: WellSet) -> None:
    """Draw the data cells in the colours of their facies over grey, one pixel a cell."""
    picture = np.full((*size, 3), GREY, dtype=np.uint8)
    picture[wells.rows, wells.cols] = palette.to_rgb(wells.facies)
    write_png(path, picture)


@in_house_look
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
    figure, axes = new_figure(1, 1, panel=(5.0, 4.0))
    ax = axes[0, 0]
    ax.scatter(*points[: len(real)].T, marker="s", color=TRUTH, label="reference")
    ax.scatter(*points[len(real) :].T, marker="o", color=OURS, label="realisations")
    axis = "pattern distance (bits)"
    ax.set(xlabel=axis, ylabel=axis, title="who resembles whom")
    ax.grid()
    ax.legend()
    save(figure, path)
    return True
