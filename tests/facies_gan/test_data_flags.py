"""Every flag of make_data and prep_data does something; flags that would do nothing are refused."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import parse
from common.errors import StrataError, UserError
from common.run import BasicOptions
from facies_gan import neural_smoother, setup
from facies_gan.config import RunOptions, TrainingOptions
from facies_gan.config_data import MakeDataConfig, PrepConfig
from facies_gan.gslib import write_grid
from facies_gan.images import write_png
from facies_gan.make_data import make_data
from facies_gan.prep import prepare
from tests.facies_gan.cases_data import COLORS4, random_labels
from tests.facies_gan.cases_gan import options, run_options

FOLDER, IMAGE, GRID, CUBE, TITLED, TWO = "folder", "ti.png", "ti.sgems", "cube", "titled", "two"
PREP: dict[str, tuple[str, Any]] = {
    "input_path": (FOLDER, "other"),
    "training_image": (GRID, IMAGE),
    "hard_data": (GRID, "w.csv"),
    "check": (FOLDER, True),
    "interpolator": (FOLDER, "nearest"),
    "min_size": (FOLDER, 14),
    "max_size": (FOLDER, 24),
    "stop_scale": (FOLDER, 1),
    "square": (FOLDER, True),
    "num_train_pyramids": (FOLDER, 1),
    "num_img_channels": (IMAGE, 1),
    "img_color_range": (IMAGE, (0.0, 510.0)),
    "use_wells": (FOLDER, False),
    "use_seismic": (FOLDER, True),
    "well_background": (FOLDER, (1, 2, 3)),
    "cache_dir": (FOLDER, "other_cache"),
    "clear_cache": (FOLDER, True),
    "slice_axis": (CUBE, "x"),
    "origin": (GRID, (3.0, 1.0, 1.0)),
    "cell_size": (GRID, (2.0, 1.0, 1.0)),
    "z_down": (GRID, True),
    "grid_dims": (TITLED, (20, 16, 1)),
    "variable": (TWO, "second"),
}
MAKE: dict[str, Any] = {
    "kind": "checkerboard",
    "num_sections": 2,
    "height": 20,
    "width": 26,
    "num_facies": 3,
    "wells_per_section": 2,
    "deviated": True,
    "with_seismic": True,
}
PATHS = ("input_path", "training_image", "hard_data", "cache_dir")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds data of every kind."""
    folder = tmp_path_factory.mktemp("flags")
    for name, seed in ((FOLDER, 0), ("other", 1)):
        small = MakeDataConfig(num_sections=2, height=24, width=30, with_seismic=True)
        make_data(small, BasicOptions(), folder / name, seed)
        (folder / name / "wells" / "wells_mapping.npz").unlink()
    opaque = np.full((24, 30, 3), 200, dtype=np.uint8)
    opaque[3, 3] = 0
    write_png(folder / FOLDER / "wells" / "xz_crossline_000.png", opaque)
    labels = random_labels((16, 20), 2)
    write_png(folder / IMAGE, COLORS4[labels])
    write_grid(folder / GRID, labels)
    (folder / "w.csv").write_text(f"x,y,facies\n4,3,{labels[13, 3]}\n")
    (folder / "always.csv").write_text(f"x,y,facies\n8,3,{labels[13, 7]}\n9,3,{labels[13, 8]}\n")
    text = "\n".join(map(str, labels[::-1].reshape(-1).tolist()))
    (folder / TITLED).write_text(f"A title\n1\nfacies\n{text}\n")
    both = "\n".join(f"{a} {1 - a}" for a in labels.reshape(-1).tolist())
    (folder / TWO).write_text(f"20 16 1\n2\nfirst\nsecond\n{both}\n")
    cells = np.random.default_rng(0).integers(0, 2, 13 * 14 * 15)
    (folder / CUBE).write_text("13 14 15\n1\nfacies\n" + "\n".join(map(str, cells.tolist())) + "\n")
    return folder


def prepared(place: Path, kind: str, **changes: Any) -> str:
    """Return all that a preparation tells and leaves, or the error that ends it."""
    for name in ("cache", "other_cache"):
        shutil.rmtree(place / name, ignore_errors=True)
    (place / "cache" / "facies_gan").mkdir(parents=True)
    (place / "cache" / "facies_gan" / "stale.npz").write_bytes(b"")
    values: dict[str, Any] = {"stop_scale": 2, "cache_dir": "cache"}
    values |= {"input_path": kind} if kind == FOLDER else {"training_image": kind}
    if kind == GRID:
        values["hard_data"] = "always.csv"
    values = {n: place / v if n in PATHS else v for n, v in {**values, **changes}.items()}
    try:
        told = prepare(PrepConfig(**values), num_workers=1)
    except (StrataError, ValueError) as error:
        return str(error)
    told.pop("seconds", None)
    left = sorted((str(p.relative_to(place)), p.read_bytes()) for p in place.rglob("*cache/facies_gan/*"))
    return repr((told, left))


