"""Improve the five volumes of infer.py with a network of kind refine, applied again and again."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions
from fault_seg.config_infer import RefineConfig
from fault_seg.refine import refine


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the volumes."""
    parsed = parse(argv, RefineConfig, MachineOptions, description=__doc__)
    refine(parsed.config, parsed.run, parsed.origins)


if __name__ == "__main__":
    main(run)
