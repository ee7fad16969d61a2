"""Inference: `load` a model, `predict` in memory, `infer` from one row to millions into files.

B batch, N queries, T frames, M nodes, V fields, r_s spatial modes, n latents.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from common import device as devices
from common import distributed
from common.errors import DataError, UserError
from common.files import require_writable, write_json
from common.log import get_logger
from common.run import MachineOptions, describe_run, machine
from simulgen_vae.config_infer import InferConfig
from simulgen_vae.graph import Model, load
from simulgen_vae.infer_files import BARS, FieldFiles, refuse_existing
from simulgen_vae.infer_jobs import Checks, Job, make_job
from simulgen_vae.model import parameter_count
from simulgen_vae.predictor import Inputs
from simulgen_vae.uncertainty import field_std

MAX_BATCH = 64
ARRAYS_AT_ONCE = 8  # fields of a batch in memory: prediction, bars, draws, copies for the files
FIGURES = 3  # trajectories that are drawn
MEASURED = 20  # trajectories whose constraint errors are taken

__all__ = ["Predicted", "infer", "load", "predict"]


@dataclass(eq=False)
class Predicted:
    """Predictions of a batch, [B, T, M, V] each.

    Attributes:
        fields: physical units, constraints kept.
        std: standard deviation, or None.
        lower, upper: calibrated band, or None.
        c: coefficients [B, r_s, T].
    """

    fields: torch.Tensor
    c: torch.Tensor
    std: torch.Tensor | None = None
    lower: torch.Tensor | None = None
    upper: torch.Tensor | None = None


@torch.no_grad()
def predict(
    model: Model,
    params: np.ndarray | torch.Tensor | None = None,
    images: torch.Tensor | None = None,
    *,
    std: bool = True,
    seed: int = 0,
) -> Predicted:
    """Return the fields of some inputs, with error bars where the model is calibrated.

    Args:
        model: of `load`.
        params: [B, P] physical; None for a model of pictures alone.
        images: [B, 1, 256, 256] in 0..1, or None.
        std: compute error bars.
        seed: of their draws.
    """
    if params is None:
        if images is None:
            raise ValueError("predict: expected params, images or both")
        params = np.zeros((len(images), 0))
    image = None if images is None else images.to(model.device)
    inputs = Inputs(torch.as_tensor(params).float().to(model.device), image)
    c = model.require_graph().predictor(inputs)
    found = Predicted(model.fields(c), c)
    if std:
        add_bars(model, inputs, found, seed)
    return found


@torch.no_grad()
def add_bars(model: Model, inputs: Inputs, found: Predicted, seed: int) -> None:
    """Fill the error bars of `found`; the band needs a calibrated factor."""
    calibration = model.surrogate.calibration
    if calibration is None:
        return
    residual = calibration.residual_std.to(model.device)
    predictor = model.require_graph().predictor
    raw = field_std(predictor, inputs, model.surrogate.basis, residual, seed=seed)
    found.std = model.constraints.of_std(raw)
    if calibration.factor > 0:
        half = calibration.factor * found.std
        # A true field keeps the hard limits, so a band inside them covers no less.
        found.lower = model.constraints(found.fields - half)
        found.upper = model.constraints(found.fields + half)


@dataclass(eq=False)
class Tally:
    """What is counted while predictions are written.

    Attributes:
        predict_ms, total_ms: milliseconds a trajectory of each batch, without and with error bars.
        unlike: queries beyond the training's limits.
        violations: of the constraints asked for, of the first batches.
    """

    predict_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    unlike: int = 0
    violations: list[dict[str, float]] = field(default_factory=list)


def infer(config: InferConfig, options: MachineOptions, out: Path) -> dict[str, Any]:
    """Write the predictions and what belongs to them into `out`; return the summary, also in infer.json.

    Raises:
        UserError: the flags do not fit the model, or `out` cannot be written.
        DataError: the inputs or the model cannot be used, or --on_ood refuse met strange inputs.
    """
    require_writable(out)
    advice = f"use --batch_size {max(1, (config.batch_size or MAX_BATCH) // 2)}"
    with machine(options) as device, devices.explain_out_of_memory(advice):
        if not distributed.is_main():  # streaming is bound by the disk: one process writes
            return {}
        model = load(config.model, device, config)
        job = make_job(config, model, options.seed)
        if config.field >= model.shape[2]:
            raise UserError(f"--field {config.field}: the model has {model.shape[2]} fields")
        size = batch_size(config, model)
        summary = {**_about(model, job), "batch_size": size}
        get_logger().info(
            f"{model.path}: {summary['source']}, {len(job)} trajectories of {model.shape[0]} frames, "
            f"{model.shape[1]} nodes, {model.shape[2]} fields, {summary['parameters']:,} parameters, "
            f"batch {size}"
        )
        checks = Checks(config, model, job)
        if options.dry_run:
            found = _predict_rows(model, job, range(min(size, len(job))), config.std, options)[0]
            get_logger().info(f"fields: {list(found.fields.shape)}")
            return summary
        refuse_existing(out, _file_names(config, job), options.overwrite)
        tally, shown = _write_all(config, options, out, model, job, checks, size)
        summary |= _result(tally, job, options)
        if config.figures:
            from simulgen_vae.infer_figures import draw_predictions

            draw_predictions(out / "figures", model, shown, job.sample_id, config.field)
        write_json(out / "infer.json", summary)
        _say(summary, out, config)
        return summary


def _file_names(config: InferConfig, job: Job) -> list[str]:
    suffix = config.format
    names = ["fields", *(BARS if suffix == "npy" else ())]
    return [f"{name}.{suffix}" for name in names] + (["ood.csv"] if job.queries is not None else [])


def _about(model: Model, job: Job) -> dict[str, Any]:
    surrogate, calibration = model.surrogate, model.surrogate.calibration
    modules = [m for m in (surrogate.predictor, surrogate.conditioner, surrogate.vae) if m is not None]
    return {
        "model": str(model.path),
        "source": surrogate.config["ships"] if job.queries is not None else "the VAE's decoder",
        "num": len(job),
        "parameters": sum(sum(p.numel() for p in m.parameters()) or parameter_count(m) for m in modules),
        "constraints": model.constraints.describe(),
        "coverage": calibration.coverage if calibration and calibration.factor > 0 else None,
        "no_band_because": calibration.reason if calibration else "not calibrated",
    }


def batch_size(config: InferConfig, model: Model) -> int:
    """Return how many trajectories are predicted at a time.

    Raises:
        UserError: not even one fits `--max_memory`.
    """
    frames, nodes, num_fields = model.shape
    each = 4 * frames * nodes * num_fields * ARRAYS_AT_ONCE
    fits = int(config.max_memory * 2**30 // each)
    if config.batch_size:
        return config.batch_size
    if fits < 1:
        raise UserError(
            f"--max_memory {config.max_memory:g}: one trajectory takes {each / 2**30:.2g} GiB; raise it"
        )
    return min(fits, MAX_BATCH)


@torch.no_grad()
def _predict_rows(
    model: Model, job: Job, rows: Sequence[int], std: bool, options: MachineOptions
) -> tuple[Predicted, Inputs | None, float, float]:
    """Return predictions of some rows, their inputs, and seconds without and with error bars."""
    precision = devices.resolve_precision(options.precision, model.device, allow_bf16=False)
    inputs = job.queries.inputs(rows) if job.queries is not None else None
    if inputs is not None:
        image = None if inputs.image is None else inputs.image.to(model.device)
        inputs = Inputs(inputs.params.to(model.device), image)
    started = time.perf_counter()
    with precision.autocast():
        if inputs is not None:
            c = model.require_graph().predictor(inputs)
        else:
            assert job.latents is not None and job.decode is not None
            c = job.decode(job.latents(rows).to(model.device))
    found = Predicted(model.fields(c.float()), c.float())
    devices.synchronize(model.device)
    quick = time.perf_counter() - started
    if not std or inputs is None:
        return found, inputs, quick, quick
    add_bars(model, inputs, found, options.seed)
    devices.synchronize(model.device)
    return found, inputs, quick, time.perf_counter() - started


def _write_all(
    config: InferConfig,
    options: MachineOptions,
    out: Path,
    model: Model,
    job: Job,
    checks: Checks,
    size: int,
) -> tuple[Tally, list[dict[str, np.ndarray]]]:
    """Write every prediction; return what was counted, and the first few for the figures."""
    bars = _bars_to_write(config, model, job)
    shape = (len(job), *model.shape)
    others: dict[str, tuple[tuple[int, ...], Any]] = {}
    if config.write_latents:
        others["latents"] = ((len(job), model.surrogate.vae.shape.num_latents), np.float32)
    picture = job.queries.images([0]) if job.queries is not None else None
    if picture is not None:
        others["images"] = ((len(job), *picture.shape[1:]), np.uint8)
    tally, shown = Tally(), []
    with FieldFiles(out, config.format, shape, bars, others) as files:
        table = files.open_text("ood.csv", Checks.HEADER) if job.queries is not None else None
        for first in range(0, len(job), size):
            rows = range(first, min(first + size, len(job)))
            found, inputs, quick, whole = _predict_rows(model, job, rows, bool(bars), options)
            tally.predict_ms.append(1000 * quick / len(rows))
            tally.total_ms.append(1000 * whole / len(rows))
            arrays = {n: _numpy(getattr(found, n)) for n in ("fields", *bars)}
            latents = model.latents(found.c) if inputs is not None or config.write_latents else None
            _require_finite(arrays["fields"], job.sample_id[first])
            images = job.queries.images(rows) if "images" in others and job.queries is not None else None
            files.write(first, {**arrays, "latents": _numpy(latents), "images": images})
            _count(tally, table, checks, job, rows, latents, model, found, inputs)
            if len(shown) < FIGURES:
                shown += [{n: v[k] for n, v in arrays.items() if v is not None} for k in range(len(rows))]
                del shown[FIGURES:]
        files.describe(model, job.sample_id, job.queries.params if job.queries else None, options.seed)
    return tally, shown


def _bars_to_write(config: InferConfig, model: Model, job: Job) -> tuple[str, ...]:
    """Return the names of the error bars that there will be; says why some are missing."""
    calibration = model.surrogate.calibration
    if not config.std or job.queries is None:
        return ()
    if calibration is None or calibration.factor <= 0:
        reason = calibration.reason if calibration else "the model is not calibrated"
        get_logger().warning("warning: no lower and upper: %s", reason)
        return ("std",) if calibration else ()
    return BARS


def _numpy(values: torch.Tensor | None) -> np.ndarray | None:
    return None if values is None else values.detach().float().cpu().numpy()


def _require_finite(fields: np.ndarray | None, first_id: str) -> None:
    if fields is not None and not np.isfinite(fields).all():
        raise DataError(
            f"sample {first_id} or one after it: the prediction is NaN or infinite, expected finite values; "
            "check the inputs, or train the model again"
        )


def _count(
    tally: Tally,
    table: IO[str] | None,
    checks: Checks,
    job: Job,
    rows: range,
    latents: torch.Tensor | None,
    model: Model,
    found: Predicted,
    inputs: Inputs | None,
) -> None:
    if table is not None and job.queries is not None:
        ids = job.sample_id[rows.start : rows.stop]
        lines = checks.lines(ids, job.queries.params[rows.start : rows.stop], _numpy(latents))
        table.writelines(f"{line}\n" for line, _ in lines)
        tally.unlike += sum(flag for _, flag in lines)
    if len(tally.violations) < MEASURED:
        params = inputs.params if inputs is not None and inputs.params.shape[1] else None
        few = slice(0, MEASURED)
        limits = model.constraints.violations(found.fields[few], None if params is None else params[few])
        if limits:
            tally.violations.append(limits)


def _result(tally: Tally, job: Job, options: MachineOptions) -> dict[str, Any]:
    keys = tally.violations[0] if tally.violations else {}
    steady = slice(1, None) if len(tally.predict_ms) > 1 else slice(None)  # the first call warms up
    return {
        "ms_a_trajectory": statistics.median(tally.predict_ms[steady]),
        "ms_with_error_bars": statistics.median(tally.total_ms[steady]),
        "unlike_the_training": tally.unlike if job.queries is not None else None,
        "violations": {k: max(v[k] for v in tally.violations) for k in keys},
        "run": describe_run("simulgen_vae", options.seed),
    }


def _say(summary: dict[str, Any], out: Path, config: InferConfig) -> None:
    log = get_logger()
    where = out / ("fields.h5" if config.format == "h5" else "fields.npy")
    bars = (
        "" if summary["ms_with_error_bars"] == summary["ms_a_trajectory"] else " and {:.3g} with error bars"
    )
    log.info(
        f"{where}: {summary['num']} trajectories, {summary['ms_a_trajectory']:.3g} ms each"
        + bars.format(summary["ms_with_error_bars"])
    )
    if summary["unlike_the_training"]:
        log.warning(
            "warning: %d of %d inputs are unlike those of the training; see %s",
            summary["unlike_the_training"],
            summary["num"],
            out / "ood.csv",
        )
    for name, value in summary["violations"].items():
        log.info(f"{name}: {value:.3g}")
