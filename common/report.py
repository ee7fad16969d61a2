"""Results as one list of rows, and what is made from it: a Markdown table and the demo's HTML page.

`results.json` is the truth: a list of rows, one measure each. The page is one file without scripts, fonts or
links to other hosts; pictures lie beside it.
"""

from __future__ import annotations

import dataclasses
import html
import math
import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import files
from common.errors import DataError
from common.report_style import STYLE

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured value beside its baselines.

    Attributes:
        package: the model's package.
        measure: what was measured, e.g. "relative L2".
        unit: its unit, "-" when it has none.
        better: "lower" or "higher".
        ours: the value; None when the run failed.
        baselines: {name: value}; None where a baseline failed.
        seconds: wall time of the run that gave `ours`.
        parameters: number of weights.
        command: the command that repeats it.
    """

    package: str
    measure: str
    unit: str
    better: str
    ours: float | None
    baselines: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    parameters: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("package", "measure", "unit", "command"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected text")
        if not self.package or not self.measure:
            raise ValueError("package and measure must not be empty")
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better is {self.better!r}, expected lower or higher")
        if not isinstance(self.baselines, Mapping):
            raise ValueError(f"baselines is {self.baselines!r}, expected names with values")
        numbers = {
            "ours": self.ours,
            "seconds": self.seconds,
            "parameters": self.parameters,
            **self.baselines,
        }
        for name, value in numbers.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}, expected a finite number or null")

    @property
    def best_baseline(self) -> float | None:
        """The best of the baselines' values; None without any."""
        values = [v for v in self.baselines.values() if v is not None]
        if not values:
            return None
        return min(values) if self.better == "lower" else max(values)

    @property
    def won(self) -> bool | None:
        """Whether ours is better than every baseline; None when there is nothing to compare."""
        if self.ours is None or self.best_baseline is None:
            return None
        return self.ours < self.best_baseline if self.better == "lower" else self.ours > self.best_baseline

    @property
    def ratio(self) -> float | None:
        """The value over the best baseline's; None when one is missing or not positive."""
        if self.ours is None or self.best_baseline is None or min(self.ours, self.best_baseline) <= 0:
            return None
        return self.ours / self.best_baseline


def save_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write `results.json` atomically."""
    files.write_json(path, [dataclasses.asdict(row) for row in rows])


def load_rows(path: str | Path) -> list[Row]:
    """Return the rows of `results.json`.

    Raises:
        DataError: the file is missing, no JSON list, or a row is not valid; the message names it.
    """
    items = files.read_json(path, "run the demo again")
    if not isinstance(items, list):
        raise DataError(f"{path}: found {type(items).__name__}, expected a list of rows")
    rows = []
    for number, item in enumerate(items):
        try:
            rows.append(Row(**item))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: row {number}: {error}") from error
    return rows


def format_number(value: float | None) -> str:
    """Return a value to three significant digits, thousands in groups; "failed" for None."""
    if value is None:
        return "failed"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        text = f"{value:.3g}"
        return f"{value:,.0f}" if "e" in text else text
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.2e}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return cells as a Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _cells(row: Row) -> tuple[str, list[tuple[str, str, bool]], str, str, str]:
    """Return measure, [(name, value, is best)] with ours first, ratio, seconds and parameters as text."""
    arrow = "\N{DOWNWARDS ARROW}" if row.better == "lower" else "\N{UPWARDS ARROW}"
    unit = f" ({row.unit})" if row.unit not in ("", "-") else ""
    values = {"ours": row.ours, **row.baselines}
    known = [v for v in values.values() if v is not None]
    best = (min(known) if row.better == "lower" else max(known)) if known else None
    entries = [
        (n, format_number(v), v is not None and v == best and len(known) > 1) for n, v in values.items()
    ]
    return (
        f"{row.measure}{unit} {arrow}",
        entries,
        "-" if row.ratio is None else f"{row.ratio:.2f}",
        "-" if row.seconds is None else format_number(row.seconds),
        f"{row.parameters:,}" if row.parameters else "-",
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table; the better value is bold, arrows say which way is better."""
    lines = [
        "| package | measure | ours | baselines | ours / best baseline | seconds | parameters |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        measure, entries, *rest = _cells(row)
        marked = [(n, f"**{v}**" if best else v) for n, v, best in entries]
        baselines = ", ".join(f"{_plain(name)} {value}" for name, value in marked[1:]) or "-"
        cells = [f"`{_plain(row.package)}`", _plain(measure), marked[0][1], baselines, *rest]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return text that cannot leave its Markdown cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "'")
    return text.replace("|", "\\|")


