"""Training, resume, inference, evaluation and archives on a tiny data set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoint import load as load_checkpoint
from common.errors import DataError, UserError
from common.report import Row
from tests.toy_runs import records
from tests.velocity_inversion.cases import CPU, RUN, rank_config, tiny_config
from velocity_inversion.config_tools import EvaluateConfig, InferConfig
from velocity_inversion.evaluate import evaluate
from velocity_inversion.evaluate_rows import member_rows
from velocity_inversion.infer import infer, load
from velocity_inversion.sources import open_source
from velocity_inversion.submission import check_archive, require_ids, write_archive
from velocity_inversion.train import MODEL_FILE, train


def weights(run: Path, member: int) -> dict[str, torch.Tensor]:
    """Return the weights of a member's last checkpoint."""
    return load_checkpoint(run / f"member_{member:02d}/checkpoints/last.pt").state_dict


def test_members_differ_and_names_are_plain(trained: Path):
    """Two members have different weights; the ensemble's file holds both under plain names."""
    ensemble = load(trained / MODEL_FILE)
    name = "net.decoder.position"
    assert not torch.equal(ensemble.states[0][name], ensemble.states[1][name])
    assert float(ensemble.weights.sum()) == pytest.approx(1.0)
    assert f"members.0.{name}" in load_checkpoint(trained / MODEL_FILE).state_dict


def test_resume_equals_the_uninterrupted_run(data: Path, trained: Path, tmp_path: Path):
    """Cut back to step 2 of member 1 and continued, both members have the same bits."""
    config = tiny_config(data, tmp_path / "cache")
    train(config, replace(RUN, out=tmp_path / "run"))
    for path in (tmp_path / "run/member_01/checkpoints").iterdir():
        if path.name != "step2.pt":
            path.unlink()
    (tmp_path / "run/member_01/status.json").unlink()
    train(config, replace(RUN, out=tmp_path / "run", resume="auto"))
    for member in (0, 1):
        expected, found = weights(trained, member), weights(tmp_path / "run", member)
        assert all(torch.equal(expected[name], found[name]) for name in expected), member


def test_two_batches_a_step_equal_a_larger_one(data: Path, tmp_path: Path):
    """One sample at a time, two a step, is a step on two samples: members and diffusion stage."""
    config = replace(rank_config(data, tmp_path / "cache", batch_size=2), stage="all", diffusion_steps=2)
    train(config, replace(RUN, out=tmp_path / "whole"))
    train(replace(config, batch_size=1, accumulate=2), replace(RUN, out=tmp_path / "parts"))
    for stage in ("member_00", "diffusion"):
        whole, parts = (records(tmp_path / run / stage) for run in ("whole", "parts"))
        assert len(whole) == len(parts) > 0
        for line, other in zip(whole, parts, strict=True):
            scores = {k: v for k, v in line.items() if k.startswith("valid_") or k == "train_loss"}
            assert scores == pytest.approx({k: other[k] for k in scores}, rel=1e-4), stage


def test_inference_writes_what_it_says(data: Path, trained: Path, tmp_path: Path):
    """Sections, half-widths and archive are there; refinement lowers the misfit; batches change nothing."""
    config = InferConfig(model_path=str(trained / MODEL_FILE), test_data_path=str(data / "test"), figures=1)
    found = infer(replace(config, refine=1), CPU, tmp_path / "a")
    assert all(one["misfit"] <= one["misfit_before_refine"] + 1e-6 for one in found)
    plain = replace(config, misfit="none", figures=0)
    infer(replace(plain, batch_size=1), CPU, tmp_path / "b")
    infer(replace(plain, batch_size=2), CPU, tmp_path / "c")
    ids = open_source(data / "test").ids
    one, two = (np.load(tmp_path / run / "predictions.npz", allow_pickle=False) for run in "bc")
    assert sorted(one.files) == sorted(ids)
    for name in ids:
        np.testing.assert_allclose(one[name], two[name], atol=0.01)
        assert 1500 <= one[name].min() <= one[name].max() <= 4500  # files are in m/s
    assert (tmp_path / "a" / ids[0] / "vp_halfwidth_90.npy").exists()


