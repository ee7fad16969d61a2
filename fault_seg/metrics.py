"""The table of measures of one cube and of a set of cubes, and the choice of a threshold.

The formulas are in `metrics_fault` (masks and probabilities), `metrics_section` (ODS, OIS) and
`metrics_fields` (angles, rgt, dhr); this file puts them together.

A cube's outputs and truths are dictionaries of NumPy arrays [n1, n2, n3] by the names of the volumes: `fsem`
(probability; truth 1, 0 or -1 unlabelled), `fdip` and `fstrike` (degrees / 180, not multiplied by fsem),
`rgt`, `dhr`, and `image` (the network's input, truth side only, for the bandwidth ratio).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fault_seg import metrics_fault as mf
from fault_seg.metrics_fault import Array
from fault_seg.metrics_fields import angle_scores, dhr_scores, pooled_angle_median, rgt_scores
from fault_seg.metrics_section import ods_ois

MEASURES = ("tol_iou", "tol_f1", "iou", "f1", "dice")


def fault_scores(probability: Array, labels: Array, threshold: float) -> dict[str, float]:
    """Return the fault measures of one cube at `threshold`, with AP and ECE, which need none."""
    predicted, true = mf.fault_masks(probability, labels, threshold)
    tol_f1 = mf.tolerant_f1(predicted, true)
    return {
        "precision": mf.precision(predicted, true),
        "recall": mf.recall(predicted, true),
        "f1": mf.f1(predicted, true),
        "iou": mf.iou(predicted, true),
        "dice": mf.dice(predicted, true),
        "tol_f1": tol_f1,
        "tol_iou": mf.tolerant_iou_of(tol_f1),
        "hd95_voxels": mf.hd95(predicted, true),
        "ap": mf.average_precision(probability, labels),
        "ece": mf.expected_calibration_error(probability, labels),
    }


def score_cube(
    prediction: Mapping[str, Array], truth: Mapping[str, Array], threshold: float
) -> dict[str, float]:
    """Return every measure that the volumes of `prediction` allow, for one cube.

    Args:
        prediction: volumes by name, any of fsem, fdip with fstrike, rgt, dhr.
        truth: the same volumes, and `image` if there is one. Labels of -1 leave the fault and angle measures
            and never the others.
        threshold: fault probability from which a voxel is a fault.
    """
    scores: dict[str, float] = {}
    if "fsem" in prediction:
        scores |= fault_scores(prediction["fsem"], truth["fsem"], threshold)
    if "fdip" in prediction:
        angles = (prediction["fdip"], prediction["fstrike"], truth["fdip"], truth["fstrike"])
        scores |= angle_scores(*angles, truth["fsem"] > 0.5)
    if "rgt" in prediction:
        scores |= rgt_scores(prediction["rgt"], truth["rgt"])
    if "dhr" in prediction:
        scores |= dhr_scores(prediction["dhr"], truth["dhr"], truth.get("image"))
    return scores


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each measure over cubes, undefined values (NaN) left out.

    `hd95_undefined` counts the cubes with an empty mask, which have no Hausdorff distance. A measure that is
    undefined everywhere stays NaN.
    """
    result: dict[str, float] = {}
    for name in dict.fromkeys(key for cube in scores for key in cube):
        values = np.array([cube[name] for cube in scores if name in cube], dtype=np.float64)
        defined = values[~np.isnan(values)]
        result[name] = float(defined.mean()) if defined.size else float("nan")
        if name == "hd95_voxels":
            result["hd95_undefined"] = float(values.size - defined.size)
    return result


def set_scores(
    cubes: Sequence[Mapping[str, float]],
    predictions: Sequence[Mapping[str, Array]],
    truths: Sequence[Mapping[str, Array]],
) -> dict[str, float]:
    """Return the means of the scores of `cubes`, with what is measured over the voxels of all cubes.

    That is `angle_median_pooled_deg`, beside `angle_median_deg`, the mean over cubes of each one's median.
    """
    mean = mean_scores(cubes)
    if "angle_median_deg" not in mean or not all("fdip" in p for p in predictions):
        return mean
    pooled = {"angle_median_pooled_deg": pooled_angle_median(predictions, truths)}
    last = list(mean).index("angle_median_deg") + 1
    return dict([*list(mean.items())[:last], *pooled.items(), *list(mean.items())[last:]])


def score_set(
    predictions: Sequence[Mapping[str, Array]], truths: Sequence[Mapping[str, Array]], threshold: float
) -> dict[str, float]:
    """Return the mean scores of a set of cubes, with ODS and OIS over all its inline sections."""
    pairs = list(zip(predictions, truths, strict=True))
    result = set_scores([score_cube(p, t, threshold) for p, t in pairs], predictions, truths)
    if all("fsem" in p for p in predictions):
        result |= ods_ois([p["fsem"] for p in predictions], [t["fsem"] for t in truths])
    return result


def threshold_curve(probability: Array, labels: Array, thresholds: Array, measure: str = "tol_iou") -> Array:
    """Return `measure` (one of MEASURES) of one cube at every threshold, in one pass over the cube."""
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r} is none of {', '.join(MEASURES)}")
    radius = 2 if measure.startswith("tol_") else 0
    f1 = mf.f1_from_counts(mf.tolerant_counts(probability, labels, thresholds, radius))
    return f1 / (2 - f1) if measure.endswith("iou") else f1


def tune_threshold(
    probabilities: Sequence[Array], labels: Sequence[Array], measure: str = "tol_iou"
) -> float:
    """Return the threshold with the best mean of `measure` over the cubes (never the cubes to be scored).

    Candidates are 0.01 .. 0.99 and the percentiles of the probabilities, which resolve a volume whose values
    crowd in a small range. Of equal ones the middle is taken.
    """
    sample = np.concatenate([p[y >= 0] for p, y in zip(probabilities, labels, strict=True)])
    candidates = np.concatenate([np.linspace(0.01, 0.99, 99), np.percentile(sample, np.arange(50, 100, 0.5))])
    thresholds = np.unique(candidates)
    curves = [threshold_curve(p, y, thresholds, measure) for p, y in zip(probabilities, labels, strict=True)]
    mean = np.mean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return float(thresholds[best[len(best) // 2]])
