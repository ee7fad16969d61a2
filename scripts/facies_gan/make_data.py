"""Make synthetic facies sections with wells and seismic, plan-view channels, or a checkerboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import BasicOptions
from facies_gan.config_data import MakeDataConfig
from facies_gan.make_data import make_data


@dataclass(frozen=True)
class Options(BasicOptions):
    """How it is made and where it goes."""

    seed: int = option(0, "of the sections: section i depends on (seed, i) alone")
    out: Path = option(Path("data"), "data root to write", aliases=("output_path",))


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the data set."""
    parsed = parse(argv, MakeDataConfig, Options, description=__doc__)
    made = make_data(parsed.config, parsed.run, parsed.run.out, parsed.run.seed)
    height, width = made["shape"]
    print(f"{parsed.run.out}: {made['sections']} {made['kind']} of {height} x {width} cells (H x W)")
    print(f"next: python scripts/facies_gan/train.py --input_path {parsed.run.out} --out results/facies")


if __name__ == "__main__":
    main(run)
