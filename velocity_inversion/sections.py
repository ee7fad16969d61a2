"""Figures of velocity_inversion: sections, gathers, misfits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import figures
from velocity_inversion.geometry import Survey

VELOCITY = "velocity (km/s)"
PROFILES = 3


def draw_sections(
    path: Path,
    vp: np.ndarray,
    truth: np.ndarray | None,
    half_width: np.ndarray,
    survey: Survey,
    bounds: tuple[float, float],
) -> None:
    """Draw truth, prediction, error and half-width [Z, X] (km/s); below, three depth profiles with bands."""
    panels = [] if truth is None else [("truth", truth, bounds)]
    panels.append(("prediction", vp, bounds))
    if truth is not None:
        widest = max(float(np.abs(vp - truth).max()), 1e-3)
        panels.append(("error", vp - truth, (-widest, widest)))
    panels.append(("half-width", half_width, (0.0, max(float(half_width.max()), 1e-3))))
    figure, axes = figures.new_figure(2, max(len(panels), PROFILES), panel=(3.1, 2.6))
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
    for number, ax in enumerate(axes[1][:PROFILES]):
        _draw_profile(ax, number, vp, truth, half_width, survey, bounds)
    for ax in (*axes[0][len(panels) :], *axes[1][PROFILES:]):
        ax.set_visible(False)
    figures.save(figure, path)


def _draw_profile(
    ax: Any,
    number: int,
    vp: np.ndarray,
    truth: np.ndarray | None,
    half_width: np.ndarray,
    survey: Survey,
    bounds: tuple[float, float],
) -> None:
    """Draw the velocity over depth at one of three places, with the half-widths as a band."""
    column = vp.shape[1] * (number + 1) // (PROFILES + 1)
    depth = np.arange(len(vp)) * survey.dz_m
    series = {"ours": (depth, vp[:, column])}
    if truth is not None:
        series["truth"] = (depth, truth[:, column])
    band = vp[:, column] - half_width[:, column], vp[:, column] + half_width[:, column]
    title = f"x = {column * survey.dx_m:g} m"
    figures.curves(ax, series, x_label="depth (m)", y_label=VELOCITY, title=title, bands={"ours": band})
    ax.set_ylim(bounds[0] - 0.5, bounds[1] + 0.5)
    if number:
        ax.set_ylabel("")
        if (legend := ax.get_legend()) is not None:
            legend.remove()


def draw_gathers(path: Path, observed: np.ndarray, simulated: np.ndarray, dt_s: float, shot: int) -> None:
    """Draw one shot [T, R]: recorded, simulated through the prediction, and their difference."""
    figure, axes = figures.new_figure(1, 3, panel=(3.0, 3.2))
    limit = float(np.quantile(np.abs(observed), 0.95)) or 1.0
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


def draw_refined(
    path: Path, truth: np.ndarray | None, before: np.ndarray, after: np.ndarray, survey: Survey
) -> None:
    """Draw truth (if known), the section before and after a refinement, and the change, [Z, X] in km/s."""
    panels = {} if truth is None else {"truth": truth}
    panels |= {"before refinement": before, "after refinement": after}
    other = "truth" if truth is not None else "before refinement"
    figure = figures.maps(
        panels,
        x_label="x (m)",
        z_label="depth (m)",
        value_label=VELOCITY,
        difference=("after refinement", other),
        spacing=(survey.dz_m, survey.dx_m),
        limits=survey.v_bounds_km_s,
    )
    figures.save(figure, path)


def draw_validation(
    path: Path, predictions: np.ndarray, truths: np.ndarray, survey: Survey, bounds: tuple[float, float]
) -> None:
    """Draw validation samples of a training side by side, [N, Z, X] in km/s: truth above, prediction below.

    Two panels in all, because a training draws often.
    """
    figure, axes = figures.new_figure(2, 1, panel=(2.0 * len(truths), 2.2))
    for ax, title, sections in zip(axes[:, 0], ("truth", "prediction"), (truths, predictions), strict=True):
        figures.section(
            ax,
            np.concatenate(list(sections), axis=-1),
            title=f"{title}, {bounds[0]:g} (dark) to {bounds[1]:g} km/s",
            x_label=f"x (m), {len(sections)} samples side by side",
            z_label="depth (m)",
            spacing=(survey.dz_m, survey.dx_m),
            limits=bounds,
        )
        for number in range(1, len(sections)):
            ax.axvline((number * sections.shape[-1] - 0.5) * survey.dx_m, color="white", linewidth=2)
        ax.label_outer()
    figures.save(figure, path, dpi=70)


def draw_coverage(path: Path, nominal: Sequence[float], measured: Sequence[float]) -> None:
    """Draw the share of cells within the half-widths over the share that was asked for."""
    figure, axes = figures.new_figure(1, 1, panel=(3.6, 3.2))
    series = {"ours": (nominal, measured), "exact": ([0, 1], [0, 1])}
    figures.curves(axes[0, 0], series, x_label="nominal coverage", y_label="measured coverage")
    figures.save(figure, path)
