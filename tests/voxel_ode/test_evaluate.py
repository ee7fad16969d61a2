"""Evaluation: the network beats copying on simulated data; scores are consistent; intervals cover."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from common.cli import parse
from common.errors import DataError, UserError
from common.report import load_rows
from common.run import BasicOptions, MachineOptions
from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_rollout import rollout_config, save_model
from voxel_ode import calibration, fno
from voxel_ode.ablation import without_flux
from voxel_ode.config import TrainRunOptions, smoke
from voxel_ode.config_make import MakeDataConfig
from voxel_ode.config_prep import PrepConfig
from voxel_ode.config_tools import EvaluateConfig, Placement
from voxel_ode.evaluate import evaluate, split_files
from voxel_ode.evaluate_report import command_of
from voxel_ode.infer import infer
from voxel_ode.intervals import conformal_factor, load_calibration, save_calibration, scale_of, spread_of
from voxel_ode.loading import find_checkpoint, load
from voxel_ode.make_data import make_data
from voxel_ode.prep import prep_data
from voxel_ode.prepped import open_simulation
from voxel_ode.rollout import fields_of
from voxel_ode.scalars import physical_rates
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.train import train

CPU = MachineOptions(device="cpu", precision="fp32", overwrite=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepped root with simulations of 7x6x5 cells written by hand."""
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    """Return a checkpoint of a small network with random weights."""
    return save_model(root.parent / "model.pt", root)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the prepped root of four simulations of the generator, and a network trained on two of them."""
    folder = tmp_path_factory.mktemp("simulated")
    data = MakeDataConfig(num_sims=4, grid=(12, 10, 10), num_steps=6)
    make_data(data, BasicOptions(), folder / "raw", 0, 1, False)
    prep = PrepConfig(folder / "raw", folder / "prepped", patch_size=(12, 10, 10), num_test=1, num_val=1)
    prep_data(prep, BasicOptions())
    config = replace(
        smoke(), prepped_root=folder / "prepped", max_steps=60, conv_backend="native", ema_decay=0.9
    )
    quick: dict[str, Any] = {"device": "cpu", "tensorboard": False, "eval_every": 1000, "save_every": 1000}
    train(config, TrainRunOptions(out=folder / "run", **quick))
    yield folder / "prepped"


def config(root: Path, *models: Path, **flags: Any) -> EvaluateConfig:
    """Return an evaluation without figures."""
    flags = {"figures": False, **flags}
    return EvaluateConfig(prepped_root=root, ckpt_path=tuple(map(str, models)), **flags)


def run(chosen: EvaluateConfig, out: Path) -> dict:
    """Evaluate and return evaluation.json."""
    evaluate(chosen, CPU, out)
    return json.loads((out / "evaluation.json").read_text(encoding="utf-8"))


def test_trained_network_beats_copying(simulated: Path, tmp_path: Path):
    """After seconds of training the held-out forecast has a lower RMSE than copying, in P and in T."""
    model = simulated.parent / "run" / "checkpoints" / "best.pt"
    found = run(config(simulated, model, figures=True), tmp_path)
    ours, copy = (found["methods"][name]["rollout"] for name in ("ours", "copy"))
    assert ours["rmse_T"] < copy["rmse_T"] and ours["rmse_P"] < copy["rmse_P"]
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    slices = {f"slices_{c}_{cut}.png" for c in "PT" for cut in ("section", "layer")}
    assert names == slices | {"error_by_year.png", "wells.png", "scalars.png"}
    rows = {row.measure: row for row in load_rows(tmp_path / "results.json")}
    row = rows["temperature RMSE of the rollout"]
    assert row.ours == ours["rmse_T"] and row.baselines["copy"] == copy["rmse_T"]


def test_field_rates_from_true_fields(simulated: Path):
    """Without correction: water rates exact, power within 1e-3 (production) and 1e-2 (injection), median."""
    errors = []
    for sim in (s for split in ("train", "val", "test") for s in split_files(simulated, split)):
        features = torch.from_numpy(sim.well_features)[1:]  # later years: the first front has passed
        rates = torch.from_numpy(sim.wells.total_rates_kg_s)[None].expand(len(features) - 1, 2)
        found = physical_rates(features[:-1], features[1:], rates).numpy()
        errors.append(np.abs(found / sim.scalars[1:][:, [0, 1, 3, 4]] - 1))
    median = np.median(np.concatenate(errors), axis=0)
    assert median[0] <= 1e-2 and median[1] <= 1e-3 and np.concatenate(errors)[:, 2:].max() <= 1e-6


def test_untrained_network_is_copy(root: Path, tmp_path: Path):
    """A network that has learned nothing scores as copying does, in every measure of cells and wells."""
    zero = save_model(tmp_path / "zero.pt", root, spread=0.0)
    found = run(config(root, zero, constrain=False), tmp_path / "out")["methods"]
    for part in ("rollout", "one_step", "wells"):
        for name, value in found["copy"][part].items():
            np.testing.assert_allclose(found["ours"][part][name], value, rtol=1e-4, atol=1e-6)
    assert found["ours"]["one_step"]["rmse_T"] > 0


def test_the_stored_command_measures_the_same():
    """Every flag that changes the figures is in the command, and it parses to the same evaluation."""
    flags: dict[str, Any] = {
        "split": "val",
        "init": "initial",
        "pressure_sweeps": 64,
        "constrain": False,
        "baselines": ("copy", "upwind"),
        "fno_minutes": 0.5,
        "ablate": ("flux",),
        "calibrate": True,
        "max_sims": 2,
    }
    chosen = config(Path("my data"), Path("a.pt"), Path("run b"), **flags)
    options = replace(CPU, seed=3, threads=2)
    found = shlex.split(command_of(chosen, options))
    assert found[:2] == ["python", "scripts/voxel_ode/evaluate.py"]
    parsed = parse(found[2:], EvaluateConfig, MachineOptions)
    assert parsed.config == replace(chosen, figures=True)
    assert parsed.run == MachineOptions(precision="fp32", seed=3)
    assert "--" not in command_of(config(Path("d"), Path("m"), figures=True), MachineOptions()).replace(
        "--prepped_root d --ckpt_path m", ""
    )


def test_a_folder_of_a_training_is_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The folder of a run, or of its checkpoints, stands for the best one, and says so; a file for itself."""
    best = tmp_path / "checkpoints" / "best.pt"
    best.parent.mkdir()
    (best.parent / "last.pt").touch()
    with pytest.raises(DataError, match=r"expected in it checkpoints/best\.pt or best\.pt; name the"):
        find_checkpoint(tmp_path)
    best.touch()
    assert find_checkpoint(tmp_path) == best == find_checkpoint(best.parent) == find_checkpoint(str(best))
    said = capsys.readouterr().err
    assert f"{tmp_path}: is a folder, taking checkpoints/best.pt\n" in said
    assert f"{best.parent}: is a folder, taking best.pt\n" in said


