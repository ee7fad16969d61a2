"""Writers of one volume to exactly one file, in any format, and with integer samples in SEG-Y and npy."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError, UserError
from fault_seg.segy import SegySurvey, SegyWriter
from fault_seg.segy_format import SAMPLE_FORMATS, TRACE_HEADER_BYTES
from fault_seg.slabs import FileWriter, Volume, VolumeWriter
from fault_seg.volume_writers import BinaryWriter, H5Store, H5Writer, MhdWriter, npy_writer, vti_writer

_SEGY_CODES = {"int16": 3, "int8": 8}
_NAME = "volume"  # of the array, in formats that name it


@dataclass(frozen=True)
class Encoding:
    """How amplitudes become stored samples: amplitude / scale, rounded for integers; or IBM floats."""

    dtype: str = "float32"
    scale: float = 1.0
    ibm: bool = False

    def stored(self, slab: np.ndarray) -> np.ndarray:
        """Return whole numbers, as float32, that fit the integer type."""
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(slab / np.float32(self.scale)), limits.min, limits.max)


def choose_encoding(volume: Volume, dtype: str, ibm: bool) -> Encoding:
    """Return how to store `volume`; for integers and IBM floats it is read once.

    Whole numbers that fit the integer type are stored as they are. Others are scaled so that the largest
    amplitude takes the largest number.

    Raises:
        DataError: a sample is NaN or infinite, which only IEEE floats can hold.
    """
    if dtype == "float32" and not ibm:
        return Encoding()
    lowest, highest, whole = 0.0, 0.0, True
    for x0, slab in volume.slabs():
        if not np.isfinite(slab).all():
            x, y, z = (int(i[0]) for i in np.nonzero(~np.isfinite(slab).transpose(2, 1, 0)))
            raise DataError(
                f"{volume.path}: {slab[z, y, x]} at sample {z}, crossline {y}, inline {x0 + x} (from 0), "
                "expected finite values for --ibm and integers; write IEEE float32"
            )
        lowest, highest = min(lowest, float(slab.min())), max(highest, float(slab.max()))
        whole = whole and bool((slab == np.rint(slab)).all())
    if ibm:
        return Encoding(ibm=True)
    limits = np.iinfo(dtype)
    if whole and limits.min <= lowest and highest <= limits.max:
        return Encoding(dtype)
    return Encoding(dtype, max(-lowest, highest) / limits.max)


class IntegerSegyWriter(SegyWriter):
    """Writes SEG-Y as `SegyWriter` does, with int16 (format code 3) or int8 (8) samples."""

    def __init__(
        self, path: Path, like: SegySurvey, attribute: str, units: str, model: str, encoding: Encoding
    ) -> None:
        self._encoding = encoding
        super().__init__(path, like, attribute, units, model)

    def _start(self, size: int) -> None:
        layout = self._like.layout
        self._code = _SEGY_CODES[self._encoding.dtype]
        samples = np.dtype(layout.order + SAMPLE_FORMATS[self._code][0])
        header = ("header", "u1", (TRACE_HEADER_BYTES,))
        self._dtype = np.dtype([header, ("samples", samples, (layout.num_samples,))])
        super()._start(layout.first_trace_byte + layout.num_traces * self._dtype.itemsize)

    def _put(self, x0: int, slab: np.ndarray) -> None:
        super()._put(x0, self._encoding.stored(slab))


class IntegerNpyWriter(FileWriter):
    """Writes an int16 or int8 npy file [n1, n2, n3] in Fortran order, or [n3, n2, n1] in C order (ixz)."""

    def __init__(self, path: Path, shape: tuple[int, int, int], layout: str, encoding: Encoding) -> None:
        head, ixz = io.BytesIO(), layout == "ixz"
        self._dtype, self._encoding = np.dtype(encoding.dtype).newbyteorder("<"), encoding
        stored = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": not ixz}
        np.lib.format.write_array_header_1_0(head, {**stored, "shape": shape[::-1] if ixz else shape})
        self._head = head.getvalue()
        super().__init__(path, shape, needed_bytes=len(self._head) + self._dtype.itemsize * math.prod(shape))

    def _start(self, size: int) -> None:
        self._file.write(self._head)
        self._file.truncate(size)

    def _put(self, x0: int, slab: np.ndarray) -> None:
        self._file.seek(len(self._head) + self._dtype.itemsize * x0 * self.shape[0] * self.shape[1])
        self._file.write(self._encoding.stored(slab).transpose(2, 1, 0).astype(self._dtype).tobytes())


def open_file_writer(
    path: Path,
    kind: str,
    like: Volume,
    encoding: Encoding,
    *,
    source: str = "",
    layout: str = "zyx",
) -> VolumeWriter:
    """Open the writer of `path` in the format `kind`, with shape, spacing, origin and headers of `like`.

    Args:
        path: the file.
        kind: one of `fault_seg.volumes.FORMATS`.
        like: the geometry; an open SEG-Y survey where SEG-Y is written.
        encoding: how samples are stored.
        source: where the samples come from, for the SEG-Y text header.
        layout: axes of npy and HDF5 arrays.

    Raises:
        UserError: the path cannot be written, SEG-Y is asked for without a survey, or the format holds
            float32 only.
        DataError: the disk is too small.
    """
    integers = encoding.dtype != "float32"
    if kind == "segy":
        return _segy_writer(path, like, encoding, source)
    if encoding.ibm:
        raise UserError(f"--ibm: {path} is {kind}, expected SEG-Y; do without --ibm")
    if kind == "npy":
        if integers:
            return IntegerNpyWriter(path, like.shape, layout, encoding)
        return npy_writer(path, like.shape, layout)
    if integers:
        raise UserError(f"--dtype {encoding.dtype}: {path} is {kind}, expected SEG-Y or npy; use float32")
    if kind == "h5":
        attributes = {"spacing": like.spacing, "origin": like.origin, "layout": layout}
        store = H5Store(path, like.shape, [_NAME], layout, attributes)
        return H5Writer(store, _NAME, "")
    if kind == "mhd":
        return MhdWriter(path, like.shape, like.spacing, like.origin)
    if kind == "vti":
        return vti_writer(path, like.shape, like.spacing, like.origin, _NAME)
    return BinaryWriter(path, like.shape)


def _segy_writer(path: Path, like: Volume, encoding: Encoding, source: str) -> VolumeWriter:
    """Return the SEG-Y writer of `open_file_writer`."""
    if not isinstance(like, SegySurvey):
        raise UserError(
            f"{path}: SEG-Y needs the headers of a survey, {like.path} is {like.format or 'none'}; "
            "pass --like survey.sgy or another --format"
        )
    units = f"as {source}" if encoding.scale == 1 else f"stored x {encoding.scale:.6g}"
    model = f"none, converted from {source}"
    if encoding.dtype != "float32":
        return IntegerSegyWriter(path, like, _NAME, units, model, encoding)
    return SegyWriter(path, like, _NAME, units, model, ibm=encoding.ibm)
