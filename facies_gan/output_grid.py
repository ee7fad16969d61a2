"""The grid to generate on, and what is known there: wells of a file or of the model, seismic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import DataError, UserError
from common.log import get_logger
from common.noise import numpy_stream
from facies_gan.canvas import Size
from facies_gan.config_generate import GenerateConfig
from facies_gan.dataset import IMAGE_SUFFIXES
from facies_gan.geometry import GridGeometry
from facies_gan.grid_files import grid_geometry, read_any_grid
from facies_gan.gslib import GridHeader
from facies_gan.images import read_rgb
from facies_gan.model_card import ModelCard
from facies_gan.palette import unique_colors
from facies_gan.seismic_files import read_seismic_file
from facies_gan.simulator import Conditioning
from facies_gan.well_files import read_hard_data, read_wells_png
from facies_gan.wells import WellSet

RETRAIN = "train it again without --no_use_wells"


@dataclass(frozen=True)
class OutputGrid:
    """Where realisations are made.

    Attributes:
        size: (H, W).
        geometry: frame of its cells.
        header: form of grid files.
    """

    size: Size
    geometry: GridGeometry
    header: GridHeader


def output_grid(config: GenerateConfig, card: ModelCard) -> OutputGrid:
    """Return the grid that the flags mean.

    Raises:
        UserError: --size and --grid_from disagree, or the grid is too small for the model.
        DataError: --grid_from cannot be read.
    """
    header = card.header or GridHeader()
    geometry = _scaled(card)
    size = card.size
    if config.grid_from is not None:
        size, geometry, header = _from_file(config, config.grid_from, geometry, header)
        if config.size and tuple(config.size) != size:
            raise UserError(
                f"--size {config.size[0]} {config.size[1]}: {config.grid_from} has {size[0]} x {size[1]} "
                "cells (H x W); leave one of them out"
            )
    elif config.size:
        size = (config.size[0], config.size[1])
    geometry = replace(
        geometry,
        origin=tuple(config.origin) or geometry.origin,
        cell_size=tuple(config.cell_size) or geometry.cell_size,
        z_down=geometry.z_down if config.z_down is None else config.z_down,
        position=0,
        num_slices=1,
    )
    coarsest = min(card.scales(size)[0])
    least = card.architecture.border + 1 if card.mode == "reflect" else 2
    if coarsest < least:
        need = int(np.ceil(min(size) * least / coarsest)) + 1
        raise UserError(f"output grid {size[0]} x {size[1]}: too small for this model; use {need} or more")
    return OutputGrid(size, geometry, header)


def _scaled(card: ModelCard) -> GridGeometry:
    """Return the frame of the model's finest grid, whose cells may be larger than native ones."""
    if card.size == card.native:
        return card.geometry
    ratios = dict(
        zip(
            reversed(card.geometry.axes),
            (n / m for n, m in zip(card.native, card.size, strict=True)),
            strict=True,
        )
    )
    sizes = zip("xyz", card.geometry.cell_size, strict=True)
    return replace(card.geometry, cell_size=tuple(value * ratios.get(axis, 1.0) for axis, value in sizes))


def _from_file(
    config: GenerateConfig, path: Path, geometry: GridGeometry, header: GridHeader
) -> tuple[Size, GridGeometry, GridHeader]:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        rgb, _ = read_rgb(path)
        return (rgb.shape[0], rgb.shape[1]), geometry, header
    grid = read_any_grid(path, config)
    sections = grid.sections(grid_geometry(grid, _GridFlags(bool(config.z_down))))
    labels, frame = sections[0]
    if len(sections) > 1:
        raise UserError(f"--grid_from {path}: a grid of {grid.dims} cells, expected one section or map")
    return (labels.shape[0], labels.shape[1]), frame, grid.header


@dataclass(frozen=True)
class _GridFlags:
    z_down: bool


def find_conditioning(config: GenerateConfig, card: ModelCard, grid: OutputGrid, seed: int) -> Conditioning:
    """Return the data and the seismic of the output grid.

    Raises:
        UserError: data for a model that takes none, or more wells than there are.
        DataError: a file does not fit the grid.
    """
    asked = config.wells or config.well_ids or config.well_sections or config.hard_data or config.wells_png
    wells = WellSet.empty()
    if asked:
        if not card.has_data:
            raise UserError(f"{config.model_path}: trained without wells, cannot honour data; {RETRAIN}")
        wells = _find_wells(config, card, grid, seed)
        if not len(wells) and not config.allow_unconditioned:
            raise UserError(
                "no datum lies in the output grid; correct the data, or add --allow_unconditioned"
            )
    return Conditioning(card, grid.size, wells, _find_seismic(config, card, grid.size))


def _find_wells(config: GenerateConfig, card: ModelCard, grid: OutputGrid, seed: int) -> WellSet:
    if config.hard_data is not None:
        found = read_hard_data(
            config.hard_data, grid.size, card.palette, grid.geometry,
            allow_empty=config.allow_unconditioned, or_else=", or add --allow_unconditioned",
        )  # fmt: skip
        return _some(found, config.wells, seed, str(config.hard_data))
    if config.wells_png is not None:
        labels = _labels_for(config.wells_png, card, grid.size)
        found = read_wells_png(config.wells_png, labels, card.palette, background=config.well_background)
        return _some(found, config.wells, seed, str(config.wells_png))
    return stored_wells(config, card, grid.size, seed)


