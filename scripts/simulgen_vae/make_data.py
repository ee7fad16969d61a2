"""Simulate a data set: hot fluid through a layer (advdiff) or an acoustic wave past an anomaly (wave)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import main, option, parse
from common.run import BasicOptions
from simulgen_vae.config_data import MakeDataConfig
from simulgen_vae.make_data import make_data


@dataclass(frozen=True)
class Options(BasicOptions):
    """How it is made."""

    seed: int = option(0, "of the parameters: simulation i depends on (seed, i) alone")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the data set."""
    parsed = parse(argv, MakeDataConfig, Options, description=__doc__)
    made = make_data(parsed.config, parsed.run, parsed.run.seed)
    seconds = f", {made['seconds_per_sample']:.4f} s/sample" if "seconds_per_sample" in made else ""
    print(f"{made['path']}: {parsed.config.kind}, (N, T, M, V) = {made['shape']}{seconds}")
    out = f"results/{parsed.config.kind}"
    print(f"next: python scripts/simulgen_vae/train.py --data {made['path']} --out {out}")


if __name__ == "__main__":
    main(run)
