"""What can be set: one frozen dataclass a script, one help text a field; presets are functions to edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from fault_seg.model import HEADS, NETWORKS
from fault_seg.synthetic import PRESETS as DATA_PRESETS
from fault_seg.volumes import FORMATS, require_format


@dataclass(frozen=True)
class DataConfig:
    """What `make_data` writes."""

    ntrain: int = option(160, "training cubes")
    nvalid: int = option(16, "validation cubes")
    data_preset: str = option("standard", "kind of geology", choices=DATA_PRESETS)
    n1: int = option(0, "samples a trace (z); 0 = the data preset's", unit="voxels")
    n2: int = option(0, "crosslines (y); 0 = the data preset's", unit="voxels")
    n3: int = option(0, "inlines (x); 0 = the data preset's", unit="voxels")
    fault_width: float = option(0.0, "width of the fault labels; 0 = the data preset's", unit="voxels")
    faults: tuple[int, ...] = option((), "fewest and most faults a cube; none = by size")
    noise: float = option(0.8, "largest noise over signal, as standard deviations")
    format: str = option("raw", "of the volumes", choices=("raw", "npy"))
    figures: bool = option(True, "draw three samples")

    def __post_init__(self) -> None:
        """Check counts."""
        if min(self.ntrain, self.nvalid) < 0 or self.ntrain + self.nvalid == 0:
            raise ValueError(f"--ntrain {self.ntrain} --nvalid {self.nvalid}: expected at least one cube")
        if len(self.faults) not in (0, 2):
            raise ValueError(f"--faults {' '.join(map(str, self.faults))}: expected MIN MAX")


def _data_preset(name: str, ntrain: int, nvalid: int) -> DataConfig:
    return DataConfig(data_preset=name, ntrain=ntrain, nvalid=nvalid)


# The 12 validation cubes of `standard` with 160 training cubes are the reference set of the measured tables.
DATA_SET_PRESETS = {
    "smoke": lambda: _data_preset("smoke", 3, 2),
    "demo": lambda: _data_preset("demo", 24, 4),
    "standard": lambda: _data_preset("standard", 160, 12),
    "wu2019": lambda: _data_preset("wu2019", 160, 12),
    "rgm": lambda: _data_preset("rgm", 160, 12),
    "mixed": lambda: _data_preset("mixed", 160, 12),
}


@dataclass(frozen=True)
class TrainConfig:
    """A training of one network."""

    task: str = option("infer", "infer: image to volumes", choices=("infer",))
    network: str = option("hr", "layout of the network", choices=NETWORKS)
    data: Path = option(Path("data/fault"), "folder of make_data, unless the four folders are named")
    dir_data_train: str = option("", "training inputs; none = data_train in --data")
    dir_target_train: str = option("", "training targets; none = target_train in --data")
    dir_data_valid: str = option("", "validation inputs; none = data_valid in --data")
    dir_target_valid: str = option("", "validation targets; none = target_valid in --data")
    epochs: int = option(100, "passes over the training samples")
    steps: int = option(0, "optimizer steps, instead of epochs when above 0")
    batch_train: int = option(4, "crops a process and update", aliases=("batch_size",))
    accumulate: int = option(1, "batches a step, one after another")
    n1: int = option(0, "samples a trace (z); 0 = from dataset.json or the file size", unit="voxels")
    n2: int = option(0, "crosslines (y)", unit="voxels")
    n3: int = option(0, "inlines (x)", unit="voxels")
    crop: tuple[int, ...] = option((64,), "training crop, one number or three; 0 = whole", unit="voxels")
    ntrain: int = option(0, "training samples used; 0 = all")
    nvalid: int = option(0, "validation samples used; 0 = all")
    rgt: bool = option(True, "train relative geological time")
    dhr: bool = option(True, "train the denoised image")
    fault: bool = option(True, "train fault probability, dip and strike")
    synthetic: bool = option(False, "make samples on the fly instead of reading files")
    samples_per_epoch: int = option(200, "samples an epoch with --synthetic")
    data_preset: str = option("mixed", "kind of geology with --synthetic", choices=DATA_PRESETS)
    lr: float = option(0.0, "learning rate; 0 = 2e-3 (hr, unet) or 5e-5 (mtl)")
    weight_decay: float = option(1e-2, "of AdamW, on kernels")
    warmup_steps: int = option(20, "linear warm-up", unit="steps")
    ema: float = option(0.999, "decay of the averaged weights; 0 = off")
    augment: bool = option(True, "turn and flip the training crops")
    disturb: bool = option(True, "change gain, band and noise of the training images")
    loss: str = option(
        "strata", "strata, or the published one of the mtl layout", choices=("strata", "published")
    )
    w_fault: float = option(1.0, "weight of the fault loss")
    w_orient: float = option(0.3, "weight of the fault-normal loss")
    w_dhr: float = option(0.2, "weight of the image loss")
    w_rgt: float = option(0.5, "weight of the geological-time loss")
    init: str = option("", "start from the weights of this model")

    def __post_init__(self) -> None:
        """Check what one field or two can say."""
        if not self.heads:
            raise ValueError("--rgt --dhr --fault are all off: nothing to train")
        if len(self.crop) not in (1, 3) or any(c % 16 or c < 0 for c in self.crop):
            raise ValueError(f"--crop {' '.join(map(str, self.crop))}: expected one or three multiples of 16")
        one_voxel = self.crop_shape == (16, 16, 16) and self.batch_train == 1
        if one_voxel and "rgt" in self.heads and self.network == "hr":
            raise ValueError("--crop 16 --batch_train 1: one voxel is left at the coarsest grid; raise one")
        if self.loss == "published" and self.network != "mtl":
            raise ValueError("--loss published: works with --network mtl only")
        for name in ("batch_train", "accumulate", "samples_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if self.epochs < 1 and self.steps < 1:
            raise ValueError("--epochs and --steps are both below 1: nothing to do")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads to build; the unet has the fault head only."""
        if self.network == "unet":
            return ("fault",) if self.fault else ()
        return tuple(head for head in HEADS if getattr(self, head))

    def folder(self, name: str) -> Path:
        """Return the folder `name`: data_train, target_train, data_valid or target_valid."""
        return Path(getattr(self, f"dir_{name}") or self.data / name)

    @property
    def crop_shape(self) -> tuple[int, int, int] | None:
        """The training crop (z, y, x), None for whole cubes."""
        sizes = self.crop * 3 if len(self.crop) == 1 else self.crop
        return None if 0 in sizes else (sizes[0], sizes[1], sizes[2])

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr or (5e-5 if self.network == "mtl" else 2e-3)


