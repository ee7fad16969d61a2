"""Make velocity sections and simulate their shot gathers, in the layout of OpenFWI or of the challenge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import BasicOptions
from velocity_inversion.config_data import DATA_PRESETS, DataConfig
from velocity_inversion.make_data import make_data


@dataclass(frozen=True)
class Options(BasicOptions):
    """Which set, and where it goes."""

    seed: int = option(0, "of the sections: sample i of a split depends on (seed, split, i) alone")
    out: Path = option(Path("data/velocity_inversion"), "folder of the data set")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the data set."""
    parsed = parse(argv, DataConfig, Options, description=__doc__, presets=DATA_PRESETS)
    out = parsed.run.out
    card = make_data(parsed.config, parsed.run, out, parsed.run.seed)
    print(f"{out}: {card['counts']}, {card.get('cpu_s_a_sample', 'no')} CPU s a sample")
    print(
        f"next: python scripts/velocity_inversion/train.py --train_data_path {out}/train "
        f"--val_data_path {out}/val --out results/velocity"
    )


if __name__ == "__main__":
    main(run)
