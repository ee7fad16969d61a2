"""Faults as tables, sticks and a label volume, and horizons, from the volumes that inference wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.log import get_logger
from common.run import BasicOptions
from fault_seg.config_tools import ObjectsConfig
from fault_seg.objects import SurveyGeometry, fault_table, find_faults, horizon_levels
from fault_seg.objects_files import write_fault_files, write_horizon_files
from fault_seg.slabs import Volume
from fault_seg.stored_angles import angles_in_degrees, require_grid_angles
from fault_seg.survey_geometry import geometry_of
from fault_seg.volumes import (
    open_volume,
    output_path,
    read_sidecar,
    require_format,
    write_sidecar,
    write_volume,
)

# SEG-Y first: it has coordinates. Raw last: any file could be one.
_SEARCH = ("segy", "h5", "npy", "mhd", "vti", "raw")
_TABLES = ("faults.csv", "fault_points.csv", "fault_sticks.csv", "fault_sticks.dat")
_ANGLES = ("fdip", "fstrike")
_SHOWN = 10  # faults in the print-out
_THRESHOLD = 0.5  # where neither a flag nor a side-car says one


def make_objects(
    config: ObjectsConfig, options: BasicOptions, origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write the tables of faults and horizons and the label volume; return what was found.

    The volumes are held in memory whole, one after another.

    Raises:
        UserError: the flags contradict each other, or files exist.
        DataError: the volumes are missing or do not fit each other.
    """
    origins = origins or {}
    config = replace(config, threshold=chosen_threshold(config))
    if origins.get("horizons") == "command line" and config.rgt_values:
        raise UserError("--horizons and --rgt_values: expected one of the two")
    kind, found = _find(config)
    prefix = config.output or config.input
    values = _horizon_values(config, found, origins)
    faults = all(name in found for name in ("fsem", *_ANGLES))
    if not faults:
        lacking = [name for name in ("fsem", *_ANGLES) if name not in found]
        get_logger().info(f"{config.input}: no {', '.join(lacking)}, so no faults")
    if faults and kind != "raw" and config.angle_units != "over180":
        require_grid_angles(config.input)
    _refuse_existing(prefix, kind, faults, values, options.overwrite)
    summary: dict[str, Any] = {
        "prefix": prefix,
        "format": kind,
        "threshold": config.threshold,
        "faults": [],
        "horizons": values,
        "files": [],
    }
    if options.dry_run:
        return summary
    fsem = None
    with _open(config, kind, "fsem" if "fsem" in found else "rgt") as like:
        geometry = geometry_of(like)
        if "fsem" in found:
            fsem = _read(config, kind, "fsem", like.shape)
        if faults and fsem is not None:
            _write_faults(config, kind, like, fsem, geometry, prefix, summary)
        if values:
            rgt = _read(config, kind, "rgt", like.shape)
            cut: Any = None if fsem is None else fsem >= config.threshold
            summary["files"] += write_horizon_files(prefix, rgt, values, geometry, cut)
    return summary


def chosen_threshold(config: ObjectsConfig) -> float:
    """Return the threshold of the flag, else that with which inference wrote the volumes, else 0.5.

    Raises:
        DataError: the side-car's is no probability.
    """
    if config.threshold:
        return config.threshold
    value = (read_sidecar(f"{config.input}.fsem") or {}).get("threshold", _THRESHOLD)
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise DataError(
            f"{config.input}.json: threshold {value!r}, expected between 0 and 1; pass --threshold"
        )
    return float(value)


def _find(config: ObjectsConfig) -> tuple[str, list[str]]:
    """Return (format, names of the volumes) under the prefix: the first format that holds faults or times."""
    kinds = _SEARCH
    if config.format != "auto":
        require_format(config.format)
        kinds = (config.format,)
    for kind in kinds:
        found = [name for name in ("fsem", *_ANGLES, "rgt") if _has(config.input, name, kind)]
        if "fsem" in found or "rgt" in found:
            if found == ["fsem"]:
                raise DataError(
                    f"{config.input}: has fsem but no fdip, fstrike and rgt, expected fault angles or times; "
                    "run infer.py with a model that has them"
                )
            return kind, found
    names = " or ".join(str(output_path(config.input, "fsem", kind)) for kind in kinds)
    raise DataError(f"{names}: no such file, expected volumes under the prefix {config.input}; run infer.py")


def _has(prefix: str, name: str, kind: str) -> bool:
    path = output_path(prefix, name, kind)
    if kind != "h5" or not path.is_file():
        return path.is_file()
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return name in file
    except OSError as error:
        raise DataError(f"{path}: cannot be opened as HDF5 ({error}); write it again") from error


def _horizon_values(config: ObjectsConfig, found: list[str], origins: Mapping[str, str]) -> list[float]:
    values = list(config.rgt_values) or [float(v) for v in horizon_levels(config.horizons)]
    if values and "rgt" not in found:
        if "command line" in (origins.get("horizons"), origins.get("rgt_values")):
            raise UserError(f"{config.input}: no rgt, so no horizons; run infer.py with --rgt or do without")
        get_logger().info(f"{config.input}: no rgt, so no horizons")
        return []
    return values


