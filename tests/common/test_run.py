"""The folder of a run: who may write in it, what describes it, which checkpoint a resume takes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from common.checkpoint import Checkpoint
from common.errors import DataError, UserError
from common.log import get_logger
from common.run import Layout, MachineOptions, RunFolder, command_line_of, describe_run
from common.store import CheckpointStore
from tests.toy import ToyConfig
from tests.toy_runs import fork, load, options, run, status, train, wait


def opened(path: Path, layout: Layout | None = None, **changes) -> RunFolder:
    """Open the folder as a training would."""
    return RunFolder(path, package="toy", config=ToyConfig(), options=options(path, **changes), layout=layout)


def state(step: int, value: float = 0.0, package: str = "toy") -> Checkpoint:
    """Return the state of a run after some steps."""
    return Checkpoint(package, "gan", {}, {}, {"w": torch.tensor([value])}, {"x": 1}, step=step)


def test_a_second_run_is_refused(tmp_path: Path):
    """A folder that holds a run is refused, whatever state it is in; nothing in it changes."""
    out = tmp_path / "run"
    train(out, ToyConfig(steps=2))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f"{out}: holds an earlier run; .*--resume auto.*--overwrite"):
        train(out, ToyConfig(steps=2))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path):
    """--overwrite deletes the earlier run's files and leaves the user's own alone."""
    out = tmp_path / "run"
    train(out, ToyConfig(steps=12))
    (out / "notes.txt").write_text("mine")
    (out / "checkpoints" / "precious.pt").write_text("mine")
    train(out, ToyConfig(steps=2), overwrite=True)
    names = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "precious.pt", "step3.pt"]
    assert (out / "notes.txt").read_text() == "mine"
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_strangers_are_not_written_among(tmp_path: Path):
    """A folder with other files is refused unless --overwrite says that they may stay side by side."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty .has thesis.tex.; .*--overwrite"):
        opened(tmp_path)
    with opened(tmp_path, overwrite=True):
        assert (tmp_path / "thesis.tex").exists()


def test_resume_of_nothing_starts(tmp_path: Path):
    """--resume auto in an empty folder starts at step 0, so that one command line serves first and later."""
    assert train(tmp_path, ToyConfig(steps=2), resume="auto").step == 3


def test_one_run_at_a_time(tmp_path: Path):
    """Of two runs in one folder exactly one proceeds; the other is told who holds it, resume or not."""
    with opened(tmp_path):
        for changes in ({}, {"resume": "auto"}, {"overwrite": True}):
            with pytest.raises(UserError, match=f"in use by pid {os.getpid()}"):
                opened(tmp_path, **changes)
    assert status(tmp_path)["state"] == "running"
    opened(tmp_path, resume="auto").close()


def test_two_processes_in_one_folder(tmp_path: Path):
    """Two trainings started together in one folder: one finishes, the other exits with wrong usage."""

    def child() -> int:
        try:
            return train(tmp_path / "run", ToyConfig(step_seconds=0.02), resume="auto").exit_code
        except UserError as error:
            return error.exit_code

    codes = [wait(pid) for pid in [fork(child), fork(child)]]
    assert sorted(codes) == [0, 2]
    assert status(tmp_path / "run")["state"] == "finished"


def test_unwritable_output_stops_before_training(tmp_path: Path):
    """An output that cannot be written is found before the first step (exit code 2)."""
    (tmp_path / "file").write_text("x")
    started = time.perf_counter()
    with pytest.raises(UserError, match="file/run"):
        train(tmp_path / "file" / "run", ToyConfig(step_seconds=5))
    assert time.perf_counter() - started < 4


def test_stale_temporaries_go_at_start(tmp_path: Path):
    """What a killed run left half-written is gone after the next start."""
    dead = fork(lambda: 0)
    wait(dead)
    (tmp_path / "checkpoints").mkdir()
    stale = tmp_path / "checkpoints" / f".last.pt.{dead}.{os.uname().nodename}.part"
    stale.write_bytes(b"half")
    opened(tmp_path, resume="auto").close()
    assert not stale.exists()


