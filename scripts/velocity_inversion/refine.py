"""Refine predicted sections by waveform inversion; the waveform misfit of the result is never worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from velocity_inversion.config_tools import RefineConfig
from velocity_inversion.refine_run import refine_all


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the refined sections go."""

    out: Path = option(Path("out/velocity_refined"), "folder of the refined sections")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and refine."""
    parsed = parse(argv, RefineConfig, Options, description=__doc__)
    refine_all(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
