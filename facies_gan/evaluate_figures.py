"""Figures of an evaluation: realisations, curves, scores over the band, distances, data that blend in."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.figures import BASELINES, OURS, TRUTH, curves, new_figure, save, series_styles
from facies_gan import metrics as M
from facies_gan.comparison import MEASURES
from facies_gan.evaluate_data import Case
from facies_gan.evaluate_sets import MethodSet
from facies_gan.evaluate_wells import Blending
from facies_gan.pictures import draw_grid, draw_legend, draw_map, in_house_look, mark_wells, panel_size
from facies_gan.wells import WellSet

SHOWN, IN_MDS = 6, 20


@in_house_look
def draw_realisations(path: Path, case: Case, made: MethodSet) -> None:
    """Draw reference, up to six realisations, probability of the commonest body facies, entropy."""
    group = made.groups[0]
    palette = case.palette
    classes = len(palette)
    probability = M.probability_map(group.grids, classes)
    shown = telling_facies(case)[0]
    truth = case.truths[0] if group.truth is None else group.truth
    count = min(SHOWN, len(group.grids))
    panels = count + 3
    columns = min(3, panels)
    figure, axes = new_figure(-(-panels // columns), columns, panel=panel_size(truth.shape))
    flat = list(axes.flat)
    draw_grid(flat[0], truth, palette, "reference")
    for i in range(count):
        draw_grid(flat[1 + i], group.grids[i], palette, f"realisation {i}", group.wells)
    top = float(np.log2(classes))
    maps = (
        (probability[shown], f"probability of {palette.names[shown]}", "probability", "magma", 1.0),
        (M.entropy_map(probability), "what the data leave open", "entropy (bits)", "viridis", top),
    )
    for ax, arguments in zip(flat[1 + count :], maps, strict=False):
        draw_map(ax, *arguments, group.wells)
    for ax in flat[panels:]:
        ax.set_visible(False)
    for ax in flat[:panels]:
        ax.label_outer()
    draw_legend(figure, palette, group.wells)
    save(figure, path)


def draw_curves(path: Path, case: Case, sets: Mapping[str, MethodSet], max_lag: int) -> None:
    """Draw variograms and connectivity of up to two facies, down and along."""
    facies = telling_facies(case)[:2]
    every = {"truth": case.truths, **{name: made.grids for name, made in sets.items()}}
    lag = M.longest_lag([grid for grids in every.values() for grid in grids], max_lag)
    lags = np.arange(1, lag + 1)
    figure, axes = new_figure(2 * len(facies), 2, panel=(4.0, 2.5))
    kinds = (
        ("variogram", "gamma(h)", M.indicator_variogram),
        ("connectivity", "P(same body)", M.connectivity),
    )
    for row, (c, (kind, label, measure)) in enumerate((c, kind) for c in facies for kind in kinds):
        found = {name: measure(grids, c, lag) for name, grids in every.items()}
        for axis, way in enumerate(("down", "along")):
            series = {name: (lags, curve[axis]) for name, curve in found.items()}
            title = f"{kind} of {case.palette.names[c]}, {way}"
            curves(axes[row, axis], series, x_label="lag (cells)", y_label=label, title=title)
            if row or axis:
                axes[row, axis].get_legend().remove()
    save(figure, path)


def telling_facies(case: Case) -> list[int]:
    """Return the facies without the commonest one, the background; the commonest of them first."""
    shares = M.proportions(case.truths, len(case.palette))
    return np.argsort(-shares, kind="stable")[1:].tolist()


@in_house_look
def draw_scores(
    path: Path, scores: Mapping[str, Mapping[str, float]], band: Mapping[str, float], ours: str
) -> None:
    """Draw each error over the reference's own band, one dot a method: left of 1 is matched."""
    keys = [key for key in MEASURES if band.get(key)]
    names = [ours, *(name for name in scores if name != ours)]
    styles = series_styles(["ours", *names[1:]])
    figure, axes = new_figure(1, 1, panel=(6.6, 0.34 * len(keys) + 1.2))
    ax = axes[0, 0]
    places = np.arange(len(keys))[::-1]
    low, high = 0.5, 2.0
    for name in reversed(names):
        values = [scores[name].get(key, np.nan) / band[key] for key in keys]
        spread = [v for v in values if np.isfinite(v) and v > 0]
        low, high = min([low, *spread]), max([high, *spread])
        colour = OURS if name == ours else styles[name]["color"]
        size = 62 if name == ours else 40
        ax.scatter(
            values, places, s=size, color=colour, marker="o" if name == ours else "D", label=name, zorder=3
        )
    ax.axvspan(0, 1, color="#0072B2", alpha=0.07)
    ax.axvline(1, color="#888888", linewidth=1)
    ax.set_xscale("log")
    ticks = [2.0**n for n in range(-4, 8)]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_yticks(places, [MEASURES[key].name for key in keys])
    ax.set(
        xlabel="error over that of one half of the reference against the other", title="errors over the band"
    )
    ax.set_xlim(low / 1.2, high * 1.2)
    ax.grid(axis="both")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


