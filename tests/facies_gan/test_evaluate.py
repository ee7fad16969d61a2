"""Evaluation: what the report says is what was made; realisations of any simulator; wells that were drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, UserError
from common.report import format_number, load_rows
from common.run import MachineOptions
from facies_gan import metrics as M
from facies_gan.baselines import is_strebelle
from facies_gan.comparison import MEASURES, likely_accuracy, row_guess_accuracy, score, verdict
from facies_gan.config_evaluate import EvaluateConfig
from facies_gan.evaluate import evaluate
from facies_gan.evaluate_data import Case, Scene, read_case, read_realisations, scaled_frame
from facies_gan.evaluate_sets import Group, Maker, MethodSet, pasted
from facies_gan.evaluate_wells import PATTERNS, measure_blending
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import GridHeader, write_grid
from facies_gan.images import write_label_png
from facies_gan.model_files import load
from facies_gan.outputs import write_npy
from facies_gan.well_files import write_hard_data
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import blocky_labels
from tests.facies_gan.cases_gan import (
    bands,
    enliven_run,
    palette,
    random_model,
    trained,
    write_folder,
    write_image,
)

CPU = MachineOptions(device="cpu", threads=1)
FEW = {"how_many": 2, "baselines": ("tgs",), "max_lag": 8, "figures": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on one image of bands, hardly trained."""
    run = trained(tmp_path_factory.mktemp("run"))
    enliven_run(run)
    return run


def hard_data(path: Path, labels: np.ndarray, columns: list[int]) -> Path:
    """Write columns of a section as hard data."""
    write_hard_data(path, WellSet.from_columns(labels, columns), labels.shape[0], palette())
    return path


def test_report_of_a_model(model: Path, tmp_path: Path):
    """Every measure stands in JSON, tables and rows; figures are drawn; hard data are honoured."""
    wells = hard_data(tmp_path / "wells.dat", bands(), [3, 20, 30])
    config = EvaluateConfig(
        model_path=model, hard_data=wells, **{**FEW, "figures": True}, blending_count=2, holdout_wells=1
    )
    rows = evaluate(config, CPU, tmp_path / "report")
    found = json.loads((tmp_path / "report/evaluation.json").read_text())
    scores = found["scores"]
    assert set(scores) == {"ours", "unconditioned", "paste", "tgs"}
    assert scores["ours"]["hard_match"] == scores["paste"]["hard_match"] == scores["tgs"]["hard_match"] == 1
    assert "hard_match" not in scores["unconditioned"] and found["num_data"] == 96
    assert 0 <= scores["ours"]["hard_match_before"] < 1
    assert scores["ours"]["entropy_0"] == 0 < scores["ours"]["entropy_6"]
    for name in ("seam_ratio", "isolated", "mph4_stride4", "anodi_ratio", "copy_median", "entropy", "gamma"):
        assert np.isfinite(scores["ours"][name]), name
    assert set(found["half_vs_half"]) >= {"proportion", "variogram", "connectivity", "mph4"}
    assert [part["wells"] for part in found["blending"]] == [p.name for p in PATTERNS]
    assert all(part["methods"]["ours"]["hard_match"] == 1 for part in found["blending"])
    assert found["calibration"]["held_out_data"] == 32 and 0 <= found["calibration"]["ours"]["ece"] <= 1
    shares = [row["reference"] for row in found["facies"]]
    assert sum(shares) == pytest.approx(1) and found["hard_data"][0]["after_share"] == 1
    errors = [row["ours"]["error"] for row in found["facies"]]
    assert np.mean(errors) == pytest.approx(scores["ours"]["proportion"])
    text = (tmp_path / "report/evaluation.md").read_text()
    assert all(MEASURES[name].name in text for name in ("connectivity", "mph4", "seam_ratio"))
    assert "## Blending" in text and "## Calibration" in text and "half vs half" in text
    (line,) = (row for row in text.splitlines() if row.startswith("| bodies"))
    assert line.split(" | ")[-3] == format_number(found["reference"]["bodies"])  # what to aim at
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("<table>") == text.count("|---|") and "**" not in page
    assert all(f'src="figures/{name}"' in page for name in ("realisations.png", "calibration.png"))
    assert load_rows(tmp_path / "report/results.json") == rows
    assert {row.measure for row in rows} >= {"connectivity MAE", "4 x 4 patterns, JSD"}
    figures = {p.name for p in (tmp_path / "report/figures").iterdir()}
    assert figures == {
        *("realisations.png", "curves.png", "scores.png", "mds.png", "entropy.png", "blending.png"),
        "calibration.png",
    }
    with pytest.raises(UserError, match="holds a report"):
        evaluate(config, CPU, tmp_path / "report")
    evaluate(config, replace(CPU, overwrite=True, dry_run=True), tmp_path / "report")


