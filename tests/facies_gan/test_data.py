"""Data roots: colours to classes, files matched by stem, seismic, one image, and what is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import DataError, UserError
from facies_gan.color_encoder import ColorEncoder
from facies_gan.dataset import DataFiles, choose_sections, read_training_data
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import write_grid
from facies_gan.images import read_rgb, write_label_png, write_png
from facies_gan.palette import Palette, read_palette, write_palette
from facies_gan.seismic_files import read_seismic_file
from facies_gan.well_files import write_hard_data
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import COLORS4, options, random_labels, write_root


def test_data_files():
    """The three folders of a data root and their patterns."""
    assert DataFiles.FACIES.as_data_path() == Path("data/facies")
    assert DataFiles.WELLS.as_data_path("x") == Path("x/wells")
    patterns = (DataFiles.SEISMIC.as_image_file_pattern(), DataFiles.FACIES.as_model_file_pattern())
    assert (*patterns, DataFiles.WELLS.as_mapping_file_pattern()) == ("*.png", "*.pt", "*.npz")


def test_labels_follow_the_sorted_colours(tmp_path: Path):
    """Classes are the colours of the whole data set sorted by R, G, B, also where a section lacks one."""
    palette = Palette.from_colors(COLORS4)
    first, second = random_labels((16, 20)), random_labels((14, 30), 2)
    for stem, labels in (("b", first), ("a", second * 3)):
        write_png(tmp_path / "facies" / f"{stem}.png", palette.to_rgb(labels))
    found = read_training_data(options(input_path=tmp_path))
    assert found.palette == palette and [s.stem for s in found.sections] == ["a", "b"]
    assert (found.sections[1].labels == first).all() and (found.sections[0].labels == second * 3).all()
    assert found.counts.sum() == first.size + second.size


def test_palette_file_sets_order_and_names(tmp_path: Path):
    """palette.json fixes the order and names of the classes; it comes back as it was written."""
    write_root(tmp_path)
    palette = Palette(COLORS4[::-1], np.array([10, 20, 30, 40]), ("d", "c", "b", "a"))
    write_palette(tmp_path / "palette.json", palette)
    assert read_palette(tmp_path / "palette.json") == palette
    assert Palette.from_dict(json.loads(json.dumps(palette.to_dict()))) == palette
    found = read_training_data(options(input_path=tmp_path))
    assert found.palette == palette
    assert (found.sections[0].labels == 3 - random_labels((16, 20), seed=0)).all()


def test_matching_is_by_stem(tmp_path: Path):
    """Wells go to the section of their name, whatever the order and even when one is missing."""
    labels = write_root(tmp_path, ("a", "b", "c"))
    for stem in ("c", "a"):
        image = np.zeros((16, 20, 4), dtype=np.uint8)
        col = 3 if stem == "a" else 8
        image[:, col, :3] = COLORS4[labels[stem][:, col]]
        image[:, col, 3] = 255
        write_png(tmp_path / "wells" / f"{stem}.png", image)
    found = {s.stem: s for s in read_training_data(options(input_path=tmp_path)).sections}
    assert found["b"].wells is None
    for stem, col in (("a", 3), ("c", 8)):
        wells = found[stem].wells
        assert wells is not None and set(wells.cols.tolist()) == {col} and wells.matches(labels[stem]).all()
    off = read_training_data(options(input_path=tmp_path, use_wells=False))
    assert all(s.wells is None for s in off.sections)


def test_seismic_by_stem(tmp_path: Path):
    """Seismic is scaled by one mean and deviation; a missing file, another size and NaN are refused."""
    write_root(tmp_path)
    (tmp_path / "seismic").mkdir()
    flags = options(input_path=tmp_path, use_seismic=True)
    grids = {s: np.random.default_rng(i).normal(3, 2, (2, 16, 20)) for i, s in enumerate("ab")}
    for stem, grid in grids.items():
        np.save(tmp_path / f"seismic/{stem}.npy", grid.astype(np.float32))
    found = read_training_data(flags)
    both = np.stack([s.seismic for s in found.sections if s.seismic is not None])
    assert both.shape == (2, 2, 16, 20) and both.dtype == np.float32
    assert np.allclose(both.mean((0, 2, 3)), 0, atol=1e-5) and np.allclose(both.std((0, 2, 3)), 1, atol=1e-5)
    assert found.seismic_stats is not None
    again = found.seismic_stats.invert(both[0], channel_axis=0)
    assert np.allclose(again, grids["a"], atol=1e-4)
    np.save(tmp_path / "seismic/b.npy", np.full((2, 16, 20), np.nan))
    with pytest.raises(DataError, match="b.npy: 640 values are NaN"):
        read_training_data(flags)
    np.save(tmp_path / "seismic/b.npy", np.zeros((2, 16, 21)))
    with pytest.raises(DataError, match=r"16 x 21 cells .* 16 x 20"):
        read_training_data(flags)
    (tmp_path / "seismic/b.npy").unlink()
    with pytest.raises(DataError, match=r"1 of 2 sections have no seismic \(b\)"):
        read_training_data(flags)
    write_png(tmp_path / "seismic/b.png", np.arange(320, dtype=np.uint8).reshape(16, 20))
    with pytest.raises(DataError, match="1 channels, .* has 2"):
        read_training_data(flags)


def test_nearly_right_colours_snap(tmp_path: Path):
    """A rare colour at most 8 from a facies snaps; one further away is named with pixel and distance."""
    labels = random_labels((40, 40))
    rgb = Palette.from_colors(COLORS4).to_rgb(labels)
    rgb[7, 9] = COLORS4[labels[7, 9]] ^ np.array([5, 0, 5], dtype=np.uint8)
    write_png(tmp_path / "facies/a.png", rgb)
    found = read_training_data(options(input_path=tmp_path))
    assert found.num_classes == 4 and (found.sections[0].labels == labels).all()
    write_palette(tmp_path / "palette.json", found.palette)
    rgb[7, 9] = (90, 0, 0)
    write_png(tmp_path / "facies/a.png", rgb)
    with pytest.raises(DataError, match=r"a.png: pixel row 7 col 9 has colour \(90, 0, 0\).*at 90"):
        read_training_data(options(input_path=tmp_path))


def _png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def _bad_image(folder: Path, kind: str) -> None:
    """Write facies/a.png that is wrong in one way."""
    folder.mkdir(parents=True)
    path, good = folder / "a.png", folder / "good.png"
    rgb = Palette.from_colors(COLORS4).to_rgb(random_labels((40, 40)))
    if kind == "antialiased":
        fine = Image.fromarray(rgb).resize((90, 90), Image.Resampling.BICUBIC)
        fine.save(path)
    elif kind == "jpeg":
        Image.fromarray(rgb).save(path, format="JPEG")
    elif kind == "transparent":
        write_png(path, np.zeros((40, 40, 4), dtype=np.uint8))
    elif kind == "one colour":
        write_png(path, np.zeros((40, 40, 3), dtype=np.uint8))
    elif kind == "bomb":
        path.write_bytes(_png_bomb(14000))
    elif kind != "missing":
        write_png(good, np.random.default_rng(0).integers(0, 2, (60, 60, 3), dtype=np.uint8) * 255)
        data = good.read_bytes()
        good.unlink()
        size = {"empty": 0, "cut": len(data) // 2, "cut tail": len(data) - 12, "garbage": 0}[kind]
        path.write_bytes(b"not an image" if kind == "garbage" else data[:size])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "is empty, expected facies images"),
        ("empty", "a.png: empty file"),
        ("garbage", "a.png: no readable image"),
        ("cut", "a.png: .*the end of the PNG is missing"),
        ("cut tail", "a.png: .*the end of the PNG is missing"),
        ("jpeg", "a.png: is a JPEG"),
        ("antialiased", "a.png: .*colour.*at most 16.*antialiased"),
        ("transparent", "a.png.*(transparent|one colour)"),
        ("one colour", "a.png: one colour"),
        ("bomb", "a.png: unpacks to too many pixels"),
    ],
)
def test_bad_images(tmp_path: Path, kind: str, message: str):
    """An image that holds no facies is refused, named, and its fault said."""
    _bad_image(tmp_path / "facies", kind)
    with pytest.raises(DataError, match=message):
        read_training_data(options(input_path=tmp_path))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '[{"rgb": [0, 0, 300]}]', '[{"rgb": [0, 0, 0]}, {"rgb": [0, 0, 0]}]', "[1, 2]"]
)
def test_bad_palettes(tmp_path: Path, text: str):
    """palette.json that is no list of distinct colours is refused."""
    (tmp_path / "palette.json").write_text(text)
    with pytest.raises(DataError, match="palette.json"):
        read_palette(tmp_path / "palette.json")


def test_image_settings(tmp_path: Path):
    """Grey levels of another range are stretched; one channel reads brightness; four keep transparency."""
    grey = (np.arange(16, dtype=np.uint8).reshape(4, 4) % 2).astype(np.uint8)
    write_png(tmp_path / "a.png", grey)
    assert read_rgb(tmp_path / "a.png")[0].max() == 1
    assert set(np.unique(read_rgb(tmp_path / "a.png", value_range=(0, 1))[0])) == {0, 255}
    write_png(tmp_path / "c.png", np.tile(np.array([255, 0, 0], dtype=np.uint8), (4, 4, 1)))
    rgb, alpha = read_rgb(tmp_path / "c.png", channels=1)
    assert rgb[0, 0].tolist() == [76, 76, 76] and alpha is None
    assert read_rgb(tmp_path / "c.png", channels=4)[1] is not None


def test_values_beyond_the_range_are_refused(tmp_path: Path):
    """Values above full brightness would become one facies: refused with pixel and value, then stretched."""
    deep = np.zeros((16, 20), dtype=np.uint16)
    deep[:, 10:], deep[8:] = 20000, 65535
    Image.fromarray(deep).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"pixel row 0 col 10 has value 20000.*0 to 255.*--img_color_range"):
        read_training_data(options(training_image=tmp_path / "a.png"))
    flags = {"training_image": tmp_path / "a.png", "img_color_range": (0.0, 65535.0)}
    assert read_training_data(options(**flags)).num_classes == 3
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[0, 0] = 255, 255, 255, 0  # transparent: it may hold anything
    write_png(tmp_path / "t.png", rgba)
    assert read_rgb(tmp_path / "t.png", value_range=(0, 1))[1] is not None


def test_seismic_images_of_every_mode(tmp_path: Path):
    """A colour table, transparency and 16 bits are read as values, not as indices."""
    values = np.arange(0, 240, 12, dtype=np.uint8).reshape(4, 5)
    grey = Image.fromarray(values)
    table = grey.convert("P", palette=Image.Palette.ADAPTIVE)  # its indices are in no order of brightness
    for name, image in (
        ("L", grey),
        ("P", table),
        ("LA", grey.convert("LA")),
        ("RGBA", grey.convert("RGBA")),
    ):
        image.save(tmp_path / f"{name}.png")
        found = read_seismic_file(tmp_path / f"{name}.png")
        assert found.shape == (1, 4, 5) and (found[0] == values).all(), name
    Image.fromarray(values.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    assert (read_seismic_file(tmp_path / "deep.png")[0] == values * 200.0).all()
    grey.point(lambda v: 255 * (v > 100)).convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_seismic_file(tmp_path / "bits.png"))) == {0, 255}


def test_palette_png_round_trip(tmp_path: Path):
    """A written label image shows exactly the palette's colours."""
    palette, labels = Palette.from_colors(COLORS4), random_labels()
    write_label_png(tmp_path / "p.png", labels, palette.colors)
    assert (palette.to_labels(read_rgb(tmp_path / "p.png")[0], "p") == labels).all()


