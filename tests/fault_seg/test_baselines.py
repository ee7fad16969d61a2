"""Baselines on cubes where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from common.noise import numpy_stream
from fault_seg import baselines
from fault_seg.metrics import tune_threshold
from fault_seg.metrics_fault import average_precision, fault_masks, tolerant_f1, tolerant_iou_of


def layers(time: np.ndarray) -> np.ndarray:
    """Return a smooth random layering read at `time` (samples), float32."""
    series = np.convolve(numpy_stream(0, "layers").standard_normal(4000), np.hanning(33), "same")
    return np.interp(time + 300, np.arange(4000) / 4, series).astype(np.float32)


def faulted(shape: tuple[int, int, int] = (48, 40, 36)) -> tuple[np.ndarray, np.ndarray]:
    """Return (image, labels) of dipping layers cut by a steep fault with a throw of 6 samples."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    distance = (y - 20) - 0.3 * (z - 24) + 0.2 * (x - 18)
    time = z - 0.15 * x + 6 * (distance > 0)
    return layers(time), (np.abs(distance) <= 1).astype(np.float32)


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_coherence_of_unbroken_layers_is_zero(slope):
    """Flat and dipping layers without a fault have no fault likelihood."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in (48, 40, 36)), indexing="ij")
    image = layers(z - slope * y - 0.5 * slope * x)
    assert baselines.incoherence(image)[6:-6, 2:-2, 2:-2].max() < (0.02 if slope else 1e-5)
    assert baselines.coherence_faults(image).mean() < (0.1 if slope else 1e-4)


def test_coherence_finds_a_planted_fault():
    """A fault with a throw stands out of dipping layers: high AP, and a good tolerant score once tuned."""
    image, labels = faulted()
    likelihood = baselines.coherence_faults(image)
    assert likelihood.dtype == np.float32
    assert likelihood.min() >= 0
    assert likelihood.max() <= 1
    assert average_precision(likelihood, labels) > 6 * labels.mean()
    threshold = tune_threshold([likelihood], [labels])
    assert tolerant_iou_of(tolerant_f1(*fault_masks(likelihood, labels, threshold))) > 0.7
    assert likelihood[labels > 0].mean() > 10 * likelihood[:, :8].mean()


def test_coherence_does_not_see_the_units():
    """Multiplying the image by a constant leaves the likelihood as it is."""
    image, _ = faulted((32, 24, 20))
    np.testing.assert_allclose(
        baselines.coherence_faults(image), baselines.coherence_faults(-1e4 * image), atol=1e-3
    )


@pytest.mark.parametrize("shape", [(20, 1, 30), (1, 6, 6), (30, 17, 2)])
def test_coherence_of_thin_cubes(shape):
    """Lines and thin cubes are answered with finite values."""
    image = numpy_stream(1, "thin").standard_normal(shape).astype(np.float32)
    likelihood = baselines.coherence_faults(image)
    assert likelihood.shape == shape
    assert np.isfinite(likelihood).all()


def test_dead_cube_has_no_fault():
    """Where nothing was recorded there is no evidence of a fault."""
    assert not baselines.coherence_faults(np.zeros((20, 16, 16), dtype=np.float32)).any()


def test_flat_time():
    """Flat time is 0 at the top, 1 at the bottom and the same in every trace."""
    rgt = baselines.flat_rgt((11, 4, 3))
    np.testing.assert_allclose(rgt[:, 2, 1], np.arange(11) / 10, atol=1e-6)
    assert (rgt == rgt[:, :1, :1]).all()


def test_input_as_dhr_is_normalised():
    """The input stands as denoised image with mean 0 and standard deviation 1; a constant becomes 0."""
    image = 5 + 3 * numpy_stream(2, "dhr").standard_normal((10, 8, 6))
    dhr = baselines.input_as_dhr(image)
    assert dhr.mean() == pytest.approx(0, abs=1e-5)
    assert dhr.std() == pytest.approx(1, abs=1e-5)
    assert not baselines.input_as_dhr(np.full((4, 4, 4), 7.0)).any()


def test_best_constant_plane_is_wrap_safe():
    """Of planes with strikes 178 and 4 (one mirrored) the best constant has strike 1, not 91."""
    fdip, fstrike = np.array([80, 100, 0]) / 180, np.array([4, 178, 0]) / 180
    dip, strike = baselines.best_constant_angles(fdip, fstrike, np.array([True, True, False]))
    assert strike * 180 == pytest.approx(1, abs=1e-3)
    assert dip * 180 == pytest.approx(80, abs=0.05)
    assert baselines.best_constant_angles(fdip, fstrike, np.zeros(3, dtype=bool)) == (0.5, 0.0)


def test_constant_masks():
    """Always empty and always fault are 0 and 1 everywhere."""
    assert not baselines.always_empty((3, 4, 5)).any()
    assert baselines.always_fault((3, 4, 5)).all()
