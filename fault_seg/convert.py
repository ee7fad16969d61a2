"""Volumes from one format into another, into patches and back, slab by slab; and what their headers say."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.run import BasicOptions
from fault_seg.config_tools import ConvertConfig
from fault_seg.file_writers import choose_encoding, open_file_writer
from fault_seg.patches import MergedVolume, PatchGrid, write_patches
from fault_seg.segy import SegySurvey
from fault_seg.slabs import Volume
from fault_seg.volumes import format_of, open_volume, require_format, sidecar_path, write_sidecar

_ENDINGS = {"raw": "", "npy": ".npy", "segy": ".sgy", "h5": ".h5", "mhd": ".mhd", "vti": ".vti"}


def convert(config: ConvertConfig, options: BasicOptions) -> dict[str, Any]:
    """Do what the flags ask for; return what was found or written, as plain values for a print-out.

    Raises:
        UserError: the flags do not fit the files, or the output exists.
        DataError: the input cannot be used, or `--like` has another shape.
    """
    _refuse_vgi(config)
    with ExitStack() as stack:
        volume = stack.enter_context(_open_input(config))
        if config.info:
            return describe(volume)
        if config.patch:
            return _cut(config, options, volume)
        path, kind = output_file(config)
        like = volume
        if config.like:
            like = stack.enter_context(_open(config, config.like))
            if like.shape != volume.shape:
                raise DataError(
                    f"{like.path}: (n1, n2, n3) = {like.shape}, expected {volume.shape} as {volume.path}; "
                    "take the survey that the volume comes from as --like"
                )
        return _write(config, options, volume, like, path, kind)


def output_file(config: ConvertConfig) -> tuple[Path, str]:
    """Return (path, format) of the output; the suffix of `--format` is added where the name lacks it.

    Raises:
        UserError: neither tells the format.
    """
    path = Path(config.output)
    found = format_of(path)
    if config.format == "auto":
        if found is None:
            raise UserError(f"--output {path}: unknown suffix {path.suffix}; add --format")
        return path, found
    require_format(config.format)
    if found != config.format:
        path = Path(f"{path}{_ENDINGS[config.format]}")
    return path, config.format


def describe(volume: Volume) -> dict[str, Any]:
    """Return the geometry of an open volume; no sample is read."""
    if isinstance(volume, SegySurvey):
        return volume.info()
    n1, n2, n3 = volume.shape
    known = {"file": str(volume.path), "format": volume.format}
    if volume.path.is_file():
        known["bytes"] = str(volume.path.stat().st_size)
    sizes = {"n1 (samples)": n1, "n2 (crosslines)": n2, "n3 (inlines)": n3}
    return {**known, **sizes, "spacing (n1 n2 n3)": volume.spacing, "origin (n1 n2 n3)": volume.origin}


def _refuse_vgi(config: ConvertConfig) -> None:
    for flag, name in (("input", config.input), ("output", config.output), ("like", config.like)):
        if Path(name).suffix.lower() == ".vgi":
            raise UserError(f"--{flag} {name}: vgi is neither read nor written; use --format mhd or vti")
    if config.format != "auto":
        require_format(config.format)


def _open_input(config: ConvertConfig) -> Volume:
    if config.merge:
        return MergedVolume(config.merge)
    return _open(config, config.input, (config.n1, config.n2, config.n3), config.dataset)


def _open(
    config: ConvertConfig, name: str, shape: tuple[int, int, int] = (0, 0, 0), dataset: str = "volume"
) -> Volume:
    return open_volume(
        name,
        shape,
        layout=config.layout,
        endian=config.endian,
        iline=config.iline,
        xline=config.xline,
        dataset=dataset,
    )


def _cut(config: ConvertConfig, options: BasicOptions, volume: Volume) -> dict[str, Any]:
    grid = PatchGrid(volume.shape, config.patch_shape, config.patch_overlap)
    folder = Path(config.output)
    if folder.is_file():
        raise UserError(
            f"--output {folder}: is a file, expected a folder for the patches; choose another name"
        )
    if not options.dry_run:
        write_patches(volume, grid, folder, overwrite=options.overwrite)
    counts = " x ".join(str(len(grid.starts(axis))) for axis in range(3))
    return {
        "file": f"{folder}/0.bin ... {len(grid) - 1}.bin, index.json",
        "shape": volume.shape,
        "patches": f"{len(grid)} = {counts} (z y x) of {grid.patch}, overlap {grid.overlap}",
    }


def _write(
    config: ConvertConfig, options: BasicOptions, volume: Volume, like: Volume, path: Path, kind: str
) -> dict[str, Any]:
    _refuse_clash(config, path, kind, options.overwrite)
    encoding = choose_encoding(volume, config.dtype, config.ibm)
    source = volume.path.name
    summary = {"file": str(path), "format": kind, "shape": volume.shape, "dtype": encoding.dtype}
    if encoding.scale != 1:
        summary["scale"] = f"{encoding.scale:.9g} (amplitude = stored x scale)"
    if options.dry_run:
        return summary
    with open_file_writer(path, kind, like, encoding, source=source, layout=config.layout) as writer:
        for x0, slab in volume.slabs():
            writer.write(x0, slab)
    if kind == "raw" or (kind == "npy" and encoding.dtype != "float32"):
        write_sidecar(path, like, dtype=encoding.dtype, scale=encoding.scale, source=source)
    if kind == "segy":
        dropped = int(np.sum(like.null & ~volume.null))
        if dropped:
            summary["notice"] = (
                f"{dropped} traces are missing or dead in {like.path} and were written as such"
            )
    return summary


def _refuse_clash(config: ConvertConfig, path: Path, kind: str, overwrite: bool) -> None:
    """Refuse to write over the input, ever, and over other files without `--overwrite`."""
    files = [path]
    files += [path.with_suffix(".raw")] if kind == "mhd" else []
    files += [sidecar_path(path)] if kind == "raw" else []
    inputs = [Path(name) for name in (config.input, config.like) if name]
    inputs += [name.with_suffix(".raw") for name in inputs if format_of(name) == "mhd"]
    for file in files:
        if not file.exists():
            continue
        if any(name.exists() and os.path.samefile(file, name) for name in inputs):
            raise UserError(f"{file}: is read for this conversion; choose another --output")
        if not overwrite:
            raise UserError(f"{file}: exists; add --overwrite or choose another --output")
