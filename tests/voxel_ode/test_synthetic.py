"""The generator: geology and wells as described, files in both unit systems, folders that resume."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from common.errors import DataError, UserError
from common.run import BasicOptions
from tests.voxel_ode.cases_simulator import TINY, tiny_case
from voxel_ode import make_data as making
from voxel_ode.config_make import MAKE_DATA_PRESETS, MakeDataConfig, smoke
from voxel_ode.make_data import file_name, make_data, next_command, usable_run
from voxel_ode.parameters import PARAM_NAMES, physical
from voxel_ode.raw import RawFile
from voxel_ode.raw_writer import COMPRESSION, input_grids, write_raw
from voxel_ode.schema import INPUT_NAMES, NUM_PARAMS, SENTINEL
from voxel_ode.simulator import simulate
from voxel_ode.synthetic import WELL_DISTANCE_CELLS, GridConfig, make_case

CONFIG = MakeDataConfig(num_sims=3, grid=TINY.shape, num_steps=2)
DEMO_GRID = GridConfig()


def write(out: Path, config: MakeDataConfig = CONFIG, workers: int = 1, **more: Any) -> dict[str, bytes]:
    """Make a folder and return its simulations as bytes."""
    options = BasicOptions(overwrite=more.pop("overwrite", False), dry_run=more.pop("dry_run", False))
    make_data(config, options, out, seed=1, workers=workers, **more)
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.h5"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three tiny simulations."""
    out = tmp_path_factory.mktemp("made") / "raw files"
    write(out)
    return out


def test_case_is_its_numbers():
    """A case is a function of seed, index and attempt; each of them changes it."""
    first, again = make_case(0, 1, TINY), make_case(0, 1, TINY)
    np.testing.assert_array_equal(first.permeability_md, again.permeability_md)
    np.testing.assert_array_equal(first.wells.cells, again.wells.cells)
    for other in (make_case(1, 1, TINY), make_case(0, 2, TINY), make_case(0, 1, TINY, attempt=1)):
        assert not np.array_equal(first.params, other.params)
        assert not np.array_equal(first.permeability_md, other.permeability_md)


def test_parameters():
    """26 parameters in the unit cube with names of their own; both ends mean the ends of the ranges."""
    case = tiny_case()
    assert len(case.params) == len(set(PARAM_NAMES)) == NUM_PARAMS
    assert (case.params >= 0).all() and (case.params <= 1).all()
    low, high = physical(np.zeros(26)), physical(np.ones(26))
    assert (low["well_rate"], high["well_rate"]) == (30.0, 80.0)
    assert (low["mean_log10_permeability"], high["vertical_anisotropy"]) == (1.2, 0.3)
    assert case.injection_temperature_c == physical(case.params)["injection_temperature"]


@pytest.mark.parametrize("index", range(1, 5))
def test_geology(index: int):
    """Thermal-only rock covers the flow interval; faults, porosity and anisotropy are what they should be."""
    case = make_case(0, index, DEMO_GRID)
    values = physical(case.params)
    active, flow = case.active, case.flow
    assert 0.70 < active.mean() < 0.80 and 0.5 < flow.mean() < active.mean()
    assert not case.permeability_md[:, ~flow].any() and not case.pressure0_bar[~flow].any()
    thermal = active & ~flow
    for y, x in ((0, 0), (12, 7), (23, 23)):
        kinds = thermal[:, y, x].astype(int) + 2 * flow[:, y, x]
        runs = kinds[np.flatnonzero(np.diff(kinds, prepend=-1))].tolist()
        assert [k for k in runs if k] == [1, 2, 1]
        assert 4 <= thermal[:, y, x].sum() <= 7
    k_x, k_y, k_z = case.permeability_md[:, flow]
    ratio = np.maximum(k_x / k_y, k_y / k_x)
    np.testing.assert_allclose(ratio, values["horizontal_anisotropy"], rtol=1e-9)
    np.testing.assert_allclose(k_z / np.minimum(k_x, k_y), values["vertical_anisotropy"], rtol=1e-9)
    assert set(np.unique(case.fault_id)) <= {0, 1, 2, 3} and (case.fault_id > 0).mean() > 0.02
    assert case.porosity[flow].min() >= 0.01 and case.porosity.max() <= 0.3
    hottest = 10 + values["temperature_gradient"] * (2000 + 320)
    assert 60 < case.temperature0_c[active].min() < case.temperature0_c.max() < hottest


