"""Evaluation: an oracle scores best, baselines stand beside, and all figures and files are there."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import figures
from common.errors import DataError, StrataError, UserError
from common.report import Row, load_rows
from fault_seg import evaluate as module
from fault_seg.config_infer import EvaluateConfig
from fault_seg.evaluate import MEASURES, evaluate, held_out
from fault_seg.evaluate_figures import absolute_error, draw_gallery, reliability
from fault_seg.evaluate_refine import verdict, verdict_table
from fault_seg.infer import load, predict
from fault_seg.maps import Model
from fault_seg.model import HEADS
from tests.fault_seg.cases import QUICK, SHAPE, make_cubes, noisy_layers, save_model

FILES = {"evaluation.json", "evaluation.md", "results.json"}


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of two training and two held-out cubes."""
    return make_cubes(tmp_path_factory.mktemp("cubes"), ntrain=2, nvalid=2)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random network."""
    return save_model(tmp_path_factory.mktemp("model") / "model.ckpt")


def measured(rows: list[Row]) -> dict[str, Row]:
    """Return the rows of the main table by the key of their measure."""
    keys = {name: key for key, (name, *_) in MEASURES.items()}
    return {keys[row.measure]: row for row in rows if row.measure in keys}


def all_finite(tree: Any) -> bool:
    """Tell whether a JSON document holds no null and no infinite number, HD95 of empty masks apart."""
    if isinstance(tree, dict):
        return all(all_finite(v) for k, v in tree.items() if not k.startswith("hd95"))
    if isinstance(tree, list):
        return all(map(all_finite, tree))
    return isinstance(tree, str) or (tree is not None and math.isfinite(tree))


def test_files_and_figures(cubes: Path, model_path: Path, tmp_path: Path):
    """Every file is written, every number finite, coherence and the other baselines beside ours."""
    rows = evaluate(EvaluateConfig(str(model_path), cubes), QUICK, tmp_path)
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == FILES
    drawn = {p.name for p in (tmp_path / "figures").iterdir()}
    curves = {"pr_curve.png", "threshold_sweep.png", "reliability.png"}
    assert drawn == curves | {"gallery.png", "gallery_timeslice.png", "gallery_inline.png"}
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(document["methods"]) == {"ours", "coherence", "empty", "all", "constant", "flat", "input"}
    base = np.mean(
        [(c["fsem"] > 0.5).mean() for c in held_out(EvaluateConfig(data=cubes), "valid", HEADS, 0)]
    )
    assert document["methods"]["all"]["mean"]["ap"] == pytest.approx(base, rel=1e-3)
    assert document["methods"]["empty"]["mean"]["recall"] == 0
    ours = document["methods"]["ours"]
    assert all_finite(ours["mean"]) and all_finite(document["methods"]["coherence"]["mean"])
    for method in ("ours", "constant"):
        mean = document["methods"][method]["mean"]
        medians = [cube["angle_median_deg"] for cube in document["methods"][method]["cubes"]]
        assert min(medians) - 0.01 <= mean["angle_median_pooled_deg"] <= max(medians) + 0.01
    assert len(ours["cubes"]) == 2 and document["sha256"] and document["run"]["package"] == "fault_seg"
    assert load_rows(tmp_path / "results.json") == rows
    found = measured(rows)
    assert set(found) == set(MEASURES)
    for key, row in found.items():
        assert row.parameters == 1_554_337 and row.seconds > 0
        assert set(row.baselines) == set(MEASURES[key][3]) - {"unet"}
        assert math.isfinite(row.ours) and all(map(math.isfinite, row.baselines.values()))
    table = (tmp_path / "evaluation.md").read_text()
    assert all(name in table for name, *_ in MEASURES.values()) and "coherence" in table
    assert all(f"`{key}`" in table for key in ("hd95_voxels", "ece", "ods", "dip_error_deg", "rgt_ssim"))


def test_oracle(cubes: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that knows the truth has every score at its best, well above the baselines."""
    config = EvaluateConfig(str(model_path), cubes, figures=False)
    known = [c for part in ("valid", "train") for c in held_out(config, part, HEADS, 0)]

    def oracle(_: Model, image: np.ndarray) -> dict[str, np.ndarray]:
        cube = next(c for c in known if np.array_equal(c["image"], image))
        return {name: values for name, values in cube.items() if name != "image"}

    monkeypatch.setattr(module, "predict", oracle)
    found = measured(evaluate(config, QUICK, tmp_path))
    for name in ("ap", "iou", "tol_iou"):
        assert found[name].ours == pytest.approx(1) and found[name].baselines["coherence"] < 0.9
    for name in ("angle_median_deg", "angle_median_pooled_deg"):
        assert found[name].ours < 0.1 < found[name].baselines["constant"]
    for name in ("rgt_mae", "horizon_median_samples"):
        assert found[name].ours < 1e-3 < found[name].baselines["flat"]
    assert "dhr_psnr_db" not in found  # infinite


