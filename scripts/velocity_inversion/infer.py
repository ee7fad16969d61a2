"""Velocity sections, uncertainty and waveform misfit from shot gathers, with a trained ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.run import MachineOptions
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.infer import infer, require_output
from velocity_inversion.quick import quick_test


@dataclass(frozen=True)
class Options(MachineOptions):
    """Where the sections go."""

    output_path: Path = option(Path("out/velocity"), "folder, or submission .npz", aliases=("out",))


def run(argv: Sequence[str]) -> None:
    """Parse the flags and predict."""
    parsed = parse(argv, InferConfig, Options, description=__doc__)
    if parsed.config.quick_test:
        quick_test(parsed.config, parsed.run, parsed.run.output_path)
        return
    infer(parsed.config, parsed.run, require_output(parsed.run.output_path))


if __name__ == "__main__":
    main(run)
