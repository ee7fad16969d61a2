"""Pickled arrays of every protocol are read; nothing else is, and nothing that a file says is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.legacy_pickle import read_pickled_array

ARRAYS = {
    "float32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "big endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "half": np.linspace(0, 1, 6, dtype=np.float16).reshape(1, 2, 3),
    "integers": np.arange(6, dtype=np.int16).reshape(3, 2),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::3],
    "empty": np.zeros((0, 3)),
}


class Malicious:
    """Pickles to a call of os.mkdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_every_protocol(tmp_path: Path, protocol: int, name: str):
    """Arrays come back as they were: values, shape, width, byte order included."""
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(ARRAYS[name], protocol))
    found = read_pickled_array(path)
    assert found.shape == ARRAYS[name].shape and np.array_equal(found, ARRAYS[name])
    assert found.dtype.itemsize == ARRAYS[name].dtype.itemsize


def test_module_names_of_numpy_1(tmp_path: Path):
    """Pickles that name numpy.core, as NumPy 1 wrote them, are read too."""
    array = np.arange(5.0)
    old = pickle.dumps(array, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core" in old
    (tmp_path / "a.pickle").write_bytes(old)
    assert np.array_equal(read_pickled_array(tmp_path / "a.pickle"), array)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int):
    """A call hidden in a pickle, alone or beside an array, is refused and not made."""
    target = tmp_path / "made"
    for value in (Malicious(target), [np.zeros(2), Malicious(target)]):
        path = tmp_path / "a.pickle"
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(DataError, match=r"it names \w+\.mkdir"):
            read_pickled_array(path)
        assert not target.exists()
        pickle.loads(path.read_bytes())  # the file does what it threatens when it is trusted
        assert target.exists()
        target.rmdir()


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1},
        [np.zeros(2)],
        "text",
        np.array([object()], dtype=object),
        np.array(["a"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype=complex),
        np.float64(3.0),
    ],
    ids=["dict", "list", "text", "objects", "strings", "records", "complex", "scalar"],
)
def test_anything_else_is_refused(tmp_path: Path, value: object):
    """Only one array of real numbers is accepted."""
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match="expected one pickled NumPy array"):
        read_pickled_array(path)


def test_a_lying_size_is_refused(tmp_path: Path):
    """A shape that the bytes do not fill is refused without being allocated."""
    path = tmp_path / "a.pickle"
    honest = pickle.dumps(np.zeros((77, 2)), 2)
    path.write_bytes(honest.replace(b"K\x4dK\x02\x86", b"K\xffK\xff\x86", 1))
    assert path.read_bytes() != honest
    with pytest.raises(DataError, match="bytes for an array"):
        read_pickled_array(path)


def test_missing_file(tmp_path: Path):
    """A file that is not there is named."""
    with pytest.raises(DataError, match="cannot be read"):
        read_pickled_array(tmp_path / "absent.pickle")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), protocol=st.sampled_from([2, 4, 5]))
def test_damage_is_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, protocol: int):
    """Cut and altered files give the array or one line, never a traceback."""
    content = bytearray(pickle.dumps(np.arange(12.0).reshape(3, 4), protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pickle"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        assert isinstance(read_pickled_array(path), np.ndarray)
    except DataError as error:
        assert "\n" not in str(error)
