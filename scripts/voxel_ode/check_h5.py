"""Check raw simulations (HDF5, "v2.4"): check_h5.py FILE_OR_FOLDER ... [--units auto|si|field]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.cli import main, parse
from common.errors import EXIT_DATA
from common.run import BasicOptions
from voxel_ode.check_h5 import check_files, next_command, with_paths
from voxel_ode.config_prep import CheckConfig


def run(argv: Sequence[str]) -> int:
    """Parse the flags, print what each file holds, return 3 when one is not valid."""
    parsed = parse(with_paths(argv), CheckConfig, BasicOptions, description=__doc__)
    failures = 0
    for path, found, error in check_files(parsed.config):
        if error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"{path}: valid")
        for name, value in found.items():
            print(f"  {name}: {value}")
    if not failures:
        print(f"next: {next_command(parsed.config)}")
    return EXIT_DATA if failures else 0


if __name__ == "__main__":
    main(run)
