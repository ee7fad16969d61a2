"""Forecasts in files: what they begin with, whose predictions they use, units, limits, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from common.checkpoint import load as load_checkpoint
from common.checkpoint import save
from common.errors import DataError, DivergedError, UserError
from common.run import MachineOptions
from tests.voxel_ode.cases_data import prepared, truth, write_folder, write_raw
from tests.voxel_ode.cases_rollout import rollout_config, save_model
from voxel_ode import infer as inference
from voxel_ode.config_tools import Placement, RolloutConfig
from voxel_ode.constraints import PhysicalLimits, injection_estimate_c, range_warnings
from voxel_ode.infer import infer, predict
from voxel_ode.items import make_item
from voxel_ode.loading import load
from voxel_ode.predictions import open_predictions
from voxel_ode.prepped import open_simulation
from voxel_ode.rollout import Forecast, fields_of
from voxel_ode.units import WATER_HEAT_CAPACITY

CPU = MachineOptions(device="cpu", precision="fp32", overwrite=True)
FREE = Placement(constrain=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepped root with four simulations of 7x6x5 cells, raw files beside it."""
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    """Return a checkpoint of a small network with random weights."""
    return save_model(root.parent / "model.pt", root)


@pytest.fixture(scope="module")
def sim(root: Path) -> Path:
    """Return the prepped test simulation."""
    return root / "test" / "v2.4_0001.prepped.h5"


def run(config: RolloutConfig) -> list[dict]:
    """Predict on the CPU in fp32."""
    return infer(config, CPU, {})


def predicted(path: Path) -> np.ndarray:
    """Return /predicted/outputs_grid."""
    with h5py.File(path) as file:
        return file["predicted/outputs_grid"][()]


def test_file_holds_what_it_says(sim: Path, model: Path, tmp_path: Path):
    """Shapes, the given state at index 0, -999 off the reservoir, truth, measures, attributes."""
    run(rollout_config(sim, model, tmp_path / "p.h5"))
    source = open_simulation(sim)
    with h5py.File(tmp_path / "p.h5") as file:
        grid, scalars = file["predicted/outputs_grid"][()], file["predicted/outputs_scalar"][()]
        assert grid.shape == (4, 2, 7, 6, 5) and grid.dtype == np.float32 and scalars.shape == (4, 5)
        kelvin = file["ground_truth/outputs_grid"][:, 1]
        assert file.attrs["units"] == "si" and file.attrs["first_predicted_index"] == 1
        assert file["metrics/per_step/rmse_T"][0] == 0 and (file["metrics/per_step/rmse_T"][1:] > 0).all()
        assert set(file["metrics/per_step"]) == {
            f"{m}_{c}" for m in ("rmse", "mae", "rel_l2", "acc_abs5", "acc_abs1", "acc5pct") for c in "PT"
        }
        assert len(file.attrs["checkpoint_sha256"]) == 64 and np.isfinite(file.attrs["energy_balance_error"])
    active, flow, _ = source.masks() > 0
    assert (grid[:, :, ~active] == -999).all() and (grid[:, 0][:, active & ~flow] == 0).all()
    np.testing.assert_allclose(grid[0, 1][active], kelvin[0][active], rtol=1e-6)
    np.testing.assert_allclose(grid[0, 1][active] - 273.15, source.states(0, 1)[0, 1][active], atol=1e-3)
    assert (grid[0, 0][flow] > 1e6).all()  # pascal


def test_it_uses_its_own_predictions(sim: Path, model: Path, root: Path, tmp_path: Path):
    """Changing the truth after the first state changes no prediction; changing the first one does."""
    run(rollout_config(sim, model, tmp_path / "a.h5"))
    for t, same in ((1, True), (0, False)):
        other = tmp_path / f"v2.4_{t:04d}.prepped.h5"
        other.write_bytes(sim.read_bytes())
        with h5py.File(other, "r+") as file:
            file["outputs_grid"][t:, 1] += 3.0
        run(rollout_config(other, model, tmp_path / "b.h5", constrain=False))
        run(rollout_config(sim, model, tmp_path / "a.h5", constrain=False))
        assert np.array_equal(predicted(tmp_path / "a.h5"), predicted(tmp_path / "b.h5")) == same


