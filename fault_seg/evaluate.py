"""A model beside its baselines on held-out cubes: one table, one JSON file, figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed, figures
from common.device import peak_memory_bytes
from common.errors import UserError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.report import Row, markdown_table, save_rows
from common.run import MachineOptions, describe_run, machine
from common.sampling import Draw
from fault_seg import baselines
from fault_seg.config import EvaluateConfig
from fault_seg.dataset import VolumePairs, find_images
from fault_seg.infer import load, predict
from fault_seg.maps import Model
from fault_seg.metrics import mean_scores, score_cube, score_set, tune_threshold
from fault_seg.model import build_network, parameter_count

HEADLINE = 0.5  # probability of the headline figures
# measure of the score table -> (what to call it, unit, which is better, baseline that it is compared with)
MEASURES: dict[str, tuple[str, str, str, str]] = {
    "ap": ("fault average precision", "-", "higher", "coherence"),
    "iou": ("fault IoU, tuned threshold", "-", "higher", "coherence"),
    "tol_iou": ("fault Tol-IoU@2, tuned threshold", "-", "higher", "coherence"),
    "angle_median_deg": ("fault normal, median error", "degrees", "lower", "constant"),
    "rgt_mae": ("geological time MAE", "0..1", "lower", "flat"),
    "horizon_median_samples": ("horizon error, median", "samples", "lower", "flat"),
    "dhr_psnr_db": ("denoised image PSNR", "dB", "higher", "input"),
}


@dataclass(frozen=True)
class Entry:
    """One method on the held-out cubes: its mean scores and the threshold they were taken at."""

    scores: Mapping[str, float]
    threshold: float
    cubes: Sequence[Mapping[str, float]]


def held_out(
    config: EvaluateConfig, part: str, heads: tuple[str, ...], limit: int
) -> list[dict[str, np.ndarray]]:
    """Return whole cubes of `data_<part>` with their truth, [n1, n2, n3] each.

    Raises:
        DataError: there are fewer than `limit` (0 = all), or a file of them is bad.
    """
    folders = config.data / f"data_{part}", config.data / f"target_{part}"
    pairs = VolumePairs(*folders, (0, 0, 0), heads, limit=limit, solved=False)
    pairs.check()
    items = [pairs[Draw(i, i)] for i in range(len(pairs))]
    return [{n: v[0].numpy() for n, v in item.items() if n != "source"} for item in items]


def evaluate(config: EvaluateConfig, options: MachineOptions, out: Path) -> list[Row]:
    """Score the model and its baselines; write evaluation.json, evaluation.md and figures into `out`.

    Thresholds of the tuned figures come from training cubes, never from the cubes that are scored.

    Raises:
        UserError: `out` cannot be written, or no cube is left for tuning.
        DataError: the model or the cubes cannot be used.
    """
    require_writable(out)
    with machine(options) as device:
        model = load(config.model, device, precision=options.precision)
        truth = held_out(config, "valid", model.heads, config.nvalid)
        if config.ntune < 1:
            raise UserError(f"--ntune {config.ntune}: expected 1 or more training cubes to tune thresholds")
        num_train = len(find_images(config.data / "data_train"))
        tuning = held_out(config, "train", model.heads, min(config.ntune, num_train))
        if options.dry_run:
            get_logger().info(
                f"{len(truth)} held-out cubes {truth[0]['image'].shape}, {len(tuning)} to tune on"
            )
            return []
        started = time.process_time()
        found = [predict(model, cube["image"]) for cube in truth]
        seconds = time.process_time() - started
        entries = {"ours": _entry(found, truth, [predict(model, cube["image"]) for cube in tuning], tuning)}
        entries |= _baselines(config, truth, tuning)
        headline = score_set(found, truth, HEADLINE)
        rows = _rows(entries, model, seconds / len(truth), config)
        if distributed.is_main():
            document = {
                "run": describe_run("fault_seg", options.seed),
                "model": str(model.path),
                "sha256": model.sha256,
                "cpu_seconds_a_cube": seconds / len(truth),
                "peak_memory_bytes": peak_memory_bytes(device),
                "headline_at_0.5": headline,
                "methods": {
                    name: {"threshold": e.threshold, "mean": e.scores, "cubes": e.cubes}
                    for name, e in entries.items()
                },
            }
            write_json(out / "evaluation.json", document)
            write_text(out / "evaluation.md", markdown_table(rows))
            save_rows(out / "results.json", rows)
            if config.figures:
                _draw(out / "figures", truth, found, entries, config)
            get_logger().info("\n" + markdown_table(rows))
        return rows


def _entry(
    found: list[dict[str, np.ndarray]],
    truth: list[dict[str, np.ndarray]],
    tuned_on: list[dict[str, np.ndarray]],
    tuning: list[dict[str, np.ndarray]],
) -> Entry:
    """Return the scores of one method, its threshold tuned for Tol-IoU@2 on other cubes."""
    threshold = HEADLINE
    if "fsem" in found[0]:
        threshold = tune_threshold([f["fsem"] for f in tuned_on], [t["fsem"] for t in tuning])
    cubes = [score_cube(f, t, threshold) for f, t in zip(found, truth, strict=True)]
    return Entry(mean_scores(cubes), threshold, cubes)


def _baselines(
    config: EvaluateConfig, truth: list[dict[str, np.ndarray]], tuning: list[dict[str, np.ndarray]]
) -> dict[str, Entry]:
    """Return the named baselines, each with only the volumes that it makes."""
    entries = {}
    shape = truth[0]["image"].shape
    if "coherence" in config.baselines and "fsem" in truth[0]:
        found, tuned = (
            [{"fsem": baselines.coherence_faults(cube["image"])} for cube in cubes]
            for cubes in (truth, tuning)
        )
        entries["coherence"] = _entry(found, truth, tuned, tuning)
    if "fdip" in truth[0]:
        fdips, fstrikes, fsems = (
            np.stack([cube[name] for cube in tuning]) for name in ("fdip", "fstrike", "fsem")
        )
        angles = baselines.best_constant_angles(fdips, fstrikes, fsems > 0.5)
        fdip, fstrike = baselines.constant_angles(shape, *angles)
        entries["constant"] = _plain([{"fdip": fdip, "fstrike": fstrike} for _ in truth], truth)
    if "rgt" in truth[0]:
        entries["flat"] = _plain([{"rgt": baselines.flat_rgt(shape)} for _ in truth], truth)
    if "dhr" in truth[0]:
        entries["input"] = _plain([{"dhr": baselines.input_as_dhr(cube["image"])} for cube in truth], truth)
    return entries


def _plain(found: list[dict[str, np.ndarray]], truth: list[dict[str, np.ndarray]]) -> Entry:
    cubes = [score_cube(f, t, HEADLINE) for f, t in zip(found, truth, strict=True)]
    return Entry(mean_scores(cubes), HEADLINE, cubes)


def _rows(entries: Mapping[str, Entry], model: Model, seconds: float, config: EvaluateConfig) -> list[Row]:
    command = f"python scripts/fault_seg/evaluate.py --model {model.path} --data {config.data}"
    with torch.device("meta"):  # the loaded network has its norms folded into the convolutions
        count = parameter_count(build_network(model.layout, model.kind, model.heads))
    rows = []
    for key, (name, unit, better, baseline) in MEASURES.items():
        value = entries["ours"].scores.get(key)
        other = entries[baseline].scores.get(key) if baseline in entries else None
        if value is None or not np.isfinite(value):
            continue
        compared = {} if other is None or not np.isfinite(other) else {baseline: other}
        rows.append(Row("fault_seg", name, unit, better, value, compared, seconds, count, command))
    return rows


def _draw(
    folder: Path,
    truth: list[dict[str, np.ndarray]],
    found: list[dict[str, np.ndarray]],
    entries: Mapping[str, Entry],
    config: EvaluateConfig,
) -> None:
    """Draw the precision-recall curve, and truth, prediction and coherence on a slice and an inline."""
    if "fsem" not in found[0]:
        return
    probability = {"ours": [f["fsem"] for f in found]}
    if "coherence" in entries:
        probability["coherence"] = [baselines.coherence_faults(cube["image"]) for cube in truth]
    labels = np.concatenate([cube["fsem"].ravel() for cube in truth])
    figure, axes = figures.new_figure(1, 1, panel=(4.6, 3.6))
    curves = {
        name: _recall_and_precision(np.concatenate([v.ravel() for v in values]), labels)
        for name, values in probability.items()
    }
    figures.precision_recall(
        axes[0, 0], curves, base_rate=float((labels > 0.5).mean()), title="faults, held-out cubes"
    )
    figures.save(figure, folder / "pr_curve.png")
    scores = [cube.get("ap", float("nan")) for cube in entries["ours"].cubes]
    order = np.argsort(scores)
    chosen = int(order[len(order) // 2])  # the cube of median score: no best case
    for name, axis in (("timeslice", 0), ("inline", 2)):
        draw_comparison(
            folder / f"gallery_{name}.png",
            truth[chosen],
            {n: v[chosen] for n, v in probability.items()},
            axis,
        )


def _recall_and_precision(probability: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall, precision) at 400 thresholds, enough for a curve."""
    from sklearn.metrics import precision_recall_curve

    known = labels >= 0
    precision, recall, _ = precision_recall_curve(labels[known] > 0.5, probability[known])
    chosen = np.unique(np.linspace(0, len(recall) - 1, 400).astype(int))
    return recall[chosen], precision[chosen]


def draw_comparison(
    path: Path, cube: Mapping[str, np.ndarray], probability: Mapping[str, Any], axis: int
) -> None:
    """Draw the input, the true faults and each method's probability on the middle slice along `axis`."""

    def cut(values: np.ndarray) -> np.ndarray:
        return np.take(values, values.shape[axis] // 2, axis=axis)

    names = (
        ("y crossline (voxels)", "x inline (voxels)")
        if axis == 0
        else ("z (samples)", "y crossline (voxels)")
    )
    figure, axes = figures.new_figure(1, 2 + len(probability), panel=(3.1, 2.9))
    image = cut(cube["image"])
    shown: list[tuple[str, np.ndarray | None]] = [("input", None), ("truth", cut(cube["fsem"]))]
    shown += [(name, cut(values)) for name, values in probability.items()]
    for ax, (title, overlay) in zip(axes[0], shown, strict=True):
        last = title == shown[-1][0]
        figures.section(
            ax,
            image,
            kind="seismic",
            title=title,
            z_label=names[0],
            x_label=names[1],
            overlay=overlay,
            overlay_label="probability" if last else "",
            overlay_from=0.3,
        )
        ax.label_outer()
    figures.save(figure, path)
