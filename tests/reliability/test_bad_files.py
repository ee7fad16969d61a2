"""Every file that a package reads, broken in every common way: one line with its name, exit code 2 or 3.

The data of `five.py` are made once; each test breaks one file of them, runs the command that reads it, and
puts the file back.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.reliability.five import BY_NAME, QUIET, call, error_line, make_data, training
from tests.toy_runs import run

pytestmark = [pytest.mark.reliability, pytest.mark.promise("R9")]


@dataclass(frozen=True)
class Reader:
    """A command and one of the files that it reads.

    Attributes:
        package: the package.
        script: the script.
        flags: its flags; the data are in the current folder.
        file: the file that is broken.
        harmless: ways of breaking it that leave a legal file.
    """

    package: str
    script: str
    flags: str
    file: str
    harmless: tuple[str, ...] = ()


TRAIN = {name: f"{case.train} {QUIET} --out bad" for name, case in BY_NAME.items()}
RAW = ("garbage", "zeroed")  # any bytes of the right number are a legal raw file
OPTIONAL = ("missing", "folder")  # without the file there is another way to go on
SIZES = "--n1 20 --n2 16 --n3 24"
FAULT_INFER = "--output out/x --no_figures --device cpu --threads 1 --model run/last.ckpt --overwrite"
FACIES_GENERATE = "--how_many 1 --out_path out --device cpu --threads 1 --overwrite"
VELOCITY_INFER = "--out out --device cpu --threads 1 --overwrite"
READERS = (
    Reader("fault_seg", "train", TRAIN["fault_seg"], "d/data_train/0.bin", RAW),
    Reader("fault_seg", "train", TRAIN["fault_seg"], "d/target_train/0_fsem.bin", ("zeroed",)),
    Reader("fault_seg", "infer", f"--input cube.npy {FAULT_INFER}", "cube.npy"),
    Reader(
        "fault_seg", "infer", f"--input cube.bin {SIZES} {FAULT_INFER}", "cube.bin", ("garbage", "zeroed")
    ),
    Reader("fault_seg", "infer", f"--input cube.h5 {FAULT_INFER}", "cube.h5"),
    Reader("fault_seg", "infer", f"--input cube.npy {FAULT_INFER}", "run/last.ckpt"),
    Reader("voxel_ode", "check_h5", "raw/v2.4_0001.h5", "raw/v2.4_0001.h5"),
    Reader("voxel_ode", "train", TRAIN["voxel_ode"], "d/stats.json"),
    Reader("voxel_ode", "train", TRAIN["voxel_ode"], "d/train/{first}"),
    Reader("simulgen_vae", "train", TRAIN["simulgen_vae"], "d.h5"),
    Reader("simulgen_vae", "prep_data", "--data u.npy --check", "u.npy"),
    Reader("facies_gan", "prep_data", "--input_path d --check", "d/facies/xz_crossline_000.png"),
    Reader("facies_gan", "prep_data", "--input_path d --check", "d/wells/wells_mapping.npz", OPTIONAL),
    Reader("facies_gan", "prep_data", "--input_path d --check", "d/palette.json", OPTIONAL),
    Reader("facies_gan", "generate", f"--model_path run {FACIES_GENERATE}", "run/model.pt", OPTIONAL),
    Reader("facies_gan", "generate", f"--model_path run --hard_data w.csv {FACIES_GENERATE}", "w.csv"),
    Reader("velocity_inversion", "train", TRAIN["velocity_inversion"], "d/train/data1.npy"),
    Reader("velocity_inversion", "train", TRAIN["velocity_inversion"], "d/train/model1.npy"),
    Reader("velocity_inversion", "train", TRAIN["velocity_inversion"], "d/train/geometry.json"),
    Reader(
        "velocity_inversion",
        "infer",
        f"--test_data_path d/test --model_path run/models/best_ensemble_model.pth {VELOCITY_INFER}",
        "run/models/best_ensemble_model.pth",
    ),
)
WAYS = ("empty", "cut", "garbage", "zeroed", "text", "folder", "missing", "unreadable")


def break_file(path: Path, way: str) -> None:
    """Damage a file in one of `WAYS`."""
    content = path.read_bytes()
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
    elif way != "missing":
        noise = np.random.default_rng(3).integers(0, 256, len(content), dtype=np.uint8).tobytes()
        head = bytes(min(16, len(content)))
        damaged = {
            "empty": b"",
            "cut": content[: len(content) * 2 // 3],
            "garbage": noise,
            "zeroed": head + content[len(head) :],
            "text": b"hello, this is no data\n",
        }
        path.write_bytes(damaged[way])


_PLACES: dict[str, Path] = {}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders by package, filled on demand by `place_of`."""
    _PLACES["root"] = tmp_path_factory.mktemp("corpus")
    return _PLACES


def place_of(places: dict[str, Path], package: str) -> Path:
    """Return the package's folder with data, a trained model and single input files."""
    if package in places:
        return places[package]
    case, folder = BY_NAME[package], places["root"] / package
    make_data(case, folder)
    if package in ("fault_seg", "facies_gan", "velocity_inversion"):
        assert run(training(case, folder, "run"), folder / "said.txt", 300) == 0
    if package == "fault_seg":
        cube = np.fromfile(folder / "d/data_valid/0.bin", "<f4").reshape(24, 16, 20).transpose(2, 1, 0)
        np.save(folder / "cube.npy", np.ascontiguousarray(cube))
        shutil.copy(folder / "d/data_valid/0.bin", folder / "cube.bin")
        import h5py

        with h5py.File(folder / "cube.h5", "w") as file:
            file["volume"] = cube
    if package == "facies_gan":
        (folder / "w.csv").write_text("col,row,facies\n3,4,0\n5,6,1\n")
    if package == "simulgen_vae":
        np.save(folder / "u.npy", np.random.default_rng(0).standard_normal((6, 5, 40)).astype("f4"))
    places[package] = folder
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", READERS, ids=lambda r: f"{r.package}-{r.script}-{Path(r.file).name}")
def test_broken_file(places: dict[str, Path], reader: Reader, way: str):
    """A broken input is one line that names it, and exit code 2 or 3; never a traceback."""
    if way in reader.harmless:
        pytest.skip("leaves a legal file")
    if way == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = place_of(places, reader.package)
    first = next(iter(sorted((folder / "d/train").glob("*.h5"))), Path("none")).name
    path = folder / reader.file.format(first=first)
    kept = path.with_name(path.name + ".kept")
    shutil.copy2(path, kept)
    try:
        break_file(path, way)
        for name in ("bad", "out", ".cache"):
            shutil.rmtree(folder / name, ignore_errors=True)
        code, said = call(BY_NAME[reader.package].script(reader.script), reader.flags, folder)
    finally:
        if path.is_dir():
            path.rmdir()
        kept.replace(path)
    assert code in (2, 3), f"{code}: {said[-1500:]}"
    message = error_line(said)
    named = path.stem if way != "missing" else reader.file.split("/")[0].split(".")[0]
    assert named in message, message
