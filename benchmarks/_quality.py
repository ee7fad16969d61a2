"""What a case of quality.py is: users' commands, and what their figures have to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import DataError

Limits = Mapping[str, tuple[float | None, float | None]]  # measure -> at most, at least
Places = tuple[tuple[str, str], ...]  # (name, place), of which the first that is there counts


@dataclass(frozen=True)
class Rival:
    """A limit of a measured row over one of its baselines.

    Attributes:
        measure: of the row.
        baseline: that it is compared with; without it there is no line.
        times: that the value may be of the baseline's, at most; None = shown only.
    """

    measure: str
    baseline: str
    times: float | None = 1.0


@dataclass(frozen=True)
class Figure:
    """A number of an evaluation's JSON document that is no row of its results.json.

    Attributes:
        what: it is.
        place: keys below each other with `/` between them, after `file:` where it is not the case's document;
            `a=b` is the part of a list whose `a` is b.
        unit: of it.
        most: it may be.
        least: it has to be.
        rivals: what it is compared with.
        times: that it may be of the rival's, at most.
        over: it has to be the rival's plus this, at least.
        distance: the line is the distance to the rival's, at most `most`.
    """

    what: str
    place: str
    unit: str = "-"
    most: float | None = None
    least: float | None = None
    rivals: Places = ()
    times: float | None = None
    over: float | None = None
    distance: bool = False


def value_at(document: Any, place: str) -> float | None:
    """Return the number at a place of a document; None where there is none."""
    for key in place.split("/"):
        if isinstance(document, Sequence) and "=" in key:
            name, _, wanted = key.partition("=")
            document = next((part for part in document if part.get(name) == wanted), None)
        else:
            document = document.get(key) if isinstance(document, Mapping) else None
    if document is not None and not isinstance(document, int | float):
        raise DataError(f"{place}: found {document!r}, expected a number; correct the case")
    return None if document is None else float(document)


@dataclass(frozen=True)
class Case:
    """What is run and what it has to reach.

    Attributes:
        commands: lines below scripts/; `{work}` is the case's folder, `{data}` that of the real files.
        values: limits of what was measured.
        ratios: limits of it over the best baseline.
        rivals: limits of it over one baseline, in lines of their own.
        figures: further numbers, in lines of their own.
        seconds: that a script may take, by its name.
        results: of the evaluation, below `{work}`.
        document: of the evaluation, where figures stand.
        needs: real files without which the case is left out.
    """

    commands: tuple[str, ...]
    values: Limits = field(default_factory=dict)
    ratios: Limits = field(default_factory=dict)
    rivals: tuple[Rival, ...] = ()
    figures: tuple[Figure, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: str = "report/results.json"
    document: str = "report/evaluation.json"
    needs: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The commands as one line, with short folders."""
        lines = (line.format(work="out", data="data") for line in self.commands)
        return " && ".join(f"python scripts/{line}" for line in lines)


BELOW, ABOVE = (1.0, None), (None, 1.0)
