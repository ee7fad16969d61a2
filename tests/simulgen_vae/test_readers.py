"""Every accepted input gives the same trajectories; parameters and pictures come along."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, UserError
from common.run import BasicOptions
from simulgen_vae.canonical import About, write_canonical
from simulgen_vae.config_data import PrepDataConfig
from simulgen_vae.fields import open_fields
from simulgen_vae.grids import Grid
from simulgen_vae.images import read_image
from simulgen_vae.prep import prep_data, request_of, stored_basis
from simulgen_vae.tables import read_table
from tests.simulgen_vae.cases_data import mirror, waves, write_case

U = waves(fields=2)["fields"]
BLOCK = U.transpose(0, 1, 3, 2).reshape(12, 6, 64)
INTERLEAVED = U.reshape(12, 6, 64)


def as_folder(path: Path, array: np.ndarray) -> Path:
    """Write one npy file a sample, more than ten of them."""
    path.mkdir()
    for i, u in enumerate(array):
        np.save(path / f"run{i}.npy", u)
    return path


def saved(path: Path, array: np.ndarray) -> Path:
    """Write an array in the form that the name's end says."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, U=array)
    elif path.suffix == ".pickle":
        path.write_bytes(pickle.dumps(array, 4))
    elif path.suffix == ".h5":
        names = tuple(f"f{v}" for v in range(array.shape[3]))
        write_canonical(path, array.shape, iter(array), About(names))
    else:
        as_folder(path, array)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pickle", "a.h5", "folder"])
def test_every_form_gives_the_same_fields(tmp_path, name: str):
    """Four axes are read alike from npy, npz, pickle, HDF5 and a folder in natural order."""
    data = open_fields(saved(tmp_path / name, U))
    assert data.shape == (12, 6, 32, 2)
    for i in (0, 2, 11):
        u = data.trajectory(i)
        assert u.dtype == np.float32 and u.flags.c_contiguous and np.array_equal(u, U[i])


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pickle", "folder"])
@pytest.mark.parametrize(("order", "array"), [("block", BLOCK), ("interleaved", INTERLEAVED)])
def test_columns_hold_fields(tmp_path, name: str, order: str, array: np.ndarray):
    """--num_var and --var_order take three axes apart."""
    data = open_fields(saved(tmp_path / name, array), num_var=2, var_order=order)
    assert data.shape == (12, 6, 32, 2) and np.array_equal(data.trajectory(5), U[5])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8", "<i4"])
def test_every_number_type(tmp_path, dtype: str):
    """Half to double precision in either byte order become float32."""
    array = (waves()["fields"] * 8).astype(dtype)
    data = open_fields(saved(tmp_path / "a.npy", array))
    assert np.array_equal(data.trajectory(1), array[1].astype(np.float32))


def test_an_npy_in_a_pickles_clothes(tmp_path):
    """A .pickle that really is npy is read as npy."""
    np.save(tmp_path / "a.npy", U)
    (tmp_path / "a.npy").rename(tmp_path / "a.pickle")
    assert np.array_equal(open_fields(tmp_path / "a.pickle").trajectory(3), U[3])


def test_views(tmp_path):
    """Frames and nodes are cut without reading more, and the whole stays whole."""
    path = saved(tmp_path / "a.h5", U)
    cut = open_fields(path, num_frames=4, node_start=5, node_end=25)
    assert cut.shape == (12, 4, 20, 2) and np.array_equal(cut.trajectory(2), U[2, :4, 5:25])
    assert len(cut.time) == 4
    again = cut.cut(2, 1, 3)
    assert np.array_equal(again.trajectory(0), U[0, :2, 6:8])
    for wrong in ({"num_frames": 7}, {"node_end": 33}, {"node_start": 9, "node_end": 9}):
        with pytest.raises(DataError, match="expected"):
            open_fields(path, **wrong)
    some = open_fields(path).select(np.array([7, 3]))
    assert some.sample_id == ("7", "3") and np.array_equal(some.trajectory(1), U[3])


def test_canonical_round_trip(tmp_path):
    """All that a canonical file can hold comes back."""
    grid, rng = Grid(8, 4), np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (12, 4, 8)),
        "coords": grid.coords(),
        "mask": np.arange(32) % 2 == 0,
        "group": np.arange(12) // 3,
        "split": np.repeat([0, 1, 2], [8, 2, 2]),
        "balance": rng.normal(size=(12, 6, 3)),
    }
    about = {"sample_id": tuple(f"r{i}" for i in range(12)), "cells": grid.cells(), "units": ("K",)}
    path = write_case(tmp_path / "a.h5", arrays=arrays, grid_shape=(4, 8), symmetry=mirror(grid), **about)
    data = open_fields(path)
    found = {"images": data.images, "coords": data.coords, "mask": data.mask, "group": data.group}
    found |= {"split": data.given_split, "balance": data.balance}
    assert all(np.array_equal(found[name], values) for name, values in arrays.items())
    assert data.sample_id[3] == "r3" and data.units == ("K",) and data.param_names == ("a", "b")
    assert np.array_equal(data.cells["quad"], grid.cells()["quad"]) and data.grid_shape == (4, 8)
    assert np.array_equal(data.symmetry.node_permutation, grid.mirror())
    assert data.params.dtype == np.float64


def test_provenance_follows_the_content(tmp_path):
    """The hash is that of the content: the same in another form, another after one changed value."""
    hashes = [open_fields(saved(tmp_path / n, U)).provenance for n in ("a.npy", "a.h5", "a.pickle")]
    assert len(set(hashes)) == 1
    changed = U.copy()
    changed[11, 2, 3, 1] += 1
    assert open_fields(saved(tmp_path / "b.npy", changed)).provenance != hashes[0]


