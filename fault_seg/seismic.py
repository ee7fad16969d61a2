"""Reflectivity, wavelets, noise and acquisition marks of the generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fault_seg.fields import along, gaussian_average, smooth_noise

SUBSAMPLES = 4  # points a voxel on the stratigraphic axis
SAMPLE_MS = 1.0
DHR_FREQUENCY = 1.25  # peak frequency of the clean image over that of the noisy one
WAVELET_REACH = 4.2  # standard deviations of the underlying Gaussian; beyond, a wavelet is below 1 %
CLIP = 5.0


@dataclass(frozen=True)
class Layers:
    """Stratigraphic column.

    Attributes:
        table: [3, num] reflection coefficient, and its part that varies with either gain map, on an axis of
            `SUBSAMPLES` points a voxel.
        origin: Depositional position of the first point, voxels.
    """

    table: np.ndarray
    origin: float


def draw_layers(rng: np.random.Generator, start: float, stop: float) -> Layers:
    """Return a random column that covers depositional positions start..stop (voxels).

    Bed thicknesses are Gamma(2) with a mean of 2.5 to 8 samples. A spike thinner than a voxel would be hit or
    missed by chance where the column is looked up once a voxel, so spikes are spread by half a voxel first.
    """
    start, stop = start - 4, stop + 4
    num = int(np.ceil((stop - start) * SUBSAMPLES)) + 2
    mean_gap = rng.uniform(2.5, 8)
    gaps = rng.gamma(2.0, mean_gap / 2, size=int(num / SUBSAMPLES / mean_gap * 2) + 32)
    tops = np.cumsum(gaps) * SUBSAMPLES
    tops = np.unique(tops[tops < num].astype(np.int64))
    if rng.random() < 0.5:
        strength = rng.uniform(0.1, 1, len(tops))
    else:
        strength = np.abs(rng.normal(0, 0.45, len(tops)))
    spikes = np.zeros(num)
    spikes[tops] = strength * rng.choice((-1.0, 1.0), len(tops))
    envelope = 0.675 + 0.325 * np.tanh(smooth_noise((num,), 12.0 * SUBSAMPLES, rng))
    spikes *= envelope
    spikes += 0.02 * max(spikes.std(), 1e-3) * rng.standard_normal(num)
    phase = np.zeros(num)
    phase[tops] = np.diff(rng.uniform(0, 2 * np.pi, len(tops)), prepend=0)
    phase = np.cumsum(phase)  # one phase a layer: its own blend of the two gain maps
    table = np.stack([spikes, 0.25 * spikes * np.cos(phase), 0.25 * spikes * np.sin(phase)])
    table = ndimage.gaussian_filter1d(table, 0.5 * SUBSAMPLES, axis=1, mode="constant")
    return Layers(table=table.astype(np.float32), origin=start)


def reflectivity(layers: Layers, position: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return reflection coefficients [N] at depositional positions [N] with gain maps [2, N].

    The column is interpolated linearly; cos(f) M1 + sin(f) M2 with a phase f of its own gives every layer a
    lateral amplitude change, a quarter of the coefficient where a map reaches one.
    """
    at = (position - np.float32(layers.origin)) * np.float32(SUBSAMPLES)
    np.clip(at, 0, layers.table.shape[1] - 2, out=at)
    index = at.astype(np.int32)
    at -= index
    parts = []
    for values in layers.table:
        low = values[index]
        parts.append(low + at * (values[1:][index] - low))
    return parts[0] + parts[1] * gains[0] + parts[2] * gains[1]


@dataclass(frozen=True)
class Wavelet:
    """A derivative of a Gaussian: order 1 (Gaussian derivative), 2 (Ricker) or 3 (Ricker derivative).

    Attributes:
        order: Order of the derivative.
        peak_hz: Peak frequency at the top of the cube.
        loss: Share of the peak frequency that is lost at the bottom.
        sign: Polarity, 1 or -1.
    """

    order: int
    peak_hz: float
    loss: float = 0.0
    sign: int = 1

    @property
    def half_length(self) -> int:
        """Samples on either side of the centre where the wavelet is not negligible, at the bottom."""
        return int(np.ceil(WAVELET_REACH * self._sigma(self.peak_hz * (1 - self.loss))))

    def _sigma(self, peak_hz: np.ndarray | float) -> np.ndarray | float:
        """Return the Gaussian's std in samples: f^m exp(-(2 pi s f)^2 / 2) peaks at `peak_hz`."""
        return np.sqrt(self.order) / (2 * np.pi * peak_hz) / (SAMPLE_MS * 1e-3)

    def matrix(self, n1: int, pad: int, factor: float = 1.0) -> np.ndarray:
        """Return the convolution [n1, n1 + 2 pad] from padded traces to traces, rows of unit L2 norm.

        Args:
            n1: Output samples.
            pad: Input samples beyond either end.
            factor: Factor of the peak frequency.
        """
        depth = np.arange(n1)[:, None] / max(n1 - 1, 1)
        lag = np.arange(n1)[:, None] + pad - np.arange(n1 + 2 * pad)
        u = lag / self._sigma(factor * self.peak_hz * (1 - self.loss * depth))
        hermite = {1: u, 2: 1 - u * u, 3: u**3 - 3 * u}[self.order]
        rows = self.sign * hermite * np.exp(-u * u / 2) * (np.abs(lag) <= self.half_length)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw_wavelet(rng: np.random.Generator, highest_hz: float, loss: float) -> Wavelet:
    """Return a random wavelet with a peak frequency of 60 Hz to `highest_hz`."""
    order, sign = int(rng.integers(1, 4)), int(rng.choice((-1, 1)))
    return Wavelet(order=order, peak_hz=rng.uniform(60, highest_hz), loss=loss, sign=sign)


