"""How a model holds out of its training's range: scores over presets of the generator and levels of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
}
SEED_OFFSET = 2_000_000_011  # cubes that neither training nor validation has seen


def robustness(
    model: Model, presets: Sequence[str], number: int, threshold: float, seed: int = 0
) -> list[dict[str, Any]]:
    """Return one row for each preset and largest noise: mean scores over `number` new cubes.

    Args:
        model: of kind infer.
        presets: of the generator.
        number: cubes a row.
        threshold: of the measures that need one.
        seed: of the cubes.
    """
    rows = []
    for name in presets:
        for noise in NOISES:
            generator = replace(preset(name), noise_max=noise)
            scores = []
            for i in range(number):
                sample = make_sample(seed + SEED_OFFSET, i, generator)
                scores.append(score_cube(predict(model, sample.image), sample.volumes(), threshold))
            mean = mean_scores(scores)
            row: dict[str, Any] = {"preset": name, "noise_up_to": noise, "cubes": number}
            rows.append(row | {key: mean[key] for key in MEASURES if key in mean})
    return rows


def robustness_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    keys = [key for key in MEASURES if any(key in row for row in rows)]
    lines = ["| preset | noise up to | " + " | ".join(MEASURES[key] for key in keys) + " |"]
    lines.append("|---|---:|" + "---:|" * len(keys))
    for row in rows:
        values = " | ".join(f"{row[key]:.3g}" if key in row else "" for key in keys)
        lines.append(f"| {row['preset']} | {row['noise_up_to']:g} | {values} |")
    return "\n".join(lines) + "\n"
