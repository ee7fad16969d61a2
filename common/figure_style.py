"""The one look of all figures: palette, colour maps, fonts; making a figure and saving it.

Matplotlib is used through its object interface on the Agg canvas: no display, no global state. It is imported
when the first figure is made. The same data gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by readers with any colour vision; line styles differ as well.
OURS = "#0072B2"
TRUTH = "#222222"
BASELINES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00")
_DASHES = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

# What an array shows decides its colours: (colour map, symmetric about zero).
KINDS = {
    "seismic": ("gray", True),
    "property": ("viridis", False),
    "heat": ("inferno", False),
    "probability": ("magma", False),
    "difference": ("RdBu_r", True),
    "angle": ("twilight", False),
    "facies": ("facies", False),
}
FACIES = ("#2B2B2B", "#F2C14E", "#4C9F9B", "#B5532B", "#7D6BA8", "#9BC53D", "#E8E4D9", "#5B8DB8")

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.fontsize": 8,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "hatch.color": "#c4c4c4",
    "hatch.linewidth": 0.6,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def house_look() -> Iterator[None]:
    """Draw with the house style, whatever the user's own matplotlibrc says, and leave his settings alone."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(
    rows: int = 1, columns: int = 1, *, panel: tuple[float, float] = (3.6, 2.9), title: str = ""
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns]; `panel` is the size of one in inches (width, height)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with house_look():
        size = (panel[0] * columns, panel[1] * rows + (0.3 if title else 0.0))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure, axes


def save(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """Write the figure as PNG, atomically; the bytes depend on what is drawn alone.

    Raises:
        ValueError: `path` does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: figures are written as .png")
    buffer = io.BytesIO()
    with house_look():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())
    return path


def series_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the line style of each name: "ours" and "truth" are fixed, the others follow in sorted order."""
    fixed = {
        "ours": {"color": OURS, "linestyle": "-", "linewidth": 2.4, "zorder": 5},
        "truth": {"color": TRUTH, "linestyle": "-", "linewidth": 1.6, "zorder": 4},
    }
    others = sorted(name for name in names if name not in fixed)
    styles = {
        name: {"color": BASELINES[i % len(BASELINES)], "linestyle": _DASHES[i % len(_DASHES)]}
        for i, name in enumerate(others)
    }
    return {name: fixed.get(name) or styles[name] for name in names}


def colour_limits(arrays: Sequence[np.ndarray], kind: str) -> tuple[float, float]:
    """Return limits that several arrays can share.

    Fixed for probability, angle (0..180 degrees) and facies; symmetric about 0 for seismic and differences;
    else the 1st and 99th percentile.
    """
    finite = np.concatenate([np.asarray(a, dtype=np.float64)[np.isfinite(a)].reshape(-1) for a in arrays])
    if kind == "probability":
        return 0.0, 1.0
    if kind == "angle":
        return 0.0, 180.0
    if kind == "facies":
        return -0.5, len(FACIES) - 0.5
    if finite.size == 0:
        return 0.0, 1.0
    if KINDS[kind][1]:
        top = float(np.percentile(np.abs(finite), 99)) or float(np.abs(finite).max()) or 1.0
        return -top, top
    low, high = (float(v) for v in np.percentile(finite, [1, 99]))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def colour_map(kind: str) -> Any:
    """Return the colour map of a kind; NaN is transparent."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    found = ListedColormap(FACIES) if kind == "facies" else matplotlib.colormaps[KINDS[kind][0]]
    return found.with_extremes(bad=(0, 0, 0, 0))


def plain_scale(name: str) -> Any:
    """Return a colour scale 0..1 that stands for an overlay in a colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), name)