@in_house_look
def draw_mds(path: Path, case: Case, sets: Mapping[str, MethodSet]) -> bool:
    """Draw reference crops or sections and each method's realisations on one joint distance matrix.

    Returns:
        False when there are fewer than three images, and nothing was drawn.
    """
    parts = {"reference": _reference_images(case, sets)}
    parts |= {name: made.grids[:IN_MDS] for name, made in sets.items()}
    images = [image for group in parts.values() for image in group]
    if len(images) < 3:
        return False
    points = M.classical_mds(M.pattern_distances(images, len(case.palette)))
    styles = series_styles([name for name in parts if name not in ("reference", "ours")])
    figure, axes = new_figure(1, 1, panel=(5.4, 4.0))
    ax, start = axes[0, 0], 0
    markers = dict(zip(parts, "so^DvPX<>", strict=False))
    for name, group in parts.items():
        own = points[start : start + len(group)]
        start += len(group)
        colour = {"reference": TRUTH, "ours": OURS}.get(name) or styles[name]["color"]
        ax.scatter(*own.T, s=26, color=colour, marker=markers[name], label=name, alpha=0.85)
    axis = "pattern distance (bits)"
    ax.set(xlabel=axis, ylabel=axis, title="who resembles whom")
    ax.grid()
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)
    return True


def _reference_images(case: Case, sets: Mapping[str, MethodSet]) -> list[np.ndarray]:
    """Return the sections, or crops of one image larger than the realisations, or the image itself."""
    if not case.is_single:
        return case.truths[:IN_MDS]
    size = next(iter(sets.values())).grids[0].shape
    truth = case.truths[0]
    if all(n >= m for n, m in zip(truth.shape, size, strict=True)):
        return M.reference_crops(truth, (size[0], size[1]), IN_MDS)
    return [truth]


def draw_entropy_curves(path: Path, scores: Mapping[str, Mapping[str, float]]) -> bool:
    """Draw mean entropy over the distance to data; False without data."""
    series = {}
    for name, found in scores.items():
        values = [found.get(f"entropy_{d}", np.nan) for d in M.DISTANCES]
        if np.isfinite(values).sum() > 1:
            series[name] = (np.array(M.DISTANCES, dtype=float), np.array(values))
    if not series:
        return False
    figure, axes = new_figure(1, 1, panel=(4.8, 3.2))
    curves(
        axes[0, 0],
        series,
        x_label="distance to the nearest datum (cells)",
        y_label="mean entropy (bits)",
        title="how far the data reach",
    )
    save(figure, path)
    return True


@in_house_look
def draw_proportion_curves(path: Path, case: Case, made: MethodSet) -> bool:
    """Draw vertical proportion curves of sections: reference full, ours dashed; False for other heights."""
    if len({grid.shape[0] for grid in [*case.truths, *made.grids]}) > 1:
        return False
    classes = len(case.palette)
    figure, axes = new_figure(1, classes, panel=(2.2, 3.2))
    pairs = [M.vertical_proportions(grids, classes) for grids in (case.truths, made.grids)]
    rows = np.arange(1, pairs[0].shape[1] + 1)
    for c, ax in enumerate(axes[0]):
        ax.plot(pairs[0][c], rows, color=TRUTH, label="reference")
        ax.plot(pairs[1][c], rows, color=OURS, linestyle="--", label="ours")
        ax.set(
            xlabel="share of the row", ylabel="row (cells)", title=case.palette.names[c], ylim=(len(rows), 1)
        )
        ax.grid()
        ax.label_outer()
    axes[0, 0].legend()
    save(figure, path)
    return True


@in_house_look
def draw_blending(path: Path, case: Case, blending: Sequence[Blending]) -> None:
    """Draw each pattern of wells: the section they come from, ours, and what pasting would give."""
    figure, axes = new_figure(len(blending), 3, panel=panel_size(case.truths[0].shape))
    for row, part in zip(axes, blending, strict=True):
        own = part.sets["ours"].groups[0]
        draw_grid(row[0], case.truths[0], case.palette, f"reference, {part.pattern.name}")
        mark_wells(row[0], own.wells, lines=own.wells.num_wells <= 16)
        for ax, name in zip(row[1:], ("ours", "paste"), strict=True):
            seam = part.scores[name].get("seam_ratio", np.nan)
            true = part.scores["reference"].get("seam_ratio", np.nan)
            draw_grid(
                ax,
                part.sets[name].groups[0].grids[0],
                case.palette,
                f"{name}: seam {seam:.2f} (own {true:.2f})",
            )
            mark_wells(ax, own.wells)
        for ax in row:
            ax.label_outer()
    marked = [part.sets["ours"].groups[0].wells for part in blending]
    draw_legend(figure, case.palette, functools.reduce(WellSet.merged, marked))
    save(figure, path)


@in_house_look
def draw_calibration(path: Path, calibration: Mapping[str, Any]) -> None:
    """Draw frequency over predicted probability at held-out data."""
    figure, axes = new_figure(1, 1, panel=(3.8, 3.4))
    ax = axes[0, 0]
    ax.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    methods = {name: v for name, v in calibration.items() if isinstance(v, dict) and v}
    for (name, values), colour in zip(methods.items(), (OURS, *BASELINES), strict=False):
        points = np.array([values["predicted"], values["observed"]], dtype=float)
        points = points[:, np.isfinite(points).all(axis=0)]
        ax.plot(*points, "o-", color=colour, label=name, markersize=4, clip_on=False)
    ax.set(
        xlabel="predicted probability",
        ylabel="frequency found",
        title="held-out wells",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.grid()
    ax.legend()
    save(figure, path)
