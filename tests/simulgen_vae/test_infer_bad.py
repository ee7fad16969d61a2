"""Bad input of the tools around a trained surrogate: one line with what was found and what was expected."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, StrataError, UserError
from common.run import MachineOptions
from simulgen_vae.config_infer import ExportConfig, InferConfig, InvertConfig
from simulgen_vae.infer import infer
from simulgen_vae.invert import invert
from tests.simulgen_vae.cases_infer import QUICK, make_model, write_table

CSV = {
    "text.csv": "x,y,rate\n0.5,0.5,1\n0.5,fast,1\n",
    "nan.csv": "x,y,rate\n0.5,nan,1\n",
    "short.csv": "x,y,rate\n0.5,0.5\n",
    "other.csv": "x,y,speed\n0.5,0.5,1\n",
    "two.csv": "0.5 0.5\n",
    "empty.csv": "",
    "header.csv": "x,y,rate\n",
    "sensors.csv": "node,frame,value,sigma\n3,1,0.5,0.1\n",
    "far.csv": "node,frame,value,sigma\n3,1,0.5,0.1\n64,1,0.5,0.1\n",
    "half.csv": "node,frame,value,sigma\n3,1.5,0.5,0.1\n",
    "sure.csv": "node,frame,value,sigma\n3,1,0.5,0\n",
    "nosigma.csv": "node,frame,value\n3,1,0.5\n",
    "box.csv": "name,low,high\nx,0.4,0.3\n",
    "boxname.csv": "name,low,high\nz,0.4,0.5\n",
    "boxtext.csv": "name,low,high\nx,small,0.5\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model `plain`, one that takes pictures `seeing`, and bad files."""
    folder = tmp_path_factory.mktemp("bad")
    make_model(folder / "plain")
    make_model(folder / "seeing", pictures=True)
    for name, text in CSV.items():
        (folder / name).write_text(text)
    write_table(folder / "good.csv", np.array([[0.5, 0.5, 1.0]]))
    np.save(folder / "wide.npy", np.zeros((2, 4)))
    np.save(folder / "nan.npy", np.array([[0.5, np.nan, 1.0]]))
    np.save(folder / "objects.npy", np.array([["a", 1, 2]], dtype=object), allow_pickle=True)
    np.save(folder / "text.npy", np.array([["a", "b", "c"]]))
    np.savez(folder / "named.npz", values=np.zeros((1, 3)))
    np.save(folder / "latents.npy", np.zeros((2, 5), np.float32))
    np.save(folder / "flat.npy", np.zeros((4, 60), np.float32))
    np.save(folder / "hole.npy", np.full((4, 64), np.nan, np.float32))
    np.save(folder / "grey.npy", np.zeros((1, 8, 8), np.float32))
    np.save(folder / "pictures.npy", np.zeros((2, 8, 8), np.uint8))
    (folder / "cut.npy").write_bytes((folder / "wide.npy").read_bytes()[:90])
    (folder / "nothing").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/0.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return folder