@pytest.mark.parametrize("heads", [("fault",), ("dhr", "rgt")])
def test_partial_models(cubes: Path, tmp_path: Path, heads: tuple[str, ...]):
    """A model is measured on what it makes, and needs no other targets."""
    own = Path(shutil.copytree(cubes, tmp_path / "own"))
    if heads == ("fault",):
        for path in [*own.rglob("*_rgt.bin"), *own.rglob("*_dhr.bin")]:
            path.unlink()
    model = save_model(tmp_path / "model.ckpt", heads)
    found = measured(evaluate(EvaluateConfig(str(model), own, nvalid=1, ntune=1), QUICK, tmp_path / "out"))
    faults = {"ap", "iou", "tol_iou", "angle_median_deg", "angle_median_pooled_deg"}
    assert set(found) == (faults if heads == ("fault",) else set(MEASURES) - faults)


def test_unet_baseline_and_robustness(cubes: Path, model_path: Path, tmp_path: Path):
    """A unet trained on the spot stands beside ours; the robustness table has a row a preset and noise."""
    config = EvaluateConfig(
        str(model_path), cubes, baselines=("coherence,unet",), baseline_seconds=0.5, nvalid=1, ntune=1
    )
    config = replace(config, robustness=1, robustness_presets=("smoke",), figures=False)
    found = measured(evaluate(config, QUICK, tmp_path))
    assert set(found["ap"].baselines) == {"coherence", "unet"} and 0 < found["ap"].baselines["unet"] < 1
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["noise_up_to"] for row in document["robustness"]] == [0.0, 0.4, 0.8]
    assert "| smoke | 0.4 |" in (tmp_path / "evaluation.md").read_text()
    rows = {row.measure: row for row in load_rows(tmp_path / "results.json")}
    ours, other = (document["methods"][name]["cubes"][0]["ap"] for name in ("ours", "coherence"))
    assert rows["cubes whose AP is above coherence's"].ours == float(ours > other)
    for row in document["robustness"]:
        measure = f"fault average precision, smoke, noise up to {row['noise_up_to']:g}, 1 cubes"
        assert rows[measure].ours == pytest.approx(row["ap"])
        assert rows[measure].baselines == {"coherence": pytest.approx(row["coherence_ap"])}
    with pytest.raises(ValueError, match="--baselines magic"):
        replace(config, baselines=("coherence,magic",))


def test_refining_model(cubes: Path, tmp_path: Path):
    """A model of kind refine is scored beside the degraded volumes, after one pass and after the last."""
    model = save_model(tmp_path / "refine.ckpt", kind="refine")
    config = EvaluateConfig(str(model), cubes, nvalid=1, refine_iters=2)
    rows = evaluate(config, QUICK, tmp_path / "out")
    document = json.loads((tmp_path / "out/evaluation.json").read_text())
    means = [stage["mean"] for stage in document["passes"]]
    assert len(means) == 3 and {row.baselines["input"] for row in rows} <= set(means[0].values())
    assert {row.measure.split(", ")[-1] for row in rows} == {"1 pass", "2 passes"}
    assert [v["measure"] for v in document["verdicts"]] == ["iou", "rgt_mae", "dhr_correlation"]
    assert all(v["means"] == [m[v["measure"]] for m in means] for v in document["verdicts"])
    said = (tmp_path / "out/evaluation.md").read_text()
    assert "| input | pass 1 | pass 2 | pass 1 better |" in said and "pass 2 no worse than pass 1" in said
    drawn = {p.name for p in (tmp_path / "out/figures").iterdir()}
    assert drawn == {"passes.png", "gallery_inline.png"}


def test_verdicts_of_refinement():
    """Better means higher IoU and correlation but lower MAE; later passes are held against the first."""

    def of(key: str, *columns: list[float]) -> dict[str, Any]:
        return verdict(key, [[{key: value} for value in column] for column in columns])

    iou = of("iou", [0.5, 0.7, math.nan], [0.6, 0.69, math.nan], [0.6, 0.65, 0.1], [0.6, 0.62, math.nan])
    assert iou["means"] == pytest.approx([0.6, 0.645, 0.45, 0.61])
    assert iou["better_after_one"] and not iou["no_worse_at_last"] and iou["no_worse_than_input"]
    assert iou["cubes_better_after_one"] == 0.5  # of the two that have an IoU
    mae = of("rgt_mae", [0.02, 0.03], [0.01, 0.02], [0.01, 0.02])
    assert mae["better_after_one"] and mae["no_worse_at_last"] and mae["cubes_better_after_one"] == 1
    assert not of("rgt_mae", [0.01], [0.02], [0.02])["better_after_one"]
    unknown = of("iou", [math.nan], [math.nan])
    assert not unknown["better_after_one"] and not unknown["no_worse_at_last"]
    assert "| 0.6 | 0.645 | 0.45 | 0.61 | yes | 50% | no | yes |" in verdict_table([iou])


