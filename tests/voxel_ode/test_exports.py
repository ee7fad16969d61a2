"""Exports of predictions: what other programs read is what the network said."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from common.errors import DataError, UserError
from common.run import MachineOptions
from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_rollout import rollout_config, save_model
from tests.vtk_files import read_vti
from voxel_ode.config_tools import ExportConfig
from voxel_ode.exports import export
from voxel_ode.infer import infer
from voxel_ode.predictions import Predictions, open_predictions
from voxel_ode.prepped import open_simulation
from voxel_ode.sections import draw_predictions, shown_years, well_layer
from voxel_ode.well_tables import well_energy_w, well_means
from voxel_ode.wells import Wells


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    """Return the predictions of a small network for a simulation of 7x6x5 cells and 4 years."""
    folder = tmp_path_factory.mktemp("exports")
    root = prepared(folder)
    model = save_model(folder / "model.pt", root)
    config = rollout_config(root / "test" / "v2.4_0001.prepped.h5", model, folder / "p.h5")
    infer(config, MachineOptions(device="cpu", precision="fp32"), {})
    return open_predictions(folder / "p.h5")


def export_to(predictions: Predictions, folder: Path, **flags: object) -> None:
    """Export with these flags."""
    export(ExportConfig(predictions=predictions.path, **flags))  # type: ignore[arg-type]


def test_vti_shows_the_reservoir_upright(predictions: Predictions, tmp_path: Path):
    """A .vti holds P, T, errors and masks in their places; VTK's z is up, the origin is the bottom."""
    export_to(predictions, tmp_path, vti=tmp_path / "vti", steps_list=(1, 3))
    assert {p.name for p in (tmp_path / "vti").iterdir()} == {
        "year_001.vti",
        "year_003.vti",
        "predictions.pvd",
    }
    arrays, spacing, origin = read_vti(tmp_path / "vti" / "year_003.vti")
    assert spacing == (10.0, 50.0, 50.0) and origin == (0.0, 0.0, 0.0)
    active, flow, _ = predictions.masks > 0
    state, truth = predictions.state(2), predictions.state(2, "ground_truth")
    np.testing.assert_allclose(arrays["Temperature_C"][active], state[1][active], rtol=1e-6)
    np.testing.assert_allclose(arrays["Pressure_bar"][flow], state[0][flow], rtol=1e-6)
    np.testing.assert_allclose(arrays["TemperatureError_C"][active], (state - truth)[1][active], atol=1e-4)
    assert np.isnan(arrays["Temperature_C"][~active]).all() and np.isnan(arrays["Pressure_bar"][~flow]).all()
    assert (arrays["active"] == predictions.masks[0]).all() and arrays["active"].dtype == np.uint8
    raw = (tmp_path / "vti" / "year_003.vti").read_bytes()
    assert b'Origin="0 0 -70"' in raw and b'WholeExtent="0 5 0 6 0 7"' in raw
    at = raw.index(b'encoding="raw">\n_') + len(b'encoding="raw">\n_') + 8
    lowest = np.frombuffer(raw[at : at + 4 * 30], "<f4").reshape(6, 5)  # the first layer of the file
    np.testing.assert_array_equal(lowest, arrays["Pressure_bar"][-1])


def test_series_names_the_years(predictions: Predictions, tmp_path: Path):
    """The .pvd lists each file with its year."""
    export_to(predictions, tmp_path, vti=tmp_path)
    root = ElementTree.parse(tmp_path / "predictions.pvd").getroot()
    entries = [(float(e.get("timestep", 0)), e.get("file")) for e in root.iter("DataSet")]
    assert entries == [(float(k), f"year_{k:03d}.vti") for k in (1, 2, 3, 4)]


def test_csv_sums_are_the_field_rates(predictions: Predictions, tmp_path: Path):
    """Summed over the wells of a sign, the powers of the table are the predicted field rates."""
    export_to(predictions, tmp_path, csv=tmp_path / "wells.csv")
    with open(tmp_path / "wells.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * predictions.num_states
    for k in range(predictions.num_states):
        year = [r for r in rows if r["year"] == str(k + 1)]
        for sign, column in (("1", 0), ("-1", 1)):
            total = sum(float(r["energy_W"]) for r in year if r["sign"] == sign)
            np.testing.assert_allclose(total, predictions.scalars[k, column], rtol=1e-5)
    producer = [r for r in rows if r["sign"] == "-1"]
    power = np.array([float(r["energy_W"]) for r in producer])
    total = [float(r["cumulative_J"]) for r in producer]
    np.testing.assert_allclose(total, np.cumsum(power) * predictions.dt_s, rtol=1e-6)
    truth = predictions.state(2, "ground_truth")[1]
    found = well_means(predictions.wells, truth)
    at = {int(r["well"]): float(r["T_truth_C"]) for r in rows if r["year"] == "3"}
    np.testing.assert_allclose([at[0], at[1]], found, rtol=1e-6)
    initial = well_means(predictions.wells, predictions.initial[1])
    first = {int(r["well"]): r["breakthrough_year"] for r in rows}
    for w in range(2):
        series = [float(r["T_mean_C"]) for r in rows if r["well"] == str(w)]
        colder = [k + 1 for k, t in enumerate(series) if t < initial[w] - 1.0]
        assert first[w] == (str(float(colder[0])).removesuffix(".0") if colder else "")


def test_energy_is_shared_by_rate_and_temperature():
    """Two producers share the field's power as |q| T; an injector's power follows its own temperature."""
    wells = Wells(
        np.array([-1, -1, 1], dtype=np.int8),
        np.array([10.0, 30.0, 40.0]),
        np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=np.int32),
        np.ones(3),
        np.arange(3, dtype=np.int32),
    )
    after = np.array([90.0, 60.0, 40.0])
    power = well_energy_w(wells, after, after, injected_w=5.0, produced_w=27.0)
    np.testing.assert_allclose(power, [27.0 * 900 / 2700, 27.0 * 1800 / 2700, 5.0])


