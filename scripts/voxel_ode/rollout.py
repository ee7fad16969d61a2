"""Predict simulations year after year with a trained network."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions
from voxel_ode.config_tools import RolloutConfig
from voxel_ode.infer import infer


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the predictions."""
    parsed = parse(argv, RolloutConfig, MachineOptions, description=__doc__)
    infer(parsed.config, parsed.run, parsed.origins)


if __name__ == "__main__":
    main(run)
