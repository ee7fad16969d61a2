"""condition.txt, preset.txt and the launcher: keys, precedence, duplicates, mistakes, printed commands."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.cli import Parsed
from common.errors import DataError, UserError
from common.run import TrainOptions
from simulgen_vae.config import TRAIN_PRESETS, TrainConfig, default
from simulgen_vae.config_files import (
    CONDITION_KEYS,
    NO_EFFECT,
    find_data,
    read_condition,
    read_preset,
    resolve,
)
from simulgen_vae.launch import (
    LaunchConfig,
    exit_code_of,
    free_port,
    launch,
    launch_command,
    split_arguments,
)
from tests.cli.test_scripts import ROOT, call
from tests.simulgen_vae.cases_vae import write_data
from tests.simulgen_vae.conditions import write_condition
from tests.toy_runs import run

PRESET = "# header\n2  # data set\n4\n64 32 16\n8 8\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder with input_data, made the current one."""
    (tmp_path / "input_data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """Return the log with the project's own records in it, each once."""
    logger = logging.getLogger("strata")
    monkeypatch.setattr(logger, "propagate", False)  # the root logger has the same handler
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def parsed(line: str = "") -> Parsed[TrainConfig, TrainOptions]:
    """Return what a command line and the files beside it say."""
    return resolve(line.split(), TrainOptions)


def other_value(name: str) -> Any:
    """Return a valid value of a field that is not its default."""
    found = next(f for f in fields(TrainConfig) if f.name == name)
    value, choices = found.default, found.metadata["choices"]
    if choices:
        return next(c for c in choices if c != value)
    if isinstance(value, bool):
        return not value
    return "somewhere" if isinstance(value, str) else value + 1 if isinstance(value, int) else value / 2


@pytest.mark.parametrize("key", CONDITION_KEYS)
def test_every_key(key: str):
    """Each key sets its field to a value of the field's type."""
    name = CONDITION_KEYS[key]
    value = other_value(name)
    text = str(int(value)) if isinstance(value, bool) else str(value)
    found = read_condition([f"{key}\t{text}  trailing words # comment"], Path("c.txt"))
    assert found == {name: value} and type(found[name]) is type(value)


def test_round_trip():
    """What write_condition writes says the configuration again."""
    changed = {name: other_value(name) for name in CONDITION_KEYS.values()}
    lines = write_condition(TrainConfig(**changed)).splitlines()
    assert read_condition(lines, Path("c.txt")) == changed


def test_comments_and_duplicates(said: pytest.LogCaptureFixture):
    """Comments and marked lines are skipped; a later duplicate wins with a warning."""
    lines = ["% note", "' note", "", "# Batch_size 3", "Batch_size 8", "Batch_size 16.0", "input_type csvs"]
    found = read_condition(lines, Path("c.txt"))
    assert found == {"batch_size": 16, "input_type": "csv"}
    assert "c.txt, line 6: Batch_size again; the later value 16.0 wins over 8" in said.text


def test_keys_without_effect_and_unknown(said: pytest.LogCaptureFixture):
    """No-op keys warn once each; an unknown key warns with the nearest name."""
    assert read_condition([*(f"{k} 1" for k in NO_EFFECT), "Batchsize 4"], Path("c.txt")) == {}
    assert sum("has no effect here" in line for line in said.text.splitlines()) == len(NO_EFFECT)
    assert "unknown key Batchsize, ignored; did you mean Batch_size?" in said.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Batch_size", "line 1: Batch_size has no value"),
        ("Batch_size many", "Batch_size is 'many', expected a whole number"),
        ("LearningR fast", "LearningR is 'fast', expected a number"),
        ("LearningR nan", "expected a finite number"),
        ("Loss_type 7", "Loss_type is '7', expected one of 1, 2, 3, 4"),
        ("use_e2e_training perhaps", "expected 0 or 1"),
    ],
)
def test_bad_values(line: str, message: str):
    """A value of the wrong kind names file, line, what was found and what was expected."""
    with pytest.raises(DataError, match=message):
        read_condition([line], Path("c.txt"))


