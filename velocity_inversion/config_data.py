"""What `make_data` and `prep_data` can do: one frozen dataclass a script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option, split_commas
from velocity_inversion.synthetic import DEFAULT_FAMILIES, FAMILIES


@dataclass(frozen=True)
class DataConfig:
    """What `make_data` writes."""

    layout: str = option("openfwi", "files and acquisition", choices=("openfwi", "challenge"))
    num_train: int = option(400, "training samples")
    num_val: int = option(50, "validation samples")
    num_test: int = option(100, "test samples")
    families: tuple[str, ...] = option(
        DEFAULT_FAMILIES, f"kinds of geology, equal shares, of {', '.join(FAMILIES)}"
    )
    mix_from: str = option("", "data set whose sections the family mix blends in")
    grid_m: float = option(
        0.0, "cell of the simulation; 0 = 10 (openfwi), 5 (challenge); 1 is --native_grid", unit="m"
    )
    native_grid: bool = option(False, "simulate the challenge on its own 1 m cells (43 CPU s a sample)")
    num_shots: int = option(0, "shots; 0 = 5")
    num_receivers: int = option(0, "receivers; 0 = 70 (openfwi), 31 (challenge)")
    record_s: float = option(1.0, "length of the records", unit="s")
    peak_hz: float = option(15.0, "peak frequency of the Ricker wavelet", unit="Hz")
    noise_snr_db: float = option(0.0, "band-limited noise, signal over noise; 0 = none", unit="dB")
    samples_per_file: int = option(500, "samples a file (openfwi)")
    num_workers: int = option(0, "processes of one thread each; 0 = cores")

    def __post_init__(self) -> None:
        """Check counts and families."""
        object.__setattr__(self, "families", split_commas(self.families))
        if min(self.num_train, self.num_val, self.num_test) < 0 or self.total == 0:
            raise ValueError("--num_train --num_val --num_test: expected at least one sample")
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            raise ValueError(f"--families {' '.join(unknown) or 'none'}: expected of {', '.join(FAMILIES)}")
        if ("mix" in self.families) != bool(self.mix_from):
            raise ValueError("--families mix and --mix_from PATH need each other")
        if min(self.record_s, self.peak_hz) <= 0 or self.samples_per_file < 1:
            raise ValueError("--record_s, --peak_hz and --samples_per_file: expected more than 0")

    @property
    def total(self) -> int:
        """Samples of all splits."""
        return self.num_train + self.num_val + self.num_test


def smoke() -> DataConfig:
    """Return a set for tests: eight small records."""
    return DataConfig(num_train=8, num_val=4, num_test=2, families=("layered", "curved"))


def demo() -> DataConfig:
    """Return the demo's set."""
    return DataConfig(num_train=208, num_val=32, num_test=24, families=("layered", "curved"))


def bench() -> DataConfig:
    """Return the set of the measured tables."""
    return DataConfig(num_train=400, num_val=100, num_test=100, families=("layered", "curved"))


DATA_PRESETS = {"smoke": smoke, "demo": demo, "bench": bench}


@dataclass(frozen=True)
class PrepConfig:
    """What `prep_data` reads and how it treats it."""

    data_path: str = option("", "folder of either layout, or a list file of pairs")
    segy: tuple[str, ...] = option((), "SEG-Y files of shots, each becomes one sample")
    model_shape_zx: tuple[int, ...] = option((), "cells of the model for SEG-Y data, Z X")
    dx_m: float = option(10.0, "cell of the model for SEG-Y data", unit="m")
    x0_m: str = option(
        "auto", "x of the model's first cell in SEG-Y coordinates; auto = the smallest", unit="m"
    )
    peak_hz: float = option(15.0, "peak frequency of the wavelet for SEG-Y data", unit="Hz")
    net_dt_s: float = option(0.004, "interval that the network sees", unit="s")
    bandpass_low_hz: float = option(0.0, "low corner of a zero-phase band-pass; 0 = open", unit="Hz")
    bandpass_high_hz: float = option(0.0, "high corner; 0 = open", unit="Hz")
    check_physics: int = option(0, "samples with truth to simulate and compare")
    update_geometry: bool = option(False, "store the sign, scale and delay that fit best in geometry.json")
    analyze: bool = option(False, "print and write shapes, statistics and a spectrum")
    cache_dir: Path = option(Path(".cache/velocity_inversion"), "decimated gathers")

    def __post_init__(self) -> None:
        """Check that there is one input, and what SEG-Y cannot say."""
        if bool(self.data_path) == bool(self.segy):
            raise ValueError("--data_path and --segy: expected one of them")
        if self.segy and (len(self.model_shape_zx) != 2 or min(self.model_shape_zx) < 2):
            raise ValueError("--model_shape_zx: expected Z and X, the cells of the section, with --segy")
        if self.update_geometry and not self.check_physics:
            raise ValueError("--update_geometry: needs --check_physics N")
        if self.x0_m != "auto":
            try:
                float(self.x0_m)
            except ValueError:
                raise ValueError(f"--x0_m {self.x0_m}: expected auto or a number") from None
        if min(self.dx_m, self.net_dt_s, self.peak_hz) <= 0 or self.check_physics < 0:
            raise ValueError(
                "--dx_m, --net_dt_s, --peak_hz: expected more than 0; --check_physics: 0 or more"
            )