def test_initial_state_is_all_it_knows(sim: Path, model: Path, tmp_path: Path):
    """A forecast from the initial state does not change when every output is another, limits included."""
    other = tmp_path / "v2.4_0009.prepped.h5"
    other.write_bytes(sim.read_bytes())
    with h5py.File(other, "r+") as file:
        file["outputs_grid"][:, 1] += 3.0
        file["outputs_scalar"][:] *= 0.5
    for name, path in (("a", sim), ("b", other)):
        run(rollout_config(path, model, tmp_path / f"{name}.h5", init="initial"))
    assert np.array_equal(predicted(tmp_path / "a.h5"), predicted(tmp_path / "b.h5"))


@pytest.mark.parametrize("init", ["output0", "initial"])
def test_index_conventions(sim: Path, model: Path, init: str):
    """State k of a forecast is one step of the network from state k-1; the start is as the flag says."""
    loaded, source = load(model, precision="fp32"), open_simulation(sim)
    states, scalars = predict(loaded, source, init=init, steps=3, placement=FREE)
    first = 0 if init == "output0" else -1
    fields = fields_of(loaded, [source], first)
    network = loaded.network
    with torch.no_grad():
        fixed = network.static_features(fields)
        state, expected = fields.state, []
        for _ in range(3):
            state, _ = network.step(fixed, state)
            expected.append(network.scales.physical(state)[0].numpy())
    domains = source.masks()[[1, 0]] > 0
    if init == "output0":
        expected = [source.states(0, 1)[0], *expected[:2]]
        np.testing.assert_allclose(scalars[0], source.scalars[0])
    for found, wanted in zip(states, expected, strict=True):
        np.testing.assert_allclose(found[domains], wanted[domains], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("init", ["output0", "initial"])
def test_scalars_stand_at_their_year(root: Path, sim: Path, tmp_path: Path, init: str):
    """An untrained network copies: power from the first state's temperatures, the total sums from there."""
    untrained = load(save_model(tmp_path / "zero.pt", root, spread=0.0), precision="fp32")
    source = open_simulation(sim)
    states, scalars = predict(untrained, source, init=init)
    given = int(init == "output0")
    np.testing.assert_array_equal(states[given], states[-1])
    injected, produced = source.wells.total_rates_kg_s
    row = source.well_features[given]
    np.testing.assert_allclose(scalars[given:, 0], injected * WATER_HEAT_CAPACITY * row[0], rtol=1e-4)
    np.testing.assert_allclose(scalars[given:, 1], produced * WATER_HEAT_CAPACITY * row[1], rtol=1e-4)
    np.testing.assert_allclose(scalars[given:, 3:], [[injected, produced]] * (4 - given), rtol=1e-4)
    start = source.scalars[0, 2] if given else 0.0
    years = np.arange(1, 5 - given)
    np.testing.assert_allclose(scalars[given:, 2], start + years * source.dt_s * scalars[-1, 1], rtol=1e-3)


def test_scenario_without_outputs(root: Path, model: Path, tmp_path: Path):
    """A raw file without group Output begins with its initial state; with output0 it is refused."""
    raw = write_raw(tmp_path / "v2.4_0009.h5", truth(9), outputs=False)
    config = rollout_config(raw, model, tmp_path / "p.h5", steps=3)
    infer(config, CPU, {"init": "default"})
    found = open_predictions(tmp_path / "p.h5")
    assert found.num_states == 3 and found.num_truth == 0 and found.first_predicted == 0
    with pytest.raises(UserError, match="--init output0: .* no group Output"):
        infer(config, CPU, {"init": "command line"})


def test_raw_file_equals_its_prepped_one(root: Path, model: Path, sim: Path, tmp_path: Path):
    """A raw simulation and its prepped file give the same forecast."""
    for name, path in (("a", root.parent / "raw" / "v2.4_0001.h5"), ("b", sim)):
        run(rollout_config(path, model, tmp_path / f"{name}.h5"))
    np.testing.assert_allclose(predicted(tmp_path / "a.h5"), predicted(tmp_path / "b.h5"), rtol=1e-5)


@pytest.mark.parametrize("outside", [-12345.0, float("nan"), 0.0])
def test_values_off_the_reservoir_do_not_count(root: Path, model: Path, tmp_path: Path, outside: float):
    """Whatever stands in inactive cells of a raw file, the predictions are equal to the bit."""
    for name, value in (("a", -999.0), ("b", outside)):
        raw = write_raw(tmp_path / name / "v2.4_0009.h5", truth(9), outside=value)
        if outside == 0.0 and name == "b":
            with h5py.File(raw, "r+") as file:
                assert (file["Input/PermX"][0] == 0).all()
        run(rollout_config(raw, model, tmp_path / f"{name}.h5"))
    assert np.array_equal(predicted(tmp_path / "a.h5"), predicted(tmp_path / "b.h5"))


def test_units_of_the_input(root: Path, model: Path, tmp_path: Path):
    """One case in SI and in field units: equal forecasts and errors, each in the units of its file."""
    for units in ("si", "field"):
        raw = write_raw(tmp_path / units / "v2.4_0009.h5", truth(9), units=units)
        run(rollout_config(raw, model, tmp_path / f"{units}.h5"))
    si, field = (open_predictions(tmp_path / f"{u}.h5") for u in ("si", "field"))
    active = si.masks[0] > 0
    for k in range(4):
        np.testing.assert_allclose(si.state(k)[:, active], field.state(k)[:, active], rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(si.scalars, field.scalars, rtol=1e-5)
    raw_si, raw_field = predicted(tmp_path / "si.h5"), predicted(tmp_path / "field.h5")
    np.testing.assert_allclose(raw_si[1, 1][active] - 273.15, raw_field[1, 1][active], atol=1e-3)
    with h5py.File(tmp_path / "si.h5") as a, h5py.File(tmp_path / "field.h5") as b:
        for name in a["metrics/per_step"]:
            np.testing.assert_allclose(
                a[f"metrics/per_step/{name}"][()], b[f"metrics/per_step/{name}"][()], rtol=1e-3, atol=1e-5
            )


def test_limits_hold_and_are_counted(root: Path, model: Path):
    """Temperatures stay between injection and the hottest cell, pressures near those trained on."""
    loaded = load(model, precision="fp32")
    source = open_simulation(root / "test" / "v2.4_0001.prepped.h5")
    fields = fields_of(loaded, [source], 0)
    limits = PhysicalLimits(loaded.network.scales, fields.state, fields.masks, [source], loaded.normalizer)
    wild = fields.state + 100.0 * torch.randn(fields.state.shape, generator=torch.Generator().manual_seed(0))
    kept = loaded.network.scales.physical(limits(wild, fields.state))[0].numpy()
    active, flow, _ = source.masks() > 0
    start = source.states(0, 1)[0]
    coldest = min(injection_estimate_c(source, loaded.normalizer), start[1][active].min())
    assert kept[1][active].min() >= coldest - 1e-3 and kept[1][active].max() <= start[1][active].max() + 1e-3
    low, high = loaded.normalizer.channel_range["grid"]["Pressure"]
    width = high - low
    assert kept[0][flow].min() >= min(low - 0.5 * width, start[0][flow].min()) - 1e-2
    assert kept[0][flow].max() <= max(high + 0.5 * width, start[0][flow].max()) + 1e-2
    counts = limits.clipped[0][0].tolist()
    assert 0.5 * flow.sum() < counts[0] <= flow.sum() and 0.5 * active.sum() < counts[1] <= active.sum()
    assert torch.equal(limits(fields.state, fields.state), fields.state)
    assert limits.clipped[1].sum() == 0


def test_non_finite_stops(root: Path, sim: Path, tmp_path: Path):
    """A forecast that becomes NaN stops, names year and cells, and leaves no file."""
    path = save_model(tmp_path / "nan.pt", root)
    found = load_checkpoint(path)
    found.state_dict["out.bias"][1] = float("nan")
    save(path, found)
    with pytest.raises(DivergedError, match=r"\d+ cells are not finite in predicted year 1"):
        run(rollout_config(sim, path, tmp_path / "p.h5"))
    assert not list(tmp_path.glob("*.h5")) and not list(tmp_path.glob(".*part"))


def test_nothing_partial_is_left(sim: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A forecast that fails in its second year leaves the old file as it was and no temporary."""
    (tmp_path / "p.h5").write_bytes(b"old")
    plain = Forecast.years

    def failing(self: Forecast, count: int) -> Iterator:
        for i, year in enumerate(plain(self, count)):
            if i == 1:
                raise DataError("planted")
            yield year

    monkeypatch.setattr(Forecast, "years", failing)
    with pytest.raises(DataError, match="planted"):
        run(rollout_config(sim, model, tmp_path / "p.h5"))
    assert (tmp_path / "p.h5").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.h5"]


def test_smaller_tiles_when_memory_runs_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A forecast that runs out of memory is tried again with tiles, and gives the same file."""
    sim = write_raw(tmp_path / "v2.4_0009.h5", truth(9, shape=(64, 6, 5)))
    model = save_model(tmp_path / "tiny.pt", root, multiscale=0)
    run(rollout_config(sim, model, tmp_path / "a.h5"))
    plain = Forecast.years

    def greedy(self: Forecast, count: int) -> Iterator:
        if len(self.regions) == 1:
            raise torch.OutOfMemoryError("planted")
        yield from plain(self, count)

    monkeypatch.setattr(Forecast, "years", greedy)
    run(rollout_config(sim, model, tmp_path / "b.h5"))
    assert "out of memory; trying again" in caplog.text
    np.testing.assert_allclose(predicted(tmp_path / "a.h5"), predicted(tmp_path / "b.h5"), rtol=1e-5)
    with pytest.raises(DataError, match="out of memory: planted; lower --max_memory"):
        run(rollout_config(sim, model, tmp_path / "c.h5", tile=("none",)))


def test_ensemble(root: Path, sim: Path, model: Path, tmp_path: Path):
    """Two equal members have no spread; two unlike ones give mean, std and ordered percentiles."""
    other = save_model(tmp_path / "other.pt", root, seed=1)
    run(rollout_config(sim, [model, model], tmp_path / "same.h5", constrain=False))
    run(rollout_config(sim, model, tmp_path / "one.h5", constrain=False))
    run(rollout_config(sim, other, tmp_path / "two.h5", constrain=False))
    run(rollout_config(sim, [model, other], tmp_path / "both.h5", constrain=False))
    active = open_simulation(sim).masks()[0] > 0
    with h5py.File(tmp_path / "same.h5") as file:
        assert (file["predicted/std"][()][:, 1, active] == 0).all()
    np.testing.assert_allclose(predicted(tmp_path / "same.h5"), predicted(tmp_path / "one.h5"), rtol=1e-6)
    members = np.stack([predicted(tmp_path / f"{n}.h5") for n in ("one", "two")])[:, :, 1][:, :, active]
    with h5py.File(tmp_path / "both.h5") as file:
        spread = {n: file[f"predicted/{n}"][()][:, 1, active] for n in ("std", "p10", "p50", "p90")}
        mean = file["predicted/outputs_grid"][()][:, 1, active]
    np.testing.assert_allclose(mean, members.mean(0), rtol=1e-5)
    np.testing.assert_allclose(spread["std"], members.std(0), atol=1e-3)
    assert (spread["p10"] <= spread["p50"]).all() and (spread["p50"] <= spread["p90"]).all()
    assert spread["std"][1:].max() > 0


def test_scenarios_at_once(root: Path, model: Path, tmp_path: Path):
    """Scenarios of one grid predicted together equal each alone."""
    sims = sorted((root / "train").glob("*.h5"))
    for size in (1, 2):
        run(rollout_config(sims, model, tmp_path / str(size), batch_sims=size))
    for path in sorted((tmp_path / "1").iterdir()):
        one, two = (predicted(tmp_path / size / path.name) for size in ("1", "2"))
        np.testing.assert_allclose(one, two, rtol=1e-5)
    assert len(list((tmp_path / "2").iterdir())) == len(sims) == 2


def test_tiles_give_the_same_file(sim: Path, model: Path, tmp_path: Path):
    """Tiles, no tiles and the whole grid give one forecast."""
    ways = {"a": {}, "b": {"tile": ("2", "4", "4")}, "c": {"skip_inactive": False, "tile": ("none",)}}
    for name, flags in ways.items():
        run(rollout_config(sim, model, tmp_path / f"{name}.h5", **flags))
    for name in "bc":
        np.testing.assert_allclose(
            predicted(tmp_path / f"{name}.h5"), predicted(tmp_path / "a.h5"), rtol=1e-5
        )


def test_foreign_cases_are_told(root: Path, model: Path, sim: Path, tmp_path: Path):
    """A parameter or a channel outside the training data is told once and kept in the file."""
    loaded, source = load(model), open_simulation(sim).load()
    inside = replace(source, params=loaded.normalizer.param_mean.double().numpy())
    static = inside.static()
    ranges = loaded.normalizer.channel_range["static"]
    low, high = ranges["Temperature0"]
    inside.arrays["static"][9] = np.where(source.masks()[0] > 0, 0.5 * (low + high), -999)
    assert not any("Temperature0" in w for w in range_warnings(inside, loaded.normalizer))
    inside.arrays["static"][9] = np.where(source.masks()[0] > 0, high + 50, -999)
    (line,) = range_warnings(inside, loaded.normalizer)
    assert "Temperature0 in 100% of the cells" in line and static.shape[0] == 11
    odd = replace(source, params=source.params + 5.0)
    assert "outside the training data: param0" in range_warnings(odd, loaded.normalizer)[0]
    run(rollout_config(sim, model, tmp_path / "p.h5"))
    with h5py.File(tmp_path / "p.h5") as file:
        assert "outside the training data" in file.attrs["warnings"]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"depth": 7}, UserError, "--depth 7: .* was trained with 1"),
        ({"base_channels": 128}, UserError, "--base_channels 128: .* was trained with 4"),
        ({"receptive_field_radius": 3}, UserError, "--receptive_field_radius 3: .* was trained with 1"),
        ({"prepped_sim_path": ("absent.h5",)}, DataError, "absent.h5: no such file"),
        ({"ckpt_path": ("absent.pt",)}, DataError, "absent.pt: no such checkpoint"),
        ({"max_memory": "1e-6"}, UserError, "max_memory .* too small"),
    ],
)
def test_refusals(sim: Path, model: Path, tmp_path: Path, flags: dict, error: type, message: str):
    """What does not fit is refused in one line before anything is written."""
    with pytest.raises(error, match=message):
        run(replace(rollout_config(sim, model, tmp_path / "p.h5"), **flags))
    assert not list(tmp_path.iterdir())


