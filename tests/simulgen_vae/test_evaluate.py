"""Evaluation of a trained surrogate: the table, the files, the refusals; figures of odd data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common import figures
from common.errors import DataError, UserError
from common.report import format_number, load_rows
from common.run import MachineOptions
from simulgen_vae import compare, gallery
from simulgen_vae import evaluate as evaluation
from simulgen_vae.config_tools import EvaluateConfig
from simulgen_vae.evaluate import evaluate
from simulgen_vae.gp2 import Gp2
from simulgen_vae.model_files import find_model, read_candidates, read_surrogate
from simulgen_vae.pairs import LatentNetPredictor, pair_of
from simulgen_vae.train import train
from tests.launch import ROOT
from tests.simulgen_vae.cases_vae import config, fields, options, params, write_data

QUICK = MachineOptions(device="cpu", precision="fp32")
DRAWN = {"strip_best.png", "profiles_worst.png", "baselines.png", "kl.png", "latents.png", "coverage.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small data set on a grid, so that strips can be drawn."""
    return write_data(tmp_path_factory.mktemp("data") / "waves.npz", num=48)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished training with calibrated error bars."""
    out = tmp_path_factory.mktemp("trained") / "run"
    result = train(config(data, conditioner="gp", val_fraction=0.25, baselines="rbf"), options(out))
    assert result is not None and result.exit_code == 0
    return out


@pytest.fixture(scope="module")
def report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation of it."""
    out = tmp_path_factory.mktemp("report")
    evaluate(EvaluateConfig(model=str(trained), baselines="krr,gpr_shared"), QUICK, out)
    return out


def test_the_document(report: Path):
    """Every method is scored on the same rows, the mean and the oracle among them, in order of physics."""
    found = json.loads((report / "evaluation.json").read_text())
    methods = found["methods"]
    assert {"ours", "mean_field", "vae_net", "vae_autoencoding", "gp2", "vae_gp"} - set(methods) == (
        {found["ships"]} & {"gp2", "vae_gp", "vae_net"}
    )
    assert {len(m["samples"]) for m in methods.values()} == {len(found["rows"])}
    error = {name: m["summary"]["relative_l2"] for name, m in methods.items()}
    oracle = next(name for name in error if name.endswith("_oracle"))
    assert found["basis_floor"] <= error[oracle] <= error["ours"] < 0.5 * error["mean_field"]
    for m in methods.values():
        summary, samples = m["summary"], [s["relative_l2"] for s in m["samples"]]
        assert summary["relative_l2"] == pytest.approx(np.mean(samples))
        assert summary["relative_l2_max"] == pytest.approx(max(samples))


def test_error_bars(report: Path):
    """Bars are calibrated, cover most points, and have a width; constraints stand beside the truth's own."""
    found = json.loads((report / "evaluation.json").read_text())
    bars = found["error_bars"]
    assert bars["nominal"] == 0.9 and 0.7 <= bars["coverage"] <= 1.0
    assert bars["mean_width"] > 0 and bars["crps"] > 0 and bars["factor"] > 0
    assert found["constraints"]["conserved_rmse"] < found["constraints"]["conserved_rms_of_truth"]


def test_table_and_rows(report: Path):
    """The table ends with the plain line; results.json is what the house's report reads."""
    text = (report / "evaluation.md").read_text()
    found = json.loads((report / "evaluation.json").read_text())
    assert text.rstrip().endswith(found["line"]) and "**ours**" in text
    worst = max(found["methods"]["ours"]["samples"], key=lambda s: s["max_error"])
    place = f"at frame {worst['max_error_frame']:.0f}, node {worst['max_error_node']:.0f}, field 0"
    assert f"Largest error of ours: {format_number(worst['max_error'])} {place}" in text
    for name in ("conserved_rmse", "conserved_rms_of_truth", "bound_violation", "range_of_truth"):
        assert format_number(found["constraints"][name]) in text.split("Sum over nodes")[1]
    rows = load_rows(report / "results.json")
    assert rows[0].ours == pytest.approx(found["methods"]["ours"]["summary"]["relative_l2"])
    assert "mean_field" in rows[0].baselines and rows[0].won in (True, False)


