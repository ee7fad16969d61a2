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

        An epoch in the name counts from 0: the file written when the first epoch is done is epoch 0's.
        """
        name = self.layout.numbered.format(step=checkpoint.step, epoch=max(0, checkpoint.epoch - 1))
        checkpoints.save(self.folder / name, checkpoint)
        checkpoints.link_or_copy(self.folder / name, self.last)
        if is_best:
            checkpoints.link_or_copy(self.folder / name, self.folder / self.layout.best)
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
        candidates = [self.last, *checkpoints.newest_first(self.folder, self.layout.pattern)]
        candidates = [path for path in candidates if path.is_file()]
        for path in candidates:
            try:
                checkpoints.load(path, package=package)
                return path
            except DataError as error:
                get_logger().warning("warning: %s; trying the one before", error)
        if candidates:
            raise DataError(
                f"{self.folder}: none of its {len(candidates)} checkpoints can be read; "
                "choose another --out to start again"
            )
        return None
