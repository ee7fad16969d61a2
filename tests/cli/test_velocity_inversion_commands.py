"""The commands of velocity_inversion as a user types them: they parse and work together; codes are true."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_scripts import ROOT, call, error_of
from tests.velocity_inversion.cases import tiny_data
from velocity_inversion.config import TrainConfig
from velocity_inversion.ensemble import save_ensemble
from velocity_inversion.quick import untrained
from velocity_inversion.sources import open_source

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]
ON_MACHINE = ("train", "infer", "evaluate", "refine", "export")
M = "results/velocity/models/best_ensemble_model.pth"
TRAIN = "--train_data_path data/vel/train --val_data_path data/vel/val --out runs/out"
TEST = "--test_data_path data/vel/test"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, with a space in its name, that holds data, a model and predictions."""
    folder = tmp_path_factory.mktemp("my data")
    tiny_data(folder / "data/vel")
    source = open_source(folder / "data/vel/test")
    (folder / "results/velocity/models").mkdir(parents=True)
    (folder / "data/test").symlink_to("vel/test")
    small = TrainConfig(num_models=1, embed_dim=16, num_heads=2, num_layers=1, stem=8)
    save_ensemble(folder / M, untrained(source.survey, small))
    for i, name in enumerate(source.ids):
        (folder / "out/vel" / name).mkdir(parents=True)
        np.save(folder / "out/vel" / name / "vp_pred.npy", 1000.0 * source.velocity(i))
    return folder


def script(name: str, line: str, folder: Path) -> tuple[int, str]:
    """Run a script of velocity_inversion in a folder."""
    arguments = line.split() + (CPU if name in ON_MACHINE else [])
    return call(ROOT / f"scripts/velocity_inversion/{name}.py", arguments, folder)


def documented() -> list[tuple[str, str]]:
    """Return (script, flags) of every command of the documentation."""
    text = (ROOT / "docs/velocity_inversion.md").read_text(encoding="utf-8").replace("$M", M)
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    commands = [line.removeprefix("python $S/") for line in lines if line.startswith("python $S/")]
    commands = [c.replace("--expected_count 150", "--expected_count 2") for c in commands]
    found = [command.split(".py", 1) for command in commands if "--quick_test" not in command]
    return [(name, flags.strip()) for name, flags in found]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *documented(),
        ("make_data", "--layout challenge --num-train 2 --families layered,curved --grid-m 5 --out d"),
        (
            "make_data",
            "--num_shots 3 --num_receivers 20 --record_s 0.5 --peak_hz 10 --noise_snr_db 20 --out d",
        ),
        ("prep_data", "--data_path data/vel/train --analyze --check_physics 2 --update_geometry"),
        (
            "prep_data",
            "--data-path data/vel/train --net-dt-s 0.004 --bandpass-low-hz 3 --bandpass-high-hz 40",
        ),
        ("train", f"{TRAIN} --preset smoke --max_cpu_s 200 --schedule warm_restarts --activation softplus"),
        ("train", f"{TRAIN} --preset challenge --num_models 1 --max-steps 200 --member-variants base,wide"),
        ("infer", f"--model-path {M} {TEST} --output-path ./submission.npz --batch-size 8 --post-process"),
        (
            "refine",
            f"--prediction-path out/vel {TEST} --mode data_space --model_path {M} --lambda 0.5 --out r",
        ),
        ("export", "--model results/velocity --format torch_export --out m.pt2"),
    ],
)
def test_printed_commands(place: Path, tmp_path: Path, name: str, line: str):
    """Each command of the documentation and its like runs with --dry_run, in both spellings."""
    work = Path(shutil.copytree(place, tmp_path / "work", symlinks=True))
    code, said = script(name, f"{line} --dry_run --overwrite", work)
    assert code == 0, said
    made = {p.name for p in work.rglob("*.pt")} | {p.name for p in work.rglob("submission.npz")}
    assert not made and "Traceback" not in said


def test_documentation_names_every_script():
    """The commands of the documentation cover the scripts but those that are told in its text."""
    told = {name for name, _ in documented()}
    assert told == {"make_data", "train", "infer", "evaluate", "refine", "export"}


