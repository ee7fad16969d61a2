"""Preparation: SEG-Y and list files in, analysis, the check of the physics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, UserError
from common.run import BasicOptions
from tests.velocity_inversion.cases_segy import write_shots
from velocity_inversion.check_physics import compare
from velocity_inversion.config_data import PrepConfig
from velocity_inversion.geometry import read_survey
from velocity_inversion.prep import prepare
from velocity_inversion.segy_shots import read_shots, scaled
from velocity_inversion.sources import open_source

BASIC = BasicOptions()


def test_segy_round_trip(data: Path, tmp_path: Path):
    """Gathers and places come back from shuffled traces with scaled coordinates."""
    source = open_source(data / "test")
    gathers, _ = source.read_gathers(0)
    write_shots(tmp_path / "line.sgy", gathers, source.survey)
    config = PrepConfig(segy=(str(tmp_path / "line.sgy"),), model_shape_zx=(70, 70), cache_dir=tmp_path / "c")
    prepare(config, BASIC, tmp_path / "out")
    found = open_source(tmp_path / "out")
    assert found.ids == ["line"] and not found.has_truth
    np.testing.assert_array_equal(found.read_gathers(0)[0], gathers)
    np.testing.assert_allclose(found.survey.sources, source.survey.sources, atol=0.06)
    np.testing.assert_allclose(found.survey.receivers, source.survey.receivers, atol=0.06)
    assert found.survey.dt_s == source.survey.dt_s
    with pytest.raises(UserError, match="holds imported data"):
        prepare(config, BASIC, tmp_path / "out")


def test_segy_scalars():
    """A positive scalar multiplies, a negative one divides, zero means one."""
    assert scaled(np.array([5, 5, 5]), np.array([10, -10, 0])).tolist() == [50, 0.5, 5]


def test_bad_segy(data: Path, tmp_path: Path):
    """Cut, missing, foreign files and two sources in one record are named."""
    source = open_source(data / "test")
    whole = tmp_path / "line.sgy"
    write_shots(whole, source.read_gathers(0)[0], source.survey)
    (tmp_path / "cut.sgy").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text.sgy").write_text("no gathers")
    for name in ("cut", "text", "absent"):
        with pytest.raises(DataError, match=f"{name}.sgy: .*expected"):
            read_shots(tmp_path / f"{name}.sgy")
    one = replace(source.survey, source_xz=((0.0, 10.0),) * source.survey.num_shots)
    write_shots(tmp_path / "same.sgy", source.read_gathers(0)[0], one)
    assert len(read_shots(tmp_path / "same.sgy").gathers) == 3
    import segyio

    with segyio.open(str(whole), "r+", ignore_geometry=True) as file:
        file.header[0] = {segyio.TraceField.SourceX: 12345}
    with pytest.raises(DataError, match="sources at 2 places"):
        read_shots(whole)


def test_wrong_polarity_is_found_and_corrected(data: Path, tmp_path: Path):
    """Gathers with other sign, scale and delay: the check says so, and the new geometry explains them."""
    work = tmp_path / "data"
    work.mkdir()
    for path in (data / "test").iterdir():
        (work / path.name).write_bytes(path.read_bytes())
    gathers = np.load(work / "data1.npy")
    moved = np.zeros_like(gathers)
    moved[:, :, 6:] = -2.5 * gathers[:, :, :-6]
    np.save(work / "data1.npy", moved)
    config = PrepConfig(data_path=str(work), check_physics=2, update_geometry=True, cache_dir=tmp_path / "c")
    first = prepare(config, BASIC, tmp_path / "out")["physics"][0]
    assert first["sign"] == -1 and first["lag_s"] == pytest.approx(0.006)
    assert first["scale"] == pytest.approx(2.5, rel=1e-2) and first["relative_l2"] > 1
    again = prepare(replace(config, update_geometry=False), BASIC, tmp_path / "out")["physics"]
    assert all(check["relative_l2"] < 0.02 for check in again)
    assert read_survey(work / "geometry.json").wavelet.scale == pytest.approx(2.5, rel=1e-2)


def test_compare_by_hand():
    """A shifted spike has its lag; gathers that are equal have nothing to correct."""
    spike = np.zeros((1, 20, 2))
    spike[0, 5] = 1
    later = np.roll(spike, 3, axis=1)
    found = compare(spike, later, 0.001)
    assert found.lag_s == pytest.approx(0.003) and found.fitted_l2 == pytest.approx(0, abs=1e-12)
    assert compare(later, spike, 0.001).lag_s == pytest.approx(-0.003)
    assert compare(spike, spike, 0.001).relative_l2 == 0


def test_analysis_counts_what_is_wrong(data: Path, tmp_path: Path):
    """NaN values and unreadable samples are counted and listed; the others are analyzed."""
    work = tmp_path / "data"
    work.mkdir()
    for path in (data / "train").iterdir():
        (work / path.name).write_bytes(path.read_bytes())
    gathers = np.load(work / "data1.npy")
    gathers[1, 0, 3, 2] = np.nan
    np.save(work / "data1.npy", gathers)
    config = PrepConfig(data_path=str(work), analyze=True, cache_dir=tmp_path / "c")
    with pytest.raises(DataError, match="NaN"):  # analysis is told, then the cache refuses
        prepare(config, BASIC, tmp_path / "out")
    found = json.loads((tmp_path / "out/analysis.json").read_text())
    assert found["gathers"]["nan_or_infinite"] == 1 and len(found["problems"]) == 1
    assert found["samples"] == 6 and sum(found["velocity_histogram"]["cells"]) == 5 * 70 * 70
    assert 5 < found["peak_of_spectrum_hz"] < 25
    assert (tmp_path / "out/figures/analysis.png").exists()


def test_list_files(data: Path, tmp_path: Path):
    """Pairs in a list give the samples of their folders; one column is data alone; bad lists are refused."""
    listed = data / "train/pairs.txt"
    listed.write_text("data1.npy\tmodel1.npy\n../val/data1.npy\t../val/model1.npy\n")
    source = open_source(listed)
    assert len(source) == 10 and source.has_truth and len(set(source.ids)) == 10
    other = open_source(data / "val")
    np.testing.assert_array_equal(source.read_gathers(6)[0], other.read_gathers(0)[0])
    listed.write_text("data1.npy\n")
    assert not open_source(listed).has_truth
    for text, message in (
        ("data1.npy\ndata1.npy\tmodel1.npy\n", "1, 2 columns"),
        ("x.npy\n", "no such file"),
    ):
        listed.write_text(text)
        with pytest.raises(DataError, match=message):
            open_source(listed)
    listed.unlink()


def test_band_pass_energy_and_nyquist(data: Path, tmp_path: Path):
    """The share of the energy kept is told; corners above Nyquist are refused."""
    config = PrepConfig(data_path=str(data / "test"), cache_dir=tmp_path / "c")
    wide = prepare(replace(config, bandpass_low_hz=2, bandpass_high_hz=60), BASIC, tmp_path / "a")
    assert 0.95 < wide["energy_kept"] <= 1.001
    with pytest.raises(UserError, match="Nyquist"):
        prepare(replace(config, bandpass_high_hz=600), BASIC, tmp_path / "b")