def test_checkpoint_and_data_must_fit(root: Path, sim: Path, model: Path, tmp_path: Path):
    """Refused: statistics of other data, another package, other parameters, unknown cell sizes."""
    other = prepared(tmp_path / "other", raw={"units": "field"})
    with pytest.raises(DataError, match="stats.json: differs in"):
        run(rollout_config(sim, model, tmp_path / "p.h5", stats_path=other / "stats.json"))
    run(rollout_config(sim, model, tmp_path / "p.h5", stats_path=root / "stats.json"))
    foreign = load_checkpoint(model)
    foreign.package = "fault_seg"
    save(tmp_path / "foreign.pt", foreign)
    with pytest.raises(DataError, match="package 'fault_seg'"):
        run(rollout_config(sim, tmp_path / "foreign.pt", tmp_path / "p.h5"))
    source = open_simulation(sim)
    with pytest.raises(DataError, match="3 parameters, model.pt was trained with 4"):
        load(model).require_fit(replace(source, params=source.params[:3]))
    with pytest.raises(DataError, match="cell_size_m"):
        load(model).require_fit(replace(source, cell_size_m=None))


def test_existing_file_is_kept(sim: Path, model: Path, tmp_path: Path):
    """An existing result is refused without --overwrite; one file for two simulations too."""
    config = rollout_config(sim, model, tmp_path / "p.h5")
    run(config)
    with pytest.raises(UserError, match="p.h5: exists; add --overwrite"):
        infer(config, replace(CPU, overwrite=False), {})
    with pytest.raises(UserError, match="one file for 2 simulations; name a folder"):
        run(replace(config, prepped_sim_path=(str(sim), str(sim))))


def test_folders_are_searched(root: Path, tmp_path: Path):
    """A folder stands for the simulations in it; an empty one is refused."""
    write_folder(tmp_path / "raw", 2)
    assert [s.name for s in inference.open_sims([str(tmp_path / "raw")])] == ["v2.4_0001", "v2.4_0002"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no .h5 files"):
        inference.open_sims([str(tmp_path / "empty")])


def test_stem_once_is_the_item_of_training(root: Path, sim: Path, model: Path):
    """The fields of a forecast are those that training reads: same statics, wells and first state."""
    loaded, source = load(model), open_simulation(sim)
    fields, item = fields_of(loaded, [source], 0), make_item(source, 0, 1, loaded.normalizer)
    assert torch.equal(fields.static[0], item["static"]) and torch.equal(fields.state[0], item["states"][0])
    assert torch.equal(fields.well_source[0], item["well_source"])
