"""Training: it learns, it stops and continues exactly, and what it leaves can be used."""

from __future__ import annotations

import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.cli import parse
from common.device import resolve_precision
from common.errors import DataError, DivergedError, UserError
from common.guard import Guard
from common.run import TrainOptions, machine
from common.sampling import Draw
from common.task import Result
from fault_seg.config import TrainConfig
from fault_seg.dataset import SyntheticVolumes, VolumePairs
from fault_seg.infer import load as load_model
from fault_seg.infer import predict
from fault_seg.metrics_fault import dice
from fault_seg.model import HEADS, build_network
from fault_seg.synthetic import preset
from fault_seg.train import FaultTask, train
from tests.fault_seg.cases import SHAPE, make_cubes, noisy_layers, save_model
from tests.launch import ROOT, torchrun
from tests.toy_runs import differences, load, options, records, status


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three training cubes and one held-out cube."""
    return make_cubes(tmp_path_factory.mktemp("cubes"))


def config(data: Path, **changes: Any) -> TrainConfig:
    """Return a training of five steps, two an epoch, on crops of 16."""
    return replace(TrainConfig(data=data, crop=(16,), batch_train=2, epochs=3, ema=0.9), **changes)


def fault_only(data: Path, **changes: Any) -> TrainConfig:
    """Return the quickest training: the fault head alone."""
    return config(data, rgt=False, dhr=False, **changes)


def run(chosen: TrainConfig, out: Path, **changes: Any) -> Result:
    """Train in this process and return the result."""
    result = train(chosen, options(out, **{"log_every": 1, **changes}))
    assert result is not None
    return result


@pytest.fixture(scope="module")
def finished(cubes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training of all heads that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = run(config(cubes), out)
    assert (result.state, result.step, result.exit_code) == ("finished", 5, 0)
    return out


def overfitted(steps: int) -> tuple[float, float]:
    """Train on one 32^3 sample; return fsem Dice and median angle error in degrees on it."""
    chosen = TrainConfig(steps=steps, ema=0, warmup_steps=5)
    samples = SyntheticVolumes(preset("smoke"), 1, HEADS, seed=0)
    item = samples[Draw(0, 1)]
    batch = {name: value[None] for name, value in item.items() if name != "source"}
    with machine(options(Path())) as device, Guard(device) as guard:
        task = FaultTask(chosen, samples, guard, resolve_precision("fp32", device), steps)
        for step in range(steps):
            task.step(batch, step)
        task.network.eval()
        with torch.no_grad():
            scores = task._scores_of(task.network, [item])[0]
            logit = task.network(batch["image"])["fault_logit"]
    found = (logit[0, 0] > 0).numpy()
    return dice(found, item["fsem"][0].numpy() > 0.5), scores["valid_angle_median_deg"]


def test_one_sample_overfits():
    """30 steps on one cube find most of its faults and their angles."""
    score, angle = overfitted(30)
    assert score > 0.8 and angle < 12, (score, angle)


@pytest.mark.slow
def test_one_sample_overfits_fully():
    """100 steps on one cube learn its faults by heart."""
    score, angle = overfitted(100)
    assert score > 0.95 and angle < 3, (score, angle)


def test_files_of_a_run(finished: Path):
    """A run leaves epoch=N.ckpt, last.ckpt, best.ckpt and logs in its folder, and says it is done."""
    names = {path.name for path in finished.iterdir()}
    expected = {"epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt", "best.ckpt", "config.json", "run.json"}
    assert (
        names >= expected | {"status.json", "log.txt", "metrics.jsonl"}
        and len(list(finished.iterdir())) == 10
    )
    assert status(finished)["state"] == "finished"
    assert "5 steps = 2.5 epochs of 2 steps" in (finished / "log.txt").read_text()
    lines = records(finished)
    assert [line["step"] for line in lines if "train_loss" in line] == [1, 2, 3, 4, 5]
    evaluated = [line for line in lines if "valid_tol_iou" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 5]
    logged = {"valid_loss", "valid_ap", "valid_angle_median_deg", "valid_rgt_mae", "valid_dhr_psnr_db"}
    assert all(math.isfinite(evaluated[0][name]) for name in logged)
    for part in ("fsem", "angle", "dhr", "rgt"):
        assert f"train_loss_{part}" in lines[0] and f"valid_loss_{part}" in evaluated[0]


def test_weights_load_plainly(finished: Path, tmp_path: Path):
    """torch.load(p)["state_dict"] fits the network, and as a .pth of its own gives equal output."""
    document = load(finished / "epoch=0.ckpt")
    weights = document["state_dict"]
    assert document["kind"] == "infer" and document["config"]["receptive_radius"] == 53
    build_network("hr", "infer", HEADS).load_state_dict(weights, strict=True)
    torch.save(weights, tmp_path / "plain.pth")
    image = noisy_layers((16, 16, 16))
    whole, plain = (
        predict(load_model(p), image) for p in (finished / "epoch=0.ckpt", tmp_path / "plain.pth")
    )
    assert set(whole) == {"fsem", "fdip", "fstrike", "dhr", "rgt"}
    for name, values in whole.items():
        np.testing.assert_array_equal(values, plain[name])


def test_exact_resume(finished: Path, cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped by SIGTERM and continued, a run ends with every tensor as if nothing had happened."""
    step = FaultTask.step

    def interrupted(task: FaultTask, batch: Any, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(FaultTask, "step", interrupted)
        result = run(config(cubes), tmp_path)
    assert (result.state, result.step, result.exit_code) == ("stopped", 3, 75)
    assert run(config(cubes), tmp_path, resume="auto").state == "finished"
    for name in ("last.ckpt", "best.ckpt"):
        assert differences(load(finished / name), load(tmp_path / name)) == []
    assert records(tmp_path) == records(finished)


def test_exact_resume_with_muon(cubes: Path, tmp_path: Path):
    """The momentum of orthogonal updates is in the checkpoint: three steps and one more are four."""
    chosen = fault_only(cubes, steps=4, optimizer="muon")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(chosen, whole, save_every=2)
    step = FaultTask.step

    def stopped(task: FaultTask, batch: Any, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaultTask, "step", stopped)
        assert run(chosen, halves, save_every=2).state == "stopped"
    run(chosen, halves, resume="auto", save_every=2)
    assert differences(load(whole / "last.ckpt"), load(halves / "last.ckpt")) == []


def test_best_and_kept_files(cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """best.ckpt is the state with the best score in metrics.jsonl; only --keep_last numbered files stay."""
    scores = iter([0.2, 0.6, 0.4, 0.1])
    monkeypatch.setattr(FaultTask, "evaluate", lambda _: {"valid_tol_iou": next(scores)})
    run(fault_only(cubes, steps=8), tmp_path, keep_last=2)
    evaluated = {r["step"]: r["valid_tol_iou"] for r in records(tmp_path) if "valid_tol_iou" in r}
    assert evaluated == {2: 0.2, 4: 0.6, 6: 0.4, 8: 0.1}
    assert load(tmp_path / "best.ckpt")["step"] == max(evaluated, key=lambda step: evaluated[step]) == 4
    assert sorted(p.name for p in tmp_path.glob("epoch=*.ckpt")) == ["epoch=2.ckpt", "epoch=3.ckpt"]
    assert load(tmp_path / "last.ckpt")["step"] == 8


def test_averaged_weights_are_shipped(cubes: Path, finished: Path, tmp_path: Path):
    """state_dict holds the average of the weights; the plain ones are in the training state."""
    found = load(finished / "last.ckpt")
    trained, average = found["training"]["task"]["module"], found["state_dict"]
    changed = [n for n, v in average.items() if v.is_floating_point() and not torch.equal(v, trained[n])]
    assert len(changed) > 0.9 * sum(v.is_floating_point() for v in average.values())
    run(fault_only(cubes, steps=2, ema=0), tmp_path)
    plain = load(tmp_path / "last.ckpt")
    assert differences(plain["state_dict"], plain["training"]["task"]["module"]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "unet"}, "network hr, this run unet"),
        ({"dhr": True}, r"heads \['fault'\], this run \['fault', 'dhr'\]"),
        ({"optimizer": "muon"}, "optimizer adamw, this run muon"),
    ],
)
def test_resume_of_another_network(cubes: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    """--resume with another layout, set of heads or optimizer is refused, naming both."""
    chosen = fault_only(cubes, steps=1)
    run(chosen, tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(DataError, match=message):
        run(replace(chosen, **changes), tmp_path, resume="auto")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_init(cubes: Path, tmp_path: Path):
    """--init starts from the very weights of a model; another set of heads is refused, naming both."""
    model = save_model(tmp_path / "model.ckpt", ("fault",))
    with machine(options(tmp_path)) as device, Guard(device) as guard:
        settings = (VolumePairs, guard, resolve_precision("fp32", device), 1)
        task = FaultTask(fault_only(cubes, init=str(model)), *settings)
        assert differences(task.weights(), load(model)["state_dict"]) == []
        with pytest.raises(DataError, match="heads fault, expected hr infer with fault dhr rgt"):
            FaultTask(config(cubes, init=str(model)), *settings)
    run(fault_only(cubes, init=str(model), steps=1), tmp_path / "run")


def test_nan_in_a_file(cubes: Path, tmp_path: Path):
    """NaN in a training file ends the run before its folder is made."""
    own = Path(shutil.copytree(cubes, tmp_path / "own"))
    np.memmap(own / "data_train/2.bin", "<f4", "r+")[7] = np.nan
    with pytest.raises(DataError, match=r"data_train/2.bin: nan at z 7 y 0 x 0"):
        run(fault_only(own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_at_a_step(cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NaN that appears during training stops before the update, exit 4, and names the file."""
    own = Path(shutil.copytree(cubes, tmp_path / "own"))
    item = VolumePairs.__getitem__

    def spoiled(pairs: VolumePairs, draw: Draw) -> dict[str, Any]:
        found = item(pairs, draw)
        if draw.position == 7:  # of the fourth step
            found["image"][0, 0, 0, 0] = math.nan
        return found

    monkeypatch.setattr(VolumePairs, "__getitem__", spoiled)
    with pytest.raises(
        DivergedError, match=r"at step 3: .*NaN or Inf \(.*data_train/\d.bin\).*last.ckpt"
    ) as caught:
        run(fault_only(own), tmp_path / "run")
    assert caught.value.exit_code == 4
    assert status(tmp_path / "run")["state"] == "failed"
    weights = load(tmp_path / "run/last.ckpt")["state_dict"]
    assert all(bool(torch.isfinite(v).all()) for v in weights.values())


def test_held_out_cubes_without_faults(cubes: Path, tmp_path: Path):
    """Where no score can choose the best, training goes on and keeps last.ckpt alone."""
    own = Path(shutil.copytree(cubes, tmp_path / "own"))
    for name in ("fsem", "fdip", "fstrike"):
        values = np.full(SHAPE, -1.0 if name == "fsem" else 0.0, "<f4")
        values.tofile(own / f"target_valid/0_{name}.bin")
    result = run(fault_only(own, steps=2), tmp_path / "run")
    assert result.state == "finished" and (tmp_path / "run/last.ckpt").is_file()


def test_whole_cubes_of_any_size(cubes: Path, tmp_path: Path):
    """--crop 0 trains on cubes of sizes that no network divides; padding never meets the loss."""
    chosen = config(cubes, crop=(0,), steps=2, disturb=False, augment=False)
    run(chosen, tmp_path)
    assert all(math.isfinite(r["train_loss"]) for r in records(tmp_path) if "train_loss" in r)


def test_padding_never_meets_the_loss():
    """A loss on 20 x 12 x 7 voxels has no term of the 32 x 16 x 16 that the network computes."""
    generator = replace(preset("smoke"), shape=(20, 12, 16))
    item = SyntheticVolumes(generator, 1, HEADS, seed=3)[Draw(0, 0)]
    batch = {name: value[None, ..., :7] for name, value in item.items() if name != "source"}
    with machine(options(Path())) as device, Guard(device) as guard:
        task = FaultTask(TrainConfig(), SyntheticVolumes, guard, resolve_precision("fp32", device), 1)
        task.network.eval()
        seen: dict[str, Any] = {}
        task._parts = lambda outputs, _: seen.update(outputs) or {}  # type: ignore[method-assign]
        task.loss(batch)
        assert {tuple(value.shape[2:]) for value in seen.values()} == {(20, 12, 7)}


def test_dry_run_leaves_nothing(cubes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """--dry_run builds everything, tells shapes and parameters, and writes no file."""
    assert train(config(cubes), options(tmp_path / "run", dry_run=True)) is None
    said = capfd.readouterr().err
    assert "1,554,337 parameters" in said and "image: [2, 1, 16, 16, 16]" in said and "loss" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "heads"),
    [
        (["--rgt", "True"], HEADS),
        (["--rgt", "false"], ("fault", "dhr")),
        (["--rgt=F", "--dhr", "off"], ("fault",)),
        (["--no_rgt"], ("fault", "dhr")),
        (["--no-rgt", "--no-fault"], ("dhr",)),
        (["--rgt"], HEADS),
        (["--network", "unet"], ("fault",)),
    ],
)
def test_spellings_of_heads(flags: list[str], heads: tuple[str, ...]):
    """Every spelling of a truth value chooses the heads."""
    assert parse(flags, TrainConfig, TrainOptions).config.heads == heads


@pytest.mark.parametrize(
    "flags",
    [
        ["--rgt", "maybe"],
        ["--no_rgt", "--no_dhr", "--no_fault"],
        ["--crop", "20"],
        ["--loss", "published"],
        ["--epochs", "0"],
        ["--task", "sing"],
    ],
)
def test_wrong_flags(flags: list[str]):
    """Impossible settings are usage errors."""
    with pytest.raises(UserError):
        parse(flags, TrainConfig, TrainOptions)


def test_two_ranks(cubes: Path, tmp_path: Path):
    """Two ranks train one model and leave one set of files, the checkpoint usable by one process."""
    out = tmp_path / "run"
    flags = ["--data", cubes, "--out", out, "--crop", 16, "--batch_train", 1, "--steps", 3, "--device", "cpu"]
    flags += ["--no_rgt", "--no-dhr", "--log_every", 1, "--threads", 1, "--precision", "fp32"]
    ended = torchrun(ROOT / "scripts/fault_seg/train.py", flags, tmp_path / "said.txt")
    assert ended.returncode == 0, ended.output
    assert ended.output.count("3 steps = 1.5 epochs of 2 steps on 2 rank(s)") == 1
    assert [r["step"] for r in records(out) if "train_loss" in r] == [1, 2, 3]
    assert len(list(out.glob("events.out.tfevents.*"))) == 1 and not list(out.rglob("*.part"))
    assert load(out / "last.ckpt")["step"] == 3 and len(load(out / "last.ckpt")["rng"]) == 2
    alone = fault_only(cubes, steps=3)
    run(alone, tmp_path / "alone")
    both = [[r["train_loss"] for r in records(p) if "train_loss" in r] for p in (out, tmp_path / "alone")]
    assert both[0][0] == pytest.approx(both[1][0], rel=0.1)  # the same two samples, norms over one or two
