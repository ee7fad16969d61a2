"""What can be set when realisations are measured: one help text a field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option, split_commas
from facies_gan.baselines import BASELINES


@dataclass(frozen=True)
class EvaluateConfig:
    """Realisations of a model, or of any simulator's files, beside baselines and the reference's own band."""

    model_path: Path | None = option(
        None, "run folder, model.pt, a checkpoint, or a folder of runs (newest)", aliases=("model",)
    )
    realisations: Path | None = option(None, "folder of grids, of any simulator, instead of a model's")
    reference: Path | None = option(
        None, "training image, or data root of sections; none = the sections stored in the model"
    )
    hard_data: Path | None = option(None, "GEO-EAS, CSV or NPZ points that the realisations honour")
    how_many: int = option(20, "realisations of each method and section")
    baselines: tuple[str, ...] = option(BASELINES, f"of {' '.join(BASELINES)}, or none")
    max_lag: int = option(60, "longest lag of variograms and connectivity", unit="cells")
    holdout_wells: int = option(0, "wells held out, to measure how true the probabilities are")
    blending_count: int = option(8, "realisations of each set of drawn wells; 0 = leave blending out")
    first_section: int = option(0, "sections of a reference folder before this one are left out")
    num_sections: int = option(16, "sections of a reference folder that are used; 0 = all")
    batch_size: int = option(8, "realisations computed at once")
    tile: int = option(0, "edge of the pieces computed one after another; 0 = whole", unit="cells")
    figures: bool = option(True, "draw figures")
    slice_axis: str = option("y", "axis across the sections of a 3-D reference", choices=("x", "y", "z"))
    origin: tuple[float, ...] = option((1.0, 1.0, 1.0), "lower face of the reference's first cell, x y z")
    cell_size: tuple[float, ...] = option((1.0, 1.0, 1.0), "of a cell of the reference, x y z")
    z_down: bool = option(False, "the vertical coordinate counts from the top")
    grid_dims: tuple[int, ...] = option((), "NX NY NZ of a GSLIB reference that begins with a title")
    variable: str = option("", "column of a grid file with several")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if self.model_path is None and self.realisations is None:
            raise ValueError("--model_path: missing; name a run folder of train.py, or --realisations DIR")
        if self.realisations is not None and self.model_path is None and self.reference is None:
            raise ValueError("--realisations: nothing to compare with; add --reference, or --model_path")
        if self.realisations is not None and self.holdout_wells:
            raise ValueError("--holdout_wells: existing realisations know all wells; leave it out")
        least = {"how_many": 1, "max_lag": 1, "holdout_wells": 0, "blending_count": 0}
        least |= {"first_section": 0, "num_sections": 0, "batch_size": 1, "tile": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {value} or more")
        if 0 < self.tile < 16:
            raise ValueError(f"--tile {self.tile}: expected 16 or more, or 0")
        unknown = [name for name in self.baseline_names if name not in BASELINES]
        if unknown:
            raise ValueError(f"--baselines {unknown[0]}: expected some of {', '.join(BASELINES)}, or none")
        for name in ("origin", "cell_size"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected 3")
        if len(self.grid_dims) not in (0, 3):
            raise ValueError(f"--grid_dims: {len(self.grid_dims)} numbers, expected 3")

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The baselines: `--baselines tgs snesim` and `--baselines tgs,snesim` mean the same."""
        return tuple(name for name in dict.fromkeys(split_commas(self.baselines)) if name != "none")
