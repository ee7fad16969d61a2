"""Train velocity networks on shot gathers: an ensemble, or the baseline network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import TrainOptions
from velocity_inversion.config import TRAIN_PRESETS, TrainConfig
from velocity_inversion.train import MODEL_FILE, train


@dataclass(frozen=True)
class Options(TrainOptions):
    """Where the run goes."""

    out: Path = option(Path("results/velocity"), "folder of the run")
    keep_last: int = option(2, "numbered checkpoints kept")


def run(argv: Sequence[str]) -> int:
    """Parse the flags, train, return the exit code."""
    parsed = parse(argv, TrainConfig, Options, description=__doc__, presets=TRAIN_PRESETS)
    result = train(parsed.config, parsed.run, parsed.origins)
    if result is None or result.exit_code:
        return result.exit_code if result else 0
    model = parsed.run.out / MODEL_FILE
    print(
        f"next: python scripts/velocity_inversion/infer.py --model_path {model} --test_data_path DATA "
        "--output_path out"
    )
    return 0


if __name__ == "__main__":
    main(run)
