"""generate, flag by flag: both spellings, defaults, what each changes; and the page that a user opens."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import parse
from common.errors import StrataError
from common.run import MachineOptions
from facies_gan import infer
from facies_gan.config_generate import GenerateConfig
from facies_gan.gslib import write_grid
from facies_gan.images import write_label_png
from facies_gan.simulator import Simulator
from facies_gan.train import train
from tests.facies_gan.cases_gan import (
    bands,
    enliven_run,
    options,
    palette,
    run_options,
    trained,
    write_folder,
)
from tests.facies_gan.test_generate import make, points

# Words on the command line, and the value that they mean.
WORDS: dict[str, tuple[str, Any]] = {
    "model_path": ("a/b", Path("a/b")),
    "how_many": ("3", 3),
    "out_path": ("c", Path("c")),
    "wells": ("8", 8),
    "well_ids": ("0 4", (0, 4)),
    "well_sections": ("one two", ("one", "two")),
    "hard_data": ("w.dat", Path("w.dat")),
    "wells_png": ("w.png", Path("w.png")),
    "well_background": ("1 2 3 --wells_png w.png", (1, 2, 3)),
    "seismic": ("s.npy", Path("s.npy")),
    "size": ("40 60", (40, 60)),
    "grid_from": ("g.gslib", Path("g.gslib")),
    "origin": ("0 5 7", (0.0, 5.0, 7.0)),
    "cell_size": ("2 3 4", (2.0, 3.0, 4.0)),
    "z_down": ("", True),
    "grid_dims": ("3 1 5 --grid_from g", (3, 1, 5)),
    "variable": ("facies --grid_from g", "facies"),
    "batch_size": ("2", 2),
    "tile": ("256", 256),
    "halo": ("9 --tile 64", "9"),
    "formats": ("gslib grdecl", ("gslib", "grdecl")),
    "first_index": ("5", 5),
    "noise_scale": ("0.5", 0.5),
    "vary_from_scale": ("1", 1),
    "rec": ("", True),
    "plot_well_mask": ("", True),
    "comparison_plots": ("", True),
    "plot_mds": ("", True),
    "allow_unconditioned": ("", True),
}
DEFAULTS = {
    "how_many": 16, "out_path": Path("results/generated"), "wells": 0, "size": (), "batch_size": 8, "tile": 0,
    "halo": "auto", "formats": ("png", "npy"), "first_index": 0, "noise_scale": 1.0, "vary_from_scale": 0,
    "rec": False, "plot_well_mask": False, "comparison_plots": False, "plot_mds": False, "hard_data": None,
    "well_ids": (), "well_sections": (), "seismic": None, "grid_from": None, "allow_unconditioned": False,
}  # fmt: skip
# Of each flag: the flags of both runs, and the value of the second.
EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "model_path": ({}, "other"),
    "how_many": ({}, 2),
    "wells": ({"size": ()}, 1),
    "well_ids": ({"size": ()}, (1,)),
    "well_sections": ({"size": ()}, ("image",)),
    "hard_data": ({}, "points.csv"),
    "wells_png": ({}, "grey.png"),
    "well_background": ({"wells_png": "wells.png"}, (255, 255, 255)),
    "seismic": ({}, "seismic.npy"),
    "size": ({}, (20, 24)),
    "grid_from": ({"size": ()}, "grid"),
    "origin": ({"hard_data": "points.csv"}, (2.0, 1.0, 1.0)),
    "cell_size": ({"formats": ("gslib",)}, (2.0, 1.0, 1.0)),
    "z_down": ({"hard_data": "world.csv"}, True),
    "grid_dims": ({"size": (), "grid_from": "titled"}, (18, 1, 14)),
    "variable": ({"size": (), "grid_from": "two"}, "second"),
    "batch_size": ({"how_many": 2}, 1),
    "tile": ({}, 16),
    "halo": ({"tile": 16}, "1"),
    "formats": ({}, ("grdecl",)),
    "first_index": ({}, 1),
    "noise_scale": ({"size": (26, 30)}, 0.0),
    "vary_from_scale": ({"first_index": 1}, 1),
    "rec": ({}, True),
    "plot_well_mask": ({}, True),
    "comparison_plots": ({}, True),
    "plot_mds": ({"how_many": 2}, True),
    "allow_unconditioned": ({"hard_data": "far.csv"}, True),
}
FILES = ("hard_data", "wells_png", "seismic", "grid_from")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models and a file for every flag that names one."""
    folder = tmp_path_factory.mktemp("generate")
    rows = [f"{col},{row},{bands()[row, col]}" for row, col in ((3, 5), (20, 31), (31, 0))]
    (folder / "hard.csv").write_text("\n".join(["col,row,facies", *rows]) + "\n")
    for name, count in (("model", 2), ("other", 3)):
        run = trained(
            folder / name, hard_data=folder / "hard.csv", num_iter=1, stop_scale=count - 1, plot_facies=False
        )
        enliven_run(run)
    points(folder, 1)
    (folder / "far.csv").write_text("col,row,facies\n700,4,0\n")
    (folder / "world.csv").write_text("x,y,facies\n3,4,0\n9,11,1\n")
    np.save(folder / "seismic.npy", np.zeros((16, 18), dtype=np.float32))
    image = np.full((16, 18, 3), 77, dtype=np.uint8)
    image[4, 7], image[9, 0] = 255, 0
    from facies_gan.images import write_png

    write_png(folder / "grey.png", image)
    write_label_png(folder / "wells.png", bands((16, 18)), palette().colors)
    write_grid(folder / "grid", bands((14, 18)))
    values = "\n".join(["0"] * 252)
    (folder / "titled").write_text(f"A title\n1\nfacies\n{values}\n")
    both = "\n".join(["0 1"] * 252)
    (folder / "two").write_text(f"18 1 14\n2\nfirst\nsecond\n{both}\n")
    return folder


