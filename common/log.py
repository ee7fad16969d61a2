"""What a run says: log.txt and stderr, metrics.jsonl, TensorBoard, Weights & Biases, a progress bar.

Only rank 0 talks. On a terminal the progress is a bar; elsewhere it is plain lines, so that log files hold no
carriage returns.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from common import distributed
from common.errors import missing_library
from common.files import explain_full_disk, write_text

LOGGER_NAME = "strata"


def get_logger() -> logging.Logger:
    """Return the logger of the project; quiet on every rank but 0."""
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        logging.raiseExceptions = False  # a closed stderr must not end a training
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
    return logger


class _Console(logging.Handler):
    """Write records to stderr, above the progress bar when there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:
            return
        text = self.format(record)
        with contextlib.suppress(OSError):  # its reader may have gone, as in `script 2>&1 | head`
            if _on_terminal():
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


MOST_SAID = 12  # values in a line of the log; metrics.jsonl and TensorBoard have all


class RunLog:
    """The records of one run.

    Args:
        folder: the run's folder; metrics.jsonl and log.txt lie in it.
        total_steps: of the whole run, for progress.
        start_step: steps done before this process; later records are dropped before it starts, so that a
            resumed run leaves the records of an uninterrupted one.
        tensorboard: folder of the event files, or None for none.
        wandb_project: log to Weights & Biases too, when not "".
        config: what to record beside the metrics.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        start_step: int = 0,
        tensorboard: Path | None = None,
        wandb_project: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.logger = get_logger()
        self.total_steps = total_steps
        self._started = time.perf_counter()
        self._start_step = start_step
        self._active = distributed.is_main()
        self._bar = self._writer = self._wandb = self._file_handler = self._metrics = None
        if not self._active:
            return
        if wandb_project:  # first, since it may be missing and nothing else is open yet
            self._wandb = _start_wandb(wandb_project, folder, config or {})
        self._file_handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        self._file_handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.logger.addHandler(self._file_handler)
        metrics_path = folder / "metrics.jsonl"
        _keep_steps_up_to(metrics_path, start_step)
        self._metrics = open(metrics_path, "a", encoding="utf-8")  # noqa: SIM115 - held until close
        if tensorboard is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=start_step or None)
        if _on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

    def info(self, message: str) -> None:
        """Say `message` on stderr and in log.txt."""
        self.logger.info(message)

    def warning(self, message: str) -> None:
        """Say a warning."""
        self.logger.warning("warning: %s", message)

    def metrics(self, step: int, values: dict[str, float], *, say: bool = True) -> None:
        """Record named numbers at `step`, and print them unless `say` is False."""
        if not self._active:
            return
        assert self._metrics is not None
        seconds = round(time.perf_counter() - self._started, 3)
        with explain_full_disk(self._metrics.name):
            self._metrics.write(json.dumps({"step": step, "seconds": seconds, **_finite(values)}) + "\n")
            self._metrics.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        if say:
            self._say(step, values)

    def _say(self, step: int, values: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in _of_a_line(values).items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        done, left = step - self._start_step, self.total_steps - step
        # A finished run that is resumed only to be scored has done no step.
        seconds_left = left * (time.perf_counter() - self._started) / max(done, 1)
        self.logger.info(f"step {step}/{self.total_steps}  {text}  {_duration(seconds_left)} left")

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Record a matplotlib figure under `name` in TensorBoard."""
        if self._writer is not None:
            self._writer.add_figure(name, figure, step)

    def close(self) -> None:
        """Finish all records."""
        for part in (self._bar, self._writer, self._metrics):
            if part is not None:
                with contextlib.suppress(OSError):  # a full disk was reported when it was met
                    part.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._file_handler is not None:
            self.logger.removeHandler(self._file_handler)
            self._file_handler.close()


def _of_a_line(values: dict[str, float]) -> dict[str, float]:
    """Return what one line can say of many values: the means of parts (Mean/name) and what has no group."""
    if len(values) <= MOST_SAID:
        return values
    said = {
        name.removeprefix("Mean/"): v for name, v in values.items() if "/" not in name.removeprefix("Mean/")
    }
    return dict(list((said or values).items())[:MOST_SAID])


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Return `values` with null for what JSON cannot hold."""
    return {k: v if v == v and abs(v) != float("inf") else None for k, v in values.items()}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    )


def _keep_steps_up_to(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that a resumed run will write again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))


def _start_wandb(project: str, folder: Path, config: dict[str, Any]) -> Any:
    """Start a Weights & Biases run; WANDB_MODE=offline keeps it on this machine.

    Raises:
        UserError: the library is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise missing_library("wandb", "--wandb") from error
    return wandb.init(project=project, dir=str(folder), config=config, resume="allow")