def _some(wells: WellSet, count: int, seed: int, where: str) -> WellSet:
    """Return `count` of the wells, a seeded choice; 0 = all."""
    if not count:
        return wells
    numbers = np.unique(wells.well_id)
    if count > len(numbers):
        raise UserError(f"--wells {count}: {where} has {len(numbers)} wells; ask for at most as many")
    chosen = numpy_stream(seed, "choice of wells").permutation(len(numbers))[:count]
    return wells.select(sorted(numbers[chosen].tolist()))


def _labels_for(path: Path, card: ModelCard, size: Size) -> np.ndarray:
    """Return the section that a black and white mask marks cells of: the anchor of the same size.

    Raises:
        UserError: the image is such a mask and no anchor has its size.
    """
    same = [a.labels for a in card.anchors if a.labels is not None and a.labels.shape == tuple(size)]
    colors = {tuple(color) for color in unique_colors(read_rgb(path)[0])[0].tolist()}
    known = {tuple(color) for color in card.palette.colors.tolist()}
    if colors <= {(0, 0, 0), (255, 255, 255)} and not colors <= known and not same:
        raise UserError(
            f"--wells_png {path}: a mask in black and white, but no section of the model has {size[0]} x "
            f"{size[1]} cells; draw the facies' colours instead"
        )
    return same[0] if same else np.zeros(size, dtype=np.uint8)


def stored_wells(config: GenerateConfig, card: ModelCard, size: Size, seed: int) -> WellSet:
    """Return wells stored in the model on an output grid, as the flags choose them.

    Raises:
        UserError: there are none, or fewer than asked for, or no such section or number.
    """
    sections = [section for section in card.sections if len(section.wells)]
    if not sections:
        raise UserError(f"{config.model_path}: stores no wells; give them with --hard_data FILE")
    if config.well_sections:
        known = {section.stem: section for section in sections}
        missing = [stem for stem in config.well_sections if stem not in known]
        if missing:
            raise UserError(
                f"--well_sections {missing[0]}: no wells stored for it; known: {', '.join(list(known)[:5])}"
            )
        sections = [known[stem] for stem in config.well_sections]
    wells = [(section, int(i)) for section in sections for i in np.unique(section.wells.well_id)]
    numbers: Sequence[int] = range(len(wells))
    if config.well_ids:
        wrong = [i for i in config.well_ids if not 0 <= i < len(wells)]
        if wrong:
            raise UserError(f"--well_ids {wrong[0]}: expected 0 to {len(wells) - 1}")
        numbers = list(config.well_ids)
    if config.wells:
        if config.wells > len(numbers):
            raise UserError(
                f"--wells {config.wells}: {len(numbers)} wells are stored; ask for at most as many"
            )
        order = numpy_stream(seed, "choice of wells").permutation(len(numbers))[: config.wells]
        numbers = [numbers[i] for i in sorted(order.tolist())]
    factors = [m / n for n, m in zip(card.native, card.size, strict=True)]
    found = WellSet.empty()
    for number in numbers:
        section, well = wells[number]
        found = found.merged(_moved(section.wells.select([well]), section.stem, factors))
    if found.num_wells < len(numbers):
        get_logger().warning(
            "warning: %d of %d stored wells lie in cells that another one holds, and are left out",
            len(numbers) - found.num_wells, len(numbers),
        )  # fmt: skip
    return _inside(found, size)


def _moved(wells: WellSet, stem: str, factors: Sequence[float]) -> WellSet:
    """Return the wells of native cells on the model's finest cells; a cell keeps its first datum."""
    rows = np.floor((wells.rows + 0.5) * factors[0]).astype(np.int64)
    cols = np.floor((wells.cols + 0.5) * factors[1]).astype(np.int64)
    _, first = np.unique(rows * (int(cols.max()) + 1) + cols, return_index=True)
    first = np.sort(first)
    names = tuple(f"{stem} {name}" for name in wells.names)
    return WellSet(rows[first], cols[first], wells.facies[first], wells.well_id[first], names)


def _inside(wells: WellSet, size: Size) -> WellSet:
    """Return the data inside the grid; others are dropped with one warning."""
    keep = (wells.rows < size[0]) & (wells.cols < size[1])
    if not keep.all():
        get_logger().warning(
            "warning: %d of %d stored data lie outside the grid of %d x %d cells (H x W) and are left out",
            int((~keep).sum()), len(keep), *size,
        )  # fmt: skip
    return WellSet(wells.rows[keep], wells.cols[keep], wells.facies[keep], wells.well_id[keep], wells.names)


def _find_seismic(config: GenerateConfig, card: ModelCard, size: Size) -> np.ndarray | None:
    if card.num_seismic == 0:
        if config.seismic is not None:
            raise UserError(f"--seismic: {config.model_path} was trained without seismic; leave it out")
        return None
    if config.seismic is None:
        raise UserError(
            f"{config.model_path}: trained with seismic; give that of the grid with --seismic FILE"
        )
    values = read_seismic_file(config.seismic, size)
    if len(values) != card.num_seismic:
        raise DataError(
            f"{config.seismic}: {len(values)} channels, the model was trained with {card.num_seismic}; "
            "export the same channels"
        )
    assert card.seismic is not None
    return np.asarray(card.seismic.apply(values, channel_axis=0), dtype=np.float32)
