"""Synthetic facies with known truth: sections, plan-view channels, a checkerboard; wells, seismic.

Everything is a function of (seed, index). Impedance in Mrayl, by facies: shale 2.9, channel sand 2.5, levee
2.3,
splay 2.7, silt 2.8, marl 3.4, coal 1.9.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from common.noise import correlated_gaussian, numpy_stream
from facies_gan.objects3d import NAMES, ObjectModel
from facies_gan.palette import Palette
from facies_gan.wells import WellSet

KINDS = ("sections", "channels", "checkerboard")
MOST_FACIES = len(NAMES)
COLORS = (
    *((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)),
    *((255, 255, 0), (255, 0, 255), (0, 255, 255)),
)
IMPEDANCE_MRAYL = (2.9, 2.5, 2.3, 2.7, 2.8, 3.4, 1.9)
SECTION_SPACING = 3.0  # cells of y between neighbouring sections
CHANNEL_SHARE = 0.27
PEAK_HZ = 30.0
VELOCITY_M_S = 2500.0  # turns cells into two-way time


def synthetic_palette(kind: str, num_facies: int = 4) -> Palette:
    """Return the facies of a kind of section."""
    if kind == "channels":
        return Palette(np.array([(0, 0, 0), (255, 255, 255)]), np.arange(2), ("mud", "channel"))
    count = 4 if kind == "checkerboard" else num_facies
    names = tuple(f"class {i}" for i in range(4)) if kind == "checkerboard" else NAMES[:count]
    return Palette(np.array(COLORS[:count]), np.arange(count), names)


@lru_cache(maxsize=4)
def _model(seed: int, height: int, width: int) -> ObjectModel:
    return ObjectModel(seed, height, width)


def make_section(
    seed: int, index: int, height: int = 96, width: int = 120, num_facies: int = 4
) -> np.ndarray:
    """Return section `index` of the object model of `seed`, labels uint8 [H, W]; neighbours correlate."""
    return _model(seed, height, width).section(index * SECTION_SPACING, num_facies)


def make_channels(seed: int, index: int, height: int = 250, width: int = 250) -> np.ndarray:
    """Return a map of sinuous channels that run from left to right, labels uint8 [H, W], 27 % channel.

    The image is cut from f(x, y) = min over channels of the distance to the centreline over the channel's
    width,
    at the value that gives the share.
    """
    rng = numpy_stream(seed, "plan channels", index)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    size = np.sqrt(height * width) / 250
    mean_width = max(3.0, 8.0 * size**0.5)
    count = max(2, round(1.12 * CHANNEL_SHARE * height / mean_width))
    starts = (np.arange(count) + rng.uniform(0.1, 0.9, count)) * height / count
    field = np.full((height, width), np.inf)
    for start in starts:
        slope = rng.normal(0, 0.10)
        line = np.full(width, start - slope * width / 2) + slope * x
        steep = np.full(width, slope)
        for low, high, amplitude in ((0.5, 1.0, 0.045), (0.2, 0.4, 0.014), (0.07, 0.12, 0.003)):
            wavelength = rng.uniform(low, high) * 250 * size
            a = rng.uniform(0.5, 1.3) * amplitude * 250 * size
            angle = 2 * np.pi * x / wavelength + rng.uniform(0, 2 * np.pi)
            line += a * np.sin(angle)
            steep += a * 2 * np.pi / wavelength * np.cos(angle)
        own_width = mean_width * rng.uniform(0.75, 1.25)
        distance = np.abs(y - line) / np.sqrt(1 + steep**2)
        field = np.minimum(field, distance / own_width)
    return (field <= np.quantile(field, CHANNEL_SHARE)).astype(np.uint8)


def make_checkerboard(index: int = 0, height: int = 96, width: int = 120, block: int = 4) -> np.ndarray:
    """Return 4 classes in squares of `block` cells, equally often where sides are multiples of 2 blocks."""
    rows = (np.arange(height)[:, None] + index) // block % 2
    cols = np.arange(width)[None] // block % 2
    return (2 * rows + cols).astype(np.uint8)


def make(kind: str, seed: int, index: int, height: int, width: int, num_facies: int = 4) -> np.ndarray:
    """Return labels uint8 [H, W] of a kind: "sections", "channels" or "checkerboard"."""
    if kind == "sections":
        return make_section(seed, index, height, width, num_facies)
    if kind == "channels":
        return make_channels(seed, index, height, width)
    return make_checkerboard(index, height, width)


def make_wells(seed: int, index: int, labels: np.ndarray, count: int, *, deviated: bool = False) -> WellSet:
    """Return `count` wells through a section [H, W]: columns, or straight dipping paths when `deviated`."""
    rng = numpy_stream(seed, "wells", index)
    height, width = labels.shape
    wells = WellSet.empty()
    starts = rng.permutation(width)[:count]
    for number, start in enumerate(starts.tolist()):
        rows = np.arange(height)
        slope = rng.uniform(0.15, 0.6) * (1 if start < width / 2 else -1) if deviated else 0.0
        cols = np.floor(start + 0.5 + slope * rows * width / height / 1.5).astype(int)
        inside = (cols >= 0) & (cols < width)
        rows, cols = rows[inside], cols[inside]
        one = WellSet.from_cells(
            rows, cols, labels[rows, cols], np.zeros(len(rows), dtype=int), (f"well {number}",)
        )
        wells = wells.merged(one)
    return wells


def ricker(peak_hz: float, dt_s: float) -> np.ndarray:
    """Return a Ricker wavelet w(t) = (1 - 2 a) exp(-a), a = (pi peak t)^2, odd length (Ricker 1953)."""
    half = int(np.ceil(1.5 / peak_hz / dt_s))
    a = (np.pi * peak_hz * np.arange(-half, half + 1) * dt_s) ** 2
    return (1 - 2 * a) * np.exp(-a)


def make_seismic(seed: int, index: int, labels: np.ndarray, dz_m: float, noise: float = 0.03) -> np.ndarray:
    """Return the seismic image of a section, float32 [H, W], by 1-D convolution.

    r = (Z_below - Z_above) / (Z_below + Z_above); each trace is convolved in two-way time, dt = 2 dz / v.

    Args:
        seed: of the noise.
        index: number of the section.
        labels: [H, W].
        dz_m: height of a cell in m.
        noise: standard deviation of the correlated impedance noise, in Mrayl.
    """
    impedance = np.array(IMPEDANCE_MRAYL)[labels]
    rng = numpy_stream(seed, "impedance noise", index)
    impedance = impedance + noise * correlated_gaussian(labels.shape, (1.5, 4.0), rng)
    reflectivity = np.zeros_like(impedance)
    reflectivity[1:] = (impedance[1:] - impedance[:-1]) / (impedance[1:] + impedance[:-1])
    wavelet = ricker(PEAK_HZ, 2 * dz_m / VELOCITY_M_S)
    half = len(wavelet) // 2
    padded = np.pad(reflectivity, ((half, half), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(wavelet), axis=0)
    return (windows @ wavelet[::-1]).astype(np.float32)
