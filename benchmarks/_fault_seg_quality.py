"""What fault_seg networks learn in so many CPU seconds: the cases of benchmarks/fault_seg.py --quality.

short: `hr` from scratch, all five outputs, beside coherence, the best constant normal and the input image.
curves: `hr` beside `unet` at several times of one training each, and a figure. mtl: the losses of the four
tasks, `hr` beside `mtl`, by the same formulas. All train on the same crops of the same cubes in one order
with the settings of the preset `standard`. Seconds are CPU seconds of the process, reading and solving
included, scoring not. The learning rate follows the share of the seconds that is spent, so that slow and fast
networks have a whole schedule each.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._table import row
from common import checkpoint, figures
from common.device import resolve_precision
from common.guard import Guard
from common.run import MachineOptions
from common.sampling import StepSampler, train_loader
from fault_seg import losses
from fault_seg.angles import normal_from_outer
from fault_seg.baselines import coherence_faults
from fault_seg.config import TRAIN_PRESETS, TrainConfig
from fault_seg.config_infer import EvaluateConfig
from fault_seg.dataset import solved_time
from fault_seg.evaluate import evaluate, held_out
from fault_seg.geotime import normalise_rgt
from fault_seg.maps import Model, split_maps
from fault_seg.metrics import fault_scores, mean_scores, tune_threshold
from fault_seg.model import HEADS
from fault_seg.train import FaultTask
from fault_seg.train_data import make_datasets
from fault_seg.unet_baseline import model_of

CPU = torch.device("cpu")
TICKS = 10_000  # of a learning-rate schedule
WARMUP_TICKS = 200
MAX_STEPS = 10**9  # never reached: the seconds end a training
Rows = list[dict[str, Any]]
Cubes = Sequence[Mapping[str, np.ndarray]]
# what each contestant changes of the preset; `mtl_adamw` is trained as its authors do
NETWORKS: dict[str, dict[str, Any]] = {
    "hr": {},
    "hr_faults": {"rgt": False, "dhr": False},
    "unet": {"network": "unet"},
    "unet_adamw": {"network": "unet", "optimizer": "adamw"},
    "mtl": {"network": "mtl"},
    "mtl_adamw": {"network": "mtl", "optimizer": "adamw", "lr": 5e-5},
}
TITLES = {"hr": "hr, five outputs", "hr_faults": "hr, faults and normals", "unet_adamw": "unet, AdamW"}
CONTESTS = {
    "short": ("hr",),
    "curves": ("hr", "hr_faults", "unet", "unet_adamw"),
    "mtl": ("hr", "mtl", "mtl_adamw"),
}
# measure -> (its name, unit, whether more is better, what it has to reach, the baseline to beat)
SHORT = {
    "ap": ("AP", "-", True, 0.60, "coherence"),
    "iou": ("IoU, tuned threshold", "-", True, 0.40, "coherence"),
    "tol_iou": ("Tol-IoU@2, tuned threshold", "-", True, 0.72, "coherence"),
    "angle_median_deg": ("median angle", "degrees", False, 15.0, "constant"),
    "angle_median_pooled_deg": ("median angle, all fault voxels", "degrees", False, 15.0, "constant"),
    "rgt_mae": ("rgt MAE", "0..1", False, None, "flat"),
    "dhr_psnr_db": ("dhr PSNR", "dB", True, None, "input"),
}
DHR_GAIN_DB = 3.0
TURNS = 8  # flips and quarter turns that the second evaluation averages
CURVES = {"ap": "AP", "tol_iou": "Tol-IoU@2"}
LOSSES = ("fsem", "angle", "dhr", "rgt")


@dataclass(frozen=True)
class Quality:
    """What is measured on what.

    Attributes:
        data: folder of make_data, preset standard.
        seconds: of each case, by name.
        checkpoints: of the learning curves.
        crop: edge of the training crops, voxels.
        nvalid: held-out cubes used; 0 = all.
        ntune: training cubes on which thresholds are tuned.
        seed: of weights, order and crops.
        figure: file of the learning curves.
        networks: that replace those of the case; () = its own.
    """

    data: Path
    seconds: Mapping[str, float]
    checkpoints: int = 4
    crop: int = 32
    nvalid: int = 0
    ntune: int = 8
    seed: int = 0
    figure: Path = Path("fault_seg_learning_curves.png")
    networks: tuple[str, ...] = ()

    def chosen(self, case: str) -> tuple[str, ...]:
        """Return the networks of a case."""
        return self.networks or CONTESTS[case]

    def training(self, name: str) -> TrainConfig:
        """Return how a contestant is trained."""
        base = replace(TRAIN_PRESETS["standard"](), data=self.data, lr=2e-3, warmup_steps=WARMUP_TICKS)
        return replace(base, crop=(self.crop,), nvalid=self.nvalid, **NETWORKS[name])

    def describe(self, case: str) -> dict[str, Any]:
        """Return what a result depends on."""
        return {
            "networks": list(self.chosen(case)),
            "cpu_seconds": self.seconds[case],
            "crop": self.crop,
            "seed": self.seed,
            "held_out": self.nvalid or "all",
            "preset": "standard",
        }

    def cubes(self, part: str, heads: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        """Return the held-out cubes, or those for tuning, with their truth."""
        limit = self.nvalid if part == "valid" else self.ntune
        return held_out(EvaluateConfig(data=self.data), part, heads, limit)


def trained(name: str, given: Quality, marks: Sequence[float]) -> Iterator[tuple[float, int, FaultTask]]:
    """Train a contestant; yield (CPU seconds spent, steps, task) at each of the `marks` in CPU seconds."""
    config = given.training(name)
    train_set, valid_set = make_datasets(config, given.seed)
    torch.manual_seed(given.seed)
    guard = Guard(CPU)
    task = FaultTask(config, valid_set, guard, resolve_precision("fp32", CPU), TICKS, seed=given.seed)
    schedule = task.update.schedule
    assert schedule is not None
    sampler = StepSampler(len(train_set), config.batch_train, given.seed, 0, MAX_STEPS)
    batches = iter(train_loader(train_set, sampler))
    spent, step = 0.0, 0
    for mark in marks:
        done = step
        while spent < mark or step == done:
            began = time.process_time()
            schedule.last_epoch = int(TICKS * spent / marks[-1])
            task.step(next(batches), step)
            step += 1
            spent += time.process_time() - began
        print(f"{name}: {step} steps in {spent:.1f} CPU s", flush=True)
        yield spent, step, task


def last_of(name: str, given: Quality, seconds: float) -> tuple[float, int, FaultTask]:
    """Return a contestant after all its seconds."""
    return list(trained(name, given, [seconds]))[-1]


def short_rows(given: Quality) -> Rows:
    """Train `hr` for a short time and evaluate it as users do, baselines beside, then with averaged turns."""
    rows: Rows = []
    for name in given.chosen("short"):
        spent, steps, task = last_of(name, given, given.seconds["short"])
        rows += [row(f"short: {name}: training", spent, "CPU s"), row(f"short: {name}: steps", steps, "-")]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.ckpt"
            saved = checkpoint.Checkpoint(
                "fault_seg", "infer", task.config, task.normalization, task.weights()
            )
            checkpoint.save(path, saved)
            scores = evaluated(path, given)
            rows += measured_rows(name, scores)
            turned = evaluated(path, given, tta=TURNS, baselines=())["ours"]
            rows += measured_rows(f"{name}, {TURNS} turns", {**scores, "ours": turned})
    return list({line["what"]: line for line in rows}.values())  # each baseline once


def evaluated(path: Path, given: Quality, **options: Any) -> dict[str, Mapping[str, float | None]]:
    """Return the mean scores of "ours" and of the baselines as `evaluate.py` writes them."""
    config = EvaluateConfig(
        str(path), given.data, nvalid=given.nvalid, ntune=given.ntune, figures=False, **options
    )
    with tempfile.TemporaryDirectory() as folder:
        evaluate(config, MachineOptions(device="cpu", precision="fp32", threads=1), Path(folder) / "out")
        document = json.loads((Path(folder) / "out/evaluation.json").read_text(encoding="utf-8"))
    return {name: method["mean"] for name, method in document["methods"].items()}


def measured_rows(name: str, scores: Mapping[str, Mapping[str, float | None]]) -> Rows:
    """Return the lines of a short training from the mean scores of "ours" and the baselines."""
    rows = []
    for key, (title, unit, more, goal, rival) in SHORT.items():
        value, base = scores["ours"].get(key), scores.get(rival, {}).get(key)
        if value is None or base is None:
            continue
        limits = {"least": goal} if more else {"most": goal}
        rows.append(row(f"short: {name}: {title}", value, unit, **limits))
        rows.append(row(f"short: {rival}: {title}", base, unit))
        limits = {"least": 0.0} if more else {"most": 0.0}
        what = f"short: {name} - {rival}: {title}"
        rows.append(row(what, value - base, unit, baseline=rival, ratio=value / base, **limits))
        if key == "dhr_psnr_db":
            rows[-1]["at_least"] = DHR_GAIN_DB
    return rows


def curve_rows(given: Quality) -> Rows:
    """Train the contestants for equal seconds, score them at several times, and draw the curves."""
    cubes, tuning = (given.cubes(part, ("fault",)) for part in ("valid", "train"))
    marks = [given.seconds["curves"] * (i + 1) / given.checkpoints for i in range(given.checkpoints)]
    points: dict[str, list[dict[str, float]]] = {}
    for name in given.chosen("curves"):
        points[name] = []
        for spent, steps, task in trained(name, given, marks):
            model = model_of(task, task.update.precision)
            scores = scores_of(lambda image, m=model: probability(m, image), cubes, tuning)
            points[name].append({"seconds": spent, "steps": steps, **scores})
    coherence = scores_of(coherence_faults, cubes, tuning)
    draw_curves(given.figure, points, coherence)
    return rows_of_curves(points, coherence, marks)


def probability(model: Model, image: np.ndarray) -> np.ndarray:
    """Return the fault probability of a normalised cube."""
    return model.maps(torch.from_numpy(image)[None, None])[0, 0].numpy()


def scores_of(method: Callable[[np.ndarray], np.ndarray], cubes: Cubes, tuning: Cubes) -> dict[str, float]:
    """Return mean AP and Tol-IoU@2 of the `cubes`, the threshold tuned on others."""
    tuned = tune_threshold([method(cube["image"]) for cube in tuning], [cube["fsem"] for cube in tuning])
    mean = mean_scores([fault_scores(method(cube["image"]), cube["fsem"], tuned) for cube in cubes])
    return {key: mean[key] for key in CURVES}


def rows_of_curves(
    points: Mapping[str, Sequence[Mapping[str, float]]],
    coherence: Mapping[str, float],
    marks: Sequence[float],
) -> Rows:
    """Return every point of the curves, and `hr` over the better `unet` of the same seconds."""
    rows = [row(f"curves: coherence: {title}", coherence[key], "-") for key, title in CURVES.items()]
    for name, found in points.items():
        for mark, point in zip(marks, found, strict=True):
            place = f"curves: {name}, {mark:g} CPU s"
            rows += [row(f"{place}: {title}", point[key], "-") for key, title in CURVES.items()]
            rows.append(row(f"{place}: steps", point["steps"], "-"))
    rivals = [found for name, found in points.items() if name.startswith("unet")]
    for name in points if rivals else ():
        for i, mark in enumerate(marks):
            if not name.startswith("unet"):
                for key, title in CURVES.items():
                    ours, best = points[name][i][key], max(found[i][key] for found in rivals)
                    what, ratio = f"curves: {name} - unet, {mark:g} CPU s: {title}", ours / best
                    rows.append(row(what, ours - best, "-", least=0.0, baseline="unet", ratio=ratio))
    return rows


def draw_curves(
    path: Path, points: Mapping[str, Sequence[Mapping[str, float]]], coherence: Mapping[str, float]
) -> None:
    """Draw AP and Tol-IoU@2 over the CPU seconds of training."""
    figure, axes = figures.new_figure(1, len(CURVES), panel=(4.2, 3.2))
    last = max(point["seconds"] for found in points.values() for point in found)
    for ax, (key, title) in zip(axes[0], CURVES.items(), strict=True):
        series = {
            TITLES.get(name, name): ([p["seconds"] for p in found], [p[key] for p in found])
            for name, found in points.items()
        }
        series["coherence, no training"] = ([0.0, last], [coherence[key]] * 2)
        figures.curves(ax, series, x_label="training (CPU seconds)", y_label=f"{title}, held-out cubes")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def mtl_rows(given: Quality) -> Rows:
    """Train `hr` and `mtl` for equal seconds; compare the losses of the four tasks on held-out cubes."""
    cubes = given.cubes("valid", HEADS)
    rows: Rows = []
    found: dict[str, dict[str, float]] = {}
    for name in given.chosen("mtl"):
        _, steps, task = last_of(name, given, given.seconds["mtl"])
        rows.append(row(f"mtl: {name}: steps in {given.seconds['mtl']:g} CPU s", steps, "-"))
        model = model_of(task, task.update.precision)
        found[name] = mean_scores([task_losses(model, cube) for cube in cubes])
        rows += [row(f"mtl: {name}: held-out loss {part}", found[name][part], "-") for part in LOSSES]
    return rows + ratio_rows(found)


def ratio_rows(found: Mapping[str, Mapping[str, float]]) -> Rows:
    """Return each loss of `hr` over that of the `mtl` which has the lower one."""
    rivals = [losses for name, losses in found.items() if name.startswith("mtl")]
    if "hr" not in found or not rivals:
        return []
    return [
        row(
            f"mtl: held-out loss {part}, hr / mtl",
            found["hr"][part] / min(r[part] for r in rivals),
            "times",
            1.0,
            baseline="mtl",
        )
        for part in LOSSES
    ]


def task_losses(model: Model, cube: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the four losses of one whole cube by one formula for every layout.

    In training, `hr` is scored on n n^T and on time in voxels, `mtl` on angles and on time in 0..1, which do
    not compare. Here angles are those of the normal that inference takes and time is in 0..1, solved from the
    network's own outputs.
    """
    maps = model.maps(torch.from_numpy(cube["image"])[None, None])[0].numpy()
    named = split_maps(maps, model.heads, model.layout)
    time_found = named["time"]
    if model.layout == "hr":
        time_found = time_found + solved_time(*(np.ascontiguousarray(named[n]) for n in ("dhr", "fsem")))
    truth = {n: torch.from_numpy(v)[None, None] for n, v in cube.items()}
    p, dhr = (torch.from_numpy(np.ascontiguousarray(named[n]))[None, None] for n in ("fsem", "dhr"))
    rgt = normalise_rgt(torch.from_numpy(np.ascontiguousarray(time_found)))[None, None]
    normal, _ = normal_from_outer(torch.from_numpy(np.ascontiguousarray(named["orient"])))
    true = losses.target_normal(truth["fdip"], truth["fstrike"])[0]
    miss = 1 - (normal * true).sum(0).square()
    on_fault = truth["fsem"][0, 0] > 0.5
    values = {
        "fsem": losses.fault_loss(torch.logit(p, eps=1e-6), truth["fsem"]),
        "angle": miss[on_fault].mean(),  # NaN without a fault, which the mean over cubes leaves out
        "dhr": losses.dhr_loss(dhr, truth["dhr"], truth["fsem"]),
        "rgt": losses.unit_rgt_loss(rgt, truth["rgt"], truth["fsem"]),
    }
    return {name: float(value) for name, value in values.items()}


CASES: dict[str, Callable[[Quality], Rows]] = {"short": short_rows, "curves": curve_rows, "mtl": mtl_rows}