def test_npz_of_the_field_operator_kind(real_data):
    """U, P and ntr of the public Burgers file give fields, parameters and the split."""
    data = open_fields(real_data / "simulgen" / "burgers_mini.npz")
    assert np.array_equal(data.given_split, np.repeat([0, 2], [800, 400]))
    assert data.params.min() == pytest.approx(-0.830, abs=1e-3)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
@pytest.mark.parametrize("header", ["x{d}y\n", ""])
def test_tables(tmp_path, delimiter: str, header: str):
    """Four delimiters, with and without header; a first row of numbers is data."""
    path = tmp_path / "p.csv"
    rows = [[1.5, -2e-3], [3.0, 4.0]]
    path.write_text(header.format(d=delimiter) + "".join(f"{a}{delimiter}{b}\n" for a, b in rows))
    table = read_table(path)
    assert np.array_equal(table.values, rows) and table.names == (("x", "y") if header else ("p0", "p1"))


def test_a_folder_of_tables(tmp_path):
    """All CSV files in natural order are one table."""
    for k in (10, 9, 1):
        (tmp_path / f"run{k}.csv").write_text(f"x\n{k}\n")
    assert read_table(tmp_path).values[:, 0].tolist() == [1, 9, 10]
    (tmp_path / "run11.csv").write_text("z\n1\n")
    with pytest.raises(DataError, match="columns z, expected x"):
        read_table(tmp_path)


def test_rows_follow_sample_ids(tmp_path):
    """A sample_id column puts rows in the data's order; a missing id is named."""
    saved(tmp_path / "a.npy", U)
    lines = [f"{i},{i * 10}" for i in reversed(range(12))]
    (tmp_path / "p.csv").write_text("\n".join(["sample_id,x", *lines]))
    data = open_fields(tmp_path / "a.npy", params=tmp_path / "p.csv")
    assert data.params[:, 0].tolist() == [10 * i for i in range(12)] and data.param_names == ("x",)
    (tmp_path / "p.csv").write_text("\n".join(["sample_id,x", *lines[:-1]]))
    with pytest.raises(DataError, match=r"no row for sample 0 \(1 are missing\)"):
        open_fields(tmp_path / "a.npy", params=tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("\n".join(["sample_id,x", *lines, "3,7"]))
    with pytest.raises(DataError, match=r"p\.csv: sample_id 3 stands twice"):
        open_fields(tmp_path / "a.npy", params=tmp_path / "p.csv")


def test_pictures(tmp_path):
    """PNG and JPEG become grey 256 x 256; natural order, or that of the column `file`."""
    saved(tmp_path / "a.npy", U[:3])
    folder = tmp_path / "images"
    folder.mkdir()
    for k in (1, 2, 10):
        Image.fromarray(np.full((40, 60, 3), 20 * k, np.uint8)).save(folder / f"s{k}.png")
    data = open_fields(tmp_path / "a.npy", images=folder)
    assert data.images.shape == (3, 256, 256) and data.images[:, 9, 9].tolist() == [20, 40, 200]
    (tmp_path / "p.csv").write_text("file,x\ns10.png,1\ns1.png,2\ns2.png,3\n")
    data = open_fields(tmp_path / "a.npy", images=folder, params=tmp_path / "p.csv", image_threshold=40)
    assert data.images[:, 9, 9].tolist() == [255, 0, 255] and data.params[:, 0].tolist() == [1, 2, 3]
    Image.fromarray(np.full((40, 60), 99, np.uint8)).save(tmp_path / "a.jpg")
    assert abs(int(read_image(tmp_path / "a.jpg")[0, 0]) - 99) <= 1


def test_nearest_name(tmp_path):
    """A path that is not there names what is near."""
    saved(tmp_path / "dataset1.npy", U)
    with pytest.raises(DataError, match=r"did you mean .*dataset1\.npy"):
        open_fields(tmp_path / "datset1.npy")


def test_prep_keeps_everything(tmp_path):
    """prep_data writes what it read, with split and basis; the basis is found again for its rows only."""
    saved(tmp_path / "a.npy", BLOCK)
    (tmp_path / "p.csv").write_text("x\n" + "\n".join(map(str, range(12))))
    config = PrepDataConfig(
        str(tmp_path / "a.npy"),
        num_var=2,
        param_dir=str(tmp_path / "p.csv"),
        fit_basis=True,
        val_fraction=0.2,
    )
    result = prep_data(config, BasicOptions())
    data = open_fields(result["path"])
    assert np.array_equal(data.trajectory(4), U[4]) and data.params[:, 0].tolist() == list(range(12))
    rows = np.flatnonzero(data.given_split == 0)
    asked = request_of(0, config.energy, data)
    basis = stored_basis(result["path"], rows, asked)
    assert basis is not None and basis.num_modes == result["num_modes"]
    assert stored_basis(result["path"], rows[:-1], asked) is None
    assert stored_basis(result["path"], rows, request_of(3, config.energy, data)) is None
    assert stored_basis(tmp_path / "a.npy", rows, asked) is None
    with pytest.raises(UserError, match="exists already"):
        prep_data(config, BasicOptions())
    prep_data(config, BasicOptions(overwrite=True))


def test_prep_check_writes_nothing(tmp_path):
    """--check prints the table and leaves no file."""
    saved(tmp_path / "a.npy", U)
    result = prep_data(PrepDataConfig(str(tmp_path / "a.npy"), check=True), BasicOptions())
    assert dict(result["table"])["fields"] == "12 samples, 6 frames, 32 nodes, 2 fields"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