def test_run_is_described(tmp_path: Path):
    """config.json and run.json say what a reader of the results must know."""
    given = options(tmp_path, seed=5)
    folder = RunFolder(
        tmp_path, package="toy", config=ToyConfig(width=3), options=given, origins={"width": "command line"}
    )
    folder.close()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"] == dataclasses.asdict(ToyConfig(width=3))
    assert config["run"]["seed"] == 5 and config["run"]["out"] == str(tmp_path)
    assert config["origins"] == {"width": "command line"}
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["torch"] == torch.__version__ and described["seed"] == 5 and described["world_size"] == 1
    assert {"command", "git_revision", "host", "python", "numpy", "started", "package"} <= set(described)


def test_describe_without_git(monkeypatch: pytest.MonkeyPatch):
    """A machine without git still runs; the revision is then empty."""
    monkeypatch.setenv("PATH", "")
    assert describe_run("toy", 0, ["train"])["git_revision"] == ""


def test_status_follows_the_run(tmp_path: Path):
    """status.json says running, then finished with the last step, or failed."""
    with opened(tmp_path / "a"):
        assert status(tmp_path / "a")["state"] == "running"
    train(tmp_path / "b", ToyConfig(steps=2))
    assert (status(tmp_path / "b")["state"], status(tmp_path / "b")["step"]) == ("finished", 3)
    with pytest.raises(ValueError, match="planted crash in a step"):
        train(tmp_path / "c", ToyConfig(crash="step"))
    assert (status(tmp_path / "c")["state"], status(tmp_path / "c")["step"]) == ("failed", 3)


