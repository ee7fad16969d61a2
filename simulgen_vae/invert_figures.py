"""Figures of an inversion: the searches, the parameters with their spread, the field beside its target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common import figures
from common.figure_style import OURS, house_look
from simulgen_vae.graph import Model
from simulgen_vae.invert_search import Found, Unknowns, sensor_values

if TYPE_CHECKING:
    from simulgen_vae.invert import Target

MAX_BARS = 24


def draw_inversion(
    folder: Path, model: Model, unknowns: Unknowns, target: Target, found: Found
) -> list[Path]:
    """Draw search.png, and field.png or sensors.png."""
    made = [draw_search(folder / "search.png", unknowns, found)]
    with torch.no_grad():
        c = unknowns.coefficients(unknowns.physical(found.x[None]))
        if target.sensors is not None:
            read = sensor_values(model, target.sensors, c)[0].cpu().numpy()
            made.append(draw_sensors(folder / "sensors.png", target, read))
        elif target.field is not None:
            field = model.fields(c)[0].cpu().numpy()
            made.append(draw_field(folder / "field.png", model, target, field))
    return made


def draw_search(path: Path, unknowns: Unknowns, found: Found) -> Path:
    """Draw the objective of every start against the step, and the unknowns with one standard deviation."""
    figure, axes = figures.new_figure(1, 2, panel=(4.6, 3.2))
    steps = np.arange(len(found.trace))
    best = int(found.objective.argmin())
    with house_look():
        ax = axes[0, 0]
        for k, line in enumerate(found.trace.T.numpy()):
            chosen = k == best
            colour, width = (OURS, 2.2) if chosen else ("#b8c4cc", 1.0)
            ax.plot(steps, line, color=colour, linewidth=width, zorder=3 if chosen else 2)
        ax.set(xlabel="step", ylabel="objective", yscale="log", title="search from every start, best blue")
        ax.grid(True)
        ax = axes[0, 1]
        shown = min(len(found.x), MAX_BARS)
        x, std = found.x[:shown].numpy(), found.covariance.diagonal()[:shown].clamp_min(0).sqrt().numpy()
        place = np.arange(shown)
        low, high = unknowns.low[:shown].numpy(), unknowns.high[:shown].numpy()
        ax.hlines(place, low, high, color="#dde3e7", linewidth=6, label="box", zorder=1)
        ax.errorbar(x, place, xerr=std, fmt="o", color=OURS, capsize=3, label="found, 1 sd", zorder=3)
        ax.set_yticks(place, unknowns.names[:shown])
        ax.set(
            xlabel="standard deviations from the training's mean", title="unknowns", ylim=(shown - 0.4, -0.6)
        )
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)
    return figures.save(figure, path)


def draw_field(path: Path, model: Model, target: Target, field: np.ndarray) -> Path:
    """Draw target, found field and difference at three frames (grids), or three frames over the nodes."""
    assert target.field is not None
    wanted, given = target.field.numpy()[..., 0], field[..., 0]
    time = model.surrogate.arrays["time"].cpu().numpy()
    frames = np.unique(np.linspace(0, len(wanted) - 1, 4).round().astype(int)[-3:])
    grid = model.config["grid_shape"]
    label = f"{model.config['field_names'][0]} ({model.config['units'][0] or '-'})"
    if grid is None:
        figure, axes = figures.new_figure(1, len(frames), panel=(3.6, 2.6), title=target.name)
        for ax, frame in zip(axes[0], frames, strict=True):
            nodes = np.arange(wanted.shape[1])
            series = {"truth": (nodes, wanted[frame]), "ours": (nodes, given[frame])}
            title = f"t = {time[frame]:.3g}"
            figures.curves(ax, series, x_label="node", y_label=label, title=title)
        return figures.save(figure, path)
    signed = wanted.min() < -0.1 * wanted.max()
    kind = "difference" if signed else "heat"
    limits = figures.colour_limits([wanted[frames]], kind)
    reach = max(abs(limits[0]), abs(limits[1]))
    figure, axes = figures.new_figure(3, len(frames), panel=(3.0, 1.7), title=target.name)
    panels = {"target": wanted, "found": given, "difference": given - wanted}
    for row, (name, values) in enumerate(panels.items()):
        for column, frame in enumerate(frames):
            is_difference = name == "difference"
            figures.section(
                axes[row, column],
                values[frame].reshape(grid[0], grid[1]),
                kind="difference" if is_difference else kind,
                title=f"{name}, t = {time[frame]:.3g}",
                x_label="x (cells)",
                z_label="y (cells)",
                value_label=label if column == len(frames) - 1 else "",
                limits=(-reach, reach) if is_difference else limits,
            )
            axes[row, column].label_outer()
    return figures.save(figure, path)


def draw_sensors(path: Path, target: Target, read: np.ndarray) -> Path:
    """Draw what the field found would read against the readings, with their uncertainty."""
    assert target.sensors is not None
    value, sigma = target.sensors.value.numpy(), target.sensors.sigma.numpy()
    figure, axes = figures.new_figure(1, 1, panel=(4.2, 3.8))
    ax = axes[0, 0]
    with house_look():
        ends = [min(value.min(), read.min()), max(value.max(), read.max())]
        ax.plot(ends, ends, color="#888888", linewidth=1)
        ax.errorbar(value, read, xerr=sigma, fmt="o", markersize=4, color=OURS, capsize=2)
        ax.set(xlabel="reading", ylabel="prediction at the sensor", title=f"{len(value)} readings")
        ax.grid(True)
    return figures.save(figure, path)
