"""What can be set when raw simulations are checked and prepared for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from voxel_ode.raw import DT_DAYS, MAX_MEMORY_GB
from voxel_ode.schema import SCALAR_NAMES

UNITS = ("auto", "si", "field")
COMPRESSIONS = ("lzf", "gzip1", "none")


@dataclass(frozen=True)
class PrepConfig:
    """Raw simulations into prepped files, statistics and patch indices."""

    input_root: Path | None = option(None, "folder of the raw files, named like v2.4_0001.h5")
    out_root: Path = option(Path("./data/prepped"), "folder of the result", aliases=("out",))
    patch_size: tuple[int, ...] = option((32, 32, 32), "patch (Z Y X)", unit="cells")
    stride: tuple[int, ...] = option((8, 8, 8), "between patches (Z Y X)", unit="cells")
    log_transform: tuple[str, ...] = option(SCALAR_NAMES, "scalars that the network sees as log1p")
    dtype: str = option("float32", "of the states on disk", choices=("float32", "float64"))
    units: str = option("auto", "of the raw files", choices=UNITS)
    dt_days: float = option(DT_DAYS, "length of an output step, for files that do not say", unit="days")
    num_test: int = option(5, "test simulations: the first by run index")
    num_val: int = option(2, "validation simulations: those after the test")
    test_runs: tuple[int, ...] = option((), "run indices of the test simulations, instead of --num_test")
    val_runs: tuple[int, ...] = option((), "run indices of the validation simulations, instead of --num_val")
    min_active: float = option(0.01, "patches with a smaller active fraction are left out")
    fault_encoding: str = option(
        "binary", "channel FaultId: a fault or none, or its z-scored number", choices=("binary", "ordinal")
    )
    index_format: str = option("both", "of the patch indices", choices=("both", "jsonl", "npz"))
    compression: str = option(
        "lzf", "of the prepped files; lzf is fastest, the others repeat to the byte", choices=COMPRESSIONS
    )
    workers: int = option(0, "processes; 0 = this one", aliases=("num_workers",))
    strict: bool = option(False, "stop at a corrupt file instead of leaving it out")
    max_memory: float = option(MAX_MEMORY_GB, "most that a raw file may declare", unit="GiB")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if self.input_root is None:
            raise ValueError("--input_root: missing; name the folder of the raw files")
        for name in ("patch_size", "stride"):
            sizes = getattr(self, name)
            if len(sizes) != 3 or min(sizes) < 1:
                raise ValueError(
                    f"--{name} {' '.join(map(str, sizes))}: expected three sizes above 0 (Z Y X)"
                )
        if max(self.patch_size) > 32767:
            raise ValueError(f"--patch_size {self.patch_size}: expected at most 32767 cells")
        unknown = [name for name in self.log_transform if name not in SCALAR_NAMES]
        if unknown:
            raise ValueError(f"--log_transform {unknown[0]}: expected some of {', '.join(SCALAR_NAMES)}")
        if not 0 <= self.min_active <= 1:
            raise ValueError(f"--min_active {self.min_active}: expected a fraction in 0..1")
        for name in ("num_test", "num_val", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 0 or more")
        if self.dt_days <= 0 or self.max_memory <= 0:
            raise ValueError(f"--dt_days {self.dt_days}, --max_memory {self.max_memory}: expected above 0")
        both = set(self.test_runs) & set(self.val_runs)
        if both:
            raise ValueError(f"--test_runs and --val_runs: both name run {min(both)}, expected each run once")


@dataclass(frozen=True)
class CheckConfig:
    """Raw files to check."""

    paths: tuple[str, ...] = option((), "files or folders; the words after the script's name")
    units: str = option("auto", "of the files", choices=UNITS)
    dt_days: float = option(DT_DAYS, "length of an output step, for files that do not say", unit="days")
    max_memory: float = option(MAX_MEMORY_GB, "most that a file may declare", unit="GiB")

    def __post_init__(self) -> None:
        """Check that there is something to check."""
        if not self.paths:
            raise ValueError("check_h5: no file named; write check_h5.py FILE_OR_FOLDER ...")
