"""Every command that the pages print names a script that exists, and its flags make a run."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from common import cli
from common.errors import UserError
from simulgen_vae import config_files
from tests.cli.test_scripts import ROOT
from tests.toy_runs import run
from velocity_inversion import cloud
from velocity_inversion.config import TRAIN_PRESETS

PAGES = [
    ROOT / "README.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "fault_seg" / "weights" / "MODEL_CARD.md",
    ROOT / "benchmarks" / "results" / "README.md",
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PY = re.compile(r"\.py\b")
SCRIPT = re.compile(r"(?P<path>[\w./-]+\.py)(::(?P<function>\w+))?")
ASSIGNED = re.compile(r"(?:^|[;\s])([A-Za-z_]\w*)=([^\s;$()`]+)(?=[;\s]|$)")
PLACEHOLDER = "1"  # of a variable that the page does not set
HAS_PARSER = re.compile(r"^from common\.cli import .*\bparse\b|^import argparse", re.M)
# Code lines that are no command, by page: the line and why.
EXCEPTIONS: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Command:
    """One call of a script.

    Attributes:
        script: that is called.
        arguments: that follow it.
        part: of a sentence about flags: values and other flags may be left out.
        function: that Modal calls in place of the script.
    """

    script: Path
    arguments: tuple[str, ...]
    part: bool = False
    function: str = ""


@dataclass(frozen=True)
class Code:
    """A line of a code block, continued lines joined, or a piece of inline code."""

    text: str
    inline: bool


def code_of(text: str) -> list[Code]:
    """Return the lines of a page's code blocks but those of Python, and its inline code."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.S | re.M)
    shell = [block.replace("\\\n", " ") for language, block in blocks if language.strip() != "python"]
    lines = [line.strip() for block in shell for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [*(Code(line, False) for line in lines), *(Code(span, True) for span in spans)]


def variables_of(codes: list[Code]) -> dict[str, str]:
    """Return the shell variables that the blocks of a page set."""
    lines = (code.text for code in codes if not code.inline and not PY.search(code.text))
    return dict(pair for line in lines for pair in ASSIGNED.findall(line))


def is_command(code: Code, package: str) -> bool:
    """Return whether a piece of code has to be a command: no bare name of a file, no comment."""
    if code.inline and not PY.search(code.text):  # `train --steps 3` stands for the package's train.py
        verb = re.match(r"([a-z_]\w*) -", code.text)
        return bool(verb) and (ROOT / "scripts" / package / f"{verb.group(1)}.py").is_file()
    return bool(PY.search(code.text)) and " " in code.text and not code.text.startswith("#")


def commands_of(code: Code, package: str, variables: dict[str, str]) -> list[Command]:
    """Return the commands of a piece of code: one, or several joined by &&.

    Raises:
        ValueError: it is none.
    """
    text = re.sub(r"\$\{?(\w+|!)\}?", lambda m: variables.get(m.group(1), PLACEHOLDER), code.text)
    words = [word for word in shlex.split(text, comments=True) if word not in ("&", "...")]
    chain: list[list[str]] = [[]]
    for word in words:
        chain.append([]) if word == "&&" else chain[-1].append(word)
    return [command_of(words, package, inline=code.inline) for words in chain]


def command_of(words: list[str], package: str, *, inline: bool) -> Command:
    """Return the command that the words of a shell make."""
    while words and (re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]) or words[0] == "srun"):
        words = words[1:]
    launcher, rest = words[0], words[1:]
    if launcher == "torchrun":
        options, extra = get_args_parser().parse_known_args(rest)
        if extra or not SCRIPT.fullmatch(options.training_script):
            raise ValueError(f"torchrun does not know {extra or options.training_script}")
        rest = [options.training_script, *options.training_script_args]
    elif launcher == "modal" and rest[0] == "run":
        rest = rest[1:]
    elif inline and launcher != "python":  # `train.py --steps 3`, `train --steps 3`
        name = launcher.removesuffix(".py")
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{launcher} starts nothing")
        return Command(ROOT / "scripts" / package / f"{name}.py", tuple(rest), part=True)
    elif launcher != "python":
        raise ValueError(f"{launcher} starts nothing")
    found = SCRIPT.fullmatch(rest[0])
    if not found:
        raise ValueError(f"{rest[0]} is no script")
    return Command(ROOT / found["path"], tuple(rest[1:]), function=found["function"] or "")


