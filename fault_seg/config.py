"""What can be set: one frozen dataclass a script, one help text a field; presets are functions to edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from fault_seg.model import HEADS, KINDS, NETWORKS
from fault_seg.synthetic import PRESETS as DATA_PRESETS


@dataclass(frozen=True)
class DataConfig:
    """What `make_data` writes."""

    ntrain: int = option(160, "training cubes", aliases=("num_train",))
    nvalid: int = option(16, "validation cubes", aliases=("num_val",))
    data_preset: str = option("standard", "kind of geology", choices=DATA_PRESETS)
    n1: int = option(0, "samples a trace (z); 0 = the data preset's", unit="voxels")
    n2: int = option(0, "crosslines (y); 0 = the data preset's", unit="voxels")
    n3: int = option(0, "inlines (x); 0 = the data preset's", unit="voxels")
    fault_width: float = option(0.0, "width of the fault labels; 0 = the data preset's", unit="voxels")
    faults: tuple[int, ...] = option((), "fewest and most faults a cube; none = by size")
    noise: float = option(0.8, "largest noise over signal, as standard deviations")
    format: str = option("raw", "of the volumes", choices=("raw", "npy", "h5"))
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

    task: str = option("infer", "infer: image to volumes; refine: volumes to better ones", choices=KINDS)
    network: str = option("hr", "layout of the network", choices=NETWORKS)
    data: Path = option(Path("data/fault"), "folder of make_data, unless the four folders are named")
    dir_data_train: str = option("", "training inputs; none = data_train in --data")
    dir_target_train: str = option("", "training targets; none = target_train in --data")
    dir_data_valid: str = option("", "validation inputs; none = data_valid in --data")
    dir_target_valid: str = option("", "validation targets; none = target_valid in --data")
    epochs: int = option(100, "passes over the training samples", aliases=("num_epochs",))
    steps: int = option(0, "optimizer steps, instead of epochs when above 0", aliases=("max_steps",))
    batch_train: int = option(4, "crops a process and update", aliases=("batch_size",))
    batch_valid: int = option(1, "held-out cubes in one forward pass")
    accumulate: int = option(1, "batches a step, one after another", aliases=("accum_steps",))
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
    optimizer: str = option(
        "adamw", "adamw, or muon: orthogonal updates of the kernels", choices=("adamw", "muon")
    )
    weight_decay: float = option(1e-2, "on kernels")
    warmup_steps: int = option(20, "linear warm-up", unit="steps")
    ema: float = option(0.999, "decay of the averaged weights; 0 = off", aliases=("ema_decay",))
    augment: bool = option(True, "turn and flip the training crops")
    disturb: bool = option(True, "change gain, band and noise of the training images")
    loss: str = option(
        "strata", "strata, or the published one of the mtl layout", choices=("strata", "published")
    )
    w_fault: float = option(1.0, "weight of the fault loss")
    w_orient: float = option(0.3, "weight of the fault-normal loss")
    w_dhr: float = option(0.2, "weight of the image loss")
    w_rgt: float = option(0.5, "weight of the geological-time loss")
    rgt_residual: str = option(
        "auto",
        "time correction of the network: on, off, or auto: kept when it lowers the held-out error",
        choices=("auto", "on", "off"),
    )
    init: str = option("", "start from the weights of this model")
    freeze: str = option("", "what --init brought and is not changed", choices=("", "trunk"))
    init_infer: str = option("", "with --task refine: half of the inputs are this model's outputs")
    second_pass: float = option(0.3, "with --task refine: share of steps on the network's own output")
    input: str = option("", "survey with sparse labels, to fine-tune on")
    labels: str = option("", "its labels: volume of -1, 0, 1, or CSV of fault sticks")
    labelled_inlines: tuple[int, ...] = option((), "inlines that are labelled throughout")
    replay: float = option(0.5, "share of synthetic samples in fine-tuning on --labels")
    check: str = option("", "score this checkpoint on the validation samples, write predictions, and stop")
    nodes: int = option(1, "machines; more than one needs torchrun")
    gpus_per_node: int = option(1, "processes a machine; more than one needs torchrun", aliases=("gpus",))

    def __post_init__(self) -> None:
        """Check what one field or two can say."""
        self._check_task()
        self._check_labels()
        if not self.heads:
            raise ValueError("--rgt --dhr --fault are all off: nothing to train")
        if len(self.crop) not in (1, 3) or any(c % 16 or c < 0 for c in self.crop):
            raise ValueError(f"--crop {' '.join(map(str, self.crop))}: expected one or three multiples of 16")
        one_voxel = self.crop_shape == (16, 16, 16) and self.batch_train == 1
        if one_voxel and "rgt" in self.heads and self.network == "hr":
            raise ValueError("--crop 16 --batch_train 1: one voxel is left at the coarsest grid; raise one")
        if self.loss == "published" and self.network != "mtl":
            raise ValueError("--loss published: works with --network mtl only")
        for name in (
            *("batch_train", "batch_valid", "accumulate", "samples_per_epoch"),
            *("nodes", "gpus_per_node"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if self.epochs < 1 and self.steps < 1:
            raise ValueError("--epochs and --steps are both below 1: nothing to do")

    def _check_task(self) -> None:
        if self.task == "infer" and self.init_infer:
            raise ValueError("--init_infer: needs --task refine; leave it out, or use --init")
        if self.task == "refine" and self.network == "unet":
            raise ValueError("--task refine: unet finds faults only; use --network hr or mtl")
        if self.task == "refine" and self.heads != HEADS:
            raise ValueError("--task refine: needs all of --rgt --dhr --fault")
        if not 0 <= self.second_pass <= 1:
            raise ValueError(f"--second_pass {self.second_pass}: expected a share, 0 to 1")

    def _check_labels(self) -> None:
        if bool(self.input) != bool(self.labels):
            raise ValueError("--input and --labels: one without the other; name the survey and its labels")
        if self.labelled_inlines and not self.labels:
            raise ValueError("--labelled_inlines: needs --input and --labels")
        if self.labels and (self.task != "infer" or not self.fault):
            raise ValueError("--labels: they are of faults; use --task infer with --fault")
        if self.labels and not self.crop_shape:
            raise ValueError("--labels with --crop 0: crops are taken around labels; give their size")
        if not 0 <= self.replay < 1:
            raise ValueError(f"--replay {self.replay}: expected a share from 0 and below 1")
        if self.freeze and not self.init:
            raise ValueError(f"--freeze {self.freeze}: needs --init; random weights would stay as they are")

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
    return TrainConfig(
        steps=260, batch_train=2, crop=(32,), ema=0.99, warmup_steps=10, disturb=False, optimizer="muon"
    )


def standard() -> TrainConfig:
    """Return a short training on the standard cubes: about eleven minutes on one core."""
    return TrainConfig(steps=1000, batch_train=2, crop=(32,), ema=0.995, disturb=False, optimizer="muon")


def large() -> TrainConfig:
    """Return a long training on cubes made on the fly, all kinds of geology."""
    return TrainConfig(
        synthetic=True,
        data_preset="mixed",
        epochs=60,
        samples_per_epoch=400,
        batch_train=4,
        optimizer="muon",
    )


def mtl() -> TrainConfig:
    """Return a training of the published multitask layout: batch 1, crops of 64."""
    return TrainConfig(network="mtl", batch_train=1, crop=(64,))


def refine() -> TrainConfig:
    """Return a training of the refining network on the degraded volumes of the standard cubes.

    The faded image is nearly right to begin with: with its usual weight the network never learns to mend it.
    """
    return TrainConfig(task="refine", steps=3000, batch_train=2, crop=(32,), ema=0.995, w_dhr=4.0)


TRAIN_PRESETS = {
    "smoke": smoke,
    "demo": demo,
    "standard": standard,
    "large": large,
    "mtl": mtl,
    "refine": refine,
}
