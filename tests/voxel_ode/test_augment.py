"""Turns, flips and noise keep what they must keep: depth, directions of permeability, exempt channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.noise import torch_stream
from common.sampling import Draw
from tests.voxel_ode.cases_data import Truth, prepared, truth, write_raw
from voxel_ode.augment import add_noise, collate, flip, turn
from voxel_ode.dataset import PatchOptions, open_split
from voxel_ode.items import GRID_KEYS, make_item
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim
from voxel_ode.schema import STATIC_NAMES


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared folder; do not change it."""
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def maps(root: Path) -> Normalizer:
    """Return its normalisation."""
    return open_split(root, "train", PatchOptions()).normalizer


def turned(case: Truth) -> Truth:
    """Return the case seen from a quarter turn: every grid turned, PermX and PermY exchanged."""

    def rot(grid: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(grid, 1, (-2, -1)))

    grids = {name: rot(grid) for name, grid in case.grids.items()}
    grids["PermX"], grids["PermY"] = grids["PermY"], grids["PermX"]
    return replace(case, active=rot(case.active), flow=rot(case.flow), grids=grids, states=rot(case.states))


def item_of(path: Path, case: Truth, maps: Normalizer, box: Any = None) -> dict[str, Any]:
    """Return the item of a case written to a raw file; without what only names the file."""
    item = make_item(PreppedSim.from_raw(write_raw(path, case)), 0, 2, maps, box)
    item["source"] = "case"
    return item


def close(a: dict[str, Any], b: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Require equal items, up to rounding."""
    assert a.keys() == b.keys()
    for key in a.keys() - {"source", *without}:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_turning_the_item_is_turning_the_case(tmp_path: Path, maps: Normalizer):
    """A case turned before it is written gives the turned item, PermX and PermY exchanged."""
    case = truth(5)
    other = turned(case)
    item = item_of(tmp_path / "a_0001.h5", case, maps)
    # Weights of a well are shares of PermX: the turned case has those of PermY. The item keeps its own.
    keys = ("well_source", "well_features")
    close(turn(item, 1, maps), item_of(tmp_path / "b_0001.h5", other, maps), keys)
    box, there = (slice(1, 5), slice(0, 4), slice(1, 5)), (slice(1, 5), slice(0, 4), slice(0, 4))
    part = turn(item_of(tmp_path / "c_0001.h5", case, maps, box), 1, maps)
    close(part, item_of(tmp_path / "d_0001.h5", other, maps, there), keys)
    np.testing.assert_array_equal(
        turn(item, 1, maps)["well_source"][0], np.rot90(item["well_source"][0].numpy(), 1, (1, 2))
    )


def test_turns_add_up(tmp_path: Path, maps: Normalizer):
    """Four turns and two flips give the item back; k turns equal one turn k times; Z is untouched."""
    box = (slice(1, 5), slice(0, 4), slice(1, 4))
    item = item_of(tmp_path / "a_0001.h5", truth(5), maps, box)
    step = item
    for k in range(1, 5):
        step = turn(step, 1, maps)
        close(step, turn(item, k, maps))
    close(step, item)
    for axis in "yx":
        close(flip(flip(item, axis), axis), item)
        assert not torch.equal(flip(item, axis)["states"], item["states"])
    close(flip(flip(item, "y"), "x"), turn(item, 2, maps))
    depth = STATIC_NAMES.index("Depth")
    for changed in (turn(item, 1, maps), flip(item, "x")):
        for z in range(4):
            a, b = (torch.sort(i["states"][:, :, z].flatten(2)).values for i in (changed, item))
            assert torch.equal(a, b)
            assert changed["static"][depth, z].max() == item["static"][depth, z].max()


def test_odd_turns_need_square_cells(tmp_path: Path, maps: Normalizer):
    """Cells with dy unlike dx refuse an odd turn and allow a half one."""
    item = item_of(tmp_path / "a_0001.h5", truth(5), maps)
    item["cell_size"] = torch.tensor([10.0, 50.0, 40.0])
    with pytest.raises(UserError, match="aug_xy_rot"):
        turn(item, 3, maps)
    turn(item, 2, maps)


def test_noise_keeps_off_what_is_exact(tmp_path: Path, maps: Normalizer):
    """Noise has the asked spread, a fifth on pressures; targets, flags, rates, off-domain cells are exact."""
    item = item_of(tmp_path / "a_0001.h5", truth(5, (22, 20, 20)), maps)
    noisy = add_noise(item, 0.1, maps, torch_stream(0, "noise", 1))
    for key in item.keys() - {"states", "static", "source"}:
        assert torch.equal(noisy[key], item[key]), key
    assert torch.equal(noisy["states"][1:], item["states"][1:])
    active, flow, _ = item["masks"] > 0
    change = noisy["states"][0] - item["states"][0]
    assert change[1][active].std().item() == pytest.approx(0.1, rel=0.05)
    assert change[0][flow].std().item() == pytest.approx(0.02, rel=0.05)
    assert (change[1][~active] == 0).all() and (change[0][~flow] == 0).all()
    moved = (noisy["static"] - item["static"]).flatten(1).abs().amax(1) > 0
    names = [name for name, m in zip(STATIC_NAMES, moved.tolist(), strict=True) if m]
    assert names == ["PermX", "PermY", "PermZ", "Porosity", "Pressure0", "Temperature0"]
    assert (noisy["static"][:, ~active] == 0).all()
    assert add_noise(item, 0.0, maps, torch_stream(0, "noise", 1)) is item


def test_one_turn_a_step_or_one_a_sample(root: Path, maps: Normalizer):
    """By default a global batch shares its turn and the next may have another; per sample they differ."""

    def turns(per_sample: bool) -> list[int]:
        options = PatchOptions(turns=True, turn_per_sample=per_sample, global_batch=4)
        data = open_split(root, "train", options)
        plain = open_split(root, "train", PatchOptions())[Draw(0, 0)]
        poses = [turn(plain, k, maps)["states"] for k in range(4)]
        found = [data[Draw(0, p)]["states"] for p in range(32)]
        return [next(k for k, pose in enumerate(poses) if torch.equal(pose, f)) for f in found]

    steps = [set(turns(False)[i : i + 4]) for i in range(0, 32, 4)]
    assert all(len(step) == 1 for step in steps) and len(set.union(*steps)) > 1
    assert any(len(set(turns(True)[i : i + 4])) > 1 for i in range(0, 32, 4))


def test_padding_adds_cells_that_do_not_count(tmp_path: Path, maps: Normalizer):
    """Patches of unlike shape are padded at their high ends with mask 0: masked sums stay the same."""
    box = (slice(1, 5), slice(0, 5), slice(1, 4))
    item = item_of(tmp_path / "a_0001.h5", truth(5), maps, box)
    batch = collate([item, turn(item, 1, maps)])
    assert batch["states"].shape == (2, 3, 2, 4, 5, 5) and batch["source"] == ["case", "case"]
    for row, one in enumerate((item, turn(item, 1, maps))):
        d, h, w = one["masks"].shape[1:]
        for key in GRID_KEYS:
            assert torch.equal(batch[key][row][..., :d, :h, :w], one[key])
            assert batch[key][row].count_nonzero() == one[key].count_nonzero()
        alone, padded = (
            ((b["states"][..., 1, :, :, :] ** 2) * b["masks"][..., 0, :, :, :] * b["loss_mask"]).sum()
            for b in (one, {key: batch[key][row] for key in GRID_KEYS})
        )
        torch.testing.assert_close(alone, padded)
    assert batch["t"].shape == (2,) and batch["wells_complete"].dtype == torch.bool
