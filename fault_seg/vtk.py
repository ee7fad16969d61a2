"""Headers of MetaImage (.mhd) and VTK ImageData (.vti), which ParaView, 3D Slicer and ITK open directly.

In both the first image axis varies fastest: image x, y, z = n3, n2, n1 of a volume; depth is the image's z.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.errors import DataError
from common.vtk import Triple, block_head, vti_head, words

_MHD_TYPES = {
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
}
_VTI_TYPES = {
    "Float32": "f4",
    "Float64": "f8",
    "Int8": "i1",
    "UInt8": "u1",
    "Int16": "i2",
    "UInt16": "u2",
    "Int32": "i4",
    "UInt32": "u4",
}
_HEADER_BYTES = 1 << 20  # no header is longer


@dataclass(frozen=True)
class ImageHeader:
    """Where the voxels of an image lie; `shape`, `spacing` and `origin` are along (n1, n2, n3)."""

    data_path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, int, int]
    spacing: Triple
    origin: Triple


def mhd_header(shape: tuple[int, int, int], spacing: Triple, origin: Triple, data_name: str) -> bytes:
    """Return a MetaImage header for little-endian float32 in the file `data_name` beside it."""
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": words(origin[::-1]),
        "ElementSpacing": words(spacing[::-1]),
        "DimSize": words(shape[::-1]),
        "ElementType": "MET_FLOAT",
        "ElementDataFile": data_name,
    }
    return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()


def parse_mhd(path: Path) -> ImageHeader:
    """Read a MetaImage header; the data may follow it in the same file (LOCAL).

    Raises:
        DataError: it is no uncompressed 3-D scalar image with its data beside it.
    """
    head = _head(path)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        key, equals, value = (
            head[position : end if end >= 0 else len(head)].decode("utf-8", "replace").partition("=")
        )
        if not equals or (end < 0 and key.strip() != "ElementDataFile"):
            raise _bad(path, "no line ElementDataFile", "a MetaImage header of lines 'key = value'")
        fields[key.strip()] = value.strip()
        position = end + 1 if end >= 0 else len(head)
    for key, wanted in (("NDims", "3"), ("CompressedData", "False"), ("ElementNumberOfChannels", "1")):
        if fields.get(key, wanted).lower() != wanted.lower():
            raise _bad(path, f"{key} = {fields[key]}", f"{key} = {wanted}")
    kind = fields.get("ElementType", "missing")
    if kind not in _MHD_TYPES:
        raise _bad(path, f"ElementType {kind}", " ".join(_MHD_TYPES))
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    name = fields["ElementDataFile"]
    data_path, offset = path, position
    if name.upper() != "LOCAL":
        if not name or Path(name).name != name:
            raise _bad(path, f"ElementDataFile {name}", "the name of a file in the same folder")
        data_path, offset = path.with_name(name), _number(path, fields.get("HeaderSize", "0"))
    dims = _triple(path, "DimSize", fields.get("DimSize", ""))
    spacing = _triple(path, "ElementSpacing", fields.get("ElementSpacing", "1 1 1"))
    origin = _triple(path, "Offset", fields.get("Offset", fields.get("Position", "0 0 0")))
    dtype = np.dtype((">" if big else "<") + _MHD_TYPES[kind])
    header = _image(path, data_path, offset, dtype, dims, spacing, origin)
    if offset == -1 and data_path.is_file():  # the data are the end of their file
        offset = data_path.stat().st_size - math.prod(header.shape) * dtype.itemsize
        header = _image(path, data_path, offset, dtype, dims, spacing, origin)
    return header


def vti_header(shape: tuple[int, int, int], spacing: Triple, origin: Triple, name: str) -> bytes:
    """Return what stands before the voxels of a VTI file: XML and the byte count of the raw block."""
    name = re.sub(r"[^\w.-]", "_", name)
    last = [n - 1 for n in shape]
    head = vti_head(last, spacing, origin, "PointData", [(name, "Float32", 0)], scalars=name)
    return head + block_head(4 * math.prod(shape))


def parse_vti(path: Path) -> ImageHeader:
    """Read the header of a VTI file with one piece and a scalar array appended raw at the points.

    Raises:
        DataError: it is no such file, or its byte count disagrees with its extent.
    """
    head = _head(path)
    match = re.search(rb"<AppendedData\s+encoding\s*=\s*[\"']raw[\"']\s*>\s*_", head)
    if match is None or b"<!" in head[: match.start()]:
        raise _bad(path, "no <AppendedData encoding='raw'>", "a VTI file with raw appended data")
    try:
        root = ElementTree.fromstring(head[: match.start()] + b"</VTKFile>")
    except ElementTree.ParseError as error:
        raise _bad(path, f"broken XML ({error})", "a VTI file with raw appended data") from error
    image = root.find("ImageData")
    pieces = [] if image is None else image.findall("Piece")
    array = pieces[0].find("PointData/DataArray") if len(pieces) == 1 else None
    if image is None or array is None or root.get("compressor"):
        raise _bad(path, "other contents", "uncompressed ImageData, one Piece, a DataArray in PointData")
    kind, components = array.get("type", ""), array.get("NumberOfComponents", "1")
    if kind not in _VTI_TYPES or components != "1" or array.get("format") != "appended":
        raise _bad(
            path, f"a {kind} array of {components} components", "one appended scalar array, say Float32"
        )
    extent = [_number(path, word) for word in image.get("WholeExtent", "").split()]
    if len(extent) != 6:
        raise _bad(path, f"WholeExtent '{image.get('WholeExtent')}'", "six integers")
    dims = tuple(extent[2 * i + 1] - extent[2 * i] + 1 for i in range(3))
    order = ">" if root.get("byte_order") == "BigEndian" else "<"
    dtype = np.dtype(order + _VTI_TYPES[kind])
    count = np.dtype(order + ("u8" if root.get("header_type") == "UInt64" else "u4"))
    begin = match.end() + _number(path, array.get("offset", "0"))
    spacing = _triple(path, "Spacing", image.get("Spacing", "1 1 1"))
    first = _triple(path, "Origin", image.get("Origin", "0 0 0"))
    x, y, z = (o + s * e for o, s, e in zip(first, spacing, extent[::2], strict=True))
    with path.open("rb") as file:
        file.seek(max(0, begin))
        stored = int.from_bytes(file.read(count.itemsize), "big" if order == ">" else "little")
    if stored != math.prod(dims) * dtype.itemsize:
        wanted = f"{math.prod(dims) * dtype.itemsize} for extent {extent}"
        raise _bad(path, f"an array of {stored} bytes", wanted)
    return _image(path, path, begin + count.itemsize, dtype, dims, spacing, (x, y, z))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _image(
    path: Path, data_path: Path, offset: int, dtype: np.dtype, dims: tuple, spacing: Triple, origin: Triple
) -> ImageHeader:
    if any(n < 1 or n != int(n) for n in dims) or any(s <= 0 for s in spacing):
        raise _bad(path, f"size {words(dims)}, spacing {words(spacing)}", "positive ones")
    nx, ny, nz = (int(n) for n in dims)
    (dx, dy, dz), (x, y, z) = spacing, origin
    return ImageHeader(data_path, offset, dtype, (nz, ny, nx), (dz, dy, dx), (z, y, x))


def _triple(path: Path, key: str, text: str) -> Triple:
    try:
        x, y, z = (float(word) for word in text.split())
    except ValueError:
        raise _bad(path, f"{key} '{text}'", "three numbers") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise _bad(path, f"{key} '{text}'", "finite numbers")
    return x, y, z


def _number(path: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _bad(path, f"'{text}'", "an integer") from None


def _bad(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{path}: header with {found[:200]}, expected {expected}; write it again as mhd, vti or npy"
    )
