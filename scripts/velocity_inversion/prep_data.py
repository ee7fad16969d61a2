"""Import gathers (SEG-Y or arrays), check every sample, analyze them, compare them with simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import BasicOptions
from velocity_inversion.config_data import PrepConfig
from velocity_inversion.prep import prepare


@dataclass(frozen=True)
class Options(BasicOptions):
    """Where reports, figures and imported samples go."""

    out: Path = option(Path("results/velocity/prep"), "folder of the report, and of samples from SEG-Y")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and prepare."""
    parsed = parse(argv, PrepConfig, Options, description=__doc__)
    found = prepare(parsed.config, parsed.run, parsed.run.out)
    print(f"{found['samples']} samples, {len(found['survey']['sources'])} shots each")


if __name__ == "__main__":
    main(run)
