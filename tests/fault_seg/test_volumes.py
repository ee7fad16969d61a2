"""One protocol for every volume format: axes, round trips, bounded memory."""

from __future__ import annotations

import resource
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from common.errors import UserError
from fault_seg import slabs, volume_readers, volume_writers
from fault_seg.volumes import (
    FORMATS,
    open_volume,
    open_writers,
    output_path,
    read_volume,
    write_sidecar,
    write_volume,
)
from tests.fault_seg.volume_files import (
    ORIGIN,
    SHAPE,
    SPACING,
    open_writer,
    plain,
    position_cube,
    survey,
)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("step", [1, 3])
def test_slabs_round_trip_in_every_format(tmp_path, kind, step):
    """What is written inline by inline, in any order, is read back in its place, slab by slab."""
    cube = position_cube(*SHAPE)
    like = open_volume(survey(tmp_path)) if kind == "segy" else plain()
    settings = {"dataset": "fsem"} if kind == "h5" else {}
    with open_writer(tmp_path / "out" / "s", "fsem", kind, like, units="probability", model="m") as writer:
        for x in reversed(range(0, SHAPE[2], step)):
            writer.write(x, cube[:, :, x : x + step])
        assert not output_path(tmp_path / "out" / "s", "fsem", kind).exists()
    if kind == "raw":
        write_sidecar(tmp_path / "out" / "s", like)
    path = output_path(tmp_path / "out" / "s", "fsem", kind)
    with open_volume(path, **settings) as volume:
        assert volume.shape == SHAPE
        assert volume.format == kind
        assert volume.live.shape == SHAPE[1:]
        if kind not in ("npy", "segy"):
            assert volume.spacing == SPACING
        if kind in ("mhd", "vti", "h5"):
            assert volume.origin == ORIGIN
        for x in range(SHAPE[2]):
            slab = volume.read(x, x + 1)
            assert slab.dtype == np.float32
            np.testing.assert_array_equal(slab, cube[:, :, x : x + 1])
        np.testing.assert_array_equal(volume.read(1, 4), cube[:, :, 1:4])
        with pytest.raises(IndexError):
            volume.read(0, 5)
    np.testing.assert_array_equal(read_volume(path, **settings), cube)
    assert not list((tmp_path / "out").glob(".*"))


def test_raw_bytes_have_z_fastest(tmp_path):
    """On disk z varies fastest, then y, then x; big-endian files give the same array."""
    cube = position_cube(*SHAPE)
    write_volume(tmp_path / "a.bin", cube)
    values = np.fromfile(tmp_path / "a.bin", "<f4")
    assert list(values[:3]) == [0, 10000, 20000]
    np.testing.assert_array_equal(values.reshape(SHAPE[::-1]).transpose(2, 1, 0), cube)
    values.astype(">f4").tofile(tmp_path / "b.dat")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.dat", SHAPE, endian="big"), cube)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.bin", SHAPE, endian="little"), cube)


def test_segy_axes_land_on_z_y_x(tmp_path):
    """SEG-Y samples, crosslines and inlines are z, y and x; raw -> SEG-Y -> raw is exact."""
    path = survey(tmp_path)
    np.testing.assert_array_equal(read_volume(path), position_cube(*SHAPE))
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    with open_volume(path) as like:
        write_volume(tmp_path / "b.sgy", values, like=like)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.sgy"), values)
    with pytest.raises(UserError, match="--like survey.sgy"):
        write_volume(tmp_path / "c.sgy", values)


@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8", "i2", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layout", ["zyx", "ixz"])
def test_npy_of_any_type_order_and_layout(tmp_path, dtype, order, layout):
    """Npy files that NumPy wrote are read whatever their type, memory order and layout; lines too."""
    cube = position_cube(*SHAPE) % 251
    stored = cube if layout == "zyx" else cube.transpose(2, 1, 0)
    np.save(tmp_path / "a.npy", np.asarray(stored.astype(dtype), order=order))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npy", layout=layout), cube)
    line = cube[:, :, 1] if layout == "zyx" else cube[:, :, 1].T
    np.save(tmp_path / "b.npy", np.asarray(line.astype(dtype), order=order))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.npy", layout=layout), cube[:, :, 1:2])


@pytest.mark.parametrize("layout", ["zyx", "ixz"])
def test_npy_and_h5_that_we_write_open_in_numpy_and_h5py(tmp_path, layout):
    """numpy.load and h5py see [n1, n2, n3], or (inline, crossline, sample) for ixz."""
    cube = position_cube(*SHAPE)
    stored = cube if layout == "zyx" else cube.transpose(2, 1, 0)
    write_volume(tmp_path / "a.npy", cube, layout=layout)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), stored)
    write_volume(tmp_path / "a.h5", cube, layout=layout, spacing=SPACING)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["volume"][:], stored)
        assert file["volume"].fletcher32
        assert file["volume"].compression == "gzip"
    np.testing.assert_array_equal(read_volume(tmp_path / "a.h5", layout=layout), cube)


