"""Reads VTK files back, so that tests can compare it with what was written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.vtk import Triple

DTYPES = {"Float32": "f4", "Float64": "f8", "UInt8": "u1", "Int32": "i4", "Int64": "i8"}


def _parts(path: str | Path, place: str) -> tuple[bytes, ElementTree.Element, int]:
    """Return the bytes of a file, the element at `place` of its head, and where its values begin."""
    data = Path(path).read_bytes()
    match = re.search(rb"<AppendedData\s+encoding=\"raw\">\s*_", data)
    assert match is not None
    element = ElementTree.fromstring(data[: match.start()] + b"</VTKFile>").find(place)
    assert element is not None
    return data, element, match.end()


def read_vti(path: str | Path) -> tuple[dict[str, np.ndarray], Triple, Triple]:
    """Return (arrays [Z, Y, X], spacing (dz, dy, dx), origin (top depth, y, x)) of a file of `write_vti`.

    A file that is cut fails an assertion.
    """
    data, image, first = _parts(path, "ImageData")
    extent = [int(word) for word in image.get("WholeExtent", "").split()]
    dx, dy, dz = (float(word) for word in image.get("Spacing", "").split())
    x, y, z = (float(word) for word in image.get("Origin", "").split())
    arrays, depth = {}, 0.0
    for kind in ("CellData", "PointData"):
        shape = tuple(n + (kind == "PointData") for n in (extent[5], extent[3], extent[1]))
        for entry in image.findall(f"Piece/{kind}/DataArray"):
            dtype = np.dtype("<" + DTYPES[entry.get("type", "")])
            start = first + int(entry.get("offset", "0"))
            stored = int.from_bytes(data[start : start + 8], "little")
            assert stored == math.prod(shape) * dtype.itemsize and start + 8 + stored <= len(data)
            values = np.frombuffer(data, dtype, math.prod(shape), start + 8).reshape(shape)
            arrays[entry.get("Name", "")] = values[::-1].copy()
            depth = 0.0 - z - (shape[0] - (kind == "PointData")) * dz
    return arrays, (dz, dy, dx), (depth, y, x)


def read_vtu(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (point values {name: [M]}, {Points [M, 3], connectivity, offsets, types}) of `write_vtu`.

    A file that is cut fails an assertion.
    """
    data, piece, first = _parts(path, "UnstructuredGrid/Piece")

    def values_of(entry: ElementTree.Element) -> np.ndarray:
        dtype = np.dtype("<" + DTYPES[entry.get("type", "")])
        start = first + int(entry.get("offset", "0"))
        stored = int.from_bytes(data[start : start + 8], "little")
        assert start + 8 + stored <= len(data)
        flat = np.frombuffer(data, dtype, stored // dtype.itemsize, start + 8)
        width = int(entry.get("NumberOfComponents", "1"))
        return flat.reshape(-1, width).copy() if width > 1 else flat.copy()

    values = {e.get("Name", ""): values_of(e) for e in piece.findall("PointData/DataArray")}
    shape = {
        e.get("Name", ""): values_of(e)
        for part in ("Points", "Cells")
        for e in piece.findall(f"{part}/DataArray")
    }
    return values, shape