INFER: list[tuple[dict[str, Any], type[StrataError], str]] = [
    ({"params": "good.cvs"}, DataError, "--params good.cvs: no such file or folder; did you mean good.csv"),
    ({"params": "text.csv"}, DataError, "text.csv: row 3, column y: 'fast', expected a finite number"),
    ({"params": "nan.csv"}, DataError, "nan.csv: row 2, column y: 'nan'"),
    ({"params": "short.csv"}, DataError, "short.csv: row 2 has 2 cells, expected 3"),
    ({"params": "other.csv"}, DataError, "columns x, y, speed, without rate; expected x, y, rate"),
    ({"params": "two.csv"}, DataError, "two.csv: 2 columns, expected 3: x, y, rate"),
    ({"params": "empty.csv"}, DataError, "empty.csv: is empty"),
    ({"params": "header.csv"}, DataError, "header.csv: holds a header and no rows"),
    ({"params": "wide.npy"}, DataError, "wide.npy: 4 columns, expected 3: x, y, rate"),
    ({"params": "nan.npy"}, DataError, "nan.npy: row 0, column 1 is not finite"),
    ({"params": "objects.npy"}, DataError, "objects.npy: no npy file of numbers"),
    ({"params": "text.npy"}, DataError, r"text.npy: <U1 \(1, 3\), expected numbers \[N, P\]"),
    ({"params": "cut.npy"}, DataError, "cut.npy: no npy file of numbers"),
    ({"params": "named.npz"}, DataError, r"named.npz: holds \['values'\], expected an array params or P"),
    ({"params": "0.5,0.5"}, UserError, "--params 0.5,0.5: 2 numbers, expected 3 finite ones: x, y, rate"),
    ({"params": "x=1,y=2,z=3"}, UserError, "rate, z unknown or missing, expected x, y, rate"),
    ({"params": "0.5,0.5,inf"}, UserError, "3 numbers, expected 3 finite ones"),
    ({"params": "good.csv", "images": "nothing"}, UserError, "trained without pictures; leave it out"),
    ({"params": "good.csv", "bounds": "1,0"}, UserError, "--bounds 1,0: expected LO,HI"),
    ({"params": "good.csv", "dirichlet": "absent.npz"}, DataError, "absent.npz: no such file"),
    ({"params": "good.csv", "field": 1}, UserError, "--field 1: the model has 1 fields"),
    ({"params": "good.csv", "max_memory": 1e-9}, UserError, "one trajectory takes .* GiB; raise it"),
    ({"interpolate": "0,99"}, UserError, r"--interpolate 0,99: expected samples 0\.\.31"),
    ({"latents": "latents.npy"}, DataError, r"latents.npy: float32 \(2, 5\), expected numbers \[N, 6\]"),
    ({"latents": "absent.npy"}, DataError, "--latents absent.npy: no such file"),
    ({"model": "nothing", "sample": 2}, DataError, "nothing: no trained model; searched"),
    ({"model": "good.csv", "sample": 2}, DataError, "good.csv"),
    ({"model": "seeing", "params": "good.csv"}, UserError, "--images: missing, the model takes pictures"),
    (
        {"model": "seeing", "images": "pictures.npy"},
        UserError,
        "--params: missing, the model takes x, y, rate",
    ),
    (
        {"model": "seeing", "params": "good.csv", "images": "pictures.npy"},
        DataError,
        "pictures.npy: 2 pictures for 1 rows of parameters",
    ),
    (
        {"model": "seeing", "params": "good.csv", "images": "nothing"},
        DataError,
        "nothing: no .png picture there",
    ),
    ({"model": "seeing", "params": "good.csv", "images": "broken"}, DataError, "0.png: no readable picture"),
    ({"model": "seeing", "params": "good.csv", "images": "grey.npy"}, DataError, "expected uint8"),
]


@pytest.mark.parametrize(("flags", "error", "message"), INFER)
def test_infer(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    error: type[StrataError],
    message: str,
):
    """Nothing is written, and the line says which file or flag, what was found, what was expected."""
    monkeypatch.chdir(place)
    with pytest.raises(error, match=message) as caught:
        infer(InferConfig(**{"model": "plain", "figures": False, **flags}), QUICK, place / "out")
    assert "\n" not in str(caught.value) and not list((place / "out").iterdir())


INVERT: list[tuple[dict[str, Any], type[StrataError], str]] = [
    ({"sensors": "absent.csv"}, DataError, "--sensors absent.csv: no such file"),
    ({"sensors": "far.csv"}, DataError, r"far.csv: reading 2: node 64, expected 0\.\.63"),
    ({"sensors": "half.csv"}, DataError, r"half.csv: reading 1: frame 1\.5, expected 0\.\.3"),
    ({"sensors": "sure.csv"}, DataError, "sure.csv: reading 1: sigma 0, expected above 0"),
    ({"sensors": "nosigma.csv"}, DataError, "nosigma.csv: columns node, frame, value, without sigma"),
    ({"target": "flat.npy"}, DataError, r"flat.npy: float32 \(4, 60, 1\), expected numbers .* \(4, 64, 1\)"),
    ({"target": "hole.npy"}, DataError, "hole.npy: 256 values are NaN or infinite"),
    ({"target": "absent.npy"}, DataError, "--target absent.npy: no such file"),
    ({"target_row": 99}, UserError, r"--target_row 99: expected a sample 0\.\.31"),
    ({"sensors": "sensors.csv", "bounds_file": "box.csv"}, DataError, "box.csv: row 2: .*expected low below"),
    ({"sensors": "sensors.csv", "bounds_file": "boxname.csv"}, DataError, "for one of x, y, rate"),
    ({"sensors": "sensors.csv", "bounds_file": "boxtext.csv"}, DataError, "expected name, low, high"),
    ({"sensors": "sensors.csv", "model": "seeing", "space": "params"}, UserError, "use --space latents"),
    (
        {"sensors": "sensors.csv", "space": "latents", "bounds_file": "box.csv"},
        UserError,
        "latents are sought, which have no such box",
    ),
]


