"""The report of an evaluation: Markdown tables for readers, rows for the demo's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.report import Row, format_number, table
from facies_gan.comparison import MEASURES, PUBLISHED, verdict
from facies_gan.metrics import DISTANCES

# what to aim at, besides no error; entropies are those of a cell whose nearest datum alone is known
OF_THE_REFERENCE = ("gamma", "bodies", "euler", "seam_ratio", "isolated")
OF_THE_REFERENCE += tuple(f"entropy_{d}" for d in DISTANCES[1:])
HEADLINES = ("proportion", "variogram", "connectivity", "mph2", "mph4", "anodi_within", "cell_accuracy")
NOTES = (
    "JSD: Jensen-Shannon divergence. half vs half: the reference's one half against its other (of sections "
    "even against odd ones); ours / half of at most 1 is matched, of at most 2 close. paste: our "
    "realisations made without the data, which are then written into their cells."
)


def number(value: float | None) -> str:
    """Return a value to three digits, a dash for none."""
    return "-" if value is None or not np.isfinite(value) else format_number(value)


def score_table(
    scores: Mapping[str, Mapping[str, float]],
    band: Mapping[str, float],
    ours: str,
    reference: Mapping[str, float],
    not_run: Mapping[str, str],
) -> str:
    """Return a row for each measure: ours, the other methods, the reference and its band, ours over that.

    A method that could not run has a column that says why, once.
    """
    names = [ours, *(name for name in scores if name != ours)]
    reasons = list(not_run.values())
    rows = []
    for key, measure in MEASURES.items():
        values = [scores[name].get(key) for name in names]
        if all(value is None for value in values):
            continue
        known = [value for value in values if value is not None]
        best = {"lower": min, "higher": max}.get(measure.better)
        cells = []
        for value in values:
            marked = best is not None and len(known) > 1 and value == best(known)
            cells.append(f"**{number(value)}**" if marked else number(value))
        own, half = scores[ours].get(key), band.get(key)
        ratio = own / half if own is not None and half else None
        unit = f" ({measure.unit})" if measure.unit != "-" else ""
        arrow = {"lower": " ↓", "higher": " ↑", "": ""}[measure.better]
        compared = f"{ratio:.2f} {verdict(ratio)}" if ratio is not None else "-"
        true = number(reference.get(key)) if key in OF_THE_REFERENCE else "-"
        cells += ["-" if rows else reason for reason in reasons]
        rows.append([f"{measure.name}{unit}{arrow}", *cells, true, number(half), compared])
    return table(["measure", *names, *not_run, "reference", "half vs half", f"{ours} / half"], rows)


def facies_rows(facies: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each facies: its share in the reference; mean, spread and error of each method."""
    names = [name for name in facies[0] if name not in ("facies", "reference")]

    def cell(value: Any) -> str:
        return f"{value['mean']:.4f} ± {value['sd']:.4f} ({value['error']:.4f})"

    rows = [[f["facies"], f"{f['reference']:.4f}", *(cell(f[name]) for name in names)] for f in facies]
    return table(["share of facies, mean ± sd (error)", "reference", *names], rows)


