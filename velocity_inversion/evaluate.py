"""An ensemble beside its baselines on held-out samples: table, JSON, figures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import DataError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.report import Row, markdown_table, save_rows, table
from common.run import MachineOptions, command_line_of, describe_run, machine
from velocity_inversion.baselines import depth_trend
from velocity_inversion.bench_diffusion import diffusion_rows, judge_diffusion
from velocity_inversion.bench_overfit import BUDGET_CPU_S, bench_overfit
from velocity_inversion.bench_refine import bench_refine
from velocity_inversion.config_tools import EvaluateConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Ensemble, require_survey
from velocity_inversion.equal_time import train_both, trainings
from velocity_inversion.evaluate_rows import Scores, member_rows, score_rows
from velocity_inversion.infer import half_width_factor, load
from velocity_inversion.metrics import by_family, coverage, family_summaries, mape, section_scores, summary
from velocity_inversion.predictions import Tta, predict_members
from velocity_inversion.robustness import Degraded, changes, ratio_table, robustness
from velocity_inversion.sections import draw_coverage, draw_sections
from velocity_inversion.sources import Source, open_source
from velocity_inversion.waveform_scores import (
    OURS,
    misfit_row,
    refinement,
    refinement_rows,
    waveform_misfits,
)

# fields that a stored command tells otherwise (what --equal_time trained is named as models), or not at all
TOLD = ("model_path", "test_data_path", "figures", "equal_time")
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class _Compared:
    """Sections [N, Z, X] (km/s) of every method, the truth, our deviations, time a sample, members' MAPE."""

    test: ShotDataset
    truth: np.ndarray
    sections: dict[str, np.ndarray]
    sigma: np.ndarray
    half_width: np.ndarray
    cpu_s: float
    members: dict[str, Any]
    models: dict[str, Ensemble]


def evaluate(config: EvaluateConfig, options: MachineOptions, out: Path) -> list[Row]:
    """Score the model and its baselines; write evaluation.json, evaluation.md, results.json and figures.

    With `equal_time` both networks are trained below `out` first; with `bench` one thing is measured alone.

    Raises:
        UserError: `out` cannot be written.
        DataError: models or data cannot be used.
    """
    require_writable(out)
    if config.bench:
        if not options.dry_run and config.bench == "refine":
            bench_refine(options, out)
        elif not options.dry_run:
            bench_overfit(options, out, budget_cpu_s=config.equal_time or BUDGET_CPU_S)
        return []
    if config.equal_time:
        if options.dry_run:
            for name, (training, _) in trainings(config, options, out).items():
                get_logger().info(f"would train {name}: {training.model}, {training.max_cpu_s:g} CPU s")
            return []
        config = train_both(config, options, out)
    with machine(options) as device:
        ensemble = load(config.model_path)
        test = ShotDataset(open_source(config.test_data_path), ensemble.preprocessing)
        if not test.source.has_truth:
            raise DataError(f"{config.test_data_path}: no velocities, expected samples with truth")
        for model in (ensemble, *map(load, config.baseline_model)):
            require_survey(model, test.source.survey, config.test_data_path)
        if options.dry_run:
            get_logger().info(f"{len(test)} held-out samples, {len(ensemble.configs)} members")
            return []
        compared = _compare(config, ensemble, test, device)
        return _report(config, options, out, ensemble, compared, device)


