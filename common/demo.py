"""The demo of one package and of all: run the users' own commands, time them, tell what came of it.

A package's `scripts/<package>/demo.py` runs its steps and leaves `section.json`; `scripts/demo.py` runs the
packages one after another and makes the page and `results.json` from what they left.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError, StrataError
from common.files import write_json
from common.report import Picture, Row, Section

ROOT = Path(__file__).resolve().parents[1]


class StepFailedError(StrataError):
    """A command of the demo ended with an error; its own message stands above."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a demo: a script under `scripts/` with its flags, and what it is for."""

    what: str
    script: str
    flags: Sequence[str]

    @property
    def command(self) -> str:
        """The line that a user would type."""
        return shlex.join(["python", f"scripts/{self.script}", *self.flags])


def run_step(step: Step) -> float:
    """Run the step's script from the project's folder and return its wall seconds.

    Raises:
        StepFailedError: it ended with another exit code than 0.
    """
    print(f"\n-- {step.what}\n$ {step.command}", flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, f"scripts/{step.script}", *step.flags], cwd=ROOT, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise StepFailedError(f"{step.command}: ended with exit code {done.returncode}")
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
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        fields["figures"] = [Picture(**picture) for picture in fields["figures"]]
        fields["rows"] = [Row(**row) for row in fields["rows"]]
        return Section(**fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no section of the demo ({error}); run the package's demo again") from error
