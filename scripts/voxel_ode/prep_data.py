"""Prepare raw simulations for training: prepped files, patch indices, statistics, manifest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from common.cli import main, parse
from common.run import BasicOptions
from voxel_ode.config_prep import PrepConfig
from voxel_ode.prep import prep_data


def run(argv: Sequence[str]) -> None:
    """Parse the flags, prepare, and print what was made."""
    parsed = parse(argv, PrepConfig, BasicOptions, description=__doc__)
    made = prep_data(parsed.config, parsed.run)
    for name, value in made.items():
        print(f"{name}: {value}")
    root = shlex.quote(str(parsed.config.out_root))
    print(f"next: python scripts/voxel_ode/train.py --prepped_root {root}")


if __name__ == "__main__":
    main(run)