@pytest.mark.parametrize("grid", [TINY, DEMO_GRID], ids=["tiny", "demo"])
def test_wells(grid: GridConfig):
    """Wells are vertical, in flow cells, away from sides and each other; doublets of one rate."""
    numbers = set()
    for index in range(1, 13):
        case = make_case(5, index, grid)
        wells = case.wells
        columns = []
        for w in range(len(wells)):
            z, y, x = wells.cells[wells.cell_well == w].T
            assert len(set(y)) == len(set(x)) == 1 and (np.diff(z) == 1).all()
            assert case.flow[z, y, x].all()
            gap = case.flow[:, y[0], x[0]].sum() - len(z)
            assert gap == 4 or gap >= case.flow[:, y[0], x[0]].sum() - 2
            columns.append((y[0], x[0]))
        columns = np.array(columns)
        assert (columns >= 3).all() and (columns < np.array(grid.shape[1:]) - 3).all()
        distance = np.linalg.norm(columns[:, None] - columns[None], axis=-1)
        assert (distance[~np.eye(len(columns), dtype=bool)] > WELL_DISTANCE_CELLS).all()
        assert wells.sign.sum() == 0 and len(set(wells.rate_kg_s)) == 1 and 30 <= wells.rate_kg_s[0] <= 80
        numbers.add(len(wells))
    assert numbers == ({2} if grid is TINY else {2, 4, 6})


def test_no_room_for_wells():
    """A grid where no doublet fits is refused with the size that is enough."""
    with pytest.raises(UserError, match="--grid 12 8 8: no two wells"):
        make_case(0, 1, GridConfig((12, 8, 8)))


