"""Find the parameters (or latents) whose predicted field meets a target field or sensor readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from simulgen_vae.config_infer import InvertConfig
from simulgen_vae.invert import invert


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the result goes."""

    out: Path = option(Path("results/simulgen_vae/invert"), "folder of the result")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and invert."""
    parsed = parse(argv, InvertConfig, Options, description=__doc__)
    invert(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
