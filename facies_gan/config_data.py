"""What can be set when data are made or prepared: one help text a field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import option
from facies_gan.grid_files import require_useful_flags
from facies_gan.interpolators import INTERPOLATORS
from facies_gan.synthetic import KINDS, MOST_FACIES

DEFAULT_SIZES = {"sections": (96, 120), "channels": (250, 250), "checkerboard": (96, 120)}


@dataclass(frozen=True)
class MakeDataConfig:
    """What `make_data` writes."""

    kind: str = option("sections", "vertical sections, a map of channels, or a checkerboard", choices=KINDS)
    num_sections: int = option(64, "sections", aliases=("num",))
    height: int = option(0, "of a section; 0 = 96, of channels 250", unit="cells")
    width: int = option(0, "of a section; 0 = 120, of channels 250", unit="cells")
    num_facies: int = option(
        4, f"facies of sections, 2 to {MOST_FACIES}; channels have 2, the checkerboard 4"
    )
    wells_per_section: int = option(1, "wells in each section")
    deviated: bool = option(False, "dipping wells instead of vertical ones")
    with_seismic: bool = option(False, "seismic for each section")

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        if self.num_sections < 1:
            raise ValueError(f"--num_sections {self.num_sections}: expected 1 or more")
        if not 2 <= self.num_facies <= MOST_FACIES:
            raise ValueError(f"--num_facies {self.num_facies}: expected 2 to {MOST_FACIES}")
        if self.num_facies != 4 and self.kind != "sections":
            raise ValueError(f"--num_facies {self.num_facies}: works with --kind sections only")
        if self.with_seismic and self.kind != "sections":
            raise ValueError("--with_seismic: works with --kind sections only; maps have no vertical axis")
        for name, side in zip(("height", "width"), self.shape, strict=True):
            if not 12 <= side <= 8192:
                raise ValueError(f"--{name} {side}: expected 12 to 8192 cells")
        if not 0 <= self.wells_per_section <= self.shape[1]:
            raise ValueError(f"--wells_per_section {self.wells_per_section}: expected 0 to {self.shape[1]}")

    @property
    def shape(self) -> tuple[int, int]:
        """The size (H, W) of the sections."""
        height, width = DEFAULT_SIZES[self.kind]
        return self.height or height, self.width or width


@dataclass(frozen=True)
class PrepConfig:
    """What `prep_data` reads and prepares."""

    input_path: Path = option(Path("data"), "data root with facies/, wells/, seismic/")
    training_image: Path | None = option(None, "one GSLIB, SGeMS, GRDECL or PNG grid instead of a data root")
    hard_data: Path | None = option(None, "wells of the training image: GEO-EAS, CSV or NPZ")
    check: bool = option(False, "only validate the data; build and write nothing")
    interpolator: str = option("area", "how sections reach coarser scales", choices=INTERPOLATORS)
    fit_steps: int = option(2000, "updates of the neural smoothers")
    min_size: int = option(12, "short side of the coarsest scale", unit="px")
    max_size: int = option(1024, "long side of the finest scale, capped at native", unit="px")
    stop_scale: int = option(6, "index of the finest scale")
    square: bool = option(False, "resample the sections to squares")
    num_train_pyramids: int = option(
        0, "sections used, a seeded choice; 0 = all", aliases=("num_train_facies",)
    )
    num_img_channels: int = option(3, "channels of the PNG files", choices=(1, 3, 4))
    img_color_range: tuple[float, ...] = option((0.0, 255.0), "values of black and of full brightness")
    use_wells: bool = option(True, "read the wells")
    use_seismic: bool = option(False, "read the seismic")
    well_background: tuple[int, ...] = option((), "R G B of cells without data in wells images")
    cache_dir: Path = option(Path(".cache"), "folder of the caches; deleting it is safe")
    clear_cache: bool = option(False, "build all pyramids again", aliases=("regen_npy_gz",))
    slice_axis: str = option("y", "axis across the sections of a 3-D grid", choices=("x", "y", "z"))
    origin: tuple[float, ...] = option((1.0, 1.0, 1.0), "lower face of the first cell, x y z")
    cell_size: tuple[float, ...] = option((1.0, 1.0, 1.0), "of a cell, x y z")
    z_down: bool = option(False, "the vertical coordinate counts from the top")
    grid_dims: tuple[int, ...] = option((), "NX NY NZ of a GSLIB file that begins with a title")
    variable: str = option("", "column of a grid file with several; none = the only one")

    def __post_init__(self) -> None:
        """Check the number of values."""
        for name, count in (("origin", 3), ("cell_size", 3), ("img_color_range", 2)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected {count}")
        for name in ("grid_dims", "well_background"):
            if len(getattr(self, name)) not in (0, 3):
                raise ValueError(f"--{name}: {len(getattr(self, name))} numbers, expected 3")
        if self.img_color_range[0] >= self.img_color_range[1]:
            raise ValueError(
                f"--img_color_range {self.img_color_range}: expected black below full brightness"
            )
        for name, least in (("fit_steps", 1), ("num_train_pyramids", 0), ("stop_scale", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")
        require_useful_flags(self)