def test_report_is_complete(root: Path, model: Path, tmp_path: Path):
    """All methods, years, field rates and wells stand in the JSON; the table names every method."""
    found = run(config(root, model, ablate=("flux",), constrain=False, pressure_sweeps=2), tmp_path)
    assert set(found["methods"]) == {
        "ours",
        "ours without flux",
        "copy",
        "ridge1",
        "ridge3",
        "linear",
        "upwind",
        "upwind balanced",
    }
    for summary in found["methods"].values():
        assert len(summary["by_year"]["rmse_T"]) == 3
        curve = np.array(summary["by_year"]["rmse_T"])
        np.testing.assert_allclose(np.sqrt((curve**2).mean()), summary["rollout"]["rmse_T"], rtol=1e-6)
    assert set(found["scalars"]) == set(SCALAR_NAMES)
    text = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for name in [*found["methods"], *SCALAR_NAMES])
    assert found["checkpoints"][0]["sha256"] == load(model).sha256 and np.isfinite(
        found["energy_balance_error"]
    )


def test_first_year_of_a_rollout_is_one_step(root: Path, model: Path, tmp_path: Path):
    """With one predicted year left, rollout and one-year errors are the same numbers."""
    found = run(config(root, model, init="initial", constrain=False), tmp_path)["methods"]
    assert "linear" not in found  # it needs a year before the first state
    short = prepared(tmp_path / "short", raw={"extra_missing_steps": 0})
    for path in sorted(short.glob("*/*.prepped.h5")):
        with h5py.File(path, "r+") as file:
            for name in ("outputs_grid", "outputs_scalar"):
                values = file[name][:2]
                del file[name]
                file[name] = values
            features = file["well_features"][:3]
            del file["well_features"]
            file["well_features"] = features
    found = run(config(short, model, constrain=False), tmp_path / "out")["methods"]
    for summary in found.values():
        for name, value in summary["one_step"].items():
            np.testing.assert_allclose(summary["rollout"][name], value, rtol=1e-4, atol=1e-6)


def test_ablation_hears_nothing_of_the_flow(root: Path, model: Path):
    """Without flux inputs the prediction does not depend on permeability in the flow or on the wells."""
    full = load(model, precision="fp32")
    deaf = without_flux(full)
    source = open_simulation(root / "test" / "v2.4_0001.prepped.h5")
    fields = fields_of(full, [source], 0)
    other = replace(fields, rock=3 * fields.rock, well_source=-2 * fields.well_source)
    with torch.no_grad():
        results = {
            name: [m.network.step(m.network.static_features(f), f.state)[0] for f in (fields, other)]
            for name, m in (("full", full), ("deaf", deaf))
        }
    assert torch.equal(*results["deaf"]) and not torch.equal(*results["full"])
    assert not torch.equal(results["full"][0], results["deaf"][0])


def test_conformal_factor_covers():
    """At least the nominal share of the calibration scores lies within the factor, and it is the least."""
    rng = np.random.default_rng(0)
    for n in (5, 99, 1000):
        scores = rng.exponential(size=n)
        factor = conformal_factor(scores, 0.8)
        assert (scores <= factor).mean() >= 0.8 and factor in scores
        below = scores[scores < factor]
        assert (scores <= below.max()).mean() < min(1.0, 0.8 * (n + 1) / n)


