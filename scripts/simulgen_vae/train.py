"""Train a surrogate of simulations that share one mesh and one number of frames; the best predictor ships.

Not for meshes that change between runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option
from common.run import TrainOptions
from simulgen_vae.config_files import resolve
from simulgen_vae.train import train


@dataclass(frozen=True)
class Options(TrainOptions):
    """Where the run goes."""

    out: Path = option(Path("results/simulgen_vae/train"), "folder of the run")
    keep_last: int = option(2, "numbered checkpoints kept")
    num_workers: int = option(
        0, "loader processes; 0 = none where coefficients lie in memory or runs are few, else up to 6"
    )


def run(argv: Sequence[str]) -> int:
    """Parse flags and text files, train, return the exit code."""
    parsed = resolve(argv, Options, description=__doc__)
    result = train(parsed.config, parsed.run, parsed.origins)
    return result.exit_code if result else 0


if __name__ == "__main__":
    main(run)
