"""What can be set for making and preparing data."""

from __future__ import annotations

from dataclasses import dataclass

from common.cli import option

KINDS = ("advdiff", "wave")


@dataclass(frozen=True)
class MakeDataConfig:
    """A data set of a built-in simulator."""

    kind: str = option(
        "advdiff", "hot fluid through a layer, or an acoustic wave past an anomaly", choices=KINDS
    )
    num: int = option(128, "simulations")
    nx: int = option(64, "cells along x; the box is 2 wide", unit="cells")
    ny: int = option(32, "cells along y; the box is 1 high", unit="cells")
    frames: int = option(50, "stored times of each simulation", unit="frames")
    path: str = option("", "file to write; none = data/simulgen/<kind>.<format>", aliases=("out",))
    format: str = option("h5", "canonical HDF5, or npy with CSV and PNG beside it", choices=("h5", "npy"))
    write_images: bool = option(True, "write the picture of each simulation too")
    write_params: tuple[str, ...] = option(
        (), "names of the parameters that are written, the rest stays hidden; none = all"
    )
    figures: bool = option(True, "draw frames of three simulations beside the file")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        for name, least in (("num", 1), ("nx", 4), ("ny", 4), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        if self.kind == "wave" and self.nx != 2 * self.ny:
            raise ValueError(f"--nx {self.nx} --ny {self.ny}: expected nx = 2 ny, square cells for the wave")


@dataclass(frozen=True)
class PrepDataConfig:
    """Any accepted input as canonical HDF5."""

    data: str = option("", "h5, npy, npz, pickled array, or folder of one file a sample", aliases=("input",))
    path: str = option(
        "", "canonical file to write; none = beside the input, <name>_canonical.h5", aliases=("out",)
    )
    check: bool = option(False, "print what the data holds and what is wrong with it, write nothing")
    fit_basis: bool = option(False, "compute the POD basis of the training samples and store it in the file")
    num_modes: int = option(0, "of the basis; 0 = as many as --energy needs, at most 512")
    energy: float = option(1 - 1e-6, "part of the variance that the basis holds")
    max_memory: float = option(2.0, "bound on the working arrays of the basis", unit="GiB")
    val_fraction: float = option(0.1, "of the samples, that choose among models")
    test_fraction: float = option(0.2, "of the samples, that are only evaluated")
    split_file: str = option("", "JSON with the lists train, validation, test of sample ids or rows")
    seed: int = option(0, "of the split and the basis")
    num_var: int = option(1, "fields that the columns of an array (N, T, columns) hold")
    var_order: str = option(
        "block",
        "of those columns: block (v M + m) or interleaved (m V + v)",
        choices=("block", "interleaved"),
    )
    param_dir: str = option("", "CSV file or folder of the parameters, or folder of pictures")
    param_data_type: str = option(".png", "suffix of the pictures")
    image_dir: str = option("", "folder of pictures, when --param_dir names the CSV")
    num_param: int = option(0, "expected parameters; 0 = not checked")
    dim1: int = option(0, "expected samples; 0 = not checked")
    dim2: int = option(0, "expected frames; 0 = not checked")
    dim3: int = option(0, "expected columns (nodes times fields); 0 = not checked")
    drop_bad: bool = option(False, "leave out samples with NaN or infinite values")
    symmetry: str = option("auto", "auto (as the file declares), none, or an npz file")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if not self.data:
            raise ValueError("--data: missing; name a file or folder")
        if not 0 < self.energy <= 1:
            raise ValueError(f"--energy {self.energy}: expected above 0 and at most 1")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 0 or more and below 1")
        if self.num_modes < 0 or self.max_memory < 0:
            raise ValueError("--num_modes and --max_memory: expected 0 or more")
