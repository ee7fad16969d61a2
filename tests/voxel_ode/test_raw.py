"""Raw simulations: units, sentinels, masks and wells are understood; damage is named, never swallowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from common.errors import DataError
from tests.voxel_ode.cases_data import NUM_STEPS, SHAPE, truth, write_raw
from voxel_ode.check_h5 import check_files, next_command, with_paths
from voxel_ode.config_prep import CheckConfig
from voxel_ode.prepped import PreppedSim
from voxel_ode.raw import RawFile, find_raw, run_index
from voxel_ode.wells import WellReader, find_wells


def everything(path: Path, **options: Any) -> list[np.ndarray]:
    """Return all that is known of a raw file, in internal units."""
    sim = PreppedSim.from_raw(path, **options)
    grids = [sim.static(), sim.masks(), sim.states(-1, sim.t_valid)]
    wells = [sim.wells.sign, sim.wells.rate_kg_s, sim.wells.cells, sim.wells.weight, sim.wells.cell_well]
    return [*grids, sim.scalars, sim.well_features, sim.params, *wells]


def same(a: list[np.ndarray], b: list[np.ndarray], rtol: float = 0.0) -> None:
    """Require equal lists of arrays."""
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=0)


def test_values_come_back_in_internal_units(tmp_path: Path):
    """Pressure, temperature, rates and energies equal what was written, on their domains only."""
    case = truth()
    with RawFile(write_raw(tmp_path / "v_0001.h5", case)) as raw:
        assert (raw.shape, raw.units, raw.t_valid) == (SHAPE, "si", NUM_STEPS)
        active, flow, thermal = raw.inputs.masks
        np.testing.assert_array_equal(active, case.active)
        np.testing.assert_array_equal(flow, case.flow)
        np.testing.assert_array_equal(thermal, case.active & ~case.flow)
        state = raw.state(1)
        np.testing.assert_allclose(state[0][flow], case.states[1, 0][flow], rtol=1e-12)
        np.testing.assert_allclose(state[1][active], case.states[1, 1][active], rtol=1e-12)
        assert (state[:, ~active] == -999).all() and (state[0][thermal] == 0).all()
        np.testing.assert_allclose(raw.scalars(), case.scalars, rtol=1e-12)
        assert raw.cell_size_m == (10, 50, 50)


@pytest.mark.parametrize("attributes", [True, False])
def test_field_and_si_are_the_same_case(tmp_path: Path, attributes: bool):
    """One case in SI and in field units gives equal tensors, with unit attributes and without."""
    case = truth()
    si = write_raw(tmp_path / "a_0001.h5", case, attributes=attributes)
    field = write_raw(tmp_path / "b_0001.h5", case, units="field", attributes=attributes)
    assert PreppedSim.from_raw(field).units == "field"
    same(everything(si), everything(field), rtol=1e-6)
    same(everything(si, units="si"), everything(si))


@pytest.mark.parametrize("outside", [np.nan, 0.0, -998.5])
def test_sentinel_variants_agree(tmp_path: Path, outside: float):
    """What stands off the domains (-999, NaN, 0) and trailing missing steps change nothing."""
    case = truth()
    plain = everything(write_raw(tmp_path / "a_0001.h5", case))
    other = write_raw(tmp_path / "b_0001.h5", case, outside=outside, extra_missing_steps=2)
    same(plain, everything(other))


def test_arbitrary_values_in_inactive_cells_do_not_matter(tmp_path: Path):
    """-12345 in place of -999 gives the same tensors bit for bit."""
    case = truth()
    plain = everything(write_raw(tmp_path / "a_0001.h5", case))

    def spoil(file: h5py.File) -> None:
        for name in ("PermX", "Porosity", "Pressure0", "Temperature0", "InjRate"):
            values = file[f"Input/{name}"][()]
            values[values == -999] = -12345
            file[f"Input/{name}"][...] = values
        for name in ("Pressure", "Temperature"):
            values = file[f"Output/{name}"][()]
            values[values == -999] = -12345
            file[f"Output/{name}"][...] = values

    same(plain, everything(write_raw(tmp_path / "b_0001.h5", case, change=spoil)))


def test_scenario_without_outputs(tmp_path: Path):
    """A file without group Output is a scenario: no states but the initial one."""
    path = write_raw(tmp_path / "v_0001.h5", truth(), outputs=False)
    sim = PreppedSim.from_raw(path)
    assert sim.t_valid == 0 and sim.states(-1, 0).shape == (1, 2, *SHAPE)
    assert sim.scalars.shape == (0, 5) and sim.well_features.shape == (1, 6)
    with pytest.raises(DataError, match="Output"):
        RawFile(path)


def put(name: str, value: float, at: tuple[int, ...] = (3, 2, 2)) -> Callable[[h5py.File], None]:
    """Return a change of one value."""

    def change(file: h5py.File) -> None:
        file[name][at] = value

    return change


def replace(name: str, values: Any) -> Callable[[h5py.File], None]:
    """Return a change that puts other values into a dataset's place."""

    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


