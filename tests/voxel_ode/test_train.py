"""Training: it learns, continues exactly, chooses by validation alone, and says what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from common import checkpoint as checkpoints
from common.cli import parse
from common.device import resolve_precision
from common.errors import DataError, DivergedError, UserError
from common.guard import Guard
from common.run import machine
from tests.launch import ROOT, torchrun
from tests.toy_runs import differences, load, records, status
from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_model import make_model
from tests.voxel_ode.cases_train import QUICK, TINY, config, options, run
from voxel_ode.config import TRAIN_PRESETS, TrainConfig, TrainRunOptions
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.scores import ROLLOUT_SCORE, rollout_scores, spread_indices
from voxel_ode.train import VoxelTask, model_config, optimizer_of, train
from voxel_ode.train_data import open_splits
from voxel_ode.train_files import remembered_routes

SCRIPT = ROOT / "scripts" / "voxel_ode" / "train.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepped root of two training, one validation and one test simulation of 7x6x5 cells."""
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = run(config(root), out)
    assert (result.state, result.step, result.exit_code) == ("finished", 6, 0)
    return out


def test_files_of_a_run(finished: Path):
    """A run leaves step{N}.pt, last.pt, best.pt under its two names, logs, and says it is done."""
    names = {path.name for path in (finished / "checkpoints").iterdir()}
    best = load(finished / "checkpoints" / "best.pt")["step"]
    assert names == {"step3.pt", "step6.pt", "last.pt", "best.pt", f"best_step{best}.pt"}
    assert status(finished)["state"] == "finished"
    lines = records(finished)
    assert [r["step"] for r in lines if "train/loss_total" in r] == [1, 2, 3, 4, 5, 6]
    logged = {"train/loss_grid_p", "train/loss_grid_T", "train/loss_scalar", "train/gradient_norm", "lr"}
    assert logged <= set(lines[0]) and "start/mse/grid_pressure" in lines[0]
    scored = [r for r in lines if ROLLOUT_SCORE in r]
    assert [r["step"] for r in scored] == [3, 6]
    for split in ("val", "test"):
        for kind in ("mse", "acc5"):
            for name in ("grid_pressure", "grid_temperature", "FieldEnergyProductionTotal"):
                assert f"{split}/{kind}/{name}" in scored[0]


def test_checkpoint_rebuilds_the_network(finished: Path):
    """Architecture, normalisation and units come from the checkpoint alone, and its weights fit."""
    found = checkpoints.load(finished / "checkpoints" / "best.pt", package="voxel_ode")
    assert found.kind == "voxel_autoregressor" and found.normalization["units"]["Pressure"] == "bar"
    normalizer = Normalizer.from_dict(found.normalization)
    model = VoxelAutoRegressor(model_config(found.config), normalizer)
    model.load_state_dict(found.state_dict, strict=True)


