"""infer, export and invert of simulgen_vae as a user types them: they work together; exit codes are true."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_scripts import ROOT, call, error_of
from tests.simulgen_vae.cases_infer import make_model, write_table

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, with a space in its name, that holds a run, parameters and readings."""
    folder = tmp_path_factory.mktemp("my runs")
    make_model(folder / "run")
    write_table(folder / "new.csv", np.array([[0.5, 0.5, 1.0], [0.4, 0.6, 1.5]]))
    (folder / "sensors.csv").write_text("node,frame,value,sigma\n27,0,0.9,0.05\n30,2,0.4,0.05\n")
    (folder / "other.csv").write_text("a,b\n1,2\n")
    (folder / "text.csv").write_text("x,y,rate\n0.5,half,1\n")
    return folder


def script(name: str, line: str, folder: Path) -> tuple[int, str]:
    """Run a script of simulgen_vae in a folder."""
    return call(ROOT / f"scripts/simulgen_vae/{name}.py", [*line.split(), *CPU], folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("infer", "--model-path run --params new.csv --on_ood refuse --bounds 0,1:hard --dry_run"),
        ("infer", "--model run/model_save/SimulGen-VAE --params x=0.5,y=0.5,rate=1 --batch-size 2 --dry-run"),
        ("infer", "--model run --sample 4 --seed 3 --no-figures --max-memory 0.5 --dry_run 1"),
        ("infer", "--model run --interpolate 0,5 --num-points 7 --write_latents --format npy --dry_run"),
        ("export", "--model run --to torch_export safetensors vtk npy --out export --num 2 --dry_run"),
        ("export", "--model_path run --to vtk --params new.csv --nonnegative hard --dry-run"),
        ("invert", "--model run --sensors sensors.csv --starts 8 --steps 300 --prior-weight 1 --dry_run"),
        ("invert", "--model_path run --target_row 3 --space latents --dry_run"),
        ("invert", "--model run --num_test 10 --sigma 0.1 --polish 5 --lr 0.02 --dry-run"),
    ],
)
def test_commands(place: Path, tmp_path: Path, name: str, line: str):
    """Each command runs with --dry_run, in either spelling, from the user's folder, and writes no file."""
    work = Path(shutil.copytree(place, tmp_path / "work"))
    before = {p for p in work.rglob("*") if p.is_file()}
    code, said = script(name, line, work)
    assert code == 0, said
    assert {p for p in work.rglob("*") if p.is_file()} - before == {work / "said.txt"}


def test_from_parameters_to_files(place: Path, tmp_path: Path):
    """infer, invert, infer again with what was found, export: what each leaves is what the next one needs."""
    work = Path(shutil.copytree(place, tmp_path / "work"))
    steps = [
        ("infer", "--model run --params new.csv --out out --no_figures", "2 trajectories"),
        ("invert", "--model run --target_row 4 --starts 2 --steps 30 --out inverse --no_figures", "misfit"),
        ("infer", "--model run --params inverse/best.csv --out again --no_figures", "1 trajectories"),
        (
            "export",
            "--model run --to safetensors vtk --params inverse/best.csv --out export",
            "differs by at",
        ),
    ]
    for name, line, expected in steps:
        code, said = script(name, line, work)
        assert code == 0 and expected in said, said
    names = {p.name for p in (work / "export").iterdir()}
    assert names >= {"weights.safetensors", "card.json", "sample_0.pvd", "sample_0_grid.pvd", "sample_0"}
    assert {p.name for p in (work / "out").iterdir()} == {"fields.h5", "ood.csv", "infer.json"}


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        ("infer", "--model run", 2, "--params, --images, --sample, --interpolate or --latents: expected one"),
        ("infer", "--model absent --sample 2", 3, "absent: no trained model; searched"),
        (
            "infer",
            "--model run --params new.cvs",
            3,
            "--params new.cvs: no such file or folder; did you mean",
        ),
        ("infer", "--model run --params other.csv", 3, "without x, y, rate; expected x, y, rate"),
        ("infer", "--model run --params text.csv", 3, "text.csv: row 2, column y: 'half'"),
        ("infer", "--model run --params 9,9,9 --on_ood refuse", 3, "unlike the training"),
        ("infer", "--model run --params new.csv --out sensors.csv", 2, "sensors.csv"),
        ("export", "--model run --to gltf", 2, "invalid choice: 'gltf'"),
        ("export", "--model run --data absent.h5 --to npy", 3, "absent.h5: no such data set"),
        ("invert", "--model run", 2, "expected exactly one of them"),
        ("invert", "--model run --sensors other.csv", 3, "without node, frame, value, sigma"),
    ],
)
def test_exit_codes(place: Path, name: str, line: str, code: int, message: str):
    """What a user does wrong is one line that says so, with exit code 2 for usage and 3 for data."""
    found, said = script(name, line, place)
    (place / "said.txt").unlink()
    assert found == code and message in error_of(said), said
