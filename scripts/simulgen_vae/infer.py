"""Predict whole fields for new parameters or pictures, with error bars; or sample, interpolate, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from simulgen_vae.config_infer import InferConfig
from simulgen_vae.infer import infer


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the predictions go."""

    out: Path = option(Path("results/simulgen_vae/infer"), "folder of the predictions")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the predictions."""
    parsed = parse(argv, InferConfig, Options, description=__doc__)
    infer(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
