"""Generators: geometry of the objects, proportions, determinism; data roots that they write; preparation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.run import BasicOptions
from facies_gan.config_data import MakeDataConfig, PrepConfig
from facies_gan.dataset import read_training_data
from facies_gan.make_data import make_data
from facies_gan.metrics import gamma_connectivity, proportions
from facies_gan.objects3d import DX_M, ObjectModel
from facies_gan.prep import prepare, table
from facies_gan.synthetic import (
    IMPEDANCE_MRAYL,
    make_channels,
    make_checkerboard,
    make_section,
    make_seismic,
    make_wells,
    ricker,
    synthetic_palette,
)
from tests.facies_gan.cases_data import options

SMALL = MakeDataConfig(num_sections=3, height=24, width=30, wells_per_section=2)


def test_channel_map():
    """27 % channel, most of it in long bodies that cross the image; the same again from seed and index."""
    for shape in ((250, 250), (128, 128), (64, 96)):
        image = make_channels(4, 2, *shape)
        assert image.shape == shape and abs(image.mean() - 0.27) < 0.02
    image = make_channels(4, 2)
    assert (image == make_channels(4, 2)).all() and (image != make_channels(4, 3)).any()
    assert gamma_connectivity(image, 1) > 0.1
    assert np.mean(image[:, 1:] == image[:, :-1]) > np.mean(image[1:] == image[:-1])  # they run to the right


def test_checkerboard():
    """Four classes, equally often."""
    for index in (0, 3):
        assert proportions(make_checkerboard(index, 48, 64), 4).tolist() == [0.25] * 4


def test_lens_shape():
    """Channels are 8 to 15 times as wide as deep, in metres, and deepest between their banks."""
    model = ObjectModel(7, 96, 120)
    channels = [c for y in range(0, 400, 20) for c in model.channels(y)]
    assert len(channels) > 20
    for channel in channels:
        assert 8 <= channel.width * DX_M / (channel.depth * model.dz_m) <= 15
        assert channel.start <= channel.end and abs(channel.skew) < 1
    assert 2 <= len(model.boundaries) + 1 <= 5


def test_sections_correlate():
    """Neighbouring sections differ less than distant ones; all facies occur; sand is a quarter or so."""
    sections = [make_section(7, i) for i in range(40)]
    near = np.mean([np.mean(sections[i] != sections[i + 1]) for i in range(39)])
    far = np.mean([np.mean(sections[i] != sections[i + 20]) for i in range(20)])
    assert near < 0.5 * far
    shares = proportions(sections, 4)
    assert shares[0] > 0.4 and 0.12 < shares[1] < 0.4 and shares[2:].min() > 0.01
    assert (make_section(7, 5) == sections[5]).all()


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_number_of_facies(count: int):
    """As many facies as asked for, each somewhere in the data set, none beyond."""
    labels = np.concatenate([make_section(3, i, 48, 60, count) for i in range(0, 40, 4)])
    assert np.unique(labels).tolist() == list(range(count))
    assert len(synthetic_palette("sections", count)) == count


def test_wells():
    """Wells carry the section's facies: columns when vertical, one cell a row and a dip when deviated."""
    labels = make_section(0, 0)
    wells = make_wells(1, 0, labels, 5)
    assert wells.num_wells == 5 and len(wells) == 5 * 96 and wells.matches(labels).all()
    deviated = make_wells(1, 0, labels, 1, deviated=True)
    assert len(np.unique(deviated.rows)) == len(deviated) and len(np.unique(deviated.cols)) > 5
    assert np.abs(np.diff(deviated.cols)).max() <= 1


def test_seismic_of_one_interface():
    """One interface without noise gives the wavelet times (Z2 - Z1) / (Z2 + Z1), centred on the interface."""
    labels = np.zeros((60, 4), dtype=np.uint8)
    labels[30:] = 1
    trace = make_seismic(0, 0, labels, 2.5, noise=0.0)[:, 0]
    z1, z2 = IMPEDANCE_MRAYL[:2]
    wavelet = ricker(30.0, 2 * 2.5 / 2500.0)
    half = len(wavelet) // 2
    assert trace[30] == pytest.approx((z2 - z1) / (z2 + z1), rel=1e-5)
    assert np.allclose(trace[30 - half : 31 + half], wavelet * trace[30], atol=1e-6)
    assert wavelet[half] == 1 and abs(wavelet.sum()) < 0.02