def test_frame_of_the_reference(tmp_path: Path):
    """Dimensions, column, slices, direction and coordinates of a grid file are what the flags say."""
    cells = np.random.default_rng(0).integers(0, 2, (4, 5, 6))  # z y x
    values = [str(v) for v in cells.reshape(-1)]
    (tmp_path / "plain").write_text("\n".join(["6 5 4", "1", "facies", *values]) + "\n")
    (tmp_path / "titled").write_text("\n".join(["A title", "1", "facies", *values]) + "\n")
    two = [f"0 {v}" for v in values]
    (tmp_path / "two").write_text("\n".join(["6 5 4", "2", "none", "facies", *two]) + "\n")

    def scenes(name: str, **flags: Any) -> list[Scene]:
        config = EvaluateConfig(realisations=tmp_path, reference=tmp_path / name, **{**FEW, **flags})
        return read_case(config, None).scenes

    found = [scene.truth for scene in scenes("plain")]
    assert len(found) == 5 and all(np.array_equal(found[y], cells[::-1, y]) for y in range(5))
    for name, flags in (("titled", {"grid_dims": (6, 5, 4)}), ("two", {"variable": "facies"})):
        assert all(np.array_equal(a.truth, b) for a, b in zip(scenes(name, **flags), found, strict=True))
    assert np.array_equal(scenes("plain", slice_axis="x")[2].truth, cells[::-1, :, 2])
    assert np.array_equal(scenes("plain", z_down=True)[1].truth, cells[:, 1])
    some = scenes("plain", first_section=1, num_sections=2)
    assert [np.array_equal(s.truth, found[1 + i]) for i, s in enumerate(some)] == [True, True]
    flat = "\n".join(["6 1 4", "1", "facies", *map(str, cells[:, 0].reshape(-1))])
    (tmp_path / "flat").write_text(flat + "\n")
    (tmp_path / "wells.csv").write_text(f"x,z,facies\n25,130,{cells[1, 0, 2]}\n")
    frame = {"origin": (5.0, 1.0, 100.0), "cell_size": (10.0, 1.0, 20.0), "hard_data": tmp_path / "wells.csv"}
    wells = scenes("flat", **frame)[0].wells
    assert (wells.rows.tolist(), wells.cols.tolist()) == ([2], [2])


def test_frame_of_the_stored_reference(model: Path, tmp_path: Path):
    """Hard data in coordinates land in the cells of the image that travels with the model."""
    labels = bands()
    frame = {"origin": (500.0, -40.0, 1.0), "cell_size": (10.0, 2.0, 1.0)}
    wells = WellSet.from_columns(labels, [7])
    write_hard_data(tmp_path / "w.dat", wells, labels.shape[0], palette(), GridGeometry(**frame))
    card = load(model).card
    config = EvaluateConfig(model_path=model, hard_data=tmp_path / "w.dat", **FEW)
    found = read_case(replace(config, **frame), card).scenes[0].wells
    assert len(found) == 32 and found.matches(labels).all()
    with pytest.raises(DataError, match="none of its 32 data lies inside"):
        read_case(config, card)
    with pytest.raises(UserError, match="--origin, --cell_size"):
        read_case(replace(config, cell_size=(-1.0, 1.0, 1.0)), card)


