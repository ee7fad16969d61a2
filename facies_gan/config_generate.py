"""What can be set when realisations are generated: one help text a field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option, split_commas

FORMATS = ("png", "npy", "gslib", "grdecl")
_NEEDS = (
    ("halo", "tile", "auto"),
    ("well_background", "wells_png", ()),
    ("grid_dims", "grid_from", ()),
    ("variable", "grid_from", ""),
)  # what does nothing without another flag: name, the other, its default


@dataclass(frozen=True)
class GenerateConfig:
    """Realisations of one output grid."""

    model_path: Path | None = option(
        None, "run folder, model.pt, a checkpoint, or a folder of runs (newest)", aliases=("model",)
    )
    how_many: int = option(16, "realisations")
    out_path: Path = option(Path("results/generated"), "output folder", aliases=("out", "output_path"))
    wells: int = option(0, "condition on this many wells, chosen by the seed from the model or --hard_data")
    well_ids: tuple[int, ...] = option((), "numbers of wells stored in the model, from 0")
    well_sections: tuple[str, ...] = option((), "sections whose stored wells are used")
    hard_data: Path | None = option(None, "GEO-EAS, CSV or NPZ points in the output grid")
    wells_png: Path | None = option(None, "image of the output grid with the facies of its data cells")
    well_background: tuple[int, ...] = option((), "R G B of cells without data in --wells_png")
    seismic: Path | None = option(None, "seismic of the output grid, npy or PNG")
    size: tuple[int, ...] = option((), "H W of the output grid; none = the training size", unit="cells")
    grid_from: Path | None = option(None, "grid file whose size, origin and cell size are taken")
    origin: tuple[float, ...] = option((), "lower face of the first cell, x y z; none = as trained")
    cell_size: tuple[float, ...] = option((), "of a cell, x y z; none = as trained")
    z_down: bool | None = option(None, "the vertical coordinate counts from the top; none = as trained")
    grid_dims: tuple[int, ...] = option((), "NX NY NZ of a GSLIB --grid_from that begins with a title")
    variable: str = option("", "column of a --grid_from file with several")
    batch_size: int = option(8, "realisations computed at once")
    tile: int = option(0, "edge of the pieces computed one after another; 0 = whole", unit="cells")
    halo: str = option("auto", "cells around a tile; auto = all it needs, equal to the whole", unit="cells")
    formats: tuple[str, ...] = option(("png", "npy"), f"of the realisations: {' '.join(FORMATS)}")
    first_index: int = option(0, "index of the first realisation; above 0 extends an earlier set")
    noise_scale: float = option(1.0, "factor of the noise: spread of the realisations")
    vary_from_scale: int = option(0, "scales below it share the noise of realisation 0")
    rec: bool = option(False, "also rebuild the anchors from their saved noise")
    plot_well_mask: bool = option(False, "draw well_mask.png")
    comparison_plots: bool = option(False, "draw comparison.png: reference and realisations")
    plot_mds: bool = option(False, "draw mds.png: distances between realisations and reference")
    allow_unconditioned: bool = option(False, "go on when no datum lies in the grid")

    def __post_init__(self) -> None:
        """Check what the flags alone can say."""
        if self.model_path is None:
            raise ValueError("--model_path: missing; name a run folder of train.py")
        least = {"how_many": 0 if self.rec else 1, "wells": 0, "batch_size": 1, "tile": 0}
        least |= {"first_index": 0, "vary_from_scale": 0, "noise_scale": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {value} or more")
        if 0 < self.tile < 16:
            raise ValueError(f"--tile {self.tile}: expected 16 or more, or 0")
        if self.halo != "auto" and not self.halo.isdecimal():
            raise ValueError(f"--halo {self.halo}: expected auto or a number of cells")
        for name, needed, default in _NEEDS:
            if getattr(self, name) != default and not getattr(self, needed):
                raise ValueError(f"--{name}: works with --{needed} only; leave it out")
        for name, count in (("size", 2), ("origin", 3), ("cell_size", 3), ("well_background", 3)):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected {count}")
        if self.size and min(self.size) < 12:
            raise ValueError(f"--size {' '.join(map(str, self.size))}: expected 12 or more on each side")
        unknown = [name for name in self.format_names if name not in FORMATS]
        if unknown or not self.format_names:
            raise ValueError(f"--formats {' '.join(self.formats)}: expected some of {', '.join(FORMATS)}")
        files = [self.hard_data is not None, self.wells_png is not None]
        stored = bool(self.well_ids or self.well_sections)
        if sum(files) > 1 or (stored and any(files)):
            raise ValueError(
                "--hard_data, --wells_png and --well_ids/--well_sections exclude each other; give one of them"
            )

    @property
    def format_names(self) -> tuple[str, ...]:
        """The formats: `--formats png npy` and `--formats png,npy` mean the same."""
        return split_commas(self.formats)
