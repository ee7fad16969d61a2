"""HDF5 files that cannot be opened, or lie about sizes, where values are, where chunks lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import DataError
from common.hdf5 import open_h5, require_inside, require_stored


def write(path: Path) -> list[tuple[int, int]]:
    """Write a dataset `u` of three chunks with checksums; return the place and size of each."""
    with h5py.File(path, "w") as h5:
        h5.create_dataset("u", data=np.arange(48.0).reshape(3, 16), chunks=(1, 16), fletcher32=True)
    places: list[tuple[int, int]] = []
    with h5py.File(path) as h5:
        h5["u"].id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
    return places


def check(path: Path) -> None:
    """Open the dataset as a reader does."""
    with h5py.File(path) as h5:
        require_stored(h5["u"], path)


def test_whole_files_pass(tmp_path: Path):
    """Chunked, contiguous, scalar, empty and not yet filled datasets are taken."""
    write(tmp_path / "a.h5")
    check(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as h5:
        h5["plain"], h5["scalar"], h5["nothing"] = np.ones(5), 3.0, np.ones((0, 4))
        h5.create_dataset("unfilled", (8, 8), "f4", chunks=(4, 4))
    with h5py.File(tmp_path / "b.h5") as h5:
        for name in h5:
            require_stored(h5[name], tmp_path / "b.h5")


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 1024}, {"fs_strategy": "page"}])
def test_other_layouts_pass(tmp_path: Path, options: dict):
    """Newer indexes, user blocks, pages, compression are sound, also while the file is written."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", **options) as h5:
        h5.create_dataset("u", data=np.arange(4096.0).reshape(64, 64), chunks=(8, 8), compression="gzip")
        h5.create_dataset("grows", data=np.ones((8, 4)), maxshape=(None, 4), chunks=(2, 4), shuffle=True)
        require_stored(h5["u"], path)
    with h5py.File(path) as h5:
        require_stored(h5["u"], path)
        require_stored(h5["grows"], path)


def test_the_index_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that has not changed is not walked again; a changed one is."""
    path = tmp_path / "a.h5"
    write(path)
    check(path)
    content, old = path.read_bytes(), path.stat()
    monkeypatch.setattr("common.hdf5.zip", lambda *a, **k: pytest.fail("read again"), raising=False)
    check(path)
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    with pytest.raises(pytest.fail.Exception):
        check(path)


@pytest.mark.parametrize("damage", ["empty", "outside", "twice"])
def test_damaged_index(tmp_path: Path, damage: str):
    """A chunk of no bytes, one beyond the end of the file, one in the place of another: refused unread."""
    path = tmp_path / "a.h5"
    places = write(path)
    content = path.read_bytes()
    old = struct.pack("<Q", places[1][0])
    assert content.count(old) == 1
    at = content.index(old)
    size = struct.pack("<I", places[1][1])
    if damage == "empty":  # the size of a chunk stands in the key before its place
        before = content.rindex(size, 0, at)
        content = content[:before] + struct.pack("<I", 0) + content[before + 4 :]
    else:
        place = 1 << 40 if damage == "outside" else places[2][0]
        content = content[:at] + struct.pack("<Q", place) + content[at + 8 :]
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.h5: /u has a damaged index of its chunks"):
        check(path)


def test_no_shape(tmp_path: Path):
    """A dataset without a shape is none that could be read."""
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["u"] = h5py.Empty("f4")
    with pytest.raises(DataError, match="/u is empty"):
        check(tmp_path / "a.h5")


def test_lying_sizes_and_other_files(tmp_path: Path):
    """A shape of a terabyte with nothing behind it, and values in another file, are refused."""
    with h5py.File(tmp_path / "big.h5", "w") as h5:
        h5.create_dataset("u", (2**38,), "f4", chunks=(2**20,))
    with pytest.raises(DataError, match=r"takes \d+ bytes, 0 are stored"):
        check(tmp_path / "big.h5")
    (tmp_path / "secret").write_bytes(b"1234")
    with h5py.File(tmp_path / "outside.h5", "w") as h5:
        h5.create_dataset("u", (1,), "f4", external=[(str(tmp_path / "secret"), 0, 4)])
    with h5py.File(tmp_path / "outside.h5") as h5, pytest.raises(DataError, match="values in other files"):
        require_inside(h5["u"], tmp_path / "outside.h5")


def test_a_cut_file_is_not_taken_for_a_busy_one(tmp_path: Path):
    """A file cut short is called that, although HDF5's message has the letters of "lock" in it."""
    path = tmp_path / "v2.4_0001.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(50_000)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(DataError, match="cut short") as caught:
        open_h5(path)
    assert "another process" not in str(caught.value)


def test_why_a_file_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A missing file, one that another process is writing and one of another format are each called that."""

    def locked(*_args: object) -> None:
        raise OSError("Unable to synchronously open file (unable to lock file, errno = 11)")

    path = tmp_path / "a.h5"
    with pytest.raises(DataError, match=r"a\.h5: no such file"):
        open_h5(path)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match="cannot be opened as HDF5 .*; expected u$"):
        open_h5(path, "expected u")
    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(DataError, match="another process is writing this file; wait"):
        open_h5(path)
