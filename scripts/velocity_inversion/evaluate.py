"""A trained ensemble beside the mean section, the depth-trend ridge and other models, on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from velocity_inversion.config_tools import EVALUATE_PRESETS, EvaluateConfig
from velocity_inversion.evaluate import evaluate


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the table and figures go."""

    out: Path = option(Path("results/velocity/evaluation"), "folder of the evaluation")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and evaluate."""
    parsed = parse(argv, EvaluateConfig, Options, description=__doc__, presets=EVALUATE_PRESETS)
    evaluate(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
