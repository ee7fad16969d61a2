"""The wells of a data root: a file a section, matched by stem, and the mapping of columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.errors import DataError
from common.log import get_logger
from facies_gan.geometry import GridGeometry
from facies_gan.palette import Palette
from facies_gan.well_files import read_hard_data, read_mapping, read_wells_png
from facies_gan.wells import WellSet


def read_wells(
    folder: Path,
    labels: dict[str, np.ndarray],
    palette: Palette,
    geometry: GridGeometry,
    background: tuple[int, ...] = (),
    all_stems: set[str] | None = None,
) -> dict[str, WellSet]:
    """Return the wells of sections {stem: labels}; sections without are left out, with one counted warning.

    Args:
        folder: the folder of the wells.
        labels: sections [H, W].
        palette: their facies.
        geometry: frame of coordinates in tables.
        background: RGB of cells without data in wells images.
        all_stems: every section of the data root, to tell files that belong to none.

    Raises:
        DataError: a file or a row of the mapping does not fit its section.
    """
    if not folder.is_dir():
        return {}
    mapping, mapping_path = read_mapping(folder) or ({}, folder)
    known = all_stems or set(labels)
    for number, stem in enumerate(mapping):
        if stem not in known:
            raise DataError(
                f"{mapping_path}: names section {stem!r} (well {number}), expected one of the facies "
                f"images; correct image_names"
            )
    wells = {}
    for stem, grid in labels.items():
        columns = mapping.get(stem)
        for column in columns or ():
            if column >= grid.shape[1]:
                raise DataError(
                    f"{mapping_path}: column {column} of {stem} lies outside its {grid.shape[1]} columns "
                    f"(from 0)"
                )
        data = _wells_of(folder, stem, grid, palette, geometry, columns, background)
        if data is not None and len(data):
            wells[stem] = data
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


def _wells_of(
    folder: Path,
    stem: str,
    labels: np.ndarray,
    palette: Palette,
    geometry: GridGeometry,
    columns: list[int] | None,
    background: tuple[int, ...],
) -> WellSet | None:
    """Return the wells of one section from <stem>.png, .csv or .dat, or from its mapped columns."""
    for suffix in (".csv", ".dat"):
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return read_hard_data(path, labels.shape, palette, geometry)
    path = folder / f"{stem}.png"
    if path.is_file():
        return read_wells_png(path, labels, palette, columns=columns, background=background)
    return WellSet.from_columns(labels, columns) if columns else None