def test_from_sections_to_sections(tmp_path: Path):
    """make_data, prep, train, infer, refine, evaluate, export: each leaves what the next one needs."""
    small = "--num_shots 2 --num_receivers 12 --record_s 0.4 --num_workers 1 --families layered"
    model = "run/models/best_ensemble_model.pth"
    train = "--preset smoke --train_data_path d/train --val_data_path d/val --out run --no_tensorboard"
    steps = [
        ("make_data", f"--num_train 4 --num_val 2 --num_test 2 {small} --out d"),
        ("prep_data", "--data_path d/train --analyze --out prep"),
        ("train", f"{train} --max_steps 1"),
        ("train", f"{train} --max_steps 2 --stage all --diffusion_steps 1 --diffusion_width 8 --overwrite"),
        (
            "infer",
            f"--model_path {model} --test_data_path d/test --output_path out --figures 1 --segy --hdf5",
        ),
        ("infer", f"--model_path {model} --test_data_path d/test --output_path sub.npz --misfit none"),
        ("refine", "--prediction_path out --test_data_path d/test --iterations 1 --max_samples 1 --out r"),
        ("evaluate", f"--model_path {model} --test_data_path d/test --train_data_path d/train --out e"),
        ("export", f"--model_path {model} --output m.safetensors"),
    ]
    for name, line in steps:
        code, said = script(name, line, tmp_path)
        assert code == 0, said
    made = ("prep/analysis.json", "out/predictions.csv", "sub.npz", "r/refined.npz", "e/evaluation.md")
    made += ("run/models/diffusion.pth", "m.safetensors", "out/1_0000/vp.sgy", "out/predictions.h5")
    assert [name for name in made if not (tmp_path / name).is_file()] == []


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        ("make_data", "--families layered,marble", 2, "--families marble: expected of"),
        ("make_data", "--out data/vel", 2, "holds a data set; add --overwrite"),
        ("prep_data", "", 2, "--data_path and --segy: expected one of them"),
        ("prep_data", "--segy absent.sgy --model_shape_zx 70 70", 3, "absent.sgy: no such file"),
        ("prep_data", "--data_path data/vel/train --bandpass_high_hz 900 --out o", 2, "Nyquist"),
        ("train", "--train_data_path absent --out o", 3, "absent: no such folder"),
        ("train", "--train_data_path data/vel/train --embed_dim 30 --out o", 2, "--num_heads 4: expected a"),
        ("train", "--train_data_path data/vel/train --stem 0 --out o", 2, "--stem 0: expected 1 or more"),
        ("train", "--train_data_path data/vel/train --num_heads 0 --out o", 2, "--num_heads 0: expected 1"),
        ("train", "--train_data_path data/vel/train --stage diffusion --out o", 2, "no such ensemble"),
        ("infer", f"--model_path {M}", 2, "--test_data_path"),
        ("infer", f"--model_path absent.pth {TEST}", 3, "absent.pth"),
        ("infer", f"--model_path {M} {TEST} --well_log w.csv", 2, "add --use_diffusion"),
        ("infer", f"--model_path {M} {TEST} --use_diffusion --output_path o", 2, "no diffusion stage"),
        ("infer", f"--model_path {M} {TEST} --expected_count 150 --output_path s.npz", 2, "found 2 samples"),
        (
            "infer",
            f"--model_path {M} {TEST} --output_path s.txt",
            2,
            "expected a folder, or a file ending in",
        ),
        ("refine", f"--prediction_path absent {TEST}", 3, "absent: no such folder or .npz"),
        ("evaluate", f"--model_path {M} {TEST} --baselines inversionnet", 2, "must be trained"),
        ("evaluate", "--bench speed", 2, "--bench"),
        ("train", "--train_data_path data/vel/train --augment_scaling --out o", 2, "add --physics_every 0"),
        ("modal_app", "--local --function resume_training --root .", 2, "no training to continue"),
    ],
)
def test_exit_codes(place: Path, name: str, line: str, code: int, message: str):
    """What a user does wrong is one line that says so, with exit code 2 for usage and 3 for data."""
    found, said = script(name, line, place)
    (place / "said.txt").unlink()
    assert found == code and message in error_of(said), said


def test_quick_test_needs_nothing(tmp_path: Path):
    """Without a model and without data one generated sample is predicted, simulated and drawn."""
    code, said = script("infer", "--quick_test --output_path out", tmp_path)
    assert code == 0 and "waveform misfit" in said and "network without training" in said, said
    assert list((tmp_path / "out/figures").glob("*.png"))


@pytest.mark.parametrize(
    ("name", "line", "library"),
    [
        ("export", f"--model_path {M} --format onnx", "onnx"),
        ("modal_app", "", "modal"),
        ("infer", f"--model_path {M} {TEST} --misfit 1 --figures 0 --output_path o", "deepwave"),
    ],
)
def test_missing_libraries(place: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str, library: str):
    """An optional library that is not there is named with the command that installs it."""
    monkeypatch.setitem(sys.modules, library, None)
    code, said = script(name, line, place)
    (place / "said.txt").unlink()
    assert code == 2 and f"pip install {library}" in said and "Traceback" not in said, said