@pytest.mark.parametrize("compression", COMPRESSION)
def test_units_on_disk(compression: str, tmp_path: Path):
    """The same case written in SI and in field units reads back as the same tensors, to 1e-6."""
    case = tiny_case()
    run = simulate(case, 2)
    read: dict[str, list[np.ndarray]] = {}
    for system in ("si", "field"):
        path = tmp_path / f"{system}_0001.h5"
        write_raw(path, case, run, system=system, compression=compression)
        with RawFile(path) as raw:
            assert raw.units == system and raw.cell_size_m == case.cell_size_m
            assert raw.param_names == list(PARAM_NAMES)
            read[system] = [raw.inputs.static, raw.state(1), raw.scalars(), raw.inputs.wells.rate_kg_s]
    for one, other in zip(read["si"], read["field"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(read["si"][1][1][case.active], run.temperature_c[1][case.active], atol=1e-9)
    np.testing.assert_allclose(read["field"][2], run.scalars, rtol=1e-9)


def test_marks(tmp_path: Path):
    """Inactive cells hold -999 in all grids but IsActive; a scenario may have no outputs."""
    case = tiny_case()
    grids = input_grids(case)
    assert tuple(grids) == INPUT_NAMES
    for name, grid in grids.items():
        off = grid[~case.active]
        assert (off == (0 if name == "IsActive" else SENTINEL)).all()
        assert (grid[case.active] != SENTINEL).all()
    write_raw(tmp_path / "plan_0001.h5", case, None)
    with h5py.File(tmp_path / "plan_0001.h5") as file:
        assert set(file) == {"Input"} and file["Input/PermX"].fletcher32 and file["Input/PermX"].shuffle


def test_files_do_not_depend_on_workers(made: Path, tmp_path: Path):
    """File k is the same bytes made alone, by two processes, or as part of another range."""
    files = {path.name: path.read_bytes() for path in sorted(made.glob("*.h5"))}
    assert list(files) == [file_name(k) for k in (1, 2, 3)]
    assert write(tmp_path / "two", workers=2) == files
    last = dataclasses.replace(CONFIG, num_sims=1, first_index=3)
    assert write(tmp_path / "last", last) == {file_name(3): files[file_name(3)]}


def test_card(made: Path):
    """The card and dataset.json name every file, its wells and the balances of mass and heat."""
    described = json.loads((made / "dataset.json").read_text())
    assert set(described["files"]) == {file_name(k) for k in (1, 2, 3)}
    for facts in described["files"].values():
        assert facts["worst_mass_error"] < 1e-6 and facts["worst_energy_error"] < 1e-6
        assert facts["wells"] == 2 and facts["mean_cooling_c"] > 0
    text = (made / "README.md").read_text()
    assert "3 simulations" in text and "v2.4_0003.h5" in text and "injection_temperature" in text


def test_resume(made: Path, tmp_path: Path):
    """--resume keeps whole files, makes missing, cut and damaged ones again, and leaves no temporaries."""
    out = tmp_path / "raw"
    shutil.copytree(made, out)
    whole = {path.name: path.read_bytes() for path in sorted(out.glob("*.h5"))}
    (out / file_name(1)).unlink()
    cut, kept = out / file_name(2), out / file_name(3)
    cut.write_bytes(cut.read_bytes()[:-2000])
    before = kept.stat().st_mtime_ns
    (out / ".v2.4_0001.h5.999999.nohost.part").write_bytes(b"x")  # another host's: not ours to delete
    assert write(out, resume=True) == whole
    assert kept.stat().st_mtime_ns == before
    damaged = bytearray(whole[file_name(2)])
    damaged[len(damaged) // 2] ^= 0xFF
    cut.write_bytes(bytes(damaged))
    assert write(out, resume=True) == whole
    described = json.loads((out / "dataset.json").read_text())
    assert all(facts["wells"] == 2 for facts in described["files"].values())


def test_resume_with_other_settings(made: Path):
    """--resume on files of other settings names the first difference instead of mixing."""
    other = dataclasses.replace(CONFIG, substeps=3)
    with pytest.raises(UserError, match=r"v2.4_0001.h5: was made with substeps 2, now 3"):
        write(made, other, resume=True)


def test_refuses_to_replace(made: Path, tmp_path: Path):
    """Existing files need --overwrite or --resume; other indices may join them."""
    with pytest.raises(UserError, match="exists .3 such files.; add --resume"):
        write(made)
    out = tmp_path / "raw"
    shutil.copytree(made, out)
    (out / file_name(1)).write_bytes(b"old")
    assert write(out, overwrite=True)[file_name(1)] != b"old"
    fourth = dataclasses.replace(CONFIG, num_sims=1, first_index=4)
    assert len(write(out, fourth)) == 4
    assert len(json.loads((out / "dataset.json").read_text())["files"]) == 4


def test_dry_run_writes_nothing(tmp_path: Path):
    """--dry_run leaves no file and no folder, but finds what cannot work."""
    assert write(tmp_path / "raw", dry_run=True) == {}
    assert not (tmp_path / "raw").exists()
    with pytest.raises(UserError, match="no two wells"):
        write(tmp_path / "raw", dataclasses.replace(CONFIG, grid=(12, 8, 8)), dry_run=True)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Too little room is found before the first simulation."""
    monkeypatch.setattr(making, "needed_bytes", lambda *_: 1 << 60)
    with pytest.raises(DataError, match="free some space"):
        write(tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_too_tight_reservoirs_are_drawn_again(monkeypatch: pytest.MonkeyPatch):
    """A draw whose producers fall below 10 bar is replaced by the next; none at all is an error."""
    tight = next(k for k in range(1, 40) if usable_run(CONFIG, 1, k)[2] > 0)
    case, run, attempt = usable_run(CONFIG, 1, tight)
    assert run.pressure_bar[:, case.flow].min() >= making.MIN_PRESSURE_BAR
    first = make_case(1, tight, TINY)
    assert simulate(first, 2).pressure_bar[:, first.flow].min() < making.MIN_PRESSURE_BAR
    monkeypatch.setattr(making, "MAX_ATTEMPTS", attempt)
    with pytest.raises(DataError, match="fell below 10 bar"):
        usable_run(CONFIG, 1, tight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_sims": 0}, "--num_sims 0"),
        ({"grid": (12, 10)}, "--grid 12 10: expected Z Y X"),
        ({"cell_size": (10.0, 0.0, 50.0)}, "--cell_size 10.0 0.0 50.0"),
        ({"first_index": 9999}, "four digits"),
        ({"max_doublets": 0}, "--max_doublets 0"),
    ],
)
def test_bad_flags(changes: dict[str, Any], message: str):
    """Values that cannot work are refused by name."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_presets_and_next_command():
    """Presets are the sizes that are told, and the next command splits and cuts what was made."""
    sizes = {
        name: (make().num_sims, make().grid, make().num_steps) for name, make in MAKE_DATA_PRESETS.items()
    }
    assert sizes == {
        "smoke": (4, (12, 10, 10), 6),
        "demo": (12, (32, 24, 24), 30),
        "study": (60, (32, 24, 24), 30),
    }
    line = next_command(smoke(), Path("data/my raw"))
    assert "--input_root 'data/my raw'" in line and "--patch_size 12 10 10" in line
    assert "--num_test 1 --num_val 1" in line
