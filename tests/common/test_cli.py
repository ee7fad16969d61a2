"""Flags, presets and config files: spellings, precedence with origins, errors in one line, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import cli
from common.cli import option, parse, parse_bool
from common.errors import DataError, DivergedError, StrataError, UserError, missing_library
from common.run import MachineOptions, TrainOptions
from tests import toy
from tests.toy_runs import options, run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Config:
    """One field of every type."""

    num_iter: int = option(100, "iterations", aliases=("n-iter", "iters"))
    lr: float = option(1e-3, "learning rate", unit="1/step")
    name: str = option("", "a name, 100% free")
    mode: str = option("a", "a choice", choices=("a", "b"))
    size: int = option(2, "a number that is a choice", choices=(2, 4))
    amp: bool = option(True, "a switch")
    sizes: tuple[int, ...] = option((1, 2), "many numbers")
    names: tuple[str, ...] = option((), "many words")
    limit: float | None = option(None, "may be missing")
    folder: Path | None = option(None, "a path")

    def __post_init__(self) -> None:
        if self.num_iter < 1:
            raise ValueError(f"--num_iter {self.num_iter}: expected 1 or more")


PRESETS = {"demo": lambda: Config(num_iter=5, mode="b", amp=False), "paper": Config}


def read(*argv: str) -> cli.Parsed[Config, MachineOptions]:
    """Parse a command line as a script would."""
    return parse(argv, Config, MachineOptions, presets=PRESETS, aliases={"seed": ("random_seed",)})


@pytest.mark.parametrize(
    "argv",
    [
        ("--num-iter", "7"),
        ("--num_iter", "7"),
        ("--num-iter=7",),
        ("--num_iter=7",),
        ("--n-iter", "7"),
        ("--n_iter=7",),
        ("--iters", "7"),
    ],
)
def test_both_spellings_and_aliases(argv: tuple[str, ...]):
    """Dashes and underscores, a space or an equals sign, and every alias mean the same."""
    assert read(*argv).config.num_iter == 7


def test_aliases_of_run_options():
    """A script may give run options further names."""
    assert read("--random-seed", "3").run.seed == 3


@pytest.mark.parametrize("word", ["true", "True", "T", "yes", "Y", "on", "1"])
def test_true_in_all_forms(word: str):
    """Every word for true switches on; a bare flag does too."""
    assert parse_bool(word) is True
    assert read("--overwrite", word).run.overwrite is True
    assert read(f"--overwrite={word}").run.overwrite is True
    assert read("--overwrite").run.overwrite is True
    assert read("--overwrite", "--lr", "1").run.overwrite is True


@pytest.mark.parametrize("word", ["false", "FALSE", "f", "no", "N", "off", "0"])
def test_false_in_all_forms(word: str):
    """Every word for false switches off; --no_x and --no-x do too."""
    assert parse_bool(word) is False
    for argv in (("--amp", word), (f"--amp={word}",), ("--no_amp",), ("--no-amp",)):
        assert read(*argv).config.amp is False


def test_values_of_every_type():
    """Numbers, words, paths, tuples and missing values arrive as their types."""
    found = read(
        *("--lr", "1e-4", "--name", "größe & co", "--sizes", "3", "4", "5", "--names", "x", "y"),
        *("--limit", "-0.5", "--folder", "a b/c"),
    ).config
    assert (found.lr, found.name, found.sizes, found.names) == (1e-4, "größe & co", (3, 4, 5), ("x", "y"))
    assert found.limit == -0.5 and found.folder == Path("a b/c")
    assert read().config == Config() and read("--sizes").config.sizes == ()


def test_precedence_and_origins(tmp_path: Path):
    """Default < preset < config file < command line, and each field remembers where it came from."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"mode": "a", "lr": 0.5, "sizes": [9], "seed": 4}))
    parsed = read("--preset", "demo", "--config", str(path), "--lr", "0.25")
    assert parsed.config == Config(num_iter=5, mode="a", lr=0.25, amp=False, sizes=(9,))
    assert parsed.run.seed == 4
    expected = {
        "num_iter": "preset demo",
        "amp": "preset demo",
        "mode": f"config {path}",
        "seed": f"config {path}",
        "lr": "command line",
        "name": "default",
    }
    assert {name: parsed.origins[name] for name in expected} == expected
    assert set(parsed.origins) == {f for kind in (Config, MachineOptions) for f in kind.__dataclass_fields__}


def test_command_line_can_return_to_a_default():
    """A default value given on the command line wins over a preset that changed it."""
    assert read("--preset", "demo", "--amp", "true", "--num_iter", "100").config == Config(mode="b")


