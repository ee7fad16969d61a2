"""Refinement: its training items, its iterated passes, and files in and out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.device import resolve_precision
from common.errors import DataError, UserError
from common.guard import Guard
from common.run import machine
from common.sampling import Draw
from fault_seg import refining, survey
from fault_seg.config import TrainConfig
from fault_seg.config_infer import RefineConfig
from fault_seg.dataset import SyntheticVolumes, VolumePairs
from fault_seg.first_estimates import estimate_from, estimate_of, network_input, refine_channels
from fault_seg.infer import infer, load
from fault_seg.losses import rgt_loss
from fault_seg.maps import volumes_from
from fault_seg.metrics_fault import average_precision
from fault_seg.model import HEADS, REFINE_INPUTS, build_network
from fault_seg.refine import refine, refine_cube
from fault_seg.scratch import Scratch
from fault_seg.synthetic import preset
from fault_seg.train import FaultTask, train
from fault_seg.volumes import output_path, read_volume
from tests.fault_seg.cases import QUICK, infer_config, make_cubes, noisy_layers, save_model
from tests.fault_seg.volume_files import make_segy
from tests.toy_runs import load as load_file
from tests.toy_runs import options

OVERWRITE = replace(QUICK, overwrite=True)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three training cubes and one held-out cube."""
    return make_cubes(tmp_path_factory.mktemp("cubes"))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a random network of kind refine."""
    return save_model(tmp_path_factory.mktemp("refiner") / "refine.ckpt", kind="refine")


@pytest.fixture(scope="module")
def estimate(cubes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of five raw volumes with a side-car: the degraded volumes of a cube."""
    folder = tmp_path_factory.mktemp("estimate")
    for name in REFINE_INPUTS:
        (folder / f"e.{name}").write_bytes((cubes / f"data_valid/0_{name}.bin").read_bytes())
    (folder / "e.json").write_text(json.dumps({"n1": 24, "n2": 20, "n3": 16}))
    return folder / "e"


def refine_config(prefix: Path, model: Path, output: Path, **changes: Any) -> RefineConfig:
    """Return a configuration of one pass without figures."""
    config = RefineConfig(input=str(prefix), model=str(model), output=str(output), figures=False)
    return replace(config, **{"refine_iters": 1, **changes})


def outputs(prefix: Path, kind: str = "raw") -> dict[str, np.ndarray]:
    """Read the five volumes under a prefix."""
    return {name: read_volume(output_path(prefix, name, kind), dataset=name) for name in REFINE_INPUTS}


def test_items_hold_estimate_and_truth(cubes: Path):
    """An item for refine has the degraded volumes of the files beside their truth, and no image."""
    folders = cubes / "data_train", cubes / "target_train"
    item = VolumePairs(*folders, (0, 0, 0), HEADS, kind="refine", with_image=False)[Draw(1, 0)]
    assert "image" not in item and item["use_inference"] is not None if "use_inference" in item else True
    fsem = read_volume(folders[0] / "1_fsem.bin", (24, 20, 16))
    np.testing.assert_array_equal(item["first_fsem"][0].numpy(), fsem)
    np.testing.assert_array_equal(
        item["fsem"][0].numpy(), read_volume(folders[1] / "1_fsem.bin", (24, 20, 16))
    )
    assert not torch.equal(item["first_fsem"], item["fsem"])
    z = torch.arange(24.0)[:, None, None]
    assert abs(float((item["tau"][0] - z).mean())) < 1e-3


