"""Figures with one look: sections, slices, maps, curves, histograms; units stand on every axis.

Helpers draw on axes of `new_figure`, or return a whole figure for `save`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from common.figure_style import (
    BASELINES,
    FACIES,
    KINDS,
    OURS,
    TRUTH,
    colour_limits,
    colour_map,
    house_look,
    new_figure,
    plain_scale,
    save,
    series_styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = [
    "BASELINES",
    "FACIES",
    "KINDS",
    "OURS",
    "TRUTH",
    "colour_limits",
    "curves",
    "histogram",
    "maps",
    "new_figure",
    "precision_recall",
    "save",
    "section",
    "series_styles",
    "slices",
]


def section(
    ax: Axes,
    values: ArrayLike,
    *,
    kind: str = "property",
    title: str = "",
    x_label: str,
    z_label: str,
    value_label: str = "",
    spacing: tuple[float, float] = (1.0, 1.0),
    origin: tuple[float, float] = (0.0, 0.0),
    limits: tuple[float, float] | None = None,
    overlay: ArrayLike | None = None,
    overlay_label: str = "",
    overlay_from: float = 0.1,
    contours: ArrayLike | None = None,
    equal: bool = False,
) -> AxesImage:
    """Draw a section or map [Z, X], first row on top, and return its image; NaN shows as hatching.

    - kind: one of `KINDS`, sets the colours; `limits` are their ends, default the 1st and 99th percentile.
    - x_label, z_label: with units, like "x (m)" and "depth (m)".
    - value_label: with its unit; a colour bar is drawn when it is given.
    - spacing, origin: cell size and first cell's centre (z, x) in the labels' units; `equal` scales.
    - overlay: [Z, X] in 0..1, e.g. a fault probability, the more opaque the larger; nothing is drawn below
      `overlay_from`; `overlay_label` adds its colour bar.
    - contours: [Z, X], drawn as ten thin lines, e.g. relative geological time.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or kind not in KINDS:
        raise ValueError(f"shape {values.shape}, kind {kind!r}: expected [Z, X] and one of {sorted(KINDS)}")
    (dz, dx), (z0, x0), (nz, nx) = spacing, origin, values.shape
    extent = (x0 - dx / 2, x0 + (nx - 0.5) * dx, z0 + (nz - 0.5) * dz, z0 - dz / 2)
    shared = {"extent": extent, "aspect": "equal" if equal else "auto", "interpolation": "nearest"}
    with house_look():
        low, high = limits or colour_limits([values], kind)
        ax.patch.set(facecolor="#f4f4f4", edgecolor="#c4c4c4", hatch="/////")
        image = ax.imshow(np.ma.masked_invalid(values), cmap=colour_map(kind), vmin=low, vmax=high, **shared)
        if contours is not None:
            grid = (x0 + dx * np.arange(nx), z0 + dz * np.arange(nz))
            ax.contour(*grid, np.ma.masked_invalid(contours), 10, colors="#56B4E9", linewidths=0.8)
        if value_label:
            _colour_bar(ax, image, value_label, facies=kind == "facies")
        if overlay is not None:
            _draw_overlay(ax, overlay, overlay_label, overlay_from, shared)
        ax.set(title=title, xlabel=x_label, ylabel=z_label, xlim=extent[:2], ylim=extent[2:])
    return image


def _draw_overlay(ax: Axes, overlay: ArrayLike, label: str, start: float, shared: dict[str, Any]) -> None:
    """Draw values 0..1 from yellow to red, the more opaque the larger, nothing below `start`."""
    over = np.nan_to_num(np.asarray(overlay, dtype=np.float64))
    drawn = ax.imshow(over, cmap="autumn_r", vmin=0, vmax=1, **shared)
    drawn.set_alpha(np.where(over >= start, np.clip(0.25 + 0.75 * over, 0, 1), 0.0))
    if label:
        _colour_bar(ax, plain_scale("autumn_r"), label)


def _colour_bar(ax: Axes | Sequence[Axes], image: Any, label: str, *, facies: bool = False) -> None:
    figure = (ax[0] if isinstance(ax, Sequence) else ax).figure
    bar = figure.colorbar(image, ax=ax, label=label, pad=0.02, fraction=0.06, aspect=24)
    bar.outline.set_visible(False)
    if facies:
        last = int(np.nanmax(image.get_array().filled(0))) if image.get_array().size else 0
        bar.ax.set_ylim(-0.5, last + 0.5)
        bar.set_ticks(range(last + 1))