def smoke() -> TrainConfig:
    """Return a run of seconds, for tests."""
    return TrainConfig(
        synthetic=True,
        data_preset="smoke",
        steps=2,
        samples_per_epoch=2,
        crop=(16,),
        n1=32,
        n2=32,
        n3=32,
        batch_train=2,
        nvalid=1,
    )


def demo() -> TrainConfig:
    """Return the training of `make demo`: about 90 seconds on two cores."""
    return TrainConfig(steps=300, batch_train=2, crop=(32,), ema=0.99, warmup_steps=10, disturb=False)


def standard() -> TrainConfig:
    """Return a short training on the standard cubes: about eleven minutes on one core."""
    return TrainConfig(steps=1000, batch_train=2, crop=(32,), ema=0.995, disturb=False)


def large() -> TrainConfig:
    """Return the training of the shipped weights: cubes made on the fly, all kinds of geology."""
    return TrainConfig(synthetic=True, data_preset="mixed", epochs=60, samples_per_epoch=400, batch_train=4)


def mtl() -> TrainConfig:
    """Return a training of the published multitask layout: batch 1, crops of 64."""
    return TrainConfig(network="mtl", batch_train=1, crop=(64,))


TRAIN_PRESETS = {"smoke": smoke, "demo": demo, "standard": standard, "large": large, "mtl": mtl}


@dataclass(frozen=True)
class InferConfig:
    """One volume in, five volumes out."""

    input: str = option("", "SEG-Y, npy, HDF5, MetaImage or VTI file, or raw float32 with --n1 --n2 --n3")
    model: str = option("", "checkpoint or exported weights; none = the shipped weights")
    output: str = option("", "prefix of the output files; none = the input's name")
    n1: int = option(0, "samples a trace (z), for raw input", unit="voxels")
    n2: int = option(0, "crosslines (y), for raw input", unit="voxels")
    n3: int = option(0, "inlines (x), for raw input", unit="voxels")
    format: tuple[str, ...] = option(("auto",), f"of the output: auto (as the input), {', '.join(FORMATS)}")
    rgt: bool = option(True, "write relative geological time")
    fault: bool = option(True, "write fault probability, dip and strike")
    dhr: bool = option(True, "write the denoised image")
    block: int = option(128, "edge of a tile", unit="voxels")
    overlap: str = option("32", "overlap of blended tiles in voxels, or exact: equal to the whole volume")
    max_memory: float = option(4.0, "bound on the memory for data", unit="GiB")
    threshold: float = option(0.5, "probability from which a voxel counts as fault")
    angle_units: str = option(
        "auto", "degrees, over180, or auto: over180 for raw", choices=("auto", "degrees", "over180")
    )
    angle_fill: str = option("auto", "angle below the threshold", choices=("auto", "nan", "zero"))
    iline: int = option(189, "SEG-Y trace header byte of the inline number")
    xline: int = option(193, "SEG-Y trace header byte of the crossline number")
    endian: str = option("auto", "byte order of SEG-Y and raw input", choices=("auto", "big", "little"))
    layout: str = option("zyx", "axis order of npy and HDF5 input", choices=("zyx", "ixz"))
    polarity: int = option(1, "sign of the input", choices=(1, -1))
    monotone_rgt: bool = option(True, "make geological time increase down every trace")
    allow_nan: bool = option(False, "treat NaN samples as missing")
    figures: bool = option(True, "draw sections")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if not self.input:
            raise ValueError("--input: missing; name a seismic volume")
        if self.overlap != "exact" and not self.overlap.isdigit():
            raise ValueError(f"--overlap {self.overlap}: expected voxels or exact")
        if not 0 < self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold}: expected between 0 and 1")
        if self.block < 16 or self.max_memory <= 0:
            raise ValueError("--block must be 16 or more and --max_memory above 0")
        for name in self.formats:
            if name != "auto":
                require_format(name)

    @property
    def formats(self) -> tuple[str, ...]:
        """The output formats: `--format npy segy` and `--format npy,segy` mean the same."""
        return tuple(name for part in self.format for name in part.split(",") if name)


@dataclass(frozen=True)
class EvaluateConfig:
    """A model beside its baselines on held-out cubes."""

    model: str = option("", "checkpoint or exported weights; none = the shipped weights")
    data: Path = option(
        Path("data/fault"), "folder of make_data: data_valid, target_valid and the training pair"
    )
    baselines: tuple[str, ...] = option(("coherence",), "to compare with", choices=("coherence",))
    nvalid: int = option(0, "held-out cubes used; 0 = all")
    ntune: int = option(8, "training cubes on which the baselines' thresholds are tuned")
    figures: bool = option(True, "draw the curves and a gallery")
