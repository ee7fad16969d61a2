"""The commands of simulgen_vae as a user types them: they parse and work together; exit codes are true."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from simulgen_vae.config_files import CONDITION_KEYS
from simulgen_vae.train import train
from tests.cli.test_scripts import ROOT, call, error_of
from tests.simulgen_vae.cases_vae import config, fields, options, params, write_data, write_pictures
from tests.simulgen_vae.conditions import write_condition

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]
DATA_TOOLS = ("make_data", "prep_data")
DOCS = ROOT / "docs" / "simulgen_vae.md"
TINY = "--filters 8 6 --lc_filters 8 --latent_dim_end 4 --latent_dim 2 --num_modes 6 --conditioner gp"
NUM = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, with a space in its name, that holds every file that the page names."""
    folder = tmp_path_factory.mktemp("my work")
    (folder / "my_runs").mkdir()
    for i, u in enumerate(fields(NUM)):
        np.save(folder / f"my_runs/run{i}.npy", u[..., 0])
    lines = ["amplitude,speed,offset", *(",".join(map(str, row)) for row in params(NUM))]
    (folder / "my_runs.csv").write_text("\n".join(lines) + "\n")
    (folder / "new.csv").write_text("\n".join([lines[0], *lines[3:6]]) + "\n")
    (folder / "sensors.csv").write_text("node,frame,value,sigma\n3,2,1.4,0.05\n9,6,1.1,0.05\n")
    flags = "--data my_runs --param_dir my_runs.csv --path data/my.h5 --num_modes 6 --fit_basis"
    code, said = script("prep_data", [*flags.split(), "--val_fraction", "0.25"], folder)
    assert code == 0, said
    (folder / "data/simulgen").mkdir()
    for name in ("wave", "advdiff"):
        shutil.copy(folder / "data/my.h5", folder / f"data/simulgen/{name}.h5")
    write_data(folder / "input_data/dataset1.npz")
    write_pictures(folder / "input_data/dataset5.npz")
    for k in (2, 3, 4):
        write_data(folder / f"input_data/dataset{k}.npz", frames=1 if k == 4 else 9)
    result = train(config(folder / "data/my.h5", conditioner="gp"), options(folder / "results/my"))
    assert result is not None and result.exit_code == 0
    for name in ("wave", "advdiff", "burgers"):
        shutil.copytree(folder / "results/my", folder / f"results/{name}")
    return folder


def script(name: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a script of simulgen_vae in a folder."""
    return call(ROOT / f"scripts/simulgen_vae/{name}.py", arguments, folder)


def files(folder: Path) -> set[Path]:
    """Return what lies in a folder, but for what `call` leaves."""
    return {p for p in folder.rglob("*") if p.is_file() and p.name not in ("said.txt", ".lock")}


def commands() -> list[str]:
    """Return the command lines of the page."""
    found = re.findall(r"^python scripts/simulgen_vae/(.+)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_page(place: Path, tmp_path: Path, line: str):
    """Every command of docs/simulgen_vae.md runs dry, from the user's folder, and writes no file."""
    name, *arguments = shlex.split(line)
    # A data set that is there is not made again: make_data runs where there is none.
    folder = tmp_path if name == "make_data.py" else place
    before = files(folder)
    if name == "demo.py":
        arguments.append("--help")
    else:
        arguments.append("--dry_run")
    if name == "prep_data.py":
        arguments.append("--overwrite")  # the file that the next commands of the page read is there
    if name.removesuffix(".py") not in (*DATA_TOOLS, "demo"):
        arguments += CPU
    code, said = script(name.removesuffix(".py"), arguments, folder)
    assert code == 0, said
    assert files(folder) == before


def test_the_page_names_every_script():
    """Each script of the package stands in the page with a command."""
    named = {line.split(".py")[0] for line in commands()}
    assert named == {p.stem for p in (ROOT / "scripts/simulgen_vae").glob("[a-z]*.py")}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train", "--preset 1 --plot 0 --filters 16 8 --size=small"),
        ("train", "--preset=2 --plot=1 --size large --num-modes 6"),
        ("train", "--preset=3 --plot=2 --num_modes 6 --filters 16 8 --load_all 1"),
        ("train", "--preset 4 --epochs 3 --front-end none"),
        ("train", "--preset 5 --num_modes 6 --image_threshold 128"),
        ("train", "--data data/my.h5 --preset smoke --use_e2e_training yes --e2e-loss-function MAE"),
        ("train", "--data input_data/dataset5.npz --preset smoke --input_type fusion --no_use_attention"),
        ("train", "--data data/my.h5 --lc_only 1 --vae results/my --out results/other --preset smoke"),
        ("launch_ddp", "--gpus 2 --master-port 29500 --data data/my.h5 --preset smoke"),
        ("evaluate", "--model_path results/my --baselines none --recon-iter 2 --no_figures"),
        ("analyze_latent", "--model_path results/my/model_save --part test --traversals 2 --steps 3"),
        ("prep_data", "--data input_data/dataset1.npz --out data/x.h5 --fit_basis 1 --num-modes 4"),
        ("make_data", "--kind wave --num 4 --nx 8 --ny 4 --frames 3 --format npy --out w.npy"),
    ],
)  # fmt: skip
def test_both_spellings_and_every_preset(place: Path, name: str, line: str):
    """Presets 1 to 5 with their data sets, --plot 0 to 2, the launcher, both spellings: all run dry."""
    before = files(place)
    arguments = [*line.split(), "--dry-run", *(CPU if name not in DATA_TOOLS else [])]
    code, said = script(name, arguments, place)
    assert code == 0, said
    assert files(place) == before


