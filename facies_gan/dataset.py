"""Sections with their wells and seismic: a folder of images, one training image, or the slices of a grid."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.log import get_logger
from common.noise import numpy_stream
from common.normalization import ZScore
from facies_gan.geometry import GridGeometry
from facies_gan.grid_files import IMAGE_SUFFIXES, grid_geometry, read_any_grid, require_slices, root_geometry
from facies_gan.gslib import Grid, GridHeader
from facies_gan.images import read_rgb
from facies_gan.palette import ColorCounter, Palette, read_palette, warn_rare
from facies_gan.resample import cell_centre_index
from facies_gan.seismic_files import read_seismic, seismic_scaling
from facies_gan.well_files import place_points, read_hard_data, read_points
from facies_gan.well_folder import read_wells
from facies_gan.wells import WellSet


class DataFiles(enum.Enum):
    """The folders of a data root, and what lies in them."""

    FACIES = "facies"
    WELLS = "wells"
    SEISMIC = "seismic"

    def as_data_path(self, data_dir: str | Path = "data") -> Path:
        """Return the folder of this kind below the data root."""
        return Path(data_dir) / self.value

    def as_image_file_pattern(self) -> str:
        """Return the pattern of images."""
        return "*.png"

    def as_model_file_pattern(self) -> str:
        """Return the pattern of smoothers."""
        return "*.pt"

    def as_mapping_file_pattern(self) -> str:
        """Return the pattern of well mappings."""
        return "*.npz"


@dataclass(frozen=True, eq=False)
class Section:
    """One section on its native grid.

    Attributes:
        stem: its name; matching of files is by it.
        labels: uint8 [H, W], row 0 on top.
        wells: its data, None when it has none.
        seismic: float32 [n_s, H, W], scaled by `SectionSet.seismic_stats`; None without.
        geometry: where its cells lie.
        path: its facies file; None for a slice of a grid.
        digest: of what decides the labels, for the cache.
    """

    stem: str
    labels: np.ndarray
    wells: WellSet | None = None
    seismic: np.ndarray | None = None
    geometry: GridGeometry = GridGeometry()
    path: Path | None = None
    digest: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.labels.shape[0], self.labels.shape[1]


@dataclass(frozen=True, eq=False)
class SectionSet:
    """The sections of a training.

    Attributes:
        sections: in the order of their stems, or of the slices.
        palette: the facies of all of them.
        seismic_stats: mean and standard deviation of the seismic channels; None without seismic.
        header: how the grid file began, for writing results alike; None for images.
    """

    sections: list[Section]
    palette: Palette
    seismic_stats: ZScore | None = None
    header: GridHeader | None = None

    def __len__(self) -> int:
        """Return the number of sections."""
        return len(self.sections)

    @property
    def num_classes(self) -> int:
        """The number of facies C."""
        return len(self.palette)

    @property
    def is_single(self) -> bool:
        """Whether all is learnt from one image."""
        return len(self.sections) == 1

    @property
    def counts(self) -> np.ndarray:
        """Cells of each facies in all sections, int64 [C]."""
        return sum(
            (np.bincount(s.labels.reshape(-1), minlength=self.num_classes) for s in self.sections),
            np.zeros(self.num_classes, dtype=np.int64),
        )


def read_training_data(
    options: Any,
    *,
    seed: int = 0,
    palette: Palette | None = None,
    seismic_stats: ZScore | None = None,
) -> SectionSet:
    """Read what `options` names: `training_image` with `hard_data`, else the folder `input_path`.

    Args:
        options: any configuration with the data flags; absent ones count as their defaults.
        seed: of the choice of `num_train_pyramids` sections.
        palette: facies that the data must have, of a model that is trained on.
        seismic_stats: scaling of the seismic, of a model that is trained on; None = computed.

    Raises:
        UserError: a flag that would do nothing with these data.
        DataError: the data are not what the flags say.
    """
    image = getattr(options, "training_image", None)
    _refuse_idle_flags(options, single=bool(image))
    if image:
        found = _read_single(Path(image), options, seed, palette)
    else:
        found = _read_folder(Path(options.input_path), options, seed, palette, seismic_stats)
    if getattr(options, "square", False):
        found = replace(found, sections=[_squared(section) for section in found.sections])
    warn_rare(found.palette, found.counts)
    _warn_of_disagreement(found)
    return found


def _refuse_idle_flags(options: Any, *, single: bool) -> None:
    """Refuse flags of a training image for a data root, and the other way round.

    Raises:
        UserError: such a flag is given.
    """
    if single:
        idle, instead = ("well_background",), "--input_path"
    else:
        idle, instead = ("hard_data", "grid_dims", "variable", "slice_axis"), "--training_image"
    for name in idle:
        if getattr(options, name, None) not in (None, "", (), "y"):  # "y" is the usual slice axis
            raise UserError(f"--{name}: works with {instead} only; leave it out, or give {instead}")
    if getattr(options, "hard_data", None) and not getattr(options, "use_wells", True):
        raise UserError("--hard_data: would not be used with --no_use_wells; leave one of them out")


def choose_sections(count: int, wanted: int, seed: int) -> list[int]:
    """Return the numbers of the sections used, ascending: `wanted` of `count`, a seeded choice; 0 = all."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return sorted(numpy_stream(seed, "sections").permutation(count)[:wanted].tolist())


