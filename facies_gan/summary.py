"""The summary of a set of realisations: summary.json and index.html."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_text
from common.report import format_number
from common.report_style import STYLE
from facies_gan.palette import Palette

PERCENTILES = (10, 50, 90)
CAPTIONS = {
    "comparison.png": "Reference and realisations; data cells are marked.",
    "most_likely.png": "Most likely facies of each cell.",
    "entropy.png": "Entropy: 0 where the data leave no doubt.",
    "well_mask.png": "The data cells.",
    "mds.png": "Distances between patterns of realisations and of the reference.",
}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return P10, P50 and P90."""
    found = np.percentile(np.asarray(values, dtype=np.float64), PERCENTILES)
    return {f"P{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}


def statistics(rows: Sequence[dict[str, Any]], palette: Palette) -> dict[str, Any]:
    """Return the spread of proportions and bodies over the realisations, and the share of data honoured."""
    facies = {
        name: {
            measure: percentiles([row[f"{measure}_{name}"] for row in rows])
            for measure in ("proportion", "largest_body", "bodies")
        }
        for name in palette.names
    }
    checks = {}
    for name in ("accuracy_before_injection", "accuracy_after_injection"):
        values = [row[name] for row in rows if row[name] is not None]
        checks[name] = float(np.mean(values)) if values else None
    return {"facies": facies, "hard_data": checks}


def write_index(folder: Path, summary: dict[str, Any]) -> None:
    """Write index.html: one page without scripts or links to other hosts; the pictures lie beside it."""
    rows = []
    for name in summary["statistics"]["facies"]:
        for measure, unit in (("proportion", "-"), ("largest_body", "cells"), ("bodies", "count")):
            spread = summary["statistics"]["facies"][name][measure]
            cells = "".join(f"<td>{format_number(spread[f'P{p}'])}</td>" for p in PERCENTILES)
            label = html.escape(f"{name}: {measure.replace('_', ' ')} ({unit})")
            rows.append(f"<tr><td>{label}</td>{cells}</tr>")
    checks = {**summary["statistics"]["hard_data"], **summary.get("blending", {})}
    lines = "".join(
        f"<li>{html.escape(name.replace('_', ' '))}: {format_number(value)}</li>"
        for name, value in checks.items()
        if value is not None
    )
    pictures = [(name, text) for name, text in CAPTIONS.items() if (folder / name).is_file()]
    pictures += [
        (path.name, f"Probability of {path.stem.removeprefix('probability_')}: black 0, white 1.")
        for path in sorted(folder.glob("probability_*.png"))
    ]
    figures = "".join(
        f'<figure><img src="{html.escape(name)}" alt="{html.escape(text)}" loading="lazy">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in pictures
    )
    height, width = summary["settings"]["size"]
    data = f"{summary['num_data']} data cells" if summary["num_data"] else "no data"
    text = (
        f"{summary['how_many']} realisations of {height} x {width} cells (H x W), seed "
        f"{summary['settings']['seed']}, {data}."
    )
    head = "".join(f"<th>P{p}</th>" for p in PERCENTILES)
    write_text(
        folder / "index.html",
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Facies realisations</title><style>{STYLE}</style></head><body>"
        f"<header><h1>Facies realisations</h1><p>{html.escape(text)}</p></header><main><section>"
        f"<h2>Spread over the realisations</h2><table><thead><tr><th>measure</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        + (f"<h3>Data</h3><ul>{lines}</ul>" if lines else "")
        + f"<h3>Command</h3><pre><code>{html.escape(summary['command'])}</code></pre></section>"
        f"<section><h2>Maps</h2>{figures}</section></main></body></html>\n",
    )