def test_five_datasets_in_one_h5(tmp_path):
    """The five attributes share one file, which appears with the last of them; aborting one drops all."""
    names = {"fsem": "probability", "fdip": "degrees", "fstrike": "degrees", "rgt": "-", "dhr": "amplitude"}
    cube = position_cube(*SHAPE)
    writers = open_writers(tmp_path / "s", names, "h5", plain(), model="m")
    for x in range(SHAPE[2]):
        for k, writer in enumerate(writers.values()):
            writer.write(x, k * cube[:, :, x : x + 1])
    for writer in writers.values():
        assert not (tmp_path / "s.h5").exists()
        writer.close()
    for k, name in enumerate(names):
        np.testing.assert_array_equal(read_volume(tmp_path / "s.h5", dataset=name), k * cube)
    with h5py.File(tmp_path / "s.h5") as file:
        assert {name: file[name].attrs["units"] for name in file} == names
    writers = open_writers(tmp_path / "t", names, "h5", plain())
    writers["rgt"].abort()
    writers["fsem"].abort()
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_mhd_parses_back_with_right_axes(tmp_path):
    """MetaImage: x, y, z of the image are n3, n2, n1, with spacing and origin, and x fastest in the .raw."""
    cube = position_cube(*SHAPE)
    write_volume(tmp_path / "a.fsem.mhd", cube, spacing=SPACING, origin=ORIGIN)
    lines = (tmp_path / "a.fsem.mhd").read_text().splitlines()
    head = dict(line.split(" = ") for line in lines)
    assert head["DimSize"] == "4 5 9"
    assert head["ElementSpacing"] == "25 12.5 2"
    assert head["Offset"] == "7.5 -3 100"
    assert lines[-1] == "ElementDataFile = a.fsem.raw"
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.fsem.raw", "<f4").reshape(SHAPE), cube)


def test_vti_parses_back_with_right_axes(tmp_path):
    """VTI: extent, spacing, origin in image order; the appended block starts with its byte count."""
    cube = position_cube(*SHAPE)
    write_volume(tmp_path / "a.vti", cube, attribute="fsem", spacing=SPACING, origin=ORIGIN)
    data = (tmp_path / "a.vti").read_bytes()
    begin = data.index(b"_", data.index(b"<AppendedData")) + 1
    assert int.from_bytes(data[begin : begin + 8], "little") == cube.nbytes
    block = data[begin + 8 : begin + 8 + cube.nbytes]
    np.testing.assert_array_equal(np.frombuffer(block, "<f4").reshape(SHAPE), cube)
    root = ElementTree.fromstring(data[:begin] + data[begin + 8 + cube.nbytes :])
    image = root.find("ImageData")
    assert image.get("WholeExtent") == "0 3 0 4 0 8"
    assert image.get("Spacing") == "25 12.5 2"
    assert image.get("Origin") == "7.5 -3 100"
    assert root.find(".//DataArray").get("Name") == "fsem"


def test_foreign_mhd_and_vti(tmp_path):
    """Other writers' variants: local data, big endian, 16-bit, data at the end of a file, 32-bit counts."""
    cube = position_cube(*SHAPE) % 1000
    head = "NDims = 3\nDimSize = 4 5 9\nElementType = MET_SHORT\nElementByteOrderMSB = True\n"
    stored = cube.astype(">i2").tobytes()
    (tmp_path / "a.mhd").write_bytes((head + "ElementDataFile = LOCAL\n").encode() + stored)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mhd"), cube)
    (tmp_path / "b.raw").write_bytes(b"header" + stored)
    (tmp_path / "b.mhd").write_text(head + "HeaderSize = -1\nElementDataFile = b.raw")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.mhd"), cube)
    xml = (
        '<VTKFile type="ImageData" byte_order="BigEndian">'
        '<ImageData WholeExtent="2 5 0 4 1 9" Origin="0 0 0" '
        'Spacing="2 1 3"><Piece Extent="2 5 0 4 1 9"><PointData><DataArray type="Int16" Name="s" '
        'format="appended" offset="3"/></PointData></Piece></ImageData><AppendedData encoding="raw">_xxx'
    )
    count = np.array(len(stored), ">u4").tobytes()
    (tmp_path / "c.vti").write_bytes(xml.encode() + count + stored + b"</AppendedData></VTKFile>")
    with open_volume(tmp_path / "c.vti") as volume:
        assert (volume.spacing, volume.origin) == ((3, 1, 2), (3, 0, 4))
        np.testing.assert_array_equal(volume.read(0, 4), cube)


def test_small_windows_give_the_same(tmp_path, monkeypatch):
    """Reading and writing through windows smaller than the volume changes nothing."""
    for module in (slabs, volume_readers, volume_writers):
        monkeypatch.setattr(module, "WINDOW_BYTES", 100)
    cube = position_cube(*SHAPE)
    for name in ("a.npy", "a.mhd", "a.vti", "a.h5"):
        write_volume(tmp_path / name, cube)
        np.testing.assert_array_equal(read_volume(tmp_path / name), cube)
    np.save(tmp_path / "c.npy", cube)
    np.testing.assert_array_equal(read_volume(tmp_path / "c.npy"), cube)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A sparse 1.6 GB raw cube is read inline by inline within 200 MB."""
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate(4 * 1024 * 1024 * 400)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_volume(path, (1024, 1024, 400)) as volume:
        for x in range(0, 400, 100):
            assert not volume.read(x, x + 4).any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
