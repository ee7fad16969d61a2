"""Training beside the plain run: what is fitted afterwards, sparse labels, fixed trunks, checks alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.cli import parse
from common.device import resolve_precision
from common.errors import DataError, UserError
from common.guard import Guard
from common.run import TrainOptions, machine
from common.sampling import Draw
from fault_seg.calibration import calibrate, fit_temperature, logits_of, store, stored
from fault_seg.check import check
from fault_seg.config import TrainConfig
from fault_seg.dataset import SyntheticVolumes, VolumePairs
from fault_seg.infer import load as load_model
from fault_seg.labels import LabelledCrops, open_labelled, rasterised, read_labels, read_sticks
from fault_seg.model import HEADS
from fault_seg.synthetic import preset
from fault_seg.train import FaultTask, train
from fault_seg.train_data import make_datasets
from fault_seg.volumes import open_volume, read_volume
from tests.fault_seg.cases import SHAPE, make_cubes, noisy_layers, save_model
from tests.fault_seg.volume_files import make_segy
from tests.toy_runs import differences, load, options


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three training cubes and two held-out cubes."""
    return make_cubes(tmp_path_factory.mktemp("cubes"), nvalid=2)


def fault_only(data: Path, **changes: Any) -> TrainConfig:
    """Return the quickest training: one step of the fault head."""
    config = TrainConfig(data=data, crop=(16,), batch_train=2, steps=1, ema=0, rgt=False, dhr=False)
    return replace(config, **changes)


