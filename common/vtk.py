"""VTK ImageData (.vti) with several arrays and ParaView's time series (.pvd), written without VTK.

A grid here is [Z, Y, X] with Z the depth, downwards; VTK's z is up and x varies fastest. So layers are
flipped on writing and flipped back on reading, and the origin is the lowest corner.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np

from common import files
from common.errors import DataError

Triple = tuple[float, float, float]
_TYPES = {"f4": "Float32", "f8": "Float64", "u1": "UInt8", "i4": "Int32", "i8": "Int64"}
_DTYPES = {name: code for code, name in _TYPES.items()}
_END = b"\n  </AppendedData>\n</VTKFile>\n"


def write_vti(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    spacing: Triple,
    origin: Triple = (0.0, 0.0, 0.0),
    *,
    kind: str = "CellData",
) -> Path:
    """Write arrays of one grid as ImageData with raw appended blocks; return the path.

    Args:
        path: of the .vti file.
        arrays: {name: [Z, Y, X]} of float32, float64, uint8, int32 or int64.
        spacing: (dz, dy, dx) in metres.
        origin: (top depth, y, x) of the grid's first corner in metres; the file's z origin is minus the
            depth of the bottom.
        kind: "CellData" (values of cells) or "PointData" (values at points).

    Raises:
        ValueError: no array, shapes that differ or are not 3-D, a dtype that VTK does not know.
        UserError: the file cannot be written.
    """
    shapes = {np.shape(values) for values in arrays.values()}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 3:
        raise ValueError(f"arrays of shapes {sorted(shapes)}: expected one shape [Z, Y, X]")
    cells = kind == "CellData"
    extent = " ".join(f"0 {n if cells else n - 1}" for n in shape[::-1])
    depth = origin[0] + (shape[0] if cells else shape[0] - 1) * spacing[0]
    corner = (origin[2], origin[1], 0.0 - depth)
    described, blocks, offset = [], [], 0
    for name, values in arrays.items():
        block = np.ascontiguousarray(values[::-1])
        code = block.dtype.str[1:]
        if code not in _TYPES:
            raise ValueError(f"{name}: dtype {block.dtype}, expected one of {', '.join(_TYPES)}")
        block = block.astype(block.dtype.newbyteorder("<"), copy=False)
        described.append(
            f'        <DataArray type="{_TYPES[code]}" Name={quoteattr(name)} format="appended"'
            f' offset="{offset}"/>'
        )
        blocks.append(block)
        offset += 8 + block.nbytes
    head = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f'  <ImageData WholeExtent="{extent}" Origin="{_words(corner)}" Spacing="{_words(spacing[::-1])}">\n'
        f'    <Piece Extent="{extent}">\n      <{kind}>\n' + "\n".join(described) + f"\n      </{kind}>\n"
        '    </Piece>\n  </ImageData>\n  <AppendedData encoding="raw">\n_'
    )
    path = Path(path)
    with files.atomic_path(path, needed_bytes=offset) as temporary, temporary.open("wb") as file:
        file.write(head.encode())
        for block in blocks:
            file.write(np.array(block.nbytes, dtype="<u8").tobytes())
            file.write(block.tobytes())
        file.write(_END)
    return path


def read_vti(path: str | Path) -> tuple[dict[str, np.ndarray], Triple, Triple]:
    """Return (arrays [Z, Y, X], spacing (dz, dy, dx), origin (top depth, y, x)) of a file of `write_vti`.

    Raises:
        DataError: it is no ImageData with raw appended scalar arrays, or it is cut.
    """
    path = Path(path)
    data = path.read_bytes()
    match = re.search(rb"<AppendedData\s+encoding=\"raw\">\s*_", data)
    if match is None or b"<!" in data[: match.start()]:
        raise _bad(path, "no raw appended data")
    try:
        image = ElementTree.fromstring(data[: match.start()] + b"</VTKFile>").find("ImageData")
    except ElementTree.ParseError as error:
        raise _bad(path, f"broken XML ({error})") from error
    if image is None:
        raise _bad(path, "no ImageData")
    extent = [int(word) for word in image.get("WholeExtent", "").split()]
    dx, dy, dz = (float(word) for word in image.get("Spacing", "").split())
    x, y, z = (float(word) for word in image.get("Origin", "").split())
    arrays, depth = {}, 0.0
    for kind in ("CellData", "PointData"):
        shape = tuple(n + (kind == "PointData") for n in (extent[5], extent[3], extent[1]))
        for entry in image.findall(f"Piece/{kind}/DataArray"):
            dtype = np.dtype("<" + _DTYPES[entry.get("type", "")])
            start = match.end() + int(entry.get("offset", "0"))
            stored = int.from_bytes(data[start : start + 8], "little")
            if stored != math.prod(shape) * dtype.itemsize or start + 8 + stored > len(data):
                raise _bad(path, f"array {entry.get('Name')} of {stored} bytes for {shape}")
            values = np.frombuffer(data, dtype, math.prod(shape), start + 8).reshape(shape)
            arrays[entry.get("Name", "")] = values[::-1].copy()
            depth = 0.0 - z - (shape[0] - (kind == "PointData")) * dz
    return arrays, (dz, dy, dx), (depth, y, x)


def write_pvd(path: str | Path, entries: Sequence[tuple[float, str | Path]]) -> Path:
    """Write a ParaView series: (time, file) pairs, files named as seen from the folder of `path`."""
    folder = Path(path).parent
    lines = [
        f'    <DataSet timestep="{time:.9g}" file={quoteattr(os.path.relpath(name, folder))}/>'
        for time, name in entries
    ]
    text = (
        '<?xml version="1.0"?>\n<VTKFile type="Collection" version="0.1">\n  <Collection>\n'
        + "\n".join(lines)
        + "\n  </Collection>\n</VTKFile>\n"
    )
    files.write_text(path, text)
    return Path(path)


def _words(values: Sequence[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _bad(path: Path, found: str) -> DataError:
    return DataError(f"{path}: {found}, expected ImageData with raw appended arrays; export it again")
