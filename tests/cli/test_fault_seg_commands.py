"""The commands of fault_seg as a user types them: they parse and work together; exit codes are true."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_scripts import ROOT, call, error_of
from tests.fault_seg.cases import make_cubes, noisy_layers, save_model
from tests.fault_seg.volume_files import make_segy

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]
DIRS = "--dir_data_train {0}/data_train --dir_target_train {0}/target_train --dir_data_valid {0}/data_valid "
DIRS += "--dir_target_valid {0}/target_valid --dir_output ./checkpoints"
TUNE = "--init last.ckpt --freeze trunk --replay 0.5 --steps 300 --crop 16 --data_preset smoke --nvalid 1"
SIZES = "--n1 24 --n2 20 --n3 16"
VOLUME = "--input ./test_volume --model ./last.ckpt --n1 12 --n2 10 --n3 8"


def coordinates(iline: int, xline: int, _: int) -> dict[tuple[int, int], int]:
    """Return CDP x and y of a trace: 25 m an inline, 12.5 m a crossline."""
    return {(181, 4): 2500 * iline, (185, 4): 1250 * xline}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, with a space in its name, that holds cubes, a model and a raw volume."""
    folder = tmp_path_factory.mktemp("my data")
    make_cubes(folder / "cubes", ntrain=4)
    save_model(folder / "last.ckpt")
    save_model(folder / "refine.ckpt", kind="refine")
    for name in ("rgt", "dhr", "fsem", "fdip", "fstrike"):
        shutil.copy(folder / f"cubes/data_valid/0_{name}.bin", folder / f"result.{name}")
    np.save(folder / "labels.npy", np.zeros((24, 20, 16), np.float32))
    np.save(folder / "survey.npy", noisy_layers((24, 20, 16)))
    make_segy(folder / "survey.sgy", noisy_layers((24, 6, 7)), fields=coordinates)
    rows = ["inline,crossline,sample_ms,fault_id,stick_id", "6,22,4,1,1", "6,22,40,1,1"]
    (folder / "sticks.csv").write_text("\n".join(rows) + "\n")
    noisy_layers((12, 10, 8)).transpose(2, 1, 0).tofile(folder / "test_volume")
    return folder


def machine_flags(name: str) -> list[str]:
    """Return the flags of the scripts that use a network."""
    return [] if name in ("make_data", "convert", "objects") else CPU