def test_from_runs_to_report(place: Path, tmp_path: Path):
    """prep_data, train, resume, evaluate, analyze_latent: what each leaves is what the next one needs."""
    work = tmp_path / "d"
    shutil.copytree(place / "my_runs", work / "my_runs")
    shutil.copy(place / "my_runs.csv", work)
    quick = f"--data my.h5 --out run --batch_size 8 --lc_batch_size 8 --no_tensorboard {TINY}"
    steps = [
        ("prep_data", "--data my_runs --param_dir my_runs.csv --path my.h5 --fit_basis --num_modes 6"),
        ("train", f"{quick} --epochs 2 --lc_epochs 1"),
        ("train", f"{quick} --epochs 2 --lc_epochs 1 --resume auto"),
        ("train", f"{quick} --lc_epochs 2 --lc_only 1"),
        ("evaluate", "--model run --out report --baselines rbf --num 4"),
        ("analyze_latent", "--model run --out latents --traversals 2 --steps 3"),
    ]
    told = []
    for name, line in steps:
        code, said = script(name, line.split() + (CPU if name != "prep_data" else []), work)
        assert code == 0, said
        told.append(said)
    assert "6 modes, as stored in my.h5" in told[1]
    assert {p.name for p in (work / "latents").iterdir()} >= {
        "latents.json",
        "pca.png",
        "kl.png",
        "traversals.png",
    }
    found = json.loads((work / "report/evaluation.json").read_text())
    assert (
        found["methods"]["ours"]["summary"]["relative_l2"]
        < found["methods"]["mean_field"]["summary"]["relative_l2"]
    )


