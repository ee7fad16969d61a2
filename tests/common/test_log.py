"""Records of a run: the same after a resume, readable by anyone, plain where there is no terminal."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import resource
import sys
from pathlib import Path

import pytest

from common.errors import DataError, UserError
from common.log import RunLog, get_logger
from tests.toy import ToyConfig
from tests.toy_runs import records, run, train


@pytest.mark.parametrize("stop", [3, 4, 7, 12])
def test_metrics_after_resume(tmp_path: Path, stop: int):
    """metrics.jsonl of a run in two parts equals that of an uninterrupted one, averages over windows too."""
    train(tmp_path / "whole", log_every=4)
    train(tmp_path / "parts", ToyConfig(), log_every=4, save_every=stop)
    for path in (tmp_path / "parts" / "checkpoints").iterdir():
        if path.name != f"step{stop}.pt":
            path.unlink()
    train(tmp_path / "parts", ToyConfig(), log_every=4, resume="auto")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_resume_of_a_finished_run_adds_nothing(tmp_path: Path):
    """Resuming what is finished trains nothing, writes no second record and returns the same scores."""
    first = train(tmp_path)
    before = records(tmp_path)
    again = train(tmp_path, resume="auto")
    assert (again.step, again.scores, again.best) == (first.step, first.scores, first.best)
    assert records(tmp_path) == before


def test_half_written_lines_are_dropped(tmp_path: Path):
    """A line cut by a kill, and records of steps that will come again, are dropped on resume."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "a": 1}\n{"step": 5, "a": 1}\n{"step": 6, "a"')
    log = RunLog(tmp_path, total_steps=9, start_step=4)
    log.metrics(5, {"a": 2.0})
    log.close()
    assert records(tmp_path) == [{"step": 2, "a": 1}, {"step": 5, "a": 2.0}]


def test_metrics_are_valid_json(tmp_path: Path):
    """NaN and infinity become null: every line is JSON."""
    log = RunLog(tmp_path, total_steps=1)
    log.metrics(1, {"a": float("nan"), "b": float("inf"), "c": 1.5})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["a"], line["b"], line["c"]) == (None, None, 1.5) and line["seconds"] >= 0


def test_plain_lines_without_a_terminal(tmp_path: Path):
    """The console and log.txt hold one line a record, no carriage return, with step and total."""
    assert run(lambda: train(tmp_path / "run").exit_code, tmp_path / "said.txt") == 0
    for text in ((tmp_path / "said.txt").read_text(), (tmp_path / "run" / "log.txt").read_text()):
        assert "\r" not in text and "\x1b" not in text
        assert re.search(r"step 4/18  critic [\d.e-]+  generator [\d.e-]+  lr [\d.e-]+  \d+:\d\d left", text)
        assert "18 steps on 1 rank(s), cpu" in text


def test_a_line_says_the_means_of_many_parts(tmp_path: Path):
    """Of fifty values a line has the means; metrics.jsonl has all; few values are said as they are."""
    parts = {f"Scale_{k}/{name}": 1.0 for k in range(12) for name in ("D_Total", "G_Total")}
    log = RunLog(tmp_path, total_steps=9)
    log.metrics(1, {"Mean/D_Total": 0.5, **parts, "lr": 0.25})
    log.metrics(2, {"Scale_0/D_Total": 0.75})
    log.metrics(3, {f"part/{i}": 2.0 for i in range(20)})
    log.close()
    first, second, third = (tmp_path / "log.txt").read_text().splitlines()
    assert "step 1/9  D_Total 0.5  lr 0.25  " in first and "Scale_" not in first
    assert "Scale_0/D_Total 0.75" in second and third.count("part/") == 12
    assert [len(r) for r in records(tmp_path)] == [27, 2, 21]


def test_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """On a terminal a bar shows the progress; log.txt stays plain."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tmp_path)
    assert "18/18" in capsys.readouterr().err
    assert "\r" not in (tmp_path / "log.txt").read_text()


def test_tensorboard_file_is_readable(tmp_path: Path):
    """TensorBoard reads the same numbers that metrics.jsonl holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {(e.step, round(e.value, 5)) for e in events.Scalars("generator")}
    assert found == {(r["step"], round(r["generator"], 5)) for r in records(tmp_path) if "generator" in r}


def test_wandb_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without wandb --wandb is wrong usage, with the command that installs it, before the first step."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match="--wandb needs wandb, which is not installed; run: pip install wandb"
    ):
        train(tmp_path, ToyConfig(crash="step"), wandb="project")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With WANDB_MODE=offline a run is recorded on this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, ToyConfig(steps=2), wandb="strata-test")
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_loggers_do_not_pile_up(tmp_path: Path):
    """Two runs in one process write each line once, into their own file; a failed one leaves nothing."""
    train(tmp_path / "a", ToyConfig(steps=2))
    with pytest.raises(ValueError, match="planted"):
        train(tmp_path / "b", ToyConfig(crash="step"))
    train(tmp_path / "c", ToyConfig(steps=2))
    assert not [h for h in get_logger().handlers if isinstance(h, logging.FileHandler)]
    for name in "ac":
        assert (tmp_path / name / "log.txt").read_text().count("3 steps on 1 rank(s)") == 1


def test_full_disk_while_logging(tmp_path: Path):
    """metrics.jsonl that can grow no more is bad data that names the file, not a traceback."""

    def child() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        log = RunLog(tmp_path, total_steps=999)
        try:
            for step in range(999):
                log.metrics(step, {"loss": 1.0}, say=False)
        except DataError as error:
            print(error)
            return error.exit_code
        finally:
            log.close()
        return 0

    assert run(child, tmp_path / "said.txt") == 3
    assert (
        "metrics.jsonl: could not be written: the file-size limit of 2000"
        in (tmp_path / "said.txt").read_text()
    )
