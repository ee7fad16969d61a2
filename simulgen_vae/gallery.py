"""Figures of an evaluation: strips, profiles, error against time, predicted against true, bars, latents, KL.

Letters: n rows, T frames, M nodes, V fields, L latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import figures
from common.figure_style import OURS as OUR_COLOUR
from common.figure_style import house_look
from simulgen_vae import metrics
from simulgen_vae.compare import OURS, Bars, Method, winner_of
from simulgen_vae.constraints import constraints_of
from simulgen_vae.field_data import FieldData
from simulgen_vae.losses import kl_residual, kl_standard
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.model_files import Surrogate
from simulgen_vae.pairs import latents_of
from simulgen_vae.predictor import TrainingSet
from simulgen_vae.uncertainty import field_std

if TYPE_CHECKING:
    from simulgen_vae.evaluate import Evaluation

STRIP_FRAMES = 5
ACTIVE = 0.01  # variance of the posterior mean above which a latent is active (Burda et al. 2016)
MAX_PARAMS = 6


def draw_all(
    folder: Path, found: Evaluation, surrogate: Surrogate, data: FieldData, rows: TrainingSet, field: int
) -> list[Path]:
    """Draw every figure that the data allows; return the files."""
    field = min(field, data.num_fields - 1)
    errors = [s["relative_l2"] for s in found.lead.scores]
    order = np.argsort(errors)
    picked = {"best": int(order[0]), "median": int(order[len(order) // 2]), "worst": int(order[-1])}
    made = []
    for name, k in picked.items():
        made.append(sample_figures(folder, name, k, found, surrogate, data, rows, field))
    made.append(draw_error_against_time(folder / "error_against_time.png", found.methods, data.time))
    made.append(draw_bars(folder / "baselines.png", found.methods))
    made.append(draw_scatter(folder / "predicted_against_true.png", found, surrogate, data, field))
    if found.bars is not None:
        made.append(draw_coverage(folder / "coverage.png", found.bars))
    made.append(draw_latents(folder / "latents.png", surrogate.vae, rows, data.param_names))
    made.append(draw_kl(folder / "kl.png", surrogate.vae, rows.c))
    return made


def sample_figures(
    folder: Path,
    name: str,
    k: int,
    found: Evaluation,
    surrogate: Surrogate,
    data: FieldData,
    rows: TrainingSet,
    field: int,
) -> Path:
    """Draw the strip (regular grids) and the profiles of one sample; return the last file."""
    number = int(found.numbers[k])
    truth = data.trajectory(number)[..., field]
    std = None
    with torch.no_grad():
        limit = constraints_of(surrogate)
        prediction = limit(surrogate.basis.decode(found.lead.c[k])).numpy()[..., field]
        if surrogate.calibration is not None:
            inputs = rows.subset(torch.tensor([k])).inputs()
            residual = surrogate.calibration.residual_std
            std = field_std(winner_of(surrogate), inputs, surrogate.basis, residual)[0, ..., field].numpy()
    error = found.lead.scores[k]["relative_l2"]
    title = f"{name} of {len(found.numbers)}: sample {data.sample_id[number]}, relative L2 {error:.3f}"
    title += "" if found.lead.name == OURS else ", auto-encoded"
    label = f"{data.field_names[field]} ({data.units[field] or '-'})"
    if data.grid_shape is not None:
        path = folder / f"strip_{name}.png"
        draw_strip(path, truth, prediction, std, data.time, data.grid_shape, title, label)
    factor = surrogate.calibration.factor if surrogate.calibration else 0.0
    half = None if std is None else max(factor, 1.0) * std
    return draw_profiles(folder / f"profiles_{name}.png", truth, prediction, half, data.time, title, label)


def draw_strip(
    path: Path,
    truth: np.ndarray,
    prediction: np.ndarray,
    std: np.ndarray | None,
    time: np.ndarray,
    grid_shape: tuple[int, int],
    title: str,
    label: str,
) -> Path:
    """Draw field, prediction, error and std [T, M] at some frames; the first three share one scale."""
    frames = np.unique(np.linspace(0, len(truth) - 1, STRIP_FRAMES + 1).round().astype(int)[1:])
    panels = {"field": truth, "prediction": prediction, "error": prediction - truth}
    kind = "difference" if truth.min() < 0 else "heat"
    limits = figures.colour_limits([truth[frames], prediction[frames]], kind)
    if std is not None:
        panels["std"] = std
    figure, axes = figures.new_figure(len(panels), len(frames), panel=(2.7, 1.55), title=title)
    for row, (name, values) in enumerate(panels.items()):
        # An error keeps the field's scale, only centred, so that its size is seen as it is.
        reach = max(abs(limits[0]), abs(limits[1]))
        scale = {"error": (-reach, reach), "std": (0.0, reach)}.get(name, limits)
        colours = {"error": "difference", "std": "heat"}.get(name, kind)
        for column, frame in enumerate(frames):
            figures.section(
                axes[row, column],
                values[frame].reshape(grid_shape),
                kind=colours,
                title=f"{name}, t = {time[frame]:.3g}" if row == 0 else (name if column == 0 else ""),
                x_label="x (cells)",
                z_label="y (cells)",
                value_label=label if column == len(frames) - 1 else "",
                limits=scale,
            )
            axes[row, column].label_outer()
    return figures.save(figure, path)


def draw_profiles(
    path: Path,
    truth: np.ndarray,
    prediction: np.ndarray,
    half_width: np.ndarray | None,
    time: np.ndarray,
    title: str,
    label: str,
) -> Path:
    """Draw three nodes over time and three frames over nodes, with the band where there is one."""
    nodes = np.argsort(truth.var(axis=0))[[-1, -max(1, truth.shape[1] // 4), -max(1, truth.shape[1] // 2)]]
    frames = np.unique(np.linspace(0, len(truth) - 1, 4).round().astype(int)[1:])
    figure, axes = figures.new_figure(2, 3, panel=(3.6, 2.4), title=title)
    for ax, node in zip(axes[0], nodes, strict=True):
        series = {"truth": (time, truth[:, node]), OURS: (time, prediction[:, node])}
        bands = _bands(prediction[:, node], None if half_width is None else half_width[:, node])
        figures.curves(ax, series, x_label="time", y_label=label, title=f"node {node}", bands=bands)
    for k, ax in enumerate(axes[1]):
        frame = frames[min(k, len(frames) - 1)]
        place = np.arange(truth.shape[1])
        if truth.shape[1] > 512:  # a piece of the mesh; all of it would be one blur
            place = place[truth.shape[1] // 2 :][:256]
        series = {"truth": (place, truth[frame, place]), OURS: (place, prediction[frame, place])}
        bands = _bands(prediction[frame, place], None if half_width is None else half_width[frame, place])
        name = f"t = {time[frame]:.3g}"
        figures.curves(ax, series, x_label="node", y_label=label, title=name, bands=bands)
    return figures.save(figure, path)


def _bands(centre: np.ndarray, half: np.ndarray | None) -> dict[str, Any] | None:
    return None if half is None else {OURS: (centre - half, centre + half)}


def draw_error_against_time(path: Path, methods: Mapping[str, Method], time: np.ndarray) -> Path:
    """Draw the mean error of each frame for ours and the best baselines."""
    names = [next(iter(methods)), *_best_rivals(methods, 4)]
    figure, axes = figures.new_figure(1, 1, panel=(5.2, 3.4))
    series = {name: (time, methods[name].against_time) for name in names}
    title = "error against time, mean over held-out samples"
    figures.curves(axes[0, 0], series, x_label="time", y_label="error / RMS size of the field", title=title)
    return figures.save(figure, path)


def _best_rivals(methods: Mapping[str, Method], count: int) -> list[str]:
    rivals = [n for n in methods if n.startswith("pod") or n == "mean_field"]
    return sorted(rivals, key=lambda n: methods[n].summary["relative_l2"])[:count]


def draw_bars(path: Path, methods: Mapping[str, Method]) -> Path:
    """Draw the mean relative L2 of every method, best on top, the median as a tick."""
    order = sorted(methods, key=lambda n: -methods[n].summary["relative_l2"])
    means = [methods[n].summary["relative_l2"] for n in order]
    medians = [methods[n].summary["relative_l2_median"] for n in order]
    figure, axes = figures.new_figure(1, 1, panel=(6.0, 0.8 + 0.26 * len(order)))
    ax = axes[0, 0]
    with house_look():
        colours = [OUR_COLOUR if n == next(iter(methods)) else "#b8c4cc" for n in order]
        ax.barh(order, means, color=colours)
        ax.plot(medians, order, "|", color="#222222", markersize=9)
        for place, value in enumerate(means):
            ax.annotate(f" {value:.3g}", (value, place), va="center", fontsize=7)
        ax.set(xlabel="relative L2, mean (tick: median)", title="held-out samples")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(0, 1.15 * max(means))
    return figures.save(figure, path)


def draw_scatter(path: Path, found: Evaluation, surrogate: Surrogate, data: FieldData, field: int) -> Path:
    """Draw predicted against true values of points spread over the held-out samples."""
    true_values, guesses, limit = [], [], constraints_of(surrogate)
    for k, number in enumerate(found.numbers[:20]):
        truth = data.trajectory(int(number))[..., field].reshape(-1)
        with torch.no_grad():
            guess = limit(surrogate.basis.decode(found.lead.c[k]))[..., field].flatten().numpy()
        step = max(1, truth.size // 2000)
        true_values.append(truth[::step])
        guesses.append(guess[::step])
    x, y = np.concatenate(true_values), np.concatenate(guesses)
    figure, axes = figures.new_figure(1, 1, panel=(4.0, 3.8))
    ax = axes[0, 0]
    with house_look():
        ax.plot([x.min(), x.max()], [x.min(), x.max()], color="#888888", linewidth=1)
        ax.plot(x, y, ".", markersize=1.5, alpha=0.35, color=OUR_COLOUR)
        name = f"{data.field_names[field]} ({data.units[field] or '-'})"
        ax.set(xlabel=f"true {name}", ylabel=f"predicted {name}", title=f"R2 {metrics.r2(y, x):.4f}")
        ax.grid(True)
    return figures.save(figure, path)


def draw_coverage(path: Path, bars: Bars) -> Path:
    """Draw the observed against the nominal share of points inside the bands."""
    levels = np.linspace(0.02, 0.98, 49)
    x, y = metrics.coverage_curve(bars.ratios, bars.factor, bars.nominal, levels)
    figure, axes = figures.new_figure(1, 1, panel=(3.8, 3.4))
    series = {"exact": (x, x), OURS: (x, y), "calibrated level": ([bars.nominal], [bars.coverage])}
    title = f"{bars.coverage:.3f} inside the {bars.nominal:g} band"
    figures.curves(axes[0, 0], series, x_label="nominal share", y_label="observed share", title=title)
    return figures.save(figure, path)


def draw_latents(path: Path, vae: HierarchicalVae, rows: TrainingSet, names: tuple[str, ...]) -> Path:
    """Draw the first two principal components of the latents, coloured by each parameter."""
    zeta = latents_of(vae, rows.c).double()
    centred = zeta - zeta.mean(0)
    _, sizes, axes_of = torch.linalg.svd(centred, full_matrices=False)
    place = (centred @ axes_of[:2].T).numpy()
    if place.shape[1] < 2:
        place = np.pad(place, ((0, 0), (0, 2 - place.shape[1])))
    share = (sizes.square() / sizes.square().sum().clamp_min(1e-30)).numpy()
    params = rows.params.numpy()
    shown = min(params.shape[1], MAX_PARAMS)
    columns = min(3, max(1, shown))
    figure, axes = figures.new_figure(-(-max(1, shown) // columns), columns, panel=(3.0, 2.6))
    with house_look():
        for k, ax in enumerate(axes.flat):
            ax.set_visible(k < max(1, shown))
            colour = params[:, k] if k < shown else None
            cmap = None if colour is None else "viridis"
            points = ax.scatter(place[:, 0], place[:, 1], c=colour, s=14, cmap=cmap)
            title = names[k] if k < shown else "latents"
            ax.set(title=title, xlabel=f"PC 1 ({share[0]:.0%})", ylabel="PC 2")
            if colour is not None:
                figure.colorbar(points, ax=ax, pad=0.02)
    return figures.save(figure, path)


def draw_kl(path: Path, vae: HierarchicalVae, c: torch.Tensor) -> Path:
    """Draw the KL of every latent in nats, and the variance of its posterior mean beside the active line."""
    with torch.no_grad():
        out = vae(c)
        main = kl_standard(out.mu, out.logvar).mean(0)
        levels = kl_residual(out.shift, out.step, out.prior_logvar).mean(0).flatten()
        kl = torch.cat([main, levels]).numpy()
        variance = latents_of(vae, c).var(0, correction=0).numpy()
    figure, axes = figures.new_figure(2, 1, panel=(6.4, 2.1))
    number = np.arange(len(kl))
    with house_look():
        active = variance > ACTIVE
        axes[0, 0].bar(number, kl, color=np.where(active, OUR_COLOUR, "#c4c4c4"))
        axes[0, 0].set(ylabel="KL (nats)", title=f"{int(active.sum())} of {len(kl)} latents active")
        axes[1, 0].bar(number, variance, color=np.where(active, OUR_COLOUR, "#c4c4c4"))
        axes[1, 0].axhline(ACTIVE, color="#888888", linewidth=1)
        axes[1, 0].set(xlabel="latent", ylabel="variance of the mean", yscale="log")
    return figures.save(figure, path)
