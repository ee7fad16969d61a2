"""Post-stack SEG-Y in and out: inlines become n3 (x), crosslines n2 (y), samples n1 (z)."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import DataError, UserError
from common.log import get_logger
from fault_seg.segy_format import (
    FILE_HEADER_BYTES,
    IBM,
    IEEE,
    SAMPLE_FORMATS,
    TEXT_BYTES,
    TRACE_HEADER_BYTES,
    SegyLayout,
    annotate_text,
    decode,
    encode_ibm,
    read_fields,
    read_layout,
    set_field,
)
from fault_seg.segy_geometry import Geometry, find_geometry, header_fields
from fault_seg.slabs import FileWriter, Volume

_DEAD = 2  # trace identification code (byte 29) of a dead trace


def open_segy(path: str | Path, *, iline: int = 189, xline: int = 193, endian: str = "auto") -> SegySurvey:
    """Open a post-stack SEG-Y file: IBM, IEEE, int32, int16 or int8, any byte and trace order.

    Args:
        path: the file.
        iline: first byte (from 1) of the inline number in the trace header.
        xline: first byte of the crossline number.
        endian: auto, big or little.

    Raises:
        UserError: a byte position or `endian` cannot be.
        DataError: the file is missing, empty, cut short, no SEG-Y, pre-stack, or holds a trace twice.
    """
    path = Path(path)
    wanted = header_fields(iline, xline)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}), expected a SEG-Y file") from error
    try:
        layout = read_layout(path, file, endian)
        fields = read_fields(file, layout, wanted)
        return SegySurvey(path, file, layout, find_geometry(path, fields, iline, xline), fields)
    except BaseException:
        file.close()
        raise


class SegySurvey(Volume):
    """An open SEG-Y file; `open_segy` makes it.

    Attributes:
        ilines: [n3] inline numbers; xlines: [n2] crossline numbers.
        dt_ms: sample interval in milliseconds, 0 when the headers do not tell.
        delay_ms: delay recording time (byte 109) of the traces that are not dead, which is the time of the
            first sample; the most common one where they differ.
        origin: (delay_ms, 0, 0).
        num_traces: traces in the file.
        trace_of: [n2, n3], which trace of the file lies there; -1 = missing.
        spacing: (dt_ms, crossline distance, inline distance), the distances in the units of the coordinates.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        layout: SegyLayout,
        geometry: Geometry,
        fields: dict[str, np.ndarray],
    ) -> None:
        self.file, self.layout, self.geometry = file, layout, geometry
        self.ilines, self.xlines = geometry.ilines, geometry.xlines
        self.dt_ms = layout.interval_us / 1000
        self.num_traces = layout.num_traces
        shape = (layout.num_samples, len(self.xlines), len(self.ilines))
        super().__init__(path, shape, format="segy")
        self.trace_of = np.full(shape[1:], -1, dtype=np.int64)
        self.trace_of[geometry.xl_index, geometry.il_index] = np.arange(self.num_traces)
        dead = fields["trace_id"] == _DEAD
        if dead.all():  # then the field says nothing
            dead = np.zeros_like(dead)
        self.num_dead = int(dead.sum())
        self.null[:] = self.trace_of < 0
        self.null[geometry.xl_index[dead], geometry.il_index[dead]] = True
        self.live[:] = ~self.null
        self._declared_dead = self.null.copy()
        self._scaled = {name: fields[name] for name in ("x", "y", "scalar")}
        self.spacing = self._spacing()
        self.delay_ms = self._delay(fields["delay"][~dead])
        self.origin = (self.delay_ms, 0.0, 0.0)

    def _delay(self, delays: np.ndarray) -> float:
        values, counts = np.unique(delays, return_counts=True)
        delay = float(values[counts.argmax()])
        if len(values) > 1:
            get_logger().info(
                f"{self.path}: {len(values)} delays at byte 109, {values[0]} to {values[-1]} ms; times are "
                f"told with {delay:g} ms, and samples keep their places"
            )
        return delay

    def _read(self, x0: int, x1: int) -> np.ndarray:
        traces = self.trace_of[:, x0:x1].T.ravel()
        out = np.zeros((len(traces), self.shape[0]), dtype=np.float32)
        wanted = np.flatnonzero(~self._declared_dead[:, x0:x1].T.ravel())
        wanted = wanted[np.argsort(traces[wanted], kind="stable")]
        traces = traces[wanted]
        begin = 0
        while begin < len(traces):
            end = int(np.searchsorted(traces, traces[begin] + self.layout.window))
            raw, cells = self._stored(traces[begin:end]), wanted[begin:end]
            if (np.diff(cells) == 1).all():
                decode(raw, self.layout.code, out[cells[0] : cells[-1] + 1])
            else:
                block = np.empty((len(cells), self.shape[0]), dtype=np.float32)
                decode(raw, self.layout.code, block)
                out[cells] = block
            begin = end
        return out.reshape(x1 - x0, self.shape[1], self.shape[0]).transpose(2, 1, 0)

    def _stored(self, traces: np.ndarray) -> np.ndarray:
        """Return the samples of `traces` (ascending) as they are stored, [T, n1]."""
        first, last = int(traces[0]), int(traces[-1])
        if 4 * len(traces) < last - first:  # far apart: a map would load the pages between them as well
            return self.layout.read_traces(self.file, traces)["samples"]
        mapped = self.layout.map_traces(self.file, first, last + 1)["samples"]
        return mapped if len(mapped) == len(traces) else mapped[traces - first]

    def headers(self, first: int, last: int) -> np.ndarray:
        """Return the headers of traces first..last (inclusive), [T, 240] bytes."""
        return self.layout.map_traces(self.file, first, last + 1)["header"].copy()

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return CDP x and y of each trace in file order, [num_traces] float64, scaled by byte 71."""
        scalar = self._scaled["scalar"].astype(np.float64)
        times, over = np.where(scalar > 0, scalar, 1.0), np.where(scalar < 0, -scalar, 1.0)
        return self._scaled["x"] * times / over, self._scaled["y"] * times / over

    def affine(self) -> np.ndarray:
        """Return the least-squares A, float64 [2, 3], with (x, y) = A (inline, crossline, 1).

        Raises:
            DataError: there are no coordinates, or the traces lie on one line of the grid.
        """
        matrix, rank = self._fit()
        if not matrix[:, :2].any():
            raise DataError(
                f"{self.path}: no coordinates at bytes 181 and 185, expected CDP x and y; "
                "write them into the trace headers, or do without --north"
            )
        if rank < 2:
            raise DataError(
                f"{self.path}: {len(self.ilines)} inlines x {len(self.xlines)} crosslines are a line, "
                "expected at least 2 of each; do without --north"
            )
        return matrix

    def _fit(self) -> tuple[np.ndarray, int]:
        """Return A of `affine` (smallest where a line leaves it open) and the rank of the numbering."""
        grid = self.geometry
        numbers = np.stack([grid.ilines[grid.il_index], grid.xlines[grid.xl_index]], axis=1).astype(
            np.float64
        )
        points = np.stack(self.coordinates(), axis=1)
        centre, origin = numbers.mean(axis=0), points.mean(axis=0)
        slope, _, rank, _ = np.linalg.lstsq(numbers - centre, points - origin, rcond=None)
        return np.column_stack([slope.T, origin - slope.T @ centre]), int(rank)

    def _spacing(self) -> tuple[float, float, float]:
        matrix, _ = self._fit()
        steps = [float(np.diff(a[:2])[0]) if len(a) > 1 else 0.0 for a in (self.xlines, self.ilines)]
        distances = [float(np.hypot(*matrix[:, i])) * step for i, step in ((1, steps[0]), (0, steps[1]))]
        known = [d for d in distances if d > 0] or [1.0]
        dy, dx = (d if d > 0 else known[0] for d in distances)
        return (self.dt_ms or 1.0, dy, dx)

    def info(self) -> dict[str, Any]:
        """Return the geometry as plain values for a print-out."""
        x, y = self.coordinates()
        n1, n2, n3 = self.shape
        along_inline = bool((np.diff(self.geometry.il_index) >= 0).all())
        along_xline = bool((np.diff(self.geometry.xl_index) >= 0).all())
        return {
            "file": str(self.path),
            "bytes": self.path.stat().st_size,
            "samples_stored_as": f"{SAMPLE_FORMATS[self.layout.code][1]}, {self.layout.endian} endian",
            "geometry_from": self.geometry.source,
            "n1 (samples)": n1,
            "n2 (crosslines)": n2,
            "n3 (inlines)": n3,
            "interval_ms": self.dt_ms,
            "first_sample_ms": self.delay_ms,
            "inlines": _span(self.ilines),
            "crosslines": _span(self.xlines),
            "sorted_by": "inline" if along_inline else "crossline" if along_xline else "neither",
            "traces": self.num_traces,
            "missing_traces": n2 * n3 - self.num_traces,
            "traces_declared_dead": self.num_dead,
            "x": [float(x.min()), float(x.max())],
            "y": [float(y.min()), float(y.max())],
            "crossline_distance": round(self.spacing[1], 3),
            "inline_distance": round(self.spacing[2], 3),
        }

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _span(numbers: np.ndarray) -> str:
    steps = np.unique(np.diff(numbers))
    step = f", step {steps[0]}" if len(steps) == 1 else ", uneven" if len(steps) else ""
    return f"{numbers[0]} to {numbers[-1]}{step}"


class SegyWriter(FileWriter):
    """Writes one attribute with the headers, trace order and trace count of the survey `like`.

    Samples are IEEE float32 (format code 5), or IBM floats (code 1). Of the trace headers only bytes 115
    (samples) and 117 (interval) change, to what is true. The last two free lines of the text header name
    attribute, units, model and date. Traces that `like` lacks stay missing, null ones become zero.

    Raises:
        UserError: `path` is `like` itself, a folder, or cannot be written.
        DataError: the disk is too small.
    """

    def __init__(
        self,
        path: str | Path,
        like: SegySurvey,
        attribute: str,
        units: str,
        model: str,
        *,
        ibm: bool = False,
    ) -> None:
        path = Path(path)
        if path.exists() and os.path.samestat(path.stat(), os.fstat(like.file.fileno())):
            raise UserError(f"{path}: is the survey itself; choose another --output")
        layout = like.layout
        self._like, self._code = like, IBM if ibm else IEEE
        header = ("header", "u1", (TRACE_HEADER_BYTES,))
        self._samples_dtype = np.dtype(layout.order + SAMPLE_FORMATS[self._code][0])
        self._dtype = np.dtype([header, ("samples", self._samples_dtype, (layout.num_samples,))])
        size = layout.first_trace_byte + layout.num_traces * self._dtype.itemsize
        self._names = attribute, units, model
        super().__init__(path, like.shape, needed_bytes=size)

    def _start(self, size: int) -> None:
        self._file.write(self._file_header(*self._names))
        self._file.truncate(size)

    def _file_header(self, attribute: str, units: str, model: str) -> bytes:
        layout, source = self._like.layout, self._like.file
        source.seek(0)
        head = np.frombuffer(source.read(layout.first_trace_byte), dtype="u1").copy()
        today = datetime.date.today().isoformat()
        notes = (f"attribute {attribute}, units {units}", f"model {model}, {today}")
        head[:TEXT_BYTES] = np.frombuffer(annotate_text(head[:TEXT_BYTES].tobytes(), notes), dtype="u1")
        binary = head[None, TEXT_BYTES:FILE_HEADER_BYTES]
        for byte, value in ((3225, self._code), (3221, layout.num_samples), (3217, layout.interval_us)):
            set_field(binary, byte - TEXT_BYTES, value, layout.order)
        return head.tobytes()

    def _put(self, x0: int, slab: np.ndarray) -> None:
        like, x1 = self._like, x0 + slab.shape[2]
        like.scan(x0, x1)  # all-zero traces stay null as well
        values = slab.transpose(2, 1, 0).reshape(-1, self.shape[0])
        null = like.null[:, x0:x1].T.ravel()
        traces = like.trace_of[:, x0:x1].T.ravel()
        cells = np.flatnonzero(traces >= 0)
        cells = cells[np.argsort(traces[cells], kind="stable")]
        for run in np.split(cells, np.flatnonzero(np.diff(traces[cells]) != 1) + 1):
            for start in range(0, len(run), like.layout.window):
                part = run[start : start + like.layout.window]
                self._put_run(int(traces[part[0]]), np.where(null[part, None], np.float32(0), values[part]))

    def _put_run(self, first: int, values: np.ndarray) -> None:
        """Write `values` [T, n1] as traces first, first + 1 ... of the file."""
        if len(values) == 0:
            return
        layout = self._like.layout
        records = np.empty(len(values), dtype=self._dtype)
        records["header"] = self._like.headers(first, first + len(values) - 1)
        set_field(records["header"], 115, layout.num_samples, layout.order)
        set_field(records["header"], 117, layout.interval_us, layout.order)
        records["samples"] = encode_ibm(values) if self._code == IBM else values
        self._file.seek(layout.first_trace_byte + first * self._dtype.itemsize)
        self._file.write(records.tobytes())
