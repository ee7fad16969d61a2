"""Promises that all five packages make alike: kills, signals, locks, foreign and hostile model files."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reliability.five import (
    BY_NAME,
    CASES,
    QUIET,
    Case,
    call,
    changed,
    error_line,
    make_data,
    models,
    must,
    state,
    training,
)
from tests.toy_runs import fork, run, wait

pytestmark = pytest.mark.reliability
NAMES = [case.package for case in CASES]
NUM_KILLS = int(os.environ.get("STRATA_NUM_KILLS", "20"))


@pytest.fixture(scope="module", params=NAMES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """Return a package and a folder (blank and umlaut in its name) with its data and a finished training."""
    case = BY_NAME[request.param]
    folder = make_data(case, tmp_path_factory.mktemp("my däta"))
    began = time.monotonic()
    assert run(training(case, folder, "whole"), folder / "said.txt", 300) == 0, (
        folder / "said.txt"
    ).read_text()[-3000:]
    (folder / "seconds").write_text(str(time.monotonic() - began))
    return case, folder


@pytest.mark.promise("R18")
def test_the_same_command_twice(place: tuple[Case, Path]):
    """The same command in another folder leaves the same models, bit for bit."""
    case, folder = place
    assert run(training(case, folder, "twin"), folder / "said.txt", 300) == 0
    expected = models(folder / "whole")
    assert case.model in expected and models(folder / "twin").keys() == expected.keys()
    assert changed(folder / "twin", expected) == []


@pytest.mark.promise("R2")
@pytest.mark.timeout(1800)
def test_killed_training(place: tuple[Case, Path], record_property: Callable[[str, int], None]):
    """SIGKILL at a random moment, then --resume auto: the models of the run that was never stopped."""
    case, folder = place
    expected, said = models(folder / "whole"), folder / "said.txt"
    seconds = float((folder / "seconds").read_text())
    moments, interrupted = random.Random(11), 0
    for i in range(NUM_KILLS):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        pid = fork(training(case, folder, "killed"), said)
        time.sleep(moments.uniform(0.1, 0.9) * seconds)
        os.kill(pid, signal.SIGKILL)
        interrupted += wait(pid) == -signal.SIGKILL
        assert run(training(case, folder, "killed", "--resume auto"), said, 300) == 0, said.read_text()[
            -3000:
        ]
        assert state(out) == "finished" and not list(out.rglob("*.part"))
        assert changed(out, expected) == [], f"after kill {i}"
    assert interrupted >= NUM_KILLS // 2
    record_property("n", NUM_KILLS)


@pytest.mark.promise("R3")
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_signals(place: tuple[Case, Path], number: str, code: int):
    """A signal finishes the step and saves; the exit code says so, and the run goes on to the same end."""
    case, folder = place
    out, said = folder / number, folder / "said.txt"
    pid = fork(training(case, folder, number), said)
    end = time.monotonic() + 120
    while not list(out.rglob("metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(pid, getattr(signal, number))
    assert wait(pid, 120) == code, said.read_text()[-3000:]
    assert state(out) == "stopped"
    assert run(training(case, folder, number, "--resume auto"), said, 300) == 0, said.read_text()[-3000:]
    assert changed(out, models(folder / "whole")) == []


@pytest.mark.promise("R14")
def test_two_runs_in_one_folder(place: tuple[Case, Path]):
    """Of two trainings of one folder one goes on, the other exits 2 and says who holds it."""
    case, folder = place
    first, second = folder / "first.txt", folder / "second.txt"
    pids = [fork(training(case, folder, "shared"), said) for said in (first, second)]
    codes = sorted(wait(pid, 300) for pid in pids)
    assert codes == [0, 2]
    refused = [s.read_text() for s in (first, second) if "error: " in s.read_text()]
    assert len(refused) == 1 and "shared" in error_line(refused[0])


@pytest.mark.promise("R7")
def test_no_place_to_write(place: tuple[Case, Path]):
    """A run folder that is a file ends with 2 before any training."""
    case, folder = place
    (folder / "blocked").write_text("a file")
    assert run(training(case, folder, "blocked/run"), folder / "said.txt", 120) == 2
    said = (folder / "said.txt").read_text()
    assert "blocked" in error_line(said) and "step 1" not in said


@pytest.mark.promise("R27")
def test_dry_run_writes_nothing(place: tuple[Case, Path]):
    """--dry_run of the training exits 0 and leaves no run folder."""
    case, folder = place
    assert run(training(case, folder, "dry", "--dry_run"), folder / "said.txt", 120) == 0
    assert not (folder / "dry").exists()


@pytest.mark.promise("R26")
def test_logs_without_a_terminal(place: tuple[Case, Path]):
    """What a run writes into a file has no carriage returns and no colours."""
    case, folder = place
    said = must(case.script("train"), f"{case.train} {QUIET} --out plain", folder)
    assert "\r" not in said and "\x1b" not in said


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (self.target, "executed")  # type: ignore[return-value]


def hostile_files(folder: Path, target: Path) -> dict[str, Path]:
    """Write model files that run code when they are unpickled, and return them by kind."""
    paths = {name: folder / f"{name}.ckpt" for name in ("pickle", "torch", "legacy", "zip")}
    paths["pickle"].write_bytes(pickle.dumps(Bomb(target)))
    torch.save({"state_dict": Bomb(target)}, paths["torch"])
    torch.save({"state_dict": Bomb(target)}, paths["legacy"], _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(target)))
        archive.writestr("archive/version", "3\n")
    return paths


@pytest.mark.promise("R11")
@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy", "zip"])
def test_hostile_models(place: tuple[Case, Path], kind: str):
    """A model file that would run code is refused with one line, and runs none."""
    case, folder = place
    target = folder / "executed.txt"
    model = hostile_files(folder, target)[kind]
    code, said = use(case, folder, model)
    assert not target.exists()
    assert code == 3 and model.name in error_line(said), said


@pytest.mark.promise("R10")
@pytest.mark.parametrize("other", NAMES)
def test_models_of_each_other(place: tuple[Case, Path], other: str, tmp_path_factory: pytest.TempPathFactory):
    """A package uses its own model and refuses those of the four others, naming both packages."""
    case, folder = place
    model = foreign_model(BY_NAME[other], tmp_path_factory) if other != case.package else None
    code, said = use(case, folder, model or folder / "whole" / case.model)
    if other == case.package:
        assert code == 0, said
        return
    message = error_line(said)
    assert code == 3 and case.package in message and other in message, said


_TRAINED: dict[str, Path] = {}


def foreign_model(case: Case, factory: pytest.TempPathFactory) -> Path:
    """Return a trained model of another package, made once."""
    if case.package not in _TRAINED:
        folder = make_data(case, factory.mktemp(f"other_{case.package}"))
        assert run(training(case, folder, "whole"), folder / "said.txt", 300) == 0
        _TRAINED[case.package] = folder / "whole" / case.model
    return _TRAINED[case.package]


def use(case: Case, folder: Path, model: Path) -> tuple[int, str]:
    """Run the package's inference with a model file."""
    name, flags = case.use
    shutil.rmtree(folder / "out", ignore_errors=True)
    before = flags.split()
    return call(case.script(name), [str(model) if word == "{model}" else word for word in before], folder)