def _open(config: ObjectsConfig, kind: str, name: str) -> Volume:
    shape = (config.n1, config.n2, config.n3) if kind == "raw" else (0, 0, 0)
    return open_volume(
        output_path(config.input, name, kind),
        shape,
        layout=config.layout,
        endian=config.endian,
        iline=config.iline,
        xline=config.xline,
        dataset=name,
    )


def _read(config: ObjectsConfig, kind: str, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a whole volume; NaN is left in it."""
    with _open(config, kind, name) as volume:
        if volume.shape != shape:
            raise DataError(
                f"{volume.path}: (n1, n2, n3) = {volume.shape}, expected {shape} as its sisters; "
                "take volumes of one run of infer.py"
            )
        out = np.empty(shape[::-1], dtype=np.float32).transpose(2, 1, 0)
        for x0, slab in volume.slabs():
            out[:, :, x0 : x0 + slab.shape[2]] = slab
    return out


def _write_faults(
    config: ObjectsConfig,
    kind: str,
    like: Volume,
    fsem: np.ndarray,
    geometry: SurveyGeometry,
    prefix: str,
    summary: dict[str, Any],
) -> None:
    """Find the faults, write tables, sticks and labels, and add them to `summary`."""
    fdip, fstrike = (_read(config, kind, name, like.shape) for name in _ANGLES)
    angles = angles_in_degrees(fsem, fdip, fstrike, config.angle_units, config.threshold)
    num_missing = int(angles.missing.sum())
    if num_missing:
        get_logger().info(
            f"{config.input}: {num_missing} voxels have fsem >= {config.threshold:g} but no angle, left out; "
            "infer.py writes angles from its --threshold on"
        )
    certain = np.where(angles.missing, 0, fsem)
    faults = find_faults(certain, angles.dip_deg, angles.strike_deg, config.threshold, config.min_size)
    files = write_fault_files(prefix, faults, fsem, angles.dip_deg, angles.strike_deg, geometry)
    label_path = _label_path(prefix, kind)
    labels = faults.volume(like.shape).astype(np.float32)
    write_volume(
        label_path,
        labels,
        like=like,
        attribute="faultid",
        units="fault number",
        model=f"objects of {like.path.name}",
        layout=config.layout,
    )
    if kind == "raw" and read_sidecar(label_path) is None:
        write_sidecar(prefix, like)
    summary["faults"] = fault_table(faults, fsem, geometry)
    summary["files"] += [*files, label_path]


def _label_path(prefix: str, kind: str) -> Path:
    """Return where the labels go; for HDF5 beside the file of the attributes, not over it."""
    return Path(f"{prefix}.faultid.h5") if kind == "h5" else output_path(prefix, "faultid", kind)


def _refuse_existing(prefix: str, kind: str, faults: bool, values: list[float], overwrite: bool) -> None:
    paths = [Path(f"{prefix}.{name}") for name in _TABLES] + [_label_path(prefix, kind)] if faults else []
    paths += [Path(f"{prefix}.horizon_{value:.4g}.xyz") for value in values]
    paths += [Path(f"{prefix}.horizons.csv")] if values else []
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists; add --overwrite or choose another --output")


def report(summary: dict[str, Any]) -> str:
    """Return what `make_objects` found as text, with the next command."""
    lines = [f"volumes: {summary['format']}, faults from a probability of {summary['threshold']:.3g}"]
    rows = summary["faults"]
    if rows:
        lines.append(f"faults: {len(rows)}" + (f", the largest {_SHOWN}:" if len(rows) > _SHOWN else ""))
        lines.append(
            "  fault    size  mean p    dip  strike  dips to  (degrees, from inline axis to crossline axis)"
        )
        lines += [
            f"  {row['fault_id']:5d} {row['size']:7d} {row['mean_p']:7.2f} {row['dip_deg']:6.1f} "
            f"{row['strike_deg']:7.1f} {row['dip_azimuth_deg']:8.1f}"
            for row in rows[:_SHOWN]
        ]
    elif summary["files"]:
        lines.append("faults: none; lower --threshold or --min_size")
    if summary["horizons"]:
        lines.append("horizons at rgt " + " ".join(f"{value:.4g}" for value in summary["horizons"]))
    lines += [f"wrote {path}" for path in summary["files"] if ".horizon_" not in Path(path).name]
    labels = [path for path in summary["files"] if ".faultid" in Path(path).name]
    if labels:
        dataset = " --dataset faultid" if summary["format"] == "h5" else ""
        lines.append(
            f"next: python scripts/fault_seg/convert.py --input {labels[0]}{dataset} --output "
            f"{output_path(summary['prefix'], 'faultid', 'vti')}"
        )
        lines.append("      (for ParaView; the .dat and .xyz files load in Petrel and OpendTect)")
    return "\n".join(lines)
