"""Writers of fault tables, fault sticks and horizons: CSV, and plain text for interpretation software."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import write_text
from fault_seg.metrics_fault import Array
from fault_seg.objects import (
    FaultVoxels,
    SurveyGeometry,
    fault_points,
    fault_sticks,
    fault_table,
    horizon_columns,
    horizon_surface,
)

FAULT_COLUMNS = (
    *("fault_id", "size", "mean_p", "max_p", "dip_deg", "strike_deg", "dip_azimuth_deg"),
    *("centre_inline", "centre_crossline", "centre_x", "centre_y", "centre_sample", "centre_z"),
    *("inline_min", "inline_max", "crossline_min", "crossline_max", "z_min", "z_max"),
)


def _format_of(column: NDArray[np.integer] | NDArray[np.floating]) -> str:
    """Return the number format of a column: whole numbers as they are, others with 9 digits."""
    return "%d" if np.issubdtype(np.asarray(column).dtype, np.integer) else "%.9g"


def write_columns(
    path: str | Path,
    columns: Mapping[str, NDArray[np.integer] | NDArray[np.floating]],
    separator: str = ",",
    header: bool = True,
) -> None:
    """Write equally long columns as text, atomically; NaN is written as `nan`."""
    buffer = io.StringIO()
    if header:
        buffer.write(separator.join(columns) + "\n")
    formats = [_format_of(c) for c in columns.values()]
    table = np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], axis=1)
    np.savetxt(buffer, table, fmt=formats, delimiter=separator)
    write_text(path, buffer.getvalue())


def write_fault_files(
    prefix: str | Path,
    faults: FaultVoxels,
    fsem: Array,
    dip_deg: Array,
    strike_deg: Array,
    geometry: SurveyGeometry,
) -> list[Path]:
    """Write the tables and sticks of the faults and return the paths.

    They are `<prefix>.faults.csv`, `.fault_points.csv`, `.fault_sticks.csv`, `.fault_sticks.dat`.
    The `.dat` file holds `x y z stick_id` a line, without a header.
    """
    rows = fault_table(faults, fsem, geometry)
    table = {name: np.array([row[name] for row in rows]) for name in FAULT_COLUMNS}
    sticks = fault_sticks(faults, geometry)
    names = ("faults.csv", "fault_points.csv", "fault_sticks.csv", "fault_sticks.dat")
    paths = [Path(f"{prefix}.{name}") for name in names]
    write_columns(paths[0], table)
    write_columns(paths[1], fault_points(faults, fsem, dip_deg, strike_deg, geometry))
    write_columns(paths[2], sticks)
    dat = {name: sticks[name] for name in ("x", "y", "z", "stick_id")}
    write_columns(paths[3], dat, separator=" ", header=False)
    return paths


def write_horizon_files(
    prefix: str | Path,
    rgt: Array,
    values: Sequence[float],
    geometry: SurveyGeometry,
    fault: NDArray[np.bool_] | None = None,
) -> list[Path]:
    """Write `<prefix>.horizon_{value}.xyz` for each rgt, and `<prefix>.horizons.csv`; return the paths.

    Lines hold inline, crossline, x, y, z of each trace, z in the unit of the geometry, `nan` where the
    surface is cut by a fault or missing; the CSV has the value in front.
    """
    geometry.check(rgt, "rgt")
    paths, tables = [], []
    for value in values:
        columns = horizon_columns(horizon_surface(rgt, value, fault), geometry)
        paths.append(Path(f"{prefix}.horizon_{value:.4g}.xyz"))
        write_columns(paths[-1], columns, separator=" ", header=False)
        tables.append({"rgt": np.full(len(columns["z"]), value), **columns})
    together = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]} if tables else {}
    if together:
        paths.append(Path(f"{prefix}.horizons.csv"))
        write_columns(paths[-1], together)
    return paths
