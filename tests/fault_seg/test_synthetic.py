"""The generator keeps its physical promises."""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from common.errors import UserError
from common.noise import numpy_stream
from fault_seg.fields import smooth_noise
from fault_seg.seismic import (
    CLIP,
    DHR_FREQUENCY,
    WAVELET_REACH,
    Wavelet,
    convolve,
    draw_layers,
    normalise,
    reflectivity,
)
from fault_seg.structure import FaultStyle
from fault_seg.synthetic import (
    PRESETS,
    GeneratorConfig,
    Style,
    build_earth,
    degrade,
    draw_style,
    make_sample,
    preset,
)

SMALL = GeneratorConfig(shape=(32, 32, 32))


def test_reference_set_statistics():
    """Cubes of 64^3 hold some 2 to 12 % of faults, and time grows downwards in over 97 % of the cells."""
    earths = [build_earth(0, i, preset("standard")) for i in range(12)]
    share = np.array([earth.fsem.mean() for earth in earths])
    assert 0.05 < share.mean() < 0.12
    assert np.quantile(share, 0.1) > 0.01
    assert np.quantile(share, 0.9) < 0.16
    for earth in earths:
        assert (np.diff(earth.position, axis=0) > 0).mean() > 0.97
        assert earth.rgt.min() == 0
        assert earth.rgt.max() == 1


def test_time_grows_downwards_without_faults():
    """Folds alone, the steepest ones too, never turn beds over; erosion keeps the order as well."""
    for eroded in (False, True):
        style = Style(faults=FaultStyle(), count=0, plane=70.0, eroded=eroded)
        for index in range(6):
            earth = build_earth(3, index, preset("standard"), style)
            assert (np.diff(earth.position, axis=0) > 0).all()
            assert earth.fsem.sum() == 0


def _digest(task: tuple[int, int]) -> str:
    sample = make_sample(*task, replace(SMALL, preset="mixed"))
    volumes = [*sample.volumes().values(), *degrade(sample, *task).values()]
    return hashlib.sha256(b"".join(v.tobytes() for v in volumes)).hexdigest()


def test_sample_is_a_function_of_seed_and_index():
    """The same (seed, index) gives the same bytes in other processes, orders and numbers of threads."""
    tasks = [(seed, index) for seed in (0, 7) for index in range(4)]
    here = [_digest(task) for task in tasks]
    assert len(set(here)) == len(tasks)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(_digest, tasks[::-1]))
    assert there[::-1] == here


def test_purposes_do_not_shift_each_other():
    """Less noise changes the image alone; wider labels change the labels alone."""
    sample = make_sample(1, 2, SMALL)
    quiet = make_sample(1, 2, replace(SMALL, noise_max=0.1)).volumes()
    wide = make_sample(1, 2, replace(SMALL, fault_width=4.0)).volumes()
    for name, volume in sample.volumes().items():
        assert np.array_equal(volume, quiet[name]) == (name != "image")
        assert np.array_equal(volume, wide[name]) == (name in ("image", "dhr", "rgt"))
    assert (wide["fsem"] >= sample.fsem).all()