def everywhere(name: str, value: float) -> Callable[[h5py.File], None]:
    """Return a change of all values of a dataset."""

    def change(file: h5py.File) -> None:
        file[name][...] = value

    return change


BAD = {
    "dataset": (replace("Input/PermX", None), "Input/PermX"),
    "group": (replace("Input", None), "no group Input"),
    "shape": (replace("Input/PermY", np.ones((3, 3, 3))), "PermY"),
    "strings": (replace("Input/PermY", [b"abc"]), "PermY"),
    "scalar shape": (replace("Output/FieldWaterInjectionRate", np.ones(9)), "FieldWaterInjectionRate"),
    "params": (replace("Input/ParamsScalar", np.ones((2, 2))), "ParamsScalar"),
    "params NaN": (put("Input/ParamsScalar", np.nan, (1,)), "ParamsScalar"),
    "one step": (replace("Output/Temperature", np.ones((1, *SHAPE))), "Temperature"),
    "NaN in output": (put("Output/Temperature", np.nan, (2, 3, 2, 2)), "step 2, z 3 y 2 x 2"),
    "hole in output": (put("Output/Pressure", -999, (0, 3, 2, 2)), "Output/Pressure"),
    "infinite output": (put("Output/Pressure", np.inf, (1, 3, 2, 2)), "Output/Pressure"),
    "NaN in input": (put("Input/Temperature0", np.nan), "Temperature0"),
    "no pressure": (put("Input/Pressure0", np.nan), "Pressure0"),
    "infinite permeability": (put("Input/PermZ", np.inf), "PermZ"),
    "hole in permeability": (put("Input/PermZ", np.nan), "PermZ"),
    "negative porosity": (put("Input/Porosity", -0.1), "Porosity"),
    "NaN rate of a scalar": (put("Output/FieldEnergyInjectionRate", np.nan, (1,)), "at step 1"),
    "none active": (everywhere("Input/IsActive", 0), "no active"),
    "none flows": (everywhere("Input/Porosity", 0), "no flow"),
    "well outside": (put("Input/IsWell", 1, (0, 2, 2)), "IsWell"),
}


@pytest.mark.parametrize("what", BAD)
def test_damage_is_named(tmp_path: Path, what: str):
    """Each damage ends in one line that names the file and the dataset."""
    change, word = BAD[what]
    path = write_raw(tmp_path / "v_0001.h5", truth(), change=change)
    with pytest.raises(DataError) as caught:
        list(map(len, everything(path)))
        RawFile(path)
    assert str(path) in str(caught.value) and word in str(caught.value)
    found = list(check_files(CheckConfig(paths=(str(path),))))
    assert found[0][2] == str(caught.value)


