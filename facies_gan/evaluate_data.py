"""What is measured: reference sections on the model's grid with their data, and grids of other simulators."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.log import get_logger
from facies_gan.arrays import read_npy
from facies_gan.config_evaluate import EvaluateConfig
from facies_gan.dataset import IMAGE_SUFFIXES, Section, SectionSet, read_training_data
from facies_gan.geometry import GridGeometry
from facies_gan.grid_files import PLAIN, read_any_grid
from facies_gan.images import read_rgb
from facies_gan.model_card import ModelCard
from facies_gan.output_grid import RETRAIN
from facies_gan.palette import Palette
from facies_gan.pyramids import to_facies_pyramids
from facies_gan.simulator import grid_of
from facies_gan.well_files import read_hard_data
from facies_gan.wells import WellSet

FORMATS = ((".npy",), (".gslib", ".sgems", ".dat", ".txt", ".gs", ".out"), (".grdecl",), (".png",))
FOLDER = "realisations"


@dataclass(frozen=True, eq=False)
class Scene:
    """A section of the reference on the grid of the realisations.

    Attributes:
        stem: its name.
        truth: uint8 [H, W].
        wells: data that realisations honour, on the same grid.
        seismic: float32 [n_s, h, w], scaled, native; None without.
    """

    stem: str
    truth: np.ndarray
    wells: WellSet = field(default_factory=WellSet.empty)
    seismic: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.truth.shape[0], self.truth.shape[1]


@dataclass(frozen=True, eq=False)
class Case:
    """The reference of an evaluation.

    Attributes:
        palette: the facies.
        scenes: its sections.
        learnt: sections on which the model was trained, uint8 [H, W] each; empty without a model.
    """

    palette: Palette
    scenes: list[Scene]
    learnt: tuple[np.ndarray, ...] = ()

    @property
    def sources(self) -> list[np.ndarray]:
        """What realisations may have copied: what the model stores of its training, else the sections."""
        return list(self.learnt) or self.truths

    @property
    def truths(self) -> list[np.ndarray]:
        """The sections, uint8 [H, W] each."""
        return [scene.truth for scene in self.scenes]

    @property
    def is_single(self) -> bool:
        """Whether the reference is one image, of which realisations need not be the same section."""
        return len(self.scenes) == 1


@dataclass(frozen=True)
class _ReferenceFlags:
    """The data flags that reading a reference needs."""

    input_path: Path
    training_image: Path | None
    slice_axis: str
    origin: tuple[float, ...]
    cell_size: tuple[float, ...]
    z_down: bool
    grid_dims: tuple[int, ...]
    variable: str
    use_wells: bool
    use_seismic: bool
    hard_data: None = None


def read_case(config: EvaluateConfig, card: ModelCard | None) -> Case:
    """Return the reference that the flags name, on the finest grid of the model.

    Raises:
        UserError: flags that do not fit the model.
        DataError: the reference or the hard data cannot be used.
    """
    if config.hard_data is not None and card is not None and not card.has_data:
        raise UserError(f"{config.model_path}: trained without wells, cannot honour data; {RETRAIN}")
    if config.reference is not None:
        data = _read_reference(config, config.reference, card)
    else:
        assert card is not None
        data = _stored(card, config)
    if config.hard_data is not None and len(data) > 1:
        raise UserError(
            f"--hard_data: works with one training image; this reference has {len(data)} sections, whose own "
            "wells are used"
        )
    scenes = [_scene(section, config, card, data.palette) for section in data.sections]
    if card is None:
        return Case(data.palette, scenes)
    anchors = [(a.labels, grid_of(card, a.shape)) for a in card.anchors if a.labels is not None]
    return Case(data.palette, scenes, tuple(_on(labels, size, len(data.palette)) for labels, size in anchors))


def _read_reference(config: EvaluateConfig, path: Path, card: ModelCard | None) -> SectionSet:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected a training image or a data root")
    grid = not path.is_dir()  # the flags of grid files may be meant for the realisations alone
    flags = _ReferenceFlags(
        input_path=path,
        training_image=path if grid else None,
        slice_axis=config.slice_axis if grid else "y",
        origin=config.origin,
        cell_size=config.cell_size,
        z_down=config.z_down,
        grid_dims=config.grid_dims if grid else (),
        variable=config.variable if grid else "",
        use_wells=card is None or card.has_data,
        use_seismic=card is not None and card.num_seismic > 0,
    )
    stats = card.seismic if card else None
    data = read_training_data(flags, palette=card.palette if card else None, seismic_stats=stats)
    if len(data) == 1:
        return data
    chosen = data.sections[config.first_section :]
    chosen = chosen[: config.num_sections or len(chosen)]
    if not chosen:
        raise UserError(f"--first_section {config.first_section}: {path} has {len(data)} sections")
    return replace(data, sections=chosen)


def _stored(card: ModelCard, config: EvaluateConfig) -> SectionSet:
    """Return the sections that travel with the model."""
    frame = _given_frame(card.geometry, config)
    sections = [
        Section(s.stem, s.labels, s.wells if len(s.wells) else None, s.seismic, frame)
        for s in card.anchors
        if s.labels is not None
    ]
    if not sections:
        raise UserError(f"{config.model_path}: stores no reference; name one with --reference")
    return SectionSet(sections, card.palette, card.seismic, card.header)


def _given_frame(frame: GridGeometry, config: EvaluateConfig) -> GridGeometry:
    """Return the frame of the training with what the flags say instead."""
    try:
        return replace(
            frame,
            origin=frame.origin if config.origin == PLAIN else config.origin,
            cell_size=frame.cell_size if config.cell_size == PLAIN else config.cell_size,
            z_down=frame.z_down or config.z_down,
        )
    except ValueError as error:
        raise UserError(f"--origin, --cell_size: {error}") from error


def _scene(section: Section, config: EvaluateConfig, card: ModelCard | None, palette: Palette) -> Scene:
    """Return a section on the model's finest grid; without a model, on its own."""
    size = section.shape if card is None else grid_of(card, section.shape)
    truth = _on(section.labels, size, len(palette))
    wells = section.wells or WellSet.empty()
    if size != section.shape:
        wells = wells.resampled(section.shape, size)
    if config.hard_data is not None:
        frame = scaled_frame(section.geometry, section.shape, size)
        wells = read_hard_data(config.hard_data, size, palette, frame)
    if card is not None and not card.has_data:
        wells = WellSet.empty()
    return Scene(section.stem, truth, wells, section.seismic)