def _digest(path: Path, images: tuple[int, tuple[float, ...]]) -> str:
    """Return the SHA-256 of an image file, with how it is read when that is not as usual."""
    how = "" if images == (3, (0.0, 255.0)) else repr(images)
    return hashlib.sha256(path.read_bytes() + how.encode()).hexdigest()


def _grid_digest(labels: np.ndarray) -> str:
    """Return the SHA-256 of labels: one grid file holds several, by variable, slice and direction."""
    return hashlib.sha256(str(labels.shape).encode() + labels.tobytes()).hexdigest()


def _image_settings(options: Any) -> tuple[int, tuple[float, ...]]:
    channels = int(getattr(options, "num_img_channels", 3))
    return channels, tuple(float(v) for v in getattr(options, "img_color_range", ()) or (0, 255))


def _read_folder(
    root: Path, options: Any, seed: int, palette: Palette | None, stats: ZScore | None
) -> SectionSet:
    """Read sections, wells and seismic of a data root, matched by stem."""
    paths = facies_files(root)
    images = _image_settings(options)
    if palette is None:
        palette = folder_palette(root, paths, *images)
    chosen = choose_sections(len(paths), int(getattr(options, "num_train_pyramids", 0)), seed)
    labels = {paths[i].stem: _read_labels(paths[i], palette, *images) for i in chosen}
    geometry = root_geometry(options)
    wells: dict[str, WellSet] = {}
    if getattr(options, "use_wells", True):
        background = tuple(getattr(options, "well_background", ()) or ())
        known = {path.stem for path in paths}
        folder = DataFiles.WELLS.as_data_path(root)
        wells = read_wells(folder, labels, palette, geometry, background, known, images)
    seismic: dict[str, np.ndarray] = {}
    if getattr(options, "use_seismic", False):
        folder = DataFiles.SEISMIC.as_data_path(root)
        seismic = read_seismic(folder, labels)
        stats = stats or seismic_scaling(seismic.values())
    sections = [
        Section(
            path.stem,
            labels[path.stem],
            wells.get(path.stem),
            stats.apply(seismic[path.stem], channel_axis=0).astype(np.float32) if stats and seismic else None,
            geometry,
            path,
            _digest(path, images),
        )
        for path in (paths[i] for i in chosen)
    ]
    return SectionSet(sections, palette, stats if seismic else None)