def test_temperature_of_scaled_logits():
    """Probabilities made over-confident by a factor get that factor as temperature; honest ones get 1."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 100_000)
    faults = rng.uniform(size=logits.size) < 1 / (1 + np.exp(-logits))
    for factor in (1.0, 2.5, 0.5):
        assert fit_temperature(factor * logits, faults) == pytest.approx(factor, rel=0.05)
    np.testing.assert_allclose(logits_of(np.array([0.5, 1 / (1 + np.exp(-3))])), [0, 3], atol=1e-9)


def test_calibration_lowers_the_held_out_error(cubes: Path, tmp_path: Path):
    """The fitted temperature has a lower BCE than 1, and the correction is kept only when it helps."""
    model = load_model(save_model(tmp_path / "m.ckpt"))
    pairs = VolumePairs(cubes / "data_valid", cubes / "target_valid", (0, 0, 0), HEADS)
    items = [pairs[Draw(i, i)] for i in range(2)]
    found = calibrate(model, items)
    assert found["rgt_residual"] == (found["rgt_mae_corrected"] < found["rgt_mae_solved"])
    logits = logits_of(np.concatenate([model.maps(i["image"][None])[0, 0].numpy().ravel() for i in items]))
    true = np.concatenate([i["fsem"].numpy().ravel() > 0.5 for i in items])

    def bce(temperature: float) -> float:
        return float(np.logaddexp(0, np.where(true, -1, 1) * logits / temperature).mean())

    assert bce(found["temperature"]) < bce(1.0) and 0 < found["threshold"] < 1
    assert calibrate(model, items, "off")["rgt_residual"] is False
    before = load(tmp_path / "m.ckpt")
    store(tmp_path / "m.ckpt", found)
    after = load(tmp_path / "m.ckpt")
    assert stored(after["normalization"]) == found
    assert differences(before["state_dict"], after["state_dict"]) == []
    assert load_model(tmp_path / "m.ckpt").temperature == pytest.approx(found["temperature"])


def test_a_training_ends_calibrated(cubes: Path, tmp_path: Path):
    """last.ckpt and best.ckpt hold a threshold and a temperature, and a finished run may be resumed."""
    chosen = fault_only(cubes, ema=0.9)
    train(chosen, options(tmp_path))
    for name in ("last.ckpt", "best.ckpt"):
        assert {"temperature", "threshold"} <= set(stored(load(tmp_path / name)["normalization"]))
    train(chosen, options(tmp_path, resume="auto"))
    assert stored(load(tmp_path / "last.ckpt")["normalization"])


def test_batch_valid_changes_nothing(cubes: Path, tmp_path: Path):
    """Held-out cubes score the same one by one and two at a time."""
    scores = []
    for size in (1, 2):
        chosen = fault_only(cubes, batch_valid=size)
        with machine(options(tmp_path)) as device, Guard(device) as guard:
            torch.manual_seed(0)
            _, valid = make_datasets(chosen, 0)
            scores.append(FaultTask(chosen, valid, guard, resolve_precision("fp32", device), 1).evaluate())
    assert scores[0].keys() == scores[1].keys() and len(scores[0]) > 3
    for name, value in scores[0].items():
        assert scores[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_check_writes_predictions(cubes: Path, tmp_path: Path):
    """--check scores a checkpoint and writes predict_{i}_{name}.bin; no training happens."""
    model = save_model(tmp_path / "m.ckpt")
    chosen = TrainConfig(data=cubes, check=str(model))
    document = check(chosen, options(tmp_path), tmp_path / "out")
    assert document is not None and {"ap", "tol_iou", "rgt_mae", "dhr_psnr_db"} <= set(document["mean"])
    names = {f"predict_{i}_{n}.bin" for i in (0, 1) for n in ("rgt", "dhr", "fsem", "fdip", "fstrike")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {"check.json"}
    fsem, fdip = (read_volume(tmp_path / f"out/predict_1_{n}.bin", SHAPE) for n in ("fsem", "fdip"))
    assert 0 <= fsem.min() <= fsem.max() <= 1 and (fdip <= fsem + 1e-6).all() and fdip.max() > 0
    with pytest.raises(UserError, match="holds an earlier check"):
        check(chosen, options(tmp_path), tmp_path / "out")
    with pytest.raises(DataError, match="checkpoint is kind infer, network hr, .*; expected refine hr"):
        check(replace(chosen, task="refine"), options(tmp_path), tmp_path / "other")


def test_nodes_are_answered_with_torchrun(cubes: Path, tmp_path: Path):
    """--gpus_per_node without torchrun is a usage error that shows the command."""
    for flags, words in (
        ({"gpus_per_node": 4}, "--standalone --nproc_per_node 4"),
        ({"nodes": 2}, "--nnodes 2"),
    ):
        with pytest.raises(UserError, match=words):
            train(fault_only(cubes, **flags), options(tmp_path))


def test_frozen_trunk(cubes: Path, tmp_path: Path):
    """With --freeze trunk only heads change, norms of the trunk included."""
    model = save_model(tmp_path / "m.ckpt")
    chosen = TrainConfig(
        data=cubes, crop=(16,), batch_train=2, steps=2, ema=0, init=str(model), freeze="trunk", lr=1e-2
    )
    train(chosen, options(tmp_path / "run"))
    before, after = load(model)["state_dict"], load(tmp_path / "run/last.ckpt")["state_dict"]
    changed = {name.split(".")[0] for name in differences(before, after) for name in [name.lstrip("/.")]}
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and {name.split(".")[0] for name in moved} == {
        "fault_head", "orient_head", "dhr_head", "rgt_head",
    }  # fmt: skip


def stick_survey(folder: Path) -> Path:
    """Write a survey of 6 crosslines, 8 inlines and 17 samples of 2 ms from 100 ms on; return its path."""
    fields = lambda *_: {(109, 2): 100}  # noqa: E731
    ilines, xlines = list(range(100, 116, 2)), list(range(20, 26))
    return make_segy(folder / "s.sgy", noisy_layers((17, 6, 8)), ilines=ilines, xlines=xlines, fields=fields)


def write_sticks(path: Path, *rows: str) -> Path:
    """Write a CSV of fault sticks."""
    path.write_text("inline,crossline,sample_ms,fault_id,stick_id\n" + "\n".join(rows) + "\n")
    return path


def test_sticks_become_labels(tmp_path: Path):
    """A vertical stick labels two voxels' width on its own inline, zero beside it, nothing elsewhere."""
    sticks = write_sticks(tmp_path / "s.csv", "104,22,104,1,1", "104,22,124,1,1", "110,21,110,2,1")
    with open_volume(stick_survey(tmp_path)) as volume:
        lines = read_sticks(sticks, volume)
        np.testing.assert_allclose(lines[0], [[2, 2, 2], [12, 2, 2]])
        labels = read_labels(str(sticks), volume, ())
        assert set(np.unique(labels[:, :, 2])) == {0, 1} and set(np.unique(labels[:, :, 5])) == {0, 1}
        assert (labels[:, :, [0, 1, 3, 4, 6, 7]] == -1).all()
        assert (labels[3:12, 1:4, 2] == 1).all() and not (labels[3:12, [0, 4, 5], 2] == 1).any()
        assert (labels[14:, :, 2] == 0).all()
        only = read_labels(str(sticks), volume, (104, 106))
        assert (only[:, :, 3] == 0).all() and (only[:, :, 5] == -1).all()
        with pytest.raises(UserError, match="--labelled_inlines 105: not in"):
            read_labels(str(sticks), volume, (105,))