@pytest.mark.parametrize("name", PREP)
def test_flag_of_prep_data_acts(place: Path, name: str):
    """With another value something else is told or left; the same flags tell and leave the same."""
    kind, value = PREP[name]
    before = prepared(place, kind)
    assert before != prepared(place, kind, **{name: value})
    if name in ("input_path", "origin"):
        assert before == prepared(place, kind)


def test_fit_steps_reach_the_smoothers(place: Path, monkeypatch: pytest.MonkeyPatch):
    """The smoothers of all sections are fitted together, with as many updates as --fit_steps says."""
    asked = []

    def fit(images: list[np.ndarray], num_classes: int, *, steps: int, **how: Any) -> list:
        asked.append((len(images), num_classes, steps))
        raise UserError("enough")

    monkeypatch.setattr(neural_smoother, "fit", fit)
    with pytest.raises(UserError, match="enough"):
        prepare(PrepConfig(place / FOLDER, interpolator="neural", fit_steps=7, cache_dir=place / "smooth"))
    assert asked == [(2, 4, 7)]


@pytest.mark.parametrize("name", MAKE)
def test_flag_of_make_data_acts(tmp_path: Path, name: str):
    """With another value other files are written."""
    small = MakeDataConfig(num_sections=1, height=24, width=30)
    written = []
    for i, changes in enumerate(({}, {name: MAKE[name]})):
        make_data(replace(small, **changes), BasicOptions(), tmp_path / str(i), 0)
        files = sorted(p for p in (tmp_path / str(i)).rglob("*") if p.is_file() and p.suffix != ".json")
        written.append([(str(p.relative_to(tmp_path / str(i))), p.read_bytes()) for p in files])
    assert written[0] != written[1]


def test_no_flag_is_left_out():
    """Every flag of both commands is tried above."""
    assert {field.name for field in dataclasses.fields(PrepConfig)} == {*PREP, "fit_steps"}
    assert {field.name for field in dataclasses.fields(MakeDataConfig)} == set(MAKE)


@pytest.mark.parametrize("kind", [PrepConfig, MakeDataConfig])
def test_both_spellings(kind: type):
    """Every flag parses with underscores and with hyphens, under its other names too."""
    tried = {**{name: value for name, (_, value) in PREP.items()}, **MAKE, "fit_steps": 7}
    for field in dataclasses.fields(kind):
        value = tried[field.name]
        words = [] if isinstance(value, bool) else [str(v) for v in np.atleast_1d(np.array(value))]
        for name in (field.name, *field.metadata["aliases"]):
            for spelling in (name, name.replace("_", "-")):
                flag = f"--{spelling}" if value is not False else f"--no-{spelling}"
                found = getattr(parse([flag, *words], kind, BasicOptions).config, field.name)
                assert str(found) == str(value), flag


@pytest.mark.parametrize("config", [PrepConfig, TrainingOptions])
@pytest.mark.parametrize(
    ("image", "flags", "message"),
    [
        ("a.png", {"grid_dims": (3, 2, 1)}, "--grid_dims: works with a grid file only"),
        ("a.png", {"variable": "x"}, "--variable: works with a grid file only"),
        ("a.png", {"slice_axis": "x"}, "--slice_axis: works with a grid file only"),
        ("a.sgems", {"num_img_channels": 1}, "--num_img_channels: works with images only"),
        ("a.grdecl", {"img_color_range": (0.0, 1.0)}, "--img_color_range: works with images only"),
        ("a.png", {"input_path": Path("d")}, "--input_path, --training_image: give one"),
        (None, {"img_color_range": (9.0, 9.0)}, "expected black below full brightness"),
    ],
)
def test_flags_of_other_data_are_refused(config: type, image: str | None, flags: dict, message: str):
    """What would do nothing with the data that are named is an error, for both commands that read them."""
    with pytest.raises(ValueError, match=message):
        config(training_image=Path(image) if image else None, **flags)


def test_training_finds_what_was_prepared(place: Path, monkeypatch: pytest.MonkeyPatch):
    """With the same sizes every pyramid of a training comes from the cache that prep_data filled."""
    cache = place / "filled"
    prepare(PrepConfig(place / FOLDER, max_size=64, stop_scale=2, cache_dir=cache))
    hits = []
    build = setup.facies_pyramids

    def counted(*args: Any, **kwargs: Any) -> Any:
        pyramids = build(*args, **kwargs)
        hits.append(kwargs["cache"].pyramid_hits)
        return pyramids

    monkeypatch.setattr(setup, "facies_pyramids", counted)
    setup.prepare(options(input_path=place / FOLDER, cache_dir=cache), run_options(place / "run"))
    assert hits == [2]


def test_default_of_the_run_folder_flags():
    """--out, --seed, --save_every and --num_workers keep their older names and defaults."""
    given = parse(
        ["--output_path", "r", "--manual-seed", "3", "--save_interval", "7", "--num_workers", "2"],
        TrainingOptions, RunOptions,
    ).run  # fmt: skip
    assert (given.out, given.seed, given.save_every, given.num_workers) == (Path("r"), 3, 7, 2)
    usual = parse([], TrainingOptions, RunOptions).run
    assert (usual.seed, usual.save_every, usual.num_workers, usual.profile_steps) == (0, 100, 4, 20)