def test_preset_file():
    """Five lines: header, data set, beta exponent (0 means 1e-3), encoder and conditioner filters."""
    found = read_preset(PRESET.splitlines(), Path("p.txt"))
    assert found == {"dataset": 2, "init_beta": 1e-4, "filters": (64, 32, 16), "lc_filters": (8, 8)}
    zero = read_preset(PRESET.replace("\n4\n", "\n0\n").splitlines(), Path("p.txt"))
    assert zero["init_beta"] == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h\n1\n4\n8 8\n", "4 lines, expected 5"),
        ("h\none\n4\n8 8\n8\n", r"line 2 \(data set number\): 'one'"),
        ("h\n1\n4\n\n8\n", r"line 4 \(encoder filters\): '', expected numbers above 0"),
        ("h\n1 2\n4\n8 8\n8\n", "expected one number"),
    ],
)
def test_bad_preset_files(text: str, message: str):
    """A preset file that lacks something names the line."""
    with pytest.raises(DataError, match=message):
        read_preset(text.splitlines(), Path("p.txt"))


def test_precedence(place: Path):
    """Command line, condition.txt, preset.txt, named preset, default, in this order; origins kept."""
    (place / "input_data/preset.txt").write_text(PRESET)
    (place / "input_data/condition.txt").write_text("Batch_size 7\nLatent_dim 5\nTraining_epochs 9\n")
    found = parsed("--preset lsh --batch-size 3")
    assert found.config.batch_size == 3 and found.origins["batch_size"] == "command line"
    assert found.config.latent_dim == 5 and found.origins["latent_dim"] == "input_data/condition.txt"
    assert found.config.filters == (64, 32, 16) and found.origins["filters"] == "input_data/preset.txt"
    assert found.config.lr_schedule == "warm_restarts" and found.origins["lr_schedule"] == "preset lsh"
    assert found.config.lr == 1e-3 and found.origins["lr"] == "default"


def test_files_that_were_named(place: Path):
    """A named file is read; a named file that is absent is wrong usage, an absent default one is none."""
    assert parsed().config == default()
    (place / "own.txt").write_text("Batch_size 7\n", encoding="utf-8-sig")
    assert parsed("--condition_file own.txt").config.batch_size == 7
    for flag in ("condition_file", "preset_file"):
        with pytest.raises(UserError, match=f"--{flag} absent.txt: cannot be read"):
            parsed(f"--{flag} absent.txt")


def test_numbered_preset_file(place: Path):
    """--preset 3 takes preset3.txt before preset.txt, and data set 3 unless that file says otherwise."""
    assert parsed("--preset=3").config.dataset == 3
    (place / "input_data/preset.txt").write_text(PRESET)
    (place / "input_data/preset3.txt").write_text(PRESET.replace("64 32 16", "40 20"))
    assert parsed("--preset=3").config.filters == (40, 20)
    assert parsed("--preset lsh").config.filters == (64, 32, 16)


@pytest.mark.parametrize("name", ["1", "2", "3", "4", "5", "lsh", "static", "paper", "default"])
def test_presets(place: Path, name: str):
    """Every preset parses; a digit is the preset of that place."""
    named = {"1": "lsh", "2": "small_data", "3": "large_mesh", "4": "static", "5": "image_vit"}
    found = parsed(f"--preset {name}").config
    assert found.filters == TRAIN_PRESETS[named.get(name, name)]().filters
    assert found.dataset == (int(name) if name.isdigit() else 1)


def test_wrong_combination_from_a_file(place: Path):
    """A file that asks for what cannot be is wrong usage and named."""
    (place / "input_data/condition.txt").write_text("Latent_dim 0\n")
    with pytest.raises(
        UserError, match=r"--latent_dim 0: expected 1 or more \(from input_data/condition.txt\)"
    ):
        parsed()


def test_data_set_number(place: Path):
    """Data set k lies in input_data or here; otherwise what was searched and the nearest name are said."""
    write_data(place / "dataset2.npz")
    (place / "dataset2.csv").write_text("x\n1\n")  # its parameters, say
    assert find_data(TrainConfig(dataset=2)) == Path("dataset2.npz")
    with pytest.raises(
        DataError, match=r"searched input_data/dataset1.\*, dataset1.\*, the nearest is dataset2"
    ):
        find_data(TrainConfig())


@pytest.mark.parametrize(
    "line",
    [
        "--preset=1 --plot=2 --size=small --filters 8 6 --lc_filters 8",
        "--preset 5 --plot 0 --input-type csv --filters 8 6",
        "--preset smoke --plot 1 --use-e2e-training 1 --e2e_train_decoder true --load_all 1",
    ],
)
def test_dry_run(tmp_path: Path, line: str):
    """The printed command lines build everything, run one batch, and leave no file."""
    for k in (1, 5):
        write_data(tmp_path / f"input_data/dataset{k}.npz")
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    quick = "--latent_dim_end 4 --latent_dim 2 --num_modes 6 --threads 1 --device cpu --dry_run"
    code, found = call(ROOT / "scripts/simulgen_vae/train.py", [*line.split(), *quick.split()], tmp_path)
    assert code == 0, found
    assert "parameters" in found and "c: [" in found
    assert {p for p in tmp_path.rglob("*") if p.is_file()} - before == {tmp_path / "said.txt"}


