"""A refining network beside the first estimates that it is given, on held-out degraded volumes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import figures
from common.files import write_json, write_text
from common.log import get_logger
from common.report import Row, markdown_table, save_rows
from common.run import MachineOptions, describe_run
from common.sampling import Draw
from fault_seg.config_infer import EvaluateConfig
from fault_seg.dataset import VolumePairs
from fault_seg.evaluate_figures import draw_comparison
from fault_seg.maps import Model, Volumes
from fault_seg.metrics import mean_scores, score_cube
from fault_seg.model import HEADS, REFINE_INPUTS, build_network, parameter_count
from fault_seg.refine import refine_cube

THRESHOLD = 0.5
MEASURES: dict[str, tuple[str, str, str]] = {
    "iou": ("refined fault IoU, p >= 0.5", "-", "higher"),
    "tol_iou": ("refined fault Tol-IoU@2, p >= 0.5", "-", "higher"),
    "rgt_mae": ("refined geological time MAE", "0..1", "lower"),
    "dhr_correlation": ("refined image correlation", "-", "higher"),
}


def evaluate_refine(config: EvaluateConfig, model: Model, options: MachineOptions, out: Path) -> list[Row]:
    """Score the degraded volumes, one pass and `--refine_iters` passes; write the report into `out`.

    Raises:
        DataError: the cubes cannot be used.
    """
    folders = config.data / "data_valid", config.data / "target_valid"
    pairs = VolumePairs(*folders, (0, 0, 0), HEADS, limit=config.nvalid, kind="refine", with_image=False)
    pairs.check()
    get_logger().info(f"{len(pairs)} held-out sets of volumes {pairs.shape}")
    if options.dry_run:
        return []
    scores: list[list[dict[str, float]]] = [[] for _ in range(config.refine_iters + 1)]
    shown: dict[str, Any] = {}
    began = time.process_time()
    for i in range(len(pairs)):
        item = pairs[Draw(i, i)]
        truth = {name: item[name][0].numpy() for name in REFINE_INPUTS}
        stages = [_first(item), *refine_cube(model, item, config.refine_iters)]
        for found, column in zip(stages, scores, strict=True):
            column.append(score_cube(found, truth, THRESHOLD))
        shown = shown or {"truth": truth, "stages": stages}
    seconds = (time.process_time() - began) / len(pairs)
    means = [mean_scores(column) for column in scores]
    rows = _rows(means, model, seconds, config)
    document = {
        "run": describe_run("fault_seg", options.seed),
        "model": str(model.path),
        "sha256": model.sha256,
        "cpu_seconds_a_cube": seconds,
        "passes": [{"mean": mean, "cubes": column} for mean, column in zip(means, scores, strict=True)],
    }
    write_json(out / "evaluation.json", document)
    write_text(out / "evaluation.md", markdown_table(rows))
    save_rows(out / "results.json", rows)
    if config.figures:
        _draw(out / "figures", shown["truth"], shown["stages"], means)
    get_logger().info("\n" + markdown_table(rows))
    return rows


def _first(item: dict[str, torch.Tensor]) -> Volumes:
    return {name: item[f"first_{name}"][0].numpy() for name in REFINE_INPUTS}


def _rows(
    means: Sequence[dict[str, float]], model: Model, seconds: float, config: EvaluateConfig
) -> list[Row]:
    command = f"python scripts/fault_seg/evaluate.py --model {model.path} --data {config.data}"
    with torch.device("meta"):
        count = parameter_count(build_network(model.layout, model.kind, model.heads))
    rows = []
    for key, (name, unit, better) in MEASURES.items():
        for number in dict.fromkeys((1, config.refine_iters)):
            value, first = means[number].get(key), means[0].get(key)
            if value is None or first is None or not np.isfinite([value, first]).all():
                continue
            passes = "1 pass" if number == 1 else f"{number} passes"
            title = f"{name}, {passes}"
            compared = {"input": first}
            rows.append(Row("fault_seg", title, unit, better, value, compared, seconds, count, command))
    return rows


def _draw(folder: Path, truth: Volumes, stages: Sequence[Volumes], means: Sequence[dict[str, float]]) -> None:
    """Draw the measures over the passes, and one inline of the first cube before and after."""
    figure, axes = figures.new_figure(1, 3, panel=(3.2, 2.8))
    labels = {"iou": "fault IoU", "rgt_mae": "rgt MAE", "dhr_correlation": "dhr correlation"}
    for ax, (key, label) in zip(axes[0], labels.items(), strict=True):
        values = np.array([mean.get(key, np.nan) for mean in means])
        figures.curves(ax, {"ours": (np.arange(len(values)), values)}, x_label="passes", y_label=label)
        ax.set_xticks(np.arange(len(values)))
    figures.save(figure, folder / "passes.png")
    cube = {"image": stages[0]["dhr"], "fsem": truth["fsem"]}
    shown = {"degraded": stages[0]["fsem"], "one pass": stages[1]["fsem"]}
    if len(stages) > 2:
        shown[f"{len(stages) - 1} passes"] = stages[-1]["fsem"]
    draw_comparison(folder / "gallery_inline.png", cube, shown, 2)
