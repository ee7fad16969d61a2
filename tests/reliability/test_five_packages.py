"""Promises that all five packages make alike: kills, signals, NaN, full disks, locks, hostile model files."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from common.optim import Updater
from tests.reliability.five import (
    BY_NAME,
    CASES,
    QUIET,
    ROOT,
    Case,
    call,
    changed,
    command,
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
LOG_BYTES = 1 << 16  # what a run says, at most; its file is under the same limit as the models
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


def whole(path: Path) -> None:
    """Read a finished output to its end; raise when it is cut."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".npy":
        np.array(np.load(path, allow_pickle=False))
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name] is not None for name in archive.files)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".h5":
        with h5py.File(path) as file:
            file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)


@pytest.mark.promise("R1")
@pytest.mark.timeout(900)
def test_killed_inference(place: tuple[Case, Path], record_property: Callable[[str, int], None]):
    """SIGKILL at a random moment of the inference leaves whole outputs or none; then it runs to its end."""
    case, folder = place
    name, flags = case.use
    words = flags.replace("{model}", f"whole/{case.model}").split()
    out, said, moments = folder / "out", folder / "said.txt", random.Random(12)
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    must(case.script(name), words, folder)
    seconds = time.monotonic() - began
    expected = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    for _ in range(NUM_KILLS // 2):
        shutil.rmtree(out)
        pid = fork(command(case.script(name), words, folder), said)
        time.sleep(moments.uniform(0.1, 1.0) * seconds)
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        for path in out.rglob("*"):
            if path.is_file() and path.suffix != ".part":
                whole(path)
        must(case.script(name), [*words, "--overwrite"], folder)
        assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == expected
    record_property("n", NUM_KILLS // 2)


@pytest.mark.promise("R5")
def test_not_a_number(place: tuple[Case, Path]):
    """A loss that becomes NaN ends with 4 before the update; every model that lies there is finite."""
    case, folder = place
    step, calls = Updater.step, 0

    def poisoned(self: Updater, loss: Callable[[Any], dict[str, torch.Tensor]], batch: Any) -> Any:
        nonlocal calls
        calls += 1
        bad = calls == 5

        def worse(piece: Any) -> dict[str, torch.Tensor]:
            parts = loss(piece)
            return {**parts, "loss": parts["loss"] * float("nan")} if bad else parts

        return step(self, worse, batch)

    def child() -> None:
        Updater.step = poisoned  # type: ignore[method-assign]
        training(case, folder, "poisoned")()

    said = folder / "said.txt"
    assert run(child, said, 300) == 4, said.read_text()[-3000:]
    assert "non-finite" in error_line(said.read_text()) and state(folder / "poisoned") == "failed"
    for name, model in models(folder / "poisoned").items():
        weights = [value for value in model["state_dict"].values() if value.is_floating_point()]
        assert all(bool(torch.isfinite(value).all()) for value in weights), name


@pytest.mark.promise("R6")
def test_no_room(place: tuple[Case, Path]):
    """A file-size limit in mid-training exits 3 and says so; what lies there loads, and the run can go on."""
    case, folder = place
    out, said = folder / "cramped", folder / "said.txt"
    save, calls = torch.save, 0

    def limited(document: Any, path: Any) -> None:
        nonlocal calls
        calls += 1
        save(document, whole_file := io.BytesIO())
        size = whole_file.tell()
        if calls >= 3 and size > LOG_BYTES:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        save(document, path)

    def child() -> None:
        torch.save = limited
        training(case, folder, "cramped")()

    assert run(child, said, 300) == 3, said.read_text()[-3000:]
    assert "file-size limit of" in error_line(said.read_text())
    models(out)  # reads every one
    assert not list(out.rglob("*.part"))
    assert run(training(case, folder, "cramped", "--resume auto"), said, 300) == 0, said.read_text()[-3000:]
    assert changed(out, models(folder / "whole")) == []


@pytest.mark.promise("R25")
def test_odd_surroundings(place: tuple[Case, Path], tmp_path: Path):
    """Training and inference work from another folder, without HOME and with LANG=C, on paths in umlauts."""
    case, folder = place
    shutil.rmtree(folder / "out", ignore_errors=True)
    surroundings = {"PATH": os.environ["PATH"], "LANG": "C", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    name, flags = case.use
    use_flags = flags.replace("{model}", f"far/{case.model}")
    for script, text in (("train", f"{case.train} {QUIET} --out far"), (name, use_flags)):
        inside = {"d", "d.h5", "p.csv", "far", "out"}
        words = [str(folder / word) if word.split("/")[0] in inside else word for word in text.split()]
        done = subprocess.run(
            [sys.executable, str(case.script(script)), *words],
            cwd=tmp_path,
            env=surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-3000:]
    assert (folder / "out").is_dir()
    assert {path.name for path in tmp_path.iterdir()} <= {".cache"}  # what --cache_dir says by default


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
