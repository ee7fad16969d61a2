"""Generate facies realisations with a trained model, unconditioned or through wells and seismic."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions
from facies_gan.config_generate import GenerateConfig
from facies_gan.infer import generate


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the realisations."""
    parsed = parse(
        argv, GenerateConfig, MachineOptions, description=__doc__, aliases={"seed": ("manual_seed",)}
    )
    generate(parsed.config, parsed.run)


if __name__ == "__main__":
    main(run)
