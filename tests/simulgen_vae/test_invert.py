"""Inverse design: a linear toy exactly, covariance by hand, sensors, boxes, latents, held-out samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.metrics import relative_l2
from simulgen_vae.config_infer import InferConfig, InvertConfig
from simulgen_vae.fields import open_fields
from simulgen_vae.graph import load
from simulgen_vae.infer import infer, predict
from simulgen_vae.invert import field_target, invert, own_error
from simulgen_vae.invert_search import (
    Problem,
    Sensors,
    latin_hypercube,
    make_unknowns,
    parameter_unknowns,
    search,
    sensor_readout,
    sensor_values,
)
from tests.simulgen_vae.cases_infer import QUICK, make_model
from tests.simulgen_vae.cases_predictors import FRAMES, NX, NY

NODES = NX * NY


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a calibrated deliverable that ships gp2."""
    return make_model(tmp_path_factory.mktemp("model"), "gp2")


def run(model: Path, out: Path, **flags: Any) -> dict[str, Any]:
    """Invert without figures, with few starts."""
    quick: dict[str, Any] = {"figures": False, "starts": 3, "steps": 60}
    return invert(InvertConfig(model=str(model), **{**quick, **flags}), QUICK, out)


def linear_problem(prior_weight: float) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """Return a linear problem r = A p - y, its matrix for standardised unknowns, and its true x."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.standard_normal((12, 3)))
    known = torch.from_numpy(rng.uniform(-1, 1, (40, 3)) * [1.0, 10.0, 0.1] + [5.0, 0.0, 2.0])
    unknowns = make_unknowns(known, ("a", "b", "c"), lambda p: (p @ a.T)[:, :, None])
    truth = torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64)
    target = unknowns.physical(truth) @ a.T
    problem = Problem(unknowns, lambda c: c[:, :, 0] - target, prior_weight)
    return problem, a * unknowns.std, truth


def test_linear_toy_exactly():
    """Without noise and prior the true parameters come back to rounding, from every start together."""
    problem, _, truth = linear_problem(0.0)
    found = search(problem, 4, 100, 0.05, 10, seed=0)
    torch.testing.assert_close(found.x, truth, rtol=0, atol=1e-9)
    assert found.misfit < 1e-15 < found.nearest_misfit
    assert found.trace.shape == (101, 5) and (found.trace[-1] < found.trace[0]).all()


def test_most_probable_point_and_covariance():
    """With a prior the answer is the ridge solution, and the covariance is that of linear theory."""
    problem, matrix, truth = linear_problem(2.0)
    found = search(problem, 2, 60, 0.05, 10, seed=0)
    hessian = matrix.T @ matrix + 2.0 * torch.eye(3, dtype=torch.float64)
    expected = torch.linalg.solve(hessian, matrix.T @ matrix @ truth)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.covariance, torch.linalg.inv(hessian), rtol=1e-6, atol=1e-9)


def test_the_box_is_kept():
    """A truth beyond the box is answered from its edge, at no point of the search beyond it."""
    problem, _, _ = linear_problem(0.0)
    low = torch.full((3,), -0.5, dtype=torch.float64)
    unknowns = problem.unknowns
    boxed = make_unknowns(
        unknowns.physical(unknowns.known),
        unknowns.names,
        unknowns.coefficients,
        (unknowns.physical(low), unknowns.physical(-low)),
    )
    found = search(Problem(boxed, problem.readout, 0.0), 3, 60, 0.1, 10, seed=0)
    assert (found.ends.abs() <= 0.5 + 1e-9).all() and found.x[1] == pytest.approx(-0.5)


def test_latin_hypercube():
    """Each coordinate has one point in each of its equal parts, and the seed repeats it."""
    low, high = torch.tensor([0.0, -2.0]).double(), torch.tensor([1.0, 2.0]).double()
    points = latin_hypercube(low, high, 8, seed=1)
    for k in range(2):
        cells = ((points[:, k] - low[k]) / (high[k] - low[k]) * 8).floor()
        assert sorted(cells.tolist()) == list(range(8))
    assert torch.equal(points, latin_hypercube(low, high, 8, seed=1))
    assert latin_hypercube(low, high, 0, seed=1).shape == (0, 2)


def test_sensors_read_the_field(tmp_path: Path):
    """Decoding only the sensors' nodes gives what the whole field says there, hard bounds included."""
    loaded = load(make_model(tmp_path / "m", fields=2, bounds="f0=0.05,0.4;f1=110,inf"))
    params = torch.tensor([[0.5, 0.5, 1.0], [0.4, 0.3, 1.5]])
    found = predict(loaded, params)
    node, frame, field = torch.tensor([63, 5, 5, 27]), torch.tensor([0, 3, 1, 2]), torch.tensor([0, 1, 0, 1])
    sensors = Sensors(node, frame, field, torch.zeros(4), torch.ones(4))
    expected = found.fields[:, frame, node, field]
    torch.testing.assert_close(sensor_values(loaded, sensors, found.c), expected, rtol=1e-5, atol=1e-4)
    halved = sensor_readout(loaded, sensors, torch.full((4,), 3.0**0.5))
    torch.testing.assert_close(halved(found.c), expected / 2, rtol=1e-5, atol=1e-4)


