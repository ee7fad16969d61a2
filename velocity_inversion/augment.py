"""Augmentation of shot gathers: the exact flip, and changes of time, frequency and amplitude.

A sample is a dict of tensors: gathers [S, T, R], source_xz [S, 2], receiver_xz [S, R, 2] (m), live [S, R]
and, with truth, vp [1, Z, X]. Draws are functions of (seed, position of the sample in the global order); what
must agree between shots is drawn once a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from common.noise import numpy_stream
from velocity_inversion.simulate import ricker

Sample = dict[str, Any]
MAX_SHIFT_S = 0.002
MAX_MASK_HZ = 3.0
MAX_PHASE_DEG = 10.0
PEAK_RANGE_HZ = (13.5, 16.5)
WATER_LEVEL = 0.05
SCALE_RANGE = (0.95, 1.05)


def flip(sample: Mapping[str, Any], x_max_m: float) -> Sample:
    """Return the sample seen from the other side: exact physics, whatever the geometry.

    x -> x_max - x for sources and receivers, receivers in reverse order (ascending x again), shots sorted by
    x, columns of the section reversed; depth is untouched. Works on single samples and on batches.
    """
    out = dict(sample)
    source = sample["source_xz"].clone()
    source[..., 0] = x_max_m - source[..., 0]
    receiver = sample["receiver_xz"].flip(-2).clone()
    receiver[..., 0] = x_max_m - receiver[..., 0]
    order = source[..., 0].argsort(dim=-1, stable=True)
    shots = order.ndim - 1
    out["source_xz"] = _take(source, order, shots)
    out["receiver_xz"] = _take(receiver, order, shots)
    out["live"] = _take(sample["live"].flip(-1), order, shots)
    out["gathers"] = _take(sample["gathers"].flip(-1), order, shots)
    if "vp" in sample:
        out["vp"] = sample["vp"].flip(-1)
    return out


def _take(values: torch.Tensor, order: torch.Tensor, axis: int) -> torch.Tensor:
    """Reorder `axis` of `values`; leading axes are those of `order`."""
    index = order.reshape(order.shape + (1,) * (values.ndim - order.ndim)).expand_as(values)
    return values.gather(axis, index)


def augment(
    sample: Mapping[str, Any], dt_s: float, peak_hz: float, probability: float, seed: int, position: int
) -> Sample:
    """Return the sample with each of the changes below, drawn with `probability`.

    Args:
        sample: see above; not changed.
        dt_s: interval of its gathers.
        peak_hz: of the survey's wavelet.
        probability: of each change.
        seed: of the run.
        position: of the sample in the global order.
    """
    out = dict(sample)
    gathers = sample["gathers"].numpy().astype(np.float64)
    live = sample["live"].numpy().copy()
    changes: tuple[tuple[str, Callable[..., np.ndarray]], ...] = (
        ("spectral tilt", lambda g, rng: tilt(g, dt_s, peak_hz, rng)),
        ("phase", lambda g, rng: rotate_phase(g, rng)),
        ("frequency mask", lambda g, rng: mask_frequencies(g, dt_s, rng)),
        ("shift", lambda g, rng: shift(g, dt_s, rng)),
        ("gain", lambda g, rng: g * rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.05, (len(g), 1, 1))),
        ("time mask", mask_time),
        ("noise", lambda g, rng: add_noise(g, dt_s, peak_hz, rng)),
        ("trace dropout", lambda g, rng: drop_traces(g, live, rng)),
        ("shot dropout", lambda g, rng: drop_shots(g, live, rng)),
    )
    for name, change in changes:
        rng = numpy_stream(seed, f"augment {name}", position)
        if rng.random() < probability:
            gathers = change(gathers, rng)
    out["gathers"] = torch.from_numpy(gathers.astype(np.float32))
    out["live"] = torch.from_numpy(live)
    return out


def scale_velocity(sample: Mapping[str, Any], dt_s: float, bounds: tuple[float, float], a: float) -> Sample:
    """Return the sample with velocities a v and gathers d(a t): the wave equation holds for a v and t / a.

    The wavelet becomes shorter or longer with it. A sample whose velocities would leave the bounds comes back
    as it is; beyond the end of the record nothing is known, and zero stands there.

    Args:
        sample: with truth.
        dt_s: interval of its gathers.
        bounds: lowest and highest velocity, km/s.
        a: factor.
    """
    out = dict(sample)
    vp = a * sample["vp"]
    if float(vp.min()) < bounds[0] or float(vp.max()) > bounds[1]:
        return out
    gathers = sample["gathers"].numpy().astype(np.float64)
    time_s = dt_s * np.arange(gathers.shape[-2])
    wanted = a * time_s
    scaled = CubicSpline(time_s, gathers, axis=-2)(np.minimum(wanted, time_s[-1]))
    scaled *= (wanted <= time_s[-1])[:, None]
    out["vp"], out["gathers"] = vp, torch.from_numpy(scaled.astype(np.float32))
    return out


def draw_scaling(seed: int, position: int, probability: float) -> float | None:
    """Return the factor of `scale_velocity` for the sample at a position, None where it stays as it is."""
    rng = numpy_stream(seed, "augment scaling", position)
    return float(rng.uniform(*SCALE_RANGE)) if rng.random() < probability else None


def _spectrum(gathers: np.ndarray) -> np.ndarray:
    """Return the spectrum along time, padded to twice the length so that nothing wraps around."""
    return np.fft.rfft(gathers, n=2 * gathers.shape[-2], axis=-2)


def _trace(spectrum: np.ndarray, num_samples: int) -> np.ndarray:
    return np.fft.irfft(spectrum, n=2 * num_samples, axis=-2)[..., :num_samples, :]


def shift(gathers: np.ndarray, dt_s: float, rng: np.random.Generator) -> np.ndarray:
    """Delay or advance all shots by one draw of at most 2 ms; late energy never reaches t = 0."""
    delay = rng.uniform(-MAX_SHIFT_S, MAX_SHIFT_S)
    frequency = np.fft.rfftfreq(2 * gathers.shape[-2], dt_s)
    turned = _spectrum(gathers) * np.exp(-2j * np.pi * frequency * delay)[:, None]
    return _trace(turned, gathers.shape[-2])


def rotate_phase(gathers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate the phase of all frequencies by one draw of at most 10 degrees."""
    angle = np.deg2rad(rng.uniform(-MAX_PHASE_DEG, MAX_PHASE_DEG))
    return _trace(_spectrum(gathers) * np.exp(1j * angle), gathers.shape[-2])


