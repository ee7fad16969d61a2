"""Statistics equal NumPy on the valid cells of the training files; the maps made of them go both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from tests.voxel_ode.cases_data import NUM_STEPS, SHAPE, physical_scalars, prepared, truth
from voxel_ode.dataset import read_stats
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import open_prepped
from voxel_ode.schema import SCALAR_NAMES, STATIC_NAMES
from voxel_ode.stats import file_stats, stats_dict

LOG = [True] * 5


def train_cases() -> list:
    """Return the cases of the training files of `prepared`: runs 3 and 4."""
    return [truth(3), truth(4)]


def test_statistics_are_those_of_numpy(tmp_path: Path):
    """Mean, std and delta_rms equal NumPy over flow, active or well cells of the training files only."""
    stats = read_stats(prepared(tmp_path) / "stats.json")
    cases = train_cases()
    row = {name: i for i, name in enumerate(STATIC_NAMES)}

    def close(found: float, expected: float) -> None:
        assert found == pytest.approx(float(expected), rel=1e-5)

    for name in ("PermX", "PermY", "PermZ"):
        values = np.log10(np.concatenate([c.grids[name][c.flow] for c in cases]))
        close(stats["mean"]["static"][row[name]], values.mean())
        close(stats["std"]["static"][row[name]], values.std())
    porosity = np.concatenate([c.grids["Porosity"][c.active] for c in cases])
    close(stats["mean"]["static"][row["Porosity"]], porosity.mean())
    close(stats["std"]["static"][row["InjRate"]], 40.0)
    for k, mask in enumerate(("flow", "active")):
        values = np.concatenate([c.states[:, k][:, getattr(c, mask)].ravel() for c in cases])
        change = np.concatenate([np.diff(c.states[:, k], axis=0)[:, getattr(c, mask)].ravel() for c in cases])
        close(stats["mean"]["grid"][k], values.mean())
        close(stats["std"]["grid"][k], values.std())
        close(stats["delta_rms"][k], np.sqrt((change**2).mean()))
        close(stats["mean"]["static"][row["Pressure0"] + k], values.mean())
    logged = np.log1p(np.concatenate([c.scalars for c in cases]))
    np.testing.assert_allclose(stats["mean"]["scalar"], logged.mean(0), rtol=1e-9)
    floor = np.maximum(logged.std(0), 1e-3 * np.abs(logged.mean(0)))
    np.testing.assert_allclose(stats["std"]["scalar"], floor, rtol=1e-6)
    params = np.stack([c.params for c in cases])
    np.testing.assert_allclose(stats["param_mean"], params.mean(0))
    assert stats["transforms"]["params"] == "raw" and stats["num_files"] == 2
    low, high = stats["channel_range"]["grid"]["Temperature"]
    expected = np.percentile(
        np.concatenate([c.states[:, 1][:, c.active].ravel() for c in cases]), [0.1, 99.9]
    )
    np.testing.assert_allclose([low, high], expected, rtol=1e-6)


def test_statistics_merge(tmp_path: Path):
    """Two files counted apart and merged equal both counted together, in either order."""
    root = prepared(tmp_path)
    paths = [root / "train" / f"v2.4_000{i}.prepped.h5" for i in (3, 4)]
    a, b = (file_stats(path, i, 4, LOG) for i, path in enumerate(paths))
    together = file_stats(paths[0], 0, 4, LOG)
    together.add(open_prepped(paths[1]))
    a.merge(b)
    for name in ("static", "grid", "delta", "scalar", "params"):
        one, two = getattr(a, name), getattr(together, name)
        np.testing.assert_array_equal(one.count, two.count)
        np.testing.assert_allclose(one.mean, two.mean, rtol=1e-12)
        np.testing.assert_allclose(one.std, two.std, rtol=1e-12)
    assert a.num_files == together.num_files == 2


def test_constant_and_foreign_parameters(tmp_path: Path):
    """An exactly constant channel has std 1; parameters beyond 0..1 are z-scored."""
    path = prepared(tmp_path) / "train" / "v2.4_0003.prepped.h5"
    sim = open_prepped(path).load()
    sim.params = np.array([5.0, 0.5, 0.5, 0.5])
    sim.arrays["static"][4][sim.masks()[1] > 0] = 100.0
    sim.arrays["outputs_grid"][:, 1] = 60.0
    total = file_stats(path, 0, 4, LOG)
    fresh = type(total)(4, LOG)
    fresh.add(sim)
    stats = stats_dict(fresh, "binary", ["a", "b", "c", "d"], "id")
    assert stats["std"]["static"][4] == 1.0 and stats["std"]["grid"][1] == 1.0
    assert stats["delta_rms"][1] == 1.0
    maps = Normalizer.from_stats(stats)
    assert not maps.params_raw and maps.params(torch.tensor([5.0, 0.5, 0.5, 0.5])).tolist() == [0, 0, 0, 0]


def test_normalised_statics(tmp_path: Path):
    """Every channel by its rule: log10 and clip, binary faults, rates by the largest, 0 off the domain."""
    root = prepared(tmp_path)
    maps = Normalizer.from_stats(read_stats(root / "stats.json"))
    sim = open_prepped(root / "train" / "v2.4_0003.prepped.h5")
    masks = torch.from_numpy(sim.masks())
    out = maps.static(torch.from_numpy(sim.static()), masks, STATIC_NAMES)
    case = truth(3)
    assert out.shape == (11, *SHAPE) and torch.isfinite(out).all()
    assert (out[:, ~torch.from_numpy(case.active)] == 0).all()
    row = dict(zip(STATIC_NAMES, out.numpy(), strict=True))
    np.testing.assert_array_equal(row["FaultId"], (case.grids["FaultId"] > 0) & case.active)
    np.testing.assert_allclose(row["InjRate"], np.where(case.active, case.grids["InjRate"] / 40, 0))
    np.testing.assert_array_equal(row["IsActive"], case.active)
    z = np.arange(SHAPE[0])[:, None, None] / (SHAPE[0] - 1) * np.ones(SHAPE)
    np.testing.assert_allclose(row["Depth"], np.where(case.active, z, 0), rtol=1e-6)
    thermal = case.active & ~case.flow
    np.testing.assert_allclose(row["PermX"][thermal], -5.0)  # the floor, clipped
    assert (row["Pressure0"][thermal] == 0).all() and (row["Temperature0"][thermal] != 0).all()
    mean, std = maps.static_mean[4].item(), maps.static_std[4].item()
    expected = (np.log10(case.grids["PermX"][case.flow]) - mean) / std
    np.testing.assert_allclose(row["PermX"][case.flow], np.clip(expected, -5, 5), atol=1e-4)


def test_ordinal_faults(tmp_path: Path):
    """--fault_encoding ordinal gives the z-scored number."""
    root = prepared(tmp_path, fault_encoding="ordinal")
    stats = read_stats(root / "stats.json")
    ids = np.concatenate([c.grids["FaultId"][c.active] for c in train_cases()])
    assert stats["mean"]["static"][0] == pytest.approx(ids.mean())
    assert stats["std"]["static"][0] == pytest.approx(ids.std())


def test_maps_go_both_ways_and_travel(tmp_path: Path):
    """States and field rates come back; the plain dict restores equal maps, a stranger is named."""
    root = prepared(tmp_path, log_transform=SCALAR_NAMES[:3])
    maps = Normalizer.from_stats(read_stats(root / "stats.json"))
    state = torch.from_numpy(open_prepped(root / "test" / "v2.4_0001.prepped.h5").states(0, NUM_STEPS))
    torch.testing.assert_close(
        maps.state_to_physical(maps.state_to_normalized(state)), state, rtol=1e-5, atol=1e-3
    )
    scalars = torch.from_numpy(truth(3).scalars)
    assert maps.scalar_log1p.tolist() == [1, 1, 1, 0, 0]
    back = physical_scalars(maps, maps.scalars_to_normalized(scalars))
    torch.testing.assert_close(back, scalars, rtol=1e-9, atol=0)
    copy = Normalizer.from_dict(json.loads(json.dumps(maps.state_dict())))
    assert not maps.difference(copy) and copy.channel_range == maps.channel_range
    assert maps.params_raw and torch.equal(maps.params(scalars), scalars)
    other = {**maps.state_dict(), "grid_std": [1.0, 2.0]}
    assert maps.difference(Normalizer.from_dict(other)) == "grid_std"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"grid_std": [1.0, 0.0]}, "grid_std"),
        ({"grid_mean": [1.0]}, "grid_mean"),
        ({"scalar_mean": [1, 2, 3, 4, None]}, "scalar_mean"),
        ({"static_kinds": ["identity"]}, "static_kinds"),
        ({"delta_rms": None}, "delta_rms"),
        ({"grid_mean": [1.0, 1e308]}, "grid_mean"),  # more than float32 holds
        ({"grid_std": [1.0, 1e-60]}, "grid_std"),
    ],
)
def test_damaged_maps_are_named(tmp_path: Path, change: dict, word: str):
    """A wrong length, a zero std or a hole is refused by name."""
    maps = Normalizer.from_stats(read_stats(prepared(tmp_path, 3) / "stats.json"))
    with pytest.raises(DataError, match=word):
        Normalizer.from_dict({**maps.state_dict(), **change})


def test_statistics_of_another_data_set_are_refused(tmp_path: Path):
    """stats.json that the manifest beside it does not know, or that is no JSON, is refused."""
    root = prepared(tmp_path, 3)
    path = root / "stats.json"
    stats = json.loads(path.read_text())
    path.write_text(json.dumps({**stats, "dataset_id": "0" * 64}))
    with pytest.raises(DataError, match="data set"):
        read_stats(path)
    path.write_text("{")
    with pytest.raises(DataError, match="JSON"):
        read_stats(path)
    with pytest.raises(DataError, match="schema"):
        Normalizer.from_stats({"schema": "another"})
