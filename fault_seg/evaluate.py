"""A model beside its baselines on held-out cubes: one table, one JSON file, figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.device import peak_memory_bytes
from common.errors import UserError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.optim import parameter_count
from common.report import Row, markdown_table, save_rows, table
from common.run import MachineOptions, describe_run, machine
from common.sampling import Draw
from fault_seg import baselines
from fault_seg.config_infer import EvaluateConfig
from fault_seg.dataset import VolumePairs
from fault_seg.evaluate_figures import draw_evaluation
from fault_seg.evaluate_refine import command_of, evaluate_refine
from fault_seg.infer import load, predict
from fault_seg.labels import open_labelled
from fault_seg.maps import Model
from fault_seg.metrics import score_cube, score_set, set_scores, tune_threshold
from fault_seg.model import build_network
from fault_seg.pair_files import find_images
from fault_seg.robustness import robustness, robustness_rows, robustness_table
from fault_seg.unet_baseline import train_baseline

HEADLINE = 0.5  # probability of the headline figures
LEARNED = ("coherence", "unet")
# measure of the score table -> (what to call it, unit, which is better, baselines that it is compared with)
MEASURES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "ap": ("fault average precision", "-", "higher", LEARNED),
    "iou": ("fault IoU, tuned threshold", "-", "higher", LEARNED),
    "tol_iou": ("fault Tol-IoU@2, tuned threshold", "-", "higher", LEARNED),
    "angle_median_deg": ("fault normal, median error", "degrees", "lower", ("constant",)),
    "angle_median_pooled_deg": (
        "fault normal, median error over all fault voxels",
        "degrees",
        "lower",
        ("constant",),
    ),
    "rgt_mae": ("geological time MAE", "0..1", "lower", ("flat",)),
    "horizon_median_samples": ("horizon error, median", "samples", "lower", ("flat",)),
    "dhr_psnr_db": ("denoised image PSNR", "dB", "higher", ("input",)),
}


@dataclass(frozen=True)
class Entry:
    """One method on the held-out cubes: its mean scores, the threshold they were taken at, probabilities."""

    scores: Mapping[str, float]
    threshold: float
    cubes: Sequence[Mapping[str, float]]
    probability: Sequence[np.ndarray] = ()


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
        if model.kind == "refine":
            return evaluate_refine(config, model, options, out)
        model.turns = config.tta
        if config.labels:
            return evaluate_survey(config, model, options, out)
        return evaluate_cubes(config, model, options, out)


def evaluate_cubes(config: EvaluateConfig, model: Model, options: MachineOptions, out: Path) -> list[Row]:
    """Score a model of kind infer on the held-out cubes of a data set; as `evaluate`."""
    truth = held_out(config, "valid", model.heads, config.nvalid)
    if config.ntune < 1:
        raise UserError(f"--ntune {config.ntune}: expected 1 or more training cubes to tune thresholds")
    num_train = len(find_images(config.data / "data_train"))
    tuning = held_out(config, "train", model.heads, min(config.ntune, num_train))
    if options.dry_run:
        get_logger().info(f"{len(truth)} held-out cubes {truth[0]['image'].shape}, {len(tuning)} to tune on")
        return []
    started = time.process_time()
    found = [predict(model, cube["image"]) for cube in truth]
    seconds = (time.process_time() - started) / len(truth)
    entries = {"ours": _entry(found, truth, [predict(model, cube["image"]) for cube in tuning], tuning)}
    entries |= _baselines(config, model, truth, tuning)
    more = _robustness(config, model, entries["ours"].threshold, options.seed)
    headline = score_set(found, truth, HEADLINE)
    rows = _rows(entries, model, seconds, command_of(config, model, options))
    rows += _each_cube(rows[0], entries) if "coherence" in entries else []
    rows += robustness_rows(rows[0], more) if rows else []
    if distributed.is_main():
        document = {
            "run": describe_run("fault_seg", options.seed),
            "model": str(model.path),
            "sha256": model.sha256,
            "cpu_seconds_a_cube": seconds,
            "peak_memory_bytes": peak_memory_bytes(model.device),
            "headline_at_0.5": headline,
            "robustness": more,
            "methods": {
                name: {"threshold": e.threshold, "mean": e.scores, "cubes": e.cubes}
                for name, e in entries.items()
            },
        }
        _write(out, document, rows, entries)
        if config.figures and "fsem" in found[0]:
            _draw(out / "figures", truth, found, entries, model)
    return rows


def _write(out: Path, document: Mapping[str, Any], rows: list[Row], entries: Mapping[str, Entry]) -> None:
    """Write evaluation.json, evaluation.md and results.json, and log the short table."""
    more = document["robustness"]
    own = [row for row in rows if ", noise up to " not in row.measure]  # they have a table of their own
    text = markdown_table(own) + ("\n" + robustness_table(more) if more else "")
    write_json(out / "evaluation.json", document)
    write_text(out / "evaluation.md", text + "\n" + all_measures(entries, document["headline_at_0.5"]))
    save_rows(out / "results.json", rows)
    get_logger().info("\n" + text)


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
    return Entry(set_scores(cubes, found, truth), threshold, cubes, [f["fsem"] for f in found if "fsem" in f])


def _baselines(
    config: EvaluateConfig,
    model: Model,
    truth: list[dict[str, np.ndarray]],
    tuning: list[dict[str, np.ndarray]],
) -> dict[str, Entry]:
    """Return the named baselines, each with only the volumes that it makes."""
    entries = {}
    shape = truth[0]["image"].shape
    if "fsem" in truth[0]:
        entries = {name: _entry(*made) for name, made in _fault_baselines(config, model, truth, tuning)}
        for name, mask in (("empty", baselines.always_empty), ("all", baselines.always_fault)):
            entries[name] = _plain([{"fsem": mask(shape)} for _ in truth], truth)
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


def _fault_baselines(
    config: EvaluateConfig,
    model: Model,
    truth: list[dict[str, np.ndarray]],
    tuning: list[dict[str, np.ndarray]],
) -> Iterator[tuple[str, tuple[list[dict[str, np.ndarray]], ...]]]:
    """Yield the name and the arguments of `_entry` of coherence and of a unet trained here."""
    methods: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {}
    if "coherence" in config.chosen_baselines:
        methods["coherence"] = lambda image: {"fsem": baselines.coherence_faults(image)}
    if "unet" in config.chosen_baselines:
        unet = train_baseline(config.data, config.baseline_seconds, model.device, model.precision)
        methods["unet"] = lambda image: predict(unet, image)
    for name, method in methods.items():
        found, tuned = ([method(cube["image"]) for cube in cubes] for cubes in (truth, tuning))
        yield name, (found, truth, tuned, tuning)


def _each_cube(first: Row, entries: Mapping[str, Entry]) -> list[Row]:
    """Return the share of the held-out cubes whose AP is above coherence's; no row where no cube has one."""
    pairs = zip(entries["ours"].cubes, entries["coherence"].cubes, strict=True)
    known = [(ours["ap"], other["ap"]) for ours, other in pairs if "ap" in ours and "ap" in other]
    above = [ours > other for ours, other in known if np.isfinite([ours, other]).all()]
    if not above:
        return []
    measure, share = "cubes whose AP is above coherence's", float(np.mean(above))
    return [replace(first, measure=measure, unit="share", better="higher", ours=share, baselines={})]


