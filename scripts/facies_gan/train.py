"""Train a pyramid of generators and critics on facies sections, or on one training image."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from facies_gan.config import RunOptions, TrainingOptions
from facies_gan.presets import TRAIN_PRESETS
from facies_gan.train import train


def run(argv: Sequence[str]) -> int:
    """Parse the flags, train, return the exit code."""
    parsed = parse(argv, TrainingOptions, RunOptions, description=__doc__, presets=TRAIN_PRESETS)
    result = train(parsed.config, parsed.run, parsed.origins)
    return result.exit_code if result else 0


if __name__ == "__main__":
    main(run)