def test_spread_of_members():
    """Mean, std and percentiles over members are NumPy's."""
    members = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    found = spread_of(members)
    for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        np.testing.assert_allclose(found[name], np.quantile(members.numpy(), share, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["mean"], members.numpy().mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["std"], members.numpy().std(0), rtol=1e-5)


def test_intervals_cover_what_they_say(root: Path, model: Path, tmp_path: Path):
    """On the simulations that they were fitted on, intervals cover the nominal share, not much more."""
    other = save_model(tmp_path / "other.pt", root, seed=1)
    for paths in ([model], [model, other]):
        models = [load(path, precision="fp32") for path in paths]
        sims = split_files(root, "val")
        found = calibration.fit(models, sims, Placement(), "output0")
        covered = calibration.coverage(models, sims, Placement(), found)
        for channel, share in covered.items():
            assert found.nominal <= share + 1e-6 and share < found.nominal + 0.05, (channel, covered)
        assert (np.array(found.factors["T"]) > 0).all() and len(found.factors["P"]) == 3
    assert (scale_of(np.zeros(3), 0.0) == 1).all() and (scale_of(np.zeros(3), 0.5) == 0.5).all()


def test_calibrated_rollout(root: Path, model: Path, tmp_path: Path):
    """A rollout with --intervals writes P10 and P90 at the fitted half width; other networks are refused."""
    models = [load(model, precision="fp32")]
    found = calibration.fit(models, split_files(root, "val"), Placement(), "output0")
    save_calibration(tmp_path / "calibration.json", found)
    assert load_calibration(tmp_path / "calibration.json", models) == found
    sim = root / "test" / "v2.4_0001.prepped.h5"
    chosen = rollout_config(sim, model, tmp_path / "p.h5", intervals=tmp_path / "calibration.json")
    infer(chosen, CPU, {})
    active = open_simulation(sim).masks()[0] > 0
    with h5py.File(tmp_path / "p.h5") as file:
        low, high = (file[f"predicted/{name}"][()][:, 1, active] for name in ("p10", "p90"))
        mean = file["predicted/outputs_grid"][()][:, 1, active]
    assert (low[0] == high[0]).all()
    for k, factor in enumerate(found.factors["T"], start=1):
        np.testing.assert_allclose(high[k] - low[k], 2 * factor, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(0.5 * (high[k] + low[k]), mean[k], rtol=1e-5)
    with pytest.raises(UserError, match="fitted for --pressure_sweeps 0, this is --pressure_sweeps 2"):
        infer(replace(chosen, pressure_sweeps=2, save_path=tmp_path / "r.h5"), CPU, {})
    with pytest.raises(UserError, match="fitted for --init output0"):
        infer(replace(chosen, init="initial"), CPU, {})
    other = save_model(tmp_path / "other.pt", root, seed=1)
    with pytest.raises(DataError, match="made for other checkpoints"):
        infer(replace(chosen, ckpt_path=(str(other),)), CPU, {})
    (tmp_path / "calibration.json").write_text('{"schema": 1}')
    with pytest.raises(DataError, match="no calibration of evaluate.py"):
        infer(chosen, CPU, {})


def test_missing_operator_is_one_line(
    root: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Without neuraloperator the baseline is left out with one line that says how to get it."""

    def missing(_: int) -> None:
        raise UserError("needs neuralop, which is not installed; run: pip install neuraloperator")

    monkeypatch.setattr(fno, "make_fno", missing)
    with caplog.at_level(logging.INFO):
        found = run(config(root, model, baselines=("copy", "fno"), fno_minutes=1.0), tmp_path)
    assert set(found["methods"]) == {"ours", "copy"}
    said = [r.getMessage() for r in caplog.records if "fno: left out" in r.getMessage()]
    assert len(said) == 1 and "pip install neuraloperator" in said[0]


def test_refusals(root: Path, model: Path, tmp_path: Path):
    """No simulations, nothing to calibrate on or to leave out, an earlier evaluation: one line each."""
    with pytest.raises(DataError, match="absent/stats.json: cannot be read"):
        run(config(tmp_path / "absent", model), tmp_path / "a")
    empty = prepared(tmp_path / "data", num_val=0)
    with pytest.raises(DataError, match="val: no prepped simulations"):
        run(config(empty, model, split="val"), tmp_path / "b")
    with pytest.raises(DataError, match="val: no prepped simulations"):
        run(config(empty, model, calibrate=True), tmp_path / "b")
    without = save_model(tmp_path / "without.pt", root, flux_inputs=False)
    with pytest.raises(UserError, match=r"--ablate flux: .*without\.pt was trained with --flux_inputs off"):
        run(config(root, without, ablate=("flux",)), tmp_path / "b")
    assert not (tmp_path / "b").exists()  # told before anything is scored
    run(config(root, model, baselines=("copy",)), tmp_path / "c")
    with pytest.raises(UserError, match="holds an evaluation; add --overwrite"):
        evaluate(config(root, model), replace(CPU, overwrite=False), tmp_path / "c")
