"""Measure a model beside its baselines on held-out cubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from fault_seg.config_infer import EvaluateConfig
from fault_seg.evaluate import evaluate


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the report goes."""

    out: Path = option(Path("results/fault_seg/evaluation"), "folder of the report")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the report."""
    parsed = parse(argv, EvaluateConfig, Options, description=__doc__)
    evaluate(parsed.config, parsed.run, parsed.run.out)


if __name__ == "__main__":
    main(run)
