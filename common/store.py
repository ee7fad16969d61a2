"""The checkpoints of one run: numbered, last and best; which to keep, which to continue from."""

from __future__ import annotations

from pathlib import Path

from common import checkpoint as checkpoints
from common.checkpoint import Checkpoint
from common.errors import DataError
from common.log import get_logger
from common.run import Layout


class CheckpointStore:
    """The checkpoint files of a run, all written atomically.

    Regular saves get a number; `last` and `best` are the same file under another name, so nothing is written
    twice. The newest `keep` numbered files stay.

    Args:
        folder: where they lie.
        layout: what they are called.
        keep: numbered files to keep.
    """

    def __init__(self, folder: Path, layout: Layout, keep: int) -> None:
        self.folder = folder
        self.layout = layout
        self.keep = keep

    @property
    def last(self) -> Path:
        """The newest state of the run."""
        return self.folder / self.layout.last

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Write a numbered checkpoint, make it `last` (and `best`), and drop numbered ones that are too old.

        An epoch in the name counts from 0: the file written when the first epoch is done is epoch 0's. `best`
        is written first: the state that says "this is the best" must not outlive a kill without its file.
        """
        numbered = self.layout.numbered.format(step=checkpoint.step, epoch=max(0, checkpoint.epoch - 1))
        names = [self.layout.best] if is_best else []
        first, *others = [self.folder / name for name in (*names, numbered, self.layout.last)]
        checkpoints.save(first, checkpoint)
        for other in others:
            checkpoints.link_or_copy(first, other)
        for old in checkpoints.newest_first(self.folder, self.layout.pattern)[self.keep :]:
            old.unlink()

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write only `last`: a stop between two regular saves."""
        checkpoints.save(self.last, checkpoint)

    def find(self, resume: str, package: str) -> Path | None:
        """Return the checkpoint that `--resume` means, or None when the run has none yet.

        "auto" is the newest that can be read; each that cannot is named in a warning. A path may be a file
        or a run's folder.

        Raises:
            DataError: there are checkpoints, but none can be read.
        """
        if resume != "auto":
            path = Path(resume)
            inside = [path / self.layout.last, path / self.layout.checkpoints / self.layout.last]
            return next((p for p in inside if p.is_file()), path)
        numbered = checkpoints.newest_first(self.folder, self.layout.pattern)
        last_step = self._readable_step(self.last, package) if self.last.is_file() else None
        for path in numbered:
            if last_step is not None and path.samefile(self.last):
                return self.last
            step = self._readable_step(path, package)
            # A kill between a numbered save and its link leaves `last` behind the newest number.
            if step is not None and (last_step is None or step > last_step):
                return path
            if last_step is not None:
                return self.last
        if last_step is not None:
            return self.last
        if numbered or self.last.is_file():
            raise DataError(
                f"{self.folder}: none of its {len(numbered) + self.last.is_file()} checkpoints can be read; "
                "choose another --out to start again"
            )
        return None

    def _readable_step(self, path: Path, package: str) -> int | None:
        """Return the step of the checkpoint at `path`, or None, with a warning, when it cannot be read."""
        try:
            return checkpoints.load(path, package=package).step
        except DataError as error:
            get_logger().warning("warning: %s; trying another one", error)
            return None
