"""A trained surrogate beside its baselines on held-out simulations: table, JSON, Markdown, figures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.device import peak_memory_bytes
from common.errors import DataError, UserError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.report import Row, format_number, save_rows
from common.run import MachineOptions, describe_run, machine
from simulgen_vae import gallery, metrics
from simulgen_vae.compare import (
    AUTO_ENCODING,
    OURS,
    Bars,
    Method,
    baseline_methods,
    constraint_scores,
    our_methods,
    score_bars,
    score_methods,
    winner_of,
)
from simulgen_vae.config import TrainConfig
from simulgen_vae.config_tools import EvaluateConfig
from simulgen_vae.constraints import constraints_of
from simulgen_vae.contest import POD_GP, TIE
from simulgen_vae.field_data import FieldData
from simulgen_vae.gp import GaussianProcess
from simulgen_vae.model_files import Surrogate, find_model, read_candidates, read_surrogate
from simulgen_vae.pairs import LatentNetPredictor, LatentPredictor
from simulgen_vae.predictor import TrainingSet
from simulgen_vae.preparation import open_data, provenance_of
from simulgen_vae.reduced import reduce_all

CONSTRAINT_ROWS = 20  # rows that constraint errors are taken on


@dataclass
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        methods: by name, ours first; without one that predicts the auto-encoding.
        bars: error bars of what ships, or None.
        constraints: what ours violates, means over some rows.
        basis_floor: mean relative L2 error of encoding and decoding alone.
        numbers: rows of the data set that were scored.
        line: the plain last line.
    """

    methods: dict[str, Method]
    bars: Bars | None
    constraints: metrics.Scores
    basis_floor: float
    numbers: np.ndarray
    line: str

    @property
    def lead(self) -> Method:
        """What the report is about: what ships, or the auto-encoding of a model that predicts nothing."""
        return self.methods.get(OURS) or self.methods[AUTO_ENCODING]


def open_for(surrogate: Surrogate, config: EvaluateConfig) -> FieldData:
    """Open the data set that a surrogate was trained on, or the one named instead.

    Raises:
        DataError: it is another data set than the training's.
    """
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    stored = surrogate.config
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items() if n in known}
    settings = TrainConfig(**{**values, "data": config.data or stored["data_path"]})
    data = open_data(settings)
    found = provenance_of(settings, data, surrogate.split)
    if found != stored["provenance"]:
        data.close()
        raise DataError(
            f"{data.path}: not the data, split and settings of the training (hash {found[:12]}, expected "
            f"{stored['provenance'][:12]}); name the training's data set with --data"
        )
    return data


def as_trained(config: EvaluateConfig, surrogate: Surrogate) -> EvaluateConfig:
    """Return `config` with what it leaves to the training's own flags."""
    stored = surrogate.config
    asked = stored["baselines"] or "none"
    return dataclasses.replace(
        config,
        baselines=asked if config.baselines == "as_trained" else config.baselines,
        recon_iter=config.recon_iter or stored["recon_iter"],
    )


def rows_of(surrogate: Surrogate, data: FieldData, numbers: np.ndarray, seed: int) -> TrainingSet:
    """Return some rows of the data set as predictors take them."""
    params = np.zeros((data.num_samples, 0)) if data.params is None else data.params
    images = (
        torch.from_numpy(data.images[numbers]) if surrogate.uses_images and data.images is not None else None
    )
    return TrainingSet(
        torch.from_numpy(reduce_all(data, surrogate.basis, numbers)),
        torch.from_numpy(params[numbers]),
        surrogate.basis,
        images=images,
        symmetry=data.symmetry,
        grid_shape=data.grid_shape,
        rows=torch.from_numpy(numbers),
        seed=seed,
    )