def test_stick_is_two_voxels_wide():
    """The slab around a slanted stick has a thickness of two voxels."""
    labels = rasterised([np.array([[2.0, 3.0, 0.0], [42.0, 33.0, 0.0]])], (48, 40, 1))
    assert (labels == 1).sum() / 50 == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("104,22,abc,1,1", "line 2: .*expected numbers"),
        ("104,22,98,1,1", "line 2: inline 104, crossline 22, 98 ms is outside the survey, expected 100..114"),
        ("300,22,110,1,1", "outside the survey"),
    ],
)
def test_bad_sticks(tmp_path: Path, row: str, message: str):
    """A stick that is no number or outside the survey is named with its line."""
    with open_volume(stick_survey(tmp_path)) as volume:
        with pytest.raises(DataError, match=message):
            read_sticks(write_sticks(tmp_path / "s.csv", row), volume)
        (tmp_path / "s.csv").write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="columns .*expected inline, crossline"):
            read_sticks(tmp_path / "s.csv", volume)


def test_label_volumes(tmp_path: Path):
    """A volume of -1, 0, 1 is taken as it is, or completed on the inlines that are labelled throughout."""
    np.save(tmp_path / "in.npy", noisy_layers((16, 8, 8)))
    labels = np.full((16, 8, 8), -1, np.float32)
    labels[3, 2, 5] = 1
    np.save(tmp_path / "l.npy", labels)
    arguments = str(tmp_path / "in.npy"), str(tmp_path / "l.npy")
    image, known = open_labelled(*arguments, (), (0, 0, 0), 0)
    np.testing.assert_array_equal(known, labels)
    assert abs(image.mean()) < 0.1 and image.std() == pytest.approx(1, abs=0.1)
    _, known = open_labelled(*arguments, (5,), (0, 0, 0), 0)
    assert known[3, 2, 5] == 1 and (known[:, :, 5] == 0).sum() == 127 and (known[:, :, :5] == -1).all()
    np.save(tmp_path / "l.npy", np.full((16, 8, 8), 0.3, np.float32))
    with pytest.raises(DataError, match=r"0.3 at sample 0, crossline 0, inline 0 .*expected -1"):
        open_labelled(*arguments, (), (0, 0, 0), 0)
    np.save(tmp_path / "l.npy", np.zeros((16, 8, 7), np.float32))
    with pytest.raises(DataError, match=r"\(16, 8, 7\), expected \(16, 8, 8\)"):
        open_labelled(*arguments, (), (0, 0, 0), 0)
    np.save(tmp_path / "l.npy", np.full((16, 8, 8), -1, np.float32))
    with pytest.raises(UserError, match="no labelled voxel"):
        open_labelled(*arguments, (), (0, 0, 0), 0)


def test_crops_hold_labels():
    """Every crop holds a labelled voxel, every other one a fault; positions alone decide which."""
    image = noisy_layers((40, 36, 44))
    labels = np.full(image.shape, -1, np.int8)
    labels[:, :, 30] = 0
    labels[10:14, 7, 30] = 1
    data = LabelledCrops(image, labels, 10, seed=1, crop_shape=(16, 16, 16), augmented=True, disturbed=True)
    for position in range(12):
        item = data[Draw(0, position)]
        assert item["image"].shape == (1, 16, 16, 16) and bool((item["fsem"] >= 0).any())
        assert bool((item["fsem"] == 1).any()) or position % 2 == 0
    assert torch.equal(data[Draw(3, 5)]["image"], data[Draw(0, 5)]["image"])
    with pytest.raises(DataError, match="smaller than --crop"):
        LabelledCrops(image, labels, 10, seed=1, crop_shape=(48, 16, 16))