def test_rare_facies_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A facies in fewer than 0.1 % of the cells is kept, with a warning that it may vanish."""
    labels = np.zeros((60, 60), dtype=np.uint8)
    labels[:, 30:] = 1
    labels[0, 0] = 2
    write_png(tmp_path / "facies/a.png", COLORS4[labels])
    assert read_training_data(options(input_path=tmp_path)).num_classes == 3
    assert "may vanish" in capsys.readouterr().err


def test_single_images(tmp_path: Path):
    """One PNG or grid is one section; hard data that differ from it give a warning, seismic is refused."""
    labels = random_labels((16, 20), 3)
    write_png(tmp_path / "ti.png", COLORS4[labels])
    write_grid(tmp_path / "ti.sgems", labels.astype(int) * 10 - 10)
    (tmp_path / "w.csv").write_text(f"col,row,facies\n3,4,{labels[4, 3]}\n")
    png = read_training_data(options(training_image=tmp_path / "ti.png", hard_data=tmp_path / "w.csv"))
    grid = read_training_data(options(training_image=tmp_path / "ti.sgems"))
    assert png.is_single and (png.sections[0].labels == labels).all() and grid.header is not None
    assert (grid.sections[0].labels == labels).all() and grid.palette.codes.tolist() == [-10, 0, 10]
    wells = png.sections[0].wells
    assert wells is not None and wells.matches(labels).all()
    with pytest.raises(UserError, match="--use_seismic"):
        read_training_data(options(training_image=tmp_path / "ti.png", use_seismic=True))
    with pytest.raises(DataError, match="facies codes -10, 10 are unknown"):
        read_training_data(options(training_image=tmp_path / "ti.sgems"), palette=png.palette)
    continuous = np.arange(400).reshape(20, 20)
    write_grid(tmp_path / "c.sgems", continuous)
    with pytest.raises(DataError, match="400 facies codes"):
        read_training_data(options(training_image=tmp_path / "c.sgems"))


def test_hard_data_of_a_volume(tmp_path: Path):
    """Each datum of a 3-D grid lands on its own slice."""
    codes = np.arange(24).reshape(2, 3, 4) % 3
    (tmp_path / "v.sgems").write_text("4 3 2\n1\nf\n" + "\n".join(map(str, codes.reshape(-1))))
    rows = [(x + 1, y + 1, z + 1, codes[z, y, x]) for z, y, x in ((0, 1, 2), (1, 1, 0), (0, 2, 3))]
    body = "\n".join(" ".join(map(str, r)) for r in rows)
    (tmp_path / "w.dat").write_text(f"t\n4\nx\ny\nz\nfacies\n{body}\n")
    found = read_training_data(options(training_image=tmp_path / "v.sgems", hard_data=tmp_path / "w.dat"))
    counts = [0 if s.wells is None else len(s.wells) for s in found.sections]
    assert counts == [0, 2, 1]
    assert all(s.wells.matches(s.labels).all() for s in found.sections if s.wells is not None)


def test_choice_of_slices(tmp_path: Path):
    """Of a 3-D grid as many sections are used as asked for, with their own data; the palette is of all."""
    codes = np.arange(9)[:, None, None] * np.ones((1, 16, 20), dtype=int)  # z y x: a slice a code
    (tmp_path / "v.sgems").write_text("20 16 9\n1\nf\n" + "\n".join(map(str, codes.reshape(-1))))
    body = "\n".join(f"3 5 {z + 1} {z}" for z in range(9))
    (tmp_path / "w.dat").write_text(f"t\n4\nx\ny\nz\nfacies\n{body}\n")
    flags = {"training_image": tmp_path / "v.sgems", "hard_data": tmp_path / "w.dat", "slice_axis": "z"}
    some = read_training_data(options(num_train_pyramids=3, **flags), seed=1)
    chosen = choose_sections(9, 3, 1)
    assert [section.stem for section in some.sections] == [f"v_z{i:03d}" for i in chosen]
    assert [int(section.labels[0, 0]) for section in some.sections] == chosen and some.num_classes == 9
    assert all(section.wells.matches(section.labels).all() for section in some.sections if section.wells)
    assert len(read_training_data(options(**flags))) == 9


def test_frame_of_a_data_root(tmp_path: Path):
    """Tables of wells in coordinates land in their cells, by the origin and cell size that are given."""
    labels = write_root(tmp_path, ("a",), (16, 20))["a"]
    frame = {"origin": (1000.0, 1.0, -500.0), "cell_size": (25.0, 1.0, 2.0)}
    wells = WellSet.from_columns(labels, [3, 12])
    path = tmp_path / "wells/a.dat"
    path.parent.mkdir()
    own = GridGeometry(**frame, axes=("x", "z"))
    write_hard_data(path, wells, 16, Palette.from_colors(COLORS4), own)
    found = read_training_data(options(input_path=tmp_path, **frame)).sections[0]
    assert found.geometry == own and found.wells is not None
    assert len(found.wells) == 32 and found.wells.matches(labels).all()
    with pytest.raises(DataError, match="none of its 32 data lies inside"):
        read_training_data(options(input_path=tmp_path))
    with pytest.raises(UserError, match="--origin, --cell_size"):
        read_training_data(options(input_path=tmp_path, cell_size=(0.0, 1.0, 1.0)))


def test_flags_that_would_do_nothing(tmp_path: Path):
    """Flags of a training image with a data root, the reverse, and data without wells are refused."""
    write_root(tmp_path, ("a",))
    write_png(tmp_path / "ti.png", COLORS4[random_labels()])
    image = {"training_image": tmp_path / "ti.png"}
    for flags, name in (
        ({"hard_data": tmp_path / "w.csv"}, "--hard_data: works with --training_image"),
        ({"grid_dims": (3, 2, 1)}, "--grid_dims: works with --training_image"),
        ({"variable": "facies"}, "--variable: works with --training_image"),
        ({"slice_axis": "x"}, "--slice_axis: works with --training_image"),
        ({"well_background": (1, 2, 3), **image}, "--well_background: works with --input_path"),
        ({"hard_data": tmp_path / "w.csv", "use_wells": False, **image}, "--hard_data: would not be used"),
    ):
        with pytest.raises(UserError, match=name):
            read_training_data(options(input_path=tmp_path, **flags))


def test_images_that_are_no_png_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A JPEG beside the sections is left out, and said to be."""
    write_root(tmp_path)
    (tmp_path / "facies/c.jpg").write_bytes(b"")
    (tmp_path / "facies/a.pt.txt").write_bytes(b"")
    assert len(read_training_data(options(input_path=tmp_path))) == 2
    assert "1 images are no *.png and are left out (c.jpg)" in capsys.readouterr().err