def _textbook_wavelet(order: int, peak_hz: float, half: int) -> np.ndarray:
    """Return the derivative of a Gaussian with its spectral peak at peak_hz, 1 ms samples, unit L2 norm."""
    t = np.arange(-half, half + 1) * 1e-3
    if order == 2:
        a = (np.pi * peak_hz * t) ** 2
        w = (1 - 2 * a) * np.exp(-a)
    else:
        s = np.sqrt(order) / (2 * np.pi * peak_hz)
        u = t / s
        w = (u if order == 1 else u**3 - 3 * u) * np.exp(-u * u / 2)
    return w / np.linalg.norm(w)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_noise_free_image_is_the_convolution_model(index):
    """Without noise dhr is the faulted reflectivity convolved down the trace; image is blurred as well."""
    config = GeneratorConfig(shape=(48, 40, 36), noise_max=0.0)
    sample, earth = make_sample(0, index, config), build_earth(0, index, config)
    half, wavelet = earth.wavelet.half_length, earth.wavelet

    def model(factor: float) -> np.ndarray:
        w = wavelet.sign * _textbook_wavelet(wavelet.order, factor * wavelet.peak_hz, half)
        return np.apply_along_axis(np.convolve, 0, earth.coefficients.astype(np.float64), w, "valid")

    blur = numpy_stream(0, "fault_seg/blur", index).uniform(0.4, 1.6)
    image = ndimage.gaussian_filter(model(1.0), (0, blur, blur))
    for made, expected in ((sample.dhr, model(DHR_FREQUENCY)), (sample.image, image)):
        free = (np.abs(made) < CLIP - 1e-3)[:, 8:-8, 8:-8]
        made, expected = made[:, 8:-8, 8:-8][free], expected[:, 8:-8, 8:-8][free]
        slope, offset = np.polyfit(expected, made, 1)
        np.testing.assert_allclose(made, slope * expected + offset, atol=5e-3)
        assert slope > 0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_wavelets_peak_where_they_say(order):
    """The spectrum of each wavelet peaks at its frequency, less the loss at the bottom of the cube."""
    wavelet = Wavelet(order=order, peak_hz=80.0, loss=0.4)
    n1, pad = 512, 128
    rows = wavelet.matrix(n1, pad)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    frequency = np.fft.rfftfreq(4096, 1e-3)
    for row, expected in ((rows[0], 80.0), (rows[-1], 48.0)):
        peak = frequency[np.abs(np.fft.rfft(row, 4096)).argmax()]
        assert abs(peak - expected) < 1
    reach = wavelet.half_length
    assert np.abs(rows[-1][n1 - 1 + pad + reach + 1 :]).max() < 0.03 * np.abs(rows).max()
    assert WAVELET_REACH > 3


def test_reflectivity_keeps_reflectors_continuous():
    """A bed that is shifted by a fraction of a voxel keeps its reflection strength after the wavelet."""
    layers = draw_layers(np.random.default_rng(0), 0.0, 2000.0)
    z = np.arange(0.0, 2000.0, dtype=np.float32)
    wavelet = Wavelet(order=2, peak_hz=60.0)
    traces = []
    for shift in (0.0, 0.25, 0.5, 0.75):
        r = reflectivity(layers, z + np.float32(shift), np.zeros((2, len(z)), dtype=np.float32))
        traces.append(convolve(r[:, None, None], wavelet).ravel())
    strength = np.array([np.square(t).sum() for t in traces])
    assert np.ptp(strength) / strength.mean() < 0.02


def test_volumes_are_normalised():
    """Image and dhr have zero mean and unit std whatever the size; what was never recorded stays zero."""
    for size in (32, 64):
        sample = make_sample(0, 0, replace(SMALL, shape=(size, size, size)))
        for volume in (sample.image, sample.dhr):
            assert abs(volume.mean()) < 0.03
            assert abs(volume.std() - 1) < 0.05
            assert np.abs(volume).max() <= CLIP
    live = np.random.default_rng(0).normal(3, 7, (20, 20, 20)).astype(np.float32)
    live[:, :5] = 0
    scaled = normalise(live)
    assert (scaled[:, :5] == 0).all()
    assert abs(scaled[:, 5:].mean()) < 0.02
    assert abs(scaled[:, 5:].std() - 1) < 0.02


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_odd_and_unequal_cubes(name):
    """Every preset fills all six volumes of any shape with finite float32; angles are zero off faults."""
    for index, shape in enumerate([(33, 20, 27), (17, 48, 8)]):
        sample = make_sample(5, index, replace(preset(name), shape=shape))
        for volume in sample.volumes().values():
            assert volume.shape == shape
            assert volume.dtype == np.float32
            assert np.isfinite(volume).all()
        assert set(np.unique(sample.fsem)) <= {0.0, 1.0}
        off = sample.fsem == 0
        assert (sample.fdip[off] == 0).all()
        assert (sample.fstrike[off] == 0).all()
        assert ((sample.fdip[~off] > 0) & (sample.fdip[~off] < 1)).all()
        assert ((sample.fstrike >= 0) & (sample.fstrike < 1)).all()


