"""HDF5 files that cannot be opened: what is said of them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import DataError
from voxel_ode.h5_files import open_h5


def test_a_cut_file_is_not_taken_for_a_busy_one(tmp_path: Path):
    """A file cut short is called that, although HDF5's message has the letters of "lock" in it."""
    path = tmp_path / "v2.4_0001.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(50_000)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(DataError, match="cut short") as caught:
        open_h5(path)
    assert "another process" not in str(caught.value)
