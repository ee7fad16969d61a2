"""Volumes in any format behind one protocol: `open_volume`, `open_writers`, and whole-volume short cuts.

Axes are (n1, n2, n3) = (z samples, y crosslines, x inlines) everywhere; see `fault_seg.slabs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.files import write_json
from common.log import get_logger
from fault_seg.segy import SegySurvey, SegyWriter, open_segy
from fault_seg.slabs import Volume, VolumeWriter
from fault_seg.volume_readers import H5Volume, open_image, open_npy, open_raw, require_layout
from fault_seg.volume_writers import (
    BinaryWriter,
    H5Store,
    H5Writer,
    MhdWriter,
    npy_writer,
    vti_writer,
)

Shape = tuple[int, int, int]
FORMATS = ("raw", "npy", "segy", "h5", "mhd", "vti")
_SUFFIXES = {
    ".sgy": "segy",
    ".segy": "segy",
    ".npy": "npy",
    ".h5": "h5",
    ".hdf5": "h5",
    ".mhd": "mhd",
    ".mha": "mhd",
    ".vti": "vti",
    ".bin": "raw",
    ".dat": "raw",
    ".raw": "raw",
    "": "raw",
    **{f".{name}": "raw" for name in ("fsem", "fdip", "fstrike", "rgt", "dhr", "fstd", "fgap", "faultid")},
}
_ENDINGS = {"raw": "", "npy": ".npy", "segy": ".sgy", "mhd": ".mhd", "vti": ".vti"}


def format_of(path: str | Path) -> str | None:
    """Return which of `FORMATS` the suffix of `path` stands for, None for a suffix that is not known."""
    return _SUFFIXES.get(Path(path).suffix.lower())


def open_volume(
    path: str | Path,
    shape: Shape = (0, 0, 0),
    *,
    layout: str = "zyx",
    endian: str = "auto",
    iline: int = 189,
    xline: int = 193,
    dataset: str = "volume",
) -> Volume:
    """Open a volume of any format; the suffix tells which, none or an unknown one means raw float32.

    Args:
        path: the file.
        shape: (n1, n2, n3), 0 = from the header. Raw files take it from here or from their side-car.
        layout: axes of npy and HDF5 arrays: zyx (n1, n2, n3) or ixz (inline, crossline, sample).
        endian: byte order of raw (auto = little) and SEG-Y files.
        iline: byte of the inline number in SEG-Y trace headers.
        xline: byte of the crossline number.
        dataset: name of the array in an HDF5 file.

    Raises:
        UserError: a flag has an impossible value, or a raw file comes without sizes.
        DataError: the file is missing or damaged, or its sizes are not `shape`.
    """
    path = Path(path)
    kind = _require_openable(path, shape, layout, endian)
    if kind in (None, "raw"):
        return _open_raw(path, shape, endian)
    if kind == "segy":
        volume: Volume = open_segy(path, iline=iline, xline=xline, endian=endian)
    elif kind == "npy":
        volume = open_npy(path, layout)
    elif kind == "h5":
        volume = H5Volume(path, dataset, layout)
    else:
        volume = open_image(path, str(kind))
    if any(n and n != found for n, found in zip(shape, volume.shape, strict=True)):
        volume.close()
        own = " ".join(f"--n{i} {n}" for i, n in enumerate(volume.shape, 1))
        raise DataError(
            f"{path}: (n1, n2, n3) = {volume.shape}, expected {shape} by --n1 --n2 --n3 or the preset; "
            f"give {own}"
        )
    return volume


def _require_openable(path: Path, shape: Shape, layout: str, endian: str) -> str | None:
    """Return `format_of` the path after the checks that need no look into the file."""
    require_layout(layout)
    if endian not in ("auto", "big", "little"):
        raise UserError(f"--endian {endian}: expected auto, big or little")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a volume; name a file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file, expected a volume (SEG-Y, npy, h5, mhd, vti or raw float32)")
    kind = format_of(path)
    if kind is None and not all(shape):
        known = " ".join(suffix for suffix in _SUFFIXES if suffix)
        raise UserError(
            f"{path}: unknown suffix, expected one of {known}; or raw float32 with --n1 --n2 --n3"
        )
    return kind


def _open_raw(path: Path, shape: Shape, endian: str) -> Volume:
    side: dict[str, Any] = {}
    if not all(shape):
        side = read_sidecar(path) or {}
        shape = tuple(n or side.get(f"n{i}", 0) for i, n in enumerate(shape, 1))  # type: ignore[assignment]
    if any(n < 0 for n in shape) or not all(shape):
        size = path.stat().st_size
        raise UserError(
            f"{path}: (n1, n2, n3) = {shape} for a raw file of {size} bytes, expected three positive sizes; "
            "pass --n1 --n2 --n3"
        )
    places = (
        tuple(side.get(name, default)) for name, default in (("spacing", (1.0,) * 3), ("origin", (0.0,) * 3))
    )
    return open_raw(path, shape, endian, *places)


def sidecar_path(prefix: str | Path) -> Path:
    """Return the JSON file that describes the raw volumes `<prefix>.fsem` and so on."""
    return Path(f"{prefix}.json")


def write_sidecar(prefix: str | Path, like: Volume, **more: Any) -> None:
    """Write sizes, order and spacing of the raw volumes under `prefix`, and whatever `more` holds."""
    n1, n2, n3 = like.shape
    order = "n1 (z) fastest, then n2 (y), then n3 (x)"
    sizes = {"n1": n1, "n2": n2, "n3": n3, "order": order, "dtype": "float32", "endian": "little"}
    write_json(
        sidecar_path(prefix), {**sizes, "spacing": list(like.spacing), "origin": list(like.origin), **more}
    )


def read_sidecar(path: str | Path) -> dict[str, Any] | None:
    """Return the side-car of a raw volume (`a.json` beside `a.fsem`, or `a.fsem.json`), None without one.

    Raises:
        DataError: it is damaged or its sizes are no positive integers.
    """
    path = Path(path)
    for candidate in (Path(f"{path}.json"), path.with_suffix(".json")):
        if not candidate.is_file() or candidate == path:
            continue
        try:
            side = json.loads(candidate.read_text(encoding="utf-8"))
            sizes = [side[f"n{i}"] for i in (1, 2, 3)]
            spacing = [float(d) for d in side.get("spacing", (1, 1, 1))]
            origin = [float(d) for d in side.get("origin", (0, 0, 0))]
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise DataError(
                f"{candidate}: no side-car of a raw volume ({error}), expected n1, n2 and n3; "
                "delete it and pass --n1 --n2 --n3"
            ) from error
        if any(type(n) is not int or n < 1 for n in sizes) or len(spacing) != 3 or len(origin) != 3:
            raise DataError(
                f"{candidate}: sizes {sizes}, expected three positive integers; mend or delete it"
            )
        return side
    return None


def output_path(prefix: str | Path, attribute: str, format: str) -> Path:  # noqa: A002
    """Return the file that holds `attribute`: `<prefix>.fsem`, `<prefix>.fsem.sgy` ..., or `<prefix>.h5`."""
    require_format(format)
    return Path(f"{prefix}.h5" if format == "h5" else f"{prefix}.{attribute}{_ENDINGS[format]}")


def require_format(format: str) -> None:  # noqa: A002
    """Raise UserError unless `format` is one of `FORMATS`."""
    if format == "vgi":
        raise UserError("--format vgi: not written; use --format mhd or vti, which ParaView opens")
    if format not in FORMATS:
        raise UserError(f"--format {format}: expected one of {', '.join(FORMATS)}")


def open_writers(
    prefix: str | Path,
    units: Mapping[str, str],
    format: str,  # noqa: A002
    like: Volume,
    *,
    model: str = "",
    layout: str = "zyx",
    ibm: bool = False,
) -> dict[str, VolumeWriter]:
    """Open one writer an attribute, all of the shape and spacing of `like`.

    Args:
        prefix: output prefix; `output_path` makes the names.
        units: attribute -> its units, say {"fsem": "probability", "fdip": "degrees"}.
        format: one of `FORMATS`; h5 puts all attributes into one file, which appears when the last is closed.
        like: gives shape, spacing, origin, and for SEG-Y all headers.
        model: what made the volumes, for headers that can tell.
        layout: axes of npy and HDF5 arrays.
        ibm: write IBM floats into SEG-Y.

    Raises:
        UserError: the format is unknown, the path cannot be written, or SEG-Y is asked for without a survey.
        DataError: the disk is too small.
    """
    require_format(format)
    require_layout(layout)
    if format == "h5":
        attributes = {"model": model, "spacing": like.spacing, "origin": like.origin, "layout": layout}
        store = H5Store(output_path(prefix, "", "h5"), like.shape, list(units), layout, attributes)
        return {name: H5Writer(store, name, unit) for name, unit in units.items()}
    writers: dict[str, VolumeWriter] = {}
    try:
        for name, unit in units.items():
            path = output_path(prefix, name, format)
            writers[name] = _file_writer(path, name, unit, format, like, model, layout, ibm)
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    return writers


def _file_writer(
    path: Path, attribute: str, units: str, kind: str, like: Volume, model: str, layout: str, ibm: bool
) -> VolumeWriter:
    if kind == "segy":
        if not isinstance(like, SegySurvey):
            raise UserError(
                f"{path}: SEG-Y needs the headers of a survey, {like.path} is {like.format or 'none'}; "
                "pass --like survey.sgy or another --format"
            )
        return SegyWriter(path, like, attribute, units, model, ibm=ibm)
    if kind == "npy":
        return npy_writer(path, like.shape, layout)
    if kind == "mhd":
        return MhdWriter(path, like.shape, like.spacing, like.origin)
    if kind == "vti":
        return vti_writer(path, like.shape, like.spacing, like.origin, attribute)
    return BinaryWriter(path, like.shape)


def read_volume(path: str | Path, shape: Shape = (0, 0, 0), **settings: Any) -> np.ndarray:
    """Return a whole volume, float32 [n1, n2, n3], n1 fastest in memory; arguments as for `open_volume`."""
    with open_volume(path, shape, **settings) as volume:
        n1, n2, n3 = volume.shape
        out = np.empty((n3, n2, n1), dtype=np.float32).transpose(2, 1, 0)
        for x0, slab in volume.slabs():
            out[:, :, x0 : x0 + slab.shape[2]] = slab
    return out


def write_volume(
    path: str | Path,
    array: np.ndarray,
    *,
    like: Volume | None = None,
    attribute: str = "volume",
    units: str = "",
    model: str = "",
    layout: str = "zyx",
    ibm: bool = False,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write `array` [n1, n2, n3] to exactly `path`, in the format of its suffix.

    `like` gives spacing, origin and SEG-Y headers; without it they come from `spacing` and `origin`.

    Raises:
        UserError: the path cannot be written, its suffix is unknown, or SEG-Y is asked for without a survey.
        DataError: `array` has another shape than `like`, or the disk is too small.
    """
    path = Path(path)
    require_layout(layout)
    kind = format_of(path)
    if kind is None:
        raise UserError(f"{path}: unknown suffix, expected one of {' '.join(s for s in _SUFFIXES if s)}")
    if array.ndim != 3 or (like is not None and array.shape != like.shape):
        expected = like.shape if like is not None else "(n1, n2, n3)"
        raise DataError(f"{path}: array of shape {array.shape}, expected {expected}; pass a matching --like")
    if like is None:
        like = Volume(path, array.shape, format="", spacing=spacing, origin=origin)
    if kind == "h5":
        attributes = {"model": model, "spacing": like.spacing, "origin": like.origin, "layout": layout}
        store = H5Store(path, like.shape, [attribute], layout, attributes)
        writer: VolumeWriter = H5Writer(store, attribute, units)
    else:
        writer = _file_writer(path, attribute, units, kind, like, model, layout, ibm)
    with writer:
        for x0, x1 in like.ranges():
            writer.write(x0, array[:, :, x0:x1])


