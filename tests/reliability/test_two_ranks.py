"""What a job of two ranks does when it is stopped, when a rank crashes, hangs or is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common import checkpoint as checkpoints
from common.run import RunFolder, TrainOptions
from tests.launch import ALL_SIGNALS, RANKS, TOY, Ended, Job, start, torchrun

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds orphans by /proc"),
]
QUIET = ["--tensorboard", "false", "--log_every", "100"]
PAUSE = "--step_seconds 0.15"


def status(out: Path) -> dict[str, Any]:
    """Return what status.json of a run says."""
    return json.loads((out / "status.json").read_text())


def whole_state(path: Path) -> str:
    """Return the hash of everything that the next step of a run depends on."""
    found = checkpoints.load(path, package="toy")
    return checkpoints.content_hash([found.state_dict, found.training, found.step, found.epoch, found.rng])


def assert_valid(out: Path, *, least_step: int) -> None:
    """Assert that the last checkpoint of a run loads, is finite, and that no temporary file lies about."""
    found = checkpoints.load(out / "checkpoints" / "last.pt", package="toy")
    assert found.step >= least_step
    assert all(bool(torch.isfinite(value).all()) for value in found.state_dict.values())
    assert not list(out.rglob("*.part"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training on two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = torchrun(TOY, ["--out", str(folder / "run"), *QUIET], folder / "output.txt")
    assert ended.returncode == 0, ended.output
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_and_resume(uninterrupted: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A signal stops both ranks after the same step without orphans; the resumed end is bitwise the same."""
    out = tmp_path / "run"
    flags = f"--out {out} {' '.join(QUIET)} {PAUSE}"
    job = start(RANKS, [str(tmp_path), "first", flags], tmp_path / "first.txt", signals=ALL_SIGNALS)
    job.wait_for((out / "checkpoints" / "step5.pt").exists)
    job.send(number)
    ended = job.wait(60.0)
    assert not job.orphans(within=10.0), ended.output
    reports = [json.loads((tmp_path / f"first.{rank}.json").read_text()) for rank in (0, 1)]
    assert reports[0] == reports[1]
    step = reports[0]["step"]
    assert reports[0]["state"] == "stopped" and 5 <= step < 18
    assert {k: status(out)[k] for k in ("state", "step", "signal")} == {
        "state": "stopped",
        "step": step,
        "signal": number,
    }
    assert_valid(out, least_step=step)
    resumed = torchrun(TOY, ["--out", str(out), *QUIET, "--resume", "auto"], tmp_path / "second.txt")
    assert resumed.returncode == 0, resumed.output
    assert f"continuing after step {step}" in resumed.output
    assert status(out)["state"] == "finished"
    for name in ("last.pt", "best.pt"):
        assert whole_state(out / "checkpoints" / name) == whole_state(uninterrupted / "checkpoints" / name)


def crashed(out: Path, flags: list[str], output_path: Path) -> Ended:
    """Run a job that a planted crash ends, and assert what holds for every one."""
    ended = torchrun(TOY, ["--out", str(out), *QUIET, *flags], output_path, timeout=60.0)
    assert ended.returncode != 0
    assert ended.count("ValueError: planted crash") == 1, ended.output
    report = ended.output.split("Root Cause")[1]
    assert "ValueError: planted crash" in report and re.search(r"rank +: 1 ", report)
    return ended


@pytest.mark.parametrize("place", ["start", "evaluate", "save"])
def test_crash_of_one_rank(uninterrupted: Path, tmp_path: Path, place: str) -> None:
    """A bug on rank 1 ends the job within 60 s, is told once, and leaves the previous checkpoint whole."""
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    before = checkpoints.newest_first(uninterrupted / "checkpoints", "step*.pt")[-1]
    shutil.copy(before, out / "checkpoints" / "last.pt")
    step = checkpoints.load(before).step
    # Nothing evaluates or saves before the planted place but that place itself.
    crashed(
        out, ["--crash", place, "--resume", "auto", "--eval_every", f"{step + 1}"], tmp_path / "output.txt"
    )
    assert_valid(out, least_step=step)
    if place != "start":  # at the start the run is not open yet
        assert status(out)["state"] == "failed"


