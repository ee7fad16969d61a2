"""What is fitted on validation samples after training: temperature, threshold, use of the time correction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import optimize

from common import checkpoint as checkpoints
from fault_seg.dataset import solved_time
from fault_seg.first_estimates import estimate_of, refine_channels
from fault_seg.maps import Model, split_maps, volumes_from
from fault_seg.metrics import tune_threshold
from fault_seg.metrics_fields import rgt_scores

KEY = "calibration"  # in the normalisation state of a checkpoint
MAX_VOXELS = 1_000_000
LOG_RANGE = (-2.0, 2.5)  # of the temperature: 0.14 to 12
TINY = 1e-6


def logits_of(probability: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)) in float64, p kept from 0 and 1 by 1e-6."""
    p = np.clip(probability.astype(np.float64), TINY, 1 - TINY)
    return np.log(p) - np.log1p(-p)


def fit_temperature(logits: np.ndarray, faults: np.ndarray) -> float:
    """Return T that minimises mean BCE of sigmoid(logit / T), flat arrays (Guo et al. 2017)."""
    sign = np.where(faults, -1.0, 1.0) * logits

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, sign * np.exp(-log_temperature)).mean())

    found: Any = optimize.minimize_scalar(loss, bounds=LOG_RANGE, method="bounded")
    return float(np.exp(found.x))


def cube_maps(model: Model, item: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the maps [C, Z, Y, X] of one whole sample, and the time that its correction adds to (hr).

    For kind infer the time is solved from the network's own outputs, as in inference.
    """
    batch = {name: value[None] for name, value in item.items() if isinstance(value, torch.Tensor)}
    if model.kind == "refine":
        estimate = estimate_of(batch)
        maps = model.maps(refine_channels(estimate, model.layout))[0].numpy()
        return maps, estimate["tau"][0, 0].numpy() if model.layout == "hr" else None
    maps = model.maps(batch["image"])[0].numpy()
    if "rgt" not in model.heads or model.layout != "hr":
        return maps, None
    named = split_maps(maps, model.heads, model.layout)
    image = named.get("dhr", item["image"][0].numpy())
    fsem = named.get("fsem", np.zeros_like(image))
    return maps, solved_time(np.ascontiguousarray(image), np.ascontiguousarray(fsem))


def calibrate(model: Model, items: Sequence[Mapping[str, Any]], residual: str = "auto") -> dict[str, Any]:
    """Return temperature, threshold and rgt_residual of a model, fitted on whole held-out samples.

    Args:
        model: with temperature 1 and its time correction on.
        items: of a dataset, with the truth.
        residual: on, off, or auto: the correction stays when it lowers the mean error of rgt.
    """
    probabilities, labels, errors = [], [], []
    for item in items:
        maps, tau = cube_maps(model, item)
        if "fault" in model.heads:
            probabilities.append(maps[0])
            labels.append(item["fsem"][0].numpy())
        if tau is not None and residual == "auto":
            errors.append(_time_errors(model, maps, tau, item["rgt"][0].numpy()))
    result: dict[str, Any] = {}
    if any((y > 0.5).any() for y in labels):
        flat = [p[y >= 0] for p, y in zip(probabilities, labels, strict=True)]
        true = np.concatenate([y[y >= 0] > 0.5 for y in labels])
        logits = logits_of(np.concatenate(flat))
        step = -(-len(logits) // MAX_VOXELS)
        # A refining network meets its own output: a temperature would count once a pass.
        temperature = fit_temperature(logits[::step], true[::step]) if model.kind == "infer" else 1.0
        scaled = [1 / (1 + np.exp(-logits_of(p) / temperature)) for p in probabilities]
        threshold = tune_threshold([p.astype(np.float32) for p in scaled], labels)
        result |= {"temperature": temperature, "threshold": float(np.clip(threshold, 0.01, 0.99))}
    if residual != "auto":
        result["rgt_residual"] = residual == "on"
    elif errors:
        corrected, plain = np.mean(errors, axis=0)
        result |= {
            "rgt_residual": bool(corrected < plain),
            "rgt_mae_corrected": float(corrected),
            "rgt_mae_solved": float(plain),
        }
    return result


def _time_errors(model: Model, maps: np.ndarray, tau: np.ndarray, rgt: np.ndarray) -> tuple[float, float]:
    """Return the error of rgt with the correction and without it."""
    scores = []
    for scale in (1.0, 0.0):
        changed = maps.copy()
        place = -1 if not model.has_spread else -2
        changed[place] *= scale
        found = volumes_from(changed, model.heads, model.layout, tau)["rgt"]
        scores.append(rgt_scores(found, rgt)["rgt_mae"])
    return scores[0], scores[1]


def store(path: Path, calibration: Mapping[str, Any]) -> None:
    """Write a calibration into a checkpoint; everything else in it stays."""
    found = checkpoints.load(path, package="fault_seg")
    normalization = {**found.normalization, KEY: dict(calibration)}
    checkpoints.save(path, dataclasses.replace(found, normalization=normalization))


def stored(normalization: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the calibration of a checkpoint's normalisation state, {} without one."""
    return normalization.get(KEY) or {}
