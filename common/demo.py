"""The demo of one package and of all: run the users' own commands, time them, tell what came of it.

A package's `scripts/<package>/demo.py` runs its steps and leaves `section.json`; `scripts/demo.py` runs the
packages one after another and makes the page and `results.json` from what they left.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.cli import option
from common.errors import DataError, StrataError
from common.files import read_json, write_json
from common.report import Picture, Row, Section, load_rows

ROOT = Path(__file__).resolve().parents[1]
CLOCK = "STRATA_DEMO_CLOCK"  # the variable by which scripts/demo.py tells a package's demo the time
LEAST_S = 10.0  # expected seconds behind us, from which the pace is judged


class StepFailedError(StrataError):
    """A command of the demo ended with an error; its own message stands above."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a demo: a script under `scripts/` with its flags, and what it is for.

    `seconds` is what it takes on two idle cores, 0 for one that runs beside another.
    """

    what: str
    script: str
    flags: Sequence[str]
    seconds: float = 0.0

    @property
    def command(self) -> str:
        """The line that a user would type."""
        return shlex.join(["python", f"scripts/{self.script}", *self.flags])


@dataclasses.dataclass
class Clock:
    """How long the demos still take: their expected seconds times the pace of what is done.

    Attributes:
        started: when the first demo started, seconds as `time.time` counts.
        done: expected seconds of all steps that are over.
        total: expected seconds of all demos.
    """

    started: float
    done: float
    total: float

    @property
    def left_s(self) -> float:
        """The seconds left; a machine half as fast doubles them."""
        pace = (time.time() - self.started) / self.done if self.done >= LEAST_S else 1.0
        return max(0.0, self.total - self.done) * pace

    @property
    def line(self) -> str:
        """What is left in words."""
        return f"about {self.left_s / 60:.0f} min left" if self.left_s >= 60 else "under 1 min left"

    @property
    def variable(self) -> dict[str, str]:
        """The environment variable that `from_environment` reads."""
        return {CLOCK: f"{self.started} {self.done} {self.total}"}

    @staticmethod
    def from_environment() -> Clock | None:
        """Return the clock that scripts/demo.py set, None in a demo that was started alone."""
        try:
            return Clock(*(float(word) for word in os.environ[CLOCK].split()))
        except (KeyError, TypeError, ValueError):
            return None


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Where a package's demo puts its files."""

    out: str = option("", "folder of the demo; none = results/demo/<package>")


class Demo:
    """One package's demo: its folder, its clock, its steps, and what it leaves for the page.

    Args:
        package: the package.
        options: of the command line.

    Attributes:
        out: folder of the demo.
        shown: the same as the commands on the page name it, relative to the project.
        clock: tells how long all demos still take; None in a demo that was started alone.
    """

    def __init__(self, package: str, options: DemoOptions) -> None:
        self.package = package
        self.out = (Path(options.out) if options.out else ROOT / "results/demo" / package).resolve()
        self.shown = str(self.out.relative_to(ROOT) if self.out.is_relative_to(ROOT) else self.out)
        self.clock = Clock.from_environment()
        self._started = time.perf_counter()

    def step(self, what: str, script: str, flags: Sequence[str], seconds: float = 0.0) -> float:
        """Run one of the package's scripts and return its wall seconds; `seconds` are those expected."""
        return run_step(Step(what, f"{self.package}/{script}", flags, seconds), self.clock)

    def rows(self, seconds: float | None, results: str = "evaluation/results.json") -> list[Row]:
        """Return the measured rows of a results file, with the seconds of the training that gave them.

        `seconds` is None where the training was no part of the demo.
        """
        command, rounded = f"make demo MODEL={self.package}", None if seconds is None else round(seconds, 1)
        found = load_rows(self.out / results)
        return [dataclasses.replace(row, seconds=rounded, command=command) for row in found]

    def pictures(self, wanted: Iterable[tuple[str, str, str]]) -> list[Picture]:
        """Return the figures that are there of (path below the demo's folder, caption, text in its place)."""
        return [
            Picture(f"{self.package}/{name}", caption, alt)
            for name, caption, alt in wanted
            if (self.out / name).is_file()
        ]

    def save(self, rows: Sequence[Row], **parts: Any) -> None:
        """Write section.json; `parts` are further fields of `Section`, the parameters those of the rows."""
        seconds = round(time.perf_counter() - self._started, 1)
        given = {"parameters": rows[0].parameters, **parts}
        save_section(self.out / "section.json", Section(self.package, rows=rows, seconds=seconds, **given))


def run_step(step: Step, clock: Clock | None = None) -> float:
    """Run the step's script from the project's folder and return its wall seconds.

    A `clock` tells how long all demos still take before the step, and goes on by it.

    Raises:
        StepFailedError: it ended with another exit code than 0.
    """
    left = f" ({clock.line})" if clock else ""
    print(f"\n-- {step.what}{left}\n$ {step.command}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, f"scripts/{step.script}", *step.flags], cwd=ROOT, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise StepFailedError(f"{step.command}: ended with exit code {done.returncode}")
    if clock:
        clock.done += step.seconds
    print(f"   {seconds:.0f} s", flush=True)
    return seconds


def save_section(path: str | Path, section: Section) -> None:
    """Write a package's part of the page as JSON."""
    write_json(path, dataclasses.asdict(section))


def load_section(path: str | Path) -> Section:
    """Read what `save_section` wrote.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        fields = read_json(path, "run the package's demo again")
        fields["figures"] = [Picture(**picture) for picture in fields["figures"]]
        fields["rows"] = [Row(**row) for row in fields["rows"]]
        return Section(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: no section of the demo ({error}); run the package's demo again") from error
