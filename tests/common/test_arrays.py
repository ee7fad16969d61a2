"""Archives of arrays from strangers: read by name, refused when damaged, hostile or out of proportion."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.arrays import open_npz
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