def test_square_sections(tmp_path: Path):
    """Squared sections cover the same area: their wells stay on their facies, cells shrink on one axis."""
    labels = write_root(tmp_path, ("a",), (16, 32))
    (tmp_path / "wells").mkdir()
    (tmp_path / "wells/a.csv").write_text(f"col,row,facies\n5,7,{labels['a'][7, 5]}\n")
    section = read_training_data(options(input_path=tmp_path, square=True)).sections[0]
    assert section.shape == (32, 32) and section.geometry.cell_size == (1.0, 1.0, 0.5)
    assert (section.labels[::2] == labels["a"]).all()
    assert section.wells is not None and section.wells.matches(section.labels).all()


def test_choice_of_sections(tmp_path: Path):
    """The choice is seeded, ascending, and the palette stays that of all sections."""
    assert choose_sections(9, 0, 0) == list(range(9)) == choose_sections(9, 20, 0)
    assert choose_sections(50, 5, 1) == choose_sections(50, 5, 1) != choose_sections(50, 5, 2)
    for i in range(4):
        write_png(tmp_path / f"facies/{i}.png", COLORS4[np.full((16, 16), i)])
    found = read_training_data(options(input_path=tmp_path, num_train_pyramids=2))
    assert len(found) == 2 and found.num_classes == 4


