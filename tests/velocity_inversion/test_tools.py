"""Refinement of stored sections, export, Modal's functions, the library, the quick test."""

from __future__ import annotations

import json
import runpy
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import velocity_inversion
from common.errors import DataError, UserError
from common.run import TrainOptions
from tests.launch import ROOT
from tests.velocity_inversion.cases import CPU
from velocity_inversion import cloud
from velocity_inversion.bench_overfit import MadeSource, bench_overfit
from velocity_inversion.bench_refine import bench_refine
from velocity_inversion.config import smoke
from velocity_inversion.config_tools import EvaluateConfig, ExportConfig, InferConfig, RefineConfig
from velocity_inversion.equal_time import trainings
from velocity_inversion.export import example, export
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.infer import infer, load
from velocity_inversion.refine import RefineSettings, plan, smoothed
from velocity_inversion.refine_run import refine_all
from velocity_inversion.robustness import changes
from velocity_inversion.train import MODEL_FILE


@pytest.fixture(scope="module")
def predicted(data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an inference."""
    out = tmp_path_factory.mktemp("predicted")
    config = InferConfig(model_path=str(trained / MODEL_FILE), test_data_path=str(data / "test"))
    infer(replace(config, misfit="none", figures=0), CPU, out)
    return out


def test_refined_sections_fit_better(data: Path, trained: Path, predicted: Path, tmp_path: Path):
    """From the folder or the archive, by either mode, the misfit falls or stays; files say what was found."""
    config = RefineConfig(
        prediction_path=str(predicted), test_data_path=str(data / "test"), iterations=3, figures=1
    )
    rows = refine_all(config, CPU, tmp_path / "a")
    assert all(row["misfit_after"] <= row["misfit_before"] for row in rows)
    assert any(row["misfit_after"] < row["misfit_before"] for row in rows)
    stored = np.load(tmp_path / "a/refined.npz")
    assert sorted(stored.files) == [row["id"] for row in rows] and len(rows) == 2
    assert 1500 <= stored[rows[0]["id"]].min() <= stored[rows[0]["id"]].max() <= 4500
    assert json.loads((tmp_path / "a/summary.json").read_text())["samples"] == 2
    other = replace(
        config,
        prediction_path=str(predicted / "predictions.npz"),
        mode="data_space",
        model_path=str(trained / MODEL_FILE),
        relaxation=50.0,
        max_samples=1,
    )
    assert all(r["misfit_after"] <= r["misfit_before"] for r in refine_all(other, CPU, tmp_path / "b"))


def test_refinement_needs_its_predictions(data: Path, predicted: Path, tmp_path: Path):
    """Missing predictions are named."""
    config = RefineConfig(prediction_path=str(tmp_path), test_data_path=str(data / "test"))
    with pytest.raises(DataError, match="2 of 2 samples have no prediction"):
        refine_all(config, CPU, tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        refine_all(replace(config, prediction_path="absent"), CPU, tmp_path / "out")
    with pytest.raises(ValueError, match="add --model_path"):
        replace(config, mode="both")
    for name, value in (("smooth_cells", -2.0), ("near_misfit", float("nan")), ("step_km_s", float("nan"))):
        with pytest.raises(ValueError, match=f"--{name}"):
            replace(config, **{name: value})
    with pytest.raises(ValueError, match="expected corners"):
        replace(config, multiscale_hz="low,high")


def test_bands_share_the_iterations():
    """No iteration is lost; smoothing falls; L-BFGS gives most to the last band, Adam to the first."""
    bands = plan(RefineSettings(iterations=20, optimizer="adam"))
    assert [band.iterations for band in bands] == [8, 6, 6]
    assert bands[0].step_km_s > bands[1].step_km_s and bands[0].smooth_cells == 3 * bands[2].smooth_cells
    low, full = plan(RefineSettings(iterations=20))
    assert (low.iterations, full.iterations) == (8, 12) and low.corner_hz == 5.0 and not full.corner_hz
    assert low.smooth_cells == 2 * full.smooth_cells
    assert [b.iterations for b in plan(RefineSettings(iterations=4, bands_hz=(3.0, 5.0, 0.0)))] == [4]
    assert plan(RefineSettings(iterations=0, near_misfit=0.5), 0.1) == []
    for iterations, corners in ((1, [0.0]), (19, [0.0]), (30, [3.0, 5.0, 0.0]), (90, [3.0, 5.0, 0.0])):
        found = plan(RefineSettings(iterations=iterations))
        assert [band.corner_hz for band in found] == corners
        assert sum(band.iterations for band in found) == iterations


def test_a_near_start_is_refined_gently():
    """Below the misfit that counts as near all iterations go to the last band, with shorter steps."""
    settings = RefineSettings(iterations=20, optimizer="adam", near_misfit=0.3)
    (band,) = plan(settings, 0.2)
    last = plan(settings, 0.4)[-1]
    assert (band.corner_hz, band.iterations, band.smooth_cells) == (0.0, 20, last.smooth_cells)
    assert band.step_km_s < last.step_km_s
    assert len(plan(replace(settings, near_misfit=0.0), 0.2)) == 3


def test_smoothing_keeps_sums_and_is_wider_along_x():
    """A spike keeps its sum and spreads more along x than along z; nothing happens without smoothing."""
    spike = torch.zeros(61, 61)
    spike[30, 30] = 1
    found = smoothed(spike, 2.0)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(found[30, 38]) > float(found[38, 30]) and torch.equal(smoothed(spike, 0.0), spike)


def test_bench_of_refinement_starts_from_smoothed_truth(tmp_path: Path):
    """The table holds MAE before and after, and one iteration does no harm."""
    found = bench_refine(CPU, tmp_path, iterations=(1,), models=1)
    assert found["means"]["misfit_1"] <= found["means"]["misfit_start"]
    assert (tmp_path / "bench_refine.json").exists()


def test_bench_of_learning_by_heart(tmp_path: Path):
    """A small network comes nearer to its own two samples than their mean section; the file says so."""
    config = replace(smoke(), augment=False, learning_rate=5e-3, ema_decay=0.0)
    survey = replace(openfwi_survey(2, 12), num_samples=300)
    found = bench_overfit(CPU, tmp_path, {"ours": config}, budget_cpu_s=2.0, samples=2, survey=survey)
    source = MadeSource(survey, 2)
    by_hand = 1000 * np.abs(source.velocity(0) - source.velocity(1)).mean() / 2
    assert found["methods"]["mean section"]["mae"] == pytest.approx(by_hand, rel=1e-4)
    assert found["methods"]["ours"]["steps"] > 1 and found["methods"]["ours"]["mae_over_mean"] < 0.95
    assert json.loads((tmp_path / "bench_overfit.json").read_text())["samples"] == 2


@pytest.mark.parametrize("kind", ["safetensors", pytest.param("torch_export", marks=pytest.mark.slow)])
def test_exports_answer_as_the_ensemble(trained: Path, tmp_path: Path, kind: str):
    """The written file gives the ensemble's sections within 1e-4 km/s, for any number of samples."""
    config = ExportConfig(str(trained / MODEL_FILE), str(tmp_path / f"model.{kind}"), kind)
    made = export(config, CPU)
    assert made["max_abs_difference_km_s"] <= 1e-4 and made["members"] == 2
    with pytest.raises(UserError, match="exists"):
        export(config, CPU)
    if kind == "torch_export":
        with (tmp_path / f"model.{kind}").open("rb") as file:
            program = torch.export.load(file).module()
        assert program(*example(load(trained / MODEL_FILE), 5))[0].shape == (5, 70, 70)


def test_onnx_answers_as_the_ensemble(trained: Path, tmp_path: Path):
    """The ONNX file gives the ensemble's sections within 1e-4 km/s."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    config = ExportConfig(str(trained / MODEL_FILE), str(tmp_path / "model.onnx"), "onnx")
    assert export(config, CPU)["max_abs_difference_km_s"] <= 1e-4


def test_modal_functions_work_here(data: Path, trained: Path, tmp_path: Path):
    """Training, resuming, analysis and submission on a folder laid out as the volume is."""
    root = str(tmp_path)
    (tmp_path / "train").symlink_to(data / "train")
    (tmp_path / "test").symlink_to(data / "test")
    assert Path(cloud.analyze_data(root), "analysis.json").exists()
    with pytest.raises(UserError, match="no training to continue"):
        cloud.resume_training("smoke", root)
    with pytest.raises(UserError, match="expected one of"):
        cloud.train("huge", root)
    assert cloud.train("smoke", root) == "finished"
    assert cloud.resume_training("smoke", root) == "finished"
    stored = np.load(cloud.generate_submission(root))
    assert len(stored.files) == 2 and stored[stored.files[0]].dtype == np.float64


class _Fake:
    """Stands for everything of Modal: remembers functions by name."""

    def __init__(self, name: str = "", **_: Any) -> None:
        self.name, self.functions = name, {}

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_options: self

    def function(self, **options: Any) -> Any:
        return lambda f: self.functions.__setitem__(f.__name__, (f, options))


def test_modal_app_holds_the_four_functions(monkeypatch: pytest.MonkeyPatch):
    """The app registers them with GPU, memory and volume; without Modal the pip line is told."""
    monkeypatch.setitem(sys.modules, "modal", None)
    with pytest.raises(UserError, match="pip install modal"):
        cloud.make_app()
    fake: Any = types.ModuleType("modal")
    fake.App, fake.Volume, fake.Image = _Fake, _Fake("volume"), _Fake("image")
    monkeypatch.setitem(sys.modules, "modal", fake)
    functions = cloud.make_app().functions
    assert tuple(functions) == cloud.FUNCTIONS
    assert all(options["volumes"] for _, options in functions.values())
    assert functions["train"][1]["gpu"] == "A100" and functions["train"][1]["timeout"] == 24 * 3600
    assert functions["train"][0] is cloud.train


def test_a_loop_of_ones_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop that the documentation prints runs as it stands and reaches every weight."""
    text = (ROOT / "docs/velocity_inversion.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "loop.py").write_text(code)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/vel").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path("loop.py")
    model = found["model"]
    assert len(model.members) == 2 and found["pred"]["vp"].shape[1:] == (1, 70, 70)
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without and np.isfinite(float(found["loss"].detach()))


def test_quick_test_takes_the_first_sample(data: Path, trained: Path):
    """With paths, the first sample of the data and the trained ensemble."""
    one = velocity_inversion.quick_test_prediction(trained / MODEL_FILE, data / "test")
    assert one.id == "1_0000" and np.isfinite(one.misfit)


def test_equal_time_gives_both_networks_the_same(tmp_path: Path):
    """Both trainings have the same budget, data and seed; only the network differs."""
    config = EvaluateConfig(equal_time=7.0, train_data_path="a", val_data_path="b")
    made = trainings(config, replace(CPU, seed=3), tmp_path)
    (ours, run), (other, other_run) = made["ours"], made["inversionnet"]
    assert (
        replace(other, model="ensemble") == ours and ours.max_cpu_s == 7.0 and other.model == "inversionnet"
    )
    assert run.seed == other_run.seed == 3 and isinstance(run, TrainOptions)


def test_disturbances_do_what_they_say():
    """Noise has its level, dead traces their share, a lost shot is one shot, a gain a gain."""
    rng = np.random.default_rng(0)
    gathers = rng.standard_normal((5, 250, 70))
    made = changes(0.004, 15.0)
    live = np.ones((5, 70), dtype=bool)
    noise = made["noise, 20 dB"](gathers.copy(), live, rng) - gathers
    assert 20 * np.log10(gathers.std() / noise.std()) == pytest.approx(20, abs=0.1)
    assert 0.2 < 1 - (made["30 % of traces dead"](gathers.copy(), live, rng) != 0).any(1).mean() < 0.4
    live = np.ones((5, 70), dtype=bool)
    lost = made["a shot missing"](gathers.copy(), live, rng)
    assert sorted(live.all(1)) == [False, True, True, True, True] and not lost[~live.any(1)].any()
    np.testing.assert_allclose(made["gain 0.8"](gathers, live, rng), 0.8 * gathers)
    tone = np.fft.rfft(made["peak frequency +10 %"](gathers, live, rng), axis=1)
    plain = np.fft.rfft(gathers, axis=1)
    assert np.abs(tone[:, 30]).sum() > 1.1 * np.abs(plain[:, 30]).sum()  # 30 Hz gains
    assert np.abs(tone[:, 8]).sum() < 0.95 * np.abs(plain[:, 8]).sum()  # 8 Hz loses