def test_crash_in_a_step(tmp_path: Path) -> None:
    """A bug in the fourth step of rank 1 leaves the checkpoint of the second, and the state failed."""
    out = tmp_path / "run"
    crashed(out, ["--crash", "step", "--save_every", "2"], tmp_path / "output.txt")
    assert_valid(out, least_step=2)
    assert (status(out)["state"], status(out)["step"]) == ("failed", 3)


def test_killed_rank(tmp_path: Path) -> None:
    """A rank killed outright (out of memory, say) ends the job; the last checkpoint stays usable."""
    out = tmp_path / "run"
    job = start(TOY, ["--out", str(out), *QUIET, *PAUSE.split()], tmp_path / "output.txt")
    job.wait_for((out / "checkpoints" / "step5.pt").exists)
    os.kill(_rank(job, 1), signal.SIGKILL)
    ended = job.wait(60.0)
    assert ended.returncode != 0 and not job.orphans(within=10.0)
    assert_valid(out, least_step=5)
    assert status(out)["state"] == "failed"


def _rank(job: Job, rank: int) -> int:
    """Return the process of a rank."""
    for pid in job.orphans():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"no rank {rank} among {job.orphans()}")


def test_hanging_rank(tmp_path: Path) -> None:
    """A rank that stops answering ends the job within 50 s of its start, and the message says where."""
    out = tmp_path / "run"
    flags = ["--out", str(out), *QUIET, "--hang", "--dist_timeout", "10"]
    job = start(TOY, flags, tmp_path / "output.txt")
    job.wait_for((out / "status.json").exists)
    began = time.monotonic()
    ended = job.wait(90.0)
    assert time.monotonic() - began <= 50.0
    assert ended.returncode != 0 and not job.orphans(within=10.0)
    assert "Timed out" in ended.output
    assert ended.count("rank 0 of 2, step 3") == 1, ended.output
    assert (status(out)["state"], status(out)["step"]) == ("failed", 3)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--nan_rank", "1", "--nan_step", "7"], 4, "error: non-finite at step 7"),
        (["--bad_sample", "3"], 4, "points/3.npy"),
        (["--missing_on_rank", "1"], 3, "error: points/7.npy: no such file"),
    ],
)
def test_one_message(tmp_path: Path, flags: list[str], code: int, message: str) -> None:
    """What any rank finds wrong is one line of the whole job, with the house's exit code on the ranks."""
    out = tmp_path / "run"
    ended = torchrun(TOY, ["--out", str(out), *QUIET, *flags], tmp_path / "output.txt", timeout=60.0)
    assert ended.returncode != 0
    assert ended.count("error:") == 1 and ended.count(message) == 1, ended.output
    assert re.search(rf"exitcode +: {code} ", ended.output) and ended.count("Traceback") <= 1
    if code == 4:
        assert status(out)["state"] == "failed"


def test_failure_before_training(tmp_path: Path) -> None:
    """A run that fails before its first step, say while it reads data, is not left as running."""
    options = TrainOptions(out=tmp_path)
    with (
        pytest.raises(ValueError, match="planted"),
        RunFolder(tmp_path, package="toy", config=options, options=options),
    ):
        raise ValueError("planted")
    assert status(tmp_path)["state"] == "failed"


def test_launcher_finds_what_is_left(tmp_path: Path) -> None:
    """The check for orphans sees a process that its job left behind, in a session of its own."""
    child = "import subprocess, sys; subprocess.Popen(['sleep', '30'], start_new_session=True)"
    job = Job([sys.executable, "-c", child], tmp_path / "output.txt")
    job.wait(20.0)
    assert len(job.orphans()) == 1
    job.kill()
    assert not job.orphans(within=5.0)
