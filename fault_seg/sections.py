"""Figures of fault_seg: sections through a survey and its attributes, samples of a data set, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import figures
from common.figure_style import house_look
from fault_seg.segy import SegySurvey
from fault_seg.slabs import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Read = Callable[[str, int, int], np.ndarray]
SUMMARY = ("image", "fsem", "dhr", "rgt")  # what summary.png shows of the first section
FAULT_FROM = 0.3  # probability from which the overlay is drawn
STYLES = {
    "fsem": "probability",
    "fstd": "heat",
    "fgap": "heat",
    "fdip": "property",  # folded: 0 and 90 degrees are as far apart as can be
    "fstrike": "angle",
    "rgt": "property",
    "dhr": "seismic",
}
FIXED_LIMITS = {"fsem": (0.0, 1.0), "fstd": (0.0, 0.5), "fgap": (0.0, 1.0), "fdip": (0.0, 90.0)}
LABELS = {
    "image": "amplitude",
    "fsem": "fault probability",
    "fstd": "spread of the probability",
    "fgap": "confidence of the angles (0..1)",
    "fdip": "dip (degrees)",
    "fstrike": "strike (degrees)",
    "rgt": "relative geological time (0..1)",
    "dhr": "amplitude",
}
TITLES = {
    "image": "input",
    "fsem": "faults",
    "fdip": "fault dip",
    "fstrike": "fault strike",
    "dhr": "denoised",
}


def _axes_of(
    volume: Volume,
) -> tuple[tuple[str, str, str], tuple[float, float, float], tuple[float, float, float]]:
    """Return (labels, spacing, origin) of the axes z, y, x."""
    if isinstance(volume, SegySurvey):
        dt = volume.dt_ms
        dy, dx = (float(n[1] - n[0]) if len(n) > 1 else 1.0 for n in (volume.xlines, volume.ilines))
        names = ("time (ms)" if dt else "sample", "crossline", "inline")
        return names, (dt or 1.0, dy, dx), (volume.delay_ms, float(volume.xlines[0]), float(volume.ilines[0]))
    return ("sample", "crossline", "inline"), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


def draw_sections(folder: Path, volume: Volume, read: Read, attributes: Sequence[str]) -> list[Path]:
    """Draw the middle inline, crossline and time slice of a survey with its attributes.

    Args:
        folder: for inline_{k}.png, crossline_{k}.png and timeslice_{k}.png; a line gets one of them.
        volume: the input.
        read: (attribute, x0, x1) -> [n1, n2, k], angles in degrees with NaN off faults.
        attributes: which there are.

    Returns:
        The files drawn.
    """
    n1, n2, n3 = volume.shape
    names, spacing, origin = _axes_of(volume)
    middle = (n1 // 2, n2 // 2, n3 // 2)
    paths = []
    cuts = [("inline", 2, (0, 1)), ("crossline", 1, (0, 2)), ("timeslice", 0, (1, 2))]
    for name, fixed, (down, right) in cuts:
        if volume.shape[down] < 2 or volume.shape[right] < 2:
            continue
        panels = {"image": _cut(lambda _, a, b: volume.read(a, b), "image", n3, fixed, middle)}
        panels |= {a: _cut(read, a, n3, fixed, middle) for a in attributes}
        place = origin[fixed] + spacing[fixed] * middle[fixed]
        figure = draw_panels(
            panels,
            title=f"{names[fixed]} {place:g}",
            labels=(names[down], names[right]),
            spacing=(spacing[down], spacing[right]),
            origin=(origin[down], origin[right]),
        )
        path = folder / f"{name}_{place:g}.png"
        figures.save(figure, path)
        paths.append(path)
        if len(paths) == 1:
            shown = {n: v for n, v in panels.items() if n in SUMMARY}
            figure = draw_panels(
                shown,
                title=f"{volume.path.name}, {names[fixed]} {place:g}",
                labels=(names[down], names[right]),
                spacing=(spacing[down], spacing[right]),
                origin=(origin[down], origin[right]),
            )
            paths.append(folder / "summary.png")
            figures.save(figure, paths[-1])
    return paths


def draw_rose(path: Path, counts: Sequence[int], *, from_north: bool = False) -> None:
    """Draw a rose of strikes: `counts` of fault voxels in equal bins of 0..180 degrees, both ways.

    Angles turn from the inline axis (right) to the crossline axis (up), or clockwise from north.
    """
    share = np.tile(np.asarray(counts, dtype=float) / max(sum(counts), 1), 2)
    width = np.pi / len(counts)
    middle = (np.arange(2 * len(counts)) + 0.5) * width
    figure, _ = figures.new_figure(panel=(3.8, 3.9))
    figure.clear()
    with house_look():
        ax: Any = figure.add_subplot(projection="polar")
        ax.bar(middle, share, width=width, color=figures.OURS, edgecolor="white", linewidth=0.5)
        ax.set_title("strike of fault voxels\n" + ("from north" if from_north else "from the inline axis"))
        if from_north:
            ax.set_theta_zero_location("N")
            ax.set_theta_direction(-1)
        ax.set_yticklabels([])
    figures.save(figure, path)


def _cut(read: Read, name: str, n3: int, fixed: int, middle: tuple[int, int, int]) -> np.ndarray:
    """Return a section of an attribute without holding the whole volume."""
    if fixed == 2:
        return read(name, middle[2], middle[2] + 1)[:, :, 0]
    step = 16
    parts = [np.take(read(name, x, min(x + step, n3)), middle[fixed], axis=fixed) for x in range(0, n3, step)]
    return np.concatenate(parts, axis=1)


def draw_panels(
    panels: Mapping[str, np.ndarray],
    *,
    title: str,
    labels: tuple[str, str],
    spacing: tuple[float, float] = (1.0, 1.0),
    origin: tuple[float, float] = (0.0, 0.0),
) -> Figure:
    """Return a figure with one panel a volume: the input carries the faults, the image the time contours."""
    shown = {name: values for name, values in panels.items() if name != "rgt"}
    columns = min(3, len(shown))
    figure, axes = figures.new_figure(-(-len(shown) // columns), columns, panel=(3.9, 3.1), title=title)
    limits = figures.colour_limits([panels["image"]], "seismic")
    flat = list(axes.flat)
    for ax, (name, values) in zip(flat, shown.items(), strict=False):
        is_image = name in ("image", "dhr")
        figures.section(
            ax,
            values,
            kind=STYLES.get(name, "seismic"),
            title=TITLES.get(name, name),
            z_label=labels[0],
            x_label=labels[1],
            value_label=LABELS[name],
            spacing=spacing,
            origin=origin,
            limits=limits if is_image else FIXED_LIMITS.get(name, (0.0, 180.0)),
            overlay=panels.get("fsem") if name == "image" else None,
            overlay_from=FAULT_FROM,
            contours=panels.get("rgt") if name == "dhr" else None,
        )
    for ax in flat[len(shown) :]:
        ax.set_visible(False)
    return figure


def draw_sample(path: Path, volumes: Mapping[str, np.ndarray], title: str) -> None:
    """Draw three sections of the volumes of one training sample; faults lie over dhr, angles in degrees."""
    rows = []
    shape = volumes["image"].shape
    for name, fixed in (("inline", 2), ("crossline", 1), ("time slice", 0)):
        cut = {n: np.take(v, shape[fixed] // 2, axis=fixed) for n, v in volumes.items()}
        for angle in ("fdip", "fstrike"):
            cut[angle] = np.where(cut["fsem"] > 0.5, cut[angle] * 180, np.nan)
        rows.append((name, cut))
    figure, axes = figures.new_figure(3, 5, panel=(3.2, 2.8), title=title)
    limits = figures.colour_limits([volumes["image"]], "seismic")
    for line, (name, cut) in zip(axes, rows, strict=True):
        down, right = {"inline": "zy", "crossline": "zx", "time slice": "yx"}[name]
        for ax, shown in zip(line, ("image", "dhr", "rgt", "fdip", "fstrike"), strict=True):
            figures.section(
                ax,
                cut[shown],
                kind="angle" if shown == "fdip" else STYLES.get(shown, "seismic"),  # 0 and 180 are one dip
                title=f"{name}: {shown}",
                z_label=f"{down} (voxels)",
                x_label=f"{right} (voxels)",
                value_label=LABELS[shown],
                limits=limits if shown in ("image", "dhr") else None,
                overlay=cut["fsem"] if shown == "dhr" else None,
            )
    figures.save(figure, path)
