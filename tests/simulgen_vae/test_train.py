"""Training: exact resume in every phase, only training rows are looked at, the files of a run, odd data."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import DataError, DivergedError, UserError
from common.run import BasicOptions
from common.task import Result
from simulgen_vae import gp2
from simulgen_vae.config import TrainConfig
from simulgen_vae.config_data import PrepDataConfig
from simulgen_vae.constraints import constraints_of
from simulgen_vae.field_data import FieldData
from simulgen_vae.model_files import read_surrogate
from simulgen_vae.phases import SurrogateTask
from simulgen_vae.predictor import Inputs
from simulgen_vae.prep import prep_data, request_of, stored_basis
from simulgen_vae.preparation import open_data, prepare, sample_set, split_of
from simulgen_vae.train import train
from simulgen_vae.uncertainty import keep_for_calibration
from tests.launch import ROOT, torchrun
from tests.simulgen_vae.cases_vae import NUM, config, fields, options, params, write_data, write_pictures
from tests.toy_runs import differences, load

PHASES = {"use_e2e_training": True, "lc_epochs": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small data set."""
    return write_data(tmp_path_factory.mktemp("data") / "bumps.npz")


def run(chosen: TrainConfig, out: Path, **changes: Any) -> Result:
    """Train in this process and return the result."""
    result = train(chosen, options(out, **changes))
    assert result is not None
    return result


def state(out: Path) -> dict[str, Any]:
    """Return everything that the run's last checkpoint promises to hold."""
    found = load(out / "checkpoints/last.pt")
    return {"task": found["training"]["task"], "weights": found["state_dict"], "step": found["step"]}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole training that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = run(config(data, **PHASES), out)
    assert (result.state, result.exit_code) == ("finished", 0)
    return out


@pytest.mark.parametrize("cut", [3, 9, 15, 24])
def test_exact_resume(finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int):
    """Cut off in the VAE, at its end, in the conditioner or end to end, and continued: equal bit for bit."""
    step = SurrogateTask.step

    def interrupted(task: SurrogateTask, batch: Any, number: int) -> Any:
        if number == cut - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(SurrogateTask, "step", interrupted)
        result = run(config(data, **PHASES), tmp_path)
    assert (result.state, result.step, result.exit_code) == ("stopped", cut, 75)
    with monkeypatch.context() as patch:
        patch.setattr("simulgen_vae.train.finish", lambda *_: None)
        assert run(config(data, **PHASES), tmp_path, resume="auto").state == "finished"
    assert differences(state(finished), state(tmp_path)) == []


def test_files_of_a_run(finished: Path):
    """model_save holds what was promised, nothing needs pickle, the latents are those of the network."""
    folder = finished / "model_save"
    names = {"SimulGen-VAE", "LatentConditioner", "latent_vectors.npy", "xs.npy", "split.json", "guard.json"}
    names |= {"Candidates"}
    assert {p.name for p in folder.iterdir()} == names
    z, h = (np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("latent_vectors", "xs"))
    assert z.shape == (NUM, 4) and h.shape == (NUM, 1, 2) and z.dtype == h.dtype == np.float32
    surrogate = read_surrogate(finished)
    c = surrogate.basis.encode(torch.from_numpy(fields()))
    torch.testing.assert_close(surrogate.vae.latents(c)[0], torch.from_numpy(z), rtol=1e-3, atol=1e-3)
    lines = (finished / "SimulGen-VAE_L2_loss.txt").read_text().splitlines()
    assert len(lines) == NUM + 1
    split = json.loads((folder / "split.json").read_text())
    assert sorted(int(i) for part in split.values() for i in part) == list(range(NUM))
    assert json.loads((folder / "guard.json").read_text())["ships"]


def test_the_deliverable_predicts(finished: Path):
    """What ships predicts held-out fields far better than the mean field does."""
    surrogate = read_surrogate(finished)
    rows = surrogate.split.test
    assert surrogate.predictor is not None
    c = surrogate.predictor(Inputs(torch.from_numpy(params()[rows]).float()))
    u, truth = surrogate.basis.decode(c).numpy(), fields()[rows]
    mean = fields()[surrogate.split.train].mean(axis=0)
    assert np.linalg.norm(u - truth) < 0.3 * np.linalg.norm(mean - truth)


def test_start_is_never_lost(data: Path, tmp_path: Path):
    """Training that ruins the network ships the start: the best competes from step 0."""
    run(config(data, lr=1.0, gradient_clip_val=0.0, lc_epochs=0, ema=0.0), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "best_l2" in line]
    assert scored[-1]["valid_reconstruction_l2"] > 5 * scored[-1]["best_l2"]
    surrogate = read_surrogate(tmp_path)
    c = surrogate.basis.encode(torch.from_numpy(fields()[surrogate.split.validation]))
    assert float((surrogate.vae.reconstruct(c) - c).norm() / c.norm()) < 1.1 * scored[0]["best_l2"] + 1e-3


