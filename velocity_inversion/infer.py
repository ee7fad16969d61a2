"""From gathers to sections: load an ensemble, predict, refine, and write everything a user takes away."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from common import device as devices
from common import distributed
from common.device import resolve_precision
from common.errors import DataError, UserError
from common.files import atomic_path, make_folder, require_writable, write_json, write_text
from common.log import get_logger
from common.run import MachineOptions, describe_run, machine
from velocity_inversion.after import Finisher, Prediction, draw_prediction, misfit_rows
from velocity_inversion.arrays import from_km_s
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Ensemble, load_ensemble, require_survey
from velocity_inversion.exports import write_hdf5, write_profiles, write_segy
from velocity_inversion.metrics import section_scores
from velocity_inversion.predictions import Tta, predict_members
from velocity_inversion.refiner import open_refiner, read_known
from velocity_inversion.simulate import default_simulation
from velocity_inversion.sources import Source, open_source
from velocity_inversion.submission import require_ids, write_archive

CHUNK_BYTES = 64 << 20  # predictions held at once


def load(path: str | Path) -> Ensemble:
    """Load a trained ensemble; architecture, statistics and geometry come from the file.

    Raises:
        DataError: no such file, of another package or kind, or broken.
    """
    return load_ensemble(path)


def tta_of(config: InferConfig, seed: int) -> Tta:
    """Return the test-time augmentation that the flags ask for."""
    noise = config.tta_noise or (2 if config.use_tta else 0)
    return Tta(config.tta_flip or config.use_tta, noise, config.tta_noise_level, seed)


def half_width_factor(ensemble: Ensemble, mode: str, coverage: float) -> float:
    """Return q: half-width = q sigma. Another coverage than the calibrated one is scaled as a Gaussian's."""
    from scipy.stats import norm

    q = ensemble.calibration.conformal.get(mode, norm.ppf(0.5 + ensemble.calibration.coverage / 2))
    return float(q * norm.ppf(0.5 + coverage / 2) / norm.ppf(0.5 + ensemble.calibration.coverage / 2))