def test_mixed_covers_field_conditions():
    """Among 200 mixed styles all extras occur at about the rates they should."""
    styles = [draw_style(numpy_stream(0, "fault_seg/style", i), preset("mixed")) for i in range(200)]
    assert 0.12 < np.mean([s.eroded for s in styles]) < 0.28
    assert 0.04 < np.mean([s.count == 0 for s in styles]) < 0.17
    assert 0.08 < np.mean([s.faults.laws == ("ellipse",) for s in styles]) < 0.23
    assert 0.08 < np.mean([s.holes for s in styles]) < 0.23
    assert 0.23 < np.mean([s.highest_hz == 200 for s in styles]) < 0.44
    assert max(s.count for s in styles) == 12


def test_noise_never_reaches_the_clean_volumes():
    """Whatever the extras of a mixed sample, its noise changes nothing but the image."""
    quiet = replace(SMALL, preset="mixed", noise_max=0.0)
    styles = [draw_style(numpy_stream(0, "fault_seg/style", i), quiet) for i in range(40)]
    index = next(i for i, style in enumerate(styles) if style.gain_window)
    clean = make_sample(0, index, quiet).volumes()
    noisy = make_sample(0, index, replace(quiet, noise_max=0.8)).volumes()
    assert [n for n in clean if not np.array_equal(clean[n], noisy[n])] == ["image"]


def test_fault_count_is_obeyed():
    """`fault_count` fixes the number of faults in every preset, none included."""
    for name in ("standard", "mixed"):
        for count in (0, 3):
            config = replace(preset(name), shape=(24, 24, 24), fault_count=(count, count))
            assert all(len(build_earth(0, i, config).faults) == count for i in range(5))


def test_degraded_faults():
    """5-45 % of the faults are lost, false pieces lie off true faults, and angles follow their pieces."""
    for index in range(4):
        sample = make_sample(0, index, preset("standard"))
        before = {name: volume.copy() for name, volume in sample.volumes().items()}
        worse = degrade(sample, 0, index)
        true, seen = sample.fsem > 0, worse["fsem"] > 0
        assert 0.04 < (true & ~seen).sum() / true.sum() < 0.46
        assert 0 < (seen & ~true).sum() < 0.1 * true.size
        for name in ("fdip", "fstrike"):
            np.testing.assert_array_equal(worse[name][true & seen], sample.volumes()[name][true & seen])
            assert (worse[name][~seen] == 0).all()
        assert (worse["fdip"][seen & ~true] > 0.2).all()
        for name, volume in sample.volumes().items():
            np.testing.assert_array_equal(volume, before[name])


def test_degraded_time_and_image():
    """Time is off by at most 10 % and stays in 0..1; the image is less like the truth but not unlike it."""
    for index in range(4):
        sample = make_sample(0, index, preset("standard"))
        worse = degrade(sample, 0, index)
        assert (np.abs(worse["rgt"] - sample.rgt) <= 0.1 * sample.rgt + 1e-6).all()
        assert worse["rgt"].max() <= 1
        assert worse["rgt"].min() >= 0
        assert 0.6 < np.corrcoef(worse["dhr"].ravel(), sample.dhr.ravel())[0, 1] < 0.995
        assert (worse["dhr"] == 0).any()
        assert all(volume.dtype == np.float32 for volume in worse.values())


def test_smooth_noise_has_the_covariance_of_filtered_noise():
    """Variance 1 up to the edges, and correlation exp(-h^2 / 4 s^2) at lag h."""
    field = smooth_noise((400, 400), (3.0, 0.7), np.random.default_rng(0))
    assert abs(field.var() - 1) < 0.08
    assert abs(field[:3].var() - 1) < 0.35
    for lag in (2, 4):
        expected = np.exp(-(lag**2) / (4 * 3.0**2))
        assert abs((field[lag:] * field[:-lag]).mean() / field.var() - expected) < 0.05
    expected = np.exp(-1 / (4 * 0.7**2))
    assert abs((field[:, 1:] * field[:, :-1]).mean() / field.var() - expected) < 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "wu2018"},
        {"shape": (64, 64, 4)},
        {"fault_width": 0.0},
        {"noise_max": -0.1},
        {"fault_count": (3, 1)},
    ],
)
def test_wrong_settings_are_named(changes):
    """A setting that cannot work is refused with one line."""
    with pytest.raises(UserError):
        GeneratorConfig(**changes)
    with pytest.raises(UserError, match="unknown"):
        preset("nothing")