def test_evaluation_names_its_baselines(data: Path, trained: Path, tmp_path: Path):
    """The table holds the model beside the mean section and the ridge, disturbed and refined samples."""
    config = EvaluateConfig(
        model_path=str(trained / MODEL_FILE),
        test_data_path=str(data / "test"),
        train_data_path=str(data / "train"),
        figures=1,
        robustness=True,
        refine=1,
        refine_samples=1,
        diffusion_samples=1,
    )
    rows = evaluate(config, CPU, tmp_path)
    assert set(rows[0].baselines) == {"mean section", "depth trend"}
    by_name = {row.measure: row for row in rows}
    assert "the network alone" in by_name["velocity MAE, refined, 1 sample"].baselines
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(found["mae_over_clean"]) == 9 and len(found["mape_members"]["each"]) == 2
    (misfits,) = (
        row for row in rows if row.measure.startswith("waveform misfit, ") and "refined" not in row.measure
    )
    assert misfits.ours == pytest.approx(found["waveform_misfit"]["ours"])
    before = np.mean(found["refinement"]["misfit_before"])
    assert config.misfit_samples > 1 and min(found["waveform_misfit"].values()) > 0 and before > 0
    assert found["refinement"]["misfit_after"][0] <= found["refinement"]["misfit_before"][0]
    assert found["diffusion_m_s"]["spread"] > 0 and found["diffusion_m_s"]["near_with"] > 0
    assert 0 <= found["coverage"]["noise, 20 dB"] <= 1
    well = by_name["velocity MAE within 5 columns of a well, 1 sample"]
    assert well.ours == found["diffusion_m_s"]["near_with"]
    assert well.baselines == {"without the well": found["diffusion_m_s"]["near_without"]}
    chosen = json.loads((trained / MODEL_FILE).with_name("ensemble.json").read_text())
    weighted = by_name["validation MAPE of weighted members"]
    assert weighted.ours == chosen["mape_weighted"] <= weighted.baselines["equal weights"]
    assert by_name["MAPE of weighted members"].ours == found["mape_members"]["weighted"]
    assert by_name["samples whose misfit refinement lowered, 1 sample"].ours in (0, 1)
    assert (tmp_path / "evaluation.md").exists() and (tmp_path / "figures/best.png").exists()


def test_a_damaged_file_of_members_costs_only_its_row(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Whatever lies beside the model, the evaluation goes on; a file of another ensemble is not believed."""
    members = {"each": [0.3, 0.2], "uniform": 0.24, "weighted": 0.19}
    first = Row("velocity_inversion", "velocity MAE", "m/s", "lower", 1.0)
    good = {"mape_members": [0.31, 0.21], "mape_uniform": 0.25, "mape_weighted": 0.18}
    for stored, count in ((good, 2), ({**good, "mape_members": [0.3]}, 1), ({}, 1), ([], 1)):
        (tmp_path / "ensemble.json").write_text(json.dumps(stored))
        rows = member_rows(first, members, tmp_path / "model.pth")
        assert len(rows) == count and rows[0].ours == 0.19 and rows[0].baselines["best member"] == 0.2
        assert ("left out" in capsys.readouterr().err) == (count == 1)
    assert not member_rows(first, {**members, "each": [0.3]}, tmp_path / "model.pth")


def test_archive_is_complete_or_not_there(tmp_path: Path):
    """Contents are checked; a failure while writing leaves no file under the final name."""
    path = tmp_path / "submission.npz"
    marked = np.full((300, 1259), 2.0, dtype=np.float32)
    marked[0, -1] = 4.0
    write_archive(path, ["a", "b"], lambda _name: marked)
    check_archive(path, ["a", "b"], (300, 1259), (1.5, 4.5))
    stored = np.load(path, allow_pickle=False)["a"]
    assert stored.dtype == np.float64 and stored[0, -1] == 4.0
    with pytest.raises(DataError, match="expected 1.5 to 3"):
        check_archive(path, ["a", "b"], (300, 1259), (1.5, 3))

    def fails(name: str) -> np.ndarray:
        if name == "b":
            raise OSError("planted")
        return marked

    with pytest.raises(OSError, match="planted"):
        write_archive(tmp_path / "other.npz", ["a", "b"], fails)
    assert not (tmp_path / "other.npz").exists()
    for ids, count in ((["a", "a"], 0), (["a"], 150)):
        with pytest.raises(UserError):
            require_ids(ids, count)
