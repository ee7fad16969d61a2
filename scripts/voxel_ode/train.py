"""Train the autoregressive network on prepped simulations."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from voxel_ode.config import TRAIN_PRESETS, TrainConfig, TrainRunOptions
from voxel_ode.train import train


def run(argv: Sequence[str]) -> int:
    """Parse the flags, train, return the exit code."""
    parsed = parse(argv, TrainConfig, TrainRunOptions, description=__doc__, presets=TRAIN_PRESETS)
    result = train(parsed.config, parsed.run, parsed.origins)
    return result.exit_code if result else 0


if __name__ == "__main__":
    main(run)
