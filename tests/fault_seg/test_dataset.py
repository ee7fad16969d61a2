"""Training samples: what is read is checked, what is drawn depends on its position alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import DataError, StrataError, UserError
from common.sampling import Draw, StepSampler, train_loader
from fault_seg import dataset
from fault_seg.dataset import SyntheticVolumes, VolumePairs, find_shape, normalise_image
from fault_seg.model import HEADS
from fault_seg.survey import survey_rule
from fault_seg.synthetic import preset
from fault_seg.volumes import open_volume, read_volume, write_volume
from tests.fault_seg.cases import SHAPE, make_cubes, noisy_layers

CROP = (16, 16, 16)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three training cubes and one held-out cube."""
    return make_cubes(tmp_path_factory.mktemp("cubes"))


@pytest.fixture
def own(cubes: Path, tmp_path: Path) -> Path:
    """Return a copy of the data set to spoil."""
    return Path(shutil.copytree(cubes, tmp_path / "own"))


def pairs(folder: Path, **changes: Any) -> VolumePairs:
    """Open the training pairs of a data set."""
    settings: dict[str, Any] = {"shape": (0, 0, 0), "heads": HEADS, **changes}
    return VolumePairs(folder / "data_train", folder / "target_train", **settings)


def put(path: Path, place: tuple[int, int, int], value: float) -> None:
    """Overwrite voxel (z, y, x) of a raw volume."""
    values = np.memmap(path, "<f4", "r+", shape=SHAPE[::-1])
    values[place[::-1]] = value
    values.flush()


def test_good_data_passes(cubes: Path):
    """What make_data writes is accepted whole, with its shape from dataset.json."""
    found = pairs(cubes)
    found.check()
    assert len(found) == 3 and found.shape == SHAPE
    item = found[Draw(0, 0)]
    names = {"image", "fsem", "fdip", "fstrike", "dhr", "rgt", "tau"}
    assert {n for n, v in item.items() if n != "source" and v.shape == (1, *SHAPE)} == names
    assert item["source"].endswith("data_train/0.bin")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["data_train/1.bin", "target_train/1_dhr.bin", "target_train/1_fsem.bin"])
def test_not_finite(own: Path, name: str, value: float):
    """NaN and Inf in any file are refused with the file and the first voxel."""
    put(own / name, (5, 7, 3), value)
    put(own / name, (2, 7, 9), value)
    with pytest.raises(DataError, match=rf"{name}: (nan|inf) at z 5 y 7 x 3 .*expected a finite value"):
        pairs(own).check()


def test_wrong_label(own: Path):
    """A label outside {-1, 0, 1} is refused with the file and the first voxel."""
    put(own / "target_train/2_fsem.bin", (1, 2, 3), 0.5)
    with pytest.raises(DataError, match=r"2_fsem.bin: 0.5 at z 1 y 2 x 3 .*expected -1, 0 or 1"):
        pairs(own).check()


def test_unlabelled_voxels_pass(own: Path):
    """Label -1 is accepted, reaches the item, and counts as no fault in the solved time."""
    before = pairs(own)[Draw(0, 0)]
    place = tuple(int(i) for i in np.argwhere(before["fsem"][0].numpy() == 0)[0])
    put(own / "target_train/0_fsem.bin", (place[0], place[1], place[2]), -1)
    found = pairs(own)
    found.check()
    item = found[Draw(0, 0)]
    assert item["fsem"][(0, *place)] == -1
    torch.testing.assert_close(item["tau"], before["tau"], rtol=0, atol=0)


def test_image_without_signal(own: Path):
    """An all-zero image is refused before training, by its name."""
    (own / "data_train/1.bin").write_bytes(bytes(4 * int(np.prod(SHAPE))))
    with pytest.raises(DataError, match=r"data_train/1.bin: no signal"):
        pairs(own).check()


def remove(name: str) -> Callable[[Path], None]:
    """Return what deletes a file of a data set."""
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    """Shorten a target."""
    path = folder / "target_train/1_rgt.bin"
    path.write_bytes(path.read_bytes()[:-4])