def facies_files(root: Path) -> list[Path]:
    """Return the images of `root/facies`, by name.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    folder = DataFiles.FACIES.as_data_path(root)
    pattern = DataFiles.FACIES.as_image_file_pattern()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    paths = [path for path in files if path.suffix.lower() == pattern.removeprefix("*")]
    if not paths:
        others = [path.name for path in files[:3]]
        found = f"holds {', '.join(others)}" if others else "is empty" if folder.is_dir() else "is missing"
        raise DataError(
            f"{folder}: {found}, expected facies images {pattern}; export sections as PNG, make some with "
            "scripts/facies_gan/make_data.py, or name one with --training_image"
        )
    first = {path.stem: path for path in reversed(paths)}
    for path in paths:
        if first[path.stem] != path:
            raise DataError(f"{path}: {first[path.stem].name} has this name too, expected one image a name")
    others = [p.name for p in files if p.suffix.lower() in IMAGE_SUFFIXES and p not in paths]
    if others:
        get_logger().warning(
            "warning: %s: %d images are no %s and are left out (%s); export them as PNG",
            folder, len(others), pattern, ", ".join(others[:5]),
        )  # fmt: skip
    return paths


def folder_palette(
    root: Path, paths: list[Path], channels: int = 3, values: tuple[float, ...] = (0, 255)
) -> Palette:
    """Return the facies of a data root: of `palette.json`, else the colours of all its sections."""
    file = root / "palette.json"
    if file.is_file():
        return read_palette(file)
    counter = ColorCounter()
    for path in paths:
        counter.add(read_rgb(path, channels, values)[0], path)
    return counter.palette()


def _read_labels(path: Path, palette: Palette, channels: int, values: tuple[float, ...]) -> np.ndarray:
    rgb, alpha = read_rgb(path, channels, values)
    if alpha is not None and not alpha.all():
        row, col = np.argwhere(alpha == 0)[0].tolist()
        raise DataError(f"{path}: pixel row {row} col {col} is transparent, expected a facies in every pixel")
    return palette.to_labels(rgb, path)


def _read_single(path: Path, options: Any, seed: int, palette: Palette | None) -> SectionSet:
    """Read one training image, or the chosen sections of a 3-D grid, with hard data."""
    header = None
    images = _image_settings(options)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    if is_image:
        if palette is None:
            palette = _image_palette(path, *images)
        labels = _read_labels(path, palette, *images)
        flat = Grid(np.zeros((1, *labels.shape), dtype=np.int64), GridHeader())
        parts = [(labels, grid_geometry(flat, options))]
    else:
        grid = read_any_grid(path, options)
        palette = palette or _code_palette(grid, path)
        header = grid.header
        require_slices(grid, getattr(options, "slice_axis", "y"), path)
        frame = grid_geometry(grid, options)
        parts = [
            (palette.from_codes_to_labels(codes, str(path)), geometry)
            for codes, geometry in grid.sections(frame)
        ]
    if getattr(options, "use_seismic", False):
        raise UserError("--use_seismic works with --input_path only; a single training image has no seismic")
    wells = _single_wells(parts, options, palette)
    one = len(parts) == 1
    sections = []
    for number in choose_sections(len(parts), int(getattr(options, "num_train_pyramids", 0)), seed):
        (labels, geometry), data = parts[number], wells[number]
        digest = _digest(path, images) if is_image else _grid_digest(labels)
        stem = path.stem if one else f"{path.stem}_{geometry.slice_axis}{number:03d}"
        sections.append(Section(stem, labels, data, None, geometry, path if is_image else None, digest))
    return SectionSet(sections, palette, None, header)


def _image_palette(path: Path, channels: int, values: tuple[float, ...]) -> Palette:
    """Return the facies of one image: of palette.json beside it or in its data root, else its colours."""
    folders = (
        [path.parent, path.parent.parent] if path.parent.name == DataFiles.FACIES.value else [path.parent]
    )
    file = next((f / "palette.json" for f in folders if (f / "palette.json").is_file()), None)
    if file is not None:
        return read_palette(file)
    counter = ColorCounter()
    counter.add(read_rgb(path, channels, values)[0], path)
    return counter.palette()


def _code_palette(grid: Grid, path: Path) -> Palette:
    try:
        return Palette.from_codes(np.unique(grid.codes).tolist())
    except ValueError as error:
        raise DataError(f"{path}: {error}; classify the grid first, or choose --variable") from error


def _single_wells(
    parts: list[tuple[np.ndarray, GridGeometry]], options: Any, palette: Palette
) -> list[WellSet | None]:
    """Return the hard data of each section; None where there are none."""
    file = getattr(options, "hard_data", None)
    if not file:
        return [None] * len(parts)
    if len(parts) == 1:
        labels, geometry = parts[0]
        return [read_hard_data(file, labels.shape, palette, geometry)]
    points = read_points(file)
    placed = [place_points(points, labels.shape, palette, geometry) for labels, geometry in parts]
    inside = np.any([mask for _, mask in placed], axis=0)
    if not inside.any():
        raise DataError(
            f"{file}: none of its {len(inside)} data lies inside the grid; check --origin, --z_down"
        )
    if not inside.all():
        get_logger().warning("warning: %s: %d data lie outside the grid", file, int((~inside).sum()))
    return [wells if len(wells) else None for wells, _ in placed]


def _squared(section: Section) -> Section:
    """Return a section resampled to a square of its long side, by the cell at each centre."""
    side = max(section.shape)
    rows, cols = (cell_centre_index(side, n) for n in section.shape)
    grid = np.ix_(rows, cols)
    height, width = section.shape
    sizes = dict(zip(section.geometry.axes, (width / side, height / side), strict=True))
    cell_size = tuple(
        size * sizes.get(axis, 1.0) for axis, size in zip("xyz", section.geometry.cell_size, strict=True)
    )
    return replace(
        section,
        labels=np.ascontiguousarray(section.labels[grid]),
        wells=section.wells.resampled(section.shape, (side, side)) if section.wells else None,
        seismic=None
        if section.seismic is None
        else np.ascontiguousarray(section.seismic[:, grid[0], grid[1]]),
        geometry=replace(section.geometry, cell_size=cell_size),
        path=None,
        digest=hashlib.sha256(f"square {section.digest}".encode()).hexdigest(),
    )


def _pairs(found: SectionSet) -> Iterator[tuple[Section, WellSet]]:
    return ((s, s.wells) for s in found.sections if s.wells is not None)


def _warn_of_disagreement(found: SectionSet) -> None:
    """Say how many hard data differ from their own section: training would pull both ways there."""
    differ = {s.stem: int((~wells.matches(s.labels)).sum()) for s, wells in _pairs(found)}
    total = sum(differ.values())
    if total:
        names = ", ".join(stem for stem, count in differ.items() if count)
        get_logger().warning(
            "warning: %d of %d hard data differ from their section (%s); check the orientation, --z_down",
            total,
            sum(len(wells) for _, wells in _pairs(found)),
            names[:120],
        )
