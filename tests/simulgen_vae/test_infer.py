"""Inference: files in the canonical layout, the same numbers in any batch, bars, strange inputs, latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from common.errors import DataError
from common.run import MachineOptions
from simulgen_vae import ood
from simulgen_vae.config_infer import InferConfig
from simulgen_vae.fields import open_fields
from simulgen_vae.infer import batch_size, infer, load, predict
from simulgen_vae.infer_jobs import slerp
from simulgen_vae.predictor import pictures
from simulgen_vae.queries import read_queries, typed_numbers
from tests.simulgen_vae.cases_infer import KINDS, NAMES, QUICK, make_model, write_table
from tests.simulgen_vae.cases_predictors import FRAMES, NX, NY, bumps

NODES = NX * NY


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a calibrated deliverable that ships gp2."""
    return make_model(tmp_path_factory.mktemp("gp2"), "gp2")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a deliverable that takes parameters and pictures."""
    return make_model(tmp_path_factory.mktemp("seeing"), pictures=True)


def run(model: Path, out: Path, options: MachineOptions = QUICK, **flags: Any) -> dict[str, Any]:
    """Run an inference without figures."""
    return infer(InferConfig(model=str(model), **{"figures": False, **flags}), options, out)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return the datasets of an h5 file."""
    with h5py.File(path) as h5:
        return {name: h5[name][()] for name in h5 if isinstance(h5[name], h5py.Dataset)}


def test_files_of_a_prediction(model: Path, tmp_path: Path):
    """fields.h5 is a canonical data set of the rows asked for, near the truth and inside its own band."""
    truth, params = bumps(5, seed=3)
    run(model, tmp_path, params=str(write_table(tmp_path / "new.csv", params)))
    data = open_fields(tmp_path / "fields.h5")
    assert data.shape == (5, FRAMES, NODES, 1) and data.param_names == NAMES
    assert data.grid_shape == (NY, NX) and set(data.cells) == {"quad"} and data.units == ("K",)
    np.testing.assert_allclose(data.params, params, rtol=1e-6)
    u = np.stack([data.trajectory(i) for i in range(5)])
    data.close()
    assert np.linalg.norm(u - truth) < 0.1 * np.linalg.norm(truth)
    found = arrays_of(tmp_path / "fields.h5")
    assert (found["std"] > 0).all() and (found["lower"] < found["fields"]).all()
    np.testing.assert_allclose(found["upper"] - found["fields"], 1.5 * found["std"], rtol=1e-4, atol=1e-6)
    summary = json.loads((tmp_path / "infer.json").read_text())
    assert summary["num"] == 5 and summary["coverage"] == 0.9
    assert 0 < summary["ms_a_trajectory"] <= summary["ms_with_error_bars"]


def test_batches_and_formats_agree(model: Path, tmp_path: Path):
    """One row at a time, all at once, h5 or npy: the same numbers, readable without pickle."""
    table = str(write_table(tmp_path / "new.csv", bumps(7, seed=3)[1]))
    run(model, tmp_path / "a", params=table, batch_size=1)
    run(model, tmp_path / "b", params=table, batch_size=7)
    run(model, tmp_path / "c", params=table, batch_size=3, format="npy", write_latents=True)
    one, all_ = arrays_of(tmp_path / "a/fields.h5"), arrays_of(tmp_path / "b/fields.h5")
    for name in ("fields", "std", "lower", "upper"):
        npy = np.load(tmp_path / f"c/{name}.npy", allow_pickle=False)
        for other in (one[name], npy):
            np.testing.assert_allclose(other, all_[name], rtol=1e-4, atol=1e-5)
    assert np.load(tmp_path / "c/latents.npy", allow_pickle=False).shape == (7, 6)
    assert (tmp_path / "a/ood.csv").read_text().count("\n") == 8


