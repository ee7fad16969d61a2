"""Refine sections that were predicted before: read, descend, write, never with a worse misfit."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import device as devices
from common import distributed
from common.arrays import open_npz
from common.errors import DataError
from common.files import atomic_path, make_folder, require_writable, write_json, write_text
from common.log import get_logger
from common.run import MachineOptions, describe_run, machine
from velocity_inversion.after import as_network
from velocity_inversion.arrays import from_km_s, open_array, to_km_s
from velocity_inversion.config_tools import RefineConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Ensemble, load_ensemble, require_survey
from velocity_inversion.metrics import section_scores
from velocity_inversion.refine import Refined, RefineSettings, observed_traces, refine
from velocity_inversion.sections import draw_misfit, draw_refined
from velocity_inversion.simulate import Simulation, default_simulation
from velocity_inversion.sources import Source, open_source
from velocity_inversion.submission import write_archive

PREDICTED = "vp_pred.npy"
REFINED = "vp_refined.npy"


def settings_of(config: RefineConfig) -> RefineSettings:
    """Return how the flags want sections to be refined."""
    return RefineSettings(
        mode=config.mode,
        iterations=config.iterations,
        optimizer=config.optimizer,
        step_km_s=config.step_km_s or None,
        tv=config.tv,
        relaxation=config.relaxation,
        bands_hz=config.bands_hz,
        smooth_cells=None if config.smooth_cells < 0 else config.smooth_cells,
        near_misfit=None if config.near_misfit < 0 else config.near_misfit,
        misfit_kind=None if config.misfit_kind == "auto" else config.misfit_kind,
        gradient_interval=config.gradient_interval,
    )


class Predictions:
    """Sections that infer.py wrote: a folder of samples, or an archive.

    Raises:
        DataError: neither is there, or samples of the data are missing.
    """

    def __init__(self, path: Path, source: Source, ids: list[str]) -> None:
        self.path, self.source = path, source
        if path.suffix == ".npz" and path.is_file():
            with open_npz(path, "expected an archive of infer.py") as archive:
                there = set(archive.files)
        elif path.is_dir():
            there = {folder.name for folder in path.iterdir() if (folder / PREDICTED).is_file()}
        else:
            raise DataError(f"{path}: no such folder or .npz, expected what infer.py wrote; check the path")
        missing = [name for name in ids if name not in there]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(ids)} samples have no prediction, first {missing[0]}; "
                "predict these data with infer.py first"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the section [Z, X] of a sample, km/s."""
        if self.path.is_dir():
            path = self.path / name / PREDICTED
            return to_km_s(open_array(path, 2), str(path), self.source.survey)
        with open_npz(self.path, "expected an archive of infer.py") as archive:
            return to_km_s(archive[name], f"{self.path} {name}", self.source.survey)


def refine_all(config: RefineConfig, options: MachineOptions, out: Path) -> list[dict[str, Any]]:
    """Refine every sample; write `<id>/vp_refined.npy`, refined.npz, refined.csv and figures.

    Returns the rows of refined.csv: misfit before and after and, with truth, MAE (m/s) before and after.

    Raises:
        UserError: `out` cannot be written.
        DataError: predictions, data or model do not belong together.
    """
    require_writable(out)
    with machine(options) as device, devices.explain_out_of_memory("raise --gradient_interval"):
        source = open_source(config.test_data_path)
        ids = source.ids[: config.max_samples] if config.max_samples else source.ids
        predictions = Predictions(Path(config.prediction_path), source, ids)
        ensemble = load_ensemble(config.model_path) if config.model_path else None
        if ensemble is not None:
            require_survey(ensemble, source.survey, config.test_data_path)
        simulation = default_simulation(source.survey, config.grid_m, on_gpu=devices.is_cuda(device))
        if options.dry_run:
            get_logger().info(f"{len(ids)} samples, cells of {simulation.grid_m:g} m, {settings_of(config)}")
            return []
        mine = []
        for number, row in enumerate(distributed.shard(len(ids))):
            start = predictions[ids[row]]
            began = time.perf_counter()
            done = _refine_one(row, start, source, ensemble, simulation, settings_of(config), device)
            line = _line(ids[row], row, start, done, source, time.perf_counter() - began)
            mine.append(line)
            _write(out, ids[row], row, start, done, source, draw=number < config.figures)
            get_logger().info(", ".join(f"{k} {v:.4g}" if k != "id" else v for k, v in line.items()))
        rows = [line for part in distributed.gather_objects(mine) for line in part]
        with distributed.shared_errors():
            if distributed.is_main():
                _summarise(out, ids, rows, config, options)
        return rows


def _refine_one(
    row: int,
    start: np.ndarray,
    source: Source,
    ensemble: Ensemble | None,
    simulation: Simulation,
    settings: RefineSettings,
    device: torch.device,
) -> Refined:
    observed = observed_traces(source.read_gathers(row)[0], simulation).to(device)
    network = None
    if ensemble is not None and settings.mode != "fwi":
        dataset = ShotDataset(source, ensemble.preprocessing)
        network = as_network(ensemble, dataset, row, simulation, device)
    return refine(torch.from_numpy(start).to(device), observed, simulation, settings, network)


def _line(
    name: str, row: int, start: np.ndarray, done: Refined, source: Source, seconds: float
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": name,
        "misfit_before": done.start_misfit,
        "misfit_after": done.misfit,
        "seconds": round(seconds, 2),
    }
    if source.has_truth:
        truth, bounds = source.velocity(row), source.survey.v_bounds_km_s
        line["mae_before"] = section_scores(start, truth, bounds)["mae"]
        line["mae_after"] = section_scores(done.vp.cpu().numpy(), truth, bounds)["mae"]
    return line


def _write(
    out: Path, name: str, row: int, start: np.ndarray, done: Refined, source: Source, *, draw: bool
) -> None:
    vp = done.vp.detach().cpu().numpy()
    with atomic_path(make_folder(out / name) / REFINED) as path, path.open("wb") as file:
        np.save(file, from_km_s(vp, source.survey))
    if draw:
        truth = source.velocity(row) if source.has_truth else None
        draw_refined(out / f"figures/{name}_section.png", truth, start, vp, source.survey)
        draw_misfit(out / f"figures/{name}_misfit.png", done.history)


def _summarise(
    out: Path, ids: list[str], rows: list[dict[str, Any]], config: RefineConfig, options: MachineOptions
) -> None:
    order = {name: i for i, name in enumerate(ids)}
    rows.sort(key=lambda line: order[line["id"]])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "refined.csv", text.getvalue())
    write_archive(out / "refined.npz", ids, lambda name: np.load(out / name / REFINED, allow_pickle=False))
    means = {k: float(np.mean([line[k] for line in rows])) for k in rows[0] if k != "id"}
    fell = sum(line["misfit_after"] < line["misfit_before"] for line in rows)
    write_json(
        out / "summary.json",
        {
            "run": describe_run("velocity_inversion", options.seed),
            "mode": config.mode,
            "iterations": config.iterations,
            "samples": len(rows),
            "misfit_fell": fell,
            "means": means,
        },
    )
    shown = ", ".join(f"{k} {v:.4g}" for k, v in means.items())
    get_logger().info(f"the misfit fell on {fell} of {len(rows)} samples; means: {shown}")
