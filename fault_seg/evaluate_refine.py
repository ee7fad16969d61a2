"""A refining network beside the first estimates that it is given, on held-out degraded volumes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import figures
from common.files import write_json, write_text
from common.log import get_logger
from common.optim import parameter_count
from common.report import Row, markdown_table, save_rows, table
from common.run import MachineOptions, command_line_of, describe_run
from common.sampling import Draw
from fault_seg.config_infer import EvaluateConfig
from fault_seg.dataset import VolumePairs
from fault_seg.evaluate_figures import draw_comparison
from fault_seg.maps import Model, Volumes
from fault_seg.metrics import mean_scores, score_cube
from fault_seg.model import HEADS, REFINE_INPUTS, build_network
from fault_seg.refine import refine_cube

THRESHOLD = 0.5
PROMISED = ("iou", "rgt_mae", "dhr_correlation")  # what one pass shall better and further ones not spoil
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
    rows = _rows(means, model, seconds, config, command_of(config, model, options))
    kept = [verdict(key, scores) for key in PROMISED]
    document = {
        "run": describe_run("fault_seg", options.seed),
        "model": str(model.path),
        "sha256": model.sha256,
        "cpu_seconds_a_cube": seconds,
        "verdicts": kept,
        "passes": [{"mean": mean, "cubes": column} for mean, column in zip(means, scores, strict=True)],
    }
    text = markdown_table(rows) + "\n" + verdict_table(kept)
    write_json(out / "evaluation.json", document)
    write_text(out / "evaluation.md", text)
    save_rows(out / "results.json", rows)
    if config.figures:
        _draw(out / "figures", shown["truth"], shown["stages"], means)
    get_logger().info("\n" + text)
    return rows


def verdict(key: str, scores: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return whether the passes better one measure.

    Args:
        key: of the measure.
        scores: of the input and after each pass, by cube.

    Returns:
        `means` of the input and after each pass; `better_after_one` than the input; `no_worse_at_last` than
        after one pass, and `no_worse_than_input` at last; the share of cubes that one pass betters. A measure
        that is undefined (NaN) keeps no promise.
    """
    sign = 1.0 if MEASURES[key][2] == "higher" else -1.0
    values = np.array([[cube.get(key, np.nan) for cube in column] for column in scores])
    means = [mean_scores(column)[key] for column in scores]
    known = np.isfinite(values[:2]).all(axis=0)
    better = sign * (values[1] - values[0])[known] > 0
    return {
        "measure": key,
        "means": means,
        "better_after_one": bool(sign * means[1] > sign * means[0]),
        "no_worse_at_last": bool(sign * means[-1] >= sign * means[1]),
        "no_worse_than_input": bool(sign * means[-1] >= sign * means[0]),
        "cubes_better_after_one": float(better.mean()) if better.size else float("nan"),
    }


def verdict_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts as a Markdown table, the means after every pass beside them."""
    last = len(verdicts[0]["means"]) - 1
    heads = ["measure", "input", *(f"pass {i}" for i in range(1, last + 1)), "pass 1 better", "cubes"]
    heads += [f"pass {last} no worse than pass 1"] if last > 1 else []
    heads += [f"pass {last} no worse than input"]
    rows = []
    for found in verdicts:
        cells = [MEASURES[found["measure"]][0], *(f"{mean:.4g}" for mean in found["means"])]
        share = found["cubes_better_after_one"]
        cells += [_yes(found["better_after_one"]), f"{share:.0%}" if np.isfinite(share) else "-"]
        cells += [_yes(found["no_worse_at_last"])] if last > 1 else []
        cells += [_yes(found["no_worse_than_input"])]
        rows.append(cells)
    return table(heads, rows)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _first(item: dict[str, torch.Tensor]) -> Volumes:
    return {name: item[f"first_{name}"][0].numpy() for name in REFINE_INPUTS}


def command_of(config: EvaluateConfig, model: Model, options: MachineOptions) -> str:
    """Return the command that repeats the figures of an evaluation: every flag that changes them."""
    given = ["--model", str(model.path), *([] if config.input else ["--data", str(config.data)])]
    script, leave_out = "scripts/fault_seg/evaluate.py", ("model", "data", "figures")
    return command_line_of(script, config, options, given=given, leave_out=leave_out)


def _rows(
    means: Sequence[dict[str, float]], model: Model, seconds: float, config: EvaluateConfig, command: str
) -> list[Row]:
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
