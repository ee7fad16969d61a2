"""Grids and tables as text: orientation, codes, headers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, UserError
from facies_gan.dataset import read_training_data
from facies_gan.geometry import GridGeometry, section_axes
from facies_gan.grdecl import read_grdecl, write_grdecl
from facies_gan.grid_files import grid_geometry, read_any_grid
from facies_gan.gslib import GridHeader, read_geoeas, read_grid, write_geoeas, write_grid
from facies_gan.palette import Palette
from tests.facies_gan.cases_data import options


def section_of(path: Path, **flags: object) -> np.ndarray:
    """Return the codes [H, W] of a grid file with one section, row 0 on top."""
    grid = read_any_grid(path, options(**flags))
    return grid.sections(grid_geometry(grid, options(**flags)))[0][0]


def test_strebelle_orientation(real_data: Path):
    """All nine hard data of the Strebelle image agree with the grid; its proportions are the known ones."""
    folder = real_data / "facies"
    found = read_training_data(
        options(training_image=folder / "strebelle_250.sgems", hard_data=folder / "strebelle_wells9.dat")
    )
    section = found.sections[0]
    assert section.wells is not None and len(section.wells) == 9 and section.wells.num_wells == 9
    assert section.wells.matches(section.labels).all()
    assert np.round(found.counts / found.counts.sum(), 4) == pytest.approx([0.7326, 0.2674])
    flipped = section.labels[::-1]
    assert not section.wells.matches(flipped).all()  # the test can tell the orientations apart


@pytest.mark.parametrize("codes", [(0, 128), (-1, 0, 2, 4)])
@pytest.mark.parametrize("form", ["sgems", "gslib"])
def test_grid_round_trip(tmp_path: Path, codes: tuple[int, ...], form: str):
    """A grid comes back with its codes, bottom row first in the file, classes in ascending order of code."""
    grid = np.random.default_rng(0).choice(codes, (5, 7))
    grid.flat[: len(codes)] = codes
    write_grid(tmp_path / "g.gslib", grid, header=GridHeader(form, "facies", "my title"))
    dims = (7, 5, 1) if form == "gslib" else ()
    assert (section_of(tmp_path / "g.gslib", grid_dims=dims) == grid).all()
    values = [int(v) for v in (tmp_path / "g.gslib").read_text().splitlines()[3:]]
    assert values[:7] == grid[-1].tolist()
    palette = Palette.from_codes(codes)
    labels = palette.from_codes_to_labels(grid, "g")
    assert labels.max() == len(codes) - 1 and (palette.to_codes(labels) == grid).all()
    read = read_grid(tmp_path / "g.gslib", dims=dims)
    assert read.header.form == form and read.header.variable == "facies"


def test_origin_and_z_down(tmp_path: Path):
    """Origin and cell size of the first line return; with z_down the first row of the file is on top."""
    grid = np.arange(12).reshape(3, 4) % 3
    geometry = GridGeometry((100.0, 20.0, 5.0), (10.0, 2.0, 1.0))
    write_grid(tmp_path / "g.sgems", grid, geometry)
    read = read_grid(tmp_path / "g.sgems")
    assert read.origin == (100, 20, 5) and read.cell_size == (10, 2, 1) and read.header.has_origin
    rows, cols = read.geometry().cells(np.array([100.0, 119.9]), np.array([20.0, 25.9]), 3)
    assert rows.tolist() == [2, 0] and cols.tolist() == [0, 1]
    assert (section_of(tmp_path / "g.sgems", z_down=True) == grid[::-1]).all()


def test_slices_of_a_volume(tmp_path: Path):
    """A 3-D grid is a set of sections along an axis; z of each section counts from the bottom."""
    codes = np.arange(2 * 3 * 4).reshape(2, 3, 4) % 5  # z, y, x
    text = "4 3 2\n1\nf\n" + "\n".join(map(str, codes.reshape(-1)))
    (tmp_path / "v.sgems").write_text(text)
    grid = read_grid(tmp_path / "v.sgems")
    sections = grid.sections(grid.geometry(slice_axis="y"))
    assert len(sections) == 3 and sections[1][1].axes == ("x", "z") and sections[1][1].position == 1
    assert (sections[1][0] == codes[::-1, 1]).all()
    maps = grid.sections(grid.geometry(slice_axis="z"))
    assert len(maps) == 2 and (maps[0][0] == codes[0, ::-1]).all()
    sides = grid.sections(grid.geometry(slice_axis="x"))
    assert len(sides) == 4 and (sides[2][0] == codes[::-1, :, 2]).all()
    assert section_axes((5, 1, 9)) == ("x", "z") and section_axes((5, 9, 1)) == ("x", "y")


def test_several_variables(tmp_path: Path):
    """One of several variables is chosen by name."""
    (tmp_path / "g.dat").write_text("2 2 1\n2\nporosity\nfacies\n0.1 1\n0.2 0\n0.3 1\n0.4 1\n")
    assert (section_of(tmp_path / "g.dat", variable="facies") == [[1, 1], [1, 0]]).all()
    with pytest.raises(DataError, match="--variable"):
        read_grid(tmp_path / "g.dat")
    with pytest.raises(DataError, match="porosity, facies"):
        read_grid(tmp_path / "g.dat", variable="rock")


def test_grdecl_by_hand(tmp_path: Path):
    """A section of 3 x 2 cells: x fastest, top layer first; a map: bottom row first; codes rise by 1."""
    codes = np.array([[0, 1, 2], [3, 4, 5]])
    write_grdecl(tmp_path / "xz.grdecl", codes, GridGeometry(axes=("x", "z")))
    text = (tmp_path / "xz.grdecl").read_text()
    assert "SPECGRID\n3 1 2 1 F /" in text and "FACIES\n1 2 3 4 5 6\n/" in text and "code + 1" in text
    write_grdecl(tmp_path / "xy.grdecl", codes + 1)
    assert "SPECGRID\n3 2 1 1 F /" in (tmp_path / "xy.grdecl").read_text()
    assert "FACIES\n4 5 6 1 2 3\n/" in (tmp_path / "xy.grdecl").read_text()
    assert (section_of(tmp_path / "xz.grdecl") == codes).all()
    assert (section_of(tmp_path / "xz.grdecl", z_down=True) == codes).all()
    assert (section_of(tmp_path / "xy.grdecl") == codes + 1).all()
    (tmp_path / "r.grdecl").write_text("-- note\nSPECGRID\n2 1 2 1 F /\nFACIES\n3*1 2 /\n")
    assert (section_of(tmp_path / "r.grdecl") == [[1, 1], [1, 2]]).all()
    (tmp_path / "s.grdecl").write_text("SPECGRID\n2 1 2 1 F /\nFACIES\n999999999*1 /\n")
    with pytest.raises(DataError, match="more FACIES values"):
        read_grdecl(tmp_path / "s.grdecl")


def test_grdecl_of_other_tools(tmp_path: Path):
    """--variable names the keyword of the codes; --grid_dims gives the size that the file lacks."""
    (tmp_path / "p.grdecl").write_text("LITHO\n1 2 3 4 5 6\n/\nPORO\n6*0.1 /\n")
    read = {"variable": "litho", "grid_dims": (3, 1, 2)}
    assert (section_of(tmp_path / "p.grdecl", **read) == [[1, 2, 3], [4, 5, 6]]).all()
    with pytest.raises(DataError, match="no keyword SPECGRID.*--grid_dims NX NY NZ"):
        section_of(tmp_path / "p.grdecl", variable="LITHO")
    with pytest.raises(DataError, match="no keyword FACIES.*--variable NAME"):
        section_of(tmp_path / "p.grdecl", grid_dims=(3, 1, 2))
    with pytest.raises(DataError, match=r"6 LITHO values, expected 8 \(4 x 1 x 2 cells\)"):
        section_of(tmp_path / "p.grdecl", variable="LITHO", grid_dims=(4, 1, 2))
    with pytest.raises(DataError, match=r"PORO value '6\*0.1', expected an integer"):
        section_of(tmp_path / "p.grdecl", variable="PORO", grid_dims=(3, 1, 2))


def test_axis_across_one_section(tmp_path: Path):
    """A flat grid cannot be sliced along an axis that it shows; its own thin axis may be named."""
    write_grid(tmp_path / "g.sgems", np.arange(6).reshape(2, 3) % 2)
    for axis in ("y", "z"):
        read_training_data(options(training_image=tmp_path / "g.sgems", slice_axis=axis))
    with pytest.raises(UserError, match="--slice_axis x: .*3 x 2 x 1 cells, one section"):
        read_training_data(options(training_image=tmp_path / "g.sgems", slice_axis="x"))


def test_geoeas_round_trip(tmp_path: Path):
    """A table comes back number by number."""
    rows = np.array([[1.5, 2, 3], [4, 5, 6.25]])
    write_geoeas(tmp_path / "t.dat", "title", ["x", "y", "facies"], rows)
    names, table = read_geoeas(tmp_path / "t.dat")
    assert names == ["x", "y", "facies"] and (table == rows).all()


HEAD = "2 2 1\n1\nfacies\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "0\n1\n0", "too few values: 3 found, .* need 4"),
        (HEAD + "0\n1\n0\n1\n1", "too many values: 5 found"),
        (HEAD + "0\n1\n0.5\n1", "value 3 is 0.5, expected integer"),
        (HEAD + "0\n1\nnan\n1", "value 3 is nan"),
        (HEAD + "0\n1\nsand\n1", "value 3 is 'sand'"),
        ("my grid\n1\nfacies\n0\n1\n0\n1", "is a title, .* --grid_dims"),
        ("0 2 1\n1\nfacies\n0\n", "grid of 0 x 2 x 1 cells, expected 1 to"),
        ("2 2 1\nx\nfacies\n0\n1\n0\n1", "number of variables"),
        ("900000 900000 900000\n1\nf\n0\n", "cells"),
        ("", "0 lines"),
        ("\0\1binary", "binary"),
    ],
)
def test_bad_grids(tmp_path: Path, text: str, message: str):
    """A grid that is not what its header says is refused with expected and found counts."""
    (tmp_path / "g.sgems").write_text(text)
    with pytest.raises(DataError, match=message):
        read_grid(tmp_path / "g.sgems")


def test_bad_tables(tmp_path: Path):
    """A table with a short row or a word in it is refused, the line named."""
    (tmp_path / "a.dat").write_text("t\n2\nx\nfacies\n1 2\n3\n")
    with pytest.raises(DataError, match="line 6 has 1 values, expected 2"):
        read_geoeas(tmp_path / "a.dat")
    (tmp_path / "a.dat").write_text("t\n2\nx\nfacies\n1 sand\n")
    with pytest.raises(DataError, match="line 5.*'sand'"):
        read_geoeas(tmp_path / "a.dat")
