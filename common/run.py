"""A run: the options every script shares, and the folder that a training run leaves behind.

<out>/config.json  run.json  status.json  log.txt  metrics.jsonl  tensorboard/  checkpoints/  figures/
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common import device as devices
from common import distributed
from common.cli import flags_of, option
from common.errors import UserError
from common.files import FolderLock, remove_stale_temporaries, require_writable, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Options that say where a run goes and on what, and change no figure: stored commands leave them out.
PLACES = ("out", "overwrite", "dry_run", "device", "dist_timeout")


def command_line_of(
    script: str,
    config: DataclassInstance,
    options: BasicOptions,
    *,
    given: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    places: Sequence[str] = PLACES,
) -> str:
    """Return the command that repeats the figures of a script: every flag that changes them.

    Args:
        script: its path in this project.
        config: its own options.
        options: where it runs.
        given: words that are always told, first.
        leave_out: fields of `config` that are told in `given`, or change no figure.
        places: fields of `options` that change no figure.
    """
    changed = [shlex.join(given), flags_of(config, leave_out), flags_of(options, places)]
    return " ".join([f"python {script}", *filter(None, changed)])


@dataclass(frozen=True)
class BasicOptions:
    """What every script takes."""

    overwrite: bool = option(False, "replace what an earlier run left")
    dry_run: bool = option(False, "check everything, say what would be done, stop")


@dataclass(frozen=True)
class MachineOptions(BasicOptions):
    """Where to run: shared by the scripts that use a network."""

    seed: int = option(0, "of everything random")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option("auto", "arithmetic of the networks", choices=devices.PRECISIONS)
    threads: int = option(0, "CPU threads of torch; 0 = its own choice")
    dist_timeout: float = option(600.0, "longest wait for another rank", unit="s")
    deterministic: bool = option(False, "bitwise repeatable kernels on a GPU")

    def __post_init__(self) -> None:
        """Check what does not need the machine."""
        if self.dist_timeout <= 0:
            raise ValueError(f"--dist_timeout {self.dist_timeout}: expected more than 0 s")
        if self.threads < 0:
            raise ValueError(f"--threads {self.threads}: expected 0 or more")


@dataclass(frozen=True)
class TrainOptions(MachineOptions):
    """How to train: shared by every training script."""

    num_workers: int = option(0, "loader processes")
    compile: bool = option(False, "compile the networks with torch.compile")
    resume: str = option("", "auto (newest valid checkpoint) or a path")
    out: Path = option(Path("results/run"), "folder of the run")
    log_every: int = option(10, "steps between log lines", unit="steps")
    eval_every: int = option(0, "steps between evaluations; 0 = the package's choice", unit="steps")
    save_every: int = option(0, "steps between checkpoints; 0 = the package's choice", unit="steps")
    keep_last: int = option(3, "numbered checkpoints kept")
    on_nonfinite: str = option(
        "stop", "at a NaN loss: stop, or skip the update (ten in a row stop)", choices=("stop", "skip")
    )
    tensorboard: bool = option(True, "write TensorBoard logs beside metrics.jsonl")
    wandb: str = option("", "Weights & Biases project to log to as well")
    use_profiler: bool = option(False, "write a profiler trace of some steps")
    profile_steps: int = option(20, "steps in the profiler's window")

    def __post_init__(self) -> None:
        """Check what does not need the machine."""
        super().__post_init__()
        for name, least in (
            ("num_workers", 0),
            ("log_every", 1),
            ("eval_every", 0),
            ("save_every", 0),
            ("keep_last", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")


@contextlib.contextmanager
def machine(options: MachineOptions) -> Iterator[torch.device]:
    """Set up device, threads, determinism and the process group for the block; yield the device."""
    devices.set_threads(options.threads)
    device = devices.resolve_device(options.device, local_rank=distributed.local_rank())
    devices.set_deterministic(options.deterministic)
    with distributed.session(device, options.dist_timeout):
        devices.seed_global(options.seed, distributed.rank())
        yield device


@dataclass(frozen=True)
class Layout:
    """Where a run's checkpoints lie and what they are called.

    A package that must keep the names of other tools passes its own, for example
    Layout(checkpoints=".", numbered="epoch={epoch}.ckpt", last="last.ckpt", best="best.ckpt").
    """

    checkpoints: str = "checkpoints"
    numbered: str = "step{step}.pt"
    last: str = "last.pt"
    best: str = "best.pt"
    tensorboard: str = "tensorboard"

    @property
    def pattern(self) -> str:
        """The glob that finds the numbered files."""
        return self.numbered.replace("{step}", "*").replace("{epoch}", "*")


class RunFolder:
    """The folder of one run: locked while it lives, described by three JSON files.

    Every rank makes one; only rank 0 writes. Close it, or use it as a context manager.

    Raises:
        UserError: it cannot be written, another process holds it, or it holds another run and neither resume
            nor overwrite was asked for.
    """

    def __init__(
        self,
        path: Path,
        *,
        package: str,
        config: Any,
        options: TrainOptions,
        origins: dict[str, str] | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.path = Path(path)
        self.package = package
        self.layout = layout or Layout()
        self._lock: FolderLock | None = None
        self._state = ""
        with distributed.shared_errors():
            if distributed.is_main():
                self._open(config, options, origins or {})

    def _open(self, config: Any, options: TrainOptions, origins: dict[str, str]) -> None:
        require_writable(self.path)
        self._lock = FolderLock(self.path)
        try:
            remove_stale_temporaries(self.path)
            if not options.resume:
                self._make_way(options.overwrite)
        except BaseException:
            self._lock.release()
            raise
        write_json(
            self.path / "config.json",
            {"config": dataclasses.asdict(config), "run": dataclasses.asdict(options), "origins": origins},
        )
        write_json(self.path / "run.json", describe_run(self.package, options.seed))
        self.status("running")

    def _make_way(self, overwrite: bool) -> None:
        """Refuse a folder with an earlier run's files, or delete them (and nothing else) when told to."""
        found = [p for p in self._files_of_a_run() if p.exists()]
        if not found:
            strangers = [p.name for p in self.path.iterdir() if p.name != ".lock"]
            if strangers and not overwrite:
                raise UserError(
                    f"{self.path}: not empty (has {', '.join(sorted(strangers)[:3])}); "
                    "choose another --out, or add --overwrite to write among these files"
                )
            return
        if not overwrite:
            raise UserError(
                f"{self.path}: holds an earlier run; continue it with --resume auto, "
                "replace it with --overwrite, or choose another --out"
            )
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _files_of_a_run(self) -> list[Path]:
        names = ["config.json", "run.json", "status.json", "log.txt", "metrics.jsonl"]
        if self.layout.tensorboard != ".":
            names.append(self.layout.tensorboard)
        found = [self.path / name for name in names]
        found += [self.checkpoints / name for name in (self.layout.last, self.layout.best)]
        found += sorted(self.checkpoints.glob(self.layout.pattern))
        return found + sorted(self.path.glob("events.out.tfevents.*"))

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / self.layout.checkpoints

    def status(self, state: str, *, step: int = 0, signal: int = 0) -> None:
        """Write status.json: running, finished, stopped or failed, at which step, by which signal."""
        self._state = state
        if distributed.is_main():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(
                self.path / "status.json", {"state": state, "step": step, "signal": signal, "time": now}
            )

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._state == "running":  # it failed before or after the training itself
            with contextlib.suppress(Exception):
                self.status("failed")
        self.close()


def describe_run(package: str, seed: int, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what a reader of results must know: command, versions, revision, seed, host, world size."""
    import numpy

    return {
        "package": package,
        "command": list(command or [Path(sys.executable).name, *sys.argv]),
        "seed": seed,
        "world_size": distributed.world_size(),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "git_revision": _git_revision(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_revision() -> str:
    """Return the revision of the source tree, "" when it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
