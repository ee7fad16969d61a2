"""From the volumes of inference to tables of faults and horizons, in every format."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from common.run import BasicOptions
from fault_seg.angles import normal_from_angles
from fault_seg.config_tools import ObjectsConfig
from fault_seg.make_objects import make_objects, report
from fault_seg.stored_angles import angles_in_degrees
from fault_seg.survey_geometry import geometry_of
from fault_seg.volumes import open_volume, open_writers, read_volume, write_sidecar
from tests.fault_seg.volume_files import make_segy

SHAPE = (40, 36, 32)
PLANES = ((65.0, 30.0), (105.0, 95.0))  # dip and strike of two planes that cross in the middle
OPTIONS = BasicOptions()
FORMATS = ["raw", "npy", "segy", "h5", "mhd", "vti"]


def volumes() -> dict[str, np.ndarray]:
    """Return fsem (0.8 in slabs two voxels wide), fdip and fstrike in degrees, 0 off faults, and rgt."""
    points = np.stack(np.meshgrid(*(np.arange(float(n)) for n in SHAPE), indexing="ij"))
    points -= np.array(SHAPE)[:, None, None, None] // 2
    normals = [normal_from_angles(torch.tensor(d), torch.tensor(s)).numpy() for d, s in PLANES]
    distance = np.abs([np.tensordot(normal, points, axes=1) for normal in normals])
    fsem = 0.8 * (distance.min(axis=0) <= 1)
    nearest = distance.argmin(axis=0)
    fdip, fstrike = (np.where(fsem > 0, np.array([p[k] for p in PLANES])[nearest], 0) for k in (0, 1))
    rise = 3 * np.sin(points[1] / 9) * np.cos(points[2] / 11)
    rgt = (points[0] + 20 - rise + 4) / 48
    made = {"fsem": fsem, "fdip": fdip, "fstrike": fstrike, "rgt": rgt}
    return {name: values.astype(np.float32) for name, values in made.items()}


VOLUMES = volumes()


def survey(folder: Path) -> Path:
    """Write a survey of the volumes' shape: inlines 100, 102, .., 2 ms samples from 200 ms, coordinates."""
    return make_segy(
        folder / "survey.sgy",
        np.ones(SHAPE, np.float32),
        ilines=[100 + 2 * i for i in range(SHAPE[2])],
        xlines=[700 + i for i in range(SHAPE[1])],
        skip={(100, 735)},
        fields=lambda il, xl, trace: {
            (109, 2): 200,
            (181, 4): 100 * (500_000 + 10 * il - 15 * xl),
            (185, 4): 100 * (6_000_000 + 7 * il + 20 * xl),
        },
    )


def write(folder: Path, kind: str, names: tuple[str, ...] = tuple(VOLUMES)) -> str:
    """Write the volumes as inference does (raw: over 180, gated; else folded degrees); return the prefix."""
    values = {name: VOLUMES[name].copy() for name in names}
    fault = VOLUMES["fsem"] > 0
    if kind == "raw":
        for name in {"fdip", "fstrike"} & set(names):
            values[name] *= VOLUMES["fsem"] / 180
    elif "fdip" in names:
        values["fdip"] = np.where(values["fdip"] > 90, 180 - values["fdip"], values["fdip"])
        if kind in ("npy", "h5"):
            for name in ("fdip", "fstrike"):
                values[name][~fault] = np.nan
    prefix = str(folder / "s")
    with open_volume(survey(folder)) as like:
        writers = open_writers(prefix, dict.fromkeys(names, ""), kind, like)
        for name in names:
            writers[name].write(0, values[name])
            writers[name].close()
        write_sidecar(prefix, like)
    return prefix


