"""What can be set for inference, refinement and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option, split_commas
from fault_seg.synthetic import PRESETS as DATA_PRESETS
from fault_seg.turns import NUM_TURNS
from fault_seg.volumes import FORMATS, require_format

BASELINES = ("coherence", "unet")


@dataclass(frozen=True)
class SurveyConfig:
    """What inference and refinement share: volumes in, five volumes out."""

    input: str = option("", "SEG-Y, npy, HDF5, MetaImage or VTI file, or raw float32 with --n1 --n2 --n3")
    model: str = option(
        "",
        "checkpoint, exported weights or a run's folder; none = the shipped weights",
        aliases=("model_path",),
    )
    output: str = option("", "prefix of the output files; none = the input's name", aliases=("out",))
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
    threshold: float = option(0.0, "probability from which a voxel is fault; 0 = the model's, else 0.5")
    tta: int = option(1, "flips and turns to average; above 1 also writes their spread", choices=NUM_TURNS)
    confidence: bool = option(False, "also write <output>.fgap: how sure the fault angles are, 0..1")
    rgt_residual: str = option(
        "auto", "time correction of the network: as the model says, on, off", choices=("auto", "on", "off")
    )
    refine_iters: int = option(3, "most passes of a refining network")
    refine_tol: float = option(1e-3, "stop refining when the mean change of fsem falls below")
    keep_iters: bool = option(False, "keep the volumes of every pass as <output>.iter0.* and on")
    angle_units: str = option(
        "auto", "degrees, over180, or auto: over180 for raw", choices=("auto", "degrees", "over180")
    )
    angle_fill: str = option("auto", "angle below the threshold", choices=("auto", "nan", "zero"))
    dz: float = option(1.0, "sample distance, for true dip in degrees")
    dy: float = option(1.0, "crossline distance, in the unit of --dz")
    dx: float = option(1.0, "inline distance, in the unit of --dz")
    velocity: float = option(0.0, "of time data: sets --dz, and --dy --dx from the headers", unit="m/s")
    north: bool = option(False, "strike in degrees clockwise from north; needs SEG-Y coordinates")
    iline: int = option(189, "SEG-Y trace header byte of the inline number")
    xline: int = option(193, "SEG-Y trace header byte of the crossline number")
    endian: str = option("auto", "byte order of SEG-Y and raw input", choices=("auto", "big", "little"))
    layout: str = option("zyx", "axis order of npy and HDF5 input", choices=("zyx", "ixz"))
    polarity: int = option(1, "sign of the input", choices=(1, -1))
    monotone_rgt: bool = option(True, "make geological time increase down every trace")
    allow_nan: bool = option(False, "treat NaN samples as missing")
    figures: bool = option(True, "draw sections")
    resume: str = option(
        "", "auto: go on where a killed run of the same command stopped", choices=("", "auto")
    )

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if not self.input:
            raise ValueError("--input: missing; name a seismic volume")
        if self.overlap != "exact" and not self.overlap.isdecimal():
            raise ValueError(f"--overlap {self.overlap}: expected voxels or exact")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold}: expected between 0 and 1")
        if self.block < 16 or self.max_memory <= 0:
            raise ValueError("--block must be 16 or more and --max_memory above 0")
        if min(self.dz, self.dy, self.dx) <= 0 or self.velocity < 0:
            raise ValueError("--dz --dy --dx must be above 0 and --velocity 0 or more")
        if self.velocity and (self.dz, self.dy, self.dx) != (1, 1, 1):
            raise ValueError("--velocity sets the voxel sizes; leave --dz --dy --dx out")
        if self.refine_iters < 1 or self.refine_tol < 0:
            raise ValueError("--refine_iters must be 1 or more and --refine_tol 0 or more")
        for name in self.formats:
            if name != "auto":
                require_format(name)

    @property
    def formats(self) -> tuple[str, ...]:
        """The output formats: `--format npy segy` and `--format npy,segy` mean the same."""
        return split_commas(self.format)


@dataclass(frozen=True)
class InferConfig(SurveyConfig):
    """One volume in, five volumes out."""

    refine_model: str = option("", "refine the volumes with this network of kind refine before writing")


@dataclass(frozen=True)
class RefineConfig(SurveyConfig):
    """Five volumes in, five better ones out; --input is their prefix, --model a network of kind refine."""

    input_units: str = option(
        "auto",
        "of the input's angles: degrees, over180, or auto by their size",
        choices=("auto", "degrees", "over180"),
    )

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        super().__post_init__()
        if not self.model:
            raise ValueError("--model: missing; train one with train.py --task refine")


@dataclass(frozen=True)
class EvaluateConfig:
    """A model beside its baselines on held-out cubes."""

    model: str = option(
        "",
        "checkpoint, exported weights or a run's folder; none = the shipped weights",
        aliases=("model_path",),
    )
    data: Path = option(
        Path("data/fault"), "folder of make_data: data_valid, target_valid and the training pair"
    )
    baselines: tuple[str, ...] = option(("coherence",), f"to compare with: {', '.join(BASELINES)}")
    baseline_seconds: float = option(50.0, "training of the unet baseline", unit="CPU s")
    nvalid: int = option(0, "held-out cubes used; 0 = all")
    ntune: int = option(8, "training cubes on which the baselines' thresholds are tuned")
    robustness: int = option(0, "cubes for each preset and noise of the robustness table; 0 = none")
    robustness_presets: tuple[str, ...] = option(
        ("wu2019", "rgm", "mixed"), "presets of the robustness table", choices=DATA_PRESETS
    )
    tta: int = option(1, "flips and turns to average", choices=NUM_TURNS)
    refine_iters: int = option(3, "passes of a refining network")
    input: str = option("", "survey with labels, scored instead of --data")
    labels: str = option("", "its labels: volume of -1, 0, 1, or CSV of fault sticks")
    labelled_inlines: tuple[int, ...] = option((), "inlines that are labelled throughout")
    figures: bool = option(True, "draw the curves and a gallery")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if bool(self.input) != bool(self.labels):
            raise ValueError("--input and --labels: one without the other; name the survey and its labels")
        unknown = set(self.chosen_baselines) - set(BASELINES)
        if unknown:
            raise ValueError(f"--baselines {unknown.pop()}: expected {', '.join(BASELINES)}")
        if self.baseline_seconds <= 0 or self.robustness < 0 or self.refine_iters < 1:
            raise ValueError(
                "--baseline_seconds must be above 0, --robustness 0 or more, --refine_iters 1 or more"
            )

    @property
    def chosen_baselines(self) -> tuple[str, ...]:
        """The baselines: `--baselines coherence unet` and `--baselines coherence,unet` mean the same."""
        return split_commas(self.baselines)