def test_an_image_is_not_needed(cubes: Path, tmp_path: Path):
    """Folders that hold the five volumes alone train a refining network; a missing one is named."""
    for name in ("data_train", "target_train"):
        (tmp_path / name).mkdir()
        for path in (cubes / name).glob("0_*.bin"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    folders = tmp_path / "data_train", tmp_path / "target_train"
    settings = ((24, 20, 16), HEADS)
    VolumePairs(*folders, *settings, kind="refine", with_image=False).check()
    (folders[0] / "0_rgt.bin").unlink()
    with pytest.raises(DataError, match=r"no 0_rgt.bin or .npy for sample 0"):
        VolumePairs(*folders, *settings, kind="refine", with_image=False)


def test_crop_and_turn_move_estimate_with_truth():
    """After any crop, flip and turn the estimate is still what the truth was degraded to."""
    for position in range(8):
        data = SyntheticVolumes(
            preset("smoke"), 9, HEADS, seed=5, crop_shape=(16, 16, 16), augmented=True, kind="refine",
            with_image=False,
        )  # fmt: skip
        item = data[Draw(0, position)]
        kept = (item["first_fsem"] > 0.5) & (item["fsem"] > 0.5)
        for name in ("fdip", "fstrike"):
            torch.testing.assert_close(item[f"first_{name}"][kept], item[name][kept], atol=1e-5, rtol=0)
        assert kept.any() or not (item["fsem"] > 0.5).any() or not (item["first_fsem"] > 0.5).any()
        both = torch.stack([item["first_rgt"].flatten(), item["rgt"].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.9
        anomaly = item["tau"][0] - torch.arange(16.0)[:, None, None]
        rise = (item["first_rgt"][0, -1] - item["first_rgt"][0, 0]).mean()
        assert rise > 0 and anomaly.abs().max() < 40


def test_a_perfect_estimate_stays(cubes: Path):
    """A network that corrects nothing returns the faults, image and time of its input."""
    folders = cubes / "target_train", cubes / "target_train"
    item = VolumePairs(*folders, (24, 20, 16), HEADS, kind="refine", with_image=False)[Draw(0, 0)]
    network = build_network("hr", "refine").eval()
    with torch.no_grad():
        for head in (network.fault_head, network.dhr_head):
            head[1].weight.zero_()
            head[1].bias.zero_()
        batch = {name: value[None] for name, value in item.items() if name != "source"}
        padded = torch.nn.functional.pad(network_input(batch, "refine", "hr"), (0, 0, 0, 12, 0, 8))
        out = {name: value[:, :, :24, :20] for name, value in network(padded).items()}
    assert float(rgt_loss(batch["tau"] + out["delta"], batch["rgt"], batch["fsem"])) < 1e-4
    assert ((out["fault_logit"] > 0) == (batch["fsem"] > 0.5)).all()


def test_own_output_is_an_estimate():
    """What a network says, turned into an estimate, is what inference would hand to the next pass."""
    item = SyntheticVolumes(preset("smoke"), 1, HEADS, seed=1, kind="refine", with_image=False)[Draw(0, 0)]
    batch = {name: value[None] for name, value in item.items() if name != "source"}
    torch.manual_seed(0)
    network = build_network("hr", "refine").eval()
    with torch.no_grad():
        out = network(network_input(batch, "refine", "hr"))
    found = estimate_from(out, batch["tau"])
    from fault_seg.maps import stack_maps

    volumes = volumes_from(stack_maps(out)[0].numpy(), HEADS, "hr", batch["tau"][0, 0].numpy())
    for name in ("fsem", "dhr", "rgt"):
        np.testing.assert_allclose(found[name][0, 0].numpy(), volumes[name], atol=1e-5)
    for name in ("fdip", "fstrike"):
        np.testing.assert_allclose(found[name][0, 0].numpy(), volumes[name], atol=1e-3)


@pytest.mark.parametrize("network", ["hr", "mtl"])
def test_training_on_degraded_files(cubes: Path, tmp_path: Path, network: str):
    """--task refine trains, and leaves a checkpoint of kind refine with a threshold and no temperature."""
    chosen = TrainConfig(
        task="refine", network=network, data=cubes, crop=(16,), batch_train=2, steps=1, ema=0, lr=1e-3
    )
    result = train(chosen, options(tmp_path))
    assert result is not None and result.state == "finished"
    found = load_file(tmp_path / "last.ckpt")
    assert found["kind"] == "refine" and found["normalization"]["calibration"]["temperature"] == 1
    assert 0 < found["normalization"]["calibration"]["threshold"] < 1


def test_init_infer_replaces_every_other_estimate(cubes: Path, tmp_path: Path):
    """With --init_infer half the samples carry what that network makes of their image."""
    model = save_model(tmp_path / "infer.ckpt")
    chosen = TrainConfig(
        task="refine", data=cubes, crop=(16,), batch_train=2, init_infer=str(model), second_pass=0.0
    )
    folders = cubes / "data_train", cubes / "target_train"
    data = VolumePairs(*folders, (24, 20, 16), HEADS, kind="refine", crop_shape=(16, 16, 16))
    items = [data[Draw(0, position)] for position in (0, 1)]
    batch = torch.utils.data.default_collate(items)
    with machine(options(tmp_path)) as device, Guard(device) as guard:
        task = FaultTask(chosen, data, guard, resolve_precision("fp32", device), 10)
        changed = task.estimated(batch, 5)
        assert math_isfinite(task.step(batch, 0))
    assert torch.equal(changed["first_fsem"][0], batch["first_fsem"][0])
    assert not torch.equal(changed["first_fsem"][1], batch["first_fsem"][1])
    assert torch.equal(changed["tau"][1], changed["first_tau"][1])
    with machine(options(tmp_path)) as device, Guard(device) as guard:
        other = replace(chosen, init_infer=str(save_model(tmp_path / "r.ckpt", kind="refine")))
        with pytest.raises(DataError, match="kind refine .*, expected infer"):
            FaultTask(other, data, guard, resolve_precision("fp32", device), 10)


def math_isfinite(values: dict[str, Any]) -> bool:
    """Return whether every logged value is finite."""
    return all(bool(torch.isfinite(torch.as_tensor(v))) for v in values.values())


def test_refining_finds_lost_faults():
    """After a few steps on one cube the AP of its degraded faults is higher by a pass, and by three."""
    samples = SyntheticVolumes(preset("smoke"), 1, HEADS, seed=0, kind="refine", with_image=False)
    item = samples[Draw(0, 1)]
    batch = {name: value[None] for name, value in item.items() if name != "source"}
    chosen = TrainConfig(task="refine", ema=0, warmup_steps=3, second_pass=0.5)
    with machine(options(Path())) as device, Guard(device) as guard:
        task = FaultTask(chosen, samples, guard, resolve_precision("fp32", device), 14)
        for step in range(14):
            task.step(batch, step)
        task.network.eval()
        true = item["fsem"][0].numpy()
        scores = [average_precision(item["first_fsem"][0].numpy(), true)]
        estimate = estimate_of(batch)
        for _ in range(3):
            with torch.no_grad():
                out = task.network(refine_channels(estimate, "hr"))
            estimate = estimate_from(out, estimate["tau"])
            scores.append(average_precision(estimate["fsem"][0, 0].numpy(), true))
    assert scores[1] > scores[0] + 0.02 and scores[3] > scores[0] + 0.02, scores


def test_files_in_and_out(estimate: Path, refiner: Path, tmp_path: Path):
    """refine.py reads what training files hold and writes what one pass in memory gives."""
    summary = refine(refine_config(estimate, refiner, tmp_path / "r", angle_units="over180"), QUICK)
    found = outputs(tmp_path / "r")
    assert summary["refine"]["passes"] == 1 and 0 < summary["refine"]["mean_change_of_fsem"][0] < 1
    folder = estimate.parent
    for name in REFINE_INPUTS:  # as a sample of a data set
        (folder / f"0_{name}.bin").write_bytes((folder / f"e.{name}").read_bytes())
    item = VolumePairs(folder, folder, (24, 20, 16), HEADS, kind="refine", with_image=False)[Draw(0, 0)]
    expected = refine_cube(load(refiner), item, 1)[0]
    np.testing.assert_allclose(found["fsem"], expected["fsem"], atol=2e-4)
    plain = item["first_dhr"][0].numpy()
    scale = read_volume(folder / "e.dhr").std() / plain.std()
    assert np.corrcoef(found["dhr"].ravel(), expected["dhr"].ravel())[0, 1] > 0.999
    assert found["dhr"].std() == pytest.approx(expected["dhr"].std() * scale, rel=0.05)
    gated = expected["fdip"] * expected["fsem"]
    assert np.median(np.abs(found["fdip"] - gated)) < 1e-3
    assert {p.name for p in tmp_path.iterdir()} == {"r.json", *(f"r.{n}" for n in REFINE_INPUTS)}


def test_tiles_do_not_matter(estimate: Path, refiner: Path, tmp_path: Path):
    """Exact tiles give the fault probability and image of the whole volume, pass after pass."""
    config = refine_config(estimate, refiner, tmp_path / "a", overlap="exact", refine_iters=2, refine_tol=0)
    refine(config, QUICK)
    refine(replace(config, output=str(tmp_path / "b"), block=16, rgt=True), QUICK)
    first, second = outputs(tmp_path / "a"), outputs(tmp_path / "b")
    np.testing.assert_allclose(second["fsem"], first["fsem"], rtol=0, atol=2e-3)


def test_it_stops_at_the_tolerance(estimate: Path, refiner: Path, tmp_path: Path):
    """Passes go on until fsem changes less than --refine_tol; --keep_iters keeps what each of them wrote."""
    config = refine_config(estimate, refiner, tmp_path / "r", refine_iters=3, keep_iters=True)
    changes = refine(replace(config, refine_tol=0), QUICK)["refine"]["mean_change_of_fsem"]
    assert len(changes) == 3
    kept = [outputs(Path(f"{tmp_path}/r.iter{i}"))["fsem"] for i in range(3)]
    np.testing.assert_array_equal(kept[2], outputs(tmp_path / "r")["fsem"])
    assert np.abs(kept[1] - kept[0]).mean() == pytest.approx(changes[1], rel=1e-3)
    stopped = replace(config, output=str(tmp_path / "s"), refine_tol=1.01 * changes[0], keep_iters=False)
    assert refine(stopped, QUICK)["refine"]["passes"] == 1
    assert not list(tmp_path.glob("s.iter*")) and not list(tmp_path.glob("*.refine*"))


def test_a_killed_run_goes_on(estimate: Path, refiner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted in its second pass and continued with --resume auto, refinement ends as if undisturbed."""
    config = refine_config(estimate, refiner, tmp_path / "a", refine_iters=3, refine_tol=0)
    refine(config, QUICK)
    config = replace(config, output=str(tmp_path / "b"))
    run_network, calls = survey.run_network, []

    def interrupted(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run_network(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(refining.survey, "run_network", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refine(config, QUICK)
    assert (tmp_path / "b.refine0").is_dir() and not (tmp_path / "b.fsem").exists()
    summary = refine(replace(config, resume="auto"), QUICK)
    assert summary["refine"]["passes"] == 2  # the first one was there
    for name, values in outputs(tmp_path / "a").items():
        np.testing.assert_array_equal(outputs(tmp_path / "b")[name], values)
    assert not list(tmp_path.glob("*.refine*"))


def test_chained_as_in_two_steps(tmp_path: Path, refiner: Path):
    """infer.py --refine_model gives nearly what infer.py and refine.py give one after the other."""
    np.save(tmp_path / "in.npy", noisy_layers((24, 20, 32)))
    model = save_model(tmp_path / "infer.ckpt")
    config = infer_config(tmp_path / "in.npy", model, tmp_path / "first", format=("raw",), monotone_rgt=False)
    infer(config, QUICK)
    first = replace(config, output=str(tmp_path / "chained"), refine_model=str(refiner), refine_iters=1)
    summary = infer(first, QUICK)
    assert summary["refine"]["passes"] == 1
    refine(refine_config(tmp_path / "first", refiner, tmp_path / "second", monotone_rgt=False), QUICK)
    chained, second = outputs(tmp_path / "chained"), outputs(tmp_path / "second")
    plain = outputs(tmp_path / "first")["fsem"]
    gap = np.abs(chained["fsem"] - second["fsem"]).mean()
    assert gap < 0.3 * np.abs(chained["fsem"] - plain).mean(), gap


def test_segy_and_degrees(tmp_path: Path, refiner: Path):
    """SEG-Y volumes of inference, angles in folded degrees, come out as SEG-Y with their headers."""
    make_segy(tmp_path / "in.sgy", 1000 * noisy_layers((24, 18, 20)), code=5)
    infer(infer_config(tmp_path / "in.sgy", save_model(tmp_path / "m.ckpt"), tmp_path / "s"), QUICK)
    refine(refine_config(tmp_path / "s", refiner, tmp_path / "r"), QUICK)
    found = outputs(tmp_path / "r", "segy")
    assert all(np.isfinite(values).all() for values in found.values())
    assert 1 < found["fdip"].max() <= 90
    with pytest.raises(DataError, match=r"r.fdip.sgy: no such file, expected five volumes"):
        (tmp_path / "r.fdip.sgy").unlink()
        refine(refine_config(tmp_path / "r", refiner, tmp_path / "x"), QUICK)


def test_two_ranks_equal_one(estimate: Path, refiner: Path, tmp_path: Path):
    """Two ranks share the inlines of every pass and write what one process writes."""
    from tests.launch import ROOT, torchrun

    flags = ["--input", estimate, "--model", refiner, "--output", tmp_path / "two", "--block", 16]
    flags += ["--overlap", "4", "--refine_iters", 2, "--refine_tol", 0, "--device", "cpu", "--threads", 1]
    flags += ["--precision", "fp32", "--no_figures"]
    ended = torchrun(ROOT / "scripts/fault_seg/refine.py", flags, tmp_path / "said.txt")
    assert ended.returncode == 0, ended.output
    config = refine_config(estimate, refiner, tmp_path / "one", block=16, overlap="4", refine_iters=2)
    refine(replace(config, refine_tol=0), QUICK)
    two, one = outputs(tmp_path / "two"), outputs(tmp_path / "one")
    np.testing.assert_allclose(two["fsem"], one["fsem"], rtol=0, atol=1e-6)
    assert not list(tmp_path.glob("*.refine*"))


def test_wrong_inputs(estimate: Path, refiner: Path, tmp_path: Path):
    """A model of the other kind, a missing prefix, the input's own prefix: one line each, before any work."""
    wrong = save_model(tmp_path / "infer.ckpt")
    with pytest.raises(DataError, match="checkpoint is kind infer, expected refine; use infer.py"):
        refine(refine_config(estimate, wrong, tmp_path / "r"), QUICK)
    np.save(tmp_path / "in.npy", noisy_layers((16, 16, 16)))
    with pytest.raises(DataError, match="checkpoint is kind refine, expected infer; use refine.py"):
        infer(infer_config(tmp_path / "in.npy", refiner, tmp_path / "o"), QUICK)
    with pytest.raises(DataError, match="no such file in any format"):
        refine(refine_config(tmp_path / "absent", refiner, tmp_path / "r"), QUICK)
    with pytest.raises(UserError, match="is the input's prefix"):
        refine(refine_config(estimate, refiner, estimate), OVERWRITE)
    with pytest.raises(ValueError, match="--model: missing"):
        RefineConfig(input="x")


def test_first_estimate_in_voxels(tmp_path: Path):
    """Whatever its scale, a first time becomes voxels: slope 1 off faults, z on average."""
    z, y, _ = np.meshgrid(np.arange(20.0), np.arange(6.0), np.arange(5.0), indexing="ij")
    time = 0.03 * (z + 0.5 * y) + 7

    def source(name: str, x0: int, x1: int) -> np.ndarray:
        return (time if name == "time" else np.zeros_like(time))[:, :, x0:x1].astype(np.float32)

    scratch = Scratch(tmp_path / "s", time.shape, refining.NAMES)
    refining.write_first(source, scratch, np.ones((6, 5), bool))
    expected = z + 0.5 * (y - y.mean())
    np.testing.assert_allclose(scratch.read("time", 0, 5), expected, atol=1e-3)
    scratch.remove()
