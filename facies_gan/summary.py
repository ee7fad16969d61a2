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
from facies_gan.metrics_spatial import proportions
from facies_gan.model_card import ModelCard
from facies_gan.outputs import file_name
from facies_gan.palette import Palette

PERCENTILES = (10, 50, 90)
CELLS = "\n.cells { width: min(100%, 34rem); image-rendering: pixelated; }\n"
FACIES_STYLE = """
.facies span { display: inline-block; margin-right: 1.2rem; }
.facies i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid #888888; }
"""
DRAWN = ("comparison.png", "entropy.png", "mds.png")  # the others have one pixel a cell
CHECKS = {
    "accuracy_after_injection": "data honoured (share)",
    "accuracy_before_injection": "data that the network alone has right (share)",
    "seam_ratio": "facies changes beside data over those expected (seam ratio; of pasted data, several)",
    "isolated_data_cells": "data cells unlike all of their neighbours (share)",
}
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


def learnt_proportions(card: ModelCard) -> dict[str, float]:
    """Return the share of each facies in the sections that travel with the model; empty without any."""
    labels = [anchor.labels for anchor in card.anchors if anchor.labels is not None]
    if not labels:
        return {}
    shares = proportions(labels, len(card.palette))
    return {name: float(share) for name, share in zip(card.palette.names, shares, strict=True)}


def write_index(folder: Path, summary: dict[str, Any]) -> None:
    """Write index.html: one page without scripts or links to other hosts; the pictures lie beside it."""
    height, width = summary["settings"]["size"]
    data = f"{summary['num_data']} data cells" if summary["num_data"] else "no data"
    text = (
        f"{summary['how_many']} realisations of {height} x {width} cells (H x W), seed "
        f"{summary['settings']['seed']}, {data}."
    )
    write_text(
        folder / "index.html",
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Facies realisations</title><style>{STYLE}{CELLS}{FACIES_STYLE}</style></head><body>"
        f"<header><h1>Facies realisations</h1><p>{html.escape(text)}</p></header><main><section>"
        f"<h2>Spread over the realisations</h2>{_spread(summary)}{_checks(summary)}"
        f"<h3>Command</h3><pre><code>{html.escape(summary['command'])}</code></pre></section>"
        f"<section><h2>Maps</h2>{facies_legend(summary['facies'])}"
        f"{_figures(folder, summary['facies']['names'])}</section></main></body></html>\n",
    )


def _spread(summary: dict[str, Any]) -> str:
    """Return a table with a row for each facies and measure, beside what the model learnt from."""
    learnt = summary.get("learnt_proportions", {})
    rows = []
    for name, measures in summary["statistics"]["facies"].items():
        for measure, unit in (("proportion", "share"), ("largest_body", "cells"), ("bodies", "count")):
            cells = "".join(f"<td>{format_number(measures[measure][f'P{p}'])}</td>" for p in PERCENTILES)
            label = html.escape(f"{name}: {measure.replace('_', ' ')} ({unit})")
            own = format_number(learnt[name]) if measure == "proportion" and name in learnt else ""
            rows.append(f"<tr><td>{label}</td>{cells}<td>{own}</td></tr>")
    head = "".join(f"<th>P{p}</th>" for p in PERCENTILES) + "<th>sections learnt from</th>"
    return f"<table><thead><tr><th>measure</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _checks(summary: dict[str, Any]) -> str:
    """Return how data are honoured and embedded, and anchors rebuilt; empty where there are none."""
    checks = {**summary["statistics"]["hard_data"], **summary.get("blending", {})}
    lines = "".join(
        f"<li>{html.escape(text)}: {format_number(checks[name])}</li>"
        for name, text in CHECKS.items()
        if checks.get(name) is not None
    )
    text = f"<h3>Data</h3><ul>{lines}</ul>" if lines else ""
    if summary.get("rebuilt"):
        shares = ", ".join(f"{html.escape(k)} {format_number(v)}" for k, v in summary["rebuilt"].items())
        text += f"<h3>Anchors rebuilt from their saved noise</h3><p>Cells right (share): {shares}.</p>"
    return text


def facies_legend(facies: dict[str, Any]) -> str:
    """Return which colour and code is which facies."""
    entries = "".join(
        f'<span><i style="background: rgb({red} {green} {blue})"></i>{html.escape(name)} (code {code})</span>'
        for (red, green, blue), name, code in zip(
            facies["colors"], facies["names"], facies["codes"], strict=True
        )
    )
    return f'<p class="facies">{entries}</p>'


def _figures(folder: Path, facies: Sequence[str]) -> str:
    """Return the pictures that there are; those of one pixel a cell are shown larger."""
    pictures = {name: text for name, text in CAPTIONS.items() if (folder / name).is_file()}
    for name in facies:
        path = folder / f"probability_{file_name(name)}.png"
        if path.is_file():
            pictures[path.name] = f"Probability of {name}: black 0, white 1."
    return "".join(
        f'<figure><img src="{html.escape(name)}" alt="{html.escape(text)}" loading="lazy"'
        + ("" if name in DRAWN else ' class="cells"')
        + ">"
        + f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in pictures.items()
    )
