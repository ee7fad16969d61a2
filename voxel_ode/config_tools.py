"""What can be set for rollouts, their evaluation and export, and the search for better well rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from voxel_ode.energy import OBJECTIVES
from voxel_ode.flux import WATER_RANGE_C

INITS = ("output0", "initial")
BASELINES = ("copy", "ridge1", "ridge3", "linear", "upwind", "fno")
SPLITS = ("train", "val", "test")
ABLATIONS = ("flux",)
MODEL = ("model",)  # what the other packages call --ckpt_path
GIB = 2**30


def tile_sizes(words: tuple[str, ...]) -> tuple[int, int, int] | str:
    """Return what --tile says: "auto", "none" or three sizes (Z, Y, X).

    Raises:
        ValueError: anything else.
    """
    if len(words) == 1 and words[0] in ("auto", "none"):
        return words[0]
    if len(words) == 3 and all(word.isdecimal() and int(word) > 0 for word in words):
        z, y, x = (int(word) for word in words)
        return z, y, x
    raise ValueError(f"--tile {' '.join(words)}: expected auto, none, or three sizes above 0 (Z Y X)")


def memory_bytes(word: str) -> float:
    """Return what --max_memory says in bytes; 0 for "auto".

    Raises:
        ValueError: neither auto nor a number above 0.
    """
    if word == "auto":
        return 0.0
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"--max_memory {word}: expected auto or a number of GB above 0")
    return value * GIB


def require_checkpoint(paths: tuple[str, ...]) -> None:
    """Raise ValueError when no checkpoint is named."""
    if not paths:
        raise ValueError(
            "--ckpt_path: missing; name a checkpoint or the folder of a training, several for an ensemble"
        )


@dataclass(frozen=True)
class Placement:
    """How a network is laid over a grid; shared by rollout and evaluate."""

    tile: tuple[str, ...] = option(
        ("auto",), "auto (active slabs, tiles when they do not fit), none, or Z Y X", unit="cells"
    )
    max_memory: str = option(
        "auto", "budget for the network's tensors; auto = half of what is free", unit="GB"
    )
    skip_inactive: bool = option(True, "leave out layers and tiles without active cells")
    constrain: bool = option(
        True, "keep temperatures between their extremes, pressures near those trained on"
    )
    pressure_sweeps: int = option(
        0,
        "sweeps over the water balance after each year, which even out predicted pressures; they take the "
        "whole grid, beyond --max_memory; 0 = none",
    )
    compile: bool = option(False, "compile the network's step with torch.compile; some minutes at start")
    cuda_graph: bool = option(False, "record a year's step as a CUDA graph and replay it; on CUDA only")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        tile_sizes(self.tile)
        memory_bytes(self.max_memory)
        if self.pressure_sweeps < 0:
            raise ValueError(f"--pressure_sweeps {self.pressure_sweeps}: expected 0 or more")


@dataclass(frozen=True)
class RolloutConfig(Placement):
    """Year after year from a given state, into files."""

    prepped_sim_path: tuple[str, ...] = option(
        (), "prepped or raw simulations, or folders of them", aliases=("sim_path",)
    )
    ckpt_path: tuple[str, ...] = option(
        (),
        "checkpoints, or folders of trainings, whose best is taken; several make an ensemble",
        aliases=MODEL,
    )
    stats_path: Path | None = option(None, "stats.json, compared with the checkpoint's numbers")
    receptive_field_radius: int | None = option(None, "compared with the checkpoint's", unit="cells")
    base_channels: int | None = option(None, "compared with the checkpoint's")
    depth: int | None = option(None, "compared with the checkpoint's")
    init: str = option(
        "output0", "begin with the file's first output, or with its initial state", choices=INITS
    )
    injection_temperature: float | None = option(
        None, "of the injected water; none = as the file's parameters or outputs tell", unit="deg C"
    )
    save_path: Path = option(
        Path("./predictions.h5"), "file, or folder for several simulations", aliases=("out",)
    )
    steps: int = option(0, "states in the result; 0 = those of the file, 30 without outputs", unit="years")
    batch_sims: int = option(1, "scenarios of equal grid at once")
    intervals: Path | None = option(None, "calibration.json of evaluate.py, for calibrated P10 and P90")
    vti: Path | None = option(None, "folder for ParaView files")
    npz: Path | None = option(None, "file (folder for several simulations) of arrays and axes")
    csv: Path | None = option(None, "file (folder for several simulations) of the wells' years")
    figures: bool = option(False, "draw slices and curves beside the predictions")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        super().__post_init__()
        if not self.prepped_sim_path:
            raise ValueError("--prepped_sim_path: missing; name a prepped or raw simulation or a folder")
        require_checkpoint(self.ckpt_path)
        told = self.injection_temperature
        if told is not None and not 0 <= told <= WATER_RANGE_C[1]:
            raise ValueError(f"--injection_temperature {told:g}: expected 0 to {WATER_RANGE_C[1]:g} deg C")
        if self.steps < 0 or self.batch_sims < 1:
            raise ValueError(
                f"--steps {self.steps}, --batch_sims {self.batch_sims}: expected 0 or more, 1 or more"
            )


@dataclass(frozen=True)
class EvaluateConfig(Placement):
    """A network beside baselines on a split of a data set."""

    prepped_root: Path | None = option(None, "folder of prep_data; required")
    ckpt_path: tuple[str, ...] = option(
        (),
        "checkpoints, or folders of trainings, whose best is taken; several make an ensemble",
        aliases=MODEL,
    )
    split: str = option("test", "which simulations", choices=SPLITS)
    init: str = option("output0", "begin with the first output, or with the initial state", choices=INITS)
    baselines: tuple[str, ...] = option(BASELINES[:-1], "to compare with", choices=BASELINES)
    fno_minutes: float = option(0.0, "training of the Fourier operator; above 0 adds it", unit="min")
    ablate: tuple[str, ...] = option((), "score the network without these inputs too", choices=ABLATIONS)
    calibrate: bool = option(False, "fit intervals on the validation split, print their coverage")
    per_well: bool = option(True, "errors of the wells and of their breakthrough years")
    max_sims: int = option(0, "simulations scored; 0 = all of the split")
    figures: bool = option(True, "draw slices, errors by year, wells and field rates")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        super().__post_init__()
        if self.prepped_root is None:
            raise ValueError("--prepped_root: missing; name the folder that prep_data.py wrote")
        require_checkpoint(self.ckpt_path)
        if self.max_sims < 0 or self.fno_minutes < 0:
            raise ValueError(
                f"--max_sims {self.max_sims}, --fno_minutes {self.fno_minutes}: expected 0 or more"
            )

    @property
    def compared(self) -> tuple[str, ...]:
        """The baselines, with the Fourier operator when it was given time."""
        names = tuple(dict.fromkeys(self.baselines))
        return names if self.fno_minutes == 0 or "fno" in names else (*names, "fno")


@dataclass(frozen=True)
class ExportConfig:
    """Other forms of a predictions file; no network is needed."""

    predictions: Path | None = option(None, "predictions.h5 of rollout.py; required")
    steps_list: tuple[int, ...] = option((), "years of the ParaView files; none = all", unit="years")
    vti: Path | None = option(None, "folder for ParaView files")
    npz: Path | None = option(None, "file of arrays and axes")
    csv: Path | None = option(None, "file of the wells' years")

    def __post_init__(self) -> None:
        """Check that there is something to do."""
        if self.predictions is None:
            raise ValueError("--predictions: missing; name the file that rollout.py wrote")
        if not (self.vti or self.npz or self.csv):
            raise ValueError("--vti, --npz or --csv: expected at least one; name where to write")
        if min(self.steps_list, default=1) < 1:
            raise ValueError(f"--steps_list {' '.join(map(str, self.steps_list))}: expected years from 1")


@dataclass(frozen=True)
class OptimiseConfig:
    """Better well rates by gradients through the rollout, checked by the simulator."""

    sim_path: str = option("", "prepped or raw simulation", aliases=("prepped_sim_path",))
    ckpt_path: tuple[str, ...] = option(
        (), "checkpoint, or folder of a training, whose best is taken; of several the first", aliases=MODEL
    )
    init: str = option(
        "output0", "begin with the file's first output, or with its initial state", choices=INITS
    )
    iterations: int = option(40, "steps of the search")
    lr: float = option(0.05, "step of the rate factors")
    horizon: int = option(29, "years that count", unit="years")
    objective: str = option("produced_energy", "what to raise", choices=OBJECTIVES)
    discount_rate: float = option(0.0, "by which a later year counts less", unit="1/year")
    total: str = option("fixed", "total rate of the field", choices=("fixed", "free"))
    bounds: tuple[float, ...] = option((0.5, 1.5), "of the rate factors")
    pressure_limits: tuple[float, ...] = option((), "lowest and highest pressure wanted", unit="bar")
    verify: bool = option(True, "run the best rates in the simulator")
    candidates: int = option(3, "best rates that are run")
    save_path: Path = option(Path("./optimised.json"), "file of the result", aliases=("out",))
    figures: bool = option(True, "draw rates and yearly energy beside the result")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if not self.sim_path:
            raise ValueError("--sim_path: missing; name a prepped or raw simulation")
        require_checkpoint(self.ckpt_path)
        for name, least in (("iterations", 1), ("horizon", 1), ("candidates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        if self.lr <= 0 or self.discount_rate < 0:
            raise ValueError(
                f"--lr {self.lr}, --discount_rate {self.discount_rate}: expected above 0, 0 or more"
            )
        if len(self.bounds) != 2 or not 0 <= self.bounds[0] <= 1 <= self.bounds[1]:
            raise ValueError(f"--bounds {' '.join(map(str, self.bounds))}: expected 0 <= low <= 1 <= high")
        if (
            len(self.pressure_limits) not in (0, 2)
            or tuple(sorted(self.pressure_limits)) != self.pressure_limits
        ):
            raise ValueError(
                f"--pressure_limits {' '.join(map(str, self.pressure_limits))}: expected low and high, bar"
            )