def _compare(
    config: EvaluateConfig, ensemble: Ensemble, test: ShotDataset, device: torch.device
) -> _Compared:
    """Predict the held-out samples with every method."""
    truth = np.stack([test[i]["vp"][0].numpy() for i in range(len(test))])
    started = time.process_time()
    predictions = predict_members(ensemble, test, device)
    v, sigma = predictions.combined(ensemble.weights)
    seconds = (time.process_time() - started) / len(test)
    found = {OURS: v.numpy()}
    flips = predict_members(ensemble, test, device, tta=Tta(flips=True))
    found["ours, flip averaged"] = flips.combined(ensemble.weights)[0].numpy()
    if "mean" in config.baselines:
        found["mean section"] = np.broadcast_to(ensemble.mean_section.numpy(), truth.shape)
    if "depth_trend" in config.baselines:
        train = ShotDataset(open_source(config.train_data_path), ensemble.preprocessing, training=True)
        if train[0]["gathers"].shape != test[0]["gathers"].shape:
            raise DataError(
                f"{config.train_data_path}: gathers {list(train[0]['gathers'].shape)} [S, T, R], "
                f"those of {config.test_data_path} are {list(test[0]['gathers'].shape)}; the ridge needs "
                "equal ones, leave depth_trend out of --baselines"
            )
        found["depth trend"] = depth_trend(train, test)
    models = {OURS: ensemble}
    for path in config.baseline_model:
        _add_model(path, found, models, test.source, truth, device)
    half = sigma.numpy() * half_width_factor(ensemble, "plain", ensemble.calibration.coverage)
    members = {
        "each": [mape(m.numpy(), truth) for m in predictions.velocities],
        "uniform": mape(predictions.velocities.mean(0).numpy(), truth),
        "weighted": mape(v.numpy(), truth),
    }
    return _Compared(test, truth, found, sigma.numpy(), half, seconds, members, models)


def _add_model(
    path: str,
    found: dict[str, np.ndarray],
    models: dict[str, Ensemble],
    source: Source,
    truth: np.ndarray,
    device: torch.device,
) -> None:
    """Predict with a further model; of several InversionNets the one with the lower MAE counts."""
    other = load(path)
    own = ShotDataset(source, other.preprocessing)  # each model sees gathers as it was trained on
    sections = predict_members(other, own, device).combined(other.weights)[0].numpy()
    if other.configs[0].model == "inversionnet":
        name = "InversionNet"
        if name in found and np.abs(found[name] - truth).mean() <= np.abs(sections - truth).mean():
            return
    else:
        place = other.path.resolve().parts
        name = place[-3] if len(place) > 3 else other.path.stem
        name = name if name not in found else f"{name} {len(found)}"
    found[name], models[name] = sections, other


