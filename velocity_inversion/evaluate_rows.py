"""Rows of an evaluation: scores beside baselines, members beside their means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import read_json
from common.log import get_logger
from common.optim import parameter_count
from common.report import Row
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.member import Member
from velocity_inversion.waveform_scores import OURS

# measure -> (what to call it, unit, which is better)
MEASURES = {
    "mae": ("velocity MAE", "m/s", "lower"),
    "mape": ("velocity MAPE", "-", "lower"),
    "rmse": ("velocity RMSE", "m/s", "lower"),
    "ssim": ("SSIM", "-", "higher"),
}
Scores = dict[str, list[dict[str, float]]]


def score_rows(scores: Scores, ensemble: Ensemble, seconds: float, command: str) -> list[Row]:
    """Return the rows of `MEASURES` and of the flip average.

    Args:
        scores: method -> measures of each sample.
        ensemble: whose scores are `OURS`.
        seconds: of a prediction.
        command: that repeats the figures.
    """
    count = sum(parameter_count(Member(c, ensemble.survey)) for c in ensemble.configs)
    means = {
        name: {m: float(np.mean([r[m] for r in rows])) for m in MEASURES} for name, rows in scores.items()
    }
    rows = []
    for measure, (name, unit, better) in MEASURES.items():
        others = {other: values[measure] for other, values in means.items() if not other.startswith(OURS)}
        ours = means[OURS][measure]
        rows.append(
            Row("velocity_inversion", name, unit, better, ours, others, round(seconds, 4), count, command)
        )
    averaged = means["ours, flip averaged"]["mae"]
    plain = {"without averaging": means[OURS]["mae"]}
    return [*rows, replace(rows[0], measure="velocity MAE, flip averaged", ours=averaged, baselines=plain)]


def member_rows(first: Row, members: Mapping[str, Any], model: Path) -> list[Row]:
    """Return what the members' weights are worth, on held-out samples and on those that chose them.

    Args:
        first: a row of the same evaluation.
        members: MAPE of `each`, of their `uniform` and their `weighted` mean.
        model: file of the ensemble; its training's ensemble.json lies beside it, or there is no second row.

    Returns:
        no rows for a single member.
    """
    if len(members["each"]) == 1:
        return []
    found = {"MAPE of weighted members": members}
    path = model.with_name("ensemble.json")
    if path.is_file():
        found |= _validation(path, len(members["each"]))
    return [
        replace(
            first,
            measure=measure,
            unit="-",
            ours=mape["weighted"],
            baselines={"best member": min(mape["each"]), "equal weights": mape["uniform"]},
        )
        for measure, mape in found.items()
    ]


def _validation(path: Path, count: int) -> dict[str, dict[str, Any]]:
    """Return what a training wrote of its `count` members; nothing, with a warning, if that is damaged."""
    try:
        stored = read_json(path, "its row is left out")
        keys = (("each", "members"), ("uniform", "uniform"), ("weighted", "weighted"))
        mape = {name: stored[f"mape_{key}"] for name, key in keys}
        if len(mape["each"]) != count:
            raise DataError(f"{path}: of {len(mape['each'])} members, the model has {count}")
    except (DataError, KeyError, TypeError) as error:
        get_logger().warning(f"warning: {path}: not what a training writes ({error}); its row is left out")
        return {}
    return {"validation MAPE of weighted members": mape}
