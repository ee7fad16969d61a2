"""Rows of an evaluation: scores beside baselines, members beside their means, coverage of the half-widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import read_json
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

    Raises:
        DataError: ensemble.json lacks what a training writes.
    """
    if len(members["each"]) == 1:
        return []
    found = {"MAPE of weighted members": members}
    path = model.with_name("ensemble.json")
    if path.is_file():
        advice = "delete it, or train the ensemble again"
        stored = read_json(path, advice)
        try:
            found["validation MAPE of weighted members"] = {
                name: stored[f"mape_{key}"]
                for name, key in (("each", "members"), ("uniform", "uniform"), ("weighted", "weighted"))
            }
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: no {error} in it; {advice}") from error
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


def coverage_row(first: Row, found: Mapping[str, float], name: str) -> Row:
    """Return the share of cells whose truth lies inside the half-width, `found` being shares by name."""
    measure = f"cells inside the {found['nominal']:g} band" + ("" if name == "measured" else f", {name}")
    return replace(first, measure=measure, unit="share", better="higher", ours=found[name], baselines={})
