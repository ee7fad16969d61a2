"""VTK ImageData (.vti) with several arrays and ParaView's time series (.pvd), written without VTK.

A grid here is [Z, Y, X] with Z the depth, downwards; VTK's z is up and x varies fastest. So `write_vti`
flips the layers, and its origin is the lowest corner.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from common import files

Triple = tuple[float, float, float]
_TYPES = {"f4": "Float32", "f8": "Float64", "u1": "UInt8", "i4": "Int32", "i8": "Int64"}
VTI_END = b"\n  </AppendedData>\n</VTKFile>\n"


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
    last = tuple(n if cells else n - 1 for n in shape)
    corner = (0.0 - (origin[0] + last[0] * spacing[0]), origin[1], origin[2])
    described, blocks, offset = [], [], 0
    for name, values in arrays.items():
        block = np.ascontiguousarray(values[::-1])
        code = block.dtype.str[1:]
        if code not in _TYPES:
            raise ValueError(f"{name}: dtype {block.dtype}, expected one of {', '.join(_TYPES)}")
        block = block.astype(block.dtype.newbyteorder("<"), copy=False)
        described.append((name, _TYPES[code], offset))
        blocks.append(block)
        offset += 8 + block.nbytes
    path = Path(path)
    with files.atomic_path(path, needed_bytes=offset) as temporary, temporary.open("wb") as file:
        file.write(vti_head(last, spacing, corner, kind, described))
        for block in blocks:
            file.write(block_head(block.nbytes))
            file.write(block.tobytes())
        file.write(VTI_END)
    return path


def vti_head(
    last: Sequence[int],
    spacing: Triple,
    origin: Triple,
    kind: str,
    arrays: Sequence[tuple[str, str, int]],
    scalars: str = "",
) -> bytes:
    """Return what stands before the raw blocks of a VTI file.

    Args:
        last: (z, y, x), the last indices of the extent; the first ones are 0.
        spacing: (dz, dy, dx).
        origin: (z, y, x) of the file's first corner, z up.
        kind: "CellData" or "PointData".
        arrays: (name, VTK's type, offset of its block in bytes).
        scalars: name of the array to show at first; "" = none.
    """
    extent = " ".join(f"0 {n}" for n in last[::-1])
    described = "".join(
        f'        <DataArray type="{vtk_type}" Name={quoteattr(name)} format="appended" offset="{offset}"/>\n'
        for name, vtk_type, offset in arrays
    )
    shown = f" Scalars={quoteattr(scalars)}" if scalars else ""
    text = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f'  <ImageData WholeExtent="{extent}" Origin="{words(origin[::-1])}"'
        f' Spacing="{words(spacing[::-1])}">\n'
        f'    <Piece Extent="{extent}">\n      <{kind}{shown}>\n{described}      </{kind}>\n'
        '    </Piece>\n  </ImageData>\n  <AppendedData encoding="raw">\n_'
    )
    return text.encode()


def block_head(num_bytes: int) -> bytes:
    """Return what stands before a raw block: its number of bytes."""
    return np.array(num_bytes, dtype="<u8").tobytes()


def words(values: Sequence[float]) -> str:
    """Return numbers as a header holds them."""
    return " ".join(f"{value:.9g}" for value in values)


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
