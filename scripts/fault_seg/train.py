"""Train a fault_seg network on volume pairs, or on cubes made on the fly (--synthetic)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import TrainOptions
from fault_seg.check import check
from fault_seg.config import TRAIN_PRESETS, TrainConfig
from fault_seg.train import train


@dataclass(frozen=True)
class Options(TrainOptions):
    """Where the run goes."""

    out: Path = option(Path("results/fault_seg/train"), "folder of the run", aliases=("dir_output",))
    keep_last: int = option(2, "numbered checkpoints kept")


def run(argv: Sequence[str]) -> int:
    """Parse the flags, train, return the exit code."""
    parsed = parse(argv, TrainConfig, Options, description=__doc__, presets=TRAIN_PRESETS)
    if parsed.config.check:
        check(parsed.config, parsed.run, parsed.run.out)
        return 0
    result = train(parsed.config, parsed.run, parsed.origins)
    return result.exit_code if result else 0


if __name__ == "__main__":
    main(run)