def test_fine_tuning_on_sparse_labels(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Labels of one inline and replayed cubes train together; the score on synthetic cubes is told twice."""
    np.save(tmp_path / "in.npy", noisy_layers((32, 24, 20)))
    labels = np.full((32, 24, 20), -1, np.float32)
    labels[:, :, 7] = 0
    labels[:, 10:12, 7] = 1
    np.save(tmp_path / "l.npy", labels)
    chosen = TrainConfig(
        input=str(tmp_path / "in.npy"), labels=str(tmp_path / "l.npy"), freeze="trunk",
        init=str(save_model(tmp_path / "m.ckpt")), data_preset="smoke", crop=(16,), batch_train=2,
        steps=2, nvalid=1, samples_per_epoch=4,
    )  # fmt: skip
    result = train(chosen, options(tmp_path / "run", log_every=1))
    assert result is not None and result.state == "finished"
    said = capfd.readouterr().err
    assert "Tol-IoU@2 on held-out synthetic cubes: " in said and "train_loss_replay" in said
    with machine(options(tmp_path)) as device, Guard(device) as guard:
        data, valid = make_datasets(chosen, 0)
        assert isinstance(valid, SyntheticVolumes) and valid.seed != 0
        batch = torch.utils.data.default_collate([data[Draw(i, i)] for i in (0, 1)])
        losses = {}
        for share in (0.25, 0.75):
            task = FaultTask(
                replace(chosen, replay=share), valid, guard, resolve_precision("fp32", device), 1
            )
            task.network.eval()
            losses[share] = task.loss(batch)
    own, old = task._loss_of(batch)["loss"], task._loss_of(batch["replay"])["loss"]
    for share, parts in losses.items():
        torch.testing.assert_close(parts["loss"], (1 - share) * own + share * old)
    alone, _ = make_datasets(replace(chosen, replay=0), 0)
    assert "replay" not in alone[Draw(0, 0)]


def test_unlabelled_voxels_do_not_pull(cubes: Path):
    """The gradient of the loss with respect to outputs is 0 wherever nobody has looked."""
    chosen = fault_only(cubes)
    item = SyntheticVolumes(preset("smoke"), 1, ("fault",), seed=0)[Draw(0, 0)]
    item["fsem"][:, :, 16:] = -1
    batch = {name: value[None] for name, value in item.items() if name != "source"}
    with machine(options(Path())) as device, Guard(device) as guard:
        task = FaultTask(chosen, VolumePairs, guard, resolve_precision("fp32", device), 1)
        logit = torch.zeros(1, 1, 32, 32, 32, requires_grad=True)
        orient = torch.zeros(1, 6, 32, 32, 32, requires_grad=True)
        task._parts({"fault_logit": logit, "orient": orient}, batch)["loss"].backward()
    for output in (logit, orient):
        assert output.grad is not None and output.grad[..., 16:, :].abs().max() == 0
        assert output.grad[..., :16, :].abs().max() > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "l.npy"], "--input and --labels"),
        (["--labelled_inlines", "4"], "--labelled_inlines: needs"),
        (["--input", "a", "--labels", "b", "--crop", "0"], "--labels with --crop 0"),
        (["--replay", "1"], "--replay 1.0"),
        (["--freeze", "trunk"], "--freeze trunk: needs --init"),
        (["--task", "refine", "--no_rgt"], "needs all of"),
        (["--task", "refine", "--network", "unet"], "unet finds faults only"),
        (["--init_infer", "a"], "--init_infer: needs --task refine"),
        (["--batch_valid", "0"], "--batch_valid 0"),
    ],
)
def test_wrong_flags(flags: list[str], message: str):
    """Flags that contradict each other are usage errors."""
    with pytest.raises(UserError, match=message):
        parse(flags, TrainConfig, TrainOptions)


def test_settings_arrive(cubes: Path, tmp_path: Path):
    """--rgt_residual on and off are stored without being measured."""
    for word, kept in (("on", True), ("off", False)):
        chosen = TrainConfig(
            data=cubes, crop=(16,), batch_train=2, steps=1, ema=0, rgt_residual=word, nvalid=1
        )
        train(chosen, options(tmp_path / word))
        found = stored(json.loads(json.dumps(load(tmp_path / word / "last.ckpt")["normalization"])))
        assert found["rgt_residual"] is kept and "rgt_mae_solved" not in found
