"""Several processes on this machine: the launcher behind launch_ddp.py, and what goes wrong at the start."""

from __future__ import annotations

import contextlib
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import distributed
from common.cli import option
from common.errors import (
    EXIT_BUG,
    EXIT_DATA,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED_EARLY,
    EXIT_USAGE,
    DataError,
    DivergedError,
    UserError,
)
from common.files import read_json
from common.log import get_logger

TRAIN = Path("scripts") / "simulgen_vae" / "train.py"
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
TOLD = (EXIT_USAGE, EXIT_DATA, EXIT_DIVERGED, EXIT_STOPPED_EARLY)  # ends that rank 0 has told in a line


@dataclass(frozen=True)
class LaunchConfig:
    """How many processes, and where they meet; every other flag goes to train.py."""

    gpus: int = option(2, "processes on this machine, one a GPU (or CPU processes without GPUs)")
    master_port: int = option(29500, "port where they meet; another free one is taken when it is in use")

    def __post_init__(self) -> None:
        """Check both numbers."""
        if self.gpus < 1:
            raise ValueError(f"--gpus {self.gpus}: expected 1 or more")
        if not 0 <= self.master_port < 65536:
            raise ValueError(f"--master_port {self.master_port}: expected 0 to 65535, 0 = any free one")


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (own arguments, those for train.py) of a command line; both spellings of a flag are known."""
    own: list[str] = []
    rest: list[str] = []
    mine = {"gpus", "master_port", "help"}
    i = 0
    while i < len(argv):
        name, equals, _ = argv[i].partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") in mine:
            takes_next = not equals and name != "--help" and i + 1 < len(argv)
            own += argv[i : i + 1 + takes_next]
            i += 1 + takes_next
        elif name == "-h":
            own.append(name)
            i += 1
        else:
            rest.append(argv[i])
            i += 1
    return own, rest


def free_port(wanted: int) -> int:
    """Return `wanted` when nobody listens there, else a free port."""
    for port in (wanted, 0):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
            except OSError:
                get_logger().warning("warning: --master_port %d is taken; using a free one", port)
    raise UserError("no free port on 127.0.0.1; name one with --master_port")


def launch_command(config: LaunchConfig, rest: Sequence[str], script: Path) -> list[str]:
    """Return the command that starts `script` under torchrun, without a shell and without a prompt."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={config.gpus}",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port(config.master_port)}",
        f"--signals-to-handle={SIGNALS}",
        str(script),
        *(
            rest
            if any(a.partition("=")[0] in ("--use_ddp", "--use-ddp") for a in rest)
            else ["--use_ddp", *rest]
        ),
    ]


def launch(config: LaunchConfig, rest: Sequence[str], script: Path, folder: Path | None = None) -> int:
    """Start train.py on several processes, wait, and return its exit code.

    torchrun's own command ends with 1 and a traceback whatever its workers end with. So it runs in this
    process, as `python -m` would run it, and its error tells which code the workers chose.

    Args:
        config: how many processes, and where they meet.
        rest: flags of train.py.
        script: train.py.
        folder: of the run, whose status.json tells how a training ended that a signal stopped.
    """
    if "--dry_run" in rest or "--dry-run" in rest:
        # One process checks everything; torchrun would start several to say the same.
        return subprocess.run([sys.executable, str(script), *rest], check=False).returncode
    _, _, module, *arguments = launch_command(config, rest, script)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
    own, sys.argv = sys.argv, [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception as error:
        code = exit_code_of(error, folder)
        if code is None:
            raise
        return code
    finally:
        sys.argv = own
    return EXIT_DONE


def exit_code_of(error: Exception, folder: Path | None = None) -> int | None:
    """Return the exit code that an error of torchrun stands for, None where its report must be seen.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it.
    """
    number = getattr(error, "sigval", None)
    if number is not None:  # torchrun was told to stop, and has waited for the workers to save
        if number == signal.SIGINT:
            raise KeyboardInterrupt from error
        return EXIT_STOPPED_EARLY if _state_in(folder) == "stopped" else EXIT_BUG
    codes = [failure.exitcode for failure in getattr(error, "failures", {}).values()]
    told = [code for code in codes if code in TOLD]
    # A rank that torchrun itself ended, because another had left, says nothing.
    is_all = len(told) + sum(code == -signal.SIGTERM for code in codes) == len(codes)
    return told[0] if told and is_all else None


def _state_in(folder: Path | None) -> str:
    """Return the state that a run's status.json tells, "" without one."""
    with contextlib.suppress(DataError, KeyError, TypeError):
        return "" if folder is None else str(read_json(folder / "status.json", "")["state"])
    return ""


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a line of torchrun says more than a rank has said: no end with a code of `TOLD` does."""
    text = record.getMessage()
    return "closing signal" not in text and not any(f"(exitcode: {code})" in text for code in TOLD)


def require_launcher(use_ddp: bool) -> None:
    """Raise UserError when --use_ddp is given without torchrun."""
    if use_ddp and not distributed.launched():
        raise UserError(
            "--use_ddp: started without torchrun, expected its environment; run: "
            f"torchrun --nproc_per_node=2 {TRAIN} --use_ddp ..., or {TRAIN.with_name('launch_ddp.py')} ..."
        )


@contextlib.contextmanager
def explain_set_up() -> Iterator[None]:
    """Turn a failure to join the other processes into one line with the port."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not distributed.launched() or not any(w in text for w in ("NCCL", "EADDRINUSE", "ncclSystem")):
            raise
        port = os.environ.get("MASTER_PORT", "unknown")
        first = text.splitlines()[0]
        raise UserError(
            f"processes could not be joined at port {port} ({first}); choose another --master_port, "
            "and set NCCL_DEBUG=INFO to see more"
        ) from error


@contextlib.contextmanager
def advise_on_divergence() -> Iterator[None]:
    """Add to a divergence what helps in this package."""
    try:
        yield
    except DivergedError as error:
        better = DivergedError(f"{error}; try --lr /10 and --gradient_clip_val 1")
        better.shared = error.shared
        raise better from error
