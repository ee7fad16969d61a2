"""Figures of a training: losses, error on validation samples, Kullback-Leibler terms."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from common.figure_style import new_figure, save
from common.figures import curves
from common.log import get_logger

PANELS = {
    "losses": ("loss", ("vae_loss", "conditioner_loss", "end_to_end_loss")),
    "validation": ("relative L2", ("valid_reconstruction_l2", "valid_prediction_l2")),
}
KL = "vae_kl_"  # followed by z or the level


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl in `folder`, [] when there is none."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_training(folder: Path, *, show: bool = False) -> Path | None:
    """Draw what metrics.jsonl says into figures/training.png; show it in a window when asked and possible."""
    records = read_records(folder)
    levels = sorted({name for record in records for name in record if name.startswith(KL)})
    panels = []
    for label, names in [*PANELS.values(), ("KL (nats)", levels)]:
        found = {n: [(r["step"], r[n]) for r in records if r.get(n) is not None] for n in names}
        series = {n: tuple(zip(*points, strict=True)) for n, points in found.items() if points}
        if series:
            panels.append((label, series))
    if not panels:
        return None
    figure, axes = new_figure(1, len(panels), title="training")
    for ax, (label, series) in zip(axes[0], panels, strict=True):
        curves(ax, series, x_label="step", y_label=label, log_y=True)
    path = save(figure, folder / "figures" / "training.png")
    if show:
        _show(path)
    return path


def _show(path: Path) -> None:
    """Open a window with a saved figure; without a display say where it lies."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        get_logger().warning("warning: --plot 0: no display for windows; the figure is in %s", path)
        return
    from PIL import Image

    with Image.open(path) as picture:
        picture.show()