def evaluate(config: EvaluateConfig, options: MachineOptions, out: Path) -> list[Row]:
    """Score a surrogate; write evaluation.json, evaluation.md, results.json and figures into `out`.

    Raises:
        UserError: `out` cannot be written, or the part has no rows.
        DataError: the model or the data cannot be used.
    """
    require_writable(out)
    path = find_model(config.model)
    with machine(options):
        surrogate = read_surrogate(path)
        config = as_trained(config, surrogate)
        data = open_for(surrogate, config)
        numbers = getattr(surrogate.split, config.part)
        numbers = numbers[: config.num] if config.num else numbers
        if not len(numbers):
            raise UserError(f"--part {config.part}: no rows in this split; choose another part")
        if options.dry_run:
            get_logger().info("%s ships %s; %d rows to score", path, ships_of(surrogate), len(numbers))
            data.close()
            return []
        rows = rows_of(surrogate, data, numbers, options.seed)
        found = compare(surrogate, data, rows, numbers, config, options.seed)
        table = markdown(found)
        results = result_rows(found, f"python scripts/simulgen_vae/evaluate.py --model {path}")
        write_json(out / "evaluation.json", document(found, surrogate, path, options))
        write_text(out / "evaluation.md", table)
        save_rows(out / "results.json", results)
        if config.figures:
            gallery.draw_all(out / "figures", found, surrogate, data, rows, config.field)
        get_logger().info("\n%s\n%s", table, found.line)
        data.close()
    return results


def compare(
    surrogate: Surrogate,
    data: FieldData,
    rows: TrainingSet,
    numbers: np.ndarray,
    config: EvaluateConfig,
    seed: int,
) -> Evaluation:
    """Let every method predict the rows, and score all of them in one pass over the true fields."""
    split, path = surrogate.split, find_model(config.model)
    before = np.sort(np.concatenate([split.train, split.validation]))
    fitted_on = rows_of(surrogate, data, before, seed)
    train = fitted_on.subset(torch.from_numpy(np.searchsorted(before, split.train)))
    fitted = read_candidates(path, surrogate)
    methods = our_methods(surrogate, train, rows, config.recon_iter, seed, fitted)
    for name in {OURS, *fitted} & set(methods):
        title = ships_of(surrogate) if name == OURS else name
        methods[name].fit_seconds = contest_seconds(path.parent, title)
    (methods.get(OURS) or methods[AUTO_ENCODING]).parameters = parameters_of(surrogate)
    names = config.baseline_names if surrogate.predictor is not None else ()
    methods |= baseline_methods(names, fitted_on, rows, surrogate.vae.shape.num_latents)
    floor = score_methods(methods, surrogate, data, numbers)
    bars = None
    calibration = surrogate.calibration
    if calibration is not None and calibration.factor > 0:
        if config.coverage and not math.isclose(config.coverage, calibration.coverage):
            raise UserError(
                f"--coverage {config.coverage:g}: the model is calibrated for {calibration.coverage:g}; "
                "leave the flag out, or train with that coverage"
            )
        bars = score_bars(surrogate, calibration, rows, data, numbers, seed)
    obeyed, limit, lead = [], constraints_of(surrogate), methods.get(OURS) or methods[AUTO_ENCODING]
    for k, number in enumerate(numbers[:CONSTRAINT_ROWS]):
        field = limit(surrogate.basis.decode(lead.c[k])).detach().numpy()
        obeyed.append(constraint_scores(field, data.trajectory(int(number)), data.grid_shape))
    constraints = {name: float(np.mean([o[name] for o in obeyed])) for name in obeyed[0]}
    return Evaluation(
        methods, bars, constraints, float(np.mean(floor)), numbers, last_line(methods, surrogate)
    )


def ships_of(surrogate: Surrogate) -> str:
    """Return the name of what ships, "" when the model predicts nothing."""
    return "" if surrogate.predictor is None else winner_of(surrogate).name