def test_labels_of_a_survey(model_path: Path, tmp_path: Path):
    """A survey is scored on its labelled voxels alone."""
    image = noisy_layers((24, 20, 16))
    labels = np.full(image.shape, -1, np.float32)
    probability = predict(load(model_path), image)["fsem"]
    labels[:, :, 5] = probability[:, :, 5] >= 0.5  # all right where it is labelled
    np.save(tmp_path / "in.npy", image)
    np.save(tmp_path / "labels.npy", labels)
    config = EvaluateConfig(
        str(model_path), input=str(tmp_path / "in.npy"), labels=str(tmp_path / "labels.npy")
    )
    found = measured(evaluate(config, QUICK, tmp_path / "out"))
    assert found["iou"].ours > 0.97 and found["ap"].ours > 0.99
    assert found["iou"].baselines["coherence"] < 0.8
    with pytest.raises(ValueError, match="--input and --labels: one without the other"):
        replace(config, labels="")


def test_reliability_of_honest_probabilities():
    """Voxels that are faults as often as they say lie on the diagonal; over-confident ones below it."""
    p = np.random.default_rng(0).uniform(size=200_000)
    labels = (np.random.default_rng(1).uniform(size=p.size) < p).astype(float)
    mean, share = reliability(p, labels)
    np.testing.assert_allclose(mean, share, atol=0.02)
    mean, share = reliability(p**0.25, labels)
    assert (share[mean > 0.3] < mean[mean > 0.3] - 0.05)[:-2].all()


def test_only_the_cubes_asked_for_are_read(cubes: Path, model_path: Path, tmp_path: Path):
    """--nvalid 1 --ntune 1 read no other cube, which may be bad then."""
    own = Path(shutil.copytree(cubes, tmp_path / "own"))
    for part in ("train", "valid"):
        np.full(SHAPE, np.nan, "<f4").tofile(own / f"data_{part}/1.bin")
    config = EvaluateConfig(str(model_path), own, nvalid=1, ntune=1, figures=False)
    assert evaluate(config, replace(QUICK, dry_run=True), tmp_path / "out") == []
    with pytest.raises(DataError, match=r"data_valid/1.bin: nan at z 0 y 0 x 0"):
        evaluate(replace(config, nvalid=2), QUICK, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"nvalid": 9}, DataError, "2 samples found, 9 asked for"),
        ({"ntune": 0}, UserError, "--ntune 0"),
        ({"data": Path("absent")}, DataError, "absent/data_valid: no such folder"),
        ({"model": "absent.ckpt"}, DataError, "absent.ckpt: no such checkpoint"),
    ],
)
def test_bad_input(
    cubes: Path,
    model_path: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[StrataError],
    message: str,
):
    """What cannot be evaluated ends in one line."""
    with pytest.raises(kind, match=message):
        evaluate(replace(EvaluateConfig(str(model_path), cubes), **changes), QUICK, tmp_path)


def test_output_that_cannot_be_written(cubes: Path, model_path: Path, tmp_path: Path):
    """A file where the folder shall be is a usage error before any work."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="cannot be made a folder"):
        evaluate(EvaluateConfig(str(model_path), cubes), QUICK, tmp_path / "out")


def test_gallery_shows_the_error_of_each_cube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """|probability - truth| on one scale 0..1 ends each row of the gallery; unlabelled voxels have none."""
    labels = np.array([[0.0, 1.0], [-1.0, 1.0]], np.float32)
    found = np.array([[0.25, 0.25], [0.5, 1.0]], np.float32)
    expected = [[0.25, 0.75], [np.nan, 0.0]]
    np.testing.assert_allclose(absolute_error(found, labels), expected)
    drawn: list[tuple[str, np.ndarray, object]] = []
    real = figures.section

    def spy(ax: object, values: np.ndarray, **more: Any) -> object:
        drawn.append((more.get("value_label", ""), np.asarray(values), more.get("limits")))
        return real(ax, values, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(figures, "section", spy)
    cube = {"image": np.zeros((3, 2, 2), np.float32), "fsem": np.stack([labels] * 3)}
    probability = {"ours": [np.stack([found] * 3)], "coherence": [np.zeros((3, 2, 2), np.float32)]}
    draw_gallery(tmp_path / "gallery.png", [cube], probability, {0: "worst"})
    assert len(drawn) == 5 and (tmp_path / "gallery.png").is_file()
    name, values, limits = drawn[-1]
    assert name == "|probability \N{MINUS SIGN} truth|" and limits == (0.0, 1.0)
    np.testing.assert_allclose(values, expected)