def test_condition_file_of_every_key(place: Path, tmp_path: Path):
    """A condition file with every key is read; the run keeps each value's origin; the command line wins."""
    text = write_condition(config(Path("unused"), e2e_vae_model_path="", param_dir="", num_var=1))
    text = re.sub(r"^Training_epochs .*", "Training_epochs 1", text, flags=re.MULTILINE)
    (tmp_path / "input_data").mkdir()
    shutil.copy(place / "input_data/dataset1.npz", tmp_path / "input_data")
    (tmp_path / "input_data/condition.txt").write_text(text)
    line = f"--lc_epochs 1 --out run --no_tensorboard {TINY}"
    code, said = script("train", [*line.split(), *CPU], tmp_path)
    assert code == 0, said
    stored = json.loads((tmp_path / "run/config.json").read_text())
    origins = stored["origins"]
    assert origins["epochs"].endswith("condition.txt") and origins["lc_epochs"] == "command line"
    given = {"lc_epochs", "latent_dim", "latent_dim_end"}
    assert {k for k in CONDITION_KEYS.values() if origins[k].endswith("condition.txt")} >= (
        set(CONDITION_KEYS.values()) - given - {"param_dir", "param_data_type", "e2e_vae_model_path"}
    )
    assert stored["config"]["epochs"] == 1 and stored["config"]["lc_epochs"] == 1


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        ("train", "--data absent.h5", 3, "absent.h5: no such data set"),
        ("train", "--dataset 9", 3, "searched input_data/dataset9.*, dataset9.*, the nearest is"),
        ("train", "--data data/my.h5 --num_param 4", 3, "--num_param 4, found 3 parameter columns"),
        ("train", "--data data/my.h5 --dim3 21", 3, "Dim3 is 21, the data has 20"),
        ("train", "--data data/my.h5 --dim1 7", 3, "Dim1 is 7, the data has 48"),
        ("train", "--data data/my.h5 --lc_only 1 --out nowhere", 3, "no trained model; searched"),
        ("train", "--data data/my.h5 --use_ddp", 2, "torchrun --nproc_per_node=2"),
        ("train", "--data data/my.h5 --condition_file no.txt", 2, "--condition_file no.txt: cannot be read"),
        ("train", "--data data/my.h5 --filters 8", 2, "expected two or more stages"),
        ("train", "--data data/my.h5 --input_type image", 3, "expected what --input_type image needs"),
        ("train", "--data data/my.h5 --bounds 2,1", 2, "expected LO,HI with LO below HI"),
        ("train", "--data data/my.h5 --dirichlet no.npz", 3, "no.npz: no such file"),
        ("train", "--data data/my.h5 --balance wave", 2, "--balance"),
        ("train", "--data data/my.h5 --residual_weight 1", 2, "no residual is set"),
        ("train", "--data my_runs.csv", 3, "my_runs.csv"),
        ("train", "--data data/my.h5 --out my_runs.csv --preset smoke", 2, "my_runs.csv"),
        ("train", "--data data/my.h5 --preset nine", 2, "invalid choice: 'nine'"),
        ("launch_ddp", "--confg x", 2, "--confg: unknown flag"),
        ("launch_ddp", "--gpus 0", 2, "--gpus 0: expected 1 or more"),
        ("evaluate", "--model data/my.h5", 3, "my.h5: "),
        ("evaluate", "--model results/my --data input_data/dataset1.npz", 3, "not the data, split and"),
        ("evaluate", "--model results/none", 3, "no trained model; searched"),
        ("analyze_latent", "--model results/my --frame 9 --out x", 2, "expected a frame below 9"),
        ("analyze_latent", "--model results/my --steps 1", 2, "--steps 1"),
        ("prep_data", "--data absent.npy --check", 3, "absent.npy: no such file"),
        ("prep_data", "--data my_runs --param_dir no.csv --check", 3, "--param_dir no.csv: no such file"),
        ("prep_data", "--data my_runs --out x.npy", 2, "suffix .npy, expected .h5 or .hdf5; name x.h5"),
        ("train", "--data my_runs --param_dir my_run.csv", 3, "my_run.csv; did you mean my_runs.csv?"),
        ("train", "--data my_runs --param_dir results", 3, "results holds no CSV file and no picture"),
        ("launch_ddp", "--gpus 2 --data nothere.h5", 3, "nothere.h5: no such data set; check --data"),
        ("launch_ddp", "--data data/my.h5 --lc_only 1 --out nowhere", 3, "no trained model; searched"),
        ("make_data", "--kind wave --path w.xyz", 2, "suffix .xyz, expected .h5 or .hdf5"),
        ("make_data", "--kind wave --out w.npy", 2, "or .hdf5 for --format h5; add --format npy"),
        ("make_data", "--kind wave --nx 8 --ny 8", 2, "expected nx = 2 ny"),
        ("make_data", "--path new.h5 --kind wave --write_params speed", 2, "speed: expected some of cx cy"),
    ],
)  # fmt: skip
def test_exit_codes(place: Path, name: str, line: str, code: int, message: str):
    """What a user does wrong is one line that says so, with exit code 2 for usage and 3 for data."""
    found, said = script(name, line.split() + (CPU if name not in DATA_TOOLS else []), place)
    assert found == code and message in error_of(said), said