def test_what_was_written_predicts_again(model: Path, tmp_path: Path):
    """The parameters of a fields.h5, an npy file and typed numbers give the fields of the CSV file."""
    params = bumps(3, seed=4)[1]
    run(model, tmp_path / "a", params=str(write_table(tmp_path / "new.csv", params)))
    np.save(tmp_path / "new.npy", params)
    pairs = ";".join(",".join(f"{n}={v:.9g}" for n, v in zip(NAMES, row, strict=True)) for row in params)
    plain = ";".join(",".join(f"{v:.9g}" for v in row) for row in params)
    expected = arrays_of(tmp_path / "a/fields.h5")["fields"]
    for k, text in enumerate((str(tmp_path / "a/fields.h5"), str(tmp_path / "new.npy"), pairs, plain)):
        run(model, tmp_path / f"again{k}", params=text, std=False)
        found = arrays_of(tmp_path / f"again{k}/fields.h5")
        np.testing.assert_allclose(found["fields"], expected, rtol=1e-5, atol=1e-6)
        assert "std" not in found


def test_columns_by_name(model: Path, tmp_path: Path):
    """Columns may stand in any order beside others; without a header their place counts."""
    params = bumps(2, seed=4)[1]
    surrogate = load(model).surrogate
    mixed = np.column_stack([params[:, 2], np.full(2, 7.0), params[:, 0], params[:, 1]])
    table = write_table(tmp_path / "mixed.csv", mixed, ("rate", "other", "x", "y"))
    np.testing.assert_allclose(read_queries(surrogate, str(table), "").params, params, rtol=1e-8)
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(" ".join(f"{v:.9g}" for v in row) for row in params))
    np.testing.assert_allclose(read_queries(surrogate, str(bare), "").params, params, rtol=1e-8)
    assert typed_numbers("wave.csv", NAMES) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_predictor(kind: str, tmp_path: Path):
    """Whatever ships: predict in memory equals the files, and error bars do not depend on the batch."""
    folder = make_model(tmp_path / kind, kind)
    params = bumps(3, seed=5)[1]
    run(folder, tmp_path / "out", params=str(write_table(tmp_path / "new.csv", params)))
    found = arrays_of(tmp_path / "out/fields.h5")
    alone = predict(load(folder), params[1:2])
    for name in ("fields", "std", "upper"):
        value = getattr(alone, name)
        np.testing.assert_allclose(found[name][1:2], value.numpy(), rtol=1e-4, atol=1e-5)


def test_pictures(seeing: Path, tmp_path: Path):
    """Pictures from a folder, from npy and from a data set are the same inputs; fields.h5 keeps them."""
    from PIL import Image

    data = seeing / "bumps.h5"
    found = arrays_of(data)
    table = write_table(tmp_path / "new.csv", found["params"][:3].astype(np.float64))
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        Image.fromarray(found["images"][k]).save(tmp_path / f"pictures/{k}.png")
    np.save(tmp_path / "pictures.npy", found["images"][:3])
    for name in ("pictures", "pictures.npy"):
        run(seeing, tmp_path / f"out_{name}", params=str(table), images=str(tmp_path / name))
    run(seeing, tmp_path / "all", params=str(data))
    whole = arrays_of(tmp_path / "all/fields.h5")
    assert len(whole["fields"]) == len(found["fields"])
    for name in ("pictures", "pictures.npy"):
        part = arrays_of(tmp_path / f"out_{name}/fields.h5")
        np.testing.assert_array_equal(part["images"], found["images"][:3])
        np.testing.assert_allclose(part["fields"], whole["fields"][:3], rtol=1e-4, atol=1e-5)
    other = predict(load(seeing), found["params"][:3], pictures(torch.from_numpy(found["images"][3:6])))
    assert np.isfinite(other.fields.numpy()).all()