def predict(
    ensemble: Ensemble,
    dataset: ShotDataset,
    device: torch.device,
    config: InferConfig,
    *,
    seed: int = 0,
    precision: str = "auto",
) -> Iterator[Prediction]:
    """Yield the prediction of every sample in order, in chunks that keep memory bounded."""
    survey = dataset.source.survey
    cells = math.prod(survey.model_shape_zx)
    chunk = max(config.batch_size, CHUNK_BYTES // (8 * cells * len(ensemble.configs)))
    tta = tta_of(config, seed)
    factor = half_width_factor(ensemble, tta.mode, config.coverage)
    numeric = resolve_precision(precision, device)
    simulation = default_simulation(survey, config.grid_m, on_gpu=devices.is_cuda(device))
    refiner = open_refiner(config, ensemble, device) if config.use_diffusion else None
    known = read_known(config, survey)
    finisher = Finisher(config, ensemble, dataset, simulation, device, seed, refiner, known)
    simulated = set(misfit_rows(config, len(dataset), seed))
    for first in range(0, len(dataset), chunk):
        rows = range(first, min(first + chunk, len(dataset)))
        started = time.perf_counter()
        found = predict_members(
            ensemble,
            Subset(dataset, list(rows)),
            device,
            batch_size=config.batch_size,
            tta=tta,
            precision=numeric,
        )
        v, sigma = found.combined(ensemble.weights, config.ensemble_reduce)
        each = (time.perf_counter() - started) / len(rows)
        for row, section, deviation in zip(rows, v, sigma, strict=True):
            begun = time.perf_counter()
            one = Prediction(dataset.ids[row], section.numpy(), deviation.numpy(), deviation.numpy() * factor)
            finisher.finish(one, row, simulated=row in simulated)
            one.seconds = each + time.perf_counter() - begun
            yield one


def infer(config: InferConfig, options: MachineOptions, out: Path) -> list[dict[str, Any]]:
    """Predict every sample of a data set and write sections, uncertainty, misfits, figures and archives.

    Returns what predictions.csv says of each sample; sections go to files one by one, so memory does not grow
    with their number.

    `out` ending in .npz is the submission; the rest goes to a folder of the same stem beside it.

    Raises:
        UserError: `out` cannot be written, or the submission would not be complete.
        DataError: the model or the data cannot be used together.
    """
    archive = out if out.suffix == ".npz" else None
    folder = out.with_suffix("") if archive else out
    require_writable(folder)
    with machine(options) as device, devices.explain_out_of_memory("lower --batch_size"):
        ensemble = load(config.model_path)
        source = open_source(config.test_data_path)
        require_fit(ensemble, source, config)
        require_ids(source.ids, config.expected_count, source.empty)
        mine = list(distributed.shard(len(source)))
        dataset = ShotDataset(source, ensemble.preprocessing, rows=mine)
        if options.dry_run:
            get_logger().info(
                f"{len(source)} samples, {len(ensemble.configs)} members, bounds {ensemble.bounds}"
            )
            return []
        rows, drawn = [], 0
        for number, one in enumerate(predict(ensemble, dataset, device, config, seed=options.seed)):
            truth = source.velocity(mine[number]) if source.has_truth else None
            make_folder(folder / one.id)
            _write(folder / one.id, one, source, config)
            rows.append(_row(one, truth, ensemble))
            get_logger().info(_said(rows[-1]))
            if drawn < config.figures and distributed.is_main():
                draw_prediction(folder / "figures", one, truth, dataset, number, ensemble, config)
                drawn += 1
        everything = [row for part in distributed.gather_objects(rows) for row in part]
        with distributed.shared_errors():
            if distributed.is_main():
                _write_all(folder, archive, everything, source, ensemble, config, options)
        return everything


def require_fit(ensemble: Ensemble, source: Source, config: InferConfig) -> None:
    """Check that the ensemble can answer for these data.

    Raises:
        UserError: profiles are wanted outside the section.
        DataError: other grids, records or bounds.
    """
    require_survey(ensemble, source.survey, config.test_data_path)
    outside = [x for x in config.profiles_x_m if not 0 <= x <= source.survey.x_max_m]
    if outside:
        raise UserError(f"--profiles_x_m {outside[0]:g}: expected 0 to {source.survey.x_max_m:g} m")
    low, high = ensemble.bounds
    if source.survey.v_bounds_km_s[0] < low or source.survey.v_bounds_km_s[1] > high:
        raise DataError(
            f"{config.test_data_path}: bounds {source.survey.v_bounds_km_s} km/s, "
            f"the model's are {low:g} to {high:g}"
        )
    if config.post_process:
        gain = ensemble.calibration.smoothing_gain
        said = f"--post_process: smoothing changed the validation MAPE of this model by {-gain:+.5f}"
        if gain < 0:
            get_logger().warning(f"{said}: sections are better without it")
        else:
            get_logger().info(said)


def _write(folder: Path, one: Prediction, source: Source, config: InferConfig) -> None:
    """Write one sample in the axes and unit of its own data set."""
    maps = {"vp_pred": one.vp}
    if one.posterior is not None:
        with atomic_path(folder / "posterior.npy") as path, path.open("wb") as file:
            np.save(file, np.stack([from_km_s(vp, source.survey) for vp in one.posterior]))
    if config.uncertainty:
        maps |= {"vp_std": one.std, f"vp_halfwidth_{round(100 * config.coverage)}": one.half_width}
    for name, values in maps.items():
        with atomic_path(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, from_km_s(values, source.survey))
    if config.segy:
        write_segy(folder / "vp.sgy", one.vp, source.survey)
    if config.profiles_x_m:
        write_profiles(folder / "profiles.csv", one.vp, one.half_width, source.survey, config.profiles_x_m)


def _said(row: Mapping[str, Any]) -> str:
    """Return the line that is printed of one sample: misfit, that before refinement, half-width, time."""
    parts = [f"{row['id']}: {row['seconds']:.2f} s"]
    if math.isfinite(row["misfit"]):
        before = row["misfit_before_refine"]
        since = f" ({before:.3f} before refinement)" if math.isfinite(before) else ""
        parts.append(f"waveform misfit {row['misfit']:.3f}{since}")
    parts.append(f"mean half-width {1000 * row['mean_half_width_km_s']:.0f} m/s, {row['uncertainty']}")
    return ", ".join(parts)


def _row(one: Prediction, truth: np.ndarray | None, ensemble: Ensemble) -> dict[str, Any]:
    scores = section_scores(one.vp, truth, ensemble.bounds) if truth is not None else {}
    shots = {f"misfit_shot_{i}": m for i, m in enumerate(one.shot_misfits)}
    return {
        "id": one.id,
        "seconds": round(one.seconds, 4),
        "misfit": one.misfit,
        "misfit_before_refine": one.before,
        "mean_half_width_km_s": float(one.half_width.mean()),
        "uncertainty": one.label,
        **scores,
        **shots,
    }


def _write_all(
    folder: Path,
    archive: Path | None,
    rows: list[dict[str, Any]],
    source: Source,
    ensemble: Ensemble,
    config: InferConfig,
    options: MachineOptions,
) -> None:
    """Write what is about all samples: predictions.csv, the archives, summary.json."""
    order = {name: i for i, name in enumerate(source.ids)}
    rows.sort(key=lambda row: order[row["id"]])
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "predictions.csv", text.getvalue())

    def stored(name: str) -> np.ndarray:
        return np.load(folder / name / "vp_pred.npy", allow_pickle=False)

    unit = 1000.0 if source.survey.velocity_unit == "m/s" else 1.0
    checked: dict[str, Any] = {
        "shape": from_km_s(np.zeros(source.survey.model_shape_zx), source.survey).shape,
        "bounds": (ensemble.bounds[0] * unit, ensemble.bounds[1] * unit),
    }
    if source.survey.layout == "openfwi" or archive is None:
        write_archive(folder / "predictions.npz", source.ids, stored, **checked)
    wants = config.submission == "true" or (config.submission == "auto" and archive is not None)
    if wants:
        target = archive or folder / "submission.npz"
        write_archive(target, source.ids, stored, **checked)
        get_logger().info(f"wrote {target}: {len(source.ids)} sections {checked['shape']}")
    if config.hdf5:
        write_hdf5(folder / "predictions.h5", folder, source.ids, source.survey, config.coverage)
    _summarise(folder / "summary.json", rows, source, ensemble, options)