def test_exact_resume_within_the_curriculum(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped by SIGTERM among the two-year steps, a continued run ends as if nothing had happened."""
    step = VoxelTask.step

    def interrupted(task: VoxelTask, batch: Any, number: int) -> Any:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(VoxelTask, "step", interrupted)
        result = run(config(root), tmp_path)
    assert (result.state, result.step, result.exit_code) == ("stopped", 5, 75)
    score = load(tmp_path / "checkpoints" / "last.pt")["training"]["loop"]["best"]
    assert (
        score is not None and score == load(tmp_path / "checkpoints" / "best.pt")["training"]["loop"]["best"]
    )
    assert run(config(root), tmp_path, resume="auto").state == "finished"
    for name in ("last.pt", "best.pt", "step3.pt"):
        expected, found = (load(folder / "checkpoints" / name) for folder in (finished, tmp_path))
        assert differences(expected, found) == []
    assert records(tmp_path) == records(finished)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        p.name for p in (finished / "checkpoints").iterdir()
    }


def test_best_is_the_lowest_rollout_score(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """best_step{N}.pt is the state of the lowest score; scores that are NaN never win."""
    found = iter([float("nan"), 0.9, 0.4, 0.6])
    monkeypatch.setattr("voxel_ode.train.rollout_scores", lambda *_: {ROLLOUT_SCORE: next(found)})
    run(config(root, max_steps=8, unroll_steps=1), tmp_path, eval_every=2, save_every=2)
    folder = tmp_path / "checkpoints"
    assert load(folder / "best.pt")["step"] == 6
    assert [p.name for p in folder.glob("best_step*.pt")] == ["best_step6.pt"]


def test_test_data_choose_nothing(root: Path, finished: Path, tmp_path: Path):
    """Other test simulations change the logged test scores and not a bit of any checkpoint."""
    shutil.copytree(root, tmp_path / "data")
    for path in (tmp_path / "data" / "test").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            grids = file["outputs_grid"][()]
            file["outputs_grid"][...] = np.where(grids > -998, grids * 1.5, grids)
    run(config(tmp_path / "data"), tmp_path / "run")
    for name in ("best.pt", "last.pt"):
        expected, found = (load(p / "checkpoints" / name) for p in (finished, tmp_path / "run"))
        assert differences(expected["state_dict"], found["state_dict"]) == []
        assert expected["step"] == found["step"]
    scores = [
        [r["test/mse/grid_pressure"] for r in records(p) if "test/mse/grid_pressure" in r]
        for p in (finished, tmp_path / "run")
    ]
    assert scores[0] != scores[1]


def test_workers_change_nothing(root: Path, finished: Path, tmp_path: Path):
    """Two loader processes give the weights of none."""
    run(config(root), tmp_path, num_workers=2)
    expected, found = (load(p / "checkpoints" / "last.pt")["state_dict"] for p in (finished, tmp_path))
    assert differences(expected, found) == []


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """Return the plain weights of a checkpoint."""
    return load(path)["training"]["task"]["module"]


BEGUN = {"norm": "running", "max_steps": 20, "unroll_steps": 1, "rollout_eval_sims": 0}
GOES_ON = {**BEGUN, "max_steps": 26, "unroll_steps": 2, "unroll_start": 0.9}
SELDOM = {"eval_every": 100, "save_every": 100}


def test_two_ranks_equal_one_process(root: Path, tmp_path: Path):
    """Two ranks with a batch of one go on as one process with a batch of two does, unrolled too.

    They start from a run of some steps: Adam makes a full step of a gradient that is only rounding.
    """
    run(config(root, **BEGUN), tmp_path / "begun", **SELDOM)
    resume = str(tmp_path / "begun" / "checkpoints" / "last.pt")
    run(config(root, **GOES_ON), tmp_path / "one", resume=resume, **SELDOM)
    flags = ["--out", tmp_path / "two", "--resume", resume, "--precision", "fp32", "--threads", "1"]
    changes = {**TINY, **GOES_ON, "prepped_root": root, "batch_size": 1}
    flags += [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    flags += [word for name, value in {**QUICK, **SELDOM}.items() for word in (f"--{name}", str(value))]
    ended = torchrun(SCRIPT, flags, tmp_path / "said.txt")
    assert ended.returncode == 0, ended.output
    begun, one, two = (
        loaded(tmp_path / name / "checkpoints" / "last.pt") for name in ("begun", "one", "two")
    )
    moved = max(float((one[name] - begun[name]).abs().max()) for name in one)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert moved > 1e-3 and apart < 1e-3 * moved
    losses = [
        [r["train/loss_total"] for r in records(tmp_path / name) if "train/loss_total" in r]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_without_validation_the_last_is_best(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without validation simulations best.pt is last.pt, under both its names, and a warning says so."""
    data = prepared(tmp_path / "data", num_val=0)
    run(config(data, max_steps=4), tmp_path / "run", save_every=2)
    folder = tmp_path / "run" / "checkpoints"
    assert "warning: no validation rollouts: the last state counts as the best" in capsys.readouterr().err
    for name in ("best.pt", "best_step4.pt"):
        assert differences(load(folder / "last.pt"), load(folder / name)) == []
    assert [path.name for path in folder.glob("best_step*.pt")] == ["best_step4.pt"]


def test_unknown_cell_sizes_turn_flux_inputs_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Files that do not say how large their cells are train without flux inputs; the checkpoint says so."""

    def forget(file: h5py.File) -> None:
        del file.attrs["cell_size_m"]

    data = prepared(tmp_path / "data", raw={"change": forget})
    run(config(data, max_steps=1, unroll_steps=1), tmp_path / "run")
    assert "--flux_inputs: off" in capsys.readouterr().err
    found = load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert found["config"]["flux_inputs"] is False
    assert found["state_dict"]["stem.weight"].shape[1] == 13 and "flow_weight" not in found["state_dict"]


def test_untrained_rollout_scores_one(root: Path):
    """The untrained network copies, so its rollout score is 1."""
    chosen, splits = open_splits(config(root), 0)
    with machine(options(Path())) as device, Guard(device) as guard:
        task = VoxelTask(chosen, splits, guard, resolve_precision("fp32", device))
        sims = splits.rollout_simulations(2)
        scores = rollout_scores(task.averaged, sims, splits.normalizer, task.update.precision)
    assert len(sims) == 1 and scores[ROLLOUT_SCORE] == pytest.approx(1.0, abs=1e-5)
    assert scores["rollout/rmse_T_C"] == pytest.approx(scores["rollout/copy_rmse_T_C"], rel=1e-5)


def test_scored_samples_are_spread():
    """The scored samples are always the same, one from each equal part of the index."""
    chosen = spread_indices(1000, 50)
    assert chosen == spread_indices(1000, 50)
    assert [i // 20 for i in chosen] == list(range(50))
    assert spread_indices(3, 50) == [0, 1, 2] and spread_indices(0, 5) == []


def test_what_decays():
    """Weight decay acts on kernels and matrices, not on norms, biases, FiLM or the flow's weight."""
    model = make_model(film_hidden=3)
    groups = optimizer_of(model, TrainConfig(weight_decay=0.1)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {
        name
        for name, p in model.named_parameters()
        if p.dim() > 1 and "film" not in name.split(".")[-2:][0] and "shared_film" not in name
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_mixed_precision_trains(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """--use_amp on a CPU is bf16, and a step is finite."""
    assert run(config(root, use_amp=True, max_steps=2, unroll_steps=1), tmp_path).state == "finished"
    assert ", bf16, convolutions" in capsys.readouterr().err


def test_dry_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A dry run prints shapes and an estimate of memory for batch sizes, and leaves nothing."""
    assert train(config(root), options(tmp_path / "run", dry_run=True)) is None
    said = capsys.readouterr().err
    assert "states: [2, 3, 2, 4, 4, 4]" in said and "estimated memory" in said and "batch 16:" in said
    assert not (tmp_path / "run").exists()


def test_nan_in_a_file_is_named(root: Path, tmp_path: Path):
    """NaN in one simulation ends the training before an update and names the file and the year."""
    shutil.copytree(root, tmp_path / "data")
    bad = sorted((tmp_path / "data" / "train").glob("*.h5"))[0]
    with h5py.File(bad, "r+") as file:
        file["outputs_grid"][1] = np.nan
    with pytest.raises(DivergedError, match=rf"{bad.name} t="):
        run(config(tmp_path / "data", max_steps=40, unroll_steps=1), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"multiscale": 2}, UserError, "--multiscale 2: patches of (4, 4, 4)"),
        ({"unroll_steps": 16}, UserError, "too few states"),
        ({"max_memory": 1e-9}, DataError, "--max_memory"),
        ({"loss_margin": 4}, UserError, "--loss_margin 4: leaves nothing"),
        ({"prepped_root": None}, UserError, "--prepped_root: missing"),
        ({"prepped_root": Path("nowhere")}, DataError, "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_trained(
    root: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
):
    """Each mistake is one line that names the flag or the file, before anything is written."""
    with pytest.raises(kind) as caught:
        run(config(root, **changes), tmp_path / "run")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_resume_refuses_another_architecture(root: Path, finished: Path, tmp_path: Path):
    """A checkpoint of another width is refused with both widths named."""
    with pytest.raises(DataError, match="base_channels 4, this run 5"):
        run(config(root, base_channels=5), tmp_path, resume=str(finished))


def test_checkpoint_folder_elsewhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without --out the checkpoints lie in ./checkpoints; another run's are not overwritten there."""
    monkeypatch.chdir(tmp_path)
    quick = config(root, max_steps=1, unroll_steps=1, rollout_eval_sims=0)
    origins = {"out": "default", "save_dir": "default"}
    train(quick, options(Path("runs/a")), origins)
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    with pytest.raises(UserError, match="holds checkpoints of an earlier run"):
        train(quick, options(Path("runs/b")), origins)
    train(quick, options(Path("runs/b"), overwrite=True), origins)
    chosen = options(Path("runs/c"), save_dir=tmp_path / "mine")
    train(quick, chosen, origins | {"save_dir": "command line"})
    assert (tmp_path / "mine" / "best_step1.pt").exists() and not (
        tmp_path / "runs" / "c" / "checkpoints"
    ).exists()


COMMANDS = [
    "--prepped_root ./data/prepped --batch_size 32 --receptive_field_radius 3 --base_channels 128 --depth 12 "
    "--max_steps 200000 --eval_every 1000 --log_every 100 --ckpt_every 10000 --aug_xy_rot --aug_flip "
    "--noise_std 0.01 --use_amp --use_wandb --num_workers 0",
    "--prepped_root data --batch_size 8 --eval_every 100 --log_every 20 --ckpt_every 1000 --use_amp",
    "--preset demo --prepped_root x --flux_inputs off --aug_flip false --loss_weights 1 2 0 --betas 0.9 0.95",
    "--prepped_root x --resume_from run/last.pt --save_every 5 --save_dir y --pin_memory 0 --nccl_p2p on",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str):
    """Printed commands parse, in both spellings; full is the table of defaults."""
    parsed = parse(command.split(), TrainConfig, TrainRunOptions, presets=TRAIN_PRESETS)
    again = parse(
        [w.replace("_", "-") if w.startswith("--") else w for w in command.split()],
        TrainConfig,
        TrainRunOptions,
        presets=TRAIN_PRESETS,
    )
    assert parsed == again
    assert TRAIN_PRESETS["full"]() == TrainConfig()
    if "--ckpt_every 10000" in command:
        assert (parsed.run.save_every, parsed.run.use_wandb) == (10_000, True)
    if "--resume_from" in command:
        assert parsed.run.resume == "run/last.pt"


def test_bad_numbers_are_refused():
    """A radius, a level, a fraction or a count out of range is refused with what was expected."""
    for changes in (
        {"receptive_field_radius": 6},
        {"multiscale": 4},
        {"unroll_start": 1.5},
        {"batch_size": 0},
        {"loss_weights": (1.0, 1.0)},
        {"lr": 0.0},
        {"ema_decay": 1.0},
        {"rot_per_sample": True},
    ):
        name = next(iter(changes))
        with pytest.raises(ValueError, match=f"--{name}"):
            replace(TrainConfig(), **changes)


def test_routes_are_remembered(tmp_path: Path):
    """A resumed run takes the routes of its first start; a new one, and a damaged note, those chosen now."""
    fresh = TrainRunOptions(out=tmp_path)
    first, now = {"stem": "gemm", "head": "native"}, {"stem": "native", "head": "native"}
    resumed = replace(fresh, resume="auto")
    assert remembered_routes(fresh, first) == first
    assert remembered_routes(resumed, now) == first
    assert remembered_routes(resumed, {"stem": "native"}) == {"stem": "native"}
    (tmp_path / "convolutions.json").write_text('{"stem": "no such route"}')
    assert remembered_routes(resumed, {"stem": "native"}) == {"stem": "native"}
    assert remembered_routes(fresh, now) == now
