"""Measure a model's realisations, or existing ones, beside baselines and the reference's own band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from facies_gan.config_evaluate import EvaluateConfig
from facies_gan.evaluate import evaluate


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the report goes."""

    out: Path = option(
        Path("results/facies_gan/evaluation"), "folder of the report", aliases=("out_path", "output_path")
    )


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the report."""
    parsed = parse(argv, EvaluateConfig, Options, description=__doc__, aliases={"seed": ("manual_seed",)})
    evaluate(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
