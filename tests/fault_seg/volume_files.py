"""Volumes and SEG-Y files for tests, written byte by byte or by segyio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import segyio

from fault_seg.segy import open_segy
from fault_seg.slabs import Volume, VolumeWriter
from fault_seg.volumes import open_writers

SHAPE = (9, 5, 4)
SPACING, ORIGIN = (2.0, 12.5, 25.0), (100.0, -3.0, 7.5)
N1, XLINES, ILINES = 11, [20, 21, 22, 23], [5, 6, 7]


def position_cube(n1: int = N1, n2: int = len(XLINES), n3: int = len(ILINES)) -> np.ndarray:
    """Return [n1, n2, n3] with the value 10000 z + 100 y + x."""
    z, y, x = np.ogrid[:n1, :n2, :n3]
    return (10000 * z + 100 * y + x).astype(np.float32)


def put(header: bytearray, byte: int, width: int, value: int, endian: str) -> None:
    """Set a signed header field at `byte` (from 1)."""
    header[byte - 1 : byte - 1 + width] = int(value).to_bytes(width, endian, signed=True)


def make_segy(
    path: Path,
    cube: np.ndarray,
    *,
    code: int = 5,
    endian: str = "big",
    ilines: list[int] | None = None,
    xlines: list[int] | None = None,
    crossline_sorted: bool = False,
    skip: set[tuple[int, int]] | None = None,
    fields: Callable[[int, int, int], dict[tuple[int, int], int]] | None = None,
    extended: int = 0,
) -> Path:
    """Write `cube` [n1, n2, n3] byte by byte; `fields(il, xl, trace)` gives {(byte, width): value} to set."""
    ilines = ilines or [5 + i for i in range(cube.shape[2])]
    xlines = xlines or [20 + i for i in range(cube.shape[1])]
    order = ">" if endian == "big" else "<"
    binary = bytearray(400)
    for byte, value in ((3217, 2000), (3221, cube.shape[0]), (3225, code), (3505, extended)):
        put(binary, byte - 3200, 2, value, endian)
    pairs = [(x, y) for x in range(len(ilines)) for y in range(len(xlines))]
    if crossline_sorted:
        pairs.sort(key=lambda p: (p[1], p[0]))
    lines = [f"C{i + 1:2d} {'two letters' if i < 3 else ''}".ljust(80) for i in range(40)]
    data = bytearray("".join(lines).encode("cp037")) + binary + bytes(3200 * extended)
    trace_number = 0
    for x, y in pairs:
        if skip and (ilines[x], xlines[y]) in skip:
            continue
        header = bytearray(240)
        values = {(189, 4): ilines[x], (193, 4): xlines[y], (29, 2): 1, (115, 2): 4321, (71, 2): -100}
        values[(1, 4)] = trace_number
        if fields:
            values.update(fields(ilines[x], xlines[y], trace_number))
        for (byte, width), value in values.items():
            put(header, byte, width, value, endian)
        trace = cube[:, y, x]
        if code == 1:
            stored = ibm_bits(trace).astype(order + "u4")
        else:
            stored = trace.astype(order + {2: "i4", 3: "i2", 5: "f4", 8: "i1"}[code])
        data += header + stored.tobytes()
        trace_number += 1
    path.write_bytes(data)
    return path


def ibm_bits(values: np.ndarray) -> np.ndarray:
    """Return IBM float bits one value at a time, from the definition."""
    out = []
    for value in map(float, values):
        exponent, fraction = 64, abs(value)
        while fraction >= 1:
            fraction, exponent = fraction / 16, exponent + 1
        while 0 < fraction < 1 / 16:
            fraction, exponent = fraction * 16, exponent - 1
        word = (exponent << 24) | int(fraction * 2**24) if value else 0
        out.append(word | (0x80000000 if value < 0 else 0))
    return np.array(out, dtype=np.uint32)


def read_all(path: Path, **settings: Any) -> np.ndarray:
    """Return the whole survey, read in slabs of two inlines."""
    with open_segy(path, **settings) as survey:
        n3 = survey.shape[2]
        return np.concatenate([survey.read(x, min(x + 2, n3)) for x in range(0, n3, 2)], axis=2)


def plain(shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Return a geometry to write like."""
    return Volume("none", shape, format="", spacing=SPACING, origin=ORIGIN)


def survey(folder: Path) -> Path:
    """Write the position cube as SEG-Y with segyio."""
    path = folder / "survey.sgy"
    segyio.tools.from_array3D(
        str(path), np.ascontiguousarray(position_cube(*SHAPE).transpose(2, 1, 0)), dt=4000
    )
    return path


def open_writer(
    prefix: str | Path,
    attribute: str,
    format: str,  # noqa: A002
    like: Volume,
    *,
    units: str = "",
    **settings: Any,
) -> VolumeWriter:
    """Open the writer of a single attribute; `settings` are those of `open_writers`."""
    return open_writers(prefix, {attribute: units}, format, like, **settings)[attribute]
