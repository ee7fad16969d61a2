"""Every command that README.md and docs/ print names a script that exists, and its flags make a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from common import cli
from common.errors import UserError
from simulgen_vae import config_files
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


def ending_after_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every script end, with code 2, when its command line makes a configuration."""

    def parse(*arguments: Any, **settings: Any) -> None:
        cli_parse(*arguments, **settings)
        raise UserError("it parses")

    cli_parse = cli.parse
    monkeypatch.setattr(cli, "parse", parse)
    monkeypatch.setattr(config_files, "parse", parse)  # which reads the text files of simulgen_vae too


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_printed_command_parses(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The script exists, knows the flags and values, and none that it needs is missing."""
    script, arguments = arguments_of(line)
    assert script.is_file(), f"{page}: {line}"
    if script.parent.name == "benchmarks":
        return
    ending_after_parse(monkeypatch)
    code, said = call(script, arguments, tmp_path)
    assert code == 2 and "error: it parses" in said, f"{page}: {line}\n{said}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python scripts/fault_seg/train.py --stepps 3", "--stepps"),
        ("python scripts/voxel_ode/evaluate.py --prepped_root data/prepped", "--ckpt_path: missing"),
    ],
)
def test_the_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str):
    """A misspelt flag and a missing one do not parse."""
    ending_after_parse(monkeypatch)
    _, said = call(*arguments_of(line), tmp_path)
    assert "it parses" not in said and message in said
