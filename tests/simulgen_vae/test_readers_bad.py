"""Bad input ends in one line that names the file, what was found and what was expected; nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import DataError, UserError
from simulgen_vae import hdf5_input
from simulgen_vae.fields import open_fields
from simulgen_vae.hdf5_input import fixed_texts, is_variable, text_of
from simulgen_vae.images import read_image
from simulgen_vae.tables import read_table
from tests.simulgen_vae.cases_data import case, waves, write_case

U = waves()["fields"]


def npz_bomb(path: Path) -> None:
    """Write an npz whose 300 MB are stored in 300 kB."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (3, 5000, 5000)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("U.npy", "w") as file:
        file.write(head.getvalue())
        for _ in range(30):
            file.write(bytes(10_000_000))


def lying_npy(path: Path) -> None:
    """Write an npy header of 10^12 values with none behind it."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**4, 10**4, 10**4)}
        )


def lying_h5(path: Path) -> None:
    """Write an HDF5 file that promises 4 TB and stores nothing."""
    with h5py.File(path, "w") as h5:
        h5.create_dataset("fields", (10**4, 10**4, 10**4), np.float32, chunks=(1, 100, 100))


def external_h5(path: Path) -> None:
    """Write an HDF5 file whose fields lie in another file."""
    secret = path.with_name("secret.bin")
    secret.write_bytes(np.ones(1000, np.float32).tobytes())
    with h5py.File(path, "w") as h5:
        h5.create_dataset("fields", (10, 10, 10), np.float32, external=[(str(secret), 0, 4000)])


def linked_h5(path: Path) -> None:
    """Write an HDF5 file whose fields are a link to another file."""
    write_case(path.with_name("other.h5"))
    with h5py.File(path, "w") as h5:
        h5["fields"] = h5py.ExternalLink("other.h5", "/fields")


def virtual_h5(path: Path) -> None:
    """Write an HDF5 file whose fields are a view of another file."""
    write_case(path.with_name("other.h5"))
    layout = h5py.VirtualLayout((12, 6, 32, 1), np.float32)
    layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "fields", (12, 6, 32, 1))
    with h5py.File(path, "w") as h5:
        h5.create_virtual_dataset("fields", layout)


def cut(path: Path) -> None:
    """Write a canonical file and keep its first half."""
    whole = write_case(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


CORPUS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty npy": ("a.npy", lambda p: p.write_bytes(b""), "no npy file"),
    "garbage npy": ("a.npy", lambda p: p.write_bytes(os.urandom(99)), "no npy file"),
    "lying npy": ("a.npy", lying_npy, "no npy file"),
    "objects": ("a.npy", lambda p: np.save(p, np.array([{}], object)), "no npy file"),
    "two axes": ("a.npy", lambda p: np.save(p, np.ones((4, 5))), "expected 3 axes"),
    "five axes": ("a.npy", lambda p: np.save(p, np.ones((2,) * 5)), "expected 3 axes"),
    "no samples": ("a.npy", lambda p: np.save(p, np.ones((0, 4, 5))), "none empty"),
    "complex": ("a.npy", lambda p: np.save(p, np.ones((2, 4, 5), complex)), "expected real numbers"),
    "text": ("a.npy", lambda p: np.save(p, np.full((2, 4, 5), "a")), "expected real numbers"),
    "garbage npz": ("a.npz", lambda p: p.write_bytes(b"PK\x03\x04" + os.urandom(99)), "npz file"),
    "npz without fields": ("a.npz", lambda p: np.savez(p, X=U), "expected an array fields or U"),
    "npz bomb": ("a.npz", npz_bomb, "grows from"),
    "npz bad ntr": ("a.npz", lambda p: np.savez(p, U=U, ntr=99), r"expected a number 1\.\.12"),
    "npz bad params": ("a.npz", lambda p: np.savez(p, U=U, P=np.ones(12)), r"expected numbers \[N, P\]"),
    "npz counts": ("a.npz", lambda p: np.savez(p, U=U, P=np.ones((9, 2))), "9 params for 12 samples"),
    "npz images": ("a.npz", lambda p: np.savez(p, U=U, G=np.ones((12, 4, 4))), r"expected uint8 \[N"),
    "empty h5": ("a.h5", lambda p: p.write_bytes(b""), "cannot be opened as HDF5"),
    "cut h5": ("a.h5", cut, "cannot be opened as HDF5"),
    "h5 without fields": ("a.h5", lambda p: h5py.File(p, "w").close(), "expected a dataset fields"),
    "lying h5": ("a.h5", lying_h5, "are stored, expected a filled"),
    "external": ("a.h5", external_h5, "keeps its values in other files"),
    "linked": ("a.h5", linked_h5, "is a link"),
    "virtual": ("a.h5", virtual_h5, "keeps its values in other files"),
    "dict pickle": ("a.pickle", lambda p: p.write_bytes(pickle.dumps({"a": 1})), "expected one pickled"),
    "unknown": ("a.vtu", lambda p: p.write_bytes(b"x"), "suffix .vtu, expected"),
    "empty folder": ("folder", lambda p: p.mkdir(), r"holds no \.npy or \.h5"),
}


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_bad_files(tmp_path, name: str):
    """Each file of the corpus is refused with one line that names it."""
    file, write, message = CORPUS[name]
    write(tmp_path / file)
    with pytest.raises(DataError, match=message) as caught:
        open_fields(tmp_path / file)
    assert file in str(caught.value) and "\n" not in str(caught.value)


BAD_PARTS = {
    "params": ({"params": np.ones((9, 2))}, {}, r"params has the shape \(9, 2\), expected \[12, any\]"),
    "nan params": ({"params": np.full((12, 2), np.nan)}, {}, "parameter a of sample 0 is not finite"),
    "time": ({"time": np.zeros(6)}, {}, "time does not increase"),
    "split": ({"split": np.ones(3)}, {}, r"split has the shape \(3,\), expected \[12\]"),
    "coords": ({"coords": np.ones((32, 2))}, {}, r"coords has the shape \(32, 2\)"),
    "cells": ({}, {"cells": {"quad": np.full((1, 4), 99)}}, "names node 99"),
    "grid": ({}, {"grid_shape": (5, 5)}, "with ny nx = 32"),
    "ids": ({}, {"sample_id": ("a",) * 12}, "sample id a stands twice"),
    "id count": ({}, {"sample_id": ("a", "b")}, "holds 2 names, expected 12"),
    "field names": ({}, {"field_names": ("a", "b")}, "holds 2 names, expected 1"),
    "param names": ({}, {"param_names": ("a",)}, "holds 1 names, expected 2"),
}


@pytest.mark.parametrize("name", sorted(BAD_PARTS))
def test_parts_that_do_not_fit(tmp_path, name: str):
    """Arrays of another length, repeated ids, strange cells: each is named."""
    arrays, about, message = BAD_PARTS[name]
    with pytest.raises(DataError, match=message):
        case(tmp_path / "a.h5", arrays=arrays, **about)


def test_expected_sizes(tmp_path):
    """Dim1, Dim2, Dim3 and num_param must be those of the data; both numbers are named."""
    path = write_case(tmp_path / "a.h5")
    assert open_fields(path, dims=(12, 6, 32), num_param=2).num_samples == 12
    for dims, name in (
        ((11, 0, 0), "Dim1 is 11, the data has 12"),
        ((0, 7, 0), "Dim2 is 7"),
        ((0, 0, 5), "Dim3"),
    ):
        with pytest.raises(DataError, match=name):
            open_fields(path, dims=dims)
    with pytest.raises(DataError, match="--num_param 3, found 2"):
        open_fields(path, num_param=3)
    with pytest.raises(DataError, match="a multiple of --num_var 5"):
        np.save(tmp_path / "a.npy", U[..., 0])
        open_fields(tmp_path / "a.npy", num_var=5)
    with pytest.raises(UserError, match="--var_order"):
        open_fields(path, var_order="C")


def test_nan_is_located_or_dropped(tmp_path):
    """NaN and infinity are named by sample, frame, node and count; --drop_bad leaves the sample out."""
    u = U.copy()
    u[4, 2, 7] = np.nan
    u[4, 3, 1] = np.inf
    path = write_case(tmp_path / "a.h5", u=u)
    data = open_fields(path)
    data.trajectory(3)
    message = "sample 4: 2 of 192 values are NaN or infinite, the first at frame 2, node 7"
    with pytest.raises(DataError, match=message):
        data.trajectory(4)
    kept = open_fields(path, drop_bad=True)
    assert kept.num_samples == 11 and "4" not in kept.sample_id and len(kept.params) == 11
    assert np.array_equal(kept.trajectory(4), u[5])
    np.save(tmp_path / "a.npy", np.full((3, 2, 2), 1e300))
    with pytest.raises(DataError, match="infinite"):
        open_fields(tmp_path / "a.npy").trajectory(0)
    with pytest.raises(DataError, match="every sample"):
        open_fields(tmp_path / "a.npy", drop_bad=True)


def test_flipped_bits_are_noticed(tmp_path):
    """The canonical file carries checksums: a changed byte of the fields is an error, not a number."""
    path = write_case(tmp_path / "a.h5")
    content = bytearray(path.read_bytes())
    place = content.find(U[5].tobytes()[:64])
    assert place > 0
    content[place + 5] ^= 1
    path.write_bytes(bytes(content))
    data = open_fields(path)
    with pytest.raises(DataError, match="sample 5 of fields cannot be read"):
        data.trajectory(5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("x,y\n", "a header and no rows"),
        ("x,y\n1,2\n3,oops\n", "row 3, column y: 'oops', expected a finite number"),
        ("x,y\n1,2\n3\n", "row 3 has 1 cells, expected 2"),
        ("1,2\n3,nan\n", "row 2, column p1: 'nan'"),
        ("x,x\n1,2\n", "stands twice"),
        ("x\n1_0\n", "row 2, column x: '1_0'"),
    ],
)
def test_bad_tables(tmp_path, text: str, message: str):
    """A cell that is no number is named by row and column."""
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "p.csv")


def png(width: int, height: int) -> bytes:
    """Return a valid PNG of zeros of any size, tiny on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bad_pictures(tmp_path):
    """Pictures that are missing, cut short, too large or none are refused and named."""
    path = tmp_path / "a.png"
    with pytest.raises(DataError, match="no such picture"):
        read_image(path)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="cut short"):
        read_image(path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        read_image(tmp_path / name)
        (tmp_path / name).write_bytes(whole[: int(0.99 * len(whole))])
        with pytest.raises(DataError, match="cut short"):
            read_image(tmp_path / name)
    path.write_bytes(png(10_000, 10_000))
    with pytest.raises(DataError, match="a.png: no readable picture"):
        read_image(path)
    with pytest.raises(DataError, match=r"holds no \.png picture"):
        (tmp_path / "empty").mkdir()
        np.save(tmp_path / "u.npy", U)
        open_fields(tmp_path / "u.npy", images=tmp_path / "empty")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["csv", "npy", "h5", "npz", "pickle"]))