def check_finite(volume: Volume, allow_nan: bool = False) -> int:
    """Read the whole volume and return how many of its voxels are NaN (0 unless `allow_nan`).

    Afterwards `null` and `live` are complete.

    Raises:
        DataError: a voxel is infinite, or NaN and that is not allowed; the message names the first one.
    """
    num_nan = 0
    for x0, slab in volume.slabs():
        good = np.isfinite(slab)
        if good.all():
            continue
        nan = np.isnan(slab)
        num_nan += int(nan.sum())
        bad = ~(good | nan) if allow_nan else ~good
        if bad.any():
            x, y, z = (int(i[0]) for i in np.nonzero(bad.transpose(2, 1, 0)))
            hint = "replace it" if allow_nan else "replace it, or pass --allow_nan to take NaN as no data"
            raise DataError(
                f"{volume.path}: {slab[z, y, x]} at sample {z}, crossline {y}, inline {x0 + x} (from 0), "
                f"expected finite values; {hint}"
            )
    return num_nan


def require_live(volume: Volume) -> int:
    """Return how many traces of `volume` carry no signal; what was not read yet is read.

    From then on they are null: nothing is inferred from a constant trace, and nothing is written there.

    Raises:
        DataError: all of them do: the volume is zero or constant along every trace.
    """
    volume.scan()
    num_silent = int(volume.live.size - volume.live.sum())
    if num_silent == volume.live.size:
        raise DataError(
            f"{volume.path}: all {num_silent} traces are zero or constant, expected seismic data; "
            "check the file, and --endian and --n1 --n2 --n3 of a raw one"
        )
    if num_silent:
        get_logger().info(
            f"{volume.path}: {num_silent} of {volume.live.size} traces missing, zero or constant, left out"
        )
        volume.null |= ~volume.live
    return num_silent