def test_launcher():
    """The launcher keeps its own flags, passes the rest on, and takes a free port when one is taken."""
    own, rest = split_arguments(["--gpus", "3", "--preset=1", "--master-port=0", "--size", "small"])
    assert own == ["--gpus", "3", "--master-port=0"] and rest == ["--preset=1", "--size", "small"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (0, port)
    command = launch_command(LaunchConfig(3, 0), rest, Path("train.py"))
    assert command[1:4] == ["-m", "torch.distributed.run", "--nproc_per_node=3"]
    assert command[-4:] == ["--use_ddp", *rest] and "train.py" in command


def test_launcher_passes_the_exit_code(tmp_path: Path):
    """What train.py says of wrong usage comes through the launcher, without a prompt."""
    script = ROOT / "scripts/simulgen_vae/launch_ddp.py"
    code, found = call(script, ["--gpus", "2", "--dry_run", "--data", "absent.npz"], tmp_path)
    assert code == 3 and "absent.npz: no such data set" in found
    code, found = call(script, ["--gpus", "0"], tmp_path)
    assert code == 2 and "--gpus 0: expected 1 or more" in found


@pytest.mark.parametrize(("code", "said"), [(3, "x.h5: no such file"), (2, "--lr: bad"), (4, "loss is NaN")])
def test_launcher_passes_the_code_of_the_ranks(tmp_path: Path, code: int, said: str):
    """What all ranks end with is the launcher's own end, with their line and nothing of torchrun."""
    ranks = tmp_path / "ranks.py"
    ranks.write_text(
        f"import os, sys\nif os.environ['RANK'] == '0': print('error: {said}')\nsys.exit({code})\n"
    )
    found = tmp_path / "said.txt"
    assert run(lambda: launch(LaunchConfig(2, 0), ["--epochs", "1"], ranks), found, timeout_s=60) == code
    assert found.read_text() == f"error: {said}\n"


def test_launcher_shows_what_no_rank_told(tmp_path: Path):
    """A rank that was killed, or ended with a bug, keeps torchrun's report; a stop tells how it ended."""

    class FailuresError(Exception):
        def __init__(self, *codes: int) -> None:
            self.failures = {k: SimpleNamespace(exitcode=code) for k, code in enumerate(codes)}

    class StoppedError(Exception):
        def __init__(self, number: signal.Signals) -> None:
            self.sigval = number

    assert exit_code_of(FailuresError(3, 3)) == 3 and exit_code_of(FailuresError(-signal.SIGTERM, 4)) == 4
    for other in (
        FailuresError(-signal.SIGKILL),
        FailuresError(1, 3),
        FailuresError(-signal.SIGTERM),
        ValueError("torchrun"),
    ):
        assert exit_code_of(other) is None
    assert exit_code_of(StoppedError(signal.SIGTERM), tmp_path) == 1
    (tmp_path / "status.json").write_text('{"state": "stopped"}')
    assert exit_code_of(StoppedError(signal.SIGUSR1), tmp_path) == 75
    with pytest.raises(KeyboardInterrupt):
        exit_code_of(StoppedError(signal.SIGINT), tmp_path)


def test_a_missing_data_set_names_a_data_set(place: Path):
    """What lies near but cannot hold fields is not offered; a folder is only where one may be meant."""
    for name in ("text.txt", "datasets.csv"):
        (place / name).touch()
    (place / "my_runs").mkdir()
    with pytest.raises(DataError, match=r"searched input_data/dataset1\.\*, dataset1\.\*; name one"):
        find_data(TrainConfig(dataset=1))
    (place / "dataset2.npy").touch()
    with pytest.raises(DataError, match=r"the nearest is dataset2\.npy"):
        find_data(TrainConfig(dataset=1))
    with pytest.raises(DataError, match="my_run: no such data set, the nearest is my_runs; check --data"):
        find_data(TrainConfig(data="my_run"))
    with pytest.raises(DataError, match=r"my_run\.h5: no such data set; check --data"):
        find_data(TrainConfig(data="my_run.h5"))