def test_config_of_a_run(tmp_path: Path):
    """A run's own config.json repeats what was computed, and nothing of where and how it ran."""
    document = {"config": {"num_iter": 3, "folder": None}, "run": {"seed": 9}, "origins": {}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    parsed = read("--config", str(tmp_path / "config.json"))
    assert parsed.config.num_iter == 3 and parsed.config.folder is None and parsed.run.seed == 0


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", DataError, "no valid JSON"),
        ("[1]", DataError, "holds a list, expected an object"),
        ('{"num_itr": 3}', UserError, "unknown key 'num_itr', did you mean 'num_iter'"),
        ('{"num_iter": 2.5}', UserError, "num_iter is 2.5, expected int"),
        ('{"num_iter": true}', UserError, "num_iter is True, expected int"),
        ('{"num_iter": "many"}', UserError, "expected int"),
        ('{"amp": "maybe"}', UserError, "amp is 'maybe', expected bool"),
        ('{"sizes": 3}', UserError, "sizes is 3, expected int list"),
        ('{"sizes": ["x"]}', UserError, "expected int list"),
        ('{"mode": "c"}', UserError, "expected one of a, b"),
        ('{"num_iter": 0}', UserError, "expected 1 or more"),
        ('{"lr": NaN, "mode": []}', UserError, "expected str"),
        ("\x00\x01", DataError, "no valid JSON"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, error: type[StrataError], message: str):
    """What a config file gets wrong is said in one line."""
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(error, match=message) as caught:
        read("--config", str(path))
    assert "\n" not in str(caught.value)


def test_config_files_that_cannot_be_read(tmp_path: Path):
    """A missing file, a folder and bytes that are no text are named."""
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read("--config", str(path))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match="bytes.json"):
        read("--config", str(tmp_path / "bytes.json"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--num-itr", "3"), "--num_itr: unknown flag, did you mean --num_iter"),
        (("--num", "3"), "--num: unknown flag"),
        (("--zzz=1",), "--zzz=1: unknown flag; see"),
        (("--num_iter", "2.5"), "'2.5', expected a whole number"),
        (("--lr", "fast"), "'fast', expected a number"),
        (("--lr",), "expected one argument"),
        (("--mode", "c"), "invalid choice: 'c'"),
        (("--size", "3"), "invalid choice: 3"),
        (("--amp", "maybe"), "'maybe', expected true or false"),
        (("--sizes", "1", "x"), "'x', expected a whole number"),
        (("--preset", "none"), "invalid choice: 'none'"),
        (("--num_iter", "0"), "--num_iter 0: expected 1 or more"),
        (("--threads", "-1"), "--threads -1: expected 0 or more"),
        (("--dist_timeout", "0"), "--dist_timeout 0.0: expected more than 0 s"),
        (("stray.npy",), "^stray.npy: unexpected word, values follow a flag, as in --name stray.npy; see"),
        (("my cube.npy",), "^my cube.npy: unexpected word, .* --name 'my cube.npy'; see"),
        (("--nam", "stray"), "--nam: unknown flag, did you mean --name"),
    ],
)
def test_wrong_usage(argv: tuple[str, ...], message: str):
    """Unknown flags suggest the nearest one; bad values say what was expected; always one line."""
    with pytest.raises(UserError, match=message) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)


def test_flags_of_a_configuration():
    """The flags that a configuration is told by make it again; defaults and what is left out are not told."""
    config = Config(
        num_iter=7, name="my 'cube'", amp=False, sizes=(3,), names=(), limit=-0.5, folder=Path("a b")
    )
    told = cli.flags_of(config)
    assert read(*shlex.split(told)).config == config and cli.flags_of(Config()) == ""
    assert cli.flags_of(config, ("name", "sizes")) == "--num_iter 7 --amp false --limit -0.5 --folder 'a b'"


@pytest.mark.parametrize("flag", ["log_every", "keep_last", "eval_every", "save_every"])
def test_train_options_are_checked(flag: str):
    """Cadences that make no sense are refused."""
    with pytest.raises(UserError, match=f"--{flag} -1: expected"):
        parse([f"--{flag}", "-1"], Config, TrainOptions)


def test_help_shows_units_and_defaults(capsys: pytest.CaptureFixture[str]):
    """--help exits 0 and shows each flag with its unit and default; percent signs survive."""
    with pytest.raises(SystemExit) as done:
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    assert "learning rate [1/step] (default: 0.001)" in text and "longest wait for another rank [s]" in text
    assert "many numbers (default: 1 2)" in text and "a name, 100% free (default: none)" in text
    for name in (*Config.__dataclass_fields__, *MachineOptions.__dataclass_fields__):
        assert f"--{name}" in text, name


