"""VTK files parse back to the numbers and places that were written."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from common.vtk import write_pvd, write_vti
from tests.vtk_files import read_vti

GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("kind", ["CellData", "PointData"])
def test_arrays_spacing_and_origin_return(tmp_path: Path, kind: str):
    """Two arrays of two types come back with spacing and top depth."""
    arrays = {"T (degC)": GRID, 'flag "a"': (GRID > 5).astype(np.uint8)}
    write_vti(tmp_path / "a.vti", arrays, (10, 50, 25), (2000, 5, 7), kind=kind)
    found, spacing, origin = read_vti(tmp_path / "a.vti")
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    assert spacing == (10, 50, 25)
    assert origin == (2000, 5, 7)


def test_the_deepest_layer_is_written_first(tmp_path: Path):
    """VTK's z is up: the file starts with the deepest layer and its origin is minus the bottom depth."""
    path = write_vti(tmp_path / "a.vti", {"p": GRID}, (10, 50, 25), (2000, 0, 0))
    data = path.read_bytes()
    first = np.frombuffer(data, "<f4", 1, data.index(b"\n_") + 2 + 8)[0]
    assert first == GRID[1, 0, 0]
    assert b'Origin="0 0 -2020"' in data
    assert b'WholeExtent="0 4 0 3 0 2"' in data


def test_a_series_names_its_files(tmp_path: Path):
    """The series holds times and paths relative to itself."""
    write_pvd(tmp_path / "s.pvd", [(1.0, tmp_path / "f/a.vti"), (2.5, tmp_path / "f/b.vti")])
    sets = ElementTree.parse(tmp_path / "s.pvd").getroot().findall("Collection/DataSet")
    assert [(s.get("timestep"), s.get("file")) for s in sets] == [("1", "f/a.vti"), ("2.5", "f/b.vti")]


def test_shapes_must_agree(tmp_path: Path):
    """Arrays of two grids are a programming error."""
    with pytest.raises(ValueError, match="one shape"):
        write_vti(tmp_path / "a.vti", {"a": GRID, "b": GRID[:1]}, (1, 1, 1))