def _report(
    config: EvaluateConfig,
    options: MachineOptions,
    out: Path,
    ensemble: Ensemble,
    compared: _Compared,
    device: torch.device,
) -> list[Row]:
    """Score, refine, disturb, draw, and write everything."""
    truth, sections, test = compared.truth, compared.sections, compared.test
    bounds = ensemble.bounds
    scores = {
        name: [section_scores(p, g, bounds) for p, g in zip(found, truth, strict=True)]
        for name, found in sections.items()
    }
    for p, g, half, row in zip(sections[OURS], truth, compared.half_width, scores[OURS], strict=True):
        row |= {"coverage": coverage(p, g, half), "half_width_km_s": float(half.mean())}
    families = {name: by_family(rows, test.source.families, "mae") for name, rows in scores.items()}
    document: dict[str, Any] = _document(scores, ensemble, compared, options)
    document["mae_by_family"] = families
    rows = score_rows(scores, ensemble, compared.cpu_s, command_of(config, options))
    rows += member_rows(rows[0], compared.members, ensemble.path)
    if config.misfit_samples:
        document["waveform_misfit"] = waveform_misfits(sections, test, config.misfit_samples)
        rows.append(misfit_row(rows[0], document["waveform_misfit"], min(config.misfit_samples, len(test))))
    if config.refine and config.refine_samples:
        parts = sections[OURS], truth, test, out
        document["refinement"] = refinement(config, *parts)
        rows += refinement_rows(rows[0], document["refinement"], sections, truth)
    if config.diffusion_samples:
        judged = ensemble, test, sections[OURS], compared.sigma, config.diffusion_samples, device
        document["diffusion_m_s"] = judge_diffusion(*judged, options.seed)
        rows += diffusion_rows(rows[0], document["diffusion_m_s"], min(config.diffusion_samples, len(test)))
    if config.robustness:
        clean = {name: float(np.mean([r["mae"] for r in scores[name]])) for name in compared.models}
        document["mae_over_clean"] = robustness(compared.models, test, truth, clean, device)
        ratios = ratio_table(document["mae_over_clean"]).rstrip()
        get_logger().info(f"MAE over that of clean gathers\n{ratios}")
        document["coverage"]["noise, 20 dB"] = _noisy_coverage(ensemble, compared, device)
    write_json(out / "evaluation.json", document)
    write_text(out / "evaluation.md", markdown_table(rows))
    save_rows(out / "results.json", rows)
    _draw_coverage(out, ensemble, compared)
    order = np.argsort([row["mae"] for row in scores[OURS]])
    for name, place in (("best", 0), ("median", len(order) // 2), ("worst", -1))[: config.figures]:
        i = int(order[place])
        parts = sections[OURS][i], truth[i], compared.half_width[i]
        draw_sections(out / f"figures/{name}.png", *parts, test.source.survey, bounds)
    get_logger().info("\n" + markdown_table(rows))
    get_logger().info("velocity MAE (m/s) by family\n" + _family_table(families).rstrip())
    if len(ensemble.configs) > 1:
        get_logger().info(f"MAPE of the members and their means: {compared.members}")
    get_logger().info(f"coverage {document['coverage']}")
    return rows


def _document(
    scores: Scores, ensemble: Ensemble, compared: _Compared, options: MachineOptions
) -> dict[str, Any]:
    """Return what evaluation.json says of every method, in all and by family."""
    families = compared.test.source.families
    return {
        "run": describe_run("velocity_inversion", options.seed),
        "model": str(ensemble.path),
        "sha256": ensemble.sha256,
        "samples": len(compared.test),
        "cpu_seconds_a_sample": compared.cpu_s,
        "coverage": {
            "nominal": ensemble.calibration.coverage,
            "measured": coverage(compared.sections[OURS], compared.truth, compared.half_width),
        },
        "mean_half_width_km_s": float(compared.half_width.mean()),
        "mape_members": compared.members,
        "methods": {name: summary(rows) for name, rows in scores.items()},
        "by_family": {name: family_summaries(rows, families) for name, rows in scores.items()},
    }


def _noisy_coverage(ensemble: Ensemble, compared: _Compared, device: torch.device) -> float:
    """Return the coverage on gathers with band-limited noise 20 dB below the signal."""
    survey = compared.test.source.survey
    name = "noise, 20 dB"
    change = changes(compared.test.preprocessing.interval(survey), survey.wavelet.peak_hz)[name]
    noisy = Degraded(compared.test, name, change)
    v, sigma = predict_members(ensemble, noisy, device).combined(ensemble.weights)
    factor = half_width_factor(ensemble, "plain", ensemble.calibration.coverage)
    return coverage(v.numpy(), compared.truth, sigma.numpy() * factor)


def _draw_coverage(out: Path, ensemble: Ensemble, compared: _Compared) -> None:
    """Draw measured over nominal coverage; other levels are scaled as a Gaussian's."""
    sections = compared.sections[OURS]
    measured = [
        coverage(sections, compared.truth, compared.sigma * half_width_factor(ensemble, "plain", level))
        for level in LEVELS
    ]
    draw_coverage(out / "figures/coverage.png", LEVELS, measured)


def _family_table(families: dict[str, dict[str, float]]) -> str:
    """Return the mean absolute errors by family and method as a Markdown table."""
    methods = list(families)
    rows = [[family, *(f"{families[m][family]:.0f}" for m in methods)] for family in families[OURS]]
    return table(["family", *methods], rows)


def command_of(config: EvaluateConfig, options: MachineOptions) -> str:
    """Return the command that repeats the figures of an evaluation: every flag that changes them."""
    given = ["--model_path", config.model_path, "--test_data_path", config.test_data_path]
    script = "scripts/velocity_inversion/evaluate.py"
    return command_line_of(script, config, options, given=given, leave_out=TOLD)
