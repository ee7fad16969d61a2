"""Training patches: what an item holds, how it is drawn, and that workers and caches change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from common.guard import nonfinite_source
from common.sampling import Draw, StepSampler, train_loader
from tests.voxel_ode.cases_data import NUM_STEPS, SHAPE, physical_scalars, prepared, truth, write_raw
from voxel_ode.dataset import PatchDataset, PatchOptions, collate, open_split, wants_ram
from voxel_ode.items import loss_mask, make_item
from voxel_ode.prepped import PreppedSim, open_prepped


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared folder; do not change it."""
    return prepared(tmp_path_factory.mktemp("data"))


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Require equal items or batches."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
        else:
            assert value == b[key]


def test_an_item_is_the_patch(root: Path):
    """States, rates and wells of an item are those of its place and years, in the promised shapes."""
    data = open_split(root, "train", PatchOptions(num_steps=2))
    maps = data.normalizer
    i = int(np.flatnonzero(data.index.has_well & (data.index.t == 1))[0])
    item = data[Draw(i, 0)]
    sim, box = data.sims[data.index.sim[i]], data.index.slices(i)
    case = truth(3 + int(data.index.sim[i]))
    shapes = {
        **{"static": (11, 4, 4, 4), "states": (3, 2, 4, 4, 4), "masks": (3, 4, 4, 4)},
        **{"loss_mask": (4, 4, 4), "params": (4,), "scalars": (2, 5), "scalars_raw": (3, 5)},
        **{"well_features": (3, 6), "well_rates": (2,), "well_source": (1, 4, 4, 4), "rock": (3, 4, 4, 4)},
        **{"porosity": (1, 4, 4, 4), "initial": (2, 4, 4, 4), "origin": (3,), "grid_shape": (3,)},
        **{"cell_size": (3,), "dt_s": (), "injection_c": (), "wells_complete": (), "t": ()},
    }
    assert {key: tuple(v.shape) for key, v in item.items() if key != "source"} == shapes
    active, flow = case.active[box], case.flow[box]
    physical = maps.state_to_physical(item["states"]).numpy()
    for k in range(3):
        np.testing.assert_allclose(physical[k, 1][active], case.states[1 + k, 1][box][active], rtol=1e-5)
        np.testing.assert_allclose(physical[k, 0][flow], case.states[1 + k, 0][box][flow], rtol=1e-5)
    assert (item["states"][:, 1].numpy()[:, ~active] == 0).all()
    assert (item["states"][:, 0].numpy()[:, ~flow] == 0).all()
    np.testing.assert_allclose(item["scalars_raw"], case.scalars[1:4], rtol=1e-6)
    back = physical_scalars(maps, item["scalars"].double())
    np.testing.assert_allclose(back, case.scalars[2:4], rtol=1e-4)
    np.testing.assert_allclose(item["well_features"], sim.well_features[2:5], rtol=1e-6)
    np.testing.assert_allclose(item["rock"][1].numpy()[flow], case.grids["PermY"][box][flow], rtol=1e-6)
    source = sim.wells.source_kg_s(SHAPE)
    np.testing.assert_array_equal(item["well_source"][0], source[box])
    assert item["well_rates"].tolist() == [40, 40] and item["cell_size"].tolist() == [10, 50, 50]
    assert item["origin"].tolist() == [s.start for s in box] and item["t"] == 1


def test_the_whole_grid_from_raw_and_prepped(root: Path):
    """The whole-grid item of a raw file equals that of its prepped file, the initial state included."""
    sim = open_prepped(root / "test" / "v2.4_0001.prepped.h5")
    raw = PreppedSim.from_raw(root.parent / "raw" / "v2.4_0001.h5")
    maps = open_split(root, "train", PatchOptions()).normalizer
    a, b = (make_item(s, -1, 2, maps) for s in (sim, raw))
    assert a.pop("source") != b.pop("source")
    assert a.pop("injection_c").isnan() and b.pop("injection_c").isnan()  # before any output nothing tells
    same(a, b)
    assert a["states"].shape == (3, 2, *SHAPE) and a["wells_complete"]
    assert torch.equal(a["states"][0], a["initial"]) and (a["scalars_raw"][0] == 0).all()
    assert (a["loss_mask"] == 1).all()
    with pytest.raises(DataError, match="asked for"):
        make_item(sim, NUM_STEPS - 1, 1, maps)
    scenario = write_raw(root.parent / "s_0001.h5", truth(1), outputs=False)
    only = make_item(PreppedSim.from_raw(scenario), -1, 0, maps)
    assert only["scalars"].shape == (0, 5) and torch.equal(only["states"][0], a["states"][0])


def test_no_loss_beside_a_cut():
    """The margin counts from cuts, not from the grid's own edges; a patch that is all margin is refused."""
    box = (slice(0, 4), slice(1, 5), slice(1, 5))
    mask = loss_mask(box, (7, 6, 5), 1)
    expected = torch.zeros(4, 4, 4)
    expected[0:3, 1:3, 1:4] = 1
    assert torch.equal(mask, expected)
    with pytest.raises(UserError, match="loss_margin"):
        loss_mask(box, (7, 6, 5), 2)


