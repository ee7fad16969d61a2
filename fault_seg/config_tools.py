"""What can be set for the tools around the networks: convert volumes, find objects, export weights."""

from __future__ import annotations

from dataclasses import dataclass

from common.cli import option
from fault_seg.volumes import FORMATS

DTYPES = ("float32", "int16", "int8")
EXPORTS = (".pth", ".safetensors", ".onnx")


@dataclass(frozen=True)
class ConvertConfig:
    """One volume in another format, or cut into patches, or put together from them."""

    input: str = option("", "SEG-Y, npy, HDF5, MetaImage or VTI file, or raw float32 with --n1 --n2 --n3")
    output: str = option("", "file to write; with --patch the folder of the patches", aliases=("out",))
    format: str = option("auto", f"of the output: auto (by its suffix), {', '.join(FORMATS)}")
    n1: int = option(0, "samples a trace (z), for raw input", unit="voxels")
    n2: int = option(0, "crosslines (y), for raw input", unit="voxels")
    n3: int = option(0, "inlines (x), for raw input", unit="voxels")
    like: str = option("", "survey that gives geometry and headers, for SEG-Y from another format")
    patch: tuple[int, ...] = option(
        (), "size (z y x) of patches 0.bin, 1.bin ..., one number or three", unit="voxels"
    )
    patch_overlap: int = option(16, "overlap of neighbouring patches", unit="voxels")
    merge: str = option("", "folder of patches to put together again, instead of --input")
    dtype: str = option("float32", "of the stored samples; integers in SEG-Y and npy", choices=DTYPES)
    ibm: bool = option(False, "write IBM floats into SEG-Y")
    info: bool = option(False, "print the geometry and write nothing")
    iline: int = option(189, "SEG-Y trace header byte of the inline number")
    xline: int = option(193, "SEG-Y trace header byte of the crossline number")
    endian: str = option("auto", "byte order of SEG-Y and raw input", choices=("auto", "big", "little"))
    layout: str = option("zyx", "axis order of npy and HDF5, in and out", choices=("zyx", "ixz"))
    dataset: str = option("volume", "name of the array in an HDF5 input")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if bool(self.input) == bool(self.merge):
            raise ValueError("--input or --merge: expected exactly one of the two; name a volume or a folder")
        if not self.output and not self.info:
            raise ValueError("--output: missing; name the file to write, or ask for --info")
        if len(self.patch) not in (0, 1, 3) or any(n < 1 for n in self.patch):
            raise ValueError(f"--patch {' '.join(map(str, self.patch))}: expected one or three sizes above 0")
        if self.patch and not 0 <= self.patch_overlap < min(self.patch):
            raise ValueError(
                f"--patch_overlap {self.patch_overlap}: expected 0 or more and below the patch size "
                f"{min(self.patch)}"
            )
        if self.patch and (self.merge or self.ibm or self.dtype != "float32" or self.format != "auto"):
            raise ValueError("--patch: writes raw float32; do without --merge, --format, --dtype and --ibm")
        if self.ibm and self.dtype != "float32":
            raise ValueError(f"--ibm --dtype {self.dtype}: expected one of the two")

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """The patch (z, y, x)."""
        sizes = self.patch * 3 if len(self.patch) == 1 else self.patch
        return sizes[0], sizes[1], sizes[2]


@dataclass(frozen=True)
class ObjectsConfig:
    """Faults and horizons as tables, from the volumes that infer.py wrote."""

    input: str = option("", "prefix of the volumes: <prefix>.fsem, .fdip, .fstrike, .rgt in any format")
    output: str = option("", "prefix of the files to write; none = --input", aliases=("out",))
    format: str = option("auto", f"of the volumes, where there are several: auto, {', '.join(FORMATS)}")
    n1: int = option(0, "samples a trace (z), for raw volumes without side-car", unit="voxels")
    n2: int = option(0, "crosslines (y)", unit="voxels")
    n3: int = option(0, "inlines (x)", unit="voxels")
    threshold: float = option(
        0.0, "probability from which a voxel counts as fault; 0 = that of infer.py in <prefix>.json, else 0.5"
    )
    min_size: int = option(100, "smallest fault, after thinning", unit="voxels")
    horizons: int = option(10, "number of horizons, evenly spaced in geological time")
    rgt_values: tuple[float, ...] = option((), "geological times 0..1 of the horizons, instead of --horizons")
    angle_units: str = option(
        "auto",
        "of the angles: degrees, over180, or auto by their size",
        choices=("auto", "degrees", "over180"),
    )
    iline: int = option(189, "SEG-Y trace header byte of the inline number")
    xline: int = option(193, "SEG-Y trace header byte of the crossline number")
    endian: str = option("auto", "byte order of SEG-Y and raw input", choices=("auto", "big", "little"))
    layout: str = option("zyx", "axis order of npy and HDF5", choices=("zyx", "ixz"))

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if not self.input:
            raise ValueError("--input: missing; name the prefix that infer.py had as --output")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold}: expected between 0 and 1")
        if self.min_size < 1 or self.horizons < 0:
            raise ValueError("--min_size must be 1 or more and --horizons 0 or more")
        if not all(0 <= value <= 1 for value in self.rgt_values):
            raise ValueError(f"--rgt_values {' '.join(map(str, self.rgt_values))}: expected numbers in 0..1")
        if len({f"{value:.4g}" for value in self.rgt_values}) < len(self.rgt_values):
            raise ValueError("--rgt_values: two are equal to 4 digits, expected different ones")


@dataclass(frozen=True)
class ExportConfig:
    """A trained network as a file of weights for others."""

    model: str = option(
        "",
        "checkpoint, weights or exported file (.ckpt .pt .pth .safetensors), or a run's folder",
        aliases=("model_path",),
    )
    output: str = option("", f"file to write: {' '.join(EXPORTS)}", aliases=("out",))
    average: tuple[str, ...] = option((), "further models of its kind; the mean of all weights is written")

    def __post_init__(self) -> None:
        """Check that both are named, and the format."""
        for name in ("model", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name}: missing; name a file")
        if not self.output.endswith(EXPORTS):
            raise ValueError(f"--output {self.output}: expected a name that ends in {', '.join(EXPORTS)}")
