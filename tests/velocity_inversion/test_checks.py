"""What is checked before it is used, and what is said afterwards: models, splits, archives, names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from tests.velocity_inversion.cases import CPU, RUN, tiny_config
from velocity_inversion import evaluate as evaluation
from velocity_inversion.arrays import from_km_s, to_km_s
from velocity_inversion.config import TrainConfig
from velocity_inversion.config_tools import EvaluateConfig, InferConfig, RefineConfig
from velocity_inversion.ensemble import Calibration, Ensemble, load_ensemble, save_ensemble
from velocity_inversion.evaluate import evaluate
from velocity_inversion.geometry import Survey, challenge_survey, openfwi_survey
from velocity_inversion.infer import infer
from velocity_inversion.inversionnet import resampling_notice
from velocity_inversion.predictions import MemberPredictions
from velocity_inversion.quick import untrained
from velocity_inversion.refine_run import refine_all
from velocity_inversion.refiner import read_known
from velocity_inversion.sources import FolderSource, family_name, open_source, require_disjoint
from velocity_inversion.submission import absent_numbers, require_ids, write_archive
from velocity_inversion.train import MODEL_FILE, train

SMALL = TrainConfig(num_models=1, embed_dim=16, num_heads=2, num_layers=1, stem=8)


@pytest.fixture(scope="module")
def models(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models that nobody trained: for the data, and for shorter records."""
    folder = tmp_path_factory.mktemp("models")
    survey = open_source(data / "test").survey
    short = replace(survey, num_samples=survey.num_samples - 100)
    made = {"m": untrained(survey, SMALL), "short": untrained(short, SMALL)}
    for name, ensemble in made.items():
        save_ensemble(folder / f"{name}.pth", ensemble)
    return folder


def plain(data: Path, model: Path) -> InferConfig:
    """Return an inference that simulates and draws nothing."""
    return InferConfig(model_path=str(model), test_data_path=str(data / "test"), misfit="none", figures=0)


def scored(data: Path, model: Path, *others: Path) -> EvaluateConfig:
    """Return an evaluation beside the mean section and further models."""
    return EvaluateConfig(
        model_path=str(model),
        test_data_path=str(data / "test"),
        train_data_path=str(data / "train"),
        baseline_model=tuple(map(str, others)),
        baselines=("mean",),
        misfit_samples=0,
        figures=0,
    )


def test_models_of_other_records_are_refused(data: Path, models: Path, tmp_path: Path):
    """A model of shorter records is named before it is used, whatever it is used for."""
    good, short = models / "m.pth", models / "short.pth"
    refined = RefineConfig(
        str(tmp_path), str(data / "test"), model_path=str(short), mode="data_space", max_samples=1
    )
    diffusion = replace(tiny_config(data, tmp_path), stage="diffusion", model_path=str(short))
    (tmp_path / "1_0000").mkdir()
    np.save(tmp_path / "1_0000/vp_pred.npy", np.full((70, 70), 2500.0))
    for use in (
        lambda: infer(plain(data, short), CPU, tmp_path / "i"),
        lambda: evaluate(scored(data, short), CPU, tmp_path / "e"),
        lambda: evaluate(scored(data, good, short), CPU, tmp_path / "e"),
        lambda: refine_all(refined, CPU, tmp_path / "r"),
        lambda: train(diffusion, replace(RUN, out=tmp_path / "t")),
    ):
        with pytest.raises(DataError, match="records of 100 samples of 4 ms and 125 samples of 4 ms"):
            use()


