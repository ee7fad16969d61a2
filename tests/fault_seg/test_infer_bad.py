"""Bad input to inference: one line, the house's exit code, before any long work, and nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import files
from common.checkpoint import Checkpoint, save
from common.errors import DataError, StrataError, UserError
from common.files import FolderLock
from fault_seg import infer as infer_module
from fault_seg import survey
from fault_seg.config_infer import InferConfig
from fault_seg.infer import infer, load
from tests.fault_seg.cases import QUICK, infer_config, noisy_layers, save_model

OVERWRITE = replace(QUICK, overwrite=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and a small cube."""
    folder = tmp_path_factory.mktemp("base")
    save_model(folder / "model.ckpt")
    np.save(folder / "in.npy", noisy_layers((9, 8, 12)))
    return folder


@pytest.fixture
def spot(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it, in which the network may not run."""

    def never(*_: Any) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(survey, "run_network", never)
    return Path(shutil.copytree(base, tmp_path / "spot"))


def settings(folder: Path, **changes: Any) -> InferConfig:
    """Return the inference of the cube."""
    return replace(infer_config(folder / "in.npy", folder / "model.ckpt", folder / "o"), **changes)


def spoil_input(change: Callable[[np.ndarray], Any]) -> Callable[[Path], dict[str, Any]]:
    """Return what writes a changed cube."""

    def spoil(folder: Path) -> dict[str, Any]:
        image = np.load(folder / "in.npy")
        change(image)
        np.save(folder / "in.npy", image)
        return {}

    return spoil


def raw_input(size: int) -> Callable[[Path], dict[str, Any]]:
    """Return what writes a raw file of `size` voxels and asks for 9 x 8 x 12."""

    def spoil(folder: Path) -> dict[str, Any]:
        np.ones(size, "<f4").tofile(folder / "cube.bin")
        return {"input": str(folder / "cube.bin"), "n1": 9, "n2": 8, "n3": 12}

    return spoil


def flags(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    """Return what changes flags; "@" in a text stands for the folder."""
    return lambda folder: {
        k: v.replace("@", str(folder)) if isinstance(v, str) else v for k, v in changes.items()
    }


def bad_model(write: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
    """Return what replaces the model."""

    def spoil(folder: Path) -> dict[str, Any]:
        write(folder / "model.ckpt")
        return {}

    return spoil


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_other_package(path: Path) -> None:
    """Save a checkpoint of another package."""
    save(path, Checkpoint("voxel_ode", "rollout", {}, {}, {"w": torch.zeros(1)}))


def with_wrong_weights(path: Path) -> None:
    """Save weights that do not fit their own config."""
    save(
        path, Checkpoint("fault_seg", "infer", {"network": "hr", "heads": ["dhr"]}, {}, {"w": torch.zeros(1)})
    )


def without_config(path: Path) -> None:
    """Save a checkpoint that does not say what it is."""
    save(path, Checkpoint("fault_seg", "infer", {}, {}, {"w": torch.zeros(1)}))


def existing(name: str) -> Callable[[Path], dict[str, Any]]:
    """Return what makes a file that an output would replace."""

    def spoil(folder: Path) -> dict[str, Any]:
        (folder / name).write_text("{}")
        return {}

    return spoil


def blocked(folder: Path) -> dict[str, Any]:
    """Ask for an output below a file."""
    (folder / "file").write_text("x")
    return {"output": str(folder / "file" / "o")}


def folder_as_output(folder: Path) -> dict[str, Any]:
    """Make a folder where an output shall be."""
    (folder / "o.rgt.npy").mkdir()
    return {}


def dhr_only(path: Path) -> None:
    """Save a model with one head."""
    save_model(path, ("dhr",))


def put(value: float) -> Callable[[np.ndarray], None]:
    """Return what sets one voxel."""

    def change(image: np.ndarray) -> None:
        image[3, 4, 5] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (raw_input(9 * 8 * 12 + 1), DataError, r"cube.bin: 3460 bytes, expected 3456 .*n1 = "),
        (raw_input(7 * 8 * 12), DataError, r"with --n2 8 --n3 12 it fits --n1 7"),
        (raw_input(9 * 8 * 12), DataError, r"all 96 traces are zero or constant"),
        (flags(n1=10, n2=8, n3=12), DataError, r"\(9, 8, 12\), expected \(10, 8, 12\)"),
        (spoil_input(lambda a: a.fill(0)), DataError, r"all 96 traces are zero or constant"),
        (spoil_input(put(np.nan)), DataError, r"nan at sample 3, crossline 4, inline 5 .*--allow_nan"),
        (spoil_input(put(np.inf)), DataError, r"inf at sample 3, crossline 4, inline 5"),
        (flags(input="@/absent.npy"), DataError, r"absent.npy: no such file"),
        (flags(input="@", model="absent"), DataError, r"absent: no such checkpoint file or folder"),
        (flags(input="@/model.ckpt"), UserError, r"model.ckpt: unknown suffix"),
        (flags(model="@/absent.ckpt"), DataError, r"absent.ckpt: no such checkpoint"),
        (flags(model="@/in.npy"), DataError, r"in.npy: suffix .npy"),
        (bad_model(truncate), DataError, r"model.ckpt: not a readable checkpoint"),
        (bad_model(lambda p: p.write_bytes(b"garbage" * 99)), DataError, r"model.ckpt: "),
        (bad_model(lambda p: p.write_bytes(b"")), DataError, r"model.ckpt: .*empty"),
        (bad_model(of_other_package), DataError, r"package 'voxel_ode', expected 'fault_seg'"),
        (bad_model(with_wrong_weights), DataError, r"model.ckpt: its weights do not fit its config"),
        (bad_model(without_config), DataError, r"model.ckpt: its weights do not fit its config"),
        (bad_model(lambda p: save_model(p, kind="refine")), DataError, r"kind refine, expected infer"),
        (existing("o.dhr.npy"), UserError, r"o.dhr.npy: exists; add --overwrite"),
        (existing("o.json"), UserError, r"o.json: exists and is no side-car"),
        (folder_as_output, UserError, r"o.rgt.npy: is a folder"),
        (blocked, UserError, r"file"),
        (flags(format=("segy",)), UserError, r"--format segy: .*in.npy is npy and has no SEG-Y headers"),
        (flags(max_memory=1e-4), UserError, r"--max_memory 0.0001 GiB is too small"),
        (flags(layout="zxy"), UserError, r"zxy"),
    ],
)
def test_bad_input(
    spot: Path, spoil: Callable[[Path], dict[str, Any]], kind: type[StrataError], message: str
):
    """Each case of bad input ends before the network runs, in one line, with its exit code."""
    changes = spoil(spot)
    before = sorted(p.name for p in spot.iterdir())
    with pytest.raises(kind, match=message) as caught:
        infer(settings(spot, **changes), QUICK)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    assert sorted(p.name for p in spot.iterdir()) == before


def test_head_that_the_model_lacks(spot: Path):
    """A head asked for by name must be there; by default it is left out with a notice."""
    dhr_only(spot / "model.ckpt")
    with pytest.raises(UserError, match="--fault: .*model.ckpt has the heads dhr only"):
        infer(settings(spot), QUICK, {"fault": "command line"})
    with pytest.raises(UserError, match="nothing to write"):
        infer(settings(spot, dhr=False), QUICK)
    assert infer(settings(spot), replace(QUICK, dry_run=True))["tiling"] == "blended"


def test_input_is_never_replaced(spot: Path):
    """An output that would be the input itself is refused even with --overwrite."""
    raw = spot / "cube.dhr"
    raw.write_bytes(noisy_layers((9, 8, 12)).tobytes())
    before = raw.read_bytes()
    config = settings(spot, input=str(raw), n1=9, n2=8, n3=12, output=str(spot / "cube"))
    with pytest.raises(UserError, match=r"cube.dhr: is a folder or the input itself"):
        infer(config, OVERWRITE)
    assert raw.read_bytes() == before


def test_disk_too_small(spot: Path, monkeypatch: pytest.MonkeyPatch):
    """Scratch and output volumes must fit on the disk, which is known before the network runs."""
    usage = shutil.disk_usage(spot)._replace(free=40 * 9 * 8 * 12 - 1)  # five scratch and five output volumes
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="needs 34560 bytes, the disk is full with 34559 bytes free"):
        infer(settings(spot), QUICK)


def test_same_output_twice_at_once(spot: Path):
    """A second inference into the same output is refused while the first one runs."""
    lock = FolderLock(spot / "o.scratch")
    with pytest.raises(UserError, match="o.scratch: in use by pid"):
        infer(settings(spot), QUICK)
    lock.release()


def test_scratch_goes_and_strangers_stay(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The scratch folder goes after success and after failure; files of others in it stay."""
    config = settings(base, output=str(tmp_path / "o"))
    infer(config, QUICK)
    assert {p.suffix for p in tmp_path.iterdir()} == {".npy", ".json"}
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def broken(*_: Any, **__: Any) -> None:
        assert (tmp_path / "o.scratch" / "fsem").is_file()
        raise DataError("planted")

    monkeypatch.setattr(infer_module.Attributes, "read", broken)
    with pytest.raises(DataError, match="planted"):
        infer(config, OVERWRITE)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # nor is an output half replaced
    (tmp_path / "o.scratch").mkdir()
    (tmp_path / "o.scratch" / "mine").write_text("x")
    with pytest.raises(DataError, match="planted"):
        infer(config, OVERWRITE)
    assert [p.name for p in (tmp_path / "o.scratch").iterdir()] == ["mine"]


def test_garbage_is_never_executed(tmp_path: Path):
    """A model file that asks for code to be run is refused, not run."""

    class Trap:
        """Creates a file when it is unpickled."""

        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(DataError, match="refused"):
        load(tmp_path / "trap.pth")
    assert not (tmp_path / "executed").exists()


def test_slash_puts_the_files_into_a_folder(base: Path, tmp_path: Path):
    """An output that ends in a slash is a folder; the files are named after the input."""
    infer(settings(base, output=f"{tmp_path}/new/", rgt=False, fault=False), QUICK)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"in.dhr.npy", "in.json"}


@pytest.mark.parametrize("shape", [(40, 24, 8), (20, 1, 30)])
def test_thin_volumes(tmp_path: Path, shape: tuple[int, int, int]):
    """A thin cube or a 2-D line goes through hr and unet; mtl says the least size, exit 2."""
    np.save(tmp_path / "in.npy", noisy_layers(shape))
    for layout, heads in (("hr", ("fault", "dhr", "rgt")), ("unet", ("fault",))):
        model = save_model(tmp_path / f"{layout}.ckpt", heads, layout)
        assert infer(infer_config(tmp_path / "in.npy", model, tmp_path / layout), QUICK)["attributes"]
        assert np.isfinite(np.load(tmp_path / f"{layout}.fsem.npy")).all()
    model = save_model(tmp_path / "mtl.ckpt", layout="mtl")
    with pytest.raises(UserError, match="expected at least 16 voxels an axis for a network of layout mtl"):
        infer(infer_config(tmp_path / "in.npy", model, tmp_path / "mtl"), QUICK)