def test_color_encoder():
    """Nearest colours become classes, classes their colours; weights are N / (C count) over their mean."""
    labels = np.array([[0, 0, 0, 1], [0, 0, 2, 3]])
    encoder = ColorEncoder(COLORS4[labels])
    assert encoder.num_classes == 4 and encoder.palette == Palette.from_colors(COLORS4)
    noisy = torch.from_numpy(COLORS4[labels].astype(np.float32)) + 20
    assert (encoder.encode(noisy) == torch.from_numpy(labels)).all()
    assert (encoder.decode(torch.from_numpy(labels)).numpy() == COLORS4[labels]).all()
    expected = np.array([8 / 20, 2, 2, 2])
    assert torch.allclose(encoder.class_weights(), torch.tensor(expected / expected.mean()).float())
    assert encoder.class_weights().dtype == torch.float32
    with pytest.raises(ValueError, match="no cells counted"):
        ColorEncoder(Palette.from_colors(COLORS4)).class_weights()


def test_codes_beyond_an_integer(tmp_path: Path):
    """A code of 2^63 is refused, beside a small one too: no cast to a float and back."""
    rows = [{"code": c, "name": str(c), "rgb": [0, 0, i]} for i, c in enumerate((0, 2**63))]
    (tmp_path / "palette.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"palette\.json: .*give every facies its own code"):
        read_palette(tmp_path / "palette.json")


@pytest.mark.parametrize("value", [1e308, 1.5, 2**63, float("nan")], ids=str)
def test_codes_that_a_cast_would_change(value: float):
    """They are refused, not stored as another integer; so are colours beyond 255."""
    with pytest.raises(ValueError, match="codes .*expected integers"):
        Palette(COLORS4, np.array([0, value, 2, 3]), ("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="colours .*expected integers of 0 to 255"):
        Palette(COLORS4.astype(int) + 200, np.arange(4), ("a", "b", "c", "d"))
