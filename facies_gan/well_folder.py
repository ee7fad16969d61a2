"""The wells of a data root: a file a section, matched by stem, and the mapping of columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.errors import DataError
from common.log import get_logger
from facies_gan.geometry import GridGeometry
from facies_gan.images import beside
from facies_gan.palette import Palette
from facies_gan.well_files import MAPPING_NAMES, Mapping, read_hard_data, read_mapping, read_wells_png
from facies_gan.wells import WellSet

TABLES = (".csv", ".dat")


def read_wells(
    folder: Path,
    labels: dict[str, np.ndarray],
    palette: Palette,
    geometry: GridGeometry,
    background: tuple[int, ...] = (),
    all_stems: set[str] | None = None,
    images: tuple[int, tuple[float, ...]] = (3, (0, 255)),
) -> dict[str, WellSet]:
    """Return the wells of sections {stem: labels}; sections without are left out, with one counted warning.

    Args:
        folder: the folder of the wells.
        labels: sections [H, W].
        palette: their facies.
        geometry: frame of coordinates in tables.
        background: RGB of cells without data in wells images.
        all_stems: every section of the data root, to tell files that belong to none.
        images: channels and values of images.

    Raises:
        DataError: a file or a row of the mapping does not fit its section.
    """
    known = all_stems or set(labels)
    mapping = read_mapping(folder) or Mapping({}, folder, {})
    _check_mapping(mapping, labels, known)
    wells = {}
    for stem, grid in labels.items():
        columns = mapping.columns.get(stem)
        data = _wells_of(folder, stem, grid, palette, geometry, columns, background, *images)
        if data is not None and len(data):
            wells[stem] = data
    _warn_of_strangers(folder, known)
    if len(wells) < len(labels):
        missing = [stem for stem in labels if stem not in wells]
        get_logger().warning(
            "warning: %s: %d of %d sections have no wells (%s); they train on random wells",
            folder,
            len(missing),
            len(labels),
            ", ".join(missing[:5]),
        )
    return wells


def _check_mapping(mapping: Mapping, labels: dict[str, np.ndarray], known: set[str]) -> None:
    """Refuse rows of the mapping that fit no section.

    Raises:
        DataError: the row is named.
    """
    for (stem, column), (row, count) in mapping.rows.items():
        if stem not in known:
            raise DataError(
                f"{mapping.path}: row {row} names section {stem!r}, expected one of the facies images; "
                "correct image_names"
            )
        if stem not in labels:
            continue
        height, width = labels[stem].shape
        if column >= width:
            raise DataError(
                f"{mapping.path}: row {row}: column {column} of {stem} lies outside its {width} columns "
                "(from 0)"
            )
        if count > height:
            raise DataError(
                f"{mapping.path}: row {row}: {count} data cells in column {column} of {stem}, which has "
                f"{height} rows"
            )


def _warn_of_strangers(folder: Path, known: set[str]) -> None:
    """Say which files of wells belong to no section: a misspelt name would lose its data in silence."""
    suffixes = (".png", *TABLES)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    strange = [p.name for p in files if p.suffix.lower() in suffixes and p.stem not in known]
    if strange:
        get_logger().warning(
            "warning: %s: %d files belong to no section and are not read (%s); name them as the facies image",
            folder, len(strange), ", ".join(strange[:5]),
        )  # fmt: skip


def _wells_of(
    folder: Path,
    stem: str,
    labels: np.ndarray,
    palette: Palette,
    geometry: GridGeometry,
    columns: list[int] | None,
    background: tuple[int, ...],
    channels: int,
    value_range: tuple[float, ...],
) -> WellSet | None:
    """Return the wells of one section: of <stem>.csv, .dat and .png together, and of its mapped columns.

    Raises:
        DataError: two files give a cell different facies.
    """
    found: list[tuple[Path, WellSet]] = []
    for path in filter(None, (beside(folder, stem, suffix) for suffix in TABLES)):
        found.append((path, read_hard_data(path, labels.shape, palette, geometry)))
    path = beside(folder, stem, ".png")
    if path is not None:
        data = read_wells_png(
            path, labels, palette, columns=columns, background=background,
            channels=channels, value_range=value_range,
        )  # fmt: skip
        found.append((path, data))
    elif columns:
        found.append((folder / MAPPING_NAMES[0], WellSet.from_columns(labels, columns)))
    wells = None
    for number, (path, data) in enumerate(found):
        for other, earlier in found[:number]:
            _refuse_clash(labels.shape, palette, (other, earlier), (path, data))
        wells = data if wells is None else wells.merged(data)
    return wells


def _refuse_clash(
    shape: tuple[int, ...], palette: Palette, one: tuple[Path, WellSet], two: tuple[Path, WellSet]
) -> None:
    grid = np.full(shape, -1)
    grid[one[1].rows, one[1].cols] = one[1].facies
    before = grid[two[1].rows, two[1].cols]
    clash = np.flatnonzero((before >= 0) & (before != two[1].facies))
    if clash.size:
        i = int(clash[0])
        codes = palette.to_codes(np.array([before[i], two[1].facies[i]])).tolist()
        raise DataError(
            f"{two[0]}: row {two[1].rows[i]} col {two[1].cols[i]} (from 0, from the top) has facies "
            f"{codes[1]}, {one[0].name} has {codes[0]} there ({clash.size} such cells); remove one"
        )