def maps(
    panels: Mapping[str, ArrayLike],
    *,
    x_label: str,
    z_label: str,
    value_label: str,
    kind: str = "property",
    difference: tuple[str, str] | None = None,
    columns: int = 4,
    panel: tuple[float, float] = (3.0, 2.7),
    title: str = "",
    **options: Any,
) -> Figure:
    """Return panels [Z, X] side by side with one colour scale, e.g. truth, prediction and baselines.

    `difference=(a, b)` adds the panel a - b with its own symmetric scale. `options` go to `section`.
    """
    arrays = {name: np.asarray(a, dtype=np.float64) for name, a in panels.items()}
    limits = options.pop("limits", None) or colour_limits(list(arrays.values()), kind)
    count = len(arrays) + bool(difference)
    columns = min(columns, count)
    figure, axes = new_figure(-(-count // columns), columns, panel=panel, title=title)
    flat = list(axes.flat)
    labels = {"x_label": x_label, "z_label": z_label}
    with house_look():
        for ax, (name, array) in zip(flat, arrays.items(), strict=False):
            image = section(ax, array, kind=kind, title=name, limits=limits, **labels, **options)
        _colour_bar(flat[: len(arrays)], image, value_label, facies=kind == "facies")
        if difference:
            a, b = difference
            labels |= {"value_label": value_label, "title": f"{a} \N{MINUS SIGN} {b}"}
            section(flat[count - 1], arrays[a] - arrays[b], kind="difference", **labels, **options)
        for ax in flat[count:]:
            ax.set_visible(False)
        for ax in flat[:count]:
            ax.label_outer()
    return figure


def slices(
    volume: ArrayLike,
    *,
    axis_labels: tuple[str, str, str],
    value_label: str,
    kind: str = "seismic",
    at: tuple[int, int, int] | None = None,
    overlay: ArrayLike | None = None,
    overlay_label: str = "",
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    title: str = "",
) -> Figure:
    """Return three cuts through a volume [Z, Y, X]: constant X, constant Y, constant Z.

    `axis_labels` are those of Z, Y, X with units; `at` is the cell (z, y, x) to cut at, default the middle.
    """
    volume = np.asarray(volume)
    at = at or tuple(n // 2 for n in volume.shape)
    limits = colour_limits([volume], kind)
    figure, axes = new_figure(1, 3, panel=(3.9, 3.2), title=title)
    for ax, (fixed, down, right) in zip(axes[0], ((2, 0, 1), (1, 0, 2), (0, 1, 2)), strict=True):
        name = axis_labels[fixed].split(" (")
        place = f"{name[0]} {origin[fixed] + spacing[fixed] * at[fixed]:g}"
        last = ax is axes[0, -1]
        section(
            ax,
            np.take(volume, at[fixed], axis=fixed),
            kind=kind,
            title=place + (f" {name[1].rstrip(')')}" if len(name) > 1 else ""),
            x_label=axis_labels[right],
            z_label=axis_labels[down],
            value_label=value_label if last else "",
            spacing=(spacing[down], spacing[right]),
            origin=(origin[down], origin[right]),
            limits=limits,
            overlay=None if overlay is None else np.take(np.asarray(overlay), at[fixed], axis=fixed),
            overlay_label=overlay_label if last else "",
        )
    return figure


def curves(
    ax: Axes,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    log_y: bool = False,
) -> None:
    """Draw y over x for each name of `series` {name: (x, y)}, with the names' own colours.

    `bands` {name: (low, high)} shades an interval around a curve. NaN leaves a gap.
    """
    styles = series_styles(list(series))
    with house_look():
        for name, (x, y) in series.items():
            x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
            ax.plot(x, y, label=name, marker="o" if x.size == 1 else None, **styles[name])
            if bands and name in bands:
                low, high = (np.asarray(b, dtype=np.float64) for b in bands[name])
                ax.fill_between(x, low, high, color=styles[name]["color"], alpha=0.18, linewidth=0)
        if log_y:
            ax.set_yscale("log")
        _finish(ax, title, x_label, y_label, legend=len(series) > 1)


def precision_recall(
    ax: Axes,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    base_rate: float | None = None,
    title: str = "",
) -> None:
    """Draw precision over recall for each name of `series` {name: (recall, precision)}.

    `base_rate` is the share of positives, the precision of a blind guess, drawn as a thin line.
    """
    curves(
        ax,
        series,
        x_label="recall (share of truth found)",
        y_label="precision (share found true)",
        title=title,
    )
    with house_look():
        if base_rate is not None:
            ax.axhline(base_rate, color="#888888", linewidth=1, zorder=1)
            ax.annotate("blind guess", (0.99, base_rate), va="top", ha="right", fontsize=7, color="#666666")
        ax.set(xlim=(0, 1), ylim=(0, 1.02))


def histogram(
    ax: Axes,
    series: Mapping[str, ArrayLike],
    *,
    x_label: str,
    title: str = "",
    bins: int = 40,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw the share of values in common bins for each name; NaN and infinities are left out."""
    arrays = {name: np.asarray(v, dtype=np.float64).reshape(-1) for name, v in series.items()}
    arrays = {name: v[np.isfinite(v)] for name, v in arrays.items()}
    low, high = limits or colour_limits(list(arrays.values()), "property")
    edges = np.linspace(low, high, bins + 1)
    styles = series_styles(list(arrays))
    with house_look():
        for name, values in arrays.items():
            share = np.histogram(values, edges)[0] / max(values.size, 1)
            ax.stairs(share, edges, label=name, **styles[name])
            if name == "ours":
                ax.stairs(share, edges, fill=True, alpha=0.15, color=OURS)
        _finish(ax, title, x_label, "share of values (-)", legend=len(arrays) > 1)


def _finish(ax: Axes, title: str, x_label: str, y_label: str, *, legend: bool) -> None:
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.grid(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend()
