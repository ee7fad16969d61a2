"""The commands of voxel_ode as a user types them: they parse and work together; exit codes are true."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from common.run import MachineOptions
from tests.cli.test_scripts import ROOT, call, error_of
from tests.voxel_ode.cases_data import prepared, truth, write_raw
from tests.voxel_ode.cases_rollout import rollout_config, save_model
from voxel_ode.infer import infer

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]
NETWORKS = ("train", "train_ddp", "rollout", "rollout_inference", "evaluate", "optimise")
BIG = "--receptive_field_radius 3 --base_channels 128 --depth 12"
ONE = "./data/prepped/test/v2.4_0001.prepped.h5"
SMALLER = "--batch_size 2 --depth 1 --loss_margin 0"  # said last, so that a test is quick


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, with a space in its name, that holds raw and prepped data, models and predictions."""
    folder = tmp_path_factory.mktemp("my data")
    root = prepared(folder / "data", count=8, num_test=5, num_val=2)
    save_model(folder / "small.pt", root)
    big = {"receptive_field_radius": 3, "base_channels": 128, "depth": 12, "multiscale": 0}
    save_model(folder / "checkpoints" / "best_step10000.pt", root, spread=0.0, **big)
    save_model(folder / "trained" / "checkpoints" / "best.pt", root)
    config = rollout_config(
        root / "test" / "v2.4_0001.prepped.h5", folder / "small.pt", folder / "predictions.h5"
    )
    infer(config, MachineOptions(device="cpu", precision="fp32"), {})
    write_raw(folder / "scenario" / "v2.4_0009.h5", truth(9), outputs=False)
    return folder


