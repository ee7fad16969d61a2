"""What damaged volumes, wrong sizes and failed writes answer, in every format."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import segyio

from common.errors import DataError, UserError
from fault_seg.volumes import (
    FORMATS,
    check_finite,
    format_of,
    open_volume,
    open_writers,
    output_path,
    read_sidecar,
    read_volume,
    require_live,
    write_sidecar,
    write_volume,
)
from tests.fault_seg.volume_files import (
    SHAPE,
    SPACING,
    open_writer,
    plain,
    position_cube,
    survey,
)


@pytest.mark.parametrize("kind", ["npy", "h5", "mhd", "vti", "segy", "raw"])
def test_abort_leaves_no_file(tmp_path, kind):
    """An error in the block leaves neither a result nor a temporary, in any format."""
    folder = tmp_path / "out"
    like = open_volume(survey(tmp_path)) if kind == "segy" else plain()
    with pytest.raises(KeyError), open_writer(folder / "s", "rgt", kind, like) as writer:
        writer.write(0, position_cube(*SHAPE)[:, :, :2])
        raise KeyError("stop")
    writer = open_writer(folder / "s", "rgt", kind, like)
    writer.write(0, position_cube(*SHAPE)[:, :, :3])
    with pytest.raises(ValueError, match="fit"):
        writer.write(3, position_cube(*SHAPE))
    with pytest.raises(ValueError, match="before inline 3"):
        writer.close()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_file_size_limit_gives_one_line(tmp_path, kind):
    """A write that hits the limit of the file system ends as DataError, without a crash or a leftover."""
    shape = (100, 50, 40)
    cube = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = tmp_path / "survey.sgy"
    segyio.tools.from_array3D(str(path), np.ascontiguousarray(cube.transpose(2, 1, 0)))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_volume(path) as like:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
        try:
            with (
                pytest.raises(DataError, match="file-size limit of 300000 bytes"),
                open_writer(tmp_path / "out" / "s", "dhr", kind, like) as writer,
            ):
                for x in range(shape[2]):
                    writer.write(x, cube[:, :, x : x + 1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list((tmp_path / "out").iterdir()) == []


def test_raw_size_message_has_both_counts_and_fits(tmp_path):
    """A raw file of another size: both byte counts, and n1 values that fit."""
    position_cube(*SHAPE).tofile(tmp_path / "a.bin")
    with pytest.raises(
        DataError, match=r"720 bytes, expected 640 = 4 x 8 x 5 x 4; with --n2 5 --n3 4 it fits --n1 9"
    ):
        open_volume(tmp_path / "a.bin", (8, 5, 4))
    with pytest.raises(DataError, match=r"720 bytes, expected 1372 .* n1 = 4, 5, 6, 9, 10 divide"):
        open_volume(tmp_path / "a.bin", (7, 7, 7))
    (tmp_path / "a.bin").write_bytes(b"x" * 719)
    with pytest.raises(DataError, match=r"719 bytes, expected 720 .* no multiple of 4"):
        open_volume(tmp_path / "a.bin", SHAPE)
    with pytest.raises(UserError, match="--n1 --n2 --n3"):
        open_volume(tmp_path / "a.bin")
    with pytest.raises(UserError, match="three positive"):
        open_volume(tmp_path / "a.bin", (9, 5, -4))


def test_sidecar_carries_the_sizes(tmp_path):
    """`<prefix>.json` spares the sizes of raw files; a damaged one is an error."""
    write_volume(tmp_path / "s.fsem.", position_cube(*SHAPE))
    (tmp_path / "s.fsem.").rename(tmp_path / "s.fsem")
    write_sidecar(tmp_path / "s", plain(), model="abc")
    with open_volume(tmp_path / "s.fsem") as volume:
        assert (volume.shape, volume.spacing) == (SHAPE, SPACING)
    assert read_sidecar(tmp_path / "s.fsem")["model"] == "abc"
    for text in (
        "{",
        "[1]",
        "{}",
        json.dumps({"n1": 9, "n2": 5, "n3": "4"}),
        json.dumps({"n1": 0, "n2": 1, "n3": 1}),
    ):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(DataError, match="s.json"):
            open_volume(tmp_path / "s.fsem")


def spoil_npy(path: Path, case: str) -> None:
    """Write a bad npy file."""
    good = np.zeros(SHAPE, np.float32)
    if case == "lies":
        with path.open("wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": (10**4, 10**4, 10**4)}
            np.lib.format.write_array_header_1_0(file, head)
    elif case == "object":
        np.save(path, np.array([[[{}]]], dtype=object), allow_pickle=True)
    elif case == "four axes":
        np.save(path, good[None])
    elif case == "complex":
        np.save(path, good.astype(complex))
    else:
        np.save(path, good)
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-1], "empty": b"", "garbage": bytes(range(256)) * 9}[case])


@pytest.mark.parametrize("case", ["lies", "object", "four axes", "complex", "cut", "empty", "garbage"])
def test_bad_npy(tmp_path, case):
    """A npy file that lies, is cut or holds no real 3-D array is refused before anything is allocated."""
    path = tmp_path / "a.npy"
    spoil_npy(path, case)
    with pytest.raises(DataError, match=r"a\.npy.*expected"):
        open_volume(path)


def test_h5_that_reaches_outside_is_refused(tmp_path):
    """External storage, external and soft links, virtual datasets: refused, no foreign byte is read."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"private!" * 90)
    cube = position_cube(*SHAPE)
    write_volume(tmp_path / "other.h5", cube)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("stored", SHAPE, "<f4", external=[(str(secret), 0, 720)])
        file["link"] = h5py.ExternalLink("other.h5", "volume")
        file["soft"] = h5py.SoftLink("/link")
        layout = h5py.VirtualLayout(SHAPE, "<f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "volume", SHAPE)
        file.create_virtual_dataset("virtual", layout)
        file.create_group("group")
        file.create_dataset("text", data="hello")
        file.create_dataset("huge", (10**4, 10**4, 10**4), "<f4", chunks=(64, 64, 64))
    for name in ("stored", "link", "soft", "virtual", "group", "text", "huge", "absent"):
        with pytest.raises(DataError, match=r"a\.h5.*expected"):
            open_volume(tmp_path / "a.h5", dataset=name)


def test_bad_h5_files(tmp_path):
    """Cut, random and empty HDF5 files give one line; a flipped bit is caught by the checksum."""
    path = tmp_path / "a.h5"
    write_volume(path, np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    data = bytearray(path.read_bytes())
    for bad in (b"", data[:100], bytes(3000), data[: len(data) // 2]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"a\.h5"):
            read_volume(path)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        chunk = file.create_dataset("volume", data=noise, fletcher32=True, chunks=SHAPE).id.get_chunk_info(0)
    data = bytearray((tmp_path / "b.h5").read_bytes())
    data[chunk.byte_offset + 100] ^= 1
    (tmp_path / "b.h5").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        read_volume(tmp_path / "b.h5")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DimSize = 4 5 9", "DimSize = 4 5 9999999999999"),
        ("DimSize = 4 5 9", "DimSize = 4 5"),
        ("DimSize = 4 5 9", "DimSize = 4 0 9"),
        ("MET_FLOAT", "MET_STRING"),
        ("ElementDataFile = a.raw", "ElementDataFile = /etc/passwd"),
        ("ElementDataFile = a.raw", "ElementDataFile = ../a.raw"),
        ("ElementDataFile = a.raw", "ElementDataFile = missing.raw"),
        ("ElementDataFile = a.raw", ""),
        ("CompressedData = False", "CompressedData = True"),
        ("ElementSpacing = 25 12.5 2", "ElementSpacing = 25 nan 2"),
    ],
)
def test_bad_mhd(tmp_path, old, new):
    """A MetaImage header that lies, is incomplete or points elsewhere is refused with one line."""
    write_volume(tmp_path / "a.mhd", position_cube(*SHAPE), spacing=SPACING)
    text = (tmp_path / "a.mhd").read_text()
    assert old in text
    (tmp_path / "a.mhd").write_text(text.replace(old, new))
    with pytest.raises(DataError, match="expected"):
        open_volume(tmp_path / "a.mhd")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"0 3 0 4 0 8"', b'"0 3 0 4 0 9"'),
        (b'"0 3 0 4 0 8"', b'"0 3 0 4 0"'),
        (b'"0 3 0 4 0 8"', b'"0 3 0 4 0 x"'),
        (b"Float32", b"String"),
        (b'"raw"', b'"base64"'),
        (b"<Piece ", b"<Piece <"),
        (b'<?xml version="1.0"?>', b'<!DOCTYPE a [<!ENTITY b "c">]>'),
        (b'offset="0"', b'offset="99999999"'),
        (b'offset="0"', b'offset="-9"'),
    ],
)
def test_bad_vti(tmp_path, old, new):
    """A VTI file with another extent, type, encoding or broken XML is refused with one line."""
    write_volume(tmp_path / "a.vti", position_cube(*SHAPE))
    data = (tmp_path / "a.vti").read_bytes()
    assert old in data
    (tmp_path / "a.vti").write_bytes(data.replace(old, new))
    with pytest.raises(DataError, match="expected"):
        open_volume(tmp_path / "a.vti")