def mask_frequencies(gathers: np.ndarray, dt_s: float, rng: np.random.Generator) -> np.ndarray:
    """Remove one band of at most 3 Hz, the same in all shots.

    The band is cut in the spectrum of the record itself, so that it is empty afterwards.
    """
    length = gathers.shape[-2]
    frequency = np.fft.rfftfreq(length, dt_s)
    low = rng.uniform(2.0, 30.0)
    keep = (frequency < low) | (frequency > low + rng.uniform(0.5, MAX_MASK_HZ))
    return np.fft.irfft(np.fft.rfft(gathers, axis=-2) * keep[:, None], n=length, axis=-2)


def tilt(gathers: np.ndarray, dt_s: float, peak_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Reshape the wavelet to a peak of 13.5 to 16.5 Hz (scaled with the survey's), with a water level."""
    return change_peak(gathers, dt_s, peak_hz, rng.uniform(*PEAK_RANGE_HZ) * peak_hz / 15.0)


def change_peak(gathers: np.ndarray, dt_s: float, peak_hz: float, wanted_hz: float) -> np.ndarray:
    """Turn a Ricker wavelet of `peak_hz` into one of `wanted_hz`: spectral ratio with a water level."""
    length = gathers.shape[-2]
    ours, other = (
        np.abs(np.fft.rfft(ricker(peak, length, dt_s, length * dt_s / 2).numpy(), n=2 * length))
        for peak in (peak_hz, wanted_hz)
    )
    ratio = other * ours / (ours**2 + (WATER_LEVEL * ours.max()) ** 2)
    return _trace(_spectrum(gathers) * ratio[:, None], length)


def mask_time(gathers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zero one window of at most 5 % of the record, the same in all shots."""
    length = gathers.shape[-2]
    width = int(rng.integers(1, max(2, round(0.05 * length) + 1)))
    first = int(rng.integers(0, length - width + 1))
    out = gathers.copy()
    out[:, first : first + width] = 0
    return out


def add_noise(gathers: np.ndarray, dt_s: float, peak_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise with the wavelet's spectrum, 10 to 40 dB below the signal."""
    return gathers + noise_like(gathers, dt_s, peak_hz, None, rng)


def noise_like(
    gathers: np.ndarray, dt_s: float, peak_hz: float, snr_db: float | None, rng: np.random.Generator
) -> np.ndarray:
    """Return noise [S, T, R] with the wavelet's spectrum, `snr_db` below the signal (none = 10 to 40 dB)."""
    frequency = np.fft.rfftfreq(gathers.shape[-2], dt_s) / peak_hz
    shape = frequency**2 * np.exp(1 - frequency**2)
    white = np.fft.rfft(rng.standard_normal(gathers.shape), axis=-2)
    noise = np.fft.irfft(white * shape[:, None], n=gathers.shape[-2], axis=-2)
    level = rng.uniform(10, 40) if snr_db is None else snr_db
    power = np.sqrt(np.mean(gathers**2) / max(float(np.mean(noise**2)), 1e-30))
    return noise * power * 10 ** (-level / 20)


def drop_traces(gathers: np.ndarray, live: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Kill at most 10 % of the traces of each shot; `live` is changed in place."""
    dead = rng.random(live.shape) < rng.uniform(0, 0.1)
    live &= ~dead
    return np.where(dead[:, None, :], 0.0, gathers)


def drop_shots(gathers: np.ndarray, live: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Kill whole shots, at least two stay; `live` is changed in place."""
    count = int(rng.integers(0, max(1, len(gathers) - 1)))
    dead = rng.permutation(len(gathers))[:count]
    live[dead] = False
    out = gathers.copy()
    out[dead] = 0
    return out