def script(name: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a script of fault_seg in a folder."""
    return call(ROOT / f"scripts/fault_seg/{name}.py", arguments, folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("make_data", "--preset demo --out data/fault"),
        ("make_data", "--preset rgm --ntrain 2 --n1 33 --n2 20 --n3 40 --faults 1 4 --noise 0.3"),
        ("train", f"--task infer {DIRS} --epochs 100 --batch_train 4 --n1 24 --n2 20 --n3 16 --crop 16"),
        ("train", "--task infer --synthetic --dir_output ./checkpoints --n1 32 --n2 32 --n3 32 --crop 16"),
        ("train", "--preset smoke --num-workers 0 --save-every 2 --no_augment --wandb= --ema 0"),
        ("train", "--preset smoke --network unet --no-rgt --no-dhr --crop 32 16 16 --batch_size 1"),
        ("train", "--task refine --data cubes --crop 16 --batch_train 2 --init_infer last.ckpt"),
        ("train", "--preset refine --data cubes --crop 16 --second_pass 0 --rgt_residual off"),
        ("train", "--data cubes --check last.ckpt --batch_valid 2 --out checked"),
        ("train", "--network mtl --loss published --data cubes --crop 16 --lr 1e-4 --nodes 1"),
        ("train", "--preset standard --optimizer adamw --data cubes --crop 16 --out results/fault"),
        ("train", "--preset standard --data cubes --crop 16 --init last.ckpt --optimizer muon"),
        ("infer", f"{VOLUME} --tta 4 --dz 2 --dy 12.5 --dx 25 --rgt_residual off --refine_model refine.ckpt"),
        ("refine", f"--input ./result {SIZES} --model ./refine.ckpt --output ./refined --refine_iters 3"),
        ("refine", f"--input ./result {SIZES} --model refine.ckpt --refine_tol 0 --keep_iters --tta 8"),
        ("infer", "--input survey.sgy --model last.ckpt --output o --velocity 2500 --north --tta 4"),
        ("train", f"--input survey.npy --labels labels.npy --labelled_inlines 3 5 {TUNE}"),
        ("evaluate", "--model last.ckpt --input survey.sgy --labels sticks.csv --out evaluation"),
        ("evaluate", "--model refine.ckpt --data cubes --out evaluation --refine_iters 2"),
        ("evaluate", "--model last.ckpt --data cubes --baselines coherence,unet --baseline_seconds 1"),
        ("evaluate", "--model last.ckpt --input survey.npy --labels labels.npy --labelled_inlines 3"),
        ("infer", f"{VOLUME} --output ./out/r --rgt True --fault True --dhr True"),
        ("infer", f"{VOLUME} --output o --overlap exact --no_rgt --format npy h5"),
        ("evaluate", "--model ./last.ckpt --data cubes --out evaluation"),
        ("infer", "--input survey.sgy --model last.ckpt --output out/survey --confidence --format segy,vti"),
        ("convert", "--input survey.sgy --info"),
        ("convert", "--input survey.sgy --output patches --patch 16 16 16 --patch_overlap 4"),
        ("convert", "--input survey.sgy --output again.sgy --like survey.sgy --dtype int16"),
        ("objects", f"--input ./result {SIZES} --output ./o --threshold 0.5 --min_size 100 --horizons 10"),
        ("objects", f"--input ./result {SIZES} --rgt_values 0.2 0.5"),
        ("export", "--model_path . --out fault.safetensors"),
        ("export", "--model refine.ckpt --output refine.pth"),
    ],
)  # fmt: skip
def test_printed_commands(place: Path, tmp_path: Path, name: str, line: str):
    """Each printed command line runs with --dry_run, from the user's folder, and writes no file."""
    work = Path(shutil.copytree(place, tmp_path / "work"))
    arguments = line.format("cubes").split() + machine_flags(name) + ["--dry_run"]
    before = {p for p in work.rglob("*") if p.is_file()}
    code, said = script(name, arguments, work)
    assert code == 0, said
    assert {p for p in work.rglob("*") if p.is_file()} - before == {work / "said.txt"}


def test_from_cubes_to_faults(tmp_path: Path):
    """make_data, train, infer, evaluate: what each leaves is what the next one needs."""
    sizes = "--n1 20 --n2 16 --n3 24"
    cube = f"--input d/data_valid/0.bin {sizes} --output out/cube"
    steps = [
        ("make_data", f"--preset smoke --ntrain 2 --nvalid 1 {sizes} --no_figures --out d --seed 3"),
        ("train", "--data d --out run --steps 2 --batch_train 2 --crop 16 --log_every 1 --no_tensorboard"),
        ("train", "--data d --out run --steps 3 --batch_train 2 --crop 16 --resume auto --no_tensorboard"),
        ("infer", f"{cube} --model run/best.ckpt --no_figures"),
        ("evaluate", "--model run/last.ckpt --data d --out report --no_figures"),
    ]
    for name, line in steps:
        code, said = script(name, line.split() + machine_flags(name), tmp_path)
        assert code == 0, said
    assert "fault average precision" in said and (tmp_path / "report/evaluation.json").is_file()
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"cube.json", *(f"cube.{n}" for n in ("fsem", "fdip", "fstrike", "rgt", "dhr"))}
    fsem = np.fromfile(tmp_path / "out/cube.fsem", "<f4").reshape(24, 16, 20)
    assert 0 <= fsem.min() <= fsem.max() <= 1


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        ("train", "--data absent", 3, "error: absent/data_train: no such folder"),
        ("train", "--data cubes --crop 32", 3, "smaller than --crop (32, 32, 32); lower --crop"),
        ("train", "--data cubes --crop 16 --ntrain 9", 3, "4 samples found, 9 asked for"),
        ("train", "--data cubes --crop 16 --rgt maybe", 2, "'maybe', expected true or false"),
        ("train", "--data cubes --crop 16 --out last.ckpt", 2, "last.ckpt"),
        ("train", "--data cubes --crop 16 --batch_train 5", 3, "more than the 4 training samples"),
        (
            "train",
            "--data cubes --gpus_per_node 4",
            2,
            "start it with torchrun --standalone --nproc_per_node 4",
        ),
        ("train", "--data cubes --check refine.ckpt", 3, "checkpoint is kind refine"),
        ("train", "--task refine --no_dhr", 2, "--task refine: needs all of"),
        ("refine", "--input result", 2, "--model: missing"),
        (
            "refine",
            f"--input result {SIZES} --model last.ckpt",
            3,
            "checkpoint is kind infer, expected refine",
        ),
        ("refine", "--input nothing --model refine.ckpt", 3, "nothing.fsem: no such file in any format"),
        ("infer", f"{VOLUME} --north", 2, "--north: test_volume is raw, expected SEG-Y"),
        ("infer", f"{VOLUME} --tta 3", 2, "--tta"),
        ("infer", "", 2, "error: --input: missing"),
        (
            "infer",
            "cube.npy",
            2,
            "error: cube.npy: unexpected word, values follow a flag, as in --input cube.npy;",
        ),
        ("infer", "--input test_volume --model last.ckpt", 2, "expected three positive sizes; pass --n1"),
        ("infer", "--input test_volume --n1 13 --n2 10 --n3 8 --model last.ckpt", 3, "it fits --n1 12"),
        ("infer", "--input nothing.sgy --model last.ckpt", 3, "nothing.sgy: no such file"),
        ("infer", "--input test_volume --model test_volume", 3, "test_volume: "),
        ("infer", "--input test_volume --n1 12 --n2 10 --n3 8 --model last.ckpt --format vgi", 2, "vgi"),
        (
            "evaluate",
            "--model last.ckpt --data absent",
            3,
            "absent/data_valid: no such folder; run make_data.py, or name",
        ),
        ("make_data", "--ntrain 0 --nvalid 0", 2, "expected at least one cube"),
        ("make_data", "--preset smoke --out cubes", 2, "cubes: holds a data set"),
        ("make_data", "--preset smoke --out test_volume", 2, "cannot be made a folder"),
    ],
)
def test_exit_codes(place: Path, name: str, line: str, code: int, message: str):
    """What a user does wrong is one line that says so, with exit code 2 for usage and 3 for data."""
    found, said = script(name, line.split() + machine_flags(name), place)
    (place / "said.txt").unlink()
    assert found == code and message in error_of(said), said