@pytest.mark.parametrize(("flags", "error", "message"), INVERT)
def test_invert(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    error: type[StrataError],
    message: str,
):
    """A target or reading that does not fit the model is refused before any search."""
    monkeypatch.chdir(place)
    with pytest.raises(error, match=message):
        invert(InvertConfig(**{"model": "plain", "figures": False, **flags}), QUICK, place / "inverse")
    assert not list((place / "inverse").iterdir())


def test_flags_that_exclude_each_other():
    """One source of predictions, one target, sensible numbers: said before anything is read."""
    bad: list[tuple[Any, dict[str, Any], str]] = [
        (InferConfig, {}, "--params, --images, --sample, --interpolate or --latents: expected one"),
        (InferConfig, {"params": "a", "sample": 2}, "--params --sample: expected one source"),
        (InferConfig, {"sample": 1, "latents": "x"}, "--sample --latents: expected one source"),
        (InferConfig, {"interpolate": "1"}, "--interpolate 1: expected two sample numbers"),
        (InferConfig, {"sample": -1}, "--sample -1"),
        (InferConfig, {"sample": 1, "num_points": 1}, "--num_points 1"),
        (InvertConfig, {}, "expected exactly one of them"),
        (InvertConfig, {"target": "a", "num_test": 2}, "expected exactly one of them"),
        (InvertConfig, {"target": "a", "lr": 0.0}, "--lr 0.0"),
        (InvertConfig, {"target": "a", "steps": -1}, "--steps -1"),
        (ExportConfig, {"to": ()}, "--to: expected one or more of"),
        (ExportConfig, {"num": 0}, "--num 0"),
    ]
    for kind, flags, message in bad:
        with pytest.raises(ValueError, match=re.escape(message)):
            kind(**flags)


def test_files_are_not_replaced(place: Path, tmp_path: Path):
    """A second run into the same folder is refused until --overwrite; the first files stay as they were."""
    flags = InferConfig(model=str(place / "plain"), params="0.5,0.5,1", figures=False)
    infer(flags, QUICK, tmp_path)
    before = (tmp_path / "fields.h5").read_bytes()
    with pytest.raises(UserError, match=r"fields\.h5: exists already; add --overwrite"):
        infer(flags, QUICK, tmp_path)
    assert (tmp_path / "fields.h5").read_bytes() == before
    infer(flags, MachineOptions(device="cpu", precision="fp32", overwrite=True), tmp_path)


def test_latents_of_another_model(place: Path, tmp_path: Path):
    """Latent files that are not of the model beside them are refused, and missing ones are said to be so."""
    import shutil

    folder = Path(shutil.copytree(place / "plain", tmp_path / "model"))
    np.save(folder / "model_save/xs.npy", np.zeros((32, 3, 2), np.float32))
    with pytest.raises(DataError, match="expected .* of the model beside them"):
        infer(InferConfig(model=str(folder), params="0.5,0.5,1"), QUICK, tmp_path / "out")
    (folder / "model_save/xs.npy").unlink()
    with pytest.raises(DataError, match="--interpolate needs the latents"):
        infer(InferConfig(model=str(folder), interpolate="0,1"), QUICK, tmp_path / "out")
    found = infer(InferConfig(model=str(folder), params="0.5,0.5,1", figures=False), QUICK, tmp_path / "out")
    assert found["num"] == 1
