"""Make geothermal simulations with the built-in conservative simulator, as raw files of the v2.4 schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.errors import UserError
from common.run import BasicOptions
from voxel_ode.config_make import MAKE_DATA_PRESETS, MakeDataConfig
from voxel_ode.make_data import make_data, needed_bytes, next_command


@dataclass(frozen=True)
class Options(BasicOptions):
    """How it is made and where it goes."""

    seed: int = option(0, "of the simulations: number k depends on (seed, k) alone")
    workers: int = option(0, "processes of one thread; 0 = one a core", aliases=("num_workers",))
    resume: bool = option(False, "keep whole files, make what is missing or broken")
    out: Path | None = option(None, "folder of the files; required")

    def __post_init__(self) -> None:
        """Check what does not need the disk."""
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: expected 0 or more")


def run(argv: Sequence[str]) -> None:
    """Parse the flags and write the data set."""
    parsed = parse(argv, MakeDataConfig, Options, description=__doc__, presets=MAKE_DATA_PRESETS)
    config, options = parsed.config, parsed.run
    if options.out is None:
        raise UserError("--out: missing; name the folder of the files, for example --out data/voxel_ode/raw")
    paths = make_data(config, options, options.out, options.seed, options.workers, options.resume)
    size = needed_bytes(config, len(paths)) / 1e6
    verb = "would get" if options.dry_run else "holds"
    grid = " x ".join(map(str, config.grid))
    print(f"{options.out}: {verb} {len(paths)} simulations of {grid} cells, at most {size:.0f} MB")
    print(f"next: {next_command(config, options.out)}")


if __name__ == "__main__":
    main(run)