def test_pictures_alone(tmp_path: Path):
    """A model of pictures alone takes a folder or one picture, and names its samples by the files."""
    from PIL import Image

    folder = make_model(tmp_path / "m", pictures=True, input_type="image_vit")
    images = arrays_of(folder / "bumps.h5")["images"]
    (tmp_path / "new").mkdir()
    for k, name in enumerate(("left", "right")):
        Image.fromarray(images[k]).save(tmp_path / f"new/{name}.png")
    run(folder, tmp_path / "both", images=str(tmp_path / "new"))
    run(folder, tmp_path / "one", images=str(tmp_path / "new/right.png"))
    both, one = (arrays_of(tmp_path / k / "fields.h5") for k in ("both", "one"))
    assert [name.decode() for name in both["sample_id"]] == ["left", "right"] and "params" not in both
    np.testing.assert_allclose(one["fields"][0], both["fields"][1], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "both/ood.csv").read_text().splitlines()[1].startswith("left,nan,nan,,")


def test_strange_inputs_are_named(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A row far outside is flagged with what is outside, warned of, and refused on request."""
    params = bumps(3, seed=4)[1]
    params[1] = [0.5, 3.0, 1.0]
    table = str(write_table(tmp_path / "new.csv", params))
    summary = run(model, tmp_path / "out", params=table)
    lines = (tmp_path / "out/ood.csv").read_text().splitlines()
    flags = [line.rsplit(",", 1)[1] for line in lines[1:]]
    assert flags == ["0", "1", "0"] and lines[2].split(",")[3] == "y" and summary["unlike_the_training"] == 1
    assert "1 of 3 inputs are unlike those of the training" in caplog.text
    with pytest.raises(DataError, match="sample 1: unlike the training .* outside the range: y"):
        run(model, tmp_path / "refused", params=table, on_ood="refuse")
    assert not list((tmp_path / "refused").glob("fields*"))


def test_training_rows_are_ordinary():
    """Leaving each row out in closed form is what refitting without it gives; 1 % of rows lie beyond."""
    x = np.random.default_rng(0).standard_normal((60, 4)) @ np.diag([1.0, 5.0, 0.1, 2.0])
    x[:, 3] += x[:, 0]
    cloud = ood.fit_cloud(x, 1.0)
    by_hand = []
    z = (x - x.mean(0)) / x.std(0)
    from sklearn.covariance import ledoit_wolf

    shrinkage = ledoit_wolf(z, assume_centered=True)[1]
    floor = shrinkage * np.trace(z.T @ z / 60) / 4 * np.eye(4)
    for i in range(60):
        rest = np.delete(z, i, 0)
        centred = rest - rest.mean(0)
        a = (1 - shrinkage) * centred.T @ centred / 59 + floor
        d = z[i] - rest.mean(0)
        by_hand.append(np.sqrt(d @ np.linalg.solve(a, d)))
    assert cloud.limit == pytest.approx(max(by_hand), rel=1e-6)
    assert (ood.fit_cloud(x).distance(x) > ood.fit_cloud(x).limit).mean() <= 0.02
    assert cloud.distance(x.mean(0)[None])[0] == pytest.approx(0, abs=1e-6)


def test_prior_and_path_between_samples(model: Path, tmp_path: Path):
    """Draws of the prior differ and repeat by seed; a path begins and ends at the samples' own decodings."""
    run(model, tmp_path / "a", sample=3)
    run(model, tmp_path / "b", sample=2)
    a, b = (arrays_of(tmp_path / k / "fields.h5")["fields"] for k in "ab")
    np.testing.assert_allclose(a[:2], b, rtol=1e-5, atol=1e-6)
    assert np.abs(a[0] - a[1]).max() > 0.01 and not (tmp_path / "a/ood.csv").exists()
    run(model, tmp_path / "path", interpolate="2,5", num_points=4)
    path = arrays_of(tmp_path / "path/fields.h5")["fields"]
    ends = ood.stored_latents(load(model).surrogate, load(model).path)
    assert ends is not None
    np.save(tmp_path / "ends.npy", ends[[2, 5]].astype(np.float32))
    run(model, tmp_path / "ends", latents=str(tmp_path / "ends.npy"))
    np.testing.assert_allclose(path[[0, 3]], arrays_of(tmp_path / "ends/fields.h5")["fields"], atol=1e-5)


def test_great_circle():
    """Halfway between unit vectors at a right angle lies on the circle; parallel ones are joined straight."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.full((2,), 0.5**0.5))
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)


def test_constraints_act_in_predictions(model: Path, tmp_path: Path):
    """Bounds and known nodes hold exactly in fields and band, and a known value has no spread."""
    mask = np.zeros(NODES, dtype=bool)
    mask[:3] = True
    np.savez(tmp_path / "known.npz", mask=mask, value=np.full(NODES, 0.25))
    table = str(write_table(tmp_path / "new.csv", bumps(3, seed=3)[1]))
    flags = {"bounds": "0.1,0.6", "dirichlet": str(tmp_path / "known.npz")}
    summary = run(model, tmp_path / "out", params=table, **flags)
    found = arrays_of(tmp_path / "out/fields.h5")
    for name in ("fields", "lower", "upper"):
        assert found[name].min() >= np.float32(0.1) and found[name].max() <= np.float32(0.6)
        assert (found[name][:, :, :3] == 0.25).all()
    assert (found["std"][:, :, :3] == 0).all() and found["fields"].max() == np.float32(0.6)
    assert summary["violations"] == {"bounds_worst": 0.0, "dirichlet_rms": 0.0}


def test_constraints_of_the_training(tmp_path: Path):
    """What the training was told holds without a flag, and off switches it off."""
    folder = make_model(tmp_path / "model", bounds="0.1,0.6:hard")
    table = str(write_table(tmp_path / "new.csv", bumps(2, seed=3)[1]))
    run(folder, tmp_path / "on", params=table, std=False)
    run(folder, tmp_path / "off", params=table, std=False, bounds="off")
    on, off = (arrays_of(tmp_path / k / "fields.h5")["fields"] for k in ("on", "off"))
    assert off.max() > 0.65 and off.min() < 0.05
    np.testing.assert_array_equal(on, off.clip(np.float32(0.1), np.float32(0.6)))


def test_without_calibration(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A model without calibration predicts, says that there is no band, and writes none."""
    folder = make_model(tmp_path / "model", bars=False)
    run(folder, tmp_path / "out", params="0.5,0.5,1")
    assert "no lower and upper: the model is not calibrated" in caplog.text
    assert not {"std", "lower"} & set(arrays_of(tmp_path / "out/fields.h5"))


def test_memory_bounds_the_batch(model: Path):
    """The batch is what the memory holds, at most 64; the flag wins."""
    loaded = load(model)
    each = 4 * FRAMES * NODES * 8 / 2**30

    def size(memory: float, batch: int = 0) -> int:
        return batch_size(InferConfig(params="0", max_memory=memory, batch_size=batch), loaded)

    assert [size(5.5 * each), size(1e3 * each), size(each, 7)] == [5, 64, 7]


def test_figures(model: Path, tmp_path: Path):
    """A grid gets strips and profiles of the trajectories."""
    table = str(write_table(tmp_path / "new.csv", bumps(1, seed=3)[1]))
    run(model, tmp_path, params=table, figures=True)
    drawn = {p.name for p in (tmp_path / "figures").glob("*.png")}
    assert drawn == {f"{kind}_{k}.png" for kind in ("strip", "profiles") for k in range(1)}


def test_two_fields(tmp_path: Path):
    """Two fields of unequal size are predicted in their own units, bounded one by one."""
    folder = make_model(tmp_path / "model", fields=2)
    truth, params = bumps(2, seed=3)
    table = str(write_table(tmp_path / "new.csv", params))
    run(folder, tmp_path / "out", params=table, bounds="f1=120,inf", std=False, field=1)
    found = arrays_of(tmp_path / "out/fields.h5")["fields"]
    assert np.abs(found[..., 0] - truth[..., 0]).max() < 0.4
    assert (
        found[..., 1].min() == 120
        and np.abs(found[..., 1] - (100 * truth[..., 0] + 100).clip(120)).max() < 40
    )