def double(folder: Path) -> None:
    """Write a sample in a second format."""
    np.save(folder / "data_train/1.npy", np.zeros(SHAPE, np.float32))


def empty(folder: Path) -> None:
    """Delete all images."""
    for path in (folder / "data_train").glob("*.bin"):
        path.unlink()


def lonely(folder: Path) -> None:
    """Write targets of a sample that has no image."""
    for number in (5, 4):
        shutil.copy(folder / "target_train/1_fsem.bin", folder / f"target_train/{number}_fsem.bin")


def other_npy(folder: Path) -> None:
    """Replace a target by an npy file of another shape."""
    (folder / "target_train/1_dhr.bin").unlink()
    np.save(folder / "target_train/1_dhr.npy", np.ones((3, 4, 5), np.float32))


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (remove("target_train/1_fdip.bin"), {}, r"no 1_fdip.bin or .npy for sample 1"),
        (remove("data_train/1.bin"), {}, r"1.bin is missing, the numbers go up to 2"),
        (cut, {}, r"1_rgt.bin: 30716 bytes, expected 30720"),
        (lonely, {}, r"target_train/4_fsem.bin: there is no sample 4 in .*data_train, expected 0 to 2"),
        (double, {}, r"1.npy: the same sample as 1.bin"),
        (empty, {}, r"holds no 0.bin"),
        (other_npy, {}, r"1_dhr.npy: .*\(3, 4, 5\), expected \(24, 20, 16\)"),
        (lambda folder: shutil.rmtree(folder / "data_train"), {}, r"data_train: no such folder"),
        (lambda _: None, {"crop_shape": (32, 16, 16)}, r"smaller than --crop \(32, 16, 16\)"),
        (lambda _: None, {"limit": 4}, r"3 samples found, 4 asked for"),
        (lambda _: None, {"limit": -1}, r"-1 samples asked for"),
        (lambda _: None, {"shape": (24, 20, 17)}, r"0.bin: 30720 bytes, expected 32640"),
        (lambda _: None, {"shape": (-1, 20, 16)}, r"expected positive sizes"),
        (lambda f: (f / "dataset.json").write_text("{"), {}, r"dataset.json: (no valid JSON|not readable)"),
        (lambda f: (f / "dataset.json").write_text('{"shape": [1]}'), {}, r"dataset.json: not readable"),
    ],
)
def test_bad_data_sets(own: Path, spoil: Callable[[Path], None], settings: dict[str, Any], message: str):
    """Each thing that can be wrong with a folder ends in one line that names it."""
    spoil(own)
    with pytest.raises(StrataError, match=message) as caught:
        pairs(own, **settings).check()
    assert "\n" not in str(caught.value)


def test_targets_beyond_the_samples_asked_for_are_not_looked_at(own: Path):
    """With --ntrain a target without an image does no harm."""
    lonely(own)
    pairs(own, limit=3).check()


def test_targets_of_heads_that_are_off_need_not_exist(own: Path):
    """A fault training runs without rgt and dhr files."""
    for path in [*(own / "target_train").glob("*_rgt.bin"), *(own / "target_train").glob("*_dhr.bin")]:
        path.unlink()
    found = pairs(own, heads=("fault",))
    found.check()
    assert set(found[Draw(1, 1)]) == {"image", "fsem", "fdip", "fstrike", "source"}
    with pytest.raises(DataError, match="0_dhr"):
        pairs(own, heads=("fault", "dhr"))


def test_shape_sources(tmp_path: Path):
    """Sizes come from the flags, the npy header, dataset.json, or an exact cube root, in this order."""
    folder = tmp_path / "data_train"
    folder.mkdir()
    np.save(folder / "0.npy", np.zeros((4, 5, 6), np.float32))
    raw = folder / "0.bin"
    raw.write_bytes(bytes(4 * 27))
    assert find_shape(folder, folder / "0.npy", (0, 0, 0)) == (4, 5, 6)
    assert find_shape(folder, folder / "0.npy", (7, 8, 9)) == (7, 8, 9)
    assert find_shape(folder, raw, (0, 0, 0)) == (3, 3, 3)
    assert find_shape(folder, raw, (9, 0, 0)) == (9, 3, 3)  # a size that is given is never ignored
    (tmp_path / "dataset.json").write_text(json.dumps({"shape": [9, 3, 1]}))
    assert find_shape(folder, raw, (0, 0, 0)) == (9, 3, 1)
    (tmp_path / "dataset.json").unlink()
    raw.write_bytes(bytes(4 * 28))
    with pytest.raises(UserError, match="pass --n1 --n2 --n3"):
        find_shape(folder, raw, (0, 0, 0))