def test_npz_has_axes(predictions: Predictions, tmp_path: Path):
    """The .npz holds states, truth and the axes in metres and years, and loads without pickle."""
    export_to(predictions, tmp_path, npz=tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz", allow_pickle=False) as found:
        assert found["temperature_c"].shape == (4, 7, 6, 5) == found["truth_pressure_bar"].shape
        np.testing.assert_allclose(found["z_m"], 10 * (np.arange(7) + 0.5))
        np.testing.assert_allclose(found["x_m"], 50 * (np.arange(5) + 0.5))
        assert found["years"].tolist() == [1, 2, 3, 4]
        active = predictions.masks[0] > 0
        np.testing.assert_allclose(
            found["temperature_c"][1][active], predictions.state(1)[1][active], rtol=1e-6
        )


def test_refusals(predictions: Predictions, tmp_path: Path):
    """A year that is not there, an existing target, or a file of another kind is refused in one line."""
    with pytest.raises(UserError, match="--steps_list 9: .* holds years 1 to 4"):
        export_to(predictions, tmp_path, vti=tmp_path / "v", steps_list=(9,))
    (tmp_path / "wells.csv").write_text("mine")
    with pytest.raises(UserError, match="wells.csv: exists"):
        export_to(predictions, tmp_path, csv=tmp_path / "wells.csv")
    assert (tmp_path / "wells.csv").read_text() == "mine"
    (tmp_path / "x.h5").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be opened as HDF5"):
        open_predictions(tmp_path / "x.h5")
    prepped = predictions.path.parent / "prepped" / "test" / "v2.4_0001.prepped.h5"
    with pytest.raises(DataError, match="no predictions of rollout.py"):
        open_predictions(prepped)


def test_a_forecast_keeps_exports_that_are_there(predictions: Predictions, tmp_path: Path):
    """A rollout with --csv, --npz or --vti onto existing files is refused before a year is predicted."""
    folder = predictions.path.parent
    root, cpu = folder / "prepped", MachineOptions(device="cpu", precision="fp32")
    (tmp_path / "predictions.pvd").write_text("mine")
    (tmp_path / "wells.csv").write_text("mine")
    (tmp_path / "all.npz").write_text("mine")
    exports = {"csv": tmp_path / "wells.csv", "npz": tmp_path / "all.npz", "vti": tmp_path}
    for flag, target in exports.items():
        sim = root / "test" / "v2.4_0001.prepped.h5"
        config = rollout_config(sim, folder / "model.pt", tmp_path / "p.h5", **{flag: target})
        with pytest.raises(UserError, match=f"exists; add --overwrite .* another --{flag}"):
            infer(config, cpu, {})
        assert not (tmp_path / "p.h5").exists()
    assert {p.read_text() for p in tmp_path.iterdir()} == {"mine"}
    config = rollout_config(sim, folder / "model.pt", tmp_path / "p.h5", **exports)
    infer(config, replace(cpu, overwrite=True), {})
    assert (tmp_path / "wells.csv").read_text().startswith("well,sign")
    sims = [*sorted((root / "test").glob("*.h5")), *sorted((root / "val").glob("*.h5"))]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "v2.4_0002.csv").write_text("mine")
    config = rollout_config(sims, folder / "model.pt", tmp_path / "two", csv=tmp_path / "tables")
    with pytest.raises(UserError, match=r"v2\.4_0002\.csv: exists"):
        infer(config, cpu, {})


def test_figures_of_predictions(predictions: Predictions, tmp_path: Path):
    """The figures of a forecast are drawn: slices of both channels and cuts, wells, field rates."""
    paths = draw_predictions(tmp_path, predictions, "p")
    assert len(paths) == 6 and all(p.stat().st_size > 2000 for p in paths)
    assert shown_years(30) == [5, 15, 29] and shown_years(4) == [3]
    sim = open_simulation(predictions.path.parent / "prepped" / "test" / "v2.4_0001.prepped.h5")
    assert well_layer(sim.wells, sim.shape) == 2
