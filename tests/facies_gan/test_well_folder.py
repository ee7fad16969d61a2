"""The wells of a data root: files of one section together, misspelt names, the mapping's rows, odd images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from common.run import BasicOptions
from facies_gan.config_data import MakeDataConfig
from facies_gan.dataset import Section, read_training_data
from facies_gan.images import write_png
from facies_gan.make_data import make_data, wells_image
from facies_gan.palette import Palette
from facies_gan.synthetic import make_wells
from facies_gan.well_files import read_wells_png
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import COLORS4, options, random_labels, write_root

PALETTE = Palette.from_colors(COLORS4)


def first_section(root: Path, **flags: object) -> Section:
    """Return the first section of a data root."""
    return read_training_data(options(input_path=root, **flags)).sections[0]


def table(root: Path, name: str, *rows: tuple[int, int, int]) -> None:
    """Write wells/<name> with rows (col, row, facies)."""
    (root / "wells").mkdir(exist_ok=True)
    lines = ["col,row,facies", *(",".join(map(str, row)) for row in rows)]
    (root / "wells" / name).write_text("\n".join(lines))


def mapping(root: Path, columns: list[float], counts: list[float], names: list[str], file: str = "") -> None:
    """Write the mapping of columns."""
    (root / "wells").mkdir(exist_ok=True)
    arrays = {"columns": np.array(columns), "counts": np.array(counts), "image_names": np.array(names)}
    np.savez(root / "wells" / (file or "wells_mapping.npz"), **arrays)


def test_files_of_a_section_are_read_together(tmp_path: Path):
    """A table, an image and the mapped columns of one section all count: no datum is left out in silence."""
    labels = write_root(tmp_path, ("a",))["a"]
    table(tmp_path, "a.csv", (3, 4, labels[4, 3]), (9, 2, labels[2, 9]))
    wells = WellSet.from_columns(labels, [9])
    write_png(tmp_path / "wells/a.png", wells_image(labels, wells, PALETTE))
    found = first_section(tmp_path).wells
    assert found is not None and found.matches(labels).all()
    expected = wells.mask(labels.shape)
    expected[4, 3] = True
    assert (found.mask(labels.shape) == expected).all() and len(found) == 17
    (tmp_path / "wells/a.png").unlink()
    mapping(tmp_path, [9], [16], ["a"])
    mapped = first_section(tmp_path).wells
    assert mapped is not None and (mapped.mask(labels.shape) == expected).all()


def test_files_that_disagree(tmp_path: Path):
    """Two files with different facies for one cell are refused, with both codes."""
    labels = write_root(tmp_path, ("a",))["a"]
    other = (int(labels[2, 9]) + 1) % 4
    table(tmp_path, "a.csv", (9, 2, other))
    write_png(tmp_path / "wells/a.png", wells_image(labels, WellSet.from_columns(labels, [9]), PALETTE))
    message = rf"a\.png: row 2 col 9 .* has facies {labels[2, 9]}, a\.csv has {other} there \(1 such cells\)"
    with pytest.raises(DataError, match=message):
        read_training_data(options(input_path=tmp_path))


def test_names_that_fit_no_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file of wells that belongs to no section is told; so is a data root without wells."""
    write_root(tmp_path)
    read_training_data(options(input_path=tmp_path))
    assert "2 of 2 sections have no wells (a, b); they train on random wells" in capsys.readouterr().err
    table(tmp_path, "aa.csv", (0, 0, 0))
    mapping(tmp_path, [3, 4], [16, 16], ["a", "b"], "wells_maping.npz")
    mapping(tmp_path, [3, 4], [16, 16], ["a", "b"])
    read_training_data(options(input_path=tmp_path))
    said = capsys.readouterr().err
    assert "1 files belong to no section and are not read (aa.csv)" in said
    assert "wells_maping.npz: not read, wells_mapping.npz is there too" in said
    assert "train on random wells" not in said


@pytest.mark.parametrize(
    ("columns", "counts", "names", "message"),
    [
        ([1, np.inf], [16, 16], ["a", "a"], "row 1 is column inf"),
        ([1, 2], [16, np.nan], ["a", "a"], "row 1 is column 2.*count nan"),
        ([1, 99], [16, 16], ["a", "a"], "row 1: column 99 of a lies outside its 20 columns"),
        ([1, 2, 3], [16, 16, 16], ["a", "b", "zz"], "row 2 names section 'zz'"),
        ([1, 2], [16, 17], ["a", "a"], "row 1: 17 data cells in column 2 of a, which has 16 rows"),
    ],
)
def test_rows_of_the_mapping_are_named(
    tmp_path: Path, columns: list[float], counts: list[float], names: list[str], message: str
):
    """The row that fits no section is named by its number in the file."""
    write_root(tmp_path)
    mapping(tmp_path, columns, counts, names)
    with pytest.raises(DataError, match=message):
        read_training_data(options(input_path=tmp_path))