def test_report_of_sections(tmp_path: Path):
    """Sections that were held out: their own wells, how much of them is guessed right, no figure left out."""
    data = write_folder(tmp_path / "data", 4)
    run = trained(tmp_path, num_classes=4, training_image=None, input_path=data, num_train_pyramids=2)
    config = EvaluateConfig(
        model_path=run, reference=data, first_section=2, blending_count=1, **{**FEW, "figures": True}
    )
    evaluate(config, CPU, tmp_path / "report")
    found = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert found["sections"] == 2 and found["num_data"] == 0 and set(found["scores"]) == {"ours", "tgs"}
    assert 0 <= found["scores"]["ours"]["cell_accuracy"] <= 1 and 0 < found["row_guess_accuracy"] <= 1
    assert "transiogram" in found["scores"]["ours"]
    assert (tmp_path / "report/figures/proportions.png").is_file()
    with pytest.raises(UserError, match="--first_section 9: .* has 4 sections"):
        evaluate(replace(config, first_section=9), CPU, tmp_path / "other")


@pytest.mark.parametrize("kind", ["npy", "stack", "gslib", "png"])
def test_files_of_any_simulator(tmp_path: Path, kind: str):
    """Grids of another program, in each form, give the scores of their labels; the model is not needed."""
    image = blocky_labels((32, 40))
    write_label_png(tmp_path / "image.png", image, palette().colors)
    grids = [blocky_labels((32, 40), seed=i) for i in (1, 2)]
    folder = tmp_path / "made"
    folder.mkdir()
    for i, grid in enumerate(grids):
        if kind == "npy":
            write_npy(folder / f"{i}.npy", grid)
        elif kind == "gslib":
            write_grid(folder / f"{i}.gslib", palette().to_codes(grid), GridGeometry(), GridHeader())
        elif kind == "png":
            write_label_png(folder / f"{i}.png", grid, palette().colors)
    if kind == "stack":
        write_npy(folder / "all.npy", np.stack(grids))
    config = EvaluateConfig(realisations=folder, reference=tmp_path / "image.png", **FEW)
    evaluate(config, CPU, tmp_path / "report")
    found = json.loads((tmp_path / "report/evaluation.json").read_text())
    expected = M.compare(grids, image, 2, max_lag=8)
    assert found["ours"] == "given" and found["scores"]["given"]["mph3"] == pytest.approx(expected["mph3"])
    assert found["scores"]["given"]["connectivity"] == pytest.approx(expected["connectivity"])
    assert set(found["scores"]) == {"given", "tgs"}


def test_the_reference_itself_is_perfect(tmp_path: Path):
    """Given as its own realisations, the reference has no error, all its data, and its own seam ratio."""
    image = blocky_labels((32, 40))
    write_label_png(tmp_path / "image.png", image, palette().colors)
    write_npy(tmp_path / "made/0.npy", image)
    wells = hard_data(tmp_path / "wells.dat", image, [5, 17])
    config = EvaluateConfig(
        realisations=tmp_path / "made", reference=tmp_path / "image.png", hard_data=wells, **FEW
    )
    evaluate(config, CPU, tmp_path / "report")
    found = json.loads((tmp_path / "report/evaluation.json").read_text())
    given = found["scores"]["given"]
    assert all(given[name] == 0 for name in ("proportion", "variogram", "connectivity", "mph2", "mph4"))
    assert given["hard_match"] == 1 and given["seam_ratio"] == found["reference"]["seam_ratio"]
    assert given["copy_median"] == 1 and "Parts are copied" in (tmp_path / "report/evaluation.md").read_text()