def _robustness(config: EvaluateConfig, model: Model, threshold: float, seed: int) -> list[dict[str, Any]]:
    if not config.robustness:
        return []
    beside = "coherence" in config.chosen_baselines
    return robustness(model, config.robustness_presets, config.robustness, threshold, seed, coherence=beside)


def all_measures(entries: Mapping[str, Entry], headline: Mapping[str, float]) -> str:
    """Return every measure of every method as a Markdown table, `headline` being ours at 0.5."""
    columns = {f"{name} at {e.threshold:.3g}": e.scores for name, e in entries.items()}
    columns = {f"ours at {HEADLINE:g}": headline, **columns}
    keys = dict.fromkeys(key for scores in columns.values() for key in scores)
    rows = [
        [f"`{key}`", *(f"{scores[key]:.3g}" if key in scores else "" for scores in columns.values())]
        for key in keys
    ]
    return table(["measure", *columns], rows)


def evaluate_survey(config: EvaluateConfig, model: Model, options: MachineOptions, out: Path) -> list[Row]:
    """Score the faults of a survey on its labelled voxels, held in memory, beside coherence.

    The threshold is the model's own: there are no other labels to tune it on.

    Raises:
        DataError: survey and labels do not fit each other.
    """
    if "fault" not in model.heads:
        raise UserError(f"{model.path}: has no fault head, --labels are of faults; use another model")
    image, labels = open_labelled(
        config.input, config.labels, config.labelled_inlines, (0, 0, 0), options.seed
    )
    get_logger().info(
        f"{config.input}: {(labels >= 0).sum()} labelled voxels, {(labels > 0).sum()} on faults"
    )
    if options.dry_run:
        return []
    truth = {"image": image, "fsem": labels.astype(np.float32)}
    began = time.process_time()
    found = [{"fsem": predict(model, image)["fsem"]}]
    seconds = time.process_time() - began
    entries = {"ours": _plain(found, [truth], model.threshold)}
    if "coherence" in config.chosen_baselines:
        likely = baselines.coherence_faults(image)
        entries["coherence"] = _plain([{"fsem": likely}], [truth], HEADLINE)
    rows = _rows(entries, model, seconds, command_of(config, model, options))
    scores = {name: {"threshold": e.threshold, "scores": e.scores} for name, e in entries.items()}
    run = describe_run("fault_seg", options.seed)
    write_json(out / "evaluation.json", {"run": run, "model": str(model.path), "methods": scores})
    write_text(out / "evaluation.md", markdown_table(rows))
    save_rows(out / "results.json", rows)
    get_logger().info("\n" + markdown_table(rows))
    return rows