def update_readme_table(readme_path: str | Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the result markers of a README by the table of `rows`, atomically.

    Raises:
        DataError: the file cannot be read, or the two markers are not there once and in order.
    """
    path = Path(readme_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{path}: expected the lines {BEGIN} and {END} once each and in this order; add them")
    before, rest = text.split(BEGIN)
    files.write_text(path, f"{before}{BEGIN}\n{markdown_table(rows)}{END}{rest.split(END)[1]}")


# --- the page ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG of the page: its path (relative to the page, or inside its folder), caption and alt text."""

    path: str | Path
    caption: str
    alt: str


@dataclasses.dataclass(frozen=True)
class Section:
    """One model's part of the page.

    Attributes:
        package: the package, also the section's anchor.
        title: heading.
        question: the question that the model answers.
        figures: pictures in the order shown.
        rows: the measured table.
        seconds: wall time of the whole part.
        parameters: number of weights of the model.
        commands: what to run next, each on its own line.
        failures: what did not work, told plainly.
        notes: paragraphs below the table.
    """

    package: str
    title: str
    question: str
    figures: Sequence[Picture] = ()
    rows: Sequence[Row] = ()
    seconds: float | None = None
    parameters: int | None = None
    commands: Sequence[str] = ()
    failures: Sequence[str] = ()
    notes: Sequence[str] = ()


def html_page(path: str | Path, title: str, intro: str, sections: Sequence[Section]) -> Path:
    """Write the page atomically and return its path; empty lines in `intro` part paragraphs.

    Raises:
        DataError: a figure does not exist, or lies outside the page's folder.
    """
    path = Path(path)
    body = "\n".join(_section(section, path.parent) for section in sections)
    links = "".join(
        f'<li><a href="#{_escape(s.package)}">{_escape(s.title)}</a><span>{_escape(s.question)}</span></li>'
        for s in sections
    )
    navigation = f"<nav><ul>{links}</ul></nav>" if len(sections) > 1 else ""
    paragraphs = "".join(f"<p>{_escape(part)}</p>" for part in intro.split("\n\n") if part.strip())
    files.write_text(
        path,
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_escape(title)}</h1>{paragraphs}{navigation}</header>
<main>
{body}
</main>
</body>
</html>
""",
    )
    return path


def _escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _section(section: Section, folder: Path) -> str:
    facts = []
    if section.parameters is not None:
        facts.append(f"{section.parameters:,} parameters")
    if section.seconds is not None:
        facts.append(f"{format_number(section.seconds)} s in all")
    parts = [
        f'<section id="{_escape(section.package)}">',
        f"<h2>{_escape(section.title)}</h2>",
        f'<p class="question">{_escape(section.question)}</p>',
    ]
    if facts:
        parts.append(f'<p class="facts">{_escape(", ".join(facts))}</p>')
    parts += [f'<p class="failure"><strong>Failed:</strong> {_escape(text)}</p>' for text in section.failures]
    parts += [_figure(figure, folder, section.package) for figure in section.figures]
    if section.rows:
        parts.append(_table(section.rows))
    parts += [f"<p>{_escape(note)}</p>" for note in section.notes]
    if section.commands:
        commands = "\n".join(section.commands)
        parts.append(f"<h3>Go on with</h3><pre><code>{_escape(commands)}</code></pre>")
    return "\n".join([*parts, "</section>"])


def _figure(figure: Picture, folder: Path, package: str) -> str:
    place = folder / figure.path
    if not place.is_file():
        raise DataError(f"{place}: the figure of {package} does not exist; draw it before the page")
    relative = os.path.relpath(place, folder)
    if relative.startswith(".."):
        raise DataError(f"{place}: lies outside the page's folder {folder}; save the figure below it")
    source = _escape(urllib.parse.quote(relative))
    return (
        f'<figure><a href="{source}"><img src="{source}" alt="{_escape(figure.alt)}" loading="lazy"></a>'
        f"<figcaption>{_escape(figure.caption)}</figcaption></figure>"
    )


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        measure, entries, ratio, seconds, parameters = _cells(row)
        ours, *baselines = [
            f'<span class="best" title="best">{_escape(value)}</span>' if best else _escape(value)
            for _, value, best in entries
        ]
        others = "".join(
            f'<span class="baseline"><span class="name">{_escape(name)}</span> {value}</span>'
            for (name, _, _), value in zip(entries[1:], baselines, strict=True)
        )
        verdict = {True: "won", False: "lost", None: ""}[row.won]
        lines.append(
            f'<tr><th scope="row">{_escape(measure)}</th><td class="number">{ours}</td>'
            f'<td>{others or "-"}</td><td class="number {verdict}">{ratio}</td>'
            f'<td class="number">{seconds}</td><td class="number">{parameters}</td></tr>'
        )
    heads = ("measure", "ours", "baselines", "ours / best baseline", "seconds", "parameters")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        '<p class="legend">\N{DOWNWARDS ARROW} lower is better, \N{UPWARDS ARROW} higher is better; '
        "the best value of a row is marked.</p>"
    )
