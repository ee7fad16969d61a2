"""Shot gathers of a SEG-Y file: one gather a field record, places from the headers, as a sample on disk.

Letters: S shots, T time samples, R receivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import atomic_path, make_folder, write_json
from common.log import get_logger
from velocity_inversion.config_data import PrepConfig
from velocity_inversion.geometry import FILE_NAME, Survey, Wavelet

# name -> first byte of the trace header's field
FIELDS = {
    "record": 9,
    "receiver_elevation": 41,
    "source_elevation": 45,
    "source_depth": 49,
    "scalar_z": 69,
    "scalar_xy": 71,
    "source_x": 73,
    "group_x": 81,
    "count": 115,
    "interval_us": 117,
}
MAX_SAMPLES = 1 << 31  # values of one file


@dataclass(frozen=True)
class Shots:
    """What a file holds.

    Attributes:
        gathers: S arrays [T, R] float32; R may differ between shots.
        source_xz: [S, 2] m, z downwards.
        receiver_xz: S arrays [R, 2] m, in the order of the traces, ascending x.
        dt_s: sample interval.
    """

    gathers: list[np.ndarray]
    source_xz: np.ndarray
    receiver_xz: list[np.ndarray]
    dt_s: float


def scaled(values: np.ndarray, scalar: np.ndarray) -> np.ndarray:
    """Return coordinates with the scalar of SEG-Y: positive multiplies, negative divides, 0 is 1."""
    scalar = scalar.astype(np.float64)
    factor = np.where(scalar > 0, scalar, np.where(scalar < 0, -1 / np.minimum(scalar, -1), 1.0))
    return values * factor


def read_shots(path: str | Path) -> Shots:
    """Read a pre-stack SEG-Y file; shots are ordered by x, receivers of a shot too.

    z of a source is its depth below the surface less the surface's elevation, z of a receiver minus its
    elevation.

    Raises:
        DataError: no SEG-Y file, without an interval, or with several places of a source in one record.
    """
    path = Path(path)
    traces, fields = _read(path)
    dt_s = float(np.median(fields["interval_us"])) / 1e6
    if dt_s <= 0:
        raise DataError(f"{path}: no sample interval in the headers (bytes 117, 3217), expected microseconds")
    source_x = scaled(fields["source_x"], fields["scalar_xy"])
    group_x = scaled(fields["group_x"], fields["scalar_xy"])
    depth, elevation, other = (
        scaled(fields[name], fields["scalar_z"])
        for name in ("source_depth", "source_elevation", "receiver_elevation")
    )
    gathers, sources, receivers = [], [], []
    for record in np.unique(fields["record"]):
        mine = np.flatnonzero(fields["record"] == record)
        places = np.unique(np.stack([source_x[mine], depth[mine] - elevation[mine]], 1), axis=0)
        if len(places) != 1:
            raise DataError(
                f"{path}: field record {record} has sources at {len(places)} places, expected one a record; "
                "check bytes 9 (record) and 73 (source x)"
            )
        mine = mine[np.argsort(group_x[mine], kind="stable")]
        gathers.append(np.ascontiguousarray(traces[mine].T))
        sources.append(places[0])
        receivers.append(np.stack([group_x[mine], -other[mine]], 1))
    order = np.argsort([place[0] for place in sources], kind="stable")
    return Shots([gathers[i] for i in order], np.array(sources)[order], [receivers[i] for i in order], dt_s)


def _read(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (traces [N, T], header fields [N])."""
    import segyio

    if not path.is_file():
        raise DataError(f"{path}: no such file, expected SEG-Y")
    reason = "not SEG-Y"
    for endian in ("big", "little"):
        try:
            with segyio.open(str(path), ignore_geometry=True, strict=False, endian=endian) as file:
                samples: Any = file.samples
                if file.tracecount * len(samples) > MAX_SAMPLES:
                    raise DataError(f"{path}: more than {MAX_SAMPLES} values, expected the shots of one line")
                fields = {name: np.array(file.attributes(byte)[:]) for name, byte in FIELDS.items()}
                if not fields["interval_us"].any():
                    fields["interval_us"][:] = file.bin[segyio.BinField.Interval]
                traces = np.array(file.trace.raw[:], dtype=np.float32)
            if traces.size and np.isfinite(traces).all():
                return traces, fields
            reason = f"{int((~np.isfinite(traces)).sum())} values NaN or infinite"
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
    raise DataError(f"{path}: {reason}, expected a whole pre-stack SEG-Y file; export it again")


def import_shots(config: PrepConfig, out: Path) -> Survey:
    """Write each SEG-Y file as one sample folder below `out`, with the geometry.json that all share.

    Returns:
        the survey.

    Raises:
        DataError: a file cannot be read, or files differ in geometry.
    """
    survey = None
    for name in config.segy:
        shots = read_shots(name)
        found = survey_of(shots, config, name)
        if survey is not None and found != survey:
            raise DataError(
                f"{name}: another geometry than {config.segy[0]}; import it into a folder of its own"
            )
        survey = found
        folder = make_folder(out / Path(name).stem)
        for gather, file in zip(shots.gathers, survey.source_files, strict=True):
            with atomic_path(folder / file) as path, path.open("wb") as stream:
                np.save(stream, gather)
        get_logger().info(f"{name}: {len(shots.gathers)} shots, {shots.gathers[0].shape} -> {folder}")
    assert survey is not None
    write_json(out / FILE_NAME, survey.to_dict())
    return survey


def survey_of(shots: Shots, config: PrepConfig, name: str) -> Survey:
    """Return the survey of a file's shots on the section that the flags describe.

    Raises:
        DataError: shots or receivers do not stand on the section.
    """
    lowest = min(float(shots.source_xz[:, 0].min()), *(float(r[:, 0].min()) for r in shots.receiver_xz))
    origin = lowest if config.x0_m == "auto" else float(config.x0_m)
    try:
        return Survey(
            layout="folders",
            dt_s=shots.dt_s,
            num_samples=len(shots.gathers[0]),
            dx_m=config.dx_m,
            dz_m=config.dx_m,
            model_shape_zx=(config.model_shape_zx[0], config.model_shape_zx[1]),
            source_xz=tuple((float(x) - origin, float(z)) for x, z in shots.source_xz),
            receiver_xz=tuple(
                tuple((float(x) - origin, float(z)) for x, z in places) for places in shots.receiver_xz
            ),
            velocity_unit="km/s",
            source_files=tuple(f"receiver_data_src_{i + 1}.npy" for i in range(len(shots.gathers))),
            wavelet=Wavelet(config.peak_hz, 1.1 / config.peak_hz, 1.0, 0),
        )
    except ValueError as error:
        raise DataError(
            f"{name}: {error}; set --model_shape_zx, --dx_m, --x0_m, or correct the headers"
        ) from error
