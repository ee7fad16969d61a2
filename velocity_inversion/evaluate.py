"""An ensemble beside its baselines on held-out samples: table, JSON, figures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import DataError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.report import Row, markdown_table, save_rows
from common.run import MachineOptions, describe_run, machine
from velocity_inversion.baselines import depth_trend
from velocity_inversion.config_tools import EvaluateConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.infer import half_width_factor, load
from velocity_inversion.member import Member
from velocity_inversion.metrics import by_family, coverage, section_scores, summary
from velocity_inversion.model import parameter_count
from velocity_inversion.predict import Tta, predict_members
from velocity_inversion.refine import RefineSettings, observed_traces, refine
from velocity_inversion.sections import draw_sections
from velocity_inversion.simulate import default_simulation
from velocity_inversion.sources import open_source

# measure -> (what to call it, unit, which is better)
MEASURES = {
    "mae": ("velocity MAE", "m/s", "lower"),
    "mape": ("velocity MAPE", "-", "lower"),
    "rmse": ("velocity RMSE", "m/s", "lower"),
    "ssim": ("SSIM", "-", "higher"),
}


def evaluate(config: EvaluateConfig, options: MachineOptions, out: Path) -> list[Row]:
    """Score the model and its baselines; write evaluation.json, evaluation.md, results.json and figures.

    Raises:
        UserError: `out` cannot be written.
        DataError: models or data cannot be used.
    """
    require_writable(out)
    with machine(options) as device:
        ensemble = load(config.model_path)
        test = ShotDataset(open_source(config.test_data_path), ensemble.preprocessing)
        if not test.source.has_truth:
            raise DataError(f"{config.test_data_path}: no velocities, expected samples with truth")
        train = ShotDataset(open_source(config.train_data_path), ensemble.preprocessing, training=True)
        if options.dry_run:
            get_logger().info(f"{len(test)} held-out samples, {len(train)} for the ridge")
            return []
        truth = np.stack([test[i]["vp"][0].numpy() for i in range(len(test))])
        started = time.process_time()
        v, sigma = predict_members(ensemble, test, device).combined(ensemble.weights)
        seconds = (time.process_time() - started) / len(test)
        found: dict[str, np.ndarray] = {"ours": v.numpy()}
        found["ours, flip averaged"] = (
            predict_members(ensemble, test, device, tta=Tta(flips=True)).combined(ensemble.weights)[0].numpy()
        )
        found["mean section"] = np.broadcast_to(ensemble.mean_section.numpy(), truth.shape)
        found["depth trend"] = depth_trend(train, test)
        for path in config.baseline_model:
            other = load(path)
            name = "InversionNet" if other.configs[0].model == "inversionnet" else Path(path).parts[-3]
            found[name] = predict_members(other, test, device).combined(other.weights)[0].numpy()
        bounds = ensemble.bounds
        scores = {
            name: [section_scores(p, g, bounds) for p, g in zip(sections, truth, strict=True)]
            for name, sections in found.items()
        }
        half = sigma.numpy() * half_width_factor(ensemble, "plain", ensemble.calibration.coverage)
        document: dict[str, Any] = {
            "run": describe_run("velocity_inversion", options.seed),
            "model": str(ensemble.path),
            "sha256": ensemble.sha256,
            "samples": len(test),
            "cpu_seconds_a_sample": seconds,
            "coverage": {
                "nominal": ensemble.calibration.coverage,
                "measured": coverage(v.numpy(), truth, half),
            },
            "mean_half_width_km_s": float(half.mean()),
            "methods": {name: summary(rows) for name, rows in scores.items()},
            "mae_by_family": {name: by_family(r, test.source.families, "mae") for name, r in scores.items()},
        }
        if config.refine:
            document["refinement"] = _refined(config, test, found["ours"], truth)
        rows = _rows(scores, ensemble, seconds, config)
        write_json(out / "evaluation.json", document)
        write_text(out / "evaluation.md", markdown_table(rows))
        save_rows(out / "results.json", rows)
        order = np.argsort([row["mae"] for row in scores["ours"]])
        for name, place in (("best", 0), ("median", len(order) // 2), ("worst", -1))[: config.figures]:
            i = int(order[place])
            survey = test.source.survey
            draw_sections(out / f"figures/{name}.png", found["ours"][i], truth[i], half[i], survey, bounds)
        get_logger().info("\n" + markdown_table(rows))
        get_logger().info(f"coverage {document['coverage']}")
        return rows


def _refined(
    config: EvaluateConfig, test: ShotDataset, start: np.ndarray, truth: np.ndarray
) -> dict[str, list[float]]:
    """Return MAE (m/s) and misfit before and after waveform refinement of the first samples."""
    simulation = default_simulation(test.source.survey)
    names = ("mae_before", "mae_after", "misfit_before", "misfit_after", "cpu_s")
    table: dict[str, list[float]] = {name: [] for name in names}
    for i in range(min(config.refine_samples, len(test))):
        started = time.process_time()
        observed = observed_traces(test.source.read_gathers(test.rows[i])[0], simulation)
        settings = RefineSettings(iterations=config.refine)
        done = refine(torch.from_numpy(start[i]), observed, simulation, settings)
        after = 1000 * float(np.abs(done.vp.numpy() - truth[i]).mean())
        values = (1000 * float(np.abs(start[i] - truth[i]).mean()), after, done.start_misfit, done.misfit)
        for name, value in zip(names, (*values, time.process_time() - started), strict=True):
            table[name].append(value)
    means = ", ".join(f"{name} {np.mean(values):.4g}" for name, values in table.items())
    get_logger().info(f"refinement, {config.refine} iterations, {len(table['cpu_s'])} samples: {means}")
    return table


def _rows(
    scores: dict[str, list[dict[str, float]]], ensemble: Ensemble, seconds: float, config: EvaluateConfig
) -> list[Row]:
    command = (
        f"python scripts/velocity_inversion/evaluate.py --model_path {config.model_path} "
        f"--test_data_path {config.test_data_path}"
    )
    count = sum(parameter_count(Member(c, ensemble.survey)) for c in ensemble.configs)
    means = {
        name: {m: float(np.mean([r[m] for r in rows])) for m in MEASURES} for name, rows in scores.items()
    }
    rows = []
    for measure, (name, unit, better) in MEASURES.items():
        others = {other: values[measure] for other, values in means.items() if not other.startswith("ours")}
        ours = means["ours"][measure]
        rows.append(
            Row("velocity_inversion", name, unit, better, ours, others, round(seconds, 4), count, command)
        )
    averaged = means["ours, flip averaged"]["mae"]
    plain = {"without averaging": means["ours"]["mae"]}
    return [*rows, replace(rows[0], measure="velocity MAE, flip averaged", ours=averaged, baselines=plain)]