def match_rows(match: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each facies: its data, share right and IoU before and after injection."""
    keys = ["before_share", "before_iou", "after_share", "after_iou"]
    keys = [key for key in keys if any(key in row for row in match)]
    rows = [[row["facies"], str(row["data"]), *(number(row.get(key)) for key in keys)] for row in match]
    return table(["data of facies", "data", *(key.replace("_", " injection: ") for key in keys)], rows)


def blending_rows(blending: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each pattern of wells and method."""
    keys = (
        "hard_match_before",
        "hard_match",
        "seam_ratio",
        "isolated",
        "small_bodies",
        "entropy_1",
        "entropy_4",
    )
    rows = []
    for part in blending:
        for method, scores in part["methods"].items():
            rows.append([part["wells"], method, *(number(scores.get(key)) for key in keys)])
    heads = ("right before injection", "honoured", "seam ratio", "isolated data cells")
    heads += ("bodies below 8 cells", "entropy at 1 (bits)", "entropy at 4 (bits)")
    return table(["wells of the reference", "method", *heads], rows)


def calibration_rows(calibration: Mapping[str, Any]) -> str:
    """Return a row for each method, and one for the global proportions."""
    methods = {k: v for k, v in calibration.items() if isinstance(v, dict) and v}
    rows = [[name, number(v["ece"]), number(v["log_score"])] for name, v in methods.items()]
    if methods:
        known = next(iter(methods.values()))["proportions_log_score"]
        rows.append(["global proportions", "-", number(known)])
    return table(["at held-out data", "calibration error", "log score (bits)"], rows)


def markdown(document: Mapping[str, Any]) -> str:
    """Return the whole report."""
    ours = document["ours"]
    height, width = document["shape"]
    parts = [
        "# Realisations beside their reference\n",
        f"{document['how_many']} realisations of {height} x {width} cells (H x W) for each of "
        f"{document['sections']} sections, {document['num_data']} data in all. Command:\n",
        f"```\n{document['command']}\n```\n",
        score_table(
            document["scores"], document["half_vs_half"], ours, document["reference"], document["not_run"]
        ),
        NOTES + "\n",
    ]
    if "cell_accuracy" in document["scores"][ours]:
        guess = number(document["row_guess_accuracy"])
        parts.append(f"Cells right when each row has its most frequent facies: {guess}.\n")
    if PUBLISHED in document["scores"]:
        parts.append(f"{PUBLISHED}: {document['published_source']}.\n")
    parts += ["## Facies\n", facies_rows(document["facies"])]
    if document["hard_data"]:
        parts += ["## Data\n", match_rows(document["hard_data"])]
    if document["blending"]:
        parts += ["## Blending\n", blending_rows(document["blending"])]
        parts.append(
            "A seam ratio above the reference's own is a seam, below it the data are embedded too well. "
            f"Wells are at most half of a section's columns, here {width // 2}.\n"
        )
    if document["calibration"]:
        parts += ["## Calibration\n", calibration_rows(document["calibration"])]
    parts += ["## Copies\n", copy_text(document), "## CPU time\n", time_rows(document["cpu_seconds_each"])]
    return "\n".join(parts)


def copy_text(document: Mapping[str, Any]) -> str:
    """Return whether realisations repeat parts of the reference word for word."""
    scores = document["scores"][document["ours"]]
    copied = scores["copy_median"] > scores["copy_band_95"]
    return (
        f"Best matches of 32 x 32 patches with what the model learnt from: median "
        f"{scores['copy_median']:.3f}; parts of "
        f"that in its other parts: median {scores['copy_band_median']:.3f}, 95 % below "
        f"{scores['copy_band_95']:.3f}. {'Parts are copied' if copied else 'No copy'}.\n"
    )


def time_rows(seconds: Mapping[str, float | None]) -> str:
    """Return CPU seconds a realisation of each method."""
    return table(["method", "CPU seconds a realisation"], [[n, number(v)] for n, v in seconds.items()])


def demo_rows(document: Mapping[str, Any], parameters: int | None) -> list[Row]:
    """Return the headline measures as rows: ours beside the baselines that were run."""
    ours = document["ours"]
    others = [name for name in document["scores"] if name not in (ours, "unconditioned")]
    rows = []
    for key in HEADLINES:
        own = document["scores"][ours].get(key)
        if own is None:
            continue
        measure = MEASURES[key]
        compared = {name: document["scores"][name].get(key) for name in others}
        if key == "cell_accuracy":
            compared["row's most frequent"] = document["row_guess_accuracy"]
        compared = {name: v for name, v in compared.items() if v is not None and np.isfinite(v)}
        seconds = document["cpu_seconds_each"][ours]
        rows.append(
            Row("facies_gan", measure.name, measure.unit, measure.better, own, compared, seconds, parameters,
                document["command"])
        )  # fmt: skip
    return rows + _seam_rows(document, parameters)


def _seam_rows(document: Mapping[str, Any], parameters: int | None) -> list[Row]:
    """Return the distance of the seam ratio to the reference's own at 8 wells."""
    for part in document["blending"]:
        if part["wells"] != "8 wells":
            continue
        own = part["methods"]["reference"].get("seam_ratio")
        gaps = {
            name: abs(scores["seam_ratio"] - own)
            for name, scores in part["methods"].items()
            if own is not None and name != "reference" and "seam_ratio" in scores
        }
        ours = gaps.pop("ours", None)
        if ours is not None:
            name = "seam ratio at 8 wells, distance to the reference's own"
            seconds = document["cpu_seconds_each"][document["ours"]]
            return [
                Row("facies_gan", name, "-", "lower", ours, gaps, seconds, parameters, document["command"])
            ]
    return []
