"""The checkpoint folder of a training: where it is, whose it is, and the name of the best one."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from common import checkpoint as checkpoints
from common import distributed
from common.errors import DataError, UserError
from common.files import FolderLock, read_json, remove_stale_temporaries, require_writable, write_json
from common.run import Layout
from voxel_ode.config import TrainRunOptions
from voxel_ode.convolutions import BACKENDS

DEFAULT_SAVE_DIR = Path("checkpoints")
BEST_PATTERN = "best_step*.pt"
ROUTES_FILE = "convolutions.json"


def checkpoint_layout(options: TrainRunOptions, origins: Mapping[str, str] | None) -> Layout:
    """Return where the checkpoints go: --save_dir, else <out>/checkpoints with --out, else ./checkpoints."""
    chosen = options.save_dir
    if chosen is None and (origins or {}).get("out") == "default":
        chosen = DEFAULT_SAVE_DIR
    return Layout() if chosen is None else Layout(checkpoints=str(Path(chosen).resolve()))


def next_command(prepped_root: Path | None, folder: Path) -> str:
    """Return the line that scores the best checkpoint of a folder on held-out simulations."""
    best = folder / "best.pt"
    with contextlib.suppress(ValueError):
        best = best.relative_to(Path.cwd())
    root, path = (shlex.quote(str(p)) for p in (prepped_root, best))
    return f"python scripts/voxel_ode/evaluate.py --prepped_root {root} --ckpt_path {path}"


class CheckpointFolder:
    """The lock and the ownership of a checkpoint folder outside the run's own, and the best file's name.

    `common.loop` keeps best.pt; the same file is also called best_step{N}.pt here, the latest only.

    Args:
        folder: of the checkpoints.
        options: of the run.

    Raises:
        UserError: another process uses the folder, or it holds another run's checkpoints and neither resume
            nor overwrite was asked for.
    """

    def __init__(self, folder: Path, options: TrainRunOptions) -> None:
        self.folder = folder
        self._lock: FolderLock | None = None
        with distributed.shared_errors():
            if distributed.is_main():
                self._open(options)

    def _open(self, options: TrainRunOptions) -> None:
        out = Path(options.out).resolve()
        if out in (self.folder.resolve(), *self.folder.resolve().parents):
            return  # inside the run's folder: its lock and check hold
        require_writable(self.folder)
        self._lock = FolderLock(self.folder)
        remove_stale_temporaries(self.folder)
        found = [p for pattern in ("last.pt", "best.pt", "step*.pt") for p in self.folder.glob(pattern)]
        if found and not (options.resume or options.overwrite):
            self.close()
            raise UserError(
                f"{self.folder}: holds checkpoints of an earlier run ({found[0].name}); continue it with "
                "--resume auto, replace it with --overwrite, or choose another --save_dir"
            )

    def forget_best(self) -> None:
        """Remove the numbered best file of an earlier run, whose best.pt is gone."""
        if distributed.is_main() and not (self.folder / "best.pt").exists():
            for path in self.folder.glob(BEST_PATTERN):
                path.unlink()

    def last_is_best(self) -> None:
        """Make best.pt the same file as last.pt, where nothing could choose."""
        if distributed.is_main() and (self.folder / "last.pt").exists():
            checkpoints.link_or_copy(self.folder / "last.pt", self.folder / "best.pt")

    def name_best(self) -> None:
        """Make best_step{N}.pt the same file as best.pt, and drop older ones."""
        best = self.folder / "best.pt"
        if not distributed.is_main() or not best.exists():
            return
        named = self.folder / f"best_step{self._step_of(best)}.pt"
        if not (named.exists() and named.samefile(best)):
            checkpoints.link_or_copy(best, named)
        for path in self.folder.glob(BEST_PATTERN):
            if path != named:
                path.unlink()

    def _step_of(self, best: Path) -> int:
        """Return the step of the best checkpoint: of the numbered file that it is, or what it says."""
        for path in checkpoints.newest_first(self.folder, "step*.pt"):
            if path.samefile(best):
                return int(path.stem.removeprefix("step"))
        return checkpoints.load(best).step

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def remembered_routes(options: TrainRunOptions, chosen: dict[str, str]) -> dict[str, str]:
    """Return the routes of the convolutions that the run in this folder began with, else those chosen now.

    Routes are timed, and differ by rounding: a run that was killed before its first checkpoint would else go
    on by other routes and end with other bits.
    """
    path = Path(options.out) / ROUTES_FILE
    if distributed.is_main():
        found = None
        if options.resume:
            with contextlib.suppress(DataError):
                found = read_json(path, "")
        if (
            isinstance(found, dict)
            and found.keys() == chosen.keys()
            and all(v in BACKENDS for v in found.values())
        ):
            chosen = found
        else:
            write_json(path, chosen)
    return distributed.broadcast_object(chosen)
