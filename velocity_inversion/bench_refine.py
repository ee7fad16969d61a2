"""What waveform refinement alone can do: from smoothed truth, without any network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from common.files import write_json
from common.log import get_logger
from common.report import Row, save_rows
from common.run import MachineOptions, describe_run, machine
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.refine import RefineSettings, refine
from velocity_inversion.simulate import default_simulation, simulate
from velocity_inversion.synthetic import family_of, make_section

MODELS = 4
SIGMA_CELLS = 6.0
ITERATIONS = (20, 50)
FAMILIES = ("layered", "curved")


def bench_refine(
    options: MachineOptions, out: Path, iterations: tuple[int, ...] = ITERATIONS, models: int = MODELS
) -> dict[str, Any]:
    """Refine smoothed sections; write results.json, and bench_refine.json, which is returned (MAE in m/s)."""
    survey = openfwi_survey()
    simulation = default_simulation(survey)
    rows = []
    with machine(options) as device:
        for index in range(models):
            section = make_section((70, 70), family_of(FAMILIES, index), options.seed, "bench refine", index)
            truth = torch.from_numpy(section.vp)
            start = torch.from_numpy(ndimage.gaussian_filter(section.vp, SIGMA_CELLS, mode="nearest"))
            with torch.no_grad():
                observed = simulate(truth[None].to(device), simulation)[0]
            row: dict[str, Any] = {"family": section.family, "mae_start": _mae(start, truth)}
            for count in iterations:
                began = time.process_time()
                done = refine(start.to(device), observed, simulation, RefineSettings(iterations=count))
                row[f"mae_{count}"] = _mae(done.vp.cpu(), truth)
                row[f"misfit_{count}"], row["misfit_start"] = done.misfit, done.start_misfit
                row[f"cpu_s_{count}"] = time.process_time() - began
            rows.append(row)
            get_logger().info(", ".join(f"{k} {v:.4g}" if k != "family" else v for k, v in row.items()))
    means = {name: float(np.mean([r[name] for r in rows])) for name in rows[0] if name != "family"}
    ratios = {str(count): means[f"mae_{count}"] / means["mae_start"] for count in iterations}
    result = {
        "run": describe_run("velocity_inversion", options.seed),
        "smoothing_cells": SIGMA_CELLS,
        "rows": rows,
        "means": means,
        "mae_over_start": ratios,
    }
    write_json(out / "bench_refine.json", result)
    save_rows(out / "results.json", [_row(means, count) for count in iterations])
    get_logger().info(f"MAE over start: {', '.join(f'{r:.2f} after {n}' for n, r in ratios.items())}")
    return result


def _row(means: dict[str, float], count: int) -> Row:
    measure = f"velocity MAE after {count} iterations from smoothed truth"
    baselines = {"smoothed truth": means["mae_start"]}
    return Row("velocity_inversion", measure, "m/s", "lower", means[f"mae_{count}"], baselines)


def _mae(section: torch.Tensor, truth: torch.Tensor) -> float:
    return 1000 * float((section - truth).abs().mean())
