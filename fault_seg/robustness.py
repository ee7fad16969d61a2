"""How a model holds out of its training's range: scores over presets of the generator and levels of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.report import Row, table
from fault_seg.baselines import coherence_faults
from fault_seg.infer import predict
from fault_seg.maps import Model
from fault_seg.metrics import mean_scores, score_cube
from fault_seg.synthetic import make_sample, preset

NOISES = (0.0, 0.4, 0.8)
MEASURES = {
    "ap": "AP",
    "tol_iou": "Tol-IoU@2",
    "angle_median_deg": "angle (degrees)",
    "rgt_mae": "rgt MAE",
    "dhr_psnr_db": "dhr PSNR (dB)",
    "coherence_ap": "AP of coherence",
}
SEED_OFFSET = 2_000_000_011  # cubes that neither training nor validation has seen


def robustness(
    model: Model,
    presets: Sequence[str],
    number: int,
    threshold: float,
    seed: int = 0,
    *,
    coherence: bool = False,
) -> list[dict[str, Any]]:
    """Return one row for each preset and largest noise: mean scores over `number` new cubes.

    Args:
        model: of kind infer.
        presets: of the generator.
        number: cubes a row.
        threshold: of the measures that need one.
        seed: of the cubes.
        coherence: score it on the same cubes, if the model finds faults.
    """
    rows = []
    for name in presets:
        for noise in NOISES:
            generator = replace(preset(name), noise_max=noise)
            scores = []
            for i in range(number):
                sample = make_sample(seed + SEED_OFFSET, i, generator)
                truth = sample.volumes()
                found = score_cube(predict(model, sample.image), truth, threshold)
                if coherence and "ap" in found:
                    likely = {"fsem": coherence_faults(sample.image)}
                    found["coherence_ap"] = score_cube(likely, truth, threshold)["ap"]
                scores.append(found)
            mean = mean_scores(scores)
            row: dict[str, Any] = {"preset": name, "noise_up_to": noise, "cubes": number}
            rows.append(row | {key: mean[key] for key in MEASURES if key in mean})
    return rows


def robustness_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    keys = [key for key in MEASURES if any(key in row for row in rows)]
    cells = [
        [row["preset"], f"{row['noise_up_to']:g}", *(f"{row[k]:.3g}" if k in row else "" for k in keys)]
        for row in rows
    ]
    return table(["preset", "noise up to", *(MEASURES[key] for key in keys)], cells)


def robustness_rows(first: Row, rows: Sequence[dict[str, Any]]) -> list[Row]:
    """Return AP and Tol-IoU@2 of each preset and noise as rows of the evaluation that `first` is one of.

    AP stands beside coherence's; the threshold of Tol-IoU@2 was tuned for the model alone.
    """
    made = []
    for row in rows:
        for key, name in (("ap", "fault average precision"), ("tol_iou", "fault Tol-IoU@2")):
            if not np.isfinite(row.get(key, np.nan)):
                continue
            measure = f"{name}, {row['preset']}, noise up to {row['noise_up_to']:g}, {row['cubes']} cubes"
            others = {"coherence": row["coherence_ap"]} if key == "ap" and "coherence_ap" in row else {}
            made.append(
                replace(first, measure=measure, unit="-", better="higher", ours=row[key], baselines=others)
            )
    return made
