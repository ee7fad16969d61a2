"""Start scripts under torchrun as a user would, end them for certain, and find what they left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests" / "toy.py"
RANKS = ROOT / "tests" / "ranks.py"
ALL_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_MARK = "STRATA_TEST_LAUNCH"


@dataclass(frozen=True)
class Ended:
    """How a job ended: exit code, both outputs in one text, wall seconds."""

    returncode: int
    output: str
    seconds: float

    def count(self, text: str) -> int:
        """Return the number of lines of the ranks that hold `text`; torchrun's own report is left out."""
        said = self.output.split("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")[0]
        return sum(text in line for line in said.splitlines())


class Job:
    """A torchrun job in a session of its own, whose output goes to a file.

    torchrun puts every rank into a session of its own too, so a job is known by a mark in its environment.

    Args:
        command: what to run.
        output_path: file for both outputs.
    """

    def __init__(self, command: Sequence[str], output_path: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.output_path = output_path
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, _MARK: self.mark}
        self.started = time.monotonic()
        with open(output_path, "wb") as output:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    @property
    def output(self) -> str:
        """What was said so far."""
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        """Send a signal to torchrun alone, as a scheduler does."""
        os.kill(self.process.pid, number)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Return when `condition` holds while the job runs.

        Raises:
            AssertionError: the job ended or the time was up before; everything of the job is killed.
        """
        end = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the awaited moment never came:\n{self.output[-3000:]}")
            time.sleep(0.02)

    def wait(self, timeout: float) -> Ended:
        """Return how the job ended.

        Raises:
            AssertionError: it ran longer than `timeout` seconds; everything of it is killed.
        """
        try:
            returncode = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.output[-3000:]}") from None
        return Ended(returncode, self.output, time.monotonic() - self.started)

    def kill(self) -> None:
        """Kill torchrun and every rank."""
        for pid in {self.process.pid, *self.orphans()}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def orphans(self, within: float = 0.0) -> list[int]:
        """Return the processes of this job that still live after `within` seconds, torchrun not counted."""
        end = time.monotonic() + within
        while (found := self._alive()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _alive(self) -> list[int]:
        found = []
        needle = f"{_MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if needle in (folder / "environ").read_bytes() and int(folder.name) != self.process.pid:
                    found.append(int(folder.name))
        return found


def start(script: Path, args: Sequence[str], output_path: Path, *, signals: str = "", ranks: int = 2) -> Job:
    """Start `script` under torchrun on `ranks` processes of this machine; `signals` are passed on."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    if signals:
        launcher += ["--signals-to-handle", signals]
    return Job([*launcher, str(script), *map(str, args)], output_path)


def torchrun(
    script: Path, args: Sequence[str], output_path: Path, *, timeout: float = 120.0, ranks: int = 2
) -> Ended:
    """Run `script` under torchrun to its end; nothing of it may be left after 10 s.

    Raises:
        AssertionError: it ran longer than `timeout` seconds, or a rank outlived it.
    """
    job = start(script, args, output_path, ranks=ranks)
    ended = job.wait(timeout)
    left = job.orphans(within=10.0)
    job.kill()
    assert not left, f"processes {left} outlived their job"
    return ended