def test_files_that_are_no_hdf5(tmp_path: Path):
    """Missing, empty, cut and foreign files are refused by name."""
    whole = write_raw(tmp_path / "v_0001.h5", truth()).read_bytes()
    for name, data in (("empty", b""), ("text", b"hello" * 100), ("cut", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}_0002.h5"
        path.write_bytes(data)
        with pytest.raises(DataError, match=path.name):
            RawFile(path)
    with pytest.raises(DataError, match="no such file"):
        RawFile(tmp_path / "none_0001.h5")


def test_values_in_other_files_are_refused(tmp_path: Path):
    """External storage, links and virtual datasets are not followed."""
    (tmp_path / "secret").write_bytes(bytes(8 * int(np.prod(SHAPE))))

    def external(file: h5py.File) -> None:
        del file["Input/PermX"]
        size = 8 * int(np.prod(SHAPE))
        file.create_dataset("Input/PermX", SHAPE, "f8", external=[(str(tmp_path / "secret"), 0, size)])

    def link(file: h5py.File) -> None:
        del file["Input/PermX"]
        file["Input/PermX"] = h5py.ExternalLink("other.h5", "PermX")

    def soft(file: h5py.File) -> None:
        del file["Input/PermX"]
        file["Input/PermX"] = h5py.SoftLink("/Input/PermY")

    def virtual(file: h5py.File) -> None:
        del file["Input/PermX"]
        layout = h5py.VirtualLayout(SHAPE, "f8")
        layout[:] = h5py.VirtualSource("other.h5", "PermX", shape=SHAPE)
        file.create_virtual_dataset("Input/PermX", layout)

    for i, change in enumerate((external, link, soft, virtual)):
        path = write_raw(tmp_path / f"v_000{i}.h5", truth(), change=change)
        with pytest.raises(DataError, match="copy (it|them) into the file"):
            RawFile(path)


def test_a_header_that_declares_too_much(tmp_path: Path):
    """Terabytes that a small file only declares are refused before anything is read."""

    def lie(file: h5py.File) -> None:
        for group, name, lead in (("Output", "Pressure", (10**6,)), ("Output", "Temperature", (10**6,))):
            del file[f"{group}/{name}"]
            file.create_dataset(f"{group}/{name}", (*lead, *SHAPE), "f8", chunks=(1, *SHAPE))
        for name in list(file["Output"]):
            if name.startswith("Field"):
                del file[f"Output/{name}"]
                file.create_dataset(f"Output/{name}", (10**6,), "f8", chunks=(100,))

    path = write_raw(tmp_path / "v_0001.h5", truth(), change=lie)
    with pytest.raises(DataError, match="max_memory"):
        RawFile(path, max_memory_gb=1.0)


def test_units_that_contradict_each_other(tmp_path: Path):
    """Pa with deg C is refused, by attributes and by values; saying the units settles it."""

    def mixed(file: h5py.File) -> None:
        file["Input/Temperature0"].attrs["units"] = "degC"

    path = write_raw(tmp_path / "a_0001.h5", truth(), change=mixed)
    with pytest.raises(DataError, match="--units"):
        RawFile(path)
    RawFile(path, units="si").close()

    def cold(file: h5py.File) -> None:
        values = file["Input/Temperature0"][()]
        file["Input/Temperature0"][...] = np.where(values > 0, values - 273.15, values)

    path = write_raw(tmp_path / "b_0001.h5", truth(), attributes=False, change=cold)
    with pytest.raises(DataError, match="--units"):
        RawFile(path)


def test_odd_rates_are_warned_about(tmp_path: Path):
    """A well without rate and totals that differ give a warning each, not an error."""
    case = truth()
    case.grids["InjRate"][case.grids["InjRate"] < 0] = 0
    with RawFile(write_raw(tmp_path / "v_0001.h5", case)) as raw:
        text = " ".join(raw.inputs.warnings)
    assert "rate 0 on 1 well" in text and "produced" in text


def test_wells_are_connected_cells_of_equal_rate():
    """Diagonal neighbours are one well, equal rates apart are two, other rates beside are two."""
    shape = (6, 5, 5)
    rate, perm = np.zeros(shape), np.ones(shape)
    rate[0, 0, 0] = rate[1, 1, 1] = 5.0  # a slanted well
    rate[4, 4, 4] = 5.0
    rate[5, 4, 4] = -7.0  # beside it
    perm[1, 1, 1] = 3.0
    wells = find_wells(rate != 0, rate, perm)
    assert sorted(wells.signed_rate_kg_s) == [-7.0, 5.0, 5.0]
    first = wells.cell_well[0]
    np.testing.assert_allclose(wells.weight[wells.cell_well == first], [0.25, 0.75])
    source = wells.source_kg_s(shape)
    assert source[1, 1, 1] == 3.75 and source.sum() == pytest.approx(3.0)
    assert find_wells(rate != 0, rate, 0 * perm).weight[0] == 0.5
    box = (slice(1, 6), slice(1, 5), slice(1, 5))
    np.testing.assert_array_equal(wells.source_kg_s(shape, box), source[box])
    assert len(find_wells(np.zeros(shape, bool), rate, perm)) == 0


def test_well_features_are_linear_in_the_rates(tmp_path: Path):
    """Sum |q| T over cells equals total rate times feature; the torch twin agrees and has gradients."""
    import torch

    case = truth()
    sim = PreppedSim.from_raw(write_raw(tmp_path / "v_0001.h5", case))
    row = sim.well_features[2]
    state = sim.states(1, 2)[0]
    source = sim.wells.source_kg_s(SHAPE)
    for k, sign in enumerate((1, -1)):
        rate = np.maximum(sign * source, 0)
        np.testing.assert_allclose((rate * state[1]).sum(), rate.sum() * row[k], rtol=1e-6)
        np.testing.assert_allclose((rate * state[0]).sum(), rate.sum() * row[2 + k], rtol=1e-6)
    np.testing.assert_allclose(row[4], case.states[1, 1][case.active].mean(), rtol=1e-6)
    np.testing.assert_allclose(row[5], case.states[1, 0][case.flow].mean(), rtol=1e-6)
    reader = WellReader.of(sim.wells, sim.masks())
    temperature = torch.from_numpy(state[1])[None].requires_grad_()
    found = reader.features(torch.from_numpy(state[0])[None], temperature)
    np.testing.assert_allclose(found[0].detach(), row, rtol=1e-5)
    found[0, 1].backward()
    np.testing.assert_allclose(temperature.grad[0].numpy(), np.maximum(-source, 0) / 40, atol=1e-7)


def test_names_and_folders(tmp_path: Path):
    """Run indices come from the name; files in order of it; a folder without simulations is refused."""
    assert run_index("v2.4_0017.h5") == 17 and run_index("notes.h5") is None
    for name in ("a_10.h5", "a_9.h5", "other.h5"):
        (tmp_path / name).write_bytes(b"")
    found, others = find_raw(tmp_path)
    assert [p.name for p in found] == ["a_9.h5", "a_10.h5"] and others[0].name == "other.h5"
    with pytest.raises(DataError):
        find_raw(tmp_path / "missing")


def test_check_h5_reads_words_as_paths(tmp_path: Path):
    """Paths stand anywhere between the flags; a valid file is described."""
    path = write_raw(tmp_path / "v_0001.h5", truth())
    assert with_paths(["a", "--units", "si", "b"]) == ["--units", "si", "--paths", "a", "b"]
    assert with_paths(["--dry-run", "true", "a"]) == ["--dry-run", "true", "--paths", "a"]
    assert with_paths(["--dry_run", "a", "1"]) == ["--dry_run", "--paths", "a", "1"]
    for named in (tmp_path, path):
        line = next_command(CheckConfig(paths=(str(named),), units="si"))
        assert f"--input_root {tmp_path} " in line and line.endswith("--units si")
    [(_, found, error)] = check_files(CheckConfig(paths=(str(tmp_path),)))
    assert not error and found["valid states"] == NUM_STEPS and found["units"] == "si"
    assert found["wells"].startswith("2,")
    with pytest.raises(DataError, match="no such file or folder"):
        list(check_files(CheckConfig(paths=(str(path) + "x",))))
