"""Sections for other programs: SEG-Y, HDF5, CSV profiles."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path, write_text
from velocity_inversion.geometry import Survey


def write_segy(path: Path, vp: np.ndarray, survey: Survey) -> None:
    """Write [Z, X] (km/s) as SEG-Y, one trace an x, in m/s; dz in the sample interval, x (m) in CDP_X."""
    import segyio

    spec: Any = segyio.spec()
    spec.format, spec.samples = 5, np.arange(vp.shape[0]) * survey.dz_m
    spec.tracecount = vp.shape[1]
    with atomic_path(path) as temporary, segyio.create(str(temporary), spec) as file:
        for column in range(vp.shape[1]):
            file.header[column] = {
                segyio.TraceField.CDP: column + 1,
                segyio.TraceField.CDP_X: round(column * survey.dx_m),
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: round(survey.dz_m * 1000),
            }
            file.trace[column] = (1000 * vp[:, column]).astype(np.float32)
        file.bin.update(hdt=round(survey.dz_m * 1000))


def write_hdf5(path: Path, folder: Path, ids: Sequence[str], survey: Survey, coverage: float) -> None:
    """Gather the files of all samples into one HDF5 file with the places of cells.

    Arrays keep the axes and unit of the data set; both are attributes.
    """
    import h5py

    names = ("vp_pred", "vp_std", f"vp_halfwidth_{round(100 * coverage)}")
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            unit=survey.velocity_unit, axes=survey.model_file_axes, dx_m=survey.dx_m, dz_m=survey.dz_m
        )
        z, x = survey.model_shape_zx
        for axis, count, cell in (("x_m", x, survey.dx_m), ("z_m", z, survey.dz_m)):
            places = file.create_dataset(axis, data=np.arange(count) * cell)
            places.attrs["unit"] = "m"
        for sample in ids:
            for name in names:
                if (source := folder / sample / f"{name}.npy").exists():
                    values = np.load(source, allow_pickle=False)
                    made = file.create_dataset(f"{sample}/{name}", data=values, fletcher32=True, chunks=True)
                    made.attrs["unit"] = survey.velocity_unit
                    made.attrs["axes"] = [f"{axis}_m" for axis in survey.model_file_axes]


def write_profiles(
    path: Path, vp: np.ndarray, half_width: np.ndarray, survey: Survey, places_m: Sequence[float]
) -> None:
    """Write depth profiles at some x: depth_m, then vp and half-width (km/s) of each place."""
    columns = [min(max(round(x / survey.dx_m), 0), vp.shape[1] - 1) for x in places_m]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["depth_m", *(f"{n}_{x:g}m" for x in places_m for n in ("vp", "halfwidth"))])
    for z in range(vp.shape[0]):
        values = [f"{m[z, c]:.4f}" for c in columns for m in (vp, half_width)]
        writer.writerow([f"{z * survey.dz_m:g}", *values])
    write_text(path, text.getvalue())
