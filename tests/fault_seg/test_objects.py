"""Faults and horizons as objects, on planes and surfaces whose answers are known."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from fault_seg.angles import normal_from_angles
from fault_seg.objects import (
    SurveyGeometry,
    fault_points,
    fault_sticks,
    fault_table,
    find_faults,
    horizon_levels,
    horizon_surface,
    thin_faults,
)
from fault_seg.objects_files import write_fault_files, write_horizon_files

SHAPE = (48, 44, 40)


def geometry_of_voxels() -> SurveyGeometry:
    """Return a geometry whose numbers and coordinates are voxel indices."""
    y, x = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[2]), indexing="ij")
    return SurveyGeometry(np.arange(SHAPE[2]), np.arange(SHAPE[1]), x.astype(float), y.astype(float))


def planes(
    angles: list[tuple[float, float]],
    centres: list[tuple[float, float, float]],
    shape: tuple[int, int, int] = SHAPE,
    width: float = 2.0,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (fsem, dip, strike) of slabs `width` voxels wide; the nearest plane gives the angles."""
    points = np.stack(np.meshgrid(*(np.arange(float(n)) for n in shape), indexing="ij"))
    distance = []
    for (dip, strike), centre in zip(angles, centres, strict=True):
        normal = normal_from_angles(torch.tensor(dip).double(), torch.tensor(strike).double()).numpy()
        normal = normal * np.array(voxel_size)
        normal /= np.linalg.norm(normal)
        offset = points - np.array(centre)[:, None, None, None]
        distance.append(np.abs(np.tensordot(normal, offset, axes=1)))
    nearest = np.argmin(distance, axis=0)
    fsem = (np.min(distance, axis=0) <= width / 2).astype(np.float32)
    dip, strike = (np.array([a[k] for a in angles])[nearest] for k in (0, 1))
    return fsem, np.where(fsem > 0, dip, 0), np.where(fsem > 0, strike, 0)


CROSSING = planes([(65.0, 30.0), (105.0, 95.0)], [(24, 22, 20), (24, 22, 20)])


def test_two_crossing_planes_are_two_faults():
    """Two planes that cross are two faults, each with its dip, strike and azimuth within two degrees."""
    fsem, dip, strike = CROSSING
    faults = find_faults(fsem, dip, strike)
    rows = fault_table(faults, fsem, geometry_of_voxels())
    assert len(rows) == 2
    first, second = sorted(rows, key=lambda row: row["strike_deg"])
    assert first["dip_deg"] == pytest.approx(65, abs=2)
    assert first["strike_deg"] == pytest.approx(30, abs=2)
    assert first["dip_azimuth_deg"] == pytest.approx(120, abs=2)
    assert second["dip_deg"] == pytest.approx(75, abs=2)
    assert second["strike_deg"] == pytest.approx(95, abs=2)
    assert second["dip_azimuth_deg"] == pytest.approx(5, abs=2)


@pytest.mark.parametrize(
    ("dip", "strike"), [(90.0, 0.0), (50.0, 0.0), (70.0, 179.5), (120.0, 45.0), (80.0, 90.0)]
)
def test_one_plane_is_one_thin_fault(dip, strike):
    """A slab thins to a sheet about one voxel thick through its middle, in one piece."""
    fsem, dips, strikes = planes([(dip, strike)], [(24, 22, 20)], width=4)
    faults = find_faults(fsem, dips, strikes, min_size=50)
    assert faults.fault_id.max() == 1
    normal = normal_from_angles(torch.tensor(dip).double(), torch.tensor(strike).double()).numpy()
    distance = (faults.index - np.array([24, 22, 20])) @ normal
    inner = ((faults.index >= 3) & (faults.index < np.array(SHAPE) - 3)).all(axis=1)
    assert np.abs(distance[inner]).max() <= 1.0
    assert len(faults.index) < 0.5 * fsem.sum()