def raising(error: BaseException):
    """Return a script that fails with `error`."""

    def function(_argv):
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("--x 3:\n  too  much"), 2, "error: --x 3: too much\n"),
        (DataError("a.npy: shape (3,), expected (4,)"), 3, "error: a.npy: shape (3,), expected (4,)\n"),
        (DivergedError("non-finite at step 3"), 4, "error: non-finite at step 3\n"),
        (missing_library("onnx", "--export"), 2, "run: pip install onnx\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (SystemExit(0), 0, ""),
        (KeyError("a bug"), 1, "KeyError: 'a bug'\n"),
    ],
)
def test_exit_codes(tmp_path: Path, error: BaseException, code: int, said: str):
    """Each kind of error has its exit code and one line; only a bug shows a traceback."""
    output = tmp_path / "said.txt"
    assert run(lambda: cli.main(raising(error), []), output) == code
    text = output.read_text()
    assert text.endswith(said)
    assert ("Traceback" in text) == (code == 1)
    assert code == 1 or text.count("\n") == (1 if said else 0)


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (75, 75)])
def test_returned_exit_codes(returned: int | None, code: int):
    """What a script's function returns is the exit code; nothing means done."""
    assert run(lambda: cli.main(lambda _argv: returned, [])) == code


@pytest.mark.parametrize("code", [0, 3])
def test_a_rank_leaves_without_taking_the_interpreter_down(code: int):
    """A launched process keeps its exit code, output and exit handlers; nothing is torn down after them."""
    script = (
        "import atexit, os, sys\nfrom common.cli import main\n"
        "class Late:\n    def __del__(self, end=os._exit): end(99)\n"  # as an abort in the tear-down would
        "sys.late = Late()\natexit.register(print, 'handler ran')\n"
        f"main(lambda argv: print('said') or {code}, [])"
    )
    launched = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    ended = subprocess.run([sys.executable, "-c", script], env=launched, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (code, "said\nhandler ran\n"), ended.stderr


def test_shared_errors_are_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Of an error that all ranks share only rank 0 speaks; a rank's own error is said by that rank."""
    monkeypatch.setattr(cli.time, "sleep", lambda _s: None)
    error = DataError("a.npy: missing")
    for rank, shared, expected in ((0, True, 1), (1, True, 0), (1, False, 1)):
        monkeypatch.setenv("RANK", str(rank))
        error.shared = shared
        assert cli._exit_code(raising(error), []) == 3
        assert capsys.readouterr().err.count("a.npy: missing") == expected


def test_unsafe_torch_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A torch with known holes in its loader is refused before anything runs."""
    import torch

    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert cli._exit_code(lambda _argv: pytest.fail("ran"), []) == 2
    assert "torch 2.9.1+cpu found, 2.10 or newer needed" in capsys.readouterr().err


def chatter(lines: int):
    """Return a script that prints so many lines."""

    def function(_argv) -> None:
        for _ in range(lines):
            print("a line of a table")

    return function


@pytest.mark.parametrize("lines", [1, 20_000])
def test_closed_pipe(tmp_path: Path, lines: int):
    """Output to a reader that has gone ends without a traceback, be it little or much."""

    def child() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        cli.main(chatter(lines), [])

    assert run(child, tmp_path / "said.txt") == 0
    assert (tmp_path / "said.txt").read_text() == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_streams(tmp_path: Path, stream: str):
    """A training whose stdout or stderr is closed finishes all the same."""

    def child() -> int:
        setattr(sys, stream, None)
        try:
            return cli._exit_code(
                lambda _argv: toy.train_toy(toy.ToyConfig(), options(tmp_path / "run")).exit_code, []
            )
        finally:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    assert run(child) == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


def test_training_outlives_its_reader(tmp_path: Path):
    """`train 2>&1 | head -1` does not end the training, and does not call an unfinished one done."""

    def child() -> int:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)
        sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
        try:
            return cli._exit_code(
                lambda _argv: toy.train_toy(toy.ToyConfig(), options(tmp_path / "run")).exit_code, []
            )
        finally:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    assert run(child) == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 18)


def test_a_script_from_anywhere(tmp_path: Path):
    """A whole script runs from another folder, HOME unset, LANG=C, with spaces and unicode in its paths."""
    out = tmp_path / "my runs" / "größe α"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LANG", "LC_ALL", "PYTHONUTF8")}
    environment.update(LANG="C", LC_ALL="C", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [
        sys.executable,
        str(ROOT / "tests" / "toy.py"),
        "--out",
        str(out),
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr and "Traceback" not in done.stderr
    described = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert str(out) in described["command"]
    assert (out / "checkpoints" / "last.pt").exists() and list((out / "tensorboard").iterdir())


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_numbers_are_finite(text: str):
    """--lr nan is a mistake, not a learning rate."""
    with pytest.raises(UserError, match="--lr"):
        read("--lr", text)


def test_a_list_in_a_config_file_is_a_list(tmp_path: Path):
    """Text does not fall into letters where a list is expected."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"sizes": "12"}))
    with pytest.raises(UserError, match="sizes"):
        read("--config", str(path))
