"""A declared symmetry maps fields, parameters and picture together, and only a valid one is accepted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import DataError
from common.run import BasicOptions
from simulgen_vae.config_data import MakeDataConfig
from simulgen_vae.fields import open_fields
from simulgen_vae.grids import Grid
from simulgen_vae.make_data import make_data
from simulgen_vae.symmetry import Symmetry, read_symmetry
from simulgen_vae.wave import symmetry as wave_mirror
from tests.simulgen_vae.cases_data import case, mirror


def test_a_mirror_twice_is_nothing():
    """Fields, parameters and picture come back after two applications, in NumPy and torch alike."""
    grid = Grid(6, 4)
    symmetry = wave_mirror(grid)
    rng = np.random.default_rng(0)
    u, p = rng.normal(size=(2, 3, 24, 1)).astype(np.float32), rng.uniform(size=(2, 6))
    image = rng.integers(0, 256, (2, 4, 6)).astype(np.uint8)
    once = symmetry.apply(u, p, image)
    twice = symmetry.apply(*once)
    assert np.array_equal(twice[0], u) and np.allclose(twice[1], p) and np.array_equal(twice[2], image)
    assert np.array_equal(once[0].reshape(2, 3, 4, 6), u.reshape(2, 3, 4, 6)[:, :, ::-1])
    assert np.allclose(once[1][:, 1], 1 - p[:, 1]) and np.allclose(once[1][:, 0], p[:, 0])
    tensors = symmetry.apply(*(torch.from_numpy(a.copy()) for a in (u, p, image)))
    assert all(np.allclose(a, b) for a, b in zip(tensors, once, strict=True))


def test_signs_turn_vector_components():
    """A field with sign -1 changes its sign beside moving."""
    symmetry = Symmetry(np.array([1, 0]), np.array([1.0, -1.0]), np.eye(1), np.zeros(1))
    u = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    assert np.array_equal(symmetry.apply_fields(u), [[[2, -3], [0, -1]]])
    assert symmetry.apply_image(u) is u


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node_permutation": np.array([0, 0, 2])}, "each of 0..2 once"),
        ({"node_permutation": np.array([0.0, 1, 2])}, "whole numbers"),
        ({"param_matrix": np.eye(3)}, r"expected \[P, P\]"),
        ({"field_signs": np.array([2.0])}, "expected 1 or -1"),
        ({"field_signs": np.ones((2**31, 0))}, "expected 1 or -1"),  # no bytes, and a list of 2^31 lists
        ({"param_offset": np.array([np.nan, 0])}, "finite"),
        ({"param_matrix": 1j * np.eye(2)}, "expected real numbers"),
    ],
)
def test_invalid_symmetries(change: dict, message: str):
    """What is no permutation, no sign or no map is refused."""
    arrays = {**mirror(Grid(3, 1)).arrays(), **change}
    with pytest.raises(DataError, match=message):
        Symmetry.from_arrays(arrays, "here")


def test_a_users_file(tmp_path):
    """--symmetry FILE.npz declares one, replaces the file's own, and must fit the data."""
    grid = Grid(8, 4)
    np.savez(tmp_path / "s.npz", **mirror(grid).arrays())
    read = read_symmetry(tmp_path / "s.npz")
    assert np.array_equal(read.node_permutation, grid.mirror()) and read.flip_image
    data = case(tmp_path / "a.h5", fields=2)
    assert data.symmetry is None
    assert open_fields(tmp_path / "a.h5", symmetry=tmp_path / "s.npz").symmetry.field_signs.tolist() == [1, 1]
    np.savez(tmp_path / "small.npz", **mirror(Grid(2, 2)).arrays())
    with pytest.raises(DataError, match=r"\(4, 2, 2\), expected \(32, 2, 2\)"):
        open_fields(tmp_path / "a.h5", symmetry=tmp_path / "small.npz")
    with pytest.raises(DataError, match="no such file"):
        open_fields(tmp_path / "a.h5", symmetry=tmp_path / "absent.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match="npz"):
        open_fields(tmp_path / "a.h5", symmetry=tmp_path / "bad.npz")
    np.savez(tmp_path / "part.npz", node_permutation=np.arange(32))
    with pytest.raises(DataError, match="without param_matrix"):
        open_fields(tmp_path / "a.h5", symmetry=tmp_path / "part.npz")


def test_file_declaration_can_be_switched_off(tmp_path):
    """`auto` takes what the file declares, `none` does not; cutting nodes drops it."""
    data = case(tmp_path / "a.h5", symmetry=mirror(Grid(8, 4)), grid_shape=(4, 8))
    assert data.symmetry is not None and data.grid_shape == (4, 8)
    assert open_fields(tmp_path / "a.h5", symmetry="none").symmetry is None
    cut = open_fields(tmp_path / "a.h5", node_end=16)
    assert cut.symmetry is None and cut.grid_shape is None and cut.num_nodes == 16


def test_hidden_parameters_keep_the_mirror(tmp_path):
    """--write_params hides the others; what is left mirrors as in the whole file, the picture still flips."""
    files = {}
    for name, shown in (("whole", ()), ("part", ("sin_2theta", "tau"))):
        path = tmp_path / f"{name}.h5"
        sizes = {"num": 2, "nx": 8, "ny": 4, "frames": 2, "figures": False}
        make_data(MakeDataConfig("advdiff", path=str(path), write_params=shown, **sizes), BasicOptions())
        files[name] = open_fields(path)
    whole, part = files["whole"], files["part"]
    chosen = [whole.param_names.index(name) for name in ("sin_2theta", "tau")]
    assert part.param_names == ("sin_2theta", "tau") and np.array_equal(part.params, whole.params[:, chosen])
    mirrored = [data.symmetry.apply_params(data.params) for data in (whole, part)]
    assert np.array_equal(mirrored[0][:, chosen], mirrored[1]) and part.symmetry.flip_image
    assert np.array_equal(mirrored[1], part.params * [-1.0, 1.0])
