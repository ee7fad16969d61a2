"""Figures of predictions without a truth beside them: strips on grids, profiles elsewhere.

T frames, M nodes, V fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common import figures
from simulgen_vae.graph import Model

STRIP_FRAMES = 5


def draw_predictions(
    folder: Path, model: Model, shown: Sequence[Mapping[str, np.ndarray]], ids: Sequence[str], field: int
) -> list[Path]:
    """Draw the first predictions, each {fields, std, lower, upper: [T, M, V]} as far as there are any."""
    time = model.surrogate.arrays["time"].cpu().numpy()
    grid = model.config["grid_shape"]
    unit = model.config["units"][field]
    label = f"{model.config['field_names'][field]} ({unit or '-'})"
    made = []
    for name, arrays in zip(ids, shown, strict=False):
        values = {key: v[..., field] for key, v in arrays.items()}
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        if grid is not None:
            path = folder / f"strip_{safe}.png"
            made.append(draw_strip(path, values, time, (grid[0], grid[1]), f"prediction {name}", label))
        made.append(draw_curves(folder / f"profiles_{safe}.png", values, time, f"prediction {name}", label))
    return made


def draw_strip(
    path: Path,
    values: Mapping[str, np.ndarray],
    time: np.ndarray,
    grid_shape: tuple[int, int],
    title: str,
    label: str,
) -> Path:
    """Draw prediction and standard deviation [T, M] at some frames; the latter has a scale of its own."""
    field = values["fields"]
    frames = np.unique(np.linspace(0, len(field) - 1, STRIP_FRAMES + 1).round().astype(int)[1:])
    panels = {"prediction": field} | ({"std": values["std"]} if "std" in values else {})
    figure, axes = figures.new_figure(len(panels), len(frames), panel=(2.7, 1.6), title=title)
    for row, (name, array) in enumerate(panels.items()):
        signed = name == "prediction" and array.min() < -0.1 * array.max()
        kind = "difference" if signed else "heat"
        limits = figures.colour_limits([array[frames]], kind)
        limits = (0.0, limits[1]) if name == "std" else limits
        for column, frame in enumerate(frames):
            figures.section(
                axes[row, column],
                array[frame].reshape(grid_shape),
                kind=kind,
                title=f"{name}, t = {time[frame]:.3g}" if column == 0 or row == 0 else "",
                x_label="x (cells)",
                z_label="y (cells)",
                value_label=label if column == len(frames) - 1 else "",
                limits=limits,
            )
            axes[row, column].label_outer()
    return figures.save(figure, path)


def draw_curves(
    path: Path, values: Mapping[str, np.ndarray], time: np.ndarray, title: str, label: str
) -> Path:
    """Draw the three nodes that change most in three thirds of the mesh over time, with the band."""
    field = values["fields"]
    thirds = np.array_split(np.arange(field.shape[1]), min(3, field.shape[1]))
    nodes = [int(part[np.argmax(field[:, part].var(axis=0))]) for part in thirds]
    figure, axes = figures.new_figure(1, len(nodes), panel=(3.6, 2.6), title=title)
    for ax, node in zip(axes[0], nodes, strict=True):
        band = None
        if "lower" in values:
            band = {"ours": (values["lower"][:, node], values["upper"][:, node])}
        elif "std" in values:
            half = 2 * values["std"][:, node]
            band = {"ours": (field[:, node] - half, field[:, node] + half)}
        name = f"node {node}"
        figures.curves(
            ax, {"ours": (time, field[:, node])}, x_label="time", y_label=label, title=name, bands=band
        )
    return figures.save(figure, path)
