"""What `make_data` makes: the flags and their presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.cli import option
from voxel_ode.raw_writer import COMPRESSION
from voxel_ode.units import SYSTEMS


@dataclass(frozen=True)
class MakeDataConfig:
    """A data set of the generator; the defaults are the preset demo."""

    num_sims: int = option(12, "simulations", aliases=("num",))
    first_index: int = option(1, "number of the first file, part of its random stream")
    grid: tuple[int, ...] = option((32, 24, 24), "cells along Z (depth), Y, X")
    cell_size: tuple[float, ...] = option((10.0, 50.0, 50.0), "dz dy dx", unit="m")
    num_steps: int = option(30, "yearly states", unit="years")
    substeps: int = option(2, "implicit steps a year")
    history_years: int = option(0, "years run and dropped before the initial state", unit="years")
    max_doublets: int = option(3, "1..N pairs of injector and producer")
    units: str = option("si", "on disk: Pa and K, or bar and deg C", choices=SYSTEMS)
    compression: str = option("gzip1", "of the files, with shuffle and checksums", choices=tuple(COMPRESSION))

    def __post_init__(self) -> None:
        """Check the values and their number."""
        for name, least in (
            ("num_sims", 1),
            ("first_index", 0),
            ("num_steps", 2),
            ("substeps", 1),
            ("history_years", 0),
            ("max_doublets", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        if len(self.grid) != 3 or min(self.grid) < 8:
            raise ValueError(f"--grid {' '.join(map(str, self.grid))}: expected Z Y X, each 8 or more")
        if len(self.cell_size) != 3 or min(self.cell_size) <= 0:
            raise ValueError(f"--cell_size {' '.join(map(str, self.cell_size))}: expected dz dy dx above 0 m")
        if self.first_index + self.num_sims > 10_000:
            raise ValueError(f"--num_sims {self.num_sims}: file names have four digits, so at most 9999")


def smoke() -> MakeDataConfig:
    """Four tiny simulations, for a first look at the commands."""
    return MakeDataConfig(num_sims=4, grid=(12, 10, 10), num_steps=6)


def demo() -> MakeDataConfig:
    """Twelve simulations: enough to see a network beat simple baselines within minutes."""
    return MakeDataConfig()


def study() -> MakeDataConfig:
    """Sixty simulations: enough to measure a recipe."""
    return MakeDataConfig(num_sims=60)


MAKE_DATA_PRESETS: dict[str, Callable[[], MakeDataConfig]] = {"smoke": smoke, "demo": demo, "study": study}
