"""Figures of forecasts: slices beside the truth, errors by year, wells, field rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import figures
from common.figure_style import house_look
from voxel_ode.predictions import Predictions
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.well_tables import well_means
from voxel_ode.wells import Wells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

YEARS = (5, 15, 29)  # years after the state that is given
NAMES = ("Pressure", "Temperature")
UNITS = ("bar", "deg C")
KINDS = ("property", "heat")
SCALAR_UNITS = ((1e-6, "MW"), (1e-6, "MW"), (1e-15, "PJ"), (1.0, "kg/s"), (1.0, "kg/s"))
SCALAR_TITLES = ("injected heat", "produced heat", "heat produced in all", "water injected", "water produced")


def shown_years(num_states: int, wanted: Sequence[int] = YEARS) -> list[int]:
    """Return the indices of the states that figures show: those wanted that exist, else the last."""
    found = [k for k in wanted if k < num_states]
    return found or [num_states - 1]


def well_layer(wells: Wells, shape: Sequence[int]) -> int:
    """Return the layer with most perforated cells; the middle one without wells."""
    if not len(wells.cells):
        return shape[0] // 2
    return int(np.bincount(wells.cells[:, 0], minlength=shape[0]).argmax())


def cut_planes(state: np.ndarray, masks: np.ndarray, layer: int) -> dict[str, np.ndarray]:
    """Return the middle section [2, Z, X] and the layer [2, Y, X] of a state, NaN off the domains."""
    domains = np.stack([masks[1], masks[0]]) > 0
    known = np.where(domains, state, np.nan).astype(np.float32)
    return {"section": known[:, :, known.shape[2] // 2], "layer": known[:, layer]}


def draw_slices(
    path: Path,
    truth: Mapping[int, np.ndarray],
    predicted: Mapping[int, np.ndarray],
    channel: int,
    cut: str,
    cell_size_m: tuple[float, float, float],
    title: str,
) -> Path:
    """Draw truth, prediction and error of one channel, a row a year.

    Args:
        path: of the PNG.
        truth: year -> plane [2, rows, columns], as of `cut_planes`.
        predicted: the same of the forecast.
        channel: 0 pressure, 1 temperature.
        cut: "section" (depth over x) or "layer" (y over x).
        cell_size_m: (dz, dy, dx).
        title: of the figure.
    """
    years = sorted(truth)
    figure, axes = figures.new_figure(len(years), 3, panel=(3.7, 2.3), title=title)
    errors = {k: predicted[k][channel] - truth[k][channel] for k in years}
    error_limits = figures.colour_limits(list(errors.values()), "difference")
    limits = figures.colour_limits([p[k][channel] for p in (truth, predicted) for k in years], KINDS[channel])
    dz, dy, dx = cell_size_m
    spacing = (dz, dx) if cut == "section" else (dy, dx)
    images: dict[str, AxesImage] = {}
    labels = ("depth below top (m)" if cut == "section" else "y (m)", "x (m)")
    for row, k in zip(axes, years, strict=True):
        columns = (("truth", truth[k][channel]), ("ours", predicted[k][channel]), ("ours - truth", errors[k]))
        for ax, (name, plane) in zip(row, columns, strict=True):
            is_error = name == "ours - truth"
            images[name] = figures.section(
                ax,
                plane,
                kind="difference" if is_error else KINDS[channel],
                title=f"{name}, year {k}",
                z_label=labels[0],
                x_label=labels[1],
                spacing=spacing,
                origin=(spacing[0] / 2, spacing[1] / 2),
                limits=error_limits if is_error else limits,
            )
            ax.label_outer()
    with house_look():  # one bar a scale: the rows share it
        for column, name in ((1, "ours"), (2, "ours - truth")):
            bar = figure.colorbar(images[name], ax=list(axes[:, column]), label=UNITS[channel], aspect=40)
            bar.outline.set_visible(False)
    return figures.save(figure, path)


def draw_error_curves(path: Path, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Draw the RMSE of every method over the predicted years.

    Args:
        path: of the PNG.
        curves: method -> {"P": [years], "T": [years]}; "ours" among them.
    """
    figure, axes = figures.new_figure(1, 2, panel=(4.6, 3.4))
    for ax, channel in zip(axes[0], (1, 0), strict=True):
        key = "PT"[channel]
        series = {name: (np.arange(1, len(c[key]) + 1), c[key]) for name, c in curves.items()}
        figures.curves(
            ax,
            series,
            x_label="predicted years",
            y_label=f"RMSE ({UNITS[channel]})",
            title=NAMES[channel],
        )
        top = max(float(np.nanmax(series[name][1])) for name in ("ours", "copy") if name in series)
        ax.set_ylim(0, 1.3 * top)  # a baseline that runs away leaves the frame
    _shared_legend(figure, axes[0])
    return figures.save(figure, path)