def package_of(page: Path) -> str:
    """Return the package that a page tells of; its own name where it tells of none."""
    return page.stem if page.parent.name == "docs" else page.parent.name


def printed_commands(page: Path) -> tuple[list[tuple[str, Command]], list[str]]:
    """Return (code, command) of a page's commands, and the code that should be a command and is none."""
    codes, found, others = code_of(page.read_text(encoding="utf-8")), [], []
    package, variables = package_of(page), variables_of(codes)
    for code in codes:
        if not is_command(code, package):
            continue
        try:
            commands = commands_of(code, package, variables)
        except (ValueError, IndexError) as error:
            others.append(f"{code.text}: {error}")
            continue
        found += [(code.text, command) for command in commands]
    return found, others


def number_of_scripts(text: str) -> int:
    """Return how many scripts a page calls, counted line by line: as text, without reading commands."""
    number, fence, prose, line_so_far = 0, "", [], ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif not fence:
            prose.append(line)
        elif line.endswith("\\"):
            line_so_far += line[:-1]
        else:
            line, line_so_far = (line_so_far + line).partition("#")[0], ""
            number += PY.search(line) is not None and "python" not in fence
    for span in "\n".join(prose).split("`")[1::2]:
        for part in span.split(" && "):
            number += PY.search(part) is not None and len(part.split()) > 1
    return number


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_code_is_left_out(page: Path):
    """Each line of code with a script, whatever starts it, is a command that is checked, or an exception."""
    found, others = printed_commands(page)
    known = EXCEPTIONS.get(str(page.relative_to(ROOT)), {})
    assert {line.partition(": ")[0] for line in others} == set(known), others
    with_script = [text for text, _ in found if PY.search(text)]
    assert len(with_script) + len(known) == number_of_scripts(page.read_text(encoding="utf-8"))


def test_pages_print_commands():
    """Every page but that of the promises prints commands: an empty list would prove nothing."""
    number = {name: len(printed_commands(page)[0]) for name, page in zip(NAMES, PAGES, strict=True)}
    assert min(number.values()) >= 1 and sum(number.values()) > 200, number


def arguments_of(line: str) -> tuple[Path, list[str]]:
    """Return the script of a command line and what follows it."""
    words = shlex.split(line)
    at = next(i for i, word in enumerate(words) if SCRIPT.fullmatch(word))
    return ROOT / words[at], words[at + 1 :]


def ending_after_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every script end, with code 2, when its command line makes a configuration."""

    def parse(argv: Any, config_type: type, *arguments: Any, **settings: Any) -> Any:
        parsed = cli_parse(argv, config_type, *arguments, **settings)
        if config_type.__name__ == "LaunchConfig":  # the flags of the training are parsed next
            return parsed
        raise UserError("it parses")

    def parse_args(*arguments: Any, **settings: Any) -> None:
        argparse_parse_args(*arguments, **settings)
        raise UserError("it parses")

    cli_parse, argparse_parse_args = cli.parse, argparse.ArgumentParser.parse_args
    monkeypatch.setattr(cli, "parse", parse)
    monkeypatch.setattr(config_files, "parse", parse)  # which reads the text files of simulgen_vae too
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)  # of some benchmarks


def said_by(command: Command) -> str:
    """Run a script, which ends after its flags, in this process; return what it said."""
    sys.argv = [str(command.script), *command.arguments]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            runpy.run_path(str(command.script), run_name="__main__")
        except (SystemExit, UserError) as end:
            print(end)
    return said.getvalue()


def unknown_flags(command: Command) -> str:
    """Return the flags that a script without a parser does not mention; it is not run."""
    source = command.script.read_text(encoding="utf-8")
    return " ".join(word for word in command.arguments if word[:2] == "--" and f'"{word}"' not in source)


def unknown_to_modal(command: Command) -> str:
    """Return what `modal run` does not know of a command: its flags are the function's parameters."""
    if command.function not in cloud.FUNCTIONS:
        return command.function
    given = dict(zip(command.arguments[::2], command.arguments[1::2], strict=True))
    known = {f"--{name}" for name in inspect.signature(getattr(cloud, command.function)).parameters}
    presets = {given["--preset"]} - set(TRAIN_PRESETS) if "--preset" in given else set()
    return " ".join({*given} - known | presets)