def _draw(
    folder: Path,
    truth: list[dict[str, np.ndarray]],
    found: list[dict[str, np.ndarray]],
    entries: Mapping[str, Entry],
    model: Model,
) -> None:
    """Draw the curves and the gallery of ours beside the baselines that were asked for."""
    ours = entries["ours"]
    probability = {"ours": [f["fsem"] for f in found]}
    probability |= {name: entries[name].probability for name in LEARNED if name in entries}
    scores = [cube.get("ap", float("nan")) for cube in ours.cubes]
    draw_evaluation(folder, truth, probability, scores, ours.threshold, model.temperature)


def _plain(
    found: list[dict[str, np.ndarray]], truth: list[dict[str, np.ndarray]], threshold: float = HEADLINE
) -> Entry:
    cubes = [score_cube(f, t, threshold) for f, t in zip(found, truth, strict=True)]
    return Entry(set_scores(cubes, found, truth), threshold, cubes)


def _rows(entries: Mapping[str, Entry], model: Model, seconds: float, command: str) -> list[Row]:
    with torch.device("meta"):  # the loaded network has its norms folded into the convolutions
        count = parameter_count(build_network(model.layout, model.kind, model.heads))
    rows = []
    for key, (name, unit, better, others) in MEASURES.items():
        value = entries["ours"].scores.get(key)
        if value is None or not np.isfinite(value):
            continue
        compared = {other: entries[other].scores.get(key, np.nan) for other in others if other in entries}
        compared = {other: found for other, found in compared.items() if np.isfinite(found)}
        rows.append(Row("fault_seg", name, unit, better, value, compared, seconds, count, command))
    return rows
