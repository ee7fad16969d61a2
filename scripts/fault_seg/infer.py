"""Find faults, dip, strike, relative geological time and a cleaner image in a seismic volume of any size."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions
from fault_seg.config_infer import InferConfig
from fault_seg.infer import infer


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the volumes."""
    parsed = parse(argv, InferConfig, MachineOptions, description=__doc__)
    infer(parsed.config, parsed.run, parsed.origins)


if __name__ == "__main__":
    main(run)
