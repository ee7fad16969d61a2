"""Arrays and archives from strangers: refused when damaged, hostile or out of proportion."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.arrays import open_npy, open_npz
from common.errors import DataError


def test_reads_by_name(tmp_path: Path):
    """Names and values come back."""
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(5), y=np.zeros((2000, 2000)))
    with open_npz(tmp_path / "a.npz") as archive:
        assert archive.files == ["x", "y"] and archive["x"].tolist() == [0, 1, 2, 3, 4]


def test_damage_inside_the_block_is_told(tmp_path: Path):
    """A member that is missing, cut or of Python objects is a DataError with the file and the advice."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([None], dtype=object))
    for name in ("x", "z"):
        with (
            pytest.raises(DataError, match=r"a\.npz: no readable npz file .*; do this"),
            open_npz(path, "do this") as archive,
        ):
            archive[name]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a\.npz"), open_npz(path):
        pass
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(path)
    with pytest.raises(DataError, match=r"a\.npz"), open_npz(path):
        pass


def test_bombs_are_refused_unread(tmp_path: Path):
    """100 MB of zeros in 100 kB are refused by what the archive's table says of them."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100 << 20))
    with pytest.raises(DataError, match="x grows from"), open_npz(tmp_path / "a.npz"):
        pass


@pytest.mark.parametrize(
    "values", [np.arange(6.0).reshape(2, 3), np.array(3), np.zeros((0, 3)), np.ones((2, 2), "f4").T]
)
def test_npy_files_are_mapped(tmp_path: Path, values: np.ndarray):
    """Values, shape and type come back as a map of the file, of no values and of one too."""
    np.save(tmp_path / "a.npy", values)
    found = open_npy(tmp_path / "a.npy")
    assert isinstance(found, np.memmap) and found.dtype == values.dtype and np.array_equal(found, values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(10**4,) * 3, (2**40,), (2**62, 4), (2**62, 4, 0)])
def test_headers_that_lie(tmp_path: Path, shape: tuple[int, ...]):
    """A header of more values than follow is refused in one line, without a warning of an overflow."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + bytes(64))
    with pytest.raises(DataError, match=r"a\.npy: .*its header tells of .* 64 are there.*; do this"):
        open_npy(tmp_path / "a.npy", advice="do this")


def test_no_npy_file(tmp_path: Path):
    """What is missing, a folder, empty, cut, of Python objects or another format is told with its name."""
    np.save(tmp_path / "objects.npy", np.array([None], dtype=object))
    np.save(tmp_path / "cut.npy", np.zeros(9))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    (tmp_path / "head.npy").write_bytes(whole.replace(b", }", b", )"))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "folder.npy").mkdir()
    np.savez(tmp_path / "archive.npz", a=np.zeros(3))
    for name in ("objects.npy", "cut.npy", "head.npy", "empty.npy", "folder.npy", "archive.npz", "none.npy"):
        with pytest.raises(DataError, match=rf"{name}: no npy file of numbers .*expected a whole \.npy"):
            open_npy(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_rows_without_values(tmp_path: Path, suffix: str):
    """2^31 rows of no bytes are refused: a list of them would fill the memory; a few are an array."""
    path = tmp_path / f"a{suffix}"

    def read() -> tuple[int, ...]:
        if suffix == ".npy":
            return open_npy(path).shape
        with open_npz(path) as archive:
            return archive["u"].shape

    for rows in (5, 2**31):
        values = np.ones((rows, 0))
        np.save(path, values) if suffix == ".npy" else np.savez(path, u=values)
        if rows == 5:
            assert read() == (5, 0)
    with pytest.raises(DataError, match="rows without values"):
        read()
