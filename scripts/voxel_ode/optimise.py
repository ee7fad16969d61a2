"""Search for better well rates with a trained network and check them in the simulator."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions
from voxel_ode.config_tools import OptimiseConfig
from voxel_ode.optimise_report import optimise


def run(argv: Sequence[str]) -> None:
    """Parse the flags, search, write the result."""
    parsed = parse(argv, OptimiseConfig, MachineOptions, description=__doc__)
    optimise(parsed.config, parsed.run)


if __name__ == "__main__":
    main(run)