def parameters_of(surrogate: Surrogate) -> int:
    """Return the number of weights of the networks that predict: the predictor's own, conditioner, decoder.

    A Gaussian process alone has none: what was fitted counts, the logarithms of its lengths and noise and the
    logits of its components, the mean of its outputs, and its coefficients alpha = K^-1 (Y - mean). A model
    that predicts nothing is its auto-encoder.
    """
    predictor, vae = surrogate.predictor, surrogate.vae
    if predictor is None:
        return sum(p.numel() for p in vae.parameters())
    parts = list(predictor.modules())
    networks: list[torch.nn.Module] = [predictor]
    if any(isinstance(part, LatentPredictor) for part in parts):
        networks += [vae.decoder, vae.linear]
    if any(isinstance(part, LatentNetPredictor) for part in parts) and surrogate.conditioner is not None:
        networks.append(surrogate.conditioner)
    weights = sum(p.numel() for network in networks for p in network.parameters())
    processes = [part for part in parts if isinstance(part, GaussianProcess)]
    fitted = [v for p in processes for v in (*p.hyper, p.mean, p.alpha)]
    return weights or sum(v.numel() for v in fitted)


def contest_seconds(folder: Path, name: str) -> float:
    """Return the CPU seconds of the winner's training, from guard.json beside the model; NaN without it."""
    try:
        found = json.loads((folder / "guard.json").read_text(encoding="utf-8"))
        return float(next(e["cpu_seconds"] for e in found["candidates"] if e["name"] == name))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return math.nan


def last_line(methods: Mapping[str, Method], surrogate: Surrogate) -> str:
    """Return the plain statement: what ships, and how it stands to the best baseline on these rows."""
    if surrogate.predictor is None:
        error = {name: m.summary["relative_l2"] for name, m in methods.items()}
        oracle = next(name for name in error if name.endswith("_oracle"))
        return (
            "the model was trained without parameters and pictures and predicts nothing; auto-encoding "
            f"leaves {error[AUTO_ENCODING]:.4f}, {error[AUTO_ENCODING] / error[oracle]:.2f} x {oracle} "
            f"{error[oracle]:.4f} (relative L2)"
        )
    ours = methods[OURS].summary["relative_l2"]
    rivals = {
        name: m.summary["relative_l2"]
        for name, m in methods.items()
        if name.startswith("pod") and not name.endswith("_oracle")
    }
    ships, beside, ratio = winner_of(surrogate).name, "", 1.0
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        ratio = ours / rivals[best]
        beside = f", {ratio:.2f} x the best baseline {best} {rivals[best]:.4f}"
    if ships != POD_GP:
        text = f"shipping {ships}"
    elif abs(ratio - 1.0) <= TIE:
        text = "POD+GPR is as good here; shipping it"
    else:  # its own kernel is what tells it from the regressions beside it: as good as those it is not
        text = f"no network was better on held-out runs; shipping {ships}, POD+GPR with two length scales"
    return f"{text} (relative L2 {ours:.4f}{beside})"


