"""A 3-D object model of buried channels, endless along y: any vertical section of it can be cut.

x runs along a section, y across the sections, z downwards; all in cells, a cell is dx = 10 m wide and `dz_m`
high. Objects follow the stratigraphic coordinate s = z + fold(x, y). From old to young: shale (and silt)
units,
levees, channels that cut into what lies below, crevasse splays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.noise import numpy_stream

DX_M = 10.0
SHALE, CHANNEL, LEVEE, SPLAY, SILT, MARL, COAL = range(7)
NAMES = ("shale", "channel sand", "levee", "splay", "silt", "marl", "coal")
BLOCK = 48.0  # cells of y in which channels are born
LIFE = 3  # blocks that a channel lives at most


@dataclass(frozen=True)
class Channel:
    """A sinuous channel that flows along y between two ends.

    Attributes:
        start, end: along y, in cells.
        top: stratigraphic depth of its flat top, in cells.
        centre, slope, amplitudes, wavelengths, phases: x_c(y) = centre + slope (y - start) + sum of sines.
        width, depth: of its lens, in cells.
        skew: -0.6 to 0.6, where the deepest point lies.
        levee: height of the levees at the bank, in cells.
        splay_at, splay_side: where along y a splay breaks out, and to which side (-1 or 1; 0 = none).
    """

    start: float
    end: float
    top: float
    centre: float
    slope: float
    amplitudes: tuple[float, float]
    wavelengths: tuple[float, float]
    phases: tuple[float, float]
    width: float
    depth: float
    skew: float
    levee: float
    splay_at: float
    splay_side: int

    def position(self, y: float) -> tuple[float, float]:
        """Return the centre x_c(y) and its derivative."""
        x, slope = self.centre + self.slope * (y - self.start), self.slope
        for a, wavelength, phase in zip(self.amplitudes, self.wavelengths, self.phases, strict=True):
            angle = 2 * np.pi * y / wavelength + phase
            x += a * np.sin(angle)
            slope += a * 2 * np.pi / wavelength * np.cos(angle)
        return float(x), float(slope)


class ObjectModel:
    """The model of one seed for sections of a size.

    Args:
        seed: of the model.
        height, width: of the sections, in cells.
    """

    def __init__(self, seed: int, height: int, width: int) -> None:
        self.seed, self.height, self.width = seed, height, width
        # So high that lenses 8 to 15 times as wide as deep are some cells thick.
        self.dz_m = DX_M / 4 * (96 / height) * (width / 120)
        rng = numpy_stream(seed, "units", height, width)
        count = int(rng.integers(2, 6))
        cuts = np.sort(rng.dirichlet(np.full(count, 6.0)).cumsum()[:-1])
        self.boundaries = cuts * height  # stratigraphic depths between units
        self.richness = rng.uniform(0.6, 1.5, count)
        self.folds = [
            (
                rng.uniform(0.01, 0.035) * height,
                rng.uniform(0.7, 2.2) * width,
                rng.uniform(60, 240),
                rng.uniform(0, 2 * np.pi),
            )
            for _ in range(3)
        ]

    def fold(self, x: np.ndarray, y: float) -> np.ndarray:
        """Return by how much layers lie higher than flat, in cells, at x [W]."""
        angles = [
            2 * np.pi * (x / length_x + y / length_y) + phase for _, length_x, length_y, phase in self.folds
        ]
        return sum(
            (fold[0] * np.sin(angle) for fold, angle in zip(self.folds, angles, strict=True)),
            np.zeros(len(x)),
        )

    def unit(self, s: np.ndarray) -> np.ndarray:
        """Return the number of the stratigraphic unit at depths s."""
        return np.searchsorted(self.boundaries, s)

    def channels(self, y: float) -> list[Channel]:
        """Return the channels that a section at y cuts, the deepest first."""
        block = int(np.floor(y / BLOCK))
        born = [c for b in range(block - LIFE, block + 1) for c in self._born(b)]
        return sorted((c for c in born if c.start <= y <= c.end), key=lambda c: -c.top)

    def _born(self, block: int) -> list[Channel]:
        """Return the channels that begin in a block of y."""
        rng = numpy_stream(self.seed, "channels", self.height, self.width, block + 1_000_000)
        found = []
        for number in range(int(rng.poisson(10)) + 6):
            top = rng.uniform(-0.1, 1.0) * self.height
            keep = rng.random() * 1.5 < self.richness[int(self.unit(np.array(top)))]
            channel = self._channel(rng, block, top)
            if keep or number == 0:
                found.append(channel)
        return found

    def _channel(self, rng: np.random.Generator, block: int, top: float) -> Channel:
        width = rng.uniform(0.15, 0.34) * self.width
        depth = width * DX_M / rng.uniform(8, 15) / self.dz_m
        start = (block + rng.random()) * BLOCK
        end = start + rng.uniform(1.0, LIFE - 1.0) * BLOCK
        return Channel(
            start,
            end,
            top,
            rng.uniform(-0.1, 1.1) * self.width,
            rng.uniform(-0.3, 0.3),
            (rng.uniform(0.03, 0.10) * self.width, rng.uniform(0.01, 0.03) * self.width),
            (rng.uniform(60, 140), rng.uniform(25, 50)),
            (rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)),
            width,
            depth,
            rng.uniform(-0.6, 0.6),
            depth * rng.uniform(0.2, 0.4),
            rng.uniform(start, end),
            int(rng.choice([-1, 0, 1])),
        )

    def section(self, y: float, num_facies: int = 4) -> np.ndarray:
        """Return labels uint8 [H, W] of the section at y; facies from `num_facies` on are left out."""
        x = np.arange(self.width) + 0.5
        depth = np.arange(self.height)[:, None] + 0.5 + self.fold(x, y)[None]
        labels = self._background(depth, x, y, num_facies)
        for channel in self.channels(y):
            _draw(labels, depth, x, y, channel, num_facies)
        return labels

    def _background(self, depth: np.ndarray, x: np.ndarray, y: float, num_facies: int) -> np.ndarray:
        """Return shale, with silt in every second unit, marl at boundaries and coal seams where asked for."""
        labels = np.full(depth.shape, SHALE, dtype=np.uint8)
        units = self.unit(depth)
        if num_facies > SILT:
            labels[units % 2 == 1] = SILT
        if num_facies > MARL:
            for boundary in self.boundaries:
                labels[np.abs(depth - boundary) < 0.02 * self.height] = MARL
        if num_facies > COAL:
            for i, boundary in enumerate([*self.boundaries, self.height]):
                reach = np.sin(2 * np.pi * (x / (0.9 * self.width) + y / 170) + i)[None] > -0.3
                labels[(np.abs(depth - boundary + 0.1 * self.height) < 0.012 * self.height) & reach] = COAL
        return labels


def _draw(
    labels: np.ndarray, depth: np.ndarray, x: np.ndarray, y: float, channel: Channel, num_facies: int
) -> None:
    """Draw a channel with its levees and splay into labels [H, W], as a section across y shows it."""
    centre, slope = channel.position(y)
    # Ends taper; a section that cuts the channel obliquely shows it wider.
    ends = min(1.0, (y - channel.start) / 8 + 0.15, (channel.end - y) / 8 + 0.15)
    width = channel.width * np.sqrt(1 + slope**2) * np.sqrt(ends)
    u = 2 * (x - centre) / width  # -1 and 1 at the banks
    above = channel.top - depth  # cells above the channel's top, negative below
    bank = np.clip(np.abs(u) - 1, 0, None)
    if num_facies > LEVEE:
        height = channel.levee * ends * np.clip(1 - bank / 0.9, 0, 1) * (np.abs(u) >= 0.9)
        labels[(above > -0.5) & (above < height[None]) & (height > 0.3)[None]] = LEVEE
    if num_facies > SPLAY and channel.splay_side:
        lobe = (channel.splay_side * u - 2.1) / 1.4
        strength = np.clip(1 - ((y - channel.splay_at) / 24) ** 2, 0, 1)
        height = 0.55 * channel.depth * ends * strength * np.clip(1 - lobe**2, 0, 1)
        labels[(above > -0.7 * height[None]) & (above < 0.3 * height[None]) & (height > 0.5)[None]] = SPLAY
    lens = np.clip(1 - u**2, 0, 1) * (1 + channel.skew * u) * channel.depth * ends
    labels[(above <= 0) & (-above < lens[None])] = CHANNEL