def test_names_and_formats(tmp_path):
    """Suffixes choose the format in any case; asked sizes must be the header's; .vgi has an answer."""
    names = {"a.SGY": "segy", "a.segy": "segy", "a.HDF5": "h5", "a": "raw", "a.dat": "raw", "a.fsem": "raw"}
    assert {name: format_of(name) for name in names} == names
    assert output_path("o/s", "fsem", "segy") == Path("o/s.fsem.sgy")
    assert output_path("o/s", "fsem", "h5") == Path("o/s.h5")
    np.save(tmp_path / "a.npy", position_cube(*SHAPE))
    open_volume(tmp_path / "a.npy", (9, 0, 4))
    with pytest.raises(DataError, match=r"\(9, 5, 4\), expected \(9, 5, 5\)"):
        open_volume(tmp_path / "a.npy", (9, 5, 5))
    with pytest.raises(UserError, match="mhd or vti"):
        open_writers("s", {"fsem": "-"}, "vgi", plain())
    with pytest.raises(UserError, match="--layout"):
        open_volume(tmp_path / "a.npy", layout="xyz")
    with pytest.raises(DataError, match="no such file"):
        open_volume(tmp_path / "none.npy")
    with pytest.raises(DataError, match="is a folder"):
        open_volume(tmp_path)
    (tmp_path / "a.vgi").write_bytes(b"1234")
    with pytest.raises(UserError, match="unknown suffix"):
        open_volume(tmp_path / "a.vgi")