def test_data_root(tmp_path: Path):
    """What is written is what training reads: sections, wells, seismic, names."""
    told = make_data(replace(SMALL, with_seismic=True, num_facies=3), BasicOptions(), tmp_path, 5)
    found = read_training_data(options(input_path=tmp_path, use_seismic=True))
    assert len(found) == 3 and found.palette.names == ("shale", "channel sand", "levee")
    for index, section in enumerate(found.sections):
        assert section.stem == f"xz_crossline_{index:03d}"
        assert (section.labels == make_section(5, index, 24, 30, 3)).all()
        assert section.wells is not None and section.wells.num_wells == 2
        assert section.wells.matches(section.labels).all() and len(section.wells) == 48
        assert section.seismic is not None and section.seismic.shape == (1, 24, 30)
    stored = json.loads((tmp_path / "dataset.json").read_text())
    assert stored["impedance_mrayl"]["levee"] == 2.3 and stored == told
    assert sum(stored["facies"].values()) == pytest.approx(1, abs=1e-4)


def test_deviated_wells_are_read(tmp_path: Path):
    """Deviated wells come back cell by cell."""
    make_data(replace(SMALL, deviated=True), BasicOptions(), tmp_path, 5)
    for index, section in enumerate(read_training_data(options(input_path=tmp_path)).sections):
        expected = make_wells(5, index, section.labels, 2, deviated=True)
        assert section.wells is not None
        assert (section.wells.mask((24, 30)) == expected.mask((24, 30))).all()


def test_sections_depend_on_seed_and_number_alone(tmp_path: Path):
    """A larger set holds the smaller one, byte for byte; existing data are replaced only when told."""
    make_data(SMALL, BasicOptions(), tmp_path / "a", 1)
    make_data(replace(SMALL, num_sections=5), BasicOptions(), tmp_path / "b", 1)
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        make_data(SMALL, BasicOptions(), tmp_path / "b", 1)
    make_data(replace(SMALL, num_sections=1), BasicOptions(overwrite=True), tmp_path / "b", 1)
    assert len(list((tmp_path / "b/facies").iterdir())) == 1
    make_data(SMALL, BasicOptions(dry_run=True), tmp_path / "c", 1)
    assert not list((tmp_path / "c").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_sections": 0},
        {"num_facies": 8},
        {"num_facies": 3, "kind": "channels"},
        {"with_seismic": True, "kind": "channels"},
        {"height": 5},
        {"wells_per_section": 31},
    ],
)
def test_impossible_flags(changes: dict):
    """Flags that cannot be, or would do nothing, are refused."""
    with pytest.raises(ValueError, match="expected|works with"):
        replace(SMALL, **changes)


def test_preparation(tmp_path: Path):
    """It tells palette, proportions, sizes and wells, builds a pyramid once; --check writes nothing."""
    make_data(SMALL, BasicOptions(), tmp_path / "d", 1)
    config = PrepConfig(tmp_path / "d", min_size=12, stop_scale=2, cache_dir=tmp_path / "cache")
    told = prepare(replace(config, check=True))
    assert told["sections"] == 3 and told["sizes"] == {"24 x 30": 3} and not (tmp_path / "cache").exists()
    assert told["wells"] == {"sections_with": 3, "total": 6, "data": 144, "per_section": [2, 2]}
    assert sum(f["share"] for f in told["facies"]) == pytest.approx(1, abs=1e-3)
    text = "\n".join(table(told))
    assert "channel sand" in text and "24 x 30" in text and "6 with 144 data" in text
    assert "144 data agree with" in text and "z from 1 in cells of 1, counted from the bottom" in text
    first, second = prepare(config), prepare(config, num_workers=1)
    assert (first["built"], first["found"], second["built"], second["found"]) == (3, 0, 0, 3)
    assert prepare(replace(config, clear_cache=True))["built"] == 3
    assert prepare(replace(config, interpolator="nearest", max_size=20))["scales"][-1] == [16, 20]


def test_cached_preparation_is_fast(tmp_path: Path):
    """With the neural smoother a second preparation takes less than a tenth of the first."""
    make_data(replace(SMALL, num_sections=2), BasicOptions(), tmp_path / "d", 1)
    config = PrepConfig(tmp_path / "d", interpolator="neural", fit_steps=8, cache_dir=tmp_path / "cache")
    config = replace(config, stop_scale=1)
    first, second = prepare(config), prepare(config)
    assert second["found"] == 2 and first["seconds"] > 10 * second["seconds"]