def test_npy_pairs_equal_raw_pairs(own: Path):
    """The same cubes as .npy give the same items."""
    raw = pairs(own)[Draw(0, 4)]
    for path in [own / "data_train/0.bin", *(own / "target_train").glob("0_*.bin")]:
        write_volume(path.with_suffix(".npy"), read_volume(path, SHAPE))
        path.unlink()
    npy = pairs(own)[Draw(0, 4)]
    for name in set(raw) - {"source"}:
        torch.testing.assert_close(npy[name], raw[name], rtol=0, atol=0)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether two items or batches are equal in every bit."""
    return a.keys() == b.keys() and all(
        torch.equal(v, b[n]) if isinstance(v, torch.Tensor) else v == b[n] for n, v in a.items()
    )


@pytest.mark.parametrize("synthetic", [False, True])
def test_item_is_a_function_of_seed_and_position(cubes: Path, synthetic: bool):
    """An item does not depend on what was drawn before; another position or seed gives another one."""
    settings = {"crop_shape": CROP, "augmented": True, "disturbed": True}

    def fresh(seed: int) -> Any:
        if synthetic:
            generator = replace(preset("smoke"), shape=SHAPE)
            return SyntheticVolumes(generator, 3, HEADS, seed=seed, **settings)
        return pairs(cubes, seed=seed, **settings)

    first, second = fresh(1), fresh(1)
    for position in (9, 3, 4):
        second[Draw(0, position)]
    assert same(first[Draw(1, 7)], second[Draw(1, 7)])
    assert not same(first[Draw(1, 7)], first[Draw(1, 8)])
    assert not same(first[Draw(1, 7)], fresh(2)[Draw(1, 7)])


def test_batches_do_not_depend_on_workers(cubes: Path):
    """0, 1 and 2 loader workers give identical batches."""
    runs = []
    for workers in (0, 1, 2):
        samples = pairs(cubes, crop_shape=CROP, augmented=True, disturbed=True, heads=("fault",))
        sampler = StepSampler(len(samples), 2, 5, 0, 3)
        runs.append(list(train_loader(samples, sampler, num_workers=workers)))
    assert [len(run) for run in runs] == [3, 3, 3]
    assert all(same(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_normalisation_is_that_of_surveys(tmp_path: Path):
    """Training and inference see the same values: one rule from the live samples, clipped at 5."""
    image = 7 * noisy_layers((20, 9, 8)) + 100
    image[3, 4, 5] = 1e6  # an outlier that must not widen the scale
    image[:, 0, 0] = 0  # a missing trace
    write_volume(tmp_path / "a.npy", image)
    with open_volume(tmp_path / "a.npy") as volume:
        expected = survey_rule(volume).apply(image)
    np.testing.assert_allclose(normalise_image(image), expected, rtol=0, atol=1e-6)
    live = normalise_image(image)[image != 0]
    assert abs(live.mean()) < 0.02 and abs(live.std() - 1) < 0.02 and live.max() == 5


def test_solved_times_are_kept_within_a_bound(cubes: Path, monkeypatch: pytest.MonkeyPatch):
    """Solved times are computed once a sample while there is room, and never kept beyond it."""
    solved = []
    solve = dataset.solved_time
    monkeypatch.setattr(dataset, "solved_time", lambda *a: (solved.append(1), solve(*a))[1])
    monkeypatch.setattr(dataset, "TAU_CACHE_BYTES", 4 * int(np.prod(SHAPE)))
    samples = pairs(cubes)
    items = [samples[Draw(i, i)] for i in (0, 0, 1, 1)]
    assert len(solved) == 3 and torch.equal(items[2]["tau"], items[3]["tau"])
