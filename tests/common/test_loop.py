"""The step loop: exact resume, signals, kills, NaN, best checkpoints, damaged files, profiler, overhead."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli
from common.errors import DivergedError, StrataError
from common.guard import Guard, learning_rates, nonfinite_source
from common.loop import train as train_loop
from common.run import RunFolder
from common.task import Cadence, Phase, Task
from tests import toy
from tests.toy import ToyConfig
from tests.toy_runs import differences, fork, load, options, records, run, status, train, wait

NAMES = ("last.pt", "best.pt")


def final(out: Path) -> dict[str, Any]:
    """Return all that a run's last and best checkpoints hold."""
    return {name: load(out / "checkpoints" / name) for name in NAMES}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted training of 18 steps in two phases."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(out).state == "finished"
    return out


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Call `act` once, in the middle of this step of the next training."""
    before = toy.ToyTask._misbehave
    done: list[int] = []

    def misbehave(self: toy.ToyTask, now: int) -> None:
        if now == step and not done:
            done.append(now)
            act()
        before(self, now)

    monkeypatch.setattr(toy.ToyTask, "_misbehave", misbehave)


def send(number: int) -> Callable[[], None]:
    """Return a function that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def test_same_command_twice(whole: Path, tmp_path: Path):
    """The same command gives the same bits in every tensor that is saved; another seed does not."""
    train(tmp_path / "again")
    assert not differences(final(whole), final(tmp_path / "again"))
    train(tmp_path / "other", seed=1)
    assert differences(final(whole), final(tmp_path / "other"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(whole: Path, tmp_path: Path, num_workers: int):
    """Loader workers change no bit of the result."""
    train(tmp_path, num_workers=num_workers)
    assert not differences(final(whole), final(tmp_path))


@pytest.mark.parametrize("step", [0, 4, 6, 11, 12, 16])
def test_resume_is_exact(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int):
    """Stopped by a signal in any step of either phase and resumed, a run ends as if never stopped."""
    at_step(monkeypatch, step, send(signal.SIGTERM))
    stopped = train(tmp_path)
    assert (stopped.state, stopped.step, stopped.exit_code) == ("stopped", step + 1, 75)
    said = status(tmp_path)
    assert (said["state"], said["step"], said["signal"]) == ("stopped", step + 1, signal.SIGTERM)
    assert load(tmp_path / "checkpoints" / "last.pt")["step"] == step + 1
    result = train(tmp_path, resume="auto")
    assert (result.state, result.step) == ("finished", 18)
    assert not differences(final(whole), final(tmp_path))
    assert records(tmp_path) == records(whole)


def test_many_stops(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after every single step, a run still ends bit for bit the same."""
    monkeypatch.setattr(Guard, "should_stop", lambda _self: signal.SIGUSR1)
    steps = [train(tmp_path, resume="auto").step for _ in range(18)]
    assert steps == list(range(1, 19))
    monkeypatch.undo()
    assert train(tmp_path, resume="auto").state == "finished"
    assert not differences(final(whole), final(tmp_path))


def test_the_comparison_sees_a_bit(whole: Path):
    """The comparison used here notices one flipped bit, a missing key and another type."""
    tree = final(whole)
    assert not differences(tree, final(whole))
    weight = tree["last.pt"]["state_dict"]["0.weight"]
    weight.view(torch.int32)[0, 0] ^= 1
    assert "/last.pt/state_dict/0.weight" in differences(tree, final(whole))
    assert differences({"a": 1}, {}) and differences([1], [1.0]) and differences([1], [1, 2])


def test_two_phases(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Phases run in order; steps count through both; a resume in the second starts that one only."""
    started: list[str] = []
    monkeypatch.setattr(
        toy.ToyTask, "start_phase", lambda self, name: (setattr(self, "phase", name), started.append(name))
    )
    at_step(monkeypatch, 13, send(signal.SIGUSR1))
    train(tmp_path)
    assert started == ["both", "generator"]
    train(tmp_path, resume="auto")
    assert started == ["both", "generator", "generator"]
    critics = [r["step"] for r in records(tmp_path) if "critic" in r]
    assert critics == [4, 8, 12]
    assert not differences(final(whole), final(tmp_path))


def test_best_is_kept(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """best.pt holds the lowest score of the run, and a resume cannot replace it by a worse one."""
    scores = {r["step"]: r["off_line"] for r in records(whole) if "off_line" in r}
    best = load(whole / "checkpoints" / "best.pt")
    assert set(scores) == {6, 12, 18}
    assert best["step"] == min(scores, key=scores.__getitem__)
    assert best["training"]["loop"]["best"] == min(scores.values())
    at_step(monkeypatch, 8, send(signal.SIGTERM))
    train(tmp_path)
    result = train(tmp_path, resume="auto")
    assert result.best == min(scores.values())
    assert load(tmp_path / "checkpoints" / "best.pt")["step"] == best["step"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_signals_of_a_process(whole: Path, tmp_path: Path, number: int, code: int):
    """A signal from outside ends a process after its step, with its exit code and a checkpoint."""
    out, said = tmp_path / "run", tmp_path / "said.txt"
    arguments = [
        "--out",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--no_tensorboard",
        "--log_every",
        "4",
    ]
    slow = [*arguments, "--step_seconds", "0.05"]
    pid = fork(lambda: cli.main(toy.run, slow), said)
    wait_for_step(out, 4)
    os.kill(pid, number)
    assert wait(pid) == code, said.read_text()
    found = status(out)
    assert (found["state"], found["signal"]) == ("stopped", number)
    assert load(out / "checkpoints" / "last.pt")["step"] == found["step"] < 18
    assert f"{signal.Signals(number).name}: stopped after step {found['step']}" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert run(lambda: cli.main(toy.run, [*arguments, "--resume", "auto"]), said) == 0
    for name in NAMES:
        a, b = load(out / "checkpoints" / name), load(whole / "checkpoints" / name)
        a.pop("config"), b.pop("config"), a.pop("sha256"), b.pop("sha256")  # the pause is part of the config
        assert not differences(a, b)


def wait_for_step(out: Path, step: int, timeout_s: float = 60) -> None:
    """Wait until metrics.jsonl has a record of this step."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        path = out / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)
    raise AssertionError(f"{out}: step {step} was not reached in {timeout_s} s")


def test_second_interrupt_stops_at_once(tmp_path: Path):
    """Ctrl-C twice ends even a step that takes for ever, with exit code 130."""
    out, said = tmp_path / "run", tmp_path / "said.txt"
    arguments = ["--out", str(out), "--device", "cpu", "--no_tensorboard", "--log_every", "1", "--hang"]
    pid = fork(lambda: cli.main(toy.run, arguments), said)
    wait_for_step(out, 3)
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    assert wait(pid, 20) == 130
    assert "interrupted" in said.read_text() and "Traceback" not in said.read_text()


def test_handlers_are_given_back(tmp_path: Path):
    """After a training the process has its own signal handlers again, after a failed one too."""
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path / "a", ToyConfig(steps=2))
    with pytest.raises(ValueError, match="planted"):
        train(tmp_path / "b", ToyConfig(crash="step"))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.reliability)])
def test_sigkill_and_resume(whole: Path, tmp_path: Path, kills: int):
    """Killed at random moments and resumed each time, a run finishes bit for bit as an uninterrupted one."""
    chance, config = random.Random(kills), ToyConfig()
    for attempt in range(kills):
        out = tmp_path / str(attempt)
        pid = fork(lambda out=out: train(out, config, save_every=2, resume="auto").exit_code)
        time.sleep(chance.uniform(0.03, 0.25))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        newest = out / "checkpoints" / "last.pt"
        saved = load(newest)["step"] if newest.exists() else 0
        logged = (out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else ""
        if '"step": 12,' in logged:
            assert saved >= 10, "a step before the last save was lost"
        result = train(out, config, resume="auto")
        assert result.step == 18 and not list(out.rglob("*.part"))
        assert not differences(final(whole), final(out))


@pytest.mark.parametrize("cut", [True, False])
def test_damaged_checkpoint_falls_back(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cut: bool,
):
    """A damaged last.pt is named in a warning, the one before is taken, and the end is the same."""
    at_step(monkeypatch, 13, send(signal.SIGTERM))
    train(tmp_path)
    last = tmp_path / "checkpoints" / "last.pt"
    data = last.read_bytes()
    weight = load(last)["state_dict"]["0.weight"].numpy().tobytes()
    flipped = bytes([weight[0] ^ 1]) + weight[1:]
    last.write_bytes(data[: len(data) // 2] if cut else data.replace(weight, flipped))
    capsys.readouterr()
    train(tmp_path, resume="auto")
    said = capsys.readouterr().err
    assert f"warning: {last}: " in said and "step10.pt: continuing after step 10" in said
    assert not differences(final(whole), final(tmp_path))


def test_nan_stops_before_the_update(tmp_path: Path):
    """A NaN loss ends the run (exit code 4) with step, losses, rate and last checkpoint; no weight moves."""
    expected = tmp_path / "expected"
    train(expected, ToyConfig(), save_every=1, keep_last=99)
    with pytest.raises(DivergedError) as caught:
        train(tmp_path / "run", ToyConfig(nan_rank=0, nan_step=3), save_every=1)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    for part in ("non-finite at step 3", "loss nan", "learning rate 0.0", "the input is finite", "last.pt"):
        assert part in message, part
    last = load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["step"] == 3 and status(tmp_path / "run")["state"] == "failed"
    known = load(expected / "checkpoints" / "step3.pt")
    assert not differences(last["training"], known["training"])
    assert all(torch.isfinite(w).all() for w in last["state_dict"].values())


def test_nan_leaves_live_weights_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The networks in memory are those of the step before: the update was never begun."""
    tasks: list[toy.ToyTask] = []
    created = toy.ToyTask.__init__

    def remember(self: toy.ToyTask, *args: Any) -> None:
        created(self, *args)
        tasks.append(self)

    monkeypatch.setattr(toy.ToyTask, "__init__", remember)
    with pytest.raises(DivergedError):
        train(tmp_path, ToyConfig(nan_rank=0, nan_step=3, batch_norm=False), save_every=3)
    saved = load(tmp_path / "checkpoints" / "step3.pt")["training"]["task"]
    for update, part in zip(tasks[0].updates, saved["updates"], strict=True):
        assert not differences(dict(update.module.state_dict()), part["module"])


def test_nan_may_be_skipped(tmp_path: Path):
    """With --on_nonfinite skip one bad step is left out and the run goes on to a finite end."""
    result = train(tmp_path, ToyConfig(nan_rank=0, nan_step=3), on_nonfinite="skip")
    assert result.state == "finished"
    weights = load(tmp_path / "checkpoints" / "last.pt")["state_dict"].values()
    assert all(torch.isfinite(w).all() for w in weights)


def test_ten_bad_steps_in_a_row_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With --on_nonfinite skip ten bad steps in a row end the run, though another network updates between."""
    config = ToyConfig(nan_rank=0, nan_step=2)
    poison = toy.ToyTask.step

    def always(self: toy.ToyTask, batch: Any, step: int) -> dict[str, Any]:
        return poison(self, batch, 2 if step >= 2 else step)

    monkeypatch.setattr(toy.ToyTask, "step", always)
    with pytest.raises(DivergedError, match="non-finite at step 11 after 10 in a row"):
        train(tmp_path, config, on_nonfinite="skip")


def test_bad_data_is_traced_to_its_file(tmp_path: Path):
    """When the batch itself holds NaN the message names the file it came from."""
    with pytest.raises(
        DivergedError, match=r"the batch holds NaN or Inf \(points/5.npy\); .*repair the data"
    ):
        train(tmp_path, ToyConfig(bad_sample=5))


def test_source_of_bad_values():
    """The first bad sample is found in any float tensor of a batch; integers and clean batches name none."""
    x = torch.zeros(3, 2, 2)
    assert nonfinite_source({"x": x, "n": torch.ones(3, dtype=torch.int64), "source": ["a", "b", "c"]}) == ""
    x[1, 0, 1] = float("inf")
    assert nonfinite_source({"x": x, "source": ["a", "b", "c"]}) == "b"
    assert nonfinite_source({"x": x}) == "x, sample 1 of the batch"
    assert nonfinite_source({"x": torch.tensor([0.0, float("nan")])}) == "x, sample 1 of the batch"
    assert nonfinite_source([x]) == ""
    state = {"u": [{"param_groups": [{"lr": 0.1}, {"lr": 0.1}]}, {"param_groups": [{"lr": 0.2}]}]}
    assert learning_rates(state) == [0.1, 0.2]


@pytest.mark.parametrize("where", ["start", "step", "evaluate", "save"])
def test_a_bug_keeps_its_traceback(tmp_path: Path, where: str):
    """A bug at any place passes unchanged, the lock goes, and what was saved before still loads."""
    with pytest.raises(ValueError, match="planted crash"):
        train(tmp_path, ToyConfig(crash=where))
    for path in tmp_path.glob("checkpoints/*.pt"):
        load(path)
    assert train(tmp_path, resume="auto").step == 18


def test_profiler_writes_a_trace(tmp_path: Path):
    """--use_profiler leaves a trace with the network's operators, for a window longer than the run too."""
    for steps in (3, 500):
        train(tmp_path / str(steps), use_profiler=True, profile_steps=steps)
        text = (tmp_path / str(steps) / "profile" / "trace.json").read_text()
        assert "aten::linear" in text and json.loads(text)["traceEvents"]
    with pytest.raises(StrataError, match="--profile_steps 0: expected 1 or more"):
        train(tmp_path / "0", use_profiler=True, profile_steps=0)


class _Idle(Task):
    """A task that does nothing: what remains is the loop itself."""

    package, kind = "toy", "idle"
    config: dict[str, Any] = {}
    normalization: dict[str, Any] = {}

    def step(self, batch: Any, step: int) -> dict[str, torch.Tensor | float]:
        return {"loss": batch.sum(), "lr": 0.1}

    def evaluate(self) -> dict[str, float]:
        return {}

    def weights(self) -> dict[str, torch.Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_overhead_of_a_step(tmp_path: Path):
    """The loop costs less than half a millisecond of CPU a step."""
    settings = options(tmp_path, log_every=100)
    batch = torch.zeros(4)
    phases = [Phase("", 2000, lambda first, stop: (batch for _ in range(first, stop)))]
    with RunFolder(tmp_path, package="toy", config=ToyConfig(), options=settings) as folder:
        started = time.process_time()
        result = train_loop(_Idle(), phases, folder, settings, Cadence(), Guard(torch.device("cpu")))
        assert result.step == 2000
        assert (time.process_time() - started) / 2000 < 0.5e-3


def test_epochs_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run that counts epochs says how many its steps are, and its checkpoints count them."""
    settings = options(tmp_path)
    phases = [Phase("", 10, lambda first, stop: [torch.zeros(1)] * (stop - first))]
    with RunFolder(tmp_path, package="toy", config=ToyConfig(), options=settings) as folder:
        train_loop(_Idle(), phases, folder, settings, Cadence(steps_per_epoch=4), Guard(torch.device("cpu")))
    assert "10 steps = 2.5 epochs of 4 steps on 1 rank(s), cpu" in capsys.readouterr().err
    assert load(tmp_path / "checkpoints" / "last.pt")["epoch"] == 2
