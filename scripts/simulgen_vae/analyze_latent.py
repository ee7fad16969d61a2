"""Show what the latents of a trained surrogate hold: PCA map, traversals, active units, KL a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from simulgen_vae.latents import LatentConfig, analyze


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the report goes."""

    out: Path = option(Path("results/simulgen_vae/latents"), "folder of the report")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the report."""
    parsed = parse(argv, LatentConfig, Options, description=__doc__)
    analyze(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