def markdown(found: Evaluation) -> str:
    """Return the table of all methods, best mean first, and the error bars below it."""
    lines = [
        "| method | relative L2 mean | median | p95 | max | VRMSE | R2 | fit CPU s | ms/trajectory | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("relative_l2", "relative_l2_median", "relative_l2_p95", "relative_l2_max", "vrmse", "r2")
    order = sorted(found.methods.values(), key=lambda m: m.summary["relative_l2"])
    for method in order:
        summary = method.summary
        values = [_text(summary[n]) for n in names] + [_text(method.fit_seconds), _text(method.ms)]
        title = f"**{method.name}**" if method.name == found.lead.name else method.name
        lines.append("| " + " | ".join([title, *values, method.note or "-"]) + " |")
    lines += ["", f"Encoding and decoding alone leave {format_number(found.basis_floor)}."]
    lines += [largest_error_line(found), constraint_line(found.constraints)]
    if found.bars is not None:
        b = found.bars
        lines.append(
            f"Error bars: {b.coverage:.3f} of all points inside the {b.nominal:g} band, mean width "
            f"{format_number(b.mean_width)}, CRPS {format_number(b.crps)}, factor {b.factor:.2f} calibrated "
            f"over {b.over}."
        )
    elif OURS in found.methods:
        lines.append("Error bars: not calibrated (too few calibration trajectories).")
    else:
        lines.append("Error bars: none, for nothing is predicted.")
    lines += ["", found.line, ""]
    return "\n".join(lines)


def largest_error_line(found: Evaluation) -> str:
    """Return where what ships is furthest from the truth, and its error as the mean over fields."""
    ours = found.lead
    k = int(np.argmax([s["max_error"] for s in ours.scores]))
    worst = ours.scores[k]
    place = f"frame {worst['max_error_frame']:.0f}, node {worst['max_error_node']:.0f}"
    return (
        f"Largest error of {ours.name}: {format_number(worst['max_error'])} at {place}, field "
        f"{worst['max_error_field']:.0f} of row {found.numbers[k]}; relative L2 as the mean over fields "
        f"{format_number(ours.summary['macro_relative_l2'])}."
    )


def constraint_line(scores: metrics.Scores) -> str:
    """Return what ours violates, each beside the truth's own value."""
    pairs = [("Sum over nodes: RMSE", "conserved_rmse", "changes by", "conserved_rms_of_truth")]
    pairs += [("boundary: RMSE", "boundary_rmse", "RMS there", "boundary_rms_of_truth")]
    pairs += [("beyond the truth's bounds by at most", "bound_violation", "range", "range_of_truth")]
    parts = [
        f"{what} {format_number(scores[key])} (the truth's {own} {format_number(scores[other])})"
        for what, key, own, other in pairs
        if key in scores
    ]
    return "; ".join(parts) + "."


def _text(value: float) -> str:
    return "-" if not math.isfinite(value) else format_number(value)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def result_rows(found: Evaluation, command: str) -> list[Row]:
    """Return the measures of what ships beside those of the baselines, for the house's report."""
    ours, what = found.lead, "" if OURS in found.methods else " of auto-encoding"
    rivals = [m for n, m in found.methods.items() if n.startswith("pod") and (what or "_oracle" not in n)]
    rivals += [found.methods["mean_field"]]
    rows = []
    parameters = ours.parameters
    for key, title, better in (
        ("relative_l2", "relative L2, mean", "lower"),
        ("relative_l2_median", "relative L2, median", "lower"),
        ("relative_l2_p95", "relative L2, 95 % quantile", "lower"),
        ("vrmse", "RMSE / std of the truth", "lower"),
    ):
        values = {m.name: _finite(m.summary[key]) for m in rivals}
        value = _finite(ours.summary[key])
        seconds = _finite(ours.fit_seconds)
        title += what
        rows.append(Row("simulgen_vae", title, "-", better, value, values, seconds, parameters, command))
    if found.bars is not None:
        rows.append(
            Row(
                "simulgen_vae",
                f"coverage of the {found.bars.nominal:g} band",
                "-",
                "higher",
                found.bars.coverage,
            )
        )
    return rows


def document(found: Evaluation, surrogate: Surrogate, path: Path, options: MachineOptions) -> dict[str, Any]:
    """Return what evaluation.json holds."""
    bars = found.bars and {
        "coverage": found.bars.coverage,
        "nominal": found.bars.nominal,
        "mean_width": found.bars.mean_width,
        "crps": found.bars.crps,
        "factor": found.bars.factor,
        "over": found.bars.over,
    }
    return {
        "run": describe_run("simulgen_vae", options.seed),
        "model": str(path),
        "ships": ships_of(surrogate),
        "line": found.line,
        "rows": found.numbers.tolist(),
        "basis_floor": found.basis_floor,
        "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
        "error_bars": bars,
        "error_bars_refused": surrogate.calibration.reason if surrogate.calibration else "not calibrated",
        "constraints": found.constraints,
        "methods": {
            name: {
                "summary": m.summary,
                "fit_cpu_seconds": m.fit_seconds,
                "ms_a_trajectory": m.ms,
                "parameters": m.parameters,
                "note": m.note,
                "spread_of_draws": _finite(m.spread),
                "against_time": m.against_time.tolist(),
                "samples": m.scores,
            }
            for name, m in found.methods.items()
        },
    }