def test_samples_leave_room_for_the_truth(root: Path):
    """With K states to predict t + K is at most T_valid - 1; too many is wrong use."""
    data = open_split(root, "train", PatchOptions())
    for steps in (1, 2, 3):
        assert data.with_steps(steps).index.t.max() == NUM_STEPS - 1 - steps
    assert data.with_steps(2).sims is data.sims
    with pytest.raises(UserError, match="unroll_steps"):
        data.with_steps(NUM_STEPS)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_and_cache_change_nothing(root: Path, cache: str):
    """Batches with two loader processes, or from memory, equal those read in this process."""

    def batches(workers: int, kept: str) -> list[dict[str, Any]]:
        options = PatchOptions(
            seed=3,
            sample_weight="activity",
            turns=True,
            flips=True,
            noise_std=0.1,
            cache=kept,
            global_batch=2,
        )
        data = open_split(root, "train", options)
        assert bool(data.sims[0].arrays) == (kept == "ram")
        data[Draw(0, 0)]  # a file is open in this process before the workers start
        sampler = StepSampler(len(data), 2, 3, 0, 3)
        return list(train_loader(data, sampler, num_workers=workers, collate=collate))

    for a, b in zip(batches(0, "none"), batches(2, cache), strict=True):
        same(a, b)


def test_weights_choose_where_things_happen(tmp_path: Path):
    """Drawn by activity a patch comes up as often as its weight says; wells four times as often."""
    root = prepared(tmp_path, patch_size=(2, 2, 2))
    data = open_split(root, "train", PatchOptions(sample_weight="well", seed=1))
    chosen = np.array([data.chosen(Draw(0, p)) for p in range(4000)])
    has = data.index.has_well
    expected = 4 * has.sum() / (4 * has.sum() + (~has).sum())
    assert 0 < has.mean() < 1 and has[chosen].mean() == pytest.approx(expected, abs=0.03)
    data = open_split(root, "train", PatchOptions(sample_weight="activity", seed=1))
    chosen = np.array([data.chosen(Draw(0, p)) for p in range(4000)])
    weight = np.diff(data._cumulative, prepend=0) / data._cumulative[-1]
    found = np.bincount(chosen, minlength=len(data)) / 4000
    assert np.corrcoef(found, weight)[0, 1] > 0.5 and weight.min() > 0
    mean = (weight * data.index.activity).sum()
    assert data.index.activity[chosen].mean() == pytest.approx(mean, rel=0.03)
    assert mean > data.index.activity.mean()


def test_auto_cache_minds_the_memory(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The automatic choice keeps files in memory while they take at most 30 % of what is free."""
    sims = [open_prepped(root / "test" / "v2.4_0001.prepped.h5")]
    needed = sims[0].num_bytes
    assert needed == sum(a.nbytes for a in open_prepped(sims[0].path).load().arrays.values())
    for free, expected in ((needed / 0.31, False), (needed / 0.29, True)):
        monkeypatch.setattr("voxel_ode.dataset.free_memory_bytes", lambda free=free: free)
        assert wants_ram(sims, "auto") is expected
    assert wants_ram(sims, "ram") and not wants_ram(sims, "none")


def test_a_nan_in_a_patch_is_traced_to_its_file(tmp_path: Path):
    """NaN on an active cell reaches the batch, whose source names file and t; elsewhere it does not."""
    root = prepared(tmp_path, 3)
    path = root / "train" / "v2.4_0003.prepped.h5"
    with h5py.File(path, "r+") as file:
        file["outputs_grid"][1, 1, 3, 3, 2] = np.nan  # active
        file["outputs_grid"][1, 1, 0, 3, 2] = np.nan  # not
    data = open_split(root, "train", PatchOptions())
    sources = set()
    for i in range(len(data)):
        source = nonfinite_source(collate([data[Draw(i, i)]]))
        box = data.index.slices(i)
        holds = all(s.start <= c < s.stop for s, c in zip(box, (3, 3, 2), strict=True))
        assert bool(source) == (holds and data.index.t[i] in (0, 1))
        sources.add(source)
    assert any("v2.4_0003" in s and "t=1" in s for s in sources)


def test_data_that_does_not_fit_together(root: Path, tmp_path: Path):
    """A missing index or file, and files with other parameters than the statistics, are refused."""
    with pytest.raises(DataError, match="index_other"):
        open_split(root, "train", PatchOptions(), tmp_path / "index_other.jsonl")
    with pytest.raises(DataError, match=r"stats\.json"):
        open_split(tmp_path, "train", PatchOptions())
    data = open_split(root, "train", PatchOptions())
    stats = json.loads((root / "stats.json").read_text())
    for name in ("param_mean", "param_std", "param_min", "param_max"):
        stats[name] = [0.5, 1.0]
    with pytest.raises(DataError, match="4 parameters"):
        PatchDataset(data.full_index, root, stats, PatchOptions())
    with pytest.raises(ValueError, match="cache"):
        PatchOptions(cache="disk")