def _on(labels: np.ndarray, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Return labels on a grid of another size: in each cell the facies with the largest area."""
    if labels.shape == size:
        return labels
    return to_facies_pyramids(labels, [size], "area", num_classes)[0].argmax(dim=0).numpy().astype(np.uint8)


def scaled_frame(geometry: GridGeometry, native: tuple[int, int], size: tuple[int, int]) -> GridGeometry:
    """Return the frame of a section of `native` cells when it is cut into `size` cells."""
    ratio = dict(
        zip(reversed(geometry.axes), (n / m for n, m in zip(native, size, strict=True)), strict=True)
    )
    cells = zip("xyz", geometry.cell_size, strict=True)
    return replace(geometry, cell_size=tuple(value * ratio.get(axis, 1.0) for axis, value in cells))


def read_realisations(folder: Path, palette: Palette, config: EvaluateConfig) -> list[np.ndarray]:
    """Return the grids uint8 [H, W] in a folder: npy labels, grid files of codes, or PNG.

    The first of these formats is taken. A folder that `generate` wrote is understood, too.

    Raises:
        DataError: nothing to read, or a grid with other facies or another size.
    """
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not place.is_dir():
        raise DataError(f"{folder}: no such folder, expected grids of realisations; check --realisations")
    for suffixes in FORMATS:
        paths = sorted(p for p in place.iterdir() if p.suffix.lower() in suffixes and p.is_file())
        if paths:
            break
    else:
        known = ", ".join(s for group in FORMATS for s in group)
        raise DataError(f"{place}: holds no realisation, expected files of {known}")
    grids = [grid for path in paths for grid in _grids(path, palette, config)][: config.how_many]
    for number, grid in enumerate(grids):
        if grid.shape != grids[0].shape:
            raise DataError(
                f"{place}: grid {number} has {grid.shape[0]} x {grid.shape[1]} cells, the first "
                f"{grids[0].shape[0]} x {grids[0].shape[1]}; evaluate one size at a time"
            )
    get_logger().info(
        f"{place}: {len(grids)} realisations of {grids[0].shape[0]} x {grids[0].shape[1]} cells"
    )
    return grids


def _grids(path: Path, palette: Palette, config: Any) -> list[np.ndarray]:
    """Return the realisations of one file."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [palette.to_labels(read_rgb(path)[0], path)]
    if path.suffix.lower() != ".npy":
        grid = read_any_grid(path, config)
        frame = grid.geometry(slice_axis=config.slice_axis, z_down=config.z_down)
        return [palette.from_codes_to_labels(codes, str(path)) for codes, _ in grid.sections(frame)]
    values = read_npy(path)
    if values.ndim not in (2, 3) or values.dtype.kind not in "ui" or not values.size:
        raise DataError(
            f"{path}: {values.dtype} of shape {values.shape}, expected integer labels [H, W] or [N, H, W]"
        )
    if values.max() >= len(palette) or values.min() < 0:
        raise DataError(
            f"{path}: labels {values.min()} to {values.max()}, expected 0 to {len(palette) - 1}; "
            "write facies codes as a grid file instead"
        )
    return [np.array(v, dtype=np.uint8) for v in (values if values.ndim == 3 else values[None])]
