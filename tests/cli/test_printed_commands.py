"""Every command that README.md and docs/ print names a script that exists and flags that it knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.test_scripts import ROOT, call

PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPT = re.compile(r"(?:scripts|benchmarks)/[\w/]+\.py")


def printed_commands(page: Path) -> list[str]:
    """Return the command lines of a page's code blocks and of its inline code, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines += [code.replace("\n", " ") for code in re.findall(r"`(python [^`]*)`", prose)]
    return [line.split(" # ")[0] for line in lines if SCRIPT.search(line) and "|" not in line]


COMMANDS = sorted({(page.name, line.strip()) for page in PAGES for line in printed_commands(page)})


def arguments_of(line: str) -> tuple[Path, list[str]]:
    """Return the script of a command line and what follows it."""
    words = shlex.split(line.rstrip("&"))
    at = next(i for i, word in enumerate(words) if SCRIPT.fullmatch(word))
    return ROOT / words[at], words[at + 1 :]


def test_pages_print_commands():
    """Each model's page prints several commands: an empty list would prove nothing."""
    pages = {name for name, _ in COMMANDS}
    assert {"README.md", "fault_seg.md", "velocity_inversion.md"} <= pages and len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_printed_command_parses(page: str, line: str, tmp_path: Path):
    """The script exists and knows the flags and values: it gets as far as a config file that is absent."""
    script, arguments = arguments_of(line)
    assert script.is_file(), f"{page}: {line}"
    if script.parent.name == "benchmarks":
        return
    code, said = call(script, [*arguments, "--config", "absent.json"], tmp_path)
    assert code == 2 and "--config absent.json" in said, f"{page}: {line}\n{said}"


def test_the_check_can_fail(tmp_path: Path):
    """A misspelt flag does not get as far as the config file."""
    script, arguments = arguments_of("python scripts/fault_seg/train.py --stepps 3")
    _, said = call(script, [*arguments, "--config", "absent.json"], tmp_path)
    assert "absent.json" not in said and "--stepps" in said
