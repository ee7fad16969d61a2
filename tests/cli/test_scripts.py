"""Every script explains itself and refuses what it does not know, with the house's exit codes."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.toy_runs import run

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / "tests" / "toy.py", *sorted((ROOT / "scripts").glob("**/[a-z]*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]


def call(script: Path, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a script in a child of this process, from another folder; return its exit code and all it said."""

    def child() -> None:
        os.chdir(folder)
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")

    said = folder / "said.txt"
    return run(child, said, timeout_s=120), said.read_text()


def error_of(said: str) -> str:
    """Return the one error line of all that a script said; a traceback is none."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said
    return errors[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_help(script: Path, tmp_path: Path):
    """--help exits 0, shows flags with their defaults, and leaves no file."""
    code, said = call(script, ["--help"], tmp_path)
    assert code == 0, said
    assert said.startswith("usage: ") and "--config" in said and "(default: " in said
    assert "Traceback" not in said and [p.name for p in tmp_path.iterdir()] == ["said.txt"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_unknown_flag(script: Path, tmp_path: Path):
    """An unknown flag exits 2 with one line that names the nearest one, and leaves no file."""
    code, said = call(script, ["--confg", "x"], tmp_path)
    assert code == 2, said
    assert said.startswith("error: --confg: unknown flag, did you mean --config?") and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["said.txt"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_missing_config(script: Path, tmp_path: Path):
    """A --config file that is not there exits 2 with one line that names it, and leaves no file."""
    code, said = call(script, ["--config", "absent.json"], tmp_path)
    assert code == 2, said
    assert said == "error: --config absent.json: cannot be read (No such file or directory); check the path\n"
    assert [p.name for p in tmp_path.iterdir()] == ["said.txt"]