def test_target_field(model: Path, tmp_path: Path):
    """The field of known parameters is met far better than by the nearest sample; best.csv predicts it."""
    truth = np.array([[0.52, 0.47, 1.3]])
    target = predict(load(model), truth).fields[0].numpy()
    np.save(tmp_path / "target.npy", target[..., 0])
    report = run(model, tmp_path / "out", target=str(tmp_path / "target.npy"), prior_weight=0.0, figures=True)
    np.testing.assert_allclose(report["best"], truth[0], atol=5e-3)
    assert report["relative_l2"] < 0.01 < report["nearest_training_sample"]["relative_l2"]
    assert report["misfit"] < 0.01 * report["nearest_training_sample"]["misfit"]
    drawn = {p.name for p in (tmp_path / "out/figures").iterdir()}
    assert drawn == {"search.png", "field.png"}
    lines = (tmp_path / "out/best.csv").read_text().splitlines()
    assert lines[0] == "x,y,rate"
    again = predict(load(model), np.array([[float(v) for v in lines[1].split(",")]])).fields[0].numpy()
    assert np.linalg.norm(again - target) < 0.01 * np.linalg.norm(target)
    stored = json.loads((tmp_path / "out/inverse.json").read_text())
    assert np.shape(stored["covariance"]) == (3, 3) and len(stored["objective_of_starts"]) == 4
    assert np.sqrt(np.diag(stored["covariance"])) == pytest.approx(stored["std"])
    assert (tmp_path / "out/starts.csv").read_text().count("\n") == 5


def test_readings_narrow_the_answer(model: Path, tmp_path: Path):
    """Exact readings find the parameters within their own spread; few and rough ones leave the prior's."""
    truth = np.array([[0.45, 0.6, 1.0]])
    field = predict(load(model), truth).fields[0, ..., 0].numpy()
    rng = np.random.default_rng(0)
    places = [(int(n), int(t)) for n, t in rng.integers(0, [NODES, FRAMES], (30, 2))]
    spread = {}
    for name, count, sigma in (("many", 30, 0.01), ("rough", 2, 5.0)):
        rows = [f"{n},{t},{field[t, n]},{sigma}" for n, t in places[:count]]
        (tmp_path / f"{name}.csv").write_text("\n".join(["node,frame,value,sigma", *rows]))
        report = run(model, tmp_path / name, sensors=str(tmp_path / f"{name}.csv"))
        spread[name] = np.array(report["std"])
        if name == "many":
            assert (np.abs(np.array(report["best"]) - truth[0]) < 3 * spread[name] + 0.02).all()
            assert report["sensor_rms"] < 0.05
    prior = load(model).surrogate.arrays["train_params"].std(0, correction=0).numpy()
    assert (spread["many"] < 0.7 * prior).all() and (spread["rough"] > 0.9 * prior).all()


def test_whole_field_with_hard_limits(tmp_path: Path):
    """Hard limits act inside the search: a clamped target is met by the clamped field."""
    loaded = load(make_model(tmp_path / "m", bounds="0.1,0.5:hard"))
    params = np.array([[0.5, 0.5, 1.0]])
    target = predict(loaded, params).fields[0]
    readout = field_target(InvertConfig(target="x"), loaded, target)
    problem = Problem(parameter_unknowns(loaded, None), readout, 0.0)
    x = problem.unknowns.standardised(torch.from_numpy(params))
    assert float(problem.misfit(x)) == pytest.approx(0, abs=1e-9)
    free = load(tmp_path / "m", flags=InvertConfig(target="x", bounds="off"))
    other = Problem(parameter_unknowns(free, None), field_target(InvertConfig(target="x"), free, target), 0.0)
    assert float(other.misfit(x)) > 0.1
    assert own_error(loaded) > 0


def test_box_from_a_file(model: Path, tmp_path: Path):
    """--bounds_file narrows the box of the parameters that it names."""
    (tmp_path / "box.csv").write_text("name,low,high\nx,0.40,0.45\n")
    flags = {"bounds_file": str(tmp_path / "box.csv"), "steps": 20}
    report = run(model, tmp_path / "out", target_row=0, **flags)
    rows = np.genfromtxt(tmp_path / "out/starts.csv", delimiter=",", names=True)
    assert (rows["x"] >= 0.4 - 1e-9).all() and (rows["x"] <= 0.45 + 1e-9).all()
    assert report["target"] == "sample 0"


def test_pictures_are_sought_in_latents(tmp_path: Path):
    """A model of pictures is inverted in latents; the sample whose latents are nearest is named."""
    folder = make_model(tmp_path / "m", pictures=True)
    row = int(load(folder).surrogate.split.train[3])
    report = run(folder, tmp_path / "out", target_row=row, prior_weight=1e-4)
    near = report["nearest_training_sample"]
    assert near["sample"] == near["sample_nearest_in_latents"] == row
    assert report["names"][0] == "latent0" and report["relative_l2"] <= near["relative_l2"] * 1.05
    assert (tmp_path / "out/best.csv").read_text().startswith("latent0,latent1")
    found = str(tmp_path / "out/best_latents.npy")
    flags = InferConfig(model=str(folder), latents=found, format="npy", figures=False)
    infer(flags, QUICK, tmp_path / "again")
    truth = open_fields(folder / "bumps.h5").trajectory(row)
    again = np.load(tmp_path / "again/fields.npy", allow_pickle=False)[0]
    assert relative_l2(again, truth) == pytest.approx(report["relative_l2"], rel=1e-3)


def test_held_out_samples(model: Path, tmp_path: Path):
    """Held-out fields are met better than by any training sample, parameters better than by the mean."""
    report = run(model, tmp_path, num_test=3, prior_weight=0.1)
    median = report["median"]
    assert median["relative_l2"] < 0.5 * median["nearest_l2"]
    assert median["param_error"] < 0.5 * median["param_error_of_mean"]
    stored = json.loads((tmp_path / "inverse_test.json").read_text())
    assert len(stored["samples"]) == 3 and stored["median"] == median
