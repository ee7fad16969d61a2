"""Write a data root of the generators: sections, their wells and seismic, palette.json and dataset.json."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import (
    remove_stale_temporaries,
    require_free_space,
    require_writable,
    write_bytes,
    write_json,
)
from common.run import BasicOptions
from facies_gan.config_data import MakeDataConfig
from facies_gan.dataset import DataFiles
from facies_gan.images import write_png
from facies_gan.objects3d import DX_M, ObjectModel
from facies_gan.palette import Palette, write_palette
from facies_gan.synthetic import (
    IMPEDANCE_MRAYL,
    PEAK_HZ,
    SECTION_SPACING,
    make,
    make_seismic,
    make_wells,
    synthetic_palette,
)
from facies_gan.well_files import MAPPING_NAMES, write_hard_data, write_mapping
from facies_gan.wells import WellSet

GENERATOR_VERSION = 1
STEMS = {"sections": "xz_crossline", "channels": "channels", "checkerboard": "checkerboard"}


def make_data(config: MakeDataConfig, options: BasicOptions, out: Path, seed: int = 0) -> dict[str, Any]:
    """Write the data root `out`; return what dataset.json tells. Section i depends on (seed, i) alone.

    Raises:
        UserError: `out` cannot be written or holds a data set already.
        DataError: the disk is too small.
    """
    require_writable(out)
    old = existing(out)
    if old and not options.overwrite:
        raise UserError(
            f"{out}: holds a data set ({old[0].relative_to(out)}); add --overwrite or choose another --out"
        )
    height, width = config.shape
    palette = synthetic_palette(config.kind, config.num_facies)
    told: dict[str, Any] = {"kind": config.kind, "sections": config.num_sections, "shape": [height, width]}
    require_free_space(out, config.num_sections * height * width * (5 if config.with_seismic else 1))
    if options.dry_run:
        return told
    remove_stale_temporaries(out)
    for path in old:
        path.unlink()
    dz_m = ObjectModel(seed, height, width).dz_m
    counts = np.zeros(len(palette), dtype=np.int64)
    wells: dict[str, WellSet] = {}
    for index in range(config.num_sections):
        stem = f"{STEMS[config.kind]}_{index:03d}"
        labels = make(config.kind, seed, index, height, width, config.num_facies)
        counts += np.bincount(labels.reshape(-1), minlength=len(palette))
        write_png(DataFiles.FACIES.as_data_path(out) / f"{stem}.png", palette.to_rgb(labels))
        if config.wells_per_section:
            wells[stem] = make_wells(seed, index, labels, config.wells_per_section, deviated=config.deviated)
            path = DataFiles.WELLS.as_data_path(out) / f"{stem}.png"
            write_png(path, wells_image(labels, wells[stem], palette))
            if config.deviated:  # an image cannot tell paths apart that touch; columns have the mapping
                write_hard_data(path.with_suffix(".csv"), wells[stem], height, palette)
        if config.with_seismic:
            grid = make_seismic(seed, index, labels, dz_m)
            _write_npy(DataFiles.SEISMIC.as_data_path(out) / f"{stem}.npy", grid)
    if wells and not config.deviated:
        write_mapping(DataFiles.WELLS.as_data_path(out) / MAPPING_NAMES[0], wells)
    write_palette(out / "palette.json", palette)
    told |= _description(config, seed, palette, counts, dz_m)
    write_json(out / "dataset.json", told)
    return told


def _description(
    config: MakeDataConfig, seed: int, palette: Palette, counts: np.ndarray, dz_m: float
) -> dict[str, Any]:
    shares = (counts / counts.sum()).round(5).tolist()
    told: dict[str, Any] = {
        "seed": seed,
        "generator": asdict(config),
        "generator_version": GENERATOR_VERSION,
        "facies": dict(zip(palette.names, shares, strict=True)),
    }
    if config.kind == "sections":
        told["cell_size_m"] = {"x": DX_M, "z": round(dz_m, 4), "between_sections": DX_M * SECTION_SPACING}
    if config.with_seismic:
        told["impedance_mrayl"] = dict(zip(palette.names, IMPEDANCE_MRAYL, strict=False))
        told["wavelet"] = f"Ricker {PEAK_HZ:g} Hz"
    return told


def wells_image(labels: np.ndarray, wells: WellSet, palette: Palette) -> np.ndarray:
    """Return uint8 [H, W, 4]: the facies colour at data, transparent elsewhere."""
    image = np.zeros((*labels.shape, 4), dtype=np.uint8)
    image[wells.rows, wells.cols, :3] = palette.to_rgb(wells.facies)
    image[wells.rows, wells.cols, 3] = 255
    return image


def _write_npy(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def existing(out: Path) -> list[Path]:
    """Return the files of a data set below `out`, the two JSON files last."""
    kinds = [kind.as_data_path(out) for kind in DataFiles]
    suffixes = {".png", ".pt", ".npz", ".npy", ".csv", ".dat"}
    inside = [
        p for folder in kinds if folder.is_dir() for p in sorted(folder.iterdir()) if p.suffix in suffixes
    ]
    return [*inside, *(p for p in (out / "palette.json", out / "dataset.json") if p.is_file())]
