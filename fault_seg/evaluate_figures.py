"""Figures of an evaluation: precision-recall, threshold sweep, reliability, truth beside prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import figures
from fault_seg.calibration import logits_of
from fault_seg.metrics import threshold_curve
from fault_seg.metrics_fault import Array

SWEEP = np.linspace(0.02, 0.98, 49)
NUM_BINS = 15
Cubes = Sequence[Mapping[str, Array]]


def draw_evaluation(
    folder: Path,
    truth: Cubes,
    probability: Mapping[str, Sequence[Array]],
    scores: Sequence[float],
    threshold: float,
    temperature: float,
) -> None:
    """Draw all figures of a fault evaluation.

    Args:
        folder: takes the PNG files.
        truth: held-out cubes.
        probability: of "ours" and of baselines, one array a cube.
        scores: AP of ours on each cube: the gallery shows the median one.
        threshold: tuned.
        temperature: of ours; its effect is shown where it is not 1.
    """
    labels = [cube["fsem"] for cube in truth]
    figure, axes = figures.new_figure(1, 1, panel=(4.6, 3.6))
    flat = np.concatenate([y.ravel() for y in labels])
    curves = {
        name: recall_and_precision(np.concatenate([v.ravel() for v in values]), flat)
        for name, values in probability.items()
    }
    base_rate = float((flat > 0.5).mean())
    figures.precision_recall(axes[0, 0], curves, base_rate=base_rate, title="faults, held-out cubes")
    figures.save(figure, folder / "pr_curve.png")
    draw_sweep(folder / "threshold_sweep.png", probability["ours"], labels, threshold)
    draw_reliability(folder / "reliability.png", probability["ours"], labels, temperature)
    order = np.argsort(scores)
    places = {"worst": 0, "median": len(order) // 2, "best": int(np.isfinite(scores).sum()) - 1}
    chosen = int(order[places["median"]])  # the cube of median score: no best case
    for name, axis in (("timeslice", 0), ("inline", 2)):
        shown = {n: v[chosen] for n, v in probability.items()}
        draw_comparison(folder / f"gallery_{name}.png", truth[chosen], shown, axis)
    cubes = {int(order[i]): f"{name}, AP {scores[order[i]]:.2f}" for name, i in places.items()}
    draw_gallery(folder / "gallery.png", truth, probability, cubes)


def recall_and_precision(probability: Array, labels: Array) -> tuple[Array, Array]:
    """Return (recall, precision) at 400 thresholds, enough for a curve."""
    from sklearn.metrics import precision_recall_curve

    known = labels >= 0
    precision, recall, _ = precision_recall_curve(labels[known] > 0.5, probability[known])
    chosen = np.unique(np.linspace(0, len(recall) - 1, 400).astype(int))
    return recall[chosen], precision[chosen]


def draw_sweep(path: Path, probability: Sequence[Array], labels: Sequence[Array], threshold: float) -> None:
    """Draw IoU, F1 and their tolerant kin over the threshold, means over cubes; the tuned one is marked."""
    names = {"Tol-IoU@2": "tol_iou", "Tol-F1@2": "tol_f1", "IoU": "iou", "F1": "f1"}
    series = {
        shown: (
            SWEEP,
            np.mean(
                [threshold_curve(p, y, SWEEP, name) for p, y in zip(probability, labels, strict=True)], axis=0
            ),
        )
        for shown, name in names.items()
    }
    figure, axes = figures.new_figure(1, 1, panel=(4.6, 3.6))
    figures.curves(
        axes[0, 0], series, x_label="threshold (probability)", y_label="score", title="threshold sweep"
    )
    axes[0, 0].axvline(threshold, color="#888888", linewidth=1)
    axes[0, 0].set_ylim(0, 1)
    figures.save(figure, path)


def reliability(probability: Array, labels: Array, bins: int = NUM_BINS) -> tuple[Array, Array]:
    """Return (mean probability, share of fault voxels) of each equal-width bin that holds voxels."""
    known = labels >= 0
    p, true = probability[known], labels[known] > 0.5
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = count > 0
    mean = np.bincount(which, weights=p, minlength=bins)[filled] / count[filled]
    share = np.bincount(which, weights=true, minlength=bins)[filled] / count[filled]
    return mean, share


def draw_reliability(
    path: Path, probability: Sequence[Array], labels: Sequence[Array], temperature: float
) -> None:
    """Draw the share of fault voxels over the probability; the diagonal is a probability that means it."""
    p = np.concatenate([v.ravel() for v in probability])
    y = np.concatenate([v.ravel() for v in labels])
    series = {"ours": reliability(p, y), "exact": (np.array([0.0, 1.0]), np.array([0.0, 1.0]))}
    if temperature != 1:
        raw = 1 / (1 + np.exp(-logits_of(p) * temperature))
        series["without temperature"] = reliability(raw, y)
    figure, axes = figures.new_figure(1, 1, panel=(4.2, 3.8))
    figures.curves(
        axes[0, 0],
        series,
        x_label="fault probability",
        y_label="share of fault voxels",
        title="reliability, held-out cubes",
    )
    axes[0, 0].set_ylim(0, 1)
    figures.save(figure, path)


def draw_gallery(
    path: Path, truth: Cubes, probability: Mapping[str, Sequence[Array]], cubes: Mapping[int, str]
) -> None:
    """Draw the time slice of several cubes with the error of ours, one a row: number of the cube -> name."""
    figure, axes = figures.new_figure(len(cubes), 3 + len(probability), panel=(2.7, 2.6))
    for line, (number, name) in zip(axes, cubes.items(), strict=True):
        shown = {n: v[number] for n, v in probability.items()}
        _draw_line(line[:-1], truth[number], shown, 0, f"{name}: ")
        _draw_error(line[-1], probability["ours"][number], truth[number]["fsem"])
    figures.save(figure, path)


def absolute_error(probability: Array, labels: Array) -> Array:
    """Return |probability - truth| of each voxel, 0..1; NaN where the truth is not known."""
    return np.where(labels >= 0, np.abs(probability - (labels > 0.5)), np.nan)


def _draw_error(ax: Any, probability: Array, labels: Array) -> None:
    """Draw the error on the middle time slice of a cube."""
    middle = len(labels) // 2
    figures.section(
        ax,
        absolute_error(probability[middle], labels[middle]),
        kind="probability",
        title="ours: error",
        z_label="y crossline (voxels)",
        x_label="x inline (voxels)",
        value_label="|probability \N{MINUS SIGN} truth|",
        limits=(0.0, 1.0),
    )
    ax.label_outer()


def draw_comparison(path: Path, cube: Mapping[str, Array], probability: Mapping[str, Any], axis: int) -> None:
    """Draw the input, the true faults and each method's probability on the middle slice along `axis`."""
    figure, axes = figures.new_figure(1, 2 + len(probability), panel=(3.1, 2.9))
    _draw_line(axes[0], cube, probability, axis)
    figures.save(figure, path)


def _draw_line(
    line: Sequence[Any],
    cube: Mapping[str, Array],
    probability: Mapping[str, Any],
    axis: int,
    name: str = "",
) -> None:
    """Draw one line of `draw_comparison`; `name` stands before the title of the first panel."""

    def cut(values: Array) -> Array:
        return np.take(values, values.shape[axis] // 2, axis=axis)

    names = (
        ("y crossline (voxels)", "x inline (voxels)")
        if axis == 0
        else ("z (samples)", "y crossline (voxels)")
    )
    image = cut(cube["image"])
    shown: list[tuple[str, Array | None]] = [(f"{name}input", None), ("truth", cut(cube["fsem"]))]
    shown += [(method, cut(values)) for method, values in probability.items()]
    for ax, (title, overlay) in zip(line, shown, strict=True):
        last = title == shown[-1][0]
        figures.section(
            ax,
            image,
            kind="seismic",
            title=title,
            z_label=names[0],
            x_label=names[1],
            overlay=overlay,
            overlay_label="probability" if last else "",
            overlay_from=0.3,
        )
        ax.label_outer()
