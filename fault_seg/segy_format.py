"""The bytes of a SEG-Y file: layout, sample encodings, trace header fields, text header.

SEG-Y revision 1 (SEG Technical Standards Committee, 2002). Byte positions count from 1, as in the standard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import DataError, UserError
from fault_seg.slabs import WINDOW_BYTES

TEXT_BYTES, FILE_HEADER_BYTES, TRACE_HEADER_BYTES = 3200, 3600, 240
IBM, IEEE = 1, 5
# Code at bytes 3225-3226 -> (type of one stored sample, name).
SAMPLE_FORMATS = {
    IBM: ("u4", "IBM float"),
    2: ("i4", "int32"),
    3: ("i2", "int16"),
    IEEE: ("f4", "IEEE float32"),
    8: ("i1", "int8"),
}
_ENDIANS = {"big": ">", "little": "<"}
# An IBM sample is (-1)^s * 16^(e - 64) * f / 2^24: s and e are its first byte, f the other three.
_IBM_SCALE = np.clip(
    np.where(np.arange(256) > 127, -1.0, 1.0) * 2.0 ** (4.0 * ((np.arange(256) & 127) - 70)),
    -(2.0**127),
    2.0**127,
).astype(np.float32)


@dataclass(frozen=True)
class SegyLayout:
    """Where the traces of a file lie and how their samples are stored."""

    endian: str
    code: int
    num_samples: int
    interval_us: int
    first_trace_byte: int
    num_traces: int

    @property
    def order(self) -> str:
        """NumPy's sign for the byte order."""
        return _ENDIANS[self.endian]

    @property
    def sample_dtype(self) -> np.dtype:
        """Type of a stored sample (the 32 bits of an IBM float are u4)."""
        return np.dtype(self.order + SAMPLE_FORMATS[self.code][0])

    @property
    def trace_dtype(self) -> np.dtype:
        """Type of a whole trace: `header` [240] bytes and `samples` [num_samples]."""
        header = ("header", "u1", (TRACE_HEADER_BYTES,))
        return np.dtype([header, ("samples", self.sample_dtype, (self.num_samples,))])

    def map_traces(self, file: BinaryIO, start: int, stop: int) -> np.ndarray:
        """Map traces start:stop of `file` read-only: records of `trace_dtype`, shape [stop - start]."""
        dtype = self.trace_dtype
        offset = self.first_trace_byte + start * dtype.itemsize
        mapped = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(stop - start,))
        return mapped.view(np.ndarray)

    def read_traces(self, file: BinaryIO, traces: np.ndarray) -> np.ndarray:
        """Read single traces, records of `trace_dtype`, shape [len(traces)].

        Raises:
            OSError: the file ends before one of them.
        """
        records = np.empty(len(traces), dtype=self.trace_dtype)
        size = records.itemsize
        rows: Any = records.view(np.uint8).reshape(len(traces), size)
        for row, trace in zip(rows, traces.tolist(), strict=True):
            if os.preadv(file.fileno(), [row], self.first_trace_byte + trace * size) != size:
                raise OSError(f"trace {trace + 1} is cut short")
        return records

    @property
    def window(self) -> int:
        """Number of traces to map at once."""
        return max(1, WINDOW_BYTES // self.trace_dtype.itemsize)


def read_layout(path: Path, file: BinaryIO, endian: str) -> SegyLayout:
    """Return the layout of an open SEG-Y file; its byte order is tried out when `endian` is "auto".

    The number of samples comes from the binary header and must agree with the file size. Byte 115 of the
    first trace is asked only when the binary header does not agree.

    Raises:
        UserError: `endian` is none of auto, big, little.
        DataError: the file is empty, cut short, no SEG-Y file, or in a sample format that is not read.
    """
    if endian not in ("auto", *_ENDIANS):
        raise UserError(f"--endian {endian}: expected auto, big or little")
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(FILE_HEADER_BYTES)
    if size <= FILE_HEADER_BYTES + TRACE_HEADER_BYTES:
        raise DataError(
            f"{path}: {size} bytes, expected a SEG-Y file of {FILE_HEADER_BYTES} header bytes and traces; "
            "the file is empty or cut short, copy or export it again"
        )
    codes = {}
    for name in [endian] if endian in _ENDIANS else list(_ENDIANS):
        codes[name] = _integer(head, 3225, 2, name)
        if codes[name] in SAMPLE_FORMATS:
            return _layout(path, file, head, size, name)
    found = " or ".join(f"{code} ({name} endian)" for name, code in codes.items())
    known = ", ".join(f"{code} {name}" for code, (_, name) in SAMPLE_FORMATS.items())
    raise DataError(
        f"{path}: sample format {found} at byte 3225, expected {known}; "
        "no SEG-Y file, another --endian, or export it as IEEE float32"
    )


def _layout(path: Path, file: BinaryIO, head: bytes, size: int, endian: str) -> SegyLayout:
    code = _integer(head, 3225, 2, endian)
    file.seek(FILE_HEADER_BYTES)
    text_headers = _num_text_headers(file, _integer(head, 3505, 2, endian), size)
    width = np.dtype(SAMPLE_FORMATS[code][0]).itemsize
    attempts = []
    for extra in dict.fromkeys((text_headers, 0)):
        first = FILE_HEADER_BYTES + extra * TEXT_BYTES
        file.seek(first)
        trace = file.read(TRACE_HEADER_BYTES).ljust(TRACE_HEADER_BYTES, b"\0")
        stated = [_unsigned(head, 3221, 2, endian), _unsigned(trace, 115, 2, endian)]
        attempts += [(samples, first, trace) for samples in stated if samples > 0]
    for samples, first, trace in attempts:
        trace_bytes = TRACE_HEADER_BYTES + samples * width
        num_traces, rest = divmod(size - first, trace_bytes)
        if num_traces > 0 and rest == 0:
            interval = _unsigned(head, 3217, 2, endian) or _unsigned(trace, 117, 2, endian)
            return SegyLayout(endian, code, samples, interval, first, num_traces)
    if not attempts:
        raise DataError(
            f"{path}: 0 samples a trace at byte 3221 and at trace byte 115, expected at least 1; "
            "set byte 3221 and open it again"
        )
    samples, first, _ = attempts[0]
    trace_bytes = TRACE_HEADER_BYTES + samples * width
    num_traces, rest = divmod(size - first, trace_bytes)
    raise DataError(
        f"{path}: {size} bytes = headers, {num_traces} traces and {rest} bytes too many, expected a "
        f"multiple of {trace_bytes} ({samples} {SAMPLE_FORMATS[code][1]} samples, byte 3221, {endian}); "
        "the file is cut short or bytes 3221 and 3225 are wrong; copy or export it again"
    )


def _num_text_headers(file: BinaryIO, stated: int, size: int) -> int:
    """Return the number of extended text headers; -1 means: up to the one with the end stanza."""
    if stated >= 0:
        return stated
    for number in range(1, min(64, (size - FILE_HEADER_BYTES) // TEXT_BYTES) + 1):
        block = file.read(TEXT_BYTES)
        if any("((SEG:ENDTEXT))" in block.decode(c).upper().replace(" ", "") for c in ("cp037", "latin-1")):
            return number
    return 0


def _integer(data: bytes, byte: int, width: int, endian: str, *, signed: bool = True) -> int:
    return int.from_bytes(
        data[byte - 1 : byte - 1 + width], "big" if endian == "big" else "little", signed=signed
    )


def _unsigned(data: bytes, byte: int, width: int, endian: str) -> int:
    return _integer(data, byte, width, endian, signed=False)


def read_fields(
    file: BinaryIO, layout: SegyLayout, fields: Mapping[str, tuple[int, int]]
) -> dict[str, np.ndarray]:
    """Return integer trace header fields, one array [num_traces] each.

    Args:
        file: the open file.
        layout: its layout.
        fields: name -> (first byte counted from 1, width 2 or 4).
    """
    columns = {name: np.empty(layout.num_traces, dtype=f"i{width}") for name, (_, width) in fields.items()}
    for start in range(0, layout.num_traces, layout.window):
        stop = min(start + layout.window, layout.num_traces)
        headers = layout.map_traces(file, start, stop)["header"]
        for name, (byte, width) in fields.items():
            raw = np.ascontiguousarray(headers[:, byte - 1 : byte - 1 + width])
            columns[name][start:stop] = raw.view(f"{layout.order}i{width}")[:, 0]
    return columns


def set_field(headers: np.ndarray, byte: int, value: int, order: str) -> None:
    """Set the unsigned 16-bit field at `byte` of every header in `headers` [T, 240] bytes."""
    headers[:, byte - 1 : byte + 1] = np.frombuffer(np.array(value, dtype=order + "u2").tobytes(), "u1")


def decode(raw: np.ndarray, code: int, out: np.ndarray) -> None:
    """Turn stored samples `raw` [T, n] into float32 `out` [T, n]."""
    if code != IBM:
        out[...] = raw
        return
    rows = max(1, 65536 // max(1, raw.shape[1]))  # blocks that stay in the processor's cache
    with np.errstate(over="ignore"):
        for start in range(0, len(raw), rows):
            bits = raw[start : start + rows].astype(np.uint32)
            scale = _IBM_SCALE[bits >> 24]
            bits &= 0xFFFFFF
            np.multiply(scale, bits.astype(np.float32), out=out[start : start + rows])


def encode_ibm(values: np.ndarray) -> np.ndarray:
    """Return the IBM float bits, uint32, nearest to finite float32 `values` (relative error <= 2^-21).

    Raises:
        DataError: a value is NaN or infinite, which IBM floats cannot hold.
    """
    if not np.isfinite(values).all():
        raise DataError(
            "a NaN or infinite sample, which IBM floats cannot hold; write IEEE float32 (no --ibm)"
        )
    mantissa, exponent = np.frexp(
        np.abs(values.astype(np.float64))
    )  # value = mantissa 2^exponent, 1/2 <= mantissa < 1
    sixteenth = -(-exponent // 4)  # smallest e with value < 16^e
    fraction = np.rint(np.ldexp(mantissa, exponent - 4 * sixteenth + 24)).astype(np.int64)
    carry = fraction == 1 << 24
    fraction[carry] = 1 << 20
    bits = ((sixteenth + carry + 64) << 24) | fraction | (np.signbit(values).astype(np.int64) << 31)
    return np.where(fraction == 0, 0, bits).astype(np.uint32)


def annotate_text(text: bytes, notes: tuple[str, str]) -> bytes:
    """Return a 3200-byte text header with `notes` in its last two free lines (fewer when fewer are free).

    A line is free when nothing but "Cnn" stands in it. All other bytes stay, and so does the encoding
    (EBCDIC or ASCII, told apart by the commoner of their two blanks).
    """
    codec = "cp037" if text.count(b"\x40") > text.count(b" ") else "latin-1"
    lines = [text[80 * i : 80 * i + 80] for i in range(40)]
    blank = re.compile(r"^(C\s?\d{0,2})?[\s\0]*$")
    free = [i for i, line in enumerate(lines) if blank.match(line.decode(codec))][-2:]
    if len(free) == 1:
        notes = (" ".join(notes), "")
    for i, note in zip(free, notes, strict=False):
        words = "".join(c if 31 < ord(c) < 127 else "?" for c in f"C{i + 1:2d} {note}")
        lines[i] = words[:80].ljust(80).encode(codec)
    return b"".join(lines)