def test_bad_voxels_are_named(tmp_path):
    """NaN and Inf: the first one is named; NaN may be allowed, Inf never."""
    cube = position_cube(*SHAPE)
    cube[3, 2, 1] = cube[4, 0, 2] = np.nan
    np.save(tmp_path / "a.npy", cube)
    with open_volume(tmp_path / "a.npy") as volume:
        with pytest.raises(DataError, match="nan at sample 3, crossline 2, inline 1 .*--allow_nan"):
            check_finite(volume)
        assert check_finite(volume, allow_nan=True) == 2
    cube[8, 4, 3] = -np.inf
    np.save(tmp_path / "a.npy", cube)
    with open_volume(tmp_path / "a.npy") as volume, pytest.raises(DataError, match="-inf at sample 8"):
        check_finite(volume, allow_nan=True)


def test_silent_traces(tmp_path):
    """Zero and constant traces are not live; a volume of nothing else is an error."""
    cube = position_cube(*SHAPE)
    cube[:, 1, 2] = 0
    cube[:, 3, 3] = 7
    np.save(tmp_path / "a.npy", cube)
    with open_volume(tmp_path / "a.npy") as volume:
        assert require_live(volume) == 2
        assert not volume.live[1, 2]
        assert not volume.live[3, 3]
        assert volume.null[1, 2] and volume.null[3, 3] and volume.null.sum() == 2
    np.save(tmp_path / "a.npy", 0 * cube)
    with open_volume(tmp_path / "a.npy") as volume, pytest.raises(DataError, match="all 20 traces"):
        require_live(volume)
