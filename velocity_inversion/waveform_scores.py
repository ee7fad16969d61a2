"""How well sections explain the gathers, and what waveform refinement makes of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.log import get_logger
from common.report import Row
from velocity_inversion.config_tools import EvaluateConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.misfit import relative_misfit
from velocity_inversion.refine import RefineSettings, observed_traces, refine
from velocity_inversion.sections import draw_gathers, draw_refined
from velocity_inversion.simulate import default_simulation, simulate

OURS = "ours"


@torch.no_grad()
def waveform_misfits(sections: Mapping[str, np.ndarray], test: ShotDataset, count: int) -> dict[str, float]:
    """Return the mean of ||F(v) - d|| / ||d|| over the first `count` samples for each method.

    Args:
        sections: method -> velocities, km/s [N, Z, X].
        test: whose gathers are explained.
        count: samples to simulate.
    """
    simulation = default_simulation(test.source.survey)
    found: dict[str, list[float]] = {name: [] for name in sections}
    for i in range(min(count, len(test))):
        observed = observed_traces(test.source.read_gathers(test.rows[i])[0], simulation)
        batch = torch.from_numpy(np.stack([vp[i] for vp in sections.values()]).astype(np.float32))
        for name, simulated in zip(sections, simulate(batch, simulation), strict=True):
            found[name].append(relative_misfit(simulated, observed))
    return {name: float(np.mean(values)) for name, values in found.items()}


def misfit_row(first: Row, misfits: Mapping[str, float], count: int) -> Row:
    """Return the row of the waveform misfits."""
    others = {name: value for name, value in misfits.items() if not name.startswith(OURS)}
    measure = f"waveform misfit, {count} sample{'s' if count > 1 else ''}"
    return replace(first, measure=measure, unit="-", ours=misfits[OURS], baselines=others)


def refinement(
    config: EvaluateConfig, sections: np.ndarray, truths: np.ndarray, test: ShotDataset, out: Path
) -> dict[str, list[float]]:
    """Return MAE (m/s) and misfit before and after waveform refinement of the first samples; draw some."""
    survey = test.source.survey
    simulation = default_simulation(survey)
    names = ("mae_before", "mae_after", "misfit_before", "misfit_after", "cpu_s")
    table: dict[str, list[float]] = {name: [] for name in names}
    for i in range(min(config.refine_samples, len(test))):
        started = time.process_time()
        start, truth = sections[i], truths[i]
        observed = observed_traces(test.source.read_gathers(test.rows[i])[0], simulation)
        done = refine(torch.from_numpy(start), observed, simulation, RefineSettings(iterations=config.refine))
        after = done.vp.numpy()
        seconds = time.process_time() - started
        errors = [1000 * float(np.abs(section - truth).mean()) for section in (start, after)]
        values = (*errors, done.start_misfit, done.misfit, seconds)
        for name, value in zip(names, values, strict=True):
            table[name].append(value)
        if i < config.figures:
            draw_refined(out / f"figures/refined_{i}_section.png", truth, start, after, survey)
            shot = survey.num_shots // 2
            with torch.no_grad():
                traces = simulate(done.vp[None], simulation, shots=(shot,))[0, 0].numpy()
            path = out / f"figures/refined_{i}_shot.png"
            draw_gathers(path, observed[shot].numpy(), traces, simulation.dt_s, shot)
    means = ", ".join(f"{name} {np.mean(values):.4g}" for name, values in table.items())
    fell = sum(a < b for a, b in zip(table["misfit_after"], table["misfit_before"], strict=True))
    get_logger().info(
        f"refinement, {config.refine} iterations: the misfit fell on {fell} of {len(table['cpu_s'])} "
        f"samples; means: {means}"
    )
    return table


def refinement_rows(
    first: Row, table: dict[str, list[float]], sections: Mapping[str, np.ndarray], truths: np.ndarray
) -> list[Row]:
    """Return the rows of the refined samples: MAE beside that of the methods on them, misfits that fell."""
    count = len(table["mae_after"])
    told = f"{count} sample{'s' if count > 1 else ''}"
    others = {
        name: 1000 * float(np.abs(found[:count] - truths[:count]).mean())
        for name, found in sections.items()
        if not name.startswith(OURS)
    }
    others["the network alone"] = float(np.mean(table["mae_before"]))
    error = replace(
        first,
        measure=f"velocity MAE, refined, {told}",
        ours=float(np.mean(table["mae_after"])),
        baselines=others,
        seconds=round(float(np.mean(table["cpu_s"])), 1),
    )
    fell = np.less(table["misfit_after"], table["misfit_before"])
    misfit = replace(error, unit="-", ours=float(np.mean(table["misfit_after"])))
    started = {"the network alone": float(np.mean(table["misfit_before"]))}
    return [
        error,
        replace(misfit, measure=f"waveform misfit, refined, {told}", baselines=started),
        replace(
            misfit,
            measure=f"samples whose misfit refinement lowered, {told}",
            unit="share",
            better="higher",
            ours=float(fell.mean()),
            baselines={},
        ),
    ]