@pytest.mark.parametrize(
    ("ships", "baseline", "expected"),
    [
        ("gp2", 0.0201, "POD+GPR is as good here; shipping it (relative L2 0.0200, 1.00 x the best"),
        (
            "gp2",
            0.0317,
            "no network was better on held-out runs; shipping gp2, POD+GPR with two length scales",
        ),
        ("gp2", 0.0160, "two length scales (relative L2 0.0200, 1.25 x the best baseline pod56_rbf 0.0160)"),
        ("gp2", None, "POD+GPR is as good here; shipping it (relative L2 0.0200)"),
        ("field_net", 0.0201, "shipping field_net (relative L2 0.0200, 1.00 x the best baseline pod56_rbf"),
    ],
)
def test_the_plain_line(monkeypatch: pytest.MonkeyPatch, ships: str, baseline: float | None, expected: str):
    """As good as POD+GPR is said of gp2 only where it and the best regression on POD agree to 1 %."""
    monkeypatch.setattr(evaluation, "winner_of", lambda _model: SimpleNamespace(name=ships))
    errors = {"ours": 0.02, "mean_field": 0.9, "pod56_oracle": 0.001}
    errors |= {} if baseline is None else {"pod56_rbf": baseline, "pod56_krr": 0.04}
    methods: Any = {n: SimpleNamespace(summary={"relative_l2": e}) for n, e in errors.items()}
    model: Any = SimpleNamespace(predictor=ships)
    line = evaluation.last_line(methods, model)
    assert expected in line and ("is as good" in line) == expected.startswith("POD")


def test_figures(report: Path):
    """Every figure is written; strips wait for a regular grid."""
    drawn = {path.name for path in (report / "figures").glob("*.png")}
    assert DRAWN - {"strip_best.png"} <= drawn and "strip_best.png" not in drawn


def test_strip_has_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Field and prediction share their colours, and the error is drawn as large as it is."""
    limits: list[tuple[float, float]] = []
    real = figures.section

    def spy(*args: object, **more: object) -> object:
        limits.append(more["limits"])  # type: ignore[arg-type]
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(gallery.figures, "section", spy)
    truth = np.random.default_rng(0).standard_normal((6, 20))
    path = tmp_path / "strip.png"
    gallery.draw_strip(path, truth, 1.2 * truth, None, np.arange(6.0), (4, 5), "best", "u (-)")
    assert path.stat().st_size > 5000
    assert len(set(limits[:10])) == 1 and limits[10] == pytest.approx((-limits[0][1], limits[0][1]))


def test_one_frame_is_drawn(tmp_path: Path):
    """A static field (T = 1) on three nodes has profiles too."""
    truth = np.array([[1.0, 2.0, 3.0]])
    made = gallery.draw_profiles(tmp_path / "p.png", truth, truth + 0.1, None, np.zeros(1), "best", "u (-)")
    assert made.stat().st_size > 2000


def test_several_posterior_draws(trained: Path, tmp_path: Path):
    """The mean of several posterior draws is scored with their spread; baselines can be left out."""
    flags = EvaluateConfig(model=str(trained), baselines="none", recon_iter=3, num=3, figures=False)
    evaluate(flags, QUICK, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(found["rows"]) == 3 and not (tmp_path / "figures").exists()
    method = found["methods"]["vae_autoencoding"]
    assert np.isfinite(method["summary"]["relative_l2"]) and 0 < method["spread_of_draws"] < 1
    assert "mean of 3 draws" in method["note"] and found["methods"]["ours"]["spread_of_draws"] is None


def test_rows_count_what_ships(trained: Path, report: Path):
    """Networks count by the weights that predict, a Gaussian process alone by what was fitted; never by 0."""
    surrogate = read_surrogate(trained)
    counted = evaluation.parameters_of(surrogate)
    assert {row.parameters for row in load_rows(report / "results.json") if row.baselines} == {counted}
    found = json.loads((report / "evaluation.json").read_text())
    assert found["methods"]["ours"]["parameters"] == counted
    sizes = {"num_rows": 7, "num_inputs": 2, "num_outputs": 4, "num_components": 2}
    config = {"shape": [5, 3], "features": {"num_params": 2}, "process": {"family": "matern52", **sizes}}
    process = Gp2(config)
    alone = evaluation.parameters_of(replace(surrogate, predictor=process))
    assert alone == 2 * 2 + 2 + 1 + 4 + 7 * 4  # lengths, logits, noise, mean, coefficients
    vae, conditioner = surrogate.vae, surrogate.conditioner
    assert conditioner is not None
    net = LatentNetPredictor({"kind": "vae_net"}, vae, conditioner)
    weights = sum(p.numel() for part in (conditioner, vae.decoder, vae.linear) for p in part.parameters())
    for predictor in (net, pair_of(process, net, 0.5)):
        assert evaluation.parameters_of(replace(surrogate, predictor=predictor)) == weights > 0


def test_what_the_training_was_told(trained: Path, tmp_path: Path):
    """--baselines and --recon_iter of the training are what an evaluation without these flags does."""
    evaluate(EvaluateConfig(model=str(trained), num=2, figures=False), QUICK, tmp_path)
    names = set(json.loads((tmp_path / "evaluation.json").read_text())["methods"])
    assert "pod6_rbf" in names and not names & {"pod6_krr", "pod6_gpr", "pod6_gpr_shared"}


def test_candidates_are_not_fitted_again(
    trained: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the training fitted beside the winner predicts in the evaluation; else it is fitted there."""
    ships = json.loads((report / "evaluation.json").read_text())["ships"]
    beaten = {"gp2", "vae_gp"} - {ships}
    surrogate = read_surrogate(trained)
    assert set(read_candidates(find_model(trained), surrogate)) == beaten
    with torch.no_grad():
        surrogate.vae.decoder.head.bias.add_(1.0)
    assert read_candidates(find_model(trained), surrogate) == {}  # another network's

    def refuse(*_: object) -> None:
        raise AssertionError("fitted again")

    for name in ("fit_latent_gp", "fit_predictor"):
        monkeypatch.setattr(compare, name, refuse)
    flags = EvaluateConfig(model=str(trained), baselines="none", figures=False)
    evaluate(flags, QUICK, tmp_path)
    kept, first = (
        json.loads((folder / "evaluation.json").read_text())["methods"] for folder in (tmp_path, report)
    )
    for name in beaten:
        assert kept[name]["summary"] == first[name]["summary"] and kept[name]["fit_cpu_seconds"] > 0
    copy = tmp_path / "model"
    shutil.copytree(trained / "model_save", copy)
    (copy / "Candidates").unlink()
    with pytest.raises(AssertionError, match="fitted again"):
        evaluate(replace(flags, model=str(copy)), QUICK, tmp_path / "again")


