"""Folding and erosion: the depositional position (geological time) of an unfaulted grain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fault_seg.fields import bilinear, smooth_noise
from fault_seg.structure import scale


@dataclass(frozen=True)
class Folding:
    """Lateral maps of the folded column.

    z0 = (z - shift(y, x) ramp(z) - n1/2) stretch(y, x) + n1/2,  ramp = 1 or 0.35 + 0.65 z/n1

    Attributes:
        maps: [4, ny + 2 margin, nx + 2 margin]: shift in voxels, stretch, and two gain maps within -1..1.
        margin: Voxels of the maps beyond the cube on each side.
        n1: Height of the cube in voxels.
        growing: Whether folds grow with depth (the ramp).
    """

    maps: np.ndarray
    margin: int
    n1: int
    growing: bool

    def position(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return depositional position z0 [N] (voxels) and gain maps [2, N] at unfaulted points [3, N]."""
        z, y, x = points
        at = bilinear(self.maps, y + self.margin, x + self.margin)
        shift, stretch = at[0], at[1]
        if self.growing:
            shift = shift * (np.float32(0.35) + np.float32(0.65 / self.n1) * z)
        half = np.float32(self.n1 / 2)
        return (z - shift - half) * stretch + half, at[2:]


def draw_folding(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    margin: int,
    plane: float = 25.0,
    strength: float = 1.0,
) -> Folding:
    """Return random folds: a smooth or bumpy surface, small roughness, a tilt, and gentle stretching.

    Args:
        rng: Source of all draws.
        shape: (n1, n2, n3) of the cube.
        margin: Voxels of the maps beyond the cube.
        plane: Largest rise of the tilt across the cube, along y and along x, for a cube of 128 voxels.
        strength: Factor of all shifts.
    """
    n1, n2, n3 = shape
    sc = scale(shape)
    size = (n2 + 2 * margin, n3 + 2 * margin)
    y = (np.arange(size[0], dtype=np.float32)[:, None] - margin) / n2 - 0.5
    x = (np.arange(size[1], dtype=np.float32) - margin) / n3 - 0.5
    inside = (slice(margin, margin + n2), slice(margin, margin + n3))
    broad = max(1.0, sc)
    if rng.random() < 0.5:
        bend = smooth_noise(size, rng.uniform(15, 25) * broad, rng)
        bend -= bend[inside].mean()
        bend *= rng.uniform(2, 28) * sc / max(np.abs(bend[inside]).max(), 1e-3)
    else:
        bend = np.zeros(size, dtype=np.float32)
        bumps = int(rng.integers(1, 4))
        for _ in range(bumps):
            cy, cx, width = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.15, 0.45)
            height = rng.uniform(-28, 28) * sc / bumps
            bend += np.float32(height) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    rough = smooth_noise(size, 4, rng)
    bend += np.clip(rough, -2.5, 2.5) * np.float32(rng.uniform(0, 2) * sc / 2.5)
    tilt_y, tilt_x = rng.uniform(-plane, plane, 2) * sc
    bend += np.float32(tilt_y) * y + np.float32(tilt_x) * x
    bend -= bend[inside].mean()
    stretch = 1 + 0.08 * np.tanh(smooth_noise(size, 20 * broad, rng)) * rng.uniform(0, 1)
    gains = [np.tanh(smooth_noise(size, 12 * broad, rng)) for _ in range(2)]
    maps = np.stack([bend * np.float32(strength), stretch, *gains]).astype(np.float32)
    return Folding(maps=maps, margin=margin, n1=n1, growing=bool(rng.random() < 0.5))


@dataclass(frozen=True)
class Erosion:
    """An erosional surface: younger beds lie on the cut-off top of an older, more deformed package.

    Attributes:
        depth: Map [1, ny + 2 margin, nx + 2 margin] of the surface, voxels.
        margin: Voxels of the map beyond the cube on each side.
        hiatus: Missing time, in voxels of stratigraphy, at the least eroded place.
    """

    depth: np.ndarray
    margin: int
    hiatus: float

    def below(self, points: np.ndarray) -> np.ndarray:
        """Return whether points [3, N] lie below the surface, bool [N]."""
        return points[0] > bilinear(self.depth, points[1] + self.margin, points[2] + self.margin)[0]


def draw_erosion(rng: np.random.Generator, shape: tuple[int, int, int], margin: int) -> Erosion:
    """Return a random erosional surface in the middle of the cube, with relief up to 6/128 of its size."""
    n1, n2, n3 = shape
    relief = smooth_noise((n2 + 2 * margin, n3 + 2 * margin), 16 * max(1.0, scale(shape)), rng)
    depth = n1 * rng.uniform(0.25, 0.6) + relief * np.float32(rng.uniform(0, 6) * scale(shape))
    return Erosion(depth=depth[None].astype(np.float32), margin=margin, hiatus=rng.uniform(1, 8))