def test_keep_last_and_best(tmp_path: Path):
    """The newest numbered files stay, best stays though its number is gone, last is the newest."""
    store = CheckpointStore(tmp_path, Layout(), keep=2)
    for step in (1, 2, 9, 10, 11):
        store.save(state(step), is_best=step == 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt", "step10.pt", "step11.pt"]
    assert load(tmp_path / "best.pt")["step"] == 2 and load(tmp_path / "last.pt")["step"] == 11


def test_names_of_other_tools(tmp_path: Path):
    """A package's own names are kept; the file of the first finished epoch is epoch 0's."""
    layout = Layout(checkpoints=".", numbered="epoch={epoch}.ckpt", last="last.ckpt", best="best.ckpt")
    store = CheckpointStore(tmp_path, layout, keep=3)
    for epoch in (1, 2, 3, 11):
        store.save(dataclasses.replace(state(epoch * 5), epoch=epoch), is_best=False)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["epoch=1.ckpt", "epoch=10.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert store.find("auto", "toy") == tmp_path / "last.ckpt"


def test_resume_takes_the_newest_that_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """--resume auto goes from last backwards; each file that cannot be read is named in a warning."""
    monkeypatch.setattr(get_logger(), "propagate", True)
    store = CheckpointStore(tmp_path, Layout(), keep=5)
    assert store.find("auto", "toy") is None
    for step in (5, 10, 15):
        store.save(state(step), is_best=False)
    store.save_last(state(17))
    assert store.find("auto", "toy") == tmp_path / "last.pt" and not caplog.text
    (tmp_path / "last.pt").write_bytes(b"")
    assert store.find("auto", "toy") == tmp_path / "step15.pt"
    assert "last.pt: not a readable checkpoint (0 bytes: empty)" in caplog.text
    data = bytearray((tmp_path / "step15.pt").read_bytes())
    (tmp_path / "step15.pt").write_bytes(data[: len(data) // 2])
    assert store.find("auto", "toy") == tmp_path / "step10.pt" and "step15.pt" in caplog.text
    for path in tmp_path.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path}: none of its 4 checkpoints can be read"):
        store.find("auto", "toy")


def test_a_kill_between_number_and_link_loses_nothing(tmp_path: Path):
    """When `last` is behind the newest number (killed before the link), the newest number is taken."""
    store = CheckpointStore(tmp_path, Layout(), keep=5)
    store.save(state(5), is_best=False)
    shutil.copy(tmp_path / "last.pt", tmp_path / "old")
    store.save(state(10), is_best=False)
    os.replace(tmp_path / "old", tmp_path / "last.pt")
    assert store.find("auto", "toy") == tmp_path / "step10.pt"
    store.save_last(state(12))
    (tmp_path / "step10.pt").touch()
    assert store.find("auto", "toy") == tmp_path / "last.pt", "the steps count, not the clock"


def test_best_is_never_behind_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill while a best checkpoint is saved leaves no state that claims a best which is not there."""
    from common import checkpoint as checkpoints

    store = CheckpointStore(tmp_path, Layout(), keep=5)
    store.save(state(5), is_best=True)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "link_or_copy", die)
    with pytest.raises(KeyboardInterrupt):
        store.save(state(10), is_best=True)
    found = store.find("auto", "toy")
    assert found is not None and load(found)["step"] <= load(tmp_path / "best.pt")["step"]


def test_resume_from_a_path(tmp_path: Path):
    """A path may be a file, a checkpoint folder or a run's folder; another's is left to be refused."""
    store = CheckpointStore(tmp_path / "checkpoints", Layout(), keep=5)
    (tmp_path / "checkpoints").mkdir()
    store.save(state(5), is_best=False)
    last = tmp_path / "checkpoints" / "last.pt"
    for path in (tmp_path, tmp_path / "checkpoints", last):
        assert store.find(str(path), "toy") == last
    assert store.find("elsewhere/x.pt", "toy") == Path("elsewhere/x.pt")


def test_resume_from_what_is_none(tmp_path: Path):
    """A missing file, another package's checkpoint and an exported model are bad data, both sides named."""
    from common import checkpoint as checkpoints

    def attempt(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            train(tmp_path / "run", ToyConfig(steps=2), resume=str(path))
        return str(caught.value)

    assert "none.pt: no such checkpoint file" in attempt(tmp_path / "none.pt")
    checkpoints.save(tmp_path / "other.pt", state(1, package="fault_seg"))
    assert "'fault_seg', expected 'toy'" in attempt(tmp_path / "other.pt")
    checkpoints.save(tmp_path / "bare.pt", dataclasses.replace(state(1), training={}))
    assert "without training state" in attempt(tmp_path / "bare.pt")
    assert status(tmp_path / "run")["state"] == "failed"


def test_full_disk_in_a_training(tmp_path: Path):
    """A training that hits a file-size limit exits 3, says so, and keeps its last good checkpoint."""
    import resource

    out, said = tmp_path / "run", tmp_path / "said.txt"
    train(out, ToyConfig(steps=4))
    size = (out / "checkpoints" / "last.pt").stat().st_size

    def child() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        try:
            return train(out, ToyConfig(steps=12), resume="auto").exit_code
        except DataError as error:
            print(error)
            return error.exit_code

    assert run(child, said) == 3, said.read_text()
    assert f"file-size limit of {size // 2} bytes" in said.read_text() and "checkpoints/" in said.read_text()
    assert load(out / "checkpoints" / "last.pt")["step"] == 6
    assert not list(out.rglob("*.part"))
    assert train(out, ToyConfig(steps=12), resume="auto").step == 18


def test_command_line_repeats_the_figures():
    """A stored command tells what is always told, then every changed flag but those that change no figure."""
    config, machine = ToyConfig(), MachineOptions(seed=3, device="cpu", overwrite=True)
    assert command_line_of("scripts/a.py", config, MachineOptions()) == "python scripts/a.py"
    found = command_line_of("scripts/a.py", config, machine, given=["--model", "a b"])
    assert found == "python scripts/a.py --model 'a b' --seed 3"
    name = dataclasses.fields(ToyConfig)[0].name
    changed = dataclasses.replace(config, **{name: getattr(config, name) + 1})
    assert f"--{name} " in command_line_of("scripts/a.py", changed, machine)
    assert command_line_of("scripts/a.py", changed, machine, leave_out=[name], places=["seed", "device"]) == (
        "python scripts/a.py --overwrite true"
    )