def test_a_model_that_predicts_nothing(tmp_path: Path):
    """Trained on fields alone, a model is scored as auto-encoder beside the oracle, and says what it is."""
    path = tmp_path / "fields.npz"
    np.savez(path, fields=fields(24))
    result = train(config(path), options(tmp_path / "run"))
    assert result is not None and result.exit_code == 0
    rows = evaluate(EvaluateConfig(model=str(tmp_path / "run")), QUICK, tmp_path / "report")
    found = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert set(found["methods"]) == {"vae_autoencoding", "mean_field", "pod6_oracle"}
    error = {name: m["summary"]["relative_l2"] for name, m in found["methods"].items()}
    assert found["basis_floor"] <= error["vae_autoencoding"] < 0.5 * error["mean_field"]
    assert found["ships"] == "" and found["error_bars"] is None and "predicts nothing" in found["line"]
    text = (tmp_path / "report/evaluation.md").read_text()
    assert "**vae_autoencoding**" in text and "nothing is predicted" in text
    assert rows[0].ours == pytest.approx(error["vae_autoencoding"]) and "auto-encoding" in rows[0].measure
    assert set(rows[0].baselines) == {"mean_field", "pod6_oracle"}
    drawn = {p.name for p in (tmp_path / "report/figures").glob("*.png")}
    assert {"baselines.png", "profiles_best.png", "kl.png"} <= drawn and "coverage.png" not in drawn


def test_other_data_is_refused(trained: Path, tmp_path: Path):
    """A data set of the same shape but other content is not what the model was trained on."""
    other = tmp_path / "other.npz"
    np.savez(other, fields=fields(48)[::-1], params=params(48))
    with pytest.raises(DataError, match=r"other\.npz: not the data, split and settings"):
        evaluate(EvaluateConfig(model=str(trained), data=str(other)), QUICK, tmp_path / "out")


def test_bad_requests(trained: Path, tmp_path: Path):
    """An unknown baseline, another coverage and a missing model are one line each."""
    with pytest.raises(ValueError, match="--baselines fourier: expected some of rbf,krr"):
        EvaluateConfig(baselines="fourier")
    with pytest.raises(UserError, match="calibrated for 0.9"):
        evaluate(EvaluateConfig(model=str(trained), baselines="none", coverage=0.5), QUICK, tmp_path)
    with pytest.raises(DataError, match="no trained model"):
        evaluate(EvaluateConfig(model=str(tmp_path / "nothing")), QUICK, tmp_path)


def test_the_script(trained: Path, tmp_path: Path):
    """The script runs dry with either spelling and leaves no report."""
    command = [sys.executable, str(ROOT / "scripts/simulgen_vae/evaluate.py"), "--model", str(trained)]
    done = subprocess.run(
        [*command, "--dry-run", "--recon-iter=2", "--device", "cpu", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rows to score" in done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("*"))