def script(name: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a script of voxel_ode in a folder."""
    machine = CPU if name in NETWORKS else []
    return call(ROOT / f"scripts/voxel_ode/{name}.py", [*arguments, *machine], folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("make_data", "--out new/raw --num_sims 12 --grid 32 24 24 --num_steps 30 --workers 2"),
        ("make_data", "--preset study --out new/raw --units field --compression lzf --history-years 2"),
        ("prep_data", "--input_root data/raw --out ./new --patch_size 32 32 32 --stride 8 8 8"),
        (
            "train_ddp",
            f"--prepped_root ./data/prepped --batch_size 32 {BIG} --max_steps 200000 --eval_every 1000 "
            "--log_every 100 --ckpt_every 10000 --aug_xy_rot --aug_flip --noise_std 0.01 --use_amp "
            f"--use_wandb --num_workers 0 --save_dir new {SMALLER}",
        ),
        (
            "train_ddp",
            "--prepped_root ./data/prepped --batch_size 8 --eval_every 100 --log_every 20 --ckpt_every 1000 "
            f"--use_amp --save_dir new --base_channels 16 {SMALLER}",
        ),
        (
            "rollout_inference",
            f"--prepped_sim_path {ONE} --stats_path ./data/prepped/stats.json --ckpt_path "
            f"./checkpoints/best_step10000.pt --save_path ./new.h5 {BIG}",
        ),
        ("rollout", "--sim_path data/raw --ckpt_path small.pt small.pt --save_path new --batch_sims 4"),
        ("rollout", f"--sim_path {ONE} --model trained --out new.h5 --vti out --csv wells.csv"),
        ("rollout", "--sim_path scenario --ckpt_path small.pt --save_path new --init initial --steps 3"),
        ("evaluate", "--prepped_root ./data/prepped --model small.pt --baselines copy fno --calibrate"),
        ("export", "--predictions predictions.h5 --steps_list 1 3 --vti new --npz new.npz --csv new.csv"),
        ("optimise", f"--sim_path {ONE} --model small.pt --out n.json --total free --pressure_limits 50 400"),
    ],
)  # fmt: skip
def test_printed_commands(place: Path, tmp_path: Path, name: str, line: str):
    """Each printed command line runs with --dry_run, from the user's folder, and writes no file."""
    work = Path(shutil.copytree(place, tmp_path / "work", copy_function=shutil.copy))
    before = {p for p in work.rglob("*") if p.is_file()}
    code, said = script(name, [*line.split(), "--dry_run"], work)
    assert code == 0, said
    assert {p for p in work.rglob("*") if p.is_file()} - before == {work / "said.txt"}, said


def test_from_simulations_to_forecasts(tmp_path: Path):
    """make_data, check_h5, prep_data, train, evaluate, rollout, export: each finds what the last one left."""
    steps = [
        ("make_data", "--preset smoke --out raw --num_sims 3 --num_steps 3 --workers 1 --seed 5"),
        ("check_h5", "raw"),
        (
            "prep_data",
            "--input_root raw --out_root ./data/prepped --patch_size 12 10 10 --num_test 1 --num_val 1",
        ),
        ("train", "--preset smoke --prepped_root ./data/prepped --max_steps 2 --out run --no_tensorboard"),
        ("evaluate", "--prepped_root data/prepped --ckpt_path run/checkpoints/best.pt --out ev --no_figures"),
        (
            "rollout_inference",
            f"--prepped_sim_path {ONE} --ckpt_path run/checkpoints/best.pt --save_path p.h5 --csv wells.csv",
        ),
        ("export", "--predictions p.h5 --vti vti --npz all.npz"),
    ]
    for name, line in steps:
        code, said = script(name, line.split(), tmp_path)
        assert code == 0, said
        assert name in ("rollout_inference", "export") or said.count("next: python scripts/") == 1, said
    assert "predictions.pvd" in said
    assert {"evaluation.json", "evaluation.md", "results.json"} == {
        p.name for p in (tmp_path / "ev").iterdir()
    }
    assert len(list((tmp_path / "vti").glob("*.vti"))) == 3 and (tmp_path / "wells.csv").is_file()


@pytest.mark.parametrize(("alias", "main"), [("rollout_inference", "rollout"), ("train_ddp", "train")])
def test_aliases_are_the_main_scripts(alias: str, main: str):
    """An alias differs from the script that it stands for in its docstring only."""
    trees = []
    for name in (alias, main):
        tree = ast.parse((ROOT / f"scripts/voxel_ode/{name}.py").read_text(encoding="utf-8"))
        trees.append(ast.dump(ast.Module(tree.body[1:], [])))
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        ("prep_data", "--input_root absent", 3, "absent: no such folder"),
        ("prep_data", "--input_root data/raw --num_test 8", 2, "8 simulations for --num_test 8"),
        ("check_h5", "absent", 3, "absent: no such file or folder"),
        ("train", "", 2, "--prepped_root: missing"),
        ("train", "--prepped_root absent", 3, "absent"),
        ("rollout", "", 2, "--prepped_sim_path: missing"),
        ("rollout", f"--sim_path {ONE}", 2, "--ckpt_path: missing"),
        ("rollout", f"--sim_path {ONE} --ckpt_path absent.pt", 3, "absent.pt: no such checkpoint"),
        (
            "rollout",
            f"--sim_path {ONE} --ckpt_path data",
            3,
            "data: is a folder, expected in it checkpoints/best.pt or best.pt",
        ),
        ("rollout", f"--sim_path {ONE} --ckpt_path predictions.h5", 3, "predictions.h5: "),
        ("rollout", f"--sim_path {ONE} --ckpt_path small.pt --tile 4 4", 2, "--tile 4 4: expected auto"),
        ("rollout", f"--sim_path {ONE} --ckpt_path small.pt --max_memory lots", 2, "--max_memory lots"),
        ("rollout", f"--sim_path {ONE} --ckpt_path small.pt --depth 12", 2, "was trained with 1"),
        ("rollout", f"--sim_path {ONE} --ckpt_path small.pt", 2, "predictions.h5: exists"),
        (
            "rollout",
            "--sim_path small.pt --ckpt_path small.pt --save_path x.h5",
            3,
            "small.pt: cannot be opened",
        ),
        (
            "rollout",
            "--sim_path scenario --ckpt_path small.pt --init output0 --save_path x",
            2,
            "--init output0",
        ),
        ("evaluate", "--ckpt_path small.pt", 2, "--prepped_root: missing"),
        ("evaluate", "--prepped_root absent --ckpt_path small.pt", 3, "absent/stats.json"),
        ("evaluate", "--prepped_root data/prepped --ckpt_path small.pt --baselines best", 2, "best"),
        ("export", "--predictions predictions.h5", 2, "--vti, --npz or --csv"),
        ("export", f"--predictions {ONE} --csv x.csv", 3, "no predictions of rollout.py"),
        ("optimise", f"--sim_path {ONE} --ckpt_path small.pt", 2, "no rate can move; use --total free"),
        ("optimise", f"--sim_path {ONE} --ckpt_path small.pt --total free", 3, "use --verify false"),
        ("optimise", f"--sim_path {ONE} --ckpt_path small.pt --bounds 1.2 1.5", 2, "--bounds 1.2 1.5"),
    ],
)
def test_exit_codes(place: Path, name: str, line: str, code: int, message: str):
    """What a user does wrong is one line that says so, with exit code 2 for usage and 3 for data."""
    found, said = script(name, line.split(), place)
    (place / "said.txt").unlink()
    assert found == code and message in error_of(said), said
