"""Turn a predictions file into ParaView files, NumPy arrays or a table of the wells."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import BasicOptions
from voxel_ode.config_tools import ExportConfig
from voxel_ode.exports import export


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the files."""
    parsed = parse(argv, ExportConfig, BasicOptions, description=__doc__)
    export(parsed.config, overwrite=parsed.run.overwrite, dry_run=parsed.run.dry_run)


if __name__ == "__main__":
    main(run)