def test_parallel_faults_stay_apart_and_small_ones_go():
    """Two parallel planes are two faults; a patch below the minimum size is none."""
    fsem, dip, strike = planes([(80.0, 20.0)] * 2, [(24, 14, 20), (24, 30, 20)])
    fsem[2:6, 2:4, 36:39] = 1
    faults = find_faults(fsem, dip, strike, min_size=100)
    assert sorted(np.unique(faults.fault_id)) == [1, 2]
    size = np.bincount(faults.fault_id)[1:]
    assert size[0] >= size[1]


def test_a_gap_without_fault_separates():
    """A fault interrupted by unbroken rock is two faults: only another fault is bridged."""
    fsem, dip, strike = planes([(85.0, 0.0)], [(24, 22, 20)])
    fsem[:, :, 18:22] = 0
    assert find_faults(fsem, dip, strike).fault_id.max() == 2


def test_nothing_to_find():
    """A volume below the threshold has no faults and empty tables."""
    geometry = geometry_of_voxels()
    fsem = np.full(SHAPE, 0.4, dtype=np.float32)
    faults = find_faults(fsem, fsem, fsem)
    assert not faults.volume(SHAPE).any()
    assert fault_table(faults, fsem, geometry) == []
    assert fault_sticks(faults, geometry)["x"].size == 0


def test_thinning_keeps_the_crest():
    """Of a smooth ridge of probability across y only the crest stays."""
    y = np.arange(20.0)
    fsem = np.broadcast_to(np.exp(-0.5 * ((y - 9) / 2) ** 2)[None, :, None], (16, 20, 12)).astype(np.float32)
    index, _ = thin_faults(fsem, np.full(fsem.shape, 90.0), np.zeros(fsem.shape), 0.5)
    assert set(index[:, 1]) == {9}
    assert len(index) == 16 * 12


def test_true_angles_of_unequal_voxels():
    """With voxels of 4 x 25 x 12.5 m a plane of true dip 60, thinned in voxel space, keeps dip 60."""
    size = (4.0, 25.0, 12.5)
    fsem, dip, strike = planes([(60.0, 40.0)], [(24, 22, 20)], voxel_size=size, width=3)
    faults = find_faults(fsem, dip, strike, voxel_size=size)
    x = np.zeros(SHAPE[1:])
    geometry = SurveyGeometry(np.arange(40), np.arange(44), x, x, voxel_size=size)
    (row,) = fault_table(faults, fsem, geometry)
    assert row["dip_deg"] == pytest.approx(60, abs=0.5)
    assert row["strike_deg"] == pytest.approx(40, abs=0.5)


def survey() -> SurveyGeometry:
    """Return inlines 100, 102, .., crosslines 700, 701, .., a rotated grid and 4 ms samples from 200 ms."""
    ilines, xlines = 100 + 2 * np.arange(SHAPE[2]), 700 + np.arange(SHAPE[1])
    j, i = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[2]), indexing="ij")
    return SurveyGeometry(ilines, xlines, 5e5 + 20 * i - 15 * j, 6e6 + 15 * i + 20 * j, 200.0, 4.0)


def test_points_carry_headers_and_times():
    """Every fault point has its trace's numbers and coordinates, its time, and the dip folded to 0..90."""
    fsem, dip, strike = CROSSING
    geometry, faults = survey(), find_faults(fsem, dip, strike)
    points = fault_points(faults, fsem, dip, strike, geometry)
    z, y, x = faults.index[7]
    assert points["inline"][7] == 100 + 2 * x
    assert points["crossline"][7] == 700 + y
    assert points["x"][7] == 5e5 + 20 * x - 15 * y
    assert points["time_or_depth"][7] == 200 + 4 * z
    assert points["dip_deg"].max() <= 90
    assert set(np.round(points["dip_deg"])) == {65, 75}


def test_sticks_lie_on_the_plane():
    """Every second inline has one stick a fault, ordered downwards, within a voxel of the plane."""
    fsem, dip, strike = planes([(65.0, 30.0)], [(24, 22, 20)])
    sticks = fault_sticks(find_faults(fsem, dip, strike), survey())
    x = (sticks["inline"] - 100) / 2
    assert set(x % 2) == {0}
    assert len(np.unique(sticks["stick_id"])) == len(np.unique(sticks["inline"]))
    normal = normal_from_angles(torch.tensor(65.0).double(), torch.tensor(30.0).double()).numpy()
    z, y = (sticks["z"] - 200) / 4, sticks["crossline"] - 700
    assert np.abs(normal @ np.stack((z - 24, y - 22, x - 20))).max() < 1.2
    np.testing.assert_allclose(sticks["x"], 5e5 + 20 * x - 15 * y)
    for stick in np.unique(sticks["stick_id"]):
        assert (np.diff(sticks["z"][sticks["stick_id"] == stick]) >= 0).all()