def test_deviated_wells_keep_their_number(tmp_path: Path):
    """Generated paths that touch or cross stay separate wells, beside an image that shows them all."""
    made = MakeDataConfig(num_sections=3, height=40, width=50, wells_per_section=3, deviated=True)
    make_data(made, BasicOptions(), tmp_path, 0)
    for index, section in enumerate(read_training_data(options(input_path=tmp_path)).sections):
        expected = make_wells(0, index, section.labels, 3, deviated=True)
        assert section.wells is not None and section.wells.num_wells == expected.num_wells == 3
        assert (section.wells.mask(section.shape) == expected.mask(section.shape)).all()
        assert section.wells.matches(section.labels).all()


def test_wells_are_read_as_their_sections(tmp_path: Path):
    """With other values or channels of the images, those of the wells are read in the same way."""
    labels = random_labels((16, 20), 2)
    write_png(tmp_path / "facies/a.png", labels)  # 0 and 1
    image = np.stack([labels, labels, labels, np.zeros_like(labels)], axis=2)
    image[:, 7, 3] = 255
    write_png(tmp_path / "wells/a.png", image)
    flags = {"img_color_range": (0.0, 1.0)}
    section = first_section(tmp_path, **flags)
    assert (section.labels == labels).all() and section.wells is not None
    assert set(section.wells.cols.tolist()) == {7} and section.wells.matches(labels).all()
    colors = np.array([(0, 0, 0), (0, 0, 255)], dtype=np.uint8)
    write_png(tmp_path / "facies/a.png", colors[labels])
    rgb = np.full((16, 20, 3), 200, dtype=np.uint8)
    rgb[:, 7] = colors[labels[:, 7]]
    write_png(tmp_path / "wells/a.png", rgb)
    grey = first_section(tmp_path, num_img_channels=1)
    assert grey.wells is not None and len(grey.wells) == 16 and grey.wells.matches(grey.labels).all()


def test_background_that_is_a_facies(tmp_path: Path):
    """A background colour that is a facies too is refused: the data of that facies could not be told."""
    labels = random_labels()
    rgb = np.zeros((16, 20, 3), dtype=np.uint8)
    rgb[:, 6] = COLORS4[labels[:, 6]]
    write_png(tmp_path / "w.png", rgb)
    with pytest.raises(DataError, match="--well_background 0 0 0 is a facies too.*wells_mapping.npz"):
        read_wells_png(tmp_path / "w.png", labels, PALETTE, background=(0, 0, 0))
    mapped = read_wells_png(tmp_path / "w.png", labels, PALETTE, columns=[6], background=(0, 0, 0))
    assert len(mapped) == 16 and mapped.matches(labels).all()


def test_black_data_on_white_are_no_mask(tmp_path: Path):
    """Black and white in colours, mostly white, while black is a facies: refused until it is said which."""
    labels = np.zeros((16, 20), dtype=np.uint8)
    rgb = np.full((16, 20, 3), 255, dtype=np.uint8)
    rgb[:, 6] = 0
    write_png(tmp_path / "w.png", rgb)
    with pytest.raises(DataError, match="95 % white: a mask, or data .*--well_background 255 255 255"):
        read_wells_png(tmp_path / "w.png", labels, PALETTE)
    told = read_wells_png(tmp_path / "w.png", labels, PALETTE, background=(255, 255, 255))
    assert len(told) == 16 and set(told.cols.tolist()) == {6}
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    assert len(read_wells_png(tmp_path / "grey.png", labels, PALETTE)) == 16 * 19


def test_suffixes_in_capitals(tmp_path: Path):
    """Cameras and old tools write .PNG and .CSV: they are read; two images of one name are refused."""
    labels = write_root(tmp_path, ("a",))["a"]
    (tmp_path / "facies/a.png").rename(tmp_path / "facies/a.PNG")
    table(tmp_path, "a.CSV", (3, 4, labels[4, 3]))
    section = first_section(tmp_path)
    assert section.stem == "a" and section.wells is not None and len(section.wells) == 1
    write_png(tmp_path / "facies/a.png", COLORS4[labels])
    with pytest.raises(DataError, match=r"a\.png: a\.PNG has this name too"):
        read_training_data(options(input_path=tmp_path))