def test_bad_realisations(tmp_path: Path):
    """Files that are no realisations of these facies are refused, and say what was expected."""
    config = EvaluateConfig(realisations=tmp_path, reference=tmp_path)
    with pytest.raises(DataError, match="holds no realisation"):
        read_realisations(tmp_path, palette(), config)
    with pytest.raises(DataError, match="no such folder"):
        read_realisations(tmp_path / "absent", palette(), config)
    cases = [
        ({"a": np.full((4, 4), 2, np.uint8)}, "labels 2 to 2, expected 0 to 1"),
        ({"a": np.zeros((4, 4))}, "float64 of shape"),
        ({"a": np.zeros((4, 4), np.uint8), "b": np.zeros((5, 4), np.uint8)}, "grid 1 has 5 x 4 cells"),
    ]
    for number, (arrays, message) in enumerate(cases):
        for name, values in arrays.items():
            write_npy(tmp_path / str(number) / f"{name}.npy", values)
        with pytest.raises(DataError, match=message):
            read_realisations(tmp_path / str(number), palette(), config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--model_path: missing"),
        ({"realisations": Path("x")}, "nothing to compare with"),
        ({"realisations": Path("x"), "reference": Path("y"), "holdout_wells": 1}, "--holdout_wells"),
        ({"model_path": Path("x"), "baselines": ("kriging",)}, "--baselines kriging"),
        ({"model_path": Path("x"), "how_many": 0}, "--how_many 0"),
        ({"model_path": Path("x"), "tile": 3}, "--tile 3"),
        ({"model_path": Path("x"), "grid_dims": (1, 2)}, "--grid_dims: 2 numbers"),
    ],
)
def test_flags(flags: dict, message: str):
    """Flags that contradict each other are refused before anything is read."""
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**flags)


def test_usage_of_data(model: Path, tmp_path: Path):
    """Hard data need one image; a held-out well leaves one; absent references are named."""
    data = write_folder(tmp_path / "data", 2, num_classes=2)
    wells = hard_data(tmp_path / "wells.dat", bands(), [3])
    base = EvaluateConfig(model_path=model, **FEW)
    for changes, kind, message in (
        ({"reference": data, "hard_data": wells}, UserError, "works with one training image"),
        ({"hard_data": wells, "holdout_wells": 1, "blending_count": 0}, UserError, "has 1 wells; hold out"),
        ({"reference": tmp_path / "absent"}, DataError, "absent: no such file or folder"),
        ({"model_path": tmp_path}, DataError, "holds no run"),
    ):
        with pytest.raises(kind, match=message):
            evaluate(replace(base, **changes), CPU, tmp_path / "out")


def test_likely_section_and_guess():
    """Two thirds of the realisations decide; a layered section is guessed by its rows."""
    truth = np.repeat(np.arange(4, dtype=np.uint8) % 2, 5).reshape(4, 5)
    group = Group(np.stack([truth, truth, 1 - truth]), WellSet.empty(), truth)
    assert likely_accuracy(group, 2) == 1
    layered = Case(palette(), [Scene("a", truth), Scene("b", truth)])
    assert row_guess_accuracy(layered) == 1
    mixed = Case(palette(), [Scene("a", truth), Scene("b", truth), Scene("c", 1 - truth)])
    assert row_guess_accuracy(mixed) == pytest.approx(2 / 3)


def test_scores_leave_out_what_does_not_apply():
    """Without data there is no match, with one realisation no entropy, with one image no cell accuracy."""
    image = blocky_labels((32, 40))
    case = Case(palette(), [Scene("a", image)])
    one = score(MethodSet("x", [Group(image[None], WellSet.empty(), image)]), case, 8, 0)
    assert not {"hard_match", "entropy", "cell_accuracy", "anodi_ratio"} & set(one) and one["mph2"] == 0


