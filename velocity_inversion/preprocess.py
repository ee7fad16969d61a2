"""From recorded gathers to the network's input: anti-aliased decimation, band-pass, two amplitude channels.

Letters: S shots, T time samples, R receivers, O offset bins.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage, signal
from torch.nn import functional

from common.errors import UserError

NUM_OFFSETS = 70
CLIP = 6.0
STOP_DB = 80.0
TRANSITION = 0.35  # width of the filter's transition band, as a share of the new Nyquist frequency
SD_SMOOTHING = (5, 9)  # offsets, samples
PEAKS_BELOW_NYQUIST = 8.0  # the net interval keeps Nyquist at least so many peak frequencies away


def net_interval(dt_s: float, wanted_s: float, peak_hz: float) -> tuple[int, float]:
    """Return (decimation factor, interval): the largest whole multiple of `dt_s` not above `wanted_s`.

    A peak frequency above 15 Hz at 4 ms lowers the interval in proportion: a Ricker wavelet needs a Nyquist
    frequency of eight peaks to keep its shape.
    """
    limit = min(wanted_s, 0.5 / (PEAKS_BELOW_NYQUIST * peak_hz))
    factor = max(1, int(np.floor(limit / dt_s + 1e-6)))
    return factor, factor * dt_s


@functools.lru_cache(maxsize=8)
def _low_pass(factor: int) -> np.ndarray:
    """Return a zero-phase Kaiser low-pass, cut at the new Nyquist frequency less half the transition."""
    nyquist = 1.0 / factor
    taps, beta = signal.kaiserord(STOP_DB, TRANSITION * nyquist)
    window: Any = ("kaiser", beta)
    return np.asarray(signal.firwin(int(taps) | 1, nyquist * (1 - TRANSITION / 2), window=window))


def decimate(gathers: np.ndarray, factor: int, num_samples: int) -> np.ndarray:
    """Return every factor-th sample of [.., T, R] after a zero-phase anti-alias filter, [.., num_samples, R].

    Fewer samples than wanted are filled with zeros.
    """
    if factor > 1:
        gathers = signal.resample_poly(gathers, 1, factor, axis=-2, window=_low_pass(factor))
    found = gathers[..., :num_samples, :].astype(np.float32)
    missing = num_samples - found.shape[-2]
    if missing > 0:
        found = np.pad(found, [(0, 0)] * (found.ndim - 2) + [(0, missing), (0, 0)])
    return found


def decimate_tensor(gathers: torch.Tensor, factor: int, num_samples: int) -> torch.Tensor:
    """Do what `decimate` does on a tensor [B, S, T, R], differentiably."""
    if factor > 1:
        taps = torch.from_numpy(_low_pass(factor)).to(gathers)
        batch, shots, length, receivers = gathers.shape
        rows = gathers.permute(0, 1, 3, 2).reshape(-1, 1, length)
        rows = functional.conv1d(rows, taps[None, None], stride=factor, padding=len(taps) // 2)
        gathers = rows.reshape(batch, shots, receivers, -1).transpose(2, 3)
    found = gathers[..., :num_samples, :]
    return functional.pad(found, (0, 0, 0, max(0, num_samples - found.shape[-2])))


def band_pass(gathers: np.ndarray, dt_s: float, low_hz: float, high_hz: float) -> np.ndarray:
    """Apply a zero-phase 4th-order Butterworth to [.., T, R]; a corner of 0 leaves that side open.

    Raises:
        UserError: a corner lies at or above the Nyquist frequency, or they are out of order.
    """
    nyquist = 0.5 / dt_s
    if max(low_hz, high_hz) >= nyquist or (high_hz and low_hz >= high_hz):
        raise UserError(
            f"--bandpass_low_hz {low_hz:g} --bandpass_high_hz {high_hz:g}: expected low < high < "
            f"{nyquist:g} Hz, the Nyquist frequency of the data"
        )
    if not low_hz and not high_hz:
        return gathers
    kind = "bandpass" if low_hz and high_hz else "highpass" if low_hz else "lowpass"
    corners = [low_hz, high_hz] if kind == "bandpass" else (low_hz or high_hz)
    sections = signal.butter(4, corners, kind, fs=1 / dt_s, output="sos")
    return signal.sosfiltfilt(sections, gathers, axis=-2).astype(np.float32)


@dataclass(frozen=True)
class Amplitude:
    """How amplitudes become two channels: signed logarithm, and its standard score by offset and time.

    c = sign(a) log(1 + |a|), a = d / sigma;
    channel 0 = clip((c - mu[o, t]) / sd[o, t], -6, 6), channel 1 = c.
    The tables take out the direct wave that all gathers share and act as a gain fitted to the data.

    Attributes:
        sigma: root mean square of the training gathers.
        mean: [O, T] float32.
        deviation: [O, T] float32.
        largest_offset_m: offset of the last bin.
    """

    sigma: float
    mean: torch.Tensor
    deviation: torch.Tensor
    largest_offset_m: float

    def channels(
        self, gathers: torch.Tensor, source_xz: torch.Tensor, receiver_xz: torch.Tensor
    ) -> torch.Tensor:
        """Return [.., S, 2, T, R] from gathers [.., S, T, R], sources [.., S, 2], receivers [.., S, R, 2]."""
        c = signed_log(gathers / self.sigma)
        offset = (receiver_xz[..., 0] - source_xz[..., None, 0]).abs()
        bins = offset_bins(offset, self.largest_offset_m)
        mean = self.mean.to(c)[bins].transpose(-1, -2)
        deviation = self.deviation.to(c)[bins].transpose(-1, -2)
        return torch.stack([((c - mean) / deviation).clamp(-CLIP, CLIP), c], dim=-3)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that travel in the checkpoint."""
        return {
            "sigma": self.sigma,
            "mean": self.mean,
            "deviation": self.deviation,
            "largest_offset_m": self.largest_offset_m,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Amplitude:
        """Restore it."""
        return cls(**state)


def signed_log(x: torch.Tensor) -> torch.Tensor:
    """Return sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def offset_bins(offset_m: torch.Tensor, largest_m: float) -> torch.Tensor:
    """Return the offset bin 0..69 of each distance; farther ones share the last."""
    scaled = offset_m / max(largest_m, 1e-9) * (NUM_OFFSETS - 1)
    return torch.nan_to_num(scaled).round().long().clamp(0, NUM_OFFSETS - 1)


def fit_amplitude(samples: Iterable[Mapping[str, torch.Tensor]], largest_offset_m: float) -> Amplitude:
    """Fit sigma and the tables on training samples, each with gathers, source_xz, receiver_xz and live.

    Two passes: `samples` must be iterable twice.
    """
    square, count = 0.0, 0
    for sample in samples:
        alive = sample["gathers"].double()[_live(sample)]
        square, count = square + float(alive.square().sum()), count + alive.numel()
    sigma = (square / max(count, 1)) ** 0.5 or 1.0
    length = next(iter(samples))["gathers"].shape[-2]
    sums = torch.zeros(3, NUM_OFFSETS, length, dtype=torch.float64)
    for sample in samples:
        c = signed_log(sample["gathers"].double() / sigma).transpose(-1, -2)  # [S, R, T]
        offset = (sample["receiver_xz"][..., 0] - sample["source_xz"][:, None, 0]).abs()
        live = sample["live"]
        bins, traces = offset_bins(offset, largest_offset_m)[live], c[live]
        for table, values in zip(sums, (torch.ones_like(traces), traces, traces.square()), strict=True):
            table.index_add_(0, bins, values)
    number, total, squares = _filled(sums)
    mean = total / number
    deviation = (squares / number - mean.square()).clamp_min(0).sqrt()
    size: Any = SD_SMOOTHING
    smooth = torch.from_numpy(ndimage.uniform_filter(deviation.numpy(), size, mode="nearest"))
    smooth = smooth + 0.03 * smooth.mean() + 1e-6
    return Amplitude(sigma, mean.float(), smooth.float(), largest_offset_m)


def _live(sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return sample["live"][:, None, :].expand_as(sample["gathers"])


def _filled(sums: torch.Tensor) -> torch.Tensor:
    """Give bins that no trace met the values of the nearest bin that some did."""
    met = torch.nonzero(sums[0, :, 0] > 0).flatten()
    nearest = (torch.arange(NUM_OFFSETS)[:, None] - met).abs().argmin(1)
    return sums[:, met[nearest]]