def is_left_out(said: str, command: Command) -> bool:
    """Return whether all that a script misses is a flag that is not given, or the value of one that is."""
    blamed = re.match(r"error: (--\w+)", said)
    return bool(blamed) and blamed[1] not in command.arguments or "expected one argument" in said


def fault_of(command: Command) -> str:
    """Return why a command cannot be run; an empty text for one that can."""
    if not command.script.is_file():
        return f"{command.script.relative_to(ROOT)}: no such script"
    if command.function:
        unknown = unknown_to_modal(command)
        return f"{unknown}: unknown to modal run" if unknown else ""
    if command.script.is_relative_to(ROOT / "scripts") or HAS_PARSER.search(command.script.read_text()):
        said = said_by(command)
        parses = "it parses" in said or (command.part and is_left_out(said, command))
        return "" if parses else said
    flags = unknown_flags(command)
    return f"{flags}: unknown flags" if flags else ""


def test_printed_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Scripts exist, know the flags and values, and none that they need is missing."""
    commands = {
        command: (name, code)
        for name, page in zip(NAMES, PAGES, strict=True)
        for code, command in printed_commands(page)[0]
    }
    ending_after_parse(monkeypatch)
    monkeypatch.chdir(tmp_path)
    faults = tmp_path / "faults.json"

    def child() -> int:
        found = [(*commands[command], fault) for command in commands if (fault := fault_of(command))]
        faults.write_text(json.dumps(found, indent=1))
        return bool(found)

    code = run(child, tmp_path / "said.txt", timeout_s=280)
    assert code == 0, faults.read_text() if faults.is_file() else (tmp_path / "said.txt").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python scripts/fault_seg/train.py --stepps 3", "--stepps"),
        ("python scripts/voxel_ode/evaluate.py --prepped_root data/prepped", "--ckpt_path: missing"),
        ("S=1 python scripts/simulgen_vae/launch_ddp.py --gpus 2 --modess 3", "--modess"),
        ("torchrun --nproc_per_node 2 scripts/fault_seg/train.py --crop x", "--crop"),
        ("python benchmarks/quality.py --case nothing", "nothing"),
        ("python benchmarks/voxel_ode_rollout.py --case nothing", "nothing"),
        ("python benchmarks/facies_gan.py --bench_trains", "--bench_trains: unknown"),
        ("python scripts/fault_seg/trains.py", "no such script"),
        ("train --preset nothing", "nothing"),
        ("train --stepps", "--stepps"),
        ("modal run scripts/velocity_inversion/modal_app.py::trains", "trains: unknown"),
        ("modal run scripts/velocity_inversion/modal_app.py::train --presets smoke", "--presets: unknown"),
    ],
)
def test_the_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str):
    """A misspelt flag, case or script and a missing flag do not pass."""
    ending_after_parse(monkeypatch)
    [command] = commands_of(Code(line, line.startswith("train")), "fault_seg", {})
    monkeypatch.chdir(tmp_path)
    said = tmp_path / "said.txt"
    assert run(lambda: print(fault_of(command)), said, timeout_s=120) == 0
    assert message in said.read_text()
