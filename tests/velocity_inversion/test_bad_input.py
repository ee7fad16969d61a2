"""What a user's data can have wrong: one line that names the file, what was found and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, StrataError
from common.run import BasicOptions
from tests.velocity_inversion.cases import CPU, RUN, tiny_config
from velocity_inversion.arrays import from_km_s
from velocity_inversion.config_data import DataConfig
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.geometry import Survey, challenge_survey, openfwi_survey
from velocity_inversion.infer import infer
from velocity_inversion.simulate import default_simulation
from velocity_inversion.sources import open_source, require_disjoint
from velocity_inversion.train import MODEL_FILE, train

GATHER = "receiver_data_src_2.npy"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two sample folders of a small survey in km/s with swapped model axes, as the challenge's."""
    root = tmp_path_factory.mktemp("folders")
    survey = replace(
        openfwi_survey(3, 8),
        layout="folders",
        num_samples=100,
        model_shape_zx=(40, 70),
        model_file_axes="xz",
        velocity_unit="km/s",
        source_files=tuple(f"receiver_data_src_{i}.npy" for i in (1, 2, 3)),
    )
    (root / "geometry.json").write_text(json.dumps(survey.to_dict()))
    rng = np.random.default_rng(0)
    for name in ("s1", "s2"):
        (root / name).mkdir()
        vp = rng.uniform(2, 4, (40, 70)).astype(np.float32)
        np.save(root / name / "vp_model.npy", from_km_s(vp, survey))
        for file in survey.source_files:
            np.save(root / name / file, rng.standard_normal((100, 8)).astype(np.float32))
    return root


def gather(change: Callable[[np.ndarray], Any], name: str = GATHER) -> Change:
    """Return a change of one gather of the first sample."""

    def apply(root: Path) -> None:
        path = root / "s1" / name
        np.save(path, change(np.load(path)), allow_pickle=True)

    return apply


def model(change: Callable[[np.ndarray], Any]) -> Change:
    """Return a change of the first sample's section."""
    return gather(change, "vp_model.npy")


def geometry(**changes: Any) -> Change:
    """Return a change of geometry.json."""

    def apply(root: Path) -> None:
        document = json.loads((root / "geometry.json").read_text())
        for name, value in changes.items():
            if value is None:
                del document[name]
            else:
                document[name] = value
        (root / "geometry.json").write_text(json.dumps(document))

    return apply


def rewrite(name: str, edit: Callable[[bytes], bytes]) -> Change:
    """Return a change of the bytes of one file of the first sample."""

    def apply(root: Path) -> None:
        (root / "s1" / name).write_bytes(edit((root / "s1" / name).read_bytes()))

    return apply


def nan_at(x: np.ndarray) -> np.ndarray:
    """Return the array with one NaN."""
    x = x.copy()
    x[5, 3] = np.nan
    return x