def observed(place: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """Return a digest of the files of a set and of the passes that made it, or the error that ends it."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    changes = {name: place / v if name in FILES else v for name, v in changes.items()}
    model = place / changes.pop("model_path", "model") / "run"
    passes: list[Any] = []
    run = Simulator._run
    monkeypatch.setattr(
        Simulator, "_run", lambda self, told, noise, indices, boxes: (
            passes.append((list(indices), boxes)), run(self, told, noise, indices, boxes)
        )[1],
    )  # fmt: skip
    monkeypatch.setattr(infer.pictures, "draw_entropy", lambda *_: None)  # of every set, and slow
    try:
        config = GenerateConfig(
            model_path=model, out_path=out, **{"how_many": 1, "size": (16, 18), **changes}
        )
        infer.generate(config, MachineOptions(device="cpu", threads=1))
    except (StrataError, ValueError) as error:
        return str(error)
    finally:
        monkeypatch.undo()
    digest = hashlib.sha256(repr(passes).encode())
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(out)).encode())
        if path.name not in ("summary.json", "index.html"):  # these tell the time
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_every_flag_is_tried():
    """No flag of generate is left out; its output folder is what every test reads."""
    names = {field.name for field in dataclasses.fields(GenerateConfig)}
    assert names == set(WORDS) == {*EFFECTS, "out_path"}


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    """Return what was observed without a change, by the flags shared; filled as tests run."""
    return {}


@pytest.mark.parametrize("name", EFFECTS)
def test_flag_acts(place: Path, monkeypatch: pytest.MonkeyPatch, usual: dict[str, str], name: str):
    """With another value something else is made, or refused."""
    shared, value = EFFECTS[name]
    if repr(shared) not in usual:
        usual[repr(shared)] = observed(place, monkeypatch, **shared)
    assert observed(place, monkeypatch, **{**shared, name: value}) != usual[repr(shared)]


def test_the_same_flags_make_the_same(place: Path, monkeypatch: pytest.MonkeyPatch):
    """A set made again is the same, so that a difference means the flag."""
    assert observed(place, monkeypatch) == observed(place, monkeypatch)


@pytest.mark.parametrize("style", ["underscores", "hyphens"])
@pytest.mark.parametrize("name", WORDS)
def test_spellings(name: str, style: str):
    """Every flag, in both spellings and under each alias, sets the option that it names."""
    words, value = WORDS[name]
    (field,) = (f for f in dataclasses.fields(GenerateConfig) if f.name == name)
    for alias in (name, *field.metadata["aliases"]):
        flag = f"--{alias if style == 'underscores' else alias.replace('_', '-')}"
        rest = [] if name == "model_path" else ["--model_path", "m"]
        found = parse([*rest, flag, *words.split()], GenerateConfig, MachineOptions).config
        assert getattr(found, name) == value


def test_defaults():
    """What a user gets who names only the model."""
    found = vars(parse(["--model_path", "m"], GenerateConfig, MachineOptions).config)
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS
    assert DEFAULTS.keys() <= WORDS.keys()


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    """Return a run."""
    return place / "model" / "run"


def test_figures_name_their_realisations(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A part of a set is shown under the indices of its files."""
    titles: list[str] = []
    draw = infer.pictures.draw_grid
    monkeypatch.setattr(
        infer.pictures, "draw_grid", lambda *given, **more: (titles.append(given[3]), draw(*given, **more))
    )
    make(model, tmp_path / "out", first_index=7, comparison_plots=True)
    assert titles == ["reference", "realisation 7", "realisation 8"]


def test_page_of_a_set(model: Path, tmp_path: Path):
    """The page has spreads beside what was learnt, the data check, blending, facies, maps and the command."""
    summary = make(model, tmp_path / "out", hard_data=points(tmp_path, 1), comparison_plots=True, rec=True)
    page = (tmp_path / "out/index.html").read_text()
    learnt = summary["learnt_proportions"]
    assert list(learnt.values()) == pytest.approx([(bands() == c).mean() for c in (0, 1)])
    texts = ("<th>P10</th><th>P50</th><th>P90</th><th>sections learnt from</th>", "largest body (cells)")
    texts += ("data honoured (share): 1", "the network alone has right", "seam ratio", "(code 1)")
    texts += (
        "<p>Cells right (share): image 0.",
        "<h3>Command</h3>",
        'src="comparison.png"',
        'src="most_likely.png"',
        "2 data cells",
    )
    assert [text for text in texts if text not in page] == []
    free = make(model, tmp_path / "free")
    page = (tmp_path / "free/index.html").read_text()
    assert free["num_data"] == 0 and "no data" in page and "<h3>Data</h3>" not in page


def test_wells_in_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Wells of two sections in one column are one on the output grid, and that is said."""
    folder = write_folder(tmp_path / "data", 2, 2)
    (folder / "wells").mkdir()
    for i, col in ((0, 4), (1, 4)):
        facies = bands((24, 30), 2, i)[:, col]
        rows = "\n".join(f"{col},{row},{code}" for row, code in enumerate(facies))
        (folder / f"wells/xz_crossline_{i:03d}.csv").write_text(f"col,row,facies\n{rows}\n")
    train(
        options(input_path=folder, cache_dir=tmp_path / "cache", num_iter=1, stop_scale=1, plot_facies=False),
        run_options(tmp_path / "run"),
    )
    summary = make(tmp_path / "run", tmp_path / "out", wells=2, size=())
    assert (summary["num_data"], summary["num_wells"]) == (24, 1)
    assert "1 of 2 stored wells lie in cells that another one holds" in capsys.readouterr().err
