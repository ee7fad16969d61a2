"""Figures of velocity_inversion: sections, gathers, misfits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import figures
from velocity_inversion.geometry import Survey

VELOCITY = "velocity (km/s)"


def draw_sections(
    path: Path,
    vp: np.ndarray,
    truth: np.ndarray | None,
    half_width: np.ndarray,
    survey: Survey,
    bounds: tuple[float, float],
) -> None:
    """Draw truth, prediction, error and half-width [Z, X] (km/s), and a depth profile with its band."""
    panels = [] if truth is None else [("truth", truth, bounds)]
    panels.append(("prediction", vp, bounds))
    if truth is not None:
        widest = max(float(np.abs(vp - truth).max()), 1e-3)
        panels.append(("error", vp - truth, (-widest, widest)))
    panels.append(("half-width", half_width, (0.0, max(float(half_width.max()), 1e-3))))
    figure, axes = figures.new_figure(1, len(panels) + 1, panel=(3.0, 2.9))
    for ax, (title, values, limits) in zip(axes[0], panels, strict=False):
        figures.section(
            ax,
            values,
            kind="difference" if title == "error" else "property",
            title=title,
            x_label="x (m)",
            z_label="depth (m)",
            value_label="km/s",
            spacing=(survey.dz_m, survey.dx_m),
            limits=limits,
        )
    _draw_profiles(axes[0, -1], vp, truth, half_width, survey)
    figures.save(figure, path)


def _draw_profiles(
    ax: figures.Axes, vp: np.ndarray, truth: np.ndarray | None, half_width: np.ndarray, survey: Survey
) -> None:
    column = vp.shape[1] // 2
    depth = np.arange(len(vp)) * survey.dz_m
    ax.fill_betweenx(
        depth, vp[:, column] - half_width[:, column], vp[:, column] + half_width[:, column], alpha=0.3
    )
    ax.plot(vp[:, column], depth, label="prediction")
    if truth is not None:
        ax.plot(truth[:, column], depth, color="black", label="truth")
    ax.invert_yaxis()
    ax.set(title=f"x = {column * survey.dx_m:g} m", xlabel=VELOCITY, ylabel="depth (m)")
    ax.legend()


def draw_gathers(path: Path, observed: np.ndarray, simulated: np.ndarray, dt_s: float, shot: int) -> None:
    """Draw one shot [T, R]: recorded, simulated through the prediction, and their difference."""
    figure, axes = figures.new_figure(1, 3, panel=(3.0, 3.2))
    limit = float(np.quantile(np.abs(observed), 0.98)) or 1.0
    panels = (("recorded", observed), ("simulated", simulated), ("difference", simulated - observed))
    for ax, (title, values) in zip(axes[0], panels, strict=True):
        figures.section(
            ax,
            values,
            kind="seismic",
            title=f"shot {shot}: {title}",
            x_label="receiver",
            z_label="time (s)",
            spacing=(dt_s, 1.0),
            limits=(-limit, limit),
        )
        ax.label_outer()
    figures.save(figure, path)


def draw_misfit(path: Path, history: Sequence[float]) -> None:
    """Draw the waveform misfit of every iterate of a refinement."""
    figure, axes = figures.new_figure(1, 1, panel=(4.2, 3.0))
    axes[0, 0].plot(np.arange(len(history)), history, marker=".")
    axes[0, 0].set(xlabel="iteration", ylabel="relative waveform misfit", ylim=(0, None))
    figures.save(figure, path)