def test_horizons_lie_on_the_iso_surface():
    """The surface of a value of rgt is within half a sample of the true layer, NaN where there is none."""
    z, y, x = np.meshgrid(*(np.arange(float(n)) for n in SHAPE), indexing="ij")
    rise = 6 * np.sin(y / 9) * np.cos(x / 11)
    rgt = ((z - rise) + 8) / 64
    for value in (0.2, 0.5):
        depth = horizon_surface(rgt, value)
        true = 64 * value - 8 + rise[0]
        np.testing.assert_allclose(depth, np.where((true > 0) & (true <= 47), true, np.nan), atol=0.5)
    assert np.isnan(horizon_surface(rgt, 0.99)).all()


def test_horizons_end_at_faults():
    """Traces whose horizon falls on a fault voxel have NaN, all others a depth."""
    rgt = np.broadcast_to((np.arange(20.0) / 19)[:, None, None], (20, 8, 6))
    fault = np.zeros(rgt.shape, dtype=bool)
    fault[9:11, 3] = True
    depth = horizon_surface(rgt, 0.5, fault)
    assert np.isnan(depth[3]).all()
    assert np.isfinite(np.delete(depth, 3, axis=0)).all()
    np.testing.assert_allclose(horizon_levels(3), [0.25, 0.5, 0.75])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_hold_what_was_found(tmp_path):
    """The written tables read back: two faults, all points, sticks as x y z id, horizons trace by trace."""
    fsem, dip, strike = CROSSING
    geometry, faults = survey(), find_faults(fsem, dip, strike)
    paths = write_fault_files(tmp_path / "s", faults, fsem, dip, strike, geometry)
    assert [p.name for p in paths][0] == "s.faults.csv"
    rows = read_csv(paths[0])
    assert [int(row["fault_id"]) for row in rows] == [1, 2]
    assert sum(int(row["size"]) for row in rows) == len(read_csv(paths[1])) == len(faults.index)
    sticks, dat = read_csv(paths[2]), np.loadtxt(paths[3])
    assert dat.shape == (len(sticks), 4)
    assert float(sticks[5]["y"]) == pytest.approx(dat[5, 1])
    rgt = np.broadcast_to((np.arange(48.0) / 47)[:, None, None], SHAPE)
    written = write_horizon_files(tmp_path / "s", rgt, [0.5], geometry, fsem > 0.5)
    assert [p.name for p in written] == ["s.horizon_0.5.xyz", "s.horizons.csv"]
    table = np.loadtxt(written[0])
    assert table.shape == (44 * 40, 5)
    assert np.isnan(table[:, 4]).any()
    assert np.nanmax(table[:, 4]) == pytest.approx(200 + 4 * 23.5)
    inlines = [row[0] for row in itertools.islice(table, 44)]
    assert set(inlines) == {100}


def test_empty_tables_are_written(tmp_path):
    """Without any fault the files have their header and no row."""
    fsem = np.zeros(SHAPE, dtype=np.float32)
    faults = find_faults(fsem, fsem, fsem)
    paths = write_fault_files(tmp_path / "none", faults, fsem, fsem, fsem, survey())
    assert read_csv(paths[0]) == []
    assert paths[0].read_text().startswith("fault_id,size,mean_p")


def test_wrong_geometry_is_refused():
    """A volume of another survey, or coordinates of another grid, end with one line."""
    with pytest.raises(DataError, match="same survey"):
        survey().check(np.zeros((48, 40, 44)), "fsem")
    with pytest.raises(DataError, match="expected"):
        SurveyGeometry(np.arange(3), np.arange(4), np.zeros((3, 4)), np.zeros((4, 3)))
