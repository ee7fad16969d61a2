"""Wells from every format, on the right cells; what does not fit is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from facies_gan.dataset import read_training_data
from facies_gan.geometry import GridGeometry
from facies_gan.images import write_png
from facies_gan.make_data import wells_image
from facies_gan.palette import Palette
from facies_gan.synthetic import make_wells
from facies_gan.well_files import read_hard_data, read_mapping, read_wells_png, write_hard_data, write_mapping
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import COLORS4, options, random_labels, write_root

PALETTE = Palette.from_colors(COLORS4)
LABELS = random_labels()


def as_map(wells: WellSet) -> dict[tuple[int, int], int]:
    """Return {(row, col): facies}."""
    return dict(
        zip(zip(wells.rows.tolist(), wells.cols.tolist(), strict=True), wells.facies.tolist(), strict=True)
    )


def test_wells_png_with_transparency(tmp_path: Path):
    """Transparent pixels hold no data; black ones that are opaque do."""
    wells = make_wells(0, 0, LABELS, 3, deviated=True)
    write_png(tmp_path / "w.png", wells_image(LABELS, wells, PALETTE))
    read = read_wells_png(tmp_path / "w.png", LABELS, PALETTE)
    assert as_map(read) == as_map(wells) and 0 in read.facies


def test_mapping_and_colours(tmp_path: Path):
    """In a mapped column every pixel is data, black too; the other pixels are none, whatever their colour."""
    rgb = np.zeros((*LABELS.shape, 3), dtype=np.uint8)
    rgb[:, 4] = PALETTE.to_rgb(LABELS[:, 4])
    write_png(tmp_path / "w.png", rgb)
    read = read_wells_png(tmp_path / "w.png", LABELS, PALETTE, columns=[4, 9])
    assert len(read) == 2 * LABELS.shape[0] and read.num_wells == 2
    assert (read.facies[read.cols == 4] == LABELS[:, 4]).all() and (read.facies[read.cols == 9] == 0).all()


def test_black_and_white_mask(tmp_path: Path):
    """A mask in black and white takes the facies of the section where it is white."""
    mask = np.zeros(LABELS.shape, dtype=bool)
    mask[:, 3] = mask[5, 11] = True
    write_png(tmp_path / "m.png", np.where(mask, 255, 0).astype(np.uint8))
    read = read_wells_png(tmp_path / "m.png", LABELS, PALETTE)
    assert (read.mask(LABELS.shape) == mask).all() and read.matches(LABELS).all() and read.num_wells == 2


def test_background_colour(tmp_path: Path):
    """The one colour that is no facies is the background, or the one that is named."""
    rgb = np.full((*LABELS.shape, 3), 200, dtype=np.uint8)
    rgb[2:5, 6] = PALETTE.to_rgb(LABELS[2:5, 6])
    write_png(tmp_path / "w.png", rgb)
    assert len(read_wells_png(tmp_path / "w.png", LABELS, PALETTE)) == 3
    assert len(read_wells_png(tmp_path / "w.png", LABELS, PALETTE, background=(200, 200, 200))) == 3
    rgb[rgb == 200] = 0
    rgb[0, 0] = (255, 0, 0)
    write_png(tmp_path / "w.png", rgb)
    with pytest.raises(DataError, match="every colour is a facies.*--well_background"):
        read_wells_png(tmp_path / "w.png", LABELS, PALETTE)


def test_mapping_round_trip_and_spellings(tmp_path: Path):
    """The mapping is written without pickles, and read under both names."""
    wells = {"a": WellSet.from_columns(LABELS, [2, 7]), "b": WellSet.from_columns(LABELS, [0])}
    for name in ("wells_mapping.npz", "wells_maping.npz"):
        folder = tmp_path / name
        write_mapping(folder / name, wells)
        found = read_mapping(folder)
        assert found is not None and found[0] == {"a": [2, 7], "b": [0]}
        with np.load(folder / name, allow_pickle=False) as arrays:
            assert arrays["counts"].tolist() == [16] * 3 and arrays["columns"].dtype == np.int64
    assert read_mapping(tmp_path) is None


def test_old_object_arrays(tmp_path: Path):
    """Object arrays of names and numbers are read; an array that names a function is refused, unexecuted."""
    names = np.array(["a", "bé"], dtype=object)
    columns = np.array([np.int64(3), 5], dtype=object)
    np.savez(tmp_path / "wells_maping.npz", columns=columns, counts=np.array([4, 4]), image_names=names)
    found = read_mapping(tmp_path)
    assert found is not None and found[0] == {"a": [3], "bé": [5]}

    class Bad:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "executed"), "w"))

    evil = np.array([Bad(), "b"], dtype=object)
    np.savez(
        tmp_path / "wells_mapping.npz", columns=np.array([3, 5]), counts=np.array([4, 4]), image_names=evil
    )
    with pytest.raises(DataError, match="open"):
        read_mapping(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("columns", "counts", "names", "message"),
    [
        ([99], [16], ["a"], "column 99 of a lies outside its 20 columns"),
        ([-1], [16], ["a"], "row 0 is column -1"),
        ([1, 2], [16, 0], ["a", "a"], "row 1 is column 2, count 0"),
        ([1], [16], ["zz"], "names section 'zz'"),
        ([1, 2], [16], ["a"], "lengths"),
    ],
)
def test_bad_mapping(tmp_path: Path, columns: list, counts: list, names: list, message: str):
    """A row of the mapping that fits no section is named."""
    write_root(tmp_path)
    (tmp_path / "wells").mkdir()
    path = tmp_path / "wells/wells_mapping.npz"
    np.savez(path, columns=np.array(columns), counts=np.array(counts), image_names=np.array(names))
    with pytest.raises(DataError, match=message):
        read_training_data(options(input_path=tmp_path))


def test_broken_npz(tmp_path: Path):
    """A cut archive and a header that lies about its size are refused."""
    np.savez(tmp_path / "wells_mapping.npz", columns=np.arange(3))
    data = (tmp_path / "wells_mapping.npz").read_bytes()
    (tmp_path / "wells_mapping.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="no readable .npz"):
        read_mapping(tmp_path)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "wells_mapping.npz", "w") as archive:
        archive.writestr("columns.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match="its header tells"):
        read_mapping(tmp_path)


@pytest.mark.parametrize("name", ["w.dat", "w.csv"])
@pytest.mark.parametrize(
    "geometry",
    [
        GridGeometry(),
        GridGeometry(axes=("x", "z")),
        GridGeometry((50.0, 0.0, -7.0), (10.0, 1.0, 0.5), axes=("x", "z")),
        GridGeometry(axes=("x", "z"), z_down=True),
    ],
)
def test_hard_data_round_trip(tmp_path: Path, name: str, geometry: GridGeometry):
    """Data written in the frame of a grid come back to their cells."""
    wells = make_wells(1, 0, LABELS, 4, deviated=True)
    write_hard_data(tmp_path / name, wells, LABELS.shape[0], PALETTE, geometry)
    read = read_hard_data(tmp_path / name, LABELS.shape, PALETTE, geometry)
    assert as_map(read) == as_map(wells)


def test_points_of_every_kind(tmp_path: Path):
    """Columns x y count from 1 and from the bottom, col row from 0 and from the top; wells may have names."""
    (tmp_path / "a.csv").write_text("x,y,facies\n1,1,2\n20,16,3\n")
    expected = {(15, 0): 2, (0, 19): 3}
    assert as_map(read_hard_data(tmp_path / "a.csv", (16, 20), PALETTE)) == expected
    (tmp_path / "b.csv").write_text("col,row,facies,well\n0,15,2,north\n19,0,3,south\n")
    named = read_hard_data(tmp_path / "b.csv", (16, 20), PALETTE)
    assert as_map(named) == expected and named.names == ("north", "south")
    np.savez(tmp_path / "c.npz", rows=[15, 0], cols=[0, 19], facies=[2, 3])
    assert as_map(read_hard_data(tmp_path / "c.npz", (16, 20), PALETTE)) == expected
    (tmp_path / "d.dat").write_text("t\n3\nx\ny\nfacies\n1 1 2\n20 16 3\n")
    for axes in (("x", "y"), ("x", "z")):
        assert (
            as_map(read_hard_data(tmp_path / "d.dat", (16, 20), PALETTE, GridGeometry(axes=axes))) == expected
        )
    (tmp_path / "e.csv").write_text("x,z,facies\n1,1,2\n20,16,3\n")  # an image does not say its axes
    assert as_map(read_hard_data(tmp_path / "e.csv", (16, 20), PALETTE)) == expected
    with pytest.raises(DataError, match="expected x and y"):  # but a map that is one of several does
        read_hard_data(tmp_path / "e.csv", (16, 20), PALETTE, GridGeometry(num_slices=3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,facies\n1,1,7\n", "facies codes 7 are unknown, expected one of 0, 1, 2, 3"),
        (
            "x,y,facies\n99,1,1\n1,1,1\n1.4,1,2\n",
            r"data 2 \(x 1 y 1, facies 1\) and 3 \(x 1.4 y 1, facies 2\) lie in one cell",
        ),
        ("x,y,facies\n", "holds no datum"),
        ("x;y;facies\n1;1;7\n", "facies codes 7 are unknown"),
        ("x,y,facies\n99,99,1\n", "none of its 1 data lies inside.*check --origin"),
        ("x,y,facies\n1,1,0.5\n", "datum 1 has facies 0.5"),
        ("x,y,facies\n1,nan,1\n", "datum 1 has y nan"),
        ("x,y,rocks\n1,1,1\n", "header"),
        ("x,y,facies\n1,1\n", "row 2 has 2 values, expected 3"),
        ("x,y,facies\n1,up,1\n", "column y"),
    ],
)
def test_bad_hard_data(tmp_path: Path, text: str, message: str):
    """Unknown codes, clashing data and data outside are refused with what was expected."""
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_hard_data(tmp_path / "w.csv", (16, 20), PALETTE)


def test_data_outside_are_left_out(tmp_path: Path):
    """Data beside the grid are dropped; with allow_empty even all of them."""
    (tmp_path / "w.csv").write_text("x,y,facies\n1,1,1\n50,1,2\n")
    assert len(read_hard_data(tmp_path / "w.csv", (16, 20), PALETTE)) == 1
    (tmp_path / "w.csv").write_text("x,y,facies\n50,1,2\n")
    assert len(read_hard_data(tmp_path / "w.csv", (16, 20), PALETTE, allow_empty=True)) == 0


def test_wells_of_another_size(tmp_path: Path):
    """A wells image of another size than its section is refused with both sizes, never resized."""
    write_root(tmp_path)
    write_png(tmp_path / "wells/a.png", np.zeros((16, 19, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"16 x 19 pixels .* 16 x 20"):
        read_training_data(options(input_path=tmp_path))


def test_selection_and_merging():
    """Chosen wells keep their data and are renumbered; merging never gives a cell two data."""
    wells = WellSet.from_columns(LABELS, [1, 5, 9])
    two = wells.select([2, 0])
    assert two.names == ("column 9", "column 1") and set(two.cols.tolist()) == {9, 1}
    both = two.merged(WellSet.from_columns(LABELS, [9, 12]))
    assert len(both) == 3 * LABELS.shape[0] and both.num_wells == 3
    tensor = both.tensor((16, 20), 4)
    assert tensor.shape == (5, 16, 20) and int(tensor[4].sum()) == len(both)
    assert (tensor[:4].argmax(0).numpy()[both.rows, both.cols] == both.facies).all()


def test_mode_of_a_mask_decides(tmp_path: Path):
    """Black and white facies: a grey image is a mask, colours without background are refused."""
    palette = Palette(np.array([(0, 0, 0), (255, 255, 255)]), np.arange(2), ("mud", "sand"))
    labels = LABELS % 2
    mask = np.zeros(LABELS.shape, dtype=np.uint8)
    mask[:, 2] = 255
    Image.fromarray(mask).save(tmp_path / "grey.png")
    assert len(read_wells_png(tmp_path / "grey.png", labels, palette)) == LABELS.shape[0]
    Image.fromarray(np.repeat(mask[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="every colour is a facies"):
        read_wells_png(tmp_path / "rgb.png", labels, palette)