def test_damage_is_one_line(tmp_path_factory, data: st.DataObject, kind: str):
    """Altered and cut files of any kind are read or refused with one line."""
    folder = tmp_path_factory.getbasetemp()
    path, whole = folder / f"fuzzed.{kind}", folder / f"whole.{kind}"
    if not whole.exists():
        {
            "csv": lambda: whole.write_text("x,y\n1,2\n3,4\n"),
            "npy": lambda: np.save(whole, U),
            "npz": lambda: np.savez(whole, U=U, P=np.ones((12, 2))),
            "pickle": lambda: whole.write_bytes(pickle.dumps(U, 5)),
            "h5": lambda: write_case(whole),
        }[kind]()
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 4000) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))]))
    try:
        if kind == "csv":
            read_table(path)
        else:
            opened = open_fields(path)
            opened.trajectory(0)
            opened.close()
    except (DataError, UserError) as error:
        assert "\n" not in str(error)


def test_texts_that_crash_the_library(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Texts of variable length are read by a process of its own first; when that dies the file is refused."""
    path = write_case(tmp_path / "a.h5")
    with h5py.File(path) as h5:
        assert not any(is_variable(h5["fields"].attrs.get_id(name)) for name in ("names", "units"))
    with h5py.File(path, "r+") as h5:
        del h5["sample_id"]
        h5["sample_id"] = [f"run {i}" for i in range(12)]
        h5["fields"].attrs["names"] = ["u"]
    assert open_fields(path).sample_id[3] == "run 3"
    monkeypatch.setattr(hdf5_input, "_READER", "raise SystemExit(1)")  # h5py is not found there, say
    assert open_fields(path).field_names == ("u",)
    monkeypatch.setattr(hdf5_input, "_READER", "import os; os.abort()")
    with pytest.raises(DataError, match="a.h5: damaged HDF5, the HDF5 library crashes"):
        open_fields(path)


def test_names_of_any_bytes_and_number(tmp_path):
    """Names that are no UTF-8 go through, and more of them than one attribute holds at one length."""
    latin = b"\xb0C".decode("utf-8", "surrogateescape")
    assert fixed_texts([latin]).tolist() == [b"\xb0C"] and fixed_texts([]).shape == (0,)
    many = fixed_texts([f"parameter {i:04d}, a long name" for i in range(3000)])
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.attrs["names"] = many
    with h5py.File(tmp_path / "a.h5") as h5:
        assert text_of(h5.attrs["names"][7]) == "parameter 0007, a long name"