def convolve(coefficients: np.ndarray, wavelet: Wavelet, factor: float = 1.0) -> np.ndarray:
    """Return traces [n1, n2, n3] of reflection coefficients [n1 + 2 half_length, n2, n3]."""
    pad = wavelet.half_length
    return along(wavelet.matrix(coefficients.shape[0] - 2 * pad, pad, factor), coefficients, 0)


def blur(volume: np.ndarray, sigma: float) -> np.ndarray:
    """Return `volume` [n1, n2, n3] averaged laterally by a Gaussian of `sigma` voxels."""
    volume = along(gaussian_average(volume.shape[1], sigma), volume, 1)
    return along(gaussian_average(volume.shape[2], sigma), volume, 2)


def normalise(volume: np.ndarray) -> np.ndarray:
    """Return `volume` less its mean over its std, both clipped to the 0.1 and 99.9 percentiles; clipped at 5.

    Surveys are normalised so too. Only live (non-zero) samples count; the others stay zero.
    """
    live = volume[volume != 0] if (volume == 0).any() else volume.ravel()
    if not len(live):
        return volume
    low, high = (int(round(q * (len(live) - 1))) for q in (0.001, 0.999))
    ordered = np.partition(live, (low, high))
    inner = np.clip(live, ordered[low], ordered[high])
    mean, std = inner.mean(dtype=np.float64), max(inner.std(dtype=np.float64), 1e-12)
    scaled = np.clip((volume - np.float32(mean)) / np.float32(std), -CLIP, CLIP)
    return np.where(volume == 0, np.float32(0), scaled) if len(live) < volume.size else scaled


def add_noise(rng: np.random.Generator, volume: np.ndarray, noise_max: float) -> np.ndarray:
    """Return `volume` with noise, std up to `noise_max` of the signal's, and stripes in 30 % of cases."""
    kind = int(rng.integers(3))
    draws = {
        0: lambda size: rng.standard_normal(size, dtype=np.float32),
        1: lambda size: (rng.random(size, dtype=np.float32) - 0.5) * np.float32(12**0.5),
        2: lambda size: rng.standard_exponential(size, dtype=np.float32) - 1,
    }
    sigma = np.where(rng.random(3) < 0.5, 0, rng.uniform(0.5, 2.5, 3)).tolist()
    level = rng.uniform(0, noise_max)
    striped, across, stripe_level = rng.random() < 0.3, int(rng.integers(1, 3)), rng.uniform(0, 0.15)
    if noise_max == 0:
        return volume
    std = volume.std()
    noisy = volume + np.float32(level * std) * smooth_noise(volume.shape, sigma, rng, draws[kind])
    if striped:
        # Footprint of the acquisition: one pattern for all traces of an inline or crossline.
        pattern = smooth_noise((volume.shape[0], volume.shape[across]), (3, 0), rng)
        noisy += np.float32(stripe_level * std) * np.expand_dims(pattern, 3 - across)
    return noisy


def automatic_gain(volume: np.ndarray, window: float) -> np.ndarray:
    """Return the gain [n1, n2, n3] that evens out amplitudes over a Gaussian window of `window` samples.

    `volume` is meant to be free of noise: the gain also goes on the clean image, which must not inherit any.
    """
    energy = along(gaussian_average(volume.shape[0], window), volume * volume, 0)
    return 1 / np.sqrt(energy + 0.2 * energy.mean() + 1e-12)


def acquisition_holes(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (dead, empty) masks: traces without signal, and larger regions where nothing was recorded.

    One of: top mute, bottom mute, dead traces, zeroed edges. `empty` is meant for the labels as well; a dead
    trace lies between live ones, which still show its faults.
    """
    n1, n2, n3 = shape
    dead, empty = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    kind = int(rng.integers(4))
    if kind == 0 or kind == 1:
        slope_y, slope_x = rng.uniform(-0.15, 0.15, 2)
        y, x = np.arange(n2)[:, None], np.arange(n3)
        depth = rng.uniform(0.03, 0.2) * n1 + slope_y * (y - n2 / 2) + slope_x * (x - n3 / 2)
        row = np.arange(n1)[:, None, None]
        empty = (row if kind == 0 else n1 - 1 - row) < depth
    elif kind == 2:
        dead |= rng.random((n2, n3)) < rng.uniform(0.002, 0.03)
    else:
        axis = int(rng.integers(1, 3))
        width = int(rng.integers(1, max(2, shape[axis] // 6)))
        edge = slice(0, width) if rng.random() < 0.5 else slice(shape[axis] - width, None)
        empty[(slice(None), edge) if axis == 1 else (slice(None), slice(None), edge)] = True
    return dead, empty