RECEIVERS = {"x_m": [0, 100, 100, 300, 400, 500, 600, 690], "z_m": [10] * 8}
OUTSIDE = {"x_m": [0, 100, 200, 300, 400, 500, 600, 720], "z_m": [10] * 8}
HIGH = [{"x_m": x, "z_m": -5, "file": f"receiver_data_src_{i}.npy"} for i, x in ((1, 0), (2, 340), (3, 690))]
CORPUS: dict[str, tuple[Change, str]] = {
    "missing gather": (lambda r: (r / "s1" / GATHER).unlink(), f"{GATHER}: no such file"),
    "renamed gather": (
        lambda r: (r / "s1" / GATHER).rename(r / "s1/receiver_data_src_9.npy"),
        f"{GATHER}: no such file",
    ),
    "extra gather": (
        lambda r: np.save(r / "s1/receiver_data_src_9.npy", np.ones((100, 8), "f4")),
        "src_9.npy: a gather that geometry.json does not name",
    ),
    "missing model": (lambda r: (r / "s1/vp_model.npy").unlink(), "s1/vp_model.npy: no such file"),
    "model as gather": (gather(lambda x: np.ones((70, 40), "f4")), "this looks like vp_model"),
    "transposed gather": (gather(lambda x: x.T), "this gather is transposed"),
    "other length": (gather(lambda x: x[:90]), r"shape \(90, 8\), expected \(T, R\) = \(100, 8\)"),
    "other receivers": (gather(lambda x: x[:, :7]), r"shape \(100, 7\)"),
    "three axes": (gather(lambda x: x[None]), "expected 2 axes"),
    "NaN": (gather(nan_at), "1 values NaN or infinite, the first at t = 5, receiver 3"),
    "all zero": (gather(np.zeros_like), "all values are zero"),
    "objects": (gather(lambda x: np.array([None, 1], dtype=object)), "an object array"),
    "text": (gather(lambda x: np.array(["a"])), "expected a .npy array of float32"),
    "complex": (gather(lambda x: x.astype("c8")), "expected a .npy array of float32"),
    "empty file": (rewrite(GATHER, lambda b: b""), f"{GATHER}: .*expected a whole .npy"),
    "cut": (rewrite(GATHER, lambda b: b[:-50]), f"{GATHER}: .*expected a whole .npy"),
    "no array": (rewrite(GATHER, lambda b: b"hello"), f"{GATHER}: .*expected a whole .npy"),
    "lying header": (
        rewrite(GATHER, lambda b: b.replace(b"(100, 8), }    ", b"(9999999, 8), }", 1)),
        f"{GATHER}: .*expected a whole .npy",
    ),
    "broken header": (rewrite(GATHER, lambda b: b.replace(b", }", b", )", 1)), GATHER),
    "folder for a file": (
        lambda r: ((r / "s1" / GATHER).unlink(), (r / "s1" / GATHER).mkdir(), None)[-1],
        GATHER,
    ),
    "axes swapped": (model(lambda v: v.T), "axes are swapped"),
    "m/s": (model(lambda v: 1000 * v), "so m/s; geometry says km/s"),
    "negative velocity": (model(lambda v: -v), "not positive"),
    "out of bounds": (model(lambda v: v + 2), "expected 1.5 to 4.5"),
    "NaN velocity": (model(lambda v: v * np.nan), "NaN"),
    "no interval": (geometry(dt_s=None), "no entry 'dt_s'"),
    "other format": (geometry(format="x"), "format 'x', expected 'strata-shots-1'"),
    "interval of zero": (geometry(dt_s=0), "must be positive"),
    "interval not a number": (geometry(dt_s=float("nan")), "must be positive and finite"),
    "wavelet not a number": (geometry(wavelet={"peak_s": float("nan")}), "wavelet: peak_s"),
    "faster than rock": (geometry(v_bounds_km_s=[1, 1e300]), "lowest < highest < 100"),
    "endless cells": (geometry(dx_m=float("inf")), "must be positive and finite"),
    "receivers on one spot": (geometry(receivers=RECEIVERS), "stand on one spot"),
    "receiver outside": (geometry(receivers=OUTSIDE), "more than 2 cells outside"),
    "source above": (geometry(sources=HIGH), "above the surface"),
    "unknown unit": (geometry(velocity_unit="ft/s"), "expected one of m/s, km/s"),
    "no JSON": (lambda r: (r / "geometry.json").write_text("{") and None, "geometry.json"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(template: Path, tmp_path: Path, name: str):
    """Every fault ends in a DataError of one line that says what was found; nothing else escapes."""
    import shutil

    root = Path(shutil.copytree(template, tmp_path / "data"))
    change, message = CORPUS[name]
    change(root)
    with pytest.raises(DataError, match=message) as told:
        dataset = ShotDataset(open_source(root), training=True)
        for i in range(len(dataset)):
            dataset[i]
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


@pytest.mark.parametrize("kind", [">f4", "f8", "i4"])
def test_other_number_types_are_converted(template: Path, tmp_path: Path, kind: str):
    """Big-endian, float64 and integer gathers give the same values as float32."""
    import shutil

    root = Path(shutil.copytree(template, tmp_path / "data"))
    path = root / "s1" / GATHER
    values = np.rint(100 * np.load(path))
    np.save(path, values.astype(kind))
    gathers, live = open_source(root).read_gathers(0)
    assert gathers.dtype == np.float32 and live.all()
    np.testing.assert_array_equal(gathers[1], values.astype(np.float32))


def test_dead_traces_are_ignored_in_inference(template: Path, tmp_path: Path):
    """A zero trace is not live; a zero gather is no error outside training."""
    import shutil

    root = Path(shutil.copytree(template, tmp_path / "data"))
    for name, columns in ((GATHER, [3]), ("receiver_data_src_1.npy", list(range(8)))):
        values = np.load(root / "s1" / name)
        values[:, columns] = 0
        np.save(root / "s1" / name, values)
    _, live = open_source(root).read_gathers(0)
    assert not live[1, 3] and live[1].sum() == 7 and not live[0].any() and live[2].all()


def test_models_and_data_must_pair(data: Path, tmp_path: Path):
    """A model file without its data file is named."""
    for path in (data / "test").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model2.npy").write_bytes((tmp_path / "model1.npy").read_bytes())
    with pytest.raises(DataError, match="numbers 2 lack their partner"):
        open_source(tmp_path)


def test_the_same_sample_in_both_parts(template: Path):
    """Training and validation may not share a folder's samples."""
    with pytest.raises(DataError, match="the same sample in training and validation"):
        require_disjoint(open_source(template), open_source(template))


def test_coarse_grids_are_warned_about(caplog: pytest.LogCaptureFixture):
    """Fewer than three cells in the shortest wavelength: a warning with the number."""
    default_simulation(openfwi_survey(), 20.0)
    assert "2.0 cells in the shortest wavelength" in caplog.text


def test_ensembles_need_their_own_grid(template: Path, trained: Path, tmp_path: Path):
    """Data on another grid, a checkpoint of something else and missing paths end in one line."""
    config = InferConfig(model_path=str(trained / MODEL_FILE), test_data_path=str(template))
    with pytest.raises(DataError, match="model_shape_zx"):
        infer(config, CPU, tmp_path / "out")
    with pytest.raises(DataError):
        infer(replace(config, model_path=str(trained / "split.json")), CPU, tmp_path / "out")
    with pytest.raises(DataError, match="absent"):
        infer(replace(config, test_data_path="absent"), CPU, tmp_path / "out")
    with pytest.raises(StrataError, match="velocities of"):
        narrow = replace(tiny_config(trained, tmp_path), train_data_path=str(template), v_max=4.0)
        train(replace(narrow, val_data_path=""), replace(RUN, out=tmp_path / "run"))


def test_surplus_and_missing_samples_stop_a_submission(data: Path, trained: Path, tmp_path: Path):
    """Another number than expected: nothing is written."""
    config = InferConfig(
        model_path=str(trained / MODEL_FILE), test_data_path=str(data / "test"), expected_count=150
    )
    with pytest.raises(StrataError, match="--expected_count 150: found 2 samples"):
        infer(config, CPU, tmp_path / "submission.npz")
    assert not (tmp_path / "submission.npz").exists()


def test_challenge_geometry_is_the_built_in_one():
    """Without geometry.json sample folders are those of the challenge."""
    survey = challenge_survey()
    assert isinstance(survey, Survey) and survey.model_shape_zx == (1259, 300) and survey.num_samples == 10001
    assert survey.source_files[3] == "receiver_data_src_225.npy"


def test_challenge_submission_exactly(tmp_path: Path):
    """From (10001, 31) gathers to (300, 1259) float64 km/s, one key a folder, within the bounds."""
    from velocity_inversion.config import TrainConfig
    from velocity_inversion.ensemble import save_ensemble
    from velocity_inversion.make_data import make_data
    from velocity_inversion.quick import untrained

    config = DataConfig(
        layout="challenge",
        num_train=0,
        num_val=0,
        num_test=2,
        grid_m=10,
        families=("layered",),
        num_workers=1,
    )
    make_data(config, BasicOptions(), tmp_path / "data")
    small = TrainConfig(num_models=1, embed_dim=16, num_heads=2, num_layers=1, stem=8)
    save_ensemble(tmp_path / "model.pth", untrained(challenge_survey(), small))
    told = InferConfig(
        model_path=str(tmp_path / "model.pth"),
        test_data_path=str(tmp_path / "data/test"),
        use_tta=True,
        post_process=True,
        misfit="none",
        figures=0,
        expected_count=2,
    )
    infer(told, CPU, tmp_path / "submission.npz")
    stored = np.load(tmp_path / "submission.npz", allow_pickle=False)
    assert stored.files == ["test_00001", "test_00002"]
    for name in stored.files:
        values = stored[name]
        assert values.shape == (300, 1259) and values.dtype == np.float64
        assert 1.5 <= values.min() <= values.max() <= 4.5
        one = np.load(tmp_path / "submission" / name / "vp_pred.npy")
        np.testing.assert_array_equal(values, one)