def rows_of(path: Path) -> list[dict[str, float]]:
    """Return the rows of a CSV file as numbers."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("kind", FORMATS)
def test_two_faults_in_every_format(tmp_path: Path, kind: str):
    """Whatever the format and angle convention, the two planes are two faults within two degrees."""
    prefix = write(tmp_path, kind)
    out = str(tmp_path / "out/s")
    summary = make_objects(ObjectsConfig(input=prefix, output=out, format=kind, rgt_values=(0.5,)), OPTIONS)
    rows = sorted(rows_of(Path(f"{out}.faults.csv")), key=lambda row: row["strike_deg"])
    assert len(rows) == len(summary["faults"]) == 2
    found = [[row[f"{name}_deg"] for name in ("dip", "strike", "dip_azimuth")] for row in rows]
    np.testing.assert_allclose(found, [[65, 30, 120], [75, 95, 5]], atol=2)
    labels = read_volume(
        f"{out}.faultid" + {"segy": ".sgy", "raw": ""}.get(kind, f".{kind}"),
        **({"dataset": "faultid"} if kind == "h5" else {}),
    )
    assert set(np.unique(labels)) == {0, 1, 2}
    assert [int((labels == row["fault_id"]).sum()) for row in rows] == [int(row["size"]) for row in rows]
    assert np.count_nonzero(labels[VOLUMES["fsem"] == 0]) == 0
    text = report(summary)
    assert "faults: 2" in text
    assert "next: python scripts/fault_seg/convert.py" in text
    if kind == "h5":
        assert read_volume(f"{prefix}.h5", dataset="rgt").shape == SHAPE  # the attributes are not overwritten


def test_tables_carry_the_survey(tmp_path: Path):
    """With SEG-Y every point, stick and horizon has the header's numbers, coordinates and time."""
    prefix = write(tmp_path, "segy")
    make_objects(ObjectsConfig(input=prefix, rgt_values=(0.5, 0.25)), OPTIONS)
    points = np.genfromtxt(f"{prefix}.fault_points.csv", delimiter=",", names=True)
    sticks = np.genfromtxt(f"{prefix}.fault_sticks.csv", delimiter=",", names=True)
    for table in (points, sticks):
        il, xl = table["inline"], table["crossline"]
        np.testing.assert_allclose(table["x"], 500_000 + 10 * il - 15 * xl, atol=0.01)
        np.testing.assert_allclose(table["y"], 6_000_000 + 7 * il + 20 * xl, atol=0.05)
    np.testing.assert_allclose(points["time_or_depth"], 200 + 2 * points["sample"])
    assert set(sticks["inline"] % 4) == {0}
    assert np.loadtxt(f"{prefix}.fault_sticks.dat").shape == (len(sticks), 4)
    horizon = np.loadtxt(f"{prefix}.horizon_0.5.xyz")
    assert horizon.shape == (SHAPE[1] * SHAPE[2], 5)
    np.testing.assert_array_equal(horizon[: SHAPE[1], 0], 100)
    y, x = (np.arange(float(n)) - n // 2 for n in SHAPE[1:])
    true = 48 * 0.5 - 4 + 3 * np.sin(y / 9)[None] * np.cos(x / 11)[:, None]  # samples, inline by inline
    z = (horizon[:, 4].reshape(SHAPE[2], SHAPE[1]) - 200) / 2
    cut = np.isnan(z)
    assert 0 < cut.sum() < 0.3 * cut.size
    np.testing.assert_allclose(z[~cut], true[~cut], atol=0.5)
    together = np.genfromtxt(f"{prefix}.horizons.csv", delimiter=",", names=True)
    assert len(together) == 2 * len(horizon)


def test_no_coordinates_and_missing_traces(tmp_path: Path):
    """A missing trace gets coordinates from the fit; without coordinates the line numbers stand for them."""
    with open_volume(survey(tmp_path)) as volume:
        geometry = geometry_of(volume)
    assert geometry.x[35, 0] == pytest.approx(500_000 + 10 * 100 - 15 * 735, abs=0.01)
    assert (geometry.sample_start, geometry.sample_step) == (200, 2)
    with open_volume(make_segy(tmp_path / "bare.sgy", np.ones((4, 3, 2), np.float32))) as volume:
        geometry = geometry_of(volume)
    np.testing.assert_array_equal(geometry.x[0], geometry.ilines)
    np.testing.assert_array_equal(geometry.y[:, 0], geometry.xlines)


@pytest.mark.parametrize("dip", [40.0, 75.0, 88.0, 95.0, 130.0])
@pytest.mark.parametrize("strike", [0.0, 60.0, 170.0])
def test_the_side_of_the_dip_is_found_again(dip: float, strike: float):
    """Folded degrees do not say to which side a plane dips; the fault's own shape does."""
    points = np.stack(np.meshgrid(*(np.arange(24.0) - 12,) * 3, indexing="ij"))
    normal = normal_from_angles(torch.tensor(dip), torch.tensor(strike)).numpy()
    fsem = (np.abs(np.tensordot(normal, points, axes=1)) <= 1).astype(np.float32)
    fault = fsem > 0
    stored = np.where(fault, min(dip, 180 - dip), 0), np.where(fault, strike, 0)
    angles = angles_in_degrees(fsem, *stored, "auto", 0.5)
    assert not angles.missing[fault].any() or (strike == 0 and dip == 0)
    np.testing.assert_allclose(np.median(angles.dip_deg[fault]), dip, atol=0.01)
    assert np.mean(np.abs(angles.dip_deg[fault] - dip) < 1) > 0.95


def test_gated_angles_do_not_shrink():
    """Angles stored over 180 times the probability come back whole, whatever the probability."""
    fsem = np.linspace(0.5, 1, 27).reshape(3, 3, 3)
    dip, strike = np.full(fsem.shape, 120.0), np.full(fsem.shape, 170.0)
    angles = angles_in_degrees(fsem, dip / 180 * fsem, strike / 180 * fsem, "auto", 0.4)
    np.testing.assert_allclose(angles.dip_deg, 120, rtol=1e-5)
    np.testing.assert_allclose(angles.strike_deg, 170, rtol=1e-5)


def test_voxels_without_angle_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Below the threshold of inference there are no angles: those voxels are told and make no faults."""
    fsem = np.full((8, 8, 8), 0.6)
    angles = angles_in_degrees(fsem, np.full(fsem.shape, np.nan), np.zeros(fsem.shape), "auto", 0.5)
    assert angles.missing.all()
    assert not angles.dip_deg.any()


def test_only_what_is_there(tmp_path: Path):
    """Without rgt there are faults only, without faults horizons only; asked for by name, both are errors."""
    faults = write(tmp_path, "npy", ("fsem", "fdip", "fstrike"))
    summary = make_objects(ObjectsConfig(input=faults, output=str(tmp_path / "a")), OPTIONS)
    assert len(summary["faults"]) == 2
    assert summary["horizons"] == []
    with pytest.raises(UserError, match="no rgt"):
        make_objects(ObjectsConfig(input=faults), OPTIONS, {"horizons": "command line"})
    (tmp_path / "t").mkdir()
    times = write(tmp_path / "t", "vti", ("rgt",))
    summary = make_objects(ObjectsConfig(input=times, horizons=3), OPTIONS)
    assert summary["horizons"] == [0.25, 0.5, 0.75]
    assert {p.suffix for p in summary["files"]} == {".xyz", ".csv"}
    assert not list(tmp_path.glob("t/*faultid*"))


def test_nothing_found(tmp_path: Path):
    """Above all probabilities there is no fault: the tables are empty and the report says what to try."""
    prefix = write(tmp_path, "mhd")
    summary = make_objects(ObjectsConfig(input=prefix, threshold=0.9, horizons=0), OPTIONS)
    assert summary["faults"] == []
    assert "lower --threshold" in report(summary)
    assert rows_of(Path(f"{prefix}.faults.csv")) == []


def test_threshold_of_the_model(tmp_path: Path):
    """Faults count from the probability that inference used; a flag overrides it; 0.5 where nothing says."""
    prefix = write(tmp_path, "npy")
    np.save(tmp_path / "s.fsem.npy", VOLUMES["fsem"] * np.float32(0.5))  # 0.4 on faults

    def found(**flags: Any) -> tuple[float, int]:
        config = ObjectsConfig(input=prefix, output=str(tmp_path / "o"), horizons=0, **flags)
        summary = make_objects(config, BasicOptions(overwrite=True))
        assert f"faults from a probability of {summary['threshold']:.3g}" in report(summary)
        return summary["threshold"], len(summary["faults"])

    assert found() == (0.5, 0)
    with open_volume(tmp_path / "s.fsem.npy") as like:
        write_sidecar(prefix, like, threshold=0.29)
        assert found() == (0.29, 2)
        assert found(threshold=0.45) == (0.45, 0)
        write_sidecar(prefix, like, threshold=1.5)
        with pytest.raises(DataError, match=r"s\.json: threshold 1.5, expected between 0 and 1; pass --thr"):
            found()
        assert found(threshold=0.3) == (0.3, 2)


def test_dry_run_writes_nothing(tmp_path: Path):
    """--dry_run looks for the volumes and leaves no file."""
    prefix = write(tmp_path, "npy")
    before = sorted(tmp_path.iterdir())
    make_objects(ObjectsConfig(input=prefix), BasicOptions(dry_run=True))
    assert sorted(tmp_path.iterdir()) == before


def test_bad_input(tmp_path: Path):
    """Missing volumes and sisters of another shape are bad data; existing files and wrong flags bad usage."""
    with pytest.raises(DataError, match="run infer.py"):
        make_objects(ObjectsConfig(input=str(tmp_path / "none")), OPTIONS)
    prefix = write(tmp_path, "npy")
    with pytest.raises(UserError, match="one of the two"):
        make_objects(ObjectsConfig(input=prefix, rgt_values=(0.5,)), OPTIONS, {"horizons": "command line"})
    make_objects(ObjectsConfig(input=prefix, horizons=1), OPTIONS)
    with pytest.raises(UserError, match="--overwrite"):
        make_objects(ObjectsConfig(input=prefix, horizons=1), OPTIONS)
    np.save(tmp_path / "s.fdip.npy", np.zeros((3, 4, 5), np.float32))
    with pytest.raises(DataError, match="sisters"):
        make_objects(ObjectsConfig(input=prefix, output=str(tmp_path / "b")), OPTIONS)
    for name in ("fdip", "fstrike", "rgt"):
        (tmp_path / f"s.{name}.npy").unlink()
    with pytest.raises(DataError, match="no fdip, fstrike and rgt"):
        make_objects(ObjectsConfig(input=prefix, format="npy"), OPTIONS)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"input": "a", "threshold": 1.5},
        {"input": "a", "threshold": -0.1},
        {"input": "a", "min_size": 0},
        {"input": "a", "horizons": -1},
        {"input": "a", "rgt_values": (0.5, 1.5)},
        {"input": "a", "rgt_values": (0.50001, 0.50002)},
    ],
)
def test_flags_out_of_range(flags: dict[str, Any]):
    """Impossible values are refused before any file is opened."""
    with pytest.raises(ValueError, match="--"):
        ObjectsConfig(**flags)