def _summarise(
    path: Path, rows: list[dict[str, Any]], source: Source, ensemble: Ensemble, options: MachineOptions
) -> None:
    """Print and write means over all samples."""
    misfits = [row["misfit"] for row in rows if math.isfinite(row["misfit"])]
    summary: dict[str, Any] = {
        "run": describe_run("velocity_inversion", options.seed),
        "model": str(ensemble.path),
        "sha256": ensemble.sha256,
        "samples": len(rows),
        "mean_misfit": float(np.mean(misfits)) if misfits else None,
        "mean_half_width_km_s": float(np.mean([row["mean_half_width_km_s"] for row in rows])),
    }
    if source.has_truth:
        summary |= {
            name: float(np.mean([row[name] for row in rows])) for name in ("mape", "mae", "rmse", "ssim")
        }
    write_json(path, summary)
    shown = {k: v for k, v in summary.items() if isinstance(v, float)}
    get_logger().info(", ".join(f"{k} {v:.4g}" for k, v in shown.items()))


def require_output(path: Path) -> Path:
    """Return `path`, refusing a name that is neither a folder nor .npz.

    Raises:
        UserError: another suffix.
    """
    if path.suffix and path.suffix != ".npz" and not path.is_dir():
        raise UserError(f"--output_path {path}: expected a folder, or a file ending in .npz")
    return path
