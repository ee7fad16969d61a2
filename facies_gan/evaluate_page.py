"""The report of an evaluation as a page: the Markdown report's own tables, then the figures."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from common.files import write_text
from common.report_style import STYLE
from facies_gan.palette import Palette
from facies_gan.summary import FACIES_STYLE, facies_legend

FIGURES = {
    "realisations.png": "The reference, realisations through the data, how probable its commonest facies "
    "beside the background is, and what the data leave open: nothing at the data, more with distance.",
    "scores.png": "Errors over those of one half of the reference against the other: left of 1 is matched.",
    "curves.png": "Variograms and connectivity, mean over realisations.",
    "proportions.png": "Share of each facies by row.",
    "entropy.png": "Mean entropy by distance to the nearest datum.",
    "blending.png": "Wells of the reference: realisations through them, and what pasting them in would give.",
    "calibration.png": "At wells held out: how often a facies is found where it was given a probability.",
    "mds.png": "Each image a point; near points have like patterns.",
}
MORE = ".table td { text-align: right; } .table td:first-child { text-align: left; }"


def write_page(path: Path, text: str, palette: Palette) -> None:
    """Write one page without scripts or links to other hosts; the figures lie in `figures` beside it.

    Args:
        path: of the page.
        text: the report in Markdown.
        palette: the facies, for their colours.
    """
    found = [(name, told) for name, told in FIGURES.items() if (path.parent / "figures" / name).is_file()]
    figures = "".join(
        f'<figure><img src="figures/{name}" alt="{html.escape(told)}" loading="lazy">'
        f"<figcaption>{html.escape(told)}</figcaption></figure>"
        for name, told in found
    )
    head, _, rest = text.partition("\n")
    title = html.escape(head.lstrip("# "))
    legend = facies_legend(palette.to_dict())
    shown = f"<section><h2>Figures</h2>{legend}{figures}</section>" if found else ""
    write_text(
        path,
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{FACIES_STYLE}{MORE}</style></head><body>"
        f"<header><h1>{title}</h1></header><main><section>{body(rest)}</section>{shown}</main></body></html>\n",
    )


def body(text: str) -> str:
    """Return Markdown of headings, tables, code blocks and paragraphs as HTML; everything else is text."""
    parts = []
    for block in re.split(r"\n{2,}", text.strip()):
        lines = block.strip().splitlines()
        if lines[0].startswith("```"):
            parts.append(f"<pre><code>{html.escape(chr(10).join(lines[1:-1]))}</code></pre>")
        elif lines[0].startswith("## "):
            parts.append(f"<h3>{html.escape(lines[0][3:])}</h3>")
        elif lines[0].startswith("| "):
            parts.append(_table([_cells(line) for line in (lines[0], *lines[2:])]))
        else:
            parts.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = ("".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in rows)
    lines = "".join(f"<tr>{row}</tr>" for row in others)
    head = head.replace("td>", "th>")
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _inline(text: str) -> str:
    """Return a text with its bold parts as HTML."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
