"""Check facies data, say what is in them, and build their pyramids (and smoothers) ahead of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import main, option, parse
from common.device import resolve_device
from common.run import BasicOptions
from facies_gan.config_data import PrepConfig
from facies_gan.prep import prepare, table


@dataclass(frozen=True)
class Options(BasicOptions):
    """How it is done."""

    seed: int = option(0, "of the choice of sections", aliases=("manual_seed",))
    device: str = option("auto", "where neural smoothers are fitted: auto, cpu, cuda, cuda:N or mps")
    num_workers: int = option(4, "pyramid building jobs; results are the same for any number")


def run(argv: Sequence[str]) -> None:
    """Parse the flags, check and prepare the data."""
    parsed = parse(argv, PrepConfig, Options, description=__doc__)
    options = parsed.run
    told = prepare(
        parsed.config,
        seed=options.seed,
        num_workers=options.num_workers,
        dry_run=options.dry_run,
        device=resolve_device(options.device),
    )
    print("\n".join(table(told)))


if __name__ == "__main__":
    main(run)