def test_the_better_inversionnet_counts(data: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    """Of several InversionNets the best one stands in the table; other models keep names of their own."""
    source = open_source(data / "test")
    truth = np.stack([source.velocity(i) for i in range(len(source))])
    ours = load_ensemble(models / "m.pth")
    errors = {"a.pth": 0.3, "b.pth": 0.1, "c.pth": 0.2, "m.pth": 0.4, "x/runs/new/models/m.pth": 0.5}

    def stub_load(path: str) -> Ensemble:
        kind = "ensemble" if path.endswith("m.pth") else "inversionnet"
        return replace(ours, path=Path(path), configs=(replace(SMALL, model=kind),))

    def stub_predict(model: Ensemble, *_: object) -> MemberPredictions:
        found = torch.from_numpy(truth)[None] + errors[str(model.path)]
        return MemberPredictions(found, torch.ones_like(found))

    monkeypatch.setattr(evaluation, "load", stub_load)
    monkeypatch.setattr(evaluation, "predict_members", stub_predict)
    monkeypatch.chdir("/")
    found: dict[str, np.ndarray] = {}
    used: dict[str, Ensemble] = {}
    for path in errors:
        evaluation._add_model(path, found, used, source, truth, torch.device("cpu"))
    assert set(found) == {"InversionNet", "m", "new"} and used["InversionNet"].path == Path("b.pth")
    assert np.abs(found["InversionNet"] - truth).max() == pytest.approx(0.1, abs=1e-5)


def test_every_measure_of_every_family(data: Path, models: Path, tmp_path: Path):
    """Mean, median and P95 of each measure, also by family; ours with coverage and half-width."""
    evaluate(scored(data, models / "m.pth"), CPU, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    measures = {"mape", "mae", "rmse", "ssim", "gradient_mae"}
    for method, more in (("ours", {"coverage", "half_width_km_s"}), ("mean section", set())):
        for family in found["mae_by_family"][method]:
            assert set(found["by_family"][method][family]) == measures | more
    assert set(found["methods"]["ours"]["coverage"]) == {"mean", "median", "p95"}


def test_training_and_validation_share_nothing(data: Path, tmp_path: Path):
    """The same file under two names is seen; so is a sample's name in two folders."""
    (tmp_path / "copy").symlink_to(data / "train")
    with pytest.raises(DataError, match="the same file in training and validation"):
        require_disjoint(open_source(data / "train"), open_source(tmp_path / "copy"))
    require_disjoint(open_source(data / "train"), open_source(data / "val"))
    survey = challenge_survey()
    for part in ("a", "b"):
        (tmp_path / part / "s1").mkdir(parents=True)
        for name in survey.source_files:
            (tmp_path / part / "s1" / name).touch()
    one, other = (FolderSource(tmp_path / p, [tmp_path / p / "s1"]) for p in ("a", "b"))
    with pytest.raises(DataError, match="s1: the same sample in training and validation"):
        require_disjoint(one, other)


def test_validation_data_of_other_records_are_refused(data: Path, tmp_path: Path):
    """Records of another length end before the first step."""
    other = tmp_path / "other"
    other.mkdir()
    survey = open_source(data / "val").survey
    short = replace(survey, num_samples=survey.num_samples - 100)
    (other / "geometry.json").write_text(json.dumps(short.to_dict()))
    np.save(other / "data1.npy", np.load(data / "val/data1.npy")[:, :, :-100])
    np.save(other / "model1.npy", np.load(data / "val/model1.npy"))
    config = replace(tiny_config(data, tmp_path / "c"), val_data_path=str(other))
    with pytest.raises(DataError, match="differs from .* in records of 125"):
        train(config, replace(RUN, out=tmp_path / "run"))


def test_families_are_read_from_names():
    """File names tell the family, then folders; folders that only sort arrays by kind do not count."""
    wanted = {
        "x/CurveVel_B/data1.npy": "CurveVel_B",
        "x/CurveVel_B/data/data1.npy": "CurveVel_B",
        "x/mine/data_FlatFault-A_3.npy": "FlatFault_A",
        "x/style_a_set/data1.npy": "style_a",
        "x/mine/data1.npy": "mine",
    }
    assert {name: family_name(Path(name)) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("gathers", "sections"),
    [("data/data{}.npy", "model/model{}.npy"), ("seis{}_1_0.npy", "vel{}_1_0.npy")],
)
def test_published_folders_open_as_they_are(data: Path, tmp_path: Path, gathers: str, sections: str):
    """Arrays sorted into folders, and the names of the faulted families, give the samples of the files."""
    source = open_source(data / "train")
    root = tmp_path / "FlatFault_A"
    for number in (2, 10):
        for name, kept in ((gathers, "data1.npy"), (sections, "model1.npy")):
            path = root / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(data / "train" / kept)
    (root / "geometry.json").symlink_to(data / "train/geometry.json")
    found = open_source(root)
    assert len(found) == 2 * len(source) == len(set(found.ids)) and set(found.families) == {"FlatFault_A"}
    np.testing.assert_array_equal(found.velocity(7), source.velocity(1))
    (root / sections.format(10)).rename(root / sections.format(11))
    with pytest.raises(DataError, match="lack their partner"):
        open_source(root)


def test_each_shot_of_a_folder_needs_its_file():
    """A geometry of folders that names fewer files than shots, or one twice, is refused."""
    survey = challenge_survey()
    for files in (survey.source_files[:4], (survey.source_files[0],) * 5, ()):
        with pytest.raises(ValueError, match="gather files for 5 sources"):
            replace(survey, source_files=files)


def test_sections_keep_their_corner():
    """The deep end at x = 0 of a section lies where the files of either layout have it, and comes back."""
    for survey, corner in ((challenge_survey(), (0, -1)), (openfwi_survey(), (-1, 0))):
        vp = np.full(survey.model_shape_zx, 2.0, dtype=np.float32)
        vp[-1, 0] = 4.0
        stored = from_km_s(vp, survey)
        assert stored[corner] == (4.0 if isinstance(survey, Survey) and survey.dx_m == 1 else 4000.0)
        assert (stored == stored.max()).sum() == 1
        np.testing.assert_array_equal(to_km_s(stored, "x", survey), vp)


def test_a_wrong_array_leaves_no_archive(tmp_path: Path):
    """Shape and bounds are checked before the file gets its name."""
    for values, message in (
        (np.full((2, 3), 9.0), "expected 1.5 to 4.5"),
        (np.full((3, 2), 2.0), "expected"),
    ):
        with pytest.raises(DataError, match=message):
            write_archive(tmp_path / "s.npz", ["a"], lambda _n, v=values: v, shape=(2, 3), bounds=(1.5, 4.5))
    assert not list(tmp_path.iterdir())


def test_missing_and_surplus_samples_are_listed():
    """Folders without gathers, gaps of running numbers, what comes after the wanted count; five at most."""
    ids = [f"test_{n:03d}" for n in (1, 2, 5)]
    assert absent_numbers(ids) == ["test_003", "test_004"] and absent_numbers(["a", "b_2"]) == []
    with pytest.raises(UserError, match="found 3 samples; missing empty, test_003, test_004; the archive"):
        require_ids(ids, 5, ["empty"])
    with pytest.raises(UserError, match=r"surplus, in order, s1, s2, s3, s4, s5 \.\.\.; the archive"):
        require_ids([f"s{n}" for n in range(9)], 1)


def test_what_is_said_and_stored(data: Path, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Each sample has its line with misfits; smoothing tells its verdict; HDF5 has places and units."""
    caplog.set_level("INFO")
    config = replace(plain(data, models / "m.pth"), misfit="1", hdf5=True)
    assert not config.post_process
    infer(config, CPU, tmp_path / "a")
    assert "waveform misfit" in caplog.text and "1_0001: " in caplog.text
    assert "--post_process" not in caplog.text
    with h5py.File(tmp_path / "a/predictions.h5") as file:
        section = file["1_0000/vp_pred"]
        assert file["x_m"][-1] == file["z_m"][-1] == 690 and file["x_m"].attrs["unit"] == "m"
        assert section.attrs["unit"] == "m/s" and list(section.attrs["axes"]) == ["z_m", "x_m"]
    for gain, word in ((0.002, "by -0.00200"), (-0.002, "sections are better without it")):
        judged = replace(load_ensemble(models / "m.pth"), calibration=Calibration(smoothing_gain=gain))
        save_ensemble(tmp_path / "judged.pth", judged)
        caplog.clear()
        smooth = replace(plain(data, tmp_path / "judged.pth"), post_process=True, smooth_sigma=3.0)
        infer(smooth, CPU, tmp_path / "b")
        assert word in caplog.text
    with np.load(tmp_path / "a/predictions.npz") as one, np.load(tmp_path / "b/predictions.npz") as other:
        assert 1500 <= other["1_0000"].min() <= other["1_0000"].max() <= 4500
        assert np.abs(np.diff(other["1_0000"], axis=0)).mean() < np.abs(np.diff(one["1_0000"], axis=0)).mean()
    with pytest.raises(UserError, match="--profiles_x_m 900: expected 0 to 690"):
        infer(replace(config, profiles_x_m=(900.0,)), CPU, tmp_path / "c")


def test_a_background_of_another_shape_is_refused(tmp_path: Path):
    """Its shape and the wanted one are told."""
    np.save(tmp_path / "b.npy", np.full((10, 10), 2000.0))
    config = InferConfig(test_data_path="d", use_diffusion=True, background=str(tmp_path / "b.npy"))
    with pytest.raises(DataError, match=r"b.npy: shape \(10, 10\), expected \(70, 70\)"):
        read_known(config, openfwi_survey())


def test_training_draws_its_samples_and_judges_smoothing(trained: Path):
    """Each evaluation leaves a figure of the same samples; the file holds what smoothing is worth."""
    assert {p.name for p in (trained / "member_00/figures").glob("valid_*.png")} == {
        "valid_step000002.png",
        "valid_step000004.png",
    }
    stored = json.loads((trained / "models/ensemble.json").read_text())
    assert stored["smoothing_gain"] == pytest.approx(
        load_ensemble(trained / MODEL_FILE).calibration.smoothing_gain
    )


def test_resampling_is_told():
    """InversionNet says so where shapes are not its own."""
    assert resampling_notice(openfwi_survey()) == ""
    assert "3 shots, 31 receivers and 70 x 70 cells" in resampling_notice(openfwi_survey(3, 31))


@torch.no_grad()
def test_softplus_is_clipped_in_inference_only():
    """Above the highest velocity the gradient lives in training, and inference clips."""
    from velocity_inversion.model import VelocityNet

    net = VelocityNet((70, 70), 690.0, embed_dim=16, num_heads=2, num_layers=1, stem=8, activation="softplus")
    u = torch.tensor([9.0])
    assert float(net.train().velocity(u)) > 10 and float(net.eval().velocity(u)) == 4.5