def _shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend below all axes instead of one into each, where it would hide curves."""
    handles, labels = axes[0].get_legend_handles_labels()
    for ax in axes:
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
    with house_look():
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))


def draw_wells(path: Path, wells: Wells, years: np.ndarray, curves: Mapping[str, np.ndarray]) -> Path:
    """Draw the temperature at each producer and injector over the years.

    Args:
        path: of the PNG.
        wells: of the simulation.
        years: [T].
        curves: method (with "truth" and "ours") -> [T, W], deg C.
    """
    order = sorted(range(len(wells)), key=lambda w: (int(wells.sign[w]), w))
    columns = 2 if len(order) == 4 else min(3, max(1, len(order)))
    rows = max(1, -(-len(order) // columns))
    figure, axes = figures.new_figure(rows, columns, panel=(3.5, 2.5), title="temperature at the wells")
    for ax, w in zip(axes.flat, order, strict=False):
        kind = {1: "injector", -1: "producer"}.get(int(wells.sign[w]), "shut")
        figures.curves(
            ax,
            {name: (years, values[:, w]) for name, values in curves.items()},
            x_label="year",
            y_label="deg C",
            title=f"well {w}, {kind}, {wells.rate_kg_s[w]:.0f} kg/s",
        )
        low, high = ax.get_ylim()
        if high - low < 2.0:  # a quiet well shall look quiet
            ax.set_ylim((low + high) / 2 - 1, (low + high) / 2 + 1)
    for ax in list(axes.flat)[len(order) :]:
        ax.set_visible(False)
    _shared_legend(figure, list(axes.flat)[: len(order)])
    return figures.save(figure, path)


def draw_scalars(path: Path, years: np.ndarray, curves: Mapping[str, np.ndarray]) -> Path:
    """Draw the five field rates over the years.

    Args:
        path: of the PNG.
        years: [T].
        curves: "truth" and "ours" -> [T, 5].
    """
    figure, axes = figures.new_figure(1, len(SCALAR_NAMES), panel=(2.7, 2.6))
    for i, ax in enumerate(axes[0]):
        scale, unit = SCALAR_UNITS[i]
        figures.curves(
            ax,
            {name: (years, scale * values[:, i]) for name, values in curves.items()},
            x_label="year",
            y_label=unit,
            title=SCALAR_TITLES[i],
        )
        low, high = ax.get_ylim()
        if high - low < 0.05 * abs(high):
            ax.set_ylim(0.95 * low, 1.05 * high)
    return figures.save(figure, path)


def draw_predictions(folder: Path, predictions: Predictions, name: str) -> list[Path]:
    """Draw what a predictions file shows: slices where the truth is known, wells, field rates."""
    wells, masks = predictions.wells, predictions.masks
    layer = well_layer(wells, masks.shape[1:])
    years = np.arange(1, predictions.num_states + 1)
    paths = []
    if predictions.num_truth:
        chosen = shown_years(predictions.num_truth)
        groups = ("ground_truth", "predicted")
        truth, predicted = (
            {k: cut_planes(predictions.state(k, group), masks, layer) for k in chosen} for group in groups
        )
        for cut in ("section", "layer"):
            true, ours = ({k: planes[cut] for k, planes in of.items()} for of in (truth, predicted))
            for channel, short in enumerate("PT"):
                path = folder / f"{name}_{short}_{cut}.png"
                title = f"{NAMES[channel]} ({UNITS[channel]}), {name}"
                paths.append(draw_slices(path, true, ours, channel, cut, predictions.cell_size_m, title))
    found = {"ours": ("predicted", predictions.num_states), "truth": ("ground_truth", predictions.num_truth)}
    wells_t, rates = {}, {"ours": predictions.scalars}
    for method, (group, count) in found.items():
        rows = [well_means(wells, predictions.state(k, group)[1]) for k in range(count)]
        if rows:
            wells_t[method] = np.full((len(years), len(wells)), np.nan)
            wells_t[method][:count] = np.stack(rows)
    if predictions.num_truth:
        rates["truth"] = np.full_like(predictions.scalars, np.nan)
        rates["truth"][: predictions.num_truth] = predictions.truth_scalars
    if len(wells):
        paths.append(draw_wells(folder / f"{name}_wells.png", wells, years, wells_t))
    paths.append(draw_scalars(folder / f"{name}_scalars.png", years, rates))
    return paths
