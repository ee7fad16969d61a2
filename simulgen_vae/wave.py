"""An acoustic wave past a circular anomaly: u_tt = c^2 lap u + s in a box with absorbing edges.

Leap-frog in time, five points in space; at each step u and the u before it are damped in a sponge along all
edges (Cerjan et al. 1985). All is dimensionless. Arrays are [ny, nx].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from simulgen_vae.grids import Grid
from simulgen_vae.symmetry import Symmetry

PARAMS = ("cx", "cy", "radius", "c1", "f0", "sy")
RANGES = ((0.6, 1.6), (0.3, 0.7), (0.1, 0.35), (0.5, 2.0), (1.5, 3.0), (0.2, 0.8))
T_END = 1.5625
COURANT = 0.2  # dt / h
MAX_COURANT = 0.7  # max(c) dt / h; the scheme is stable to 1 / sqrt(2)
SPONGE_WIDTH = 0.25  # 8 cells of 1/32
SPONGE_RATE = 0.64 / (COURANT / 32)  # 0.64 a step of dt = 0.2/32, so that damping does not depend on the grid
SOURCE_X, SOURCE_SIGMA, SOURCE_STRENGTH = 0.25, 0.05, 60.0


@dataclass(frozen=True)
class Steps:
    """How time is cut.

    Attributes:
        dt: length of a step.
        per_frame: steps between frames.
    """

    dt: float
    per_frame: int


def draw(rng: np.random.Generator) -> np.ndarray:
    """Return one set of parameters, float64 [6], each uniform in its range."""
    return np.array([rng.uniform(low, high) for low, high in RANGES])


def time_steps(grid: Grid, num_frames: int, courant: float = COURANT) -> Steps:
    """Return the fewest equal steps, of at most `courant` h, that end on each frame."""
    per_frame = math.ceil(T_END / (num_frames * courant * grid.hy) - 1e-9)
    return Steps(T_END / (num_frames * per_frame), per_frame)


def inside(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return bool [ny, nx]: the cells whose centre lies in the circle."""
    x, y = grid.centres()
    return (x - params[0]) ** 2 + (y - params[1]) ** 2 <= params[2] ** 2


def speed(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return c [ny, nx]: c1 in the circle, 1 outside."""
    return np.where(inside(params, grid), params[3], 1.0)


def picture(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the speed as a picture, uint8 [ny, nx], row 0 lowest: 128 outside, 128 + 100 (c1 - 1) inside."""
    level = np.clip(np.rint(128 + 100 * (params[3] - 1)), 0, 255)
    return np.where(inside(params, grid), level, 128).astype(np.uint8)


def symmetry(grid: Grid) -> Symmetry:
    """Return the mirror y -> 1 - y: cy -> 1 - cy, sy -> 1 - sy."""
    matrix, offset = np.eye(len(PARAMS)), np.zeros(len(PARAMS))
    for k in (1, 5):
        matrix[k, k], offset[k] = -1.0, 1.0
    return Symmetry(grid.mirror(), np.ones(1), matrix, offset, flip_image=True)


def sponge(grid: Grid, dt: float) -> np.ndarray:
    """Return a step's factor [ny, nx]: exp(-0.64 (1 - d/8h)^2) at a distance d of an edge, for h = 1/32."""

    def factor(position: np.ndarray, length: float) -> np.ndarray:
        depth = np.minimum(position, length - position)
        return np.exp(-SPONGE_RATE * dt * np.maximum(0.0, 1 - depth / SPONGE_WIDTH) ** 2)

    x, y = grid.centres()
    return factor(x, grid.nx * grid.hx) * factor(y, grid.ny * grid.hy)


def ricker(time: float, f0: float) -> float:
    """Return w(t) = (1 - 2 a) exp(-a), a = (pi f0 (t - 1/f0))^2 (Ricker 1953)."""
    a = (math.pi * f0 * (time - 1 / f0)) ** 2
    return (1 - 2 * a) * math.exp(-a)


def source(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the shape of the source in space [ny, nx]."""
    x, y = grid.centres()
    r2 = (x - SOURCE_X) ** 2 + (y - params[5]) ** 2
    return SOURCE_STRENGTH * np.exp(-r2 / (2 * SOURCE_SIGMA**2))


def laplacian(padded: np.ndarray, h: float) -> np.ndarray:
    """Return lap u [ny, nx] of u with a rim of zeros [ny + 2, nx + 2]."""
    neighbours = (padded[2:, 1:-1] + padded[:-2, 1:-1]) + (padded[1:-1, 2:] + padded[1:-1, :-2])
    return (neighbours - 4 * padded[1:-1, 1:-1]) / h**2


def energy(now: np.ndarray, before: np.ndarray, c: np.ndarray, h: float, dt: float) -> float:
    """Return the energy that the scheme conserves without sponge and source, from two successive steps.

    E = h^2 / 2 sum [ ((u^n - u^{n-1}) / dt)^2 / c^2 - u^n lap u^{n-1} ]
    """
    kinetic = (((now - before) / dt / c) ** 2).sum()
    return float(0.5 * h**2 * (kinetic - (now * laplacian(np.pad(before, 1), h)).sum()))


def simulate(params: np.ndarray, grid: Grid, num_frames: int, courant: float = COURANT) -> np.ndarray:
    """Return u [T, ny, nx] at the ends of T equal intervals of [0, 1.5625].

    Raises:
        UserError: the cells are no squares, or the time step is too long for the fastest wave.
    """
    return _simulate(params, grid, num_frames, courant)[0]


def simulate_energy(params: np.ndarray, grid: Grid, num_frames: int) -> np.ndarray:
    """Return the energy [T] of the frames."""
    return _simulate(params, grid, num_frames, COURANT)[1]


def _simulate(
    params: np.ndarray, grid: Grid, num_frames: int, courant: float
) -> tuple[np.ndarray, np.ndarray]:
    if abs(grid.hx - grid.hy) > 1e-12:
        raise UserError(f"--nx {grid.nx} --ny {grid.ny}: the wave needs square cells; set nx to twice ny")
    c = speed(params, grid)
    steps = time_steps(grid, num_frames, courant)
    h, dt = grid.hy, steps.dt
    if c.max() * dt / h > MAX_COURANT:
        raise UserError(
            f"wave: max(c) dt / h is {c.max() * dt / h:.3f}, expected at most {MAX_COURANT}; shorten steps"
        )
    factor, pulse = sponge(grid, dt), dt**2 * source(params, grid)
    courant2 = (c * dt / h) ** 2
    now, before = (np.zeros((grid.ny + 2, grid.nx + 2)) for _ in range(2))
    inner = (slice(1, -1), slice(1, -1))
    frames, energies = np.empty((num_frames, grid.ny, grid.nx)), np.empty(num_frames)
    for step in range(num_frames * steps.per_frame):
        after = 2 * now[inner] - before[inner] + courant2 * laplacian(now, 1.0)
        after += ricker(step * dt, params[4]) * pulse
        before[inner] = after * factor
        now[inner] *= factor
        now, before = before, now
        if (step + 1) % steps.per_frame == 0:
            frame = (step + 1) // steps.per_frame - 1
            frames[frame] = now[inner]
            energies[frame] = energy(now[inner], before[inner], c, h, dt)
    return frames, energies
