"""Data sets of the generator: the tree, what describes it, and that a sample is its seed and number alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import figures
from common.errors import UserError
from common.run import BasicOptions
from common.sampling import Draw
from fault_seg.config import DATA_SET_PRESETS, DataConfig
from fault_seg.dataset import VolumePairs
from fault_seg.make_data import make_data
from fault_seg.model import HEADS
from fault_seg.synthetic import GENERATOR_VERSION, make_sample, preset
from fault_seg.volumes import read_volume

SHAPE = (18, 16, 20)
TARGETS = ("rgt", "dhr", "fsem", "fdip", "fstrike")


def make(out: Path, ntrain: int = 2, nvalid: int = 1, workers: int = 0, **changes: Any) -> dict[str, Any]:
    """Write a tiny data set."""
    config = DataConfig(ntrain, nvalid, "smoke", *SHAPE, figures=False)
    overwrite = changes.pop("overwrite", False)
    return make_data(replace(config, **changes), BasicOptions(overwrite), out, 4, workers)


def tree(out: Path) -> dict[str, bytes]:
    """Return all files of samples with their bytes."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.bin"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of two training samples and one held out."""
    out = tmp_path_factory.mktemp("made") / "data set"
    make(out)
    return out


def test_tree(made: Path):
    """Images, targets and degraded volumes lie where training and refining look for them."""
    expected = set()
    for part, count in (("train", 2), ("valid", 1)):
        for i in range(count):
            expected |= {f"data_{part}/{i}.bin"}
            expected |= {f"{kind}_{part}/{i}_{name}.bin" for kind in ("data", "target") for name in TARGETS}
    assert set(tree(made)) == expected
    assert {len(data) for data in tree(made).values()} == {4 * int(np.prod(SHAPE))}
    for part, count in (("train", 2), ("valid", 1)):
        pairs = VolumePairs(made / f"data_{part}", made / f"target_{part}", (0, 0, 0), HEADS)
        pairs.check()
        assert len(pairs) == count and pairs.shape == SHAPE


def test_files_hold_the_sample(made: Path):
    """The file of a sample is the generator's volume, axes in their places; held-out ones come after."""
    generator = replace(preset("smoke"), shape=SHAPE)
    for folder, number, index in (("train", 1, 1), ("valid", 0, 2)):
        sample = make_sample(4, index, generator)
        image = read_volume(made / f"data_{folder}/{number}.bin", SHAPE)
        np.testing.assert_array_equal(image, sample.image)
        for name in TARGETS:
            target = read_volume(made / f"target_{folder}/{number}_{name}.bin", SHAPE)
            np.testing.assert_array_equal(target, getattr(sample, name))


def test_description(made: Path):
    """dataset.json tells sizes, seed, generator and version, and each sample's share of fault voxels."""
    told = json.loads((made / "dataset.json").read_text())
    assert told["shape"] == list(SHAPE) and told["seed"] == 4 and (told["ntrain"], told["nvalid"]) == (2, 1)
    assert told["generator"]["preset"] == "smoke" and told["generator_version"] == GENERATOR_VERSION
    share = read_volume(made / "target_train/1_fsem.bin", SHAPE).mean()
    assert told["fault_fraction"]["train"][1] == pytest.approx(share, abs=1e-5)
    assert [len(told["fault_fraction"][part]) for part in ("train", "valid")] == [2, 1]


def test_sample_depends_on_seed_and_number_alone(made: Path, tmp_path: Path):
    """Another number of workers or of samples leaves sample i as it is, byte for byte."""
    make(tmp_path / "more", ntrain=3, nvalid=0, workers=2)
    more, few = tree(tmp_path / "more"), tree(made)
    for name in [n for n in few if "_train" in n]:
        assert more[name] == few[name], name
    assert more["data_train/2.bin"] == few["data_valid/0.bin"]  # the third sample in both


def test_existing_data_is_refused(made: Path, tmp_path: Path):
    """A folder with samples, described or not, is only replaced by --overwrite, and then completely."""
    before = tree(made)
    with pytest.raises(UserError, match="holds a data set .*--overwrite"):
        make(made)
    assert tree(made) == before
    out = tmp_path / "own"
    (out / "data_train").mkdir(parents=True)
    (out / "data_train/0.bin").write_bytes(b"mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"data_train/0.bin"):
        make(out)
    assert (out / "data_train/0.bin").read_bytes() == b"mine"
    make(out, ntrain=2, nvalid=1, overwrite=True)
    make(out, ntrain=1, nvalid=0, overwrite=True, format="npy")  # nothing of the larger set may be left
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {n for n in names if not n.startswith(("data_train/0", "target_train/0_"))} == {
        "dataset.json",
        "notes.txt",
    }
    assert np.load(out / "data_train/0.npy").shape == SHAPE


def test_dry_run(tmp_path: Path):
    """--dry_run tells what would be made and makes nothing, nor does it delete with --overwrite."""
    config = DATA_SET_PRESETS["standard"]()
    told = make_data(config, BasicOptions(dry_run=True), tmp_path)
    assert told == {"shape": [64, 64, 64], "samples": 172}
    (tmp_path / "data_train").mkdir()
    (tmp_path / "data_train/0.bin").write_bytes(b"mine")
    make_data(config, BasicOptions(overwrite=True, dry_run=True), tmp_path)
    assert (tmp_path / "data_train/0.bin").exists()


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three samples are drawn, fewer when there are fewer: all six volumes on three sections."""
    drawn, section = [], figures.section

    def spy(ax: Any, values: Any, **settings: Any) -> None:
        drawn.append(settings["title"])
        if settings["overlay"] is not None:
            drawn.append(settings["title"].replace("dhr", "fsem"))
        section(ax, values, **settings)

    monkeypatch.setattr(figures, "section", spy)
    make(tmp_path, ntrain=1, nvalid=0, figures=True)
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["sample_0.png"]
    cuts = ("inline", "crossline", "time slice")
    assert set(drawn) == {f"{cut}: {name}" for cut in cuts for name in ("image", *TARGETS)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n1": 2}, "cube size"),
        ({"n2": -4}, "cube size"),
        ({"fault_width": -1.0}, "fault width"),
        ({"noise": -1.0}, "noise"),
        ({"faults": (5, 2)}, "no range"),
    ],
)
def test_impossible_settings(tmp_path: Path, changes: dict[str, Any], message: str):
    """Impossible cubes are refused before anything is written."""
    with pytest.raises(UserError, match=message):
        make(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"ntrain": 0, "nvalid": 0}, {"ntrain": -1}, {"faults": (1,)}])
def test_impossible_flags(changes: dict[str, Any]):
    """Counts that cannot be are refused by the configuration."""
    with pytest.raises(ValueError, match="expected"):
        DataConfig(**changes)


def test_hdf5_set(tmp_path: Path):
    """--format h5 writes the tree as HDF5, and training reads the same samples from it as from raw files."""
    config = DataConfig(2, 1, "smoke", 16, 20, 24, figures=False)
    for kind in ("raw", "h5"):
        make_data(replace(config, format=kind), BasicOptions(), tmp_path / kind)
    assert (tmp_path / "h5/data_train/1_fsem.h5").is_file()
    items = [
        VolumePairs(tmp_path / k / "data_train", tmp_path / k / "target_train", (0, 0, 0), HEADS)[Draw(1, 0)]
        for k in ("raw", "h5")
    ]
    for name in ("image", "fsem", "fdip", "rgt", "tau"):
        np.testing.assert_array_equal(items[0][name], items[1][name])