def test_plain_facies_follow_the_order_of_the_data():
    """What the network says before injection belongs to the datum that it is compared with."""
    simulator = random_model()
    truth = bands((40, 48))
    case = Case(simulator.card.palette, [Scene("a", truth)])
    maker = Maker(EvaluateConfig(model_path=Path("x"), baselines=("none",)), case, simulator, 0)
    wells = WellSet.from_columns(truth, [30, 4, 17])  # not in the order of the cells
    made = maker.model([wells], 2).groups[0]
    assert made.plain is not None and made.plain.shape == (2, 120)
    shuffled = np.random.default_rng(0).permutation(120)
    other = WellSet(wells.rows[shuffled], wells.cols[shuffled], wells.facies[shuffled], np.zeros(120), ("w",))
    again = maker.model([other], 2).groups[0]
    assert (again.grids == made.grids).all() and (again.plain == made.plain[:, shuffled]).all()
    assert (made.plain != made.plain[:, shuffled]).any()


def test_blending_of_paste_is_a_seam():
    """Columns of the section pasted into other realisations change facies far more often than its own."""
    simulator = random_model(size=(32, 40))
    truth = bands((32, 40))
    case = Case(simulator.card.palette, [Scene("a", truth)])
    maker = Maker(EvaluateConfig(model_path=Path("x"), baselines=("tgs",)), case, simulator, 0)
    free = MethodSet("free", [Group(np.stack([np.roll(truth, 4, axis=0)] * 2), WellSet.empty(), truth)])
    for part in measure_blending(maker, free, 2, 0):
        own, pasted_in = (part.scores[n]["seam_ratio"] for n in ("reference", "paste"))
        assert pasted_in > 2 * own, part.pattern.name
        assert part.scores["paste"]["hard_match"] == part.scores["ours"]["hard_match"] == 1
    assert part.sets["ours"].groups[0].wells.num_wells == 64


def test_paste_leaves_the_rest():
    """Pasting changes data cells and nothing else."""
    truth = bands((32, 40))
    free = MethodSet("free", [Group(np.zeros((2, 32, 40), np.uint8), WellSet.empty(), truth)])
    wells = WellSet.from_columns(np.ones((32, 40), np.uint8), [3])
    grids = pasted(free, [wells]).groups[0].grids
    assert grids.sum() == 64 and (grids[:, :, 3] == 1).all()


def test_frame_of_another_resolution():
    """A grid of half as many cells covers the same ground."""
    frame = scaled_frame(GridGeometry(cell_size=(2.0, 3.0, 5.0)), (40, 60), (20, 30))
    assert frame.cell_size == (4.0, 6.0, 5.0) and frame.origin == GridGeometry().origin


def test_verdicts():
    """At most the band is matched, at most twice is close."""
    assert [verdict(r) for r in (0.9, 1.0, 1.5, 2.1, None)] == ["matched", "matched", "close", "off", ""]


def test_known_image(real_data):
    """The published figures belong to one image only."""
    from facies_gan.gslib import read_grid

    image = read_grid(real_data / "facies/strebelle_250.sgems").codes[0].astype(np.uint8)
    assert is_strebelle(image) and not is_strebelle(1 - image) and not is_strebelle(blocky_labels((250, 250)))


def test_image_of_bands_is_written(tmp_path: Path):
    """Realisations may be of another size than the reference; then no datum can be asked of them."""
    write_image(tmp_path / "image.png")
    write_npy(tmp_path / "made/0.npy", bands((40, 50)))
    config = EvaluateConfig(realisations=tmp_path / "made", reference=tmp_path / "image.png", **FEW)
    evaluate(config, CPU, tmp_path / "report")
    assert json.loads((tmp_path / "report/evaluation.json").read_text())["shape"] == [40, 50]
    wells = hard_data(tmp_path / "wells.dat", bands(), [3])
    with pytest.raises(UserError, match="40 x 50 cells, the reference 32 x 40"):
        evaluate(replace(config, hard_data=wells), CPU, tmp_path / "other")