def test_amplitude_after_training(finished: Path):
    """Two samples that differ only in amplitude decode differently, the larger one larger."""
    surrogate = read_surrogate(finished)
    u = torch.from_numpy(fields()[:1])
    mean = torch.from_numpy(fields()[surrogate.split.train].mean(axis=0))
    found = [
        surrogate.basis.decode(surrogate.vae.reconstruct(surrogate.basis.encode(v)))
        for v in (u, 1.5 * u - 0.5 * mean)
    ]
    ratio = float((found[1] - mean).norm() / (found[0] - mean).norm())
    assert 1.3 < ratio < 1.7


def test_poisoned_rows(finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Validation and test rows of 1e6 leave basis, statistics and weights as they are, mixup included."""
    chosen = config(data, lc_epochs=1, aug_mixup=0.3, aug_noise=0.05, patience=0)
    held_out = json.loads((finished / "model_save/split.json").read_text())
    poisoned = {int(i) for part in ("validation", "test") for i in held_out[part]}
    read = FieldData.trajectory
    monkeypatch.setattr("simulgen_vae.train.finish", lambda *_: None)
    monkeypatch.setattr("simulgen_vae.phases.SurrogateTask.compete", lambda task: _last(task))
    run(chosen, tmp_path / "clean")

    def spoiled(own: FieldData, i: int, **flags: Any) -> np.ndarray:
        return np.full_like(read(own, i), 1e6) if i in poisoned else read(own, i, **flags)

    monkeypatch.setattr(FieldData, "trajectory", spoiled)
    run(chosen, tmp_path / "poisoned")
    clean, other = (state(tmp_path / name)["task"]["networks"] for name in ("clean", "poisoned"))
    assert differences(clean, other) == []


def test_poisoned_rows_and_processes(data: Path, monkeypatch: pytest.MonkeyPatch):
    """The Gaussian process that competes is the same when all rows but the training's hold 1e6."""
    chosen, read = config(data), FieldData.trajectory
    opened = open_data(chosen)
    split = split_of(chosen, opened, 0)

    def process() -> dict[str, torch.Tensor]:
        training = prepare(chosen, opened, split, 0, torch.device("cpu"))
        return gp2.fit_predictor(sample_set(training, split.train, 0)).state_dict()

    def spoiled(own: FieldData, i: int, **flags: Any) -> np.ndarray:
        return read(own, i, **flags) if i in split.train else np.full_like(read(own, i), 1e6)

    clean = process()
    monkeypatch.setattr(FieldData, "trajectory", spoiled)
    assert differences(clean, process()) == []


def _last(task: SurrogateTask) -> dict[str, float]:
    """Keep the last weights, whatever their score: what is compared is all that training did."""
    task._keep(dict(task.networks()))
    return {}


def test_lazy_equals_preload(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Coefficients from a mapped file, from memory and preloaded give equal weights bit for bit."""
    monkeypatch.setattr("simulgen_vae.train.finish", lambda *_: None)
    states = []
    for name, changes in (
        ("ram", {"cache": "ram"}),
        ("disk", {"cache": "disk"}),
        ("gpu", {"load_all": True}),
    ):
        run(config(data, **changes), tmp_path / name)
        states.append(state(tmp_path / name))
    assert differences(states[0], states[1]) == [] and differences(states[0], states[2]) == []


def test_conditioner_alone(finished: Path, data: Path, tmp_path: Path):
    """--lc_only trains on the VAE it is given, leaves that untouched, and refuses another data set."""
    with pytest.raises(DataError, match=r"no trained model; searched .*model_save/SimulGen-VAE"):
        run(config(data, lc_only=True), tmp_path / "none")
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    before = load(out / "model_save/SimulGen-VAE")["state_dict"]
    run(config(data, lc_only=True, lc_filters=(6,), filters=(64, 32)), out)
    after = load(out / "model_save/SimulGen-VAE")["state_dict"]
    vae = [name for name in before if name.startswith("vae.")]
    assert all(torch.equal(before[name], after[name]) for name in vae)
    assert after["conditioner.trunk.0.weight"].shape == (6, 3)
    other = write_data(tmp_path / "other.npz", num=25)
    with pytest.raises(DataError, match="not the data set that the VAE was trained on"):
        run(config(other, lc_only=True), out, overwrite=True)
    longer = write_data(tmp_path / "longer.npz", frames=10)
    with pytest.raises(DataError, match=r"nodes, fields, frames \(20, 1, 10\), the VAE was trained on"):
        run(config(longer, lc_only=True), out, overwrite=True)


def test_resume_of_another_run(finished: Path, data: Path, tmp_path: Path):
    """--resume with other data or another network is refused, naming both."""
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    with pytest.raises(DataError, match="the checkpoint has vae_shape"):
        run(config(data, **PHASES, filters=(8, 8)), out, resume="auto")
    other = write_data(tmp_path / "other.npz", num=25)
    with pytest.raises(DataError, match="the checkpoint has data, split or basis"):
        run(config(other, **PHASES), out, resume="auto")


def test_old_runs_are_kept(finished: Path, data: Path):
    """A new run in the folder of an old one is refused, and nothing of it is touched."""
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(UserError, match="holds an earlier run"):
        run(config(data), finished)
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ({"frames": 1}, {}),
        ({"num_fields": 2, "nodes": 7}, {"loss_type": 2}),
        (
            {"nodes": 5},
            {"loss_type": 3, "size": "large", "use_e2e_training": True, "e2e_train_decoder": True},
        ),
        ({"num": 20}, {"latent_dim_end": 32, "loss_type": 4, "num_modes": "auto", "joint_conditioner": True}),
        ({}, {"front_end": "none", "train_linear": True, "free_bits": 0.1, "checkpointing": True}),
        ({}, {"front_end": "none", "loss_type": 2, "lr_schedule": "warm_restarts", "lc_epochs": 0}),
    ],
)
def test_odd_data_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], changes: dict[str, Any]
):
    """One frame, two unequal fields, five nodes, few rows, every loss, joint, whole mesh: all finite."""
    path = write_data(tmp_path / "d.npz", **shape)
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    chosen = replace(config(path, epochs=1, lc_epochs=1), **changes)
    assert run(chosen, tmp_path / "run").state == "finished"
    surrogate = read_surrogate(tmp_path / "run")
    c = surrogate.basis.encode(torch.from_numpy(fields(**shape)))
    found = surrogate.vae.reconstruct(c)
    assert torch.isfinite(found).all()
    rows = surrogate.split.train
    assert float((found[rows] - c[rows]).norm() / c[rows].norm()) < 0.6


def test_pictures_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With both in the data the conditioner is fusion; its best state is stored and predicts."""
    path = write_pictures(tmp_path / "d.npz")
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    run(config(path, epochs=1, lc_epochs=1, fusion_encoder="vit"), tmp_path / "run")
    surrogate = read_surrogate(tmp_path / "run")
    assert surrogate.conditioner is not None and surrogate.conditioner.shape.input_type == "fusion"
    z, _ = surrogate.conditioner.latents(torch.rand(2, 2), torch.rand(2, 1, 256, 256))
    assert torch.isfinite(z).all()


def test_half_precision(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In bf16 all phases stay finite and the linear start, kept in fp32, is as exact as ever."""
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    run(config(data, epochs=1, lc_epochs=1, use_e2e_training=True), tmp_path, precision="bf16")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["best_l2"] for line in lines if "valid_reconstruction_l2" in line]
    assert scores[0] < 1e-4 and all(np.isfinite(line.get("vae_loss", 0.0)) for line in lines)


def test_early_stop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """--patience ends a phase early and the next one begins; resuming a finished run changes nothing."""
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    chosen = config(data, epochs=50, lc_epochs=2, patience=2, lr=0.5)
    result = run(chosen, tmp_path)
    assert result.state == "finished" and result.step < 60
    before = state(tmp_path)
    assert run(chosen, tmp_path, resume="auto").step == result.step
    assert differences(before, state(tmp_path)) == []


def test_divergence(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A NaN loss ends with exit code 4 and the advice to lower --lr."""
    spoiled = lambda _c: float("nan")  # noqa: E731 - a stand-in for arithmetic gone wrong
    monkeypatch.setattr("simulgen_vae.objectives.pointwise", lambda e, *_: e * spoiled(e))
    with pytest.raises(DivergedError, match="try --lr /10 and --gradient_clip_val 1") as caught:
        run(config(data), tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input_type": "image"}, DataError, "pictures no, expected what --input_type image needs"),
        ({"data": "absent.npz"}, DataError, "absent.npz: no such data set"),
        ({"dim2": 99}, DataError, "Dim2 is 99, the data has 9"),
        ({"num_param": 2}, DataError, "--num_param 2, found 3 parameter columns"),
        ({"use_ddp": True}, UserError, "torchrun --nproc_per_node=2"),
        ({"param_dir": "nowhere"}, DataError, "no such file or folder; searched .*nowhere; check"),
        ({"group": "nowhere.csv"}, DataError, "--group nowhere.csv: no such file"),
    ],
)
def test_bad_input(data: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str):
    """What cannot work is refused in one line before the folder of the run is made."""
    with pytest.raises(error, match=message):
        run(replace(config(data), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_ranks_equal_one(data: Path, tmp_path: Path):
    """Two processes with half the batch train the network that one process trains (1e-6)."""
    flags = (
        f"--preset smoke --data {data} --conditioner net --field_net off --max_cpu_s 1 --dropout 0 --epochs 3"
    )
    flags += " --device cpu --precision fp32 --threads 1 --no_tensorboard --use_e2e_training 1"
    script = ROOT / "scripts/simulgen_vae/train.py"
    common = [*flags.split(), "--use_ddp"]
    two = ["--batch_size", "2", "--lc_batch_size", "2", "--out", str(tmp_path / "two")]
    ended = torchrun(script, [*common, *two], tmp_path / "two.txt", timeout=150)
    assert ended.returncode == 0, ended.output
    one = config(data, epochs=3, dropout=0.0, use_e2e_training=True)
    run(one, tmp_path / "one")
    found = [
        load(tmp_path / n / "checkpoints/last.pt")["training"]["task"]["networks"] for n in ("one", "two")
    ]
    for name, weights in found[0].items():
        for key, value in weights.items():
            torch.testing.assert_close(found[1][name][key], value, rtol=1e-4, atol=2e-6)


def test_a_stored_basis_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Training takes the basis that prep_data stored, bit for bit; another --num_modes fits another one."""
    source = write_data(tmp_path / "d.npz")
    made = prep_data(PrepDataConfig(str(source), fit_basis=True, num_modes=6), BasicOptions())
    stored = train(config(Path(made["path"])), options(tmp_path / "a", dry_run=True))
    assert stored is None and "6 modes, as stored in" in "".join(capsys.readouterr())
    train(config(Path(made["path"]), num_modes="5"), options(tmp_path / "a", dry_run=True))
    assert "as stored in" not in "".join(capsys.readouterr())


def test_calibration_rows_are_hidden_from_the_stored_basis(tmp_path: Path):
    """With 200 runs the stored basis has seen only the rows that a training learns from."""
    source = write_data(tmp_path / "d.npz", num=200)
    made = prep_data(PrepDataConfig(str(source), fit_basis=True, num_modes=6), BasicOptions())
    chosen = config(Path(made["path"]))
    data = open_data(chosen)
    split, kept = keep_for_calibration(split_of(chosen, data, 0), data.num_samples, 0)
    assert len(kept) == 20 and stored_basis(made["path"], split.train, request_of(6, chosen.energy, data))


def test_constant_parameters_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A parameter that never changes over the training rows is named in one warning."""
    p = np.column_stack([params(), np.full(NUM, 4.0)])
    np.savez(tmp_path / "d.npz", fields=fields(), params=p)
    run(config(tmp_path / "d.npz", epochs=1, lc_epochs=1), tmp_path / "run")
    said = "".join(capsys.readouterr())
    assert said.count("constant over the training rows, dropped: p3") == 1


def test_soft_bounds_are_trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A soft bound below the data is paid for and approached; without it nothing is penalised."""
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    top = float(fields().mean())
    run(config(data, bounds=f"-inf,{top}:soft", lc_epochs=0, ema=0.0, epochs=4, lr=0.01), tmp_path / "soft")
    lines = [json.loads(line) for line in (tmp_path / "soft/metrics.jsonl").read_text().splitlines()]
    paid = [line["vae_penalty"] for line in lines if "vae_penalty" in line]
    assert paid[-1] < 0.9 * paid[0]
    run(config(data, lc_epochs=0, epochs=1), tmp_path / "free")
    assert "vae_penalty" not in (tmp_path / "free/metrics.jsonl").read_text()


def test_known_nodes_travel_with_the_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The deliverable holds the known nodes; a file that does not fit the mesh is refused at once."""
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    mask = np.arange(20) < 2
    np.savez(tmp_path / "known.npz", mask=mask, value=np.full(20, 7.0))
    known = f"{tmp_path / 'known.npz'}:hard"
    run(config(data, dirichlet=known, epochs=1, lc_epochs=0), tmp_path / "run")
    found = constraints_of(read_surrogate(tmp_path / "run"))
    assert (found(torch.zeros(1, 9, 20, 1))[0, :, :3, 0] == torch.tensor([7.0, 7.0, 0.0])).all()
    np.savez(tmp_path / "known.npz", mask=mask[:5], value=np.zeros(5))
    with pytest.raises(DataError, match=r"known\.npz: mask bool \(5,\), expected bool \(20,\)"):
        run(config(data, dirichlet=known), tmp_path / "other")
    assert not (tmp_path / "other").exists()
