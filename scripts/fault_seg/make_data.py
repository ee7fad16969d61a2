"""Make synthetic seismic cubes with known faults, angles, geological time and clean image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import BasicOptions
from fault_seg.config import DATA_SET_PRESETS, DataConfig
from fault_seg.make_data import make_data


@dataclass(frozen=True)
class Options(BasicOptions):
    """How it is made and where it goes."""

    seed: int = option(0, "of the cubes: cube i depends on (seed, i) alone")
    num_workers: int = option(0, "processes that make cubes; 0 = this one")
    out: Path = option(Path("data/fault"), "folder of the data set")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the data set."""
    parsed = parse(argv, DataConfig, Options, description=__doc__, presets=DATA_SET_PRESETS)
    made = make_data(parsed.config, parsed.run, parsed.run.out, parsed.run.seed, parsed.run.num_workers)
    print(f"{parsed.run.out}: cubes of {made['shape']}")
    print(f"next: python scripts/fault_seg/train.py --data {parsed.run.out} --out results/fault")


if __name__ == "__main__":
    main(run)
