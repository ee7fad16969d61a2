"""Train a surrogate of simulations that share one mesh and one number of frames; the best predictor ships.

Not for meshes that change between runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main
from simulgen_vae.config import TrainRunOptions
from simulgen_vae.config_files import resolve
from simulgen_vae.train import train


def run(argv: Sequence[str]) -> int:
    """Parse flags and text files, train, return the exit code."""
    parsed = resolve(argv, TrainRunOptions, description=__doc__)
    result = train(parsed.config, parsed.run, parsed.origins)
    return result.exit_code if result else 0


if __name__ == "__main__":
    main(run)
