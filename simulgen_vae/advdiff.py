"""Hot fluid through a heterogeneous layer: Darcy flow past an ellipse, then advection and diffusion.

    div(K grad p) = 0,  p = 1 at x = 0,  p = 0 at x = 2,  no flow through top and bottom,  v = -K grad p
    dT/dt + Pe div(v T) = lap T,  T = 0 at first,  T = 1 - exp(-t / tau) at the inlet,  dT/dn = 0 elsewhere

Cell-centred finite volumes with harmonic face permeabilities, upwind advection, implicit Euler in time
(Patankar 1980). All is dimensionless. Arrays are [ny, nx]; face arrays [ny, nx + 1] and [ny + 1, nx].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import SuperLU, splu

from simulgen_vae.grids import Grid
from simulgen_vae.symmetry import Symmetry

PARAMS = ("log10_pe", "c", "cx", "cy", "a", "b", "cos_2theta", "sin_2theta", "tau")
T_END = 0.25
SUB_STEPS = 4


@dataclass(frozen=True)
class Flow:
    """What a parameter set means on a grid.

    Attributes:
        grid: the cells.
        flux_x: Pe v_x on the x faces [ny, nx + 1], times the face area.
        flux_y: Pe v_y on the y faces [ny + 1, nx], times the face area; 0 at top and bottom.
        tau: rise time of the inlet temperature.
    """

    grid: Grid
    flux_x: np.ndarray
    flux_y: np.ndarray
    tau: float

    def inlet(self, time: float) -> float:
        """Return the temperature that flows in."""
        return float(-np.expm1(-time / self.tau))

    def inflow(self, temperature: np.ndarray, time: float) -> float:
        """Return the heat per time through the inlet, advected and conducted over half a cell."""
        hot = self.inlet(time)
        conduction = self.grid.hy / (0.5 * self.grid.hx)
        return float((self.flux_x[:, 0] * hot + conduction * (hot - temperature[:, 0])).sum())

    def outflow(self, temperature: np.ndarray) -> float:
        """Return the heat per time through the outlet, advected only."""
        return float((self.flux_x[:, -1] * temperature[:, -1]).sum())


def draw(rng: np.random.Generator) -> np.ndarray:
    """Return one set of parameters, float64 [9], each uniform in its range."""
    log10_pe, c, cx, cy, a, b, theta, tau = (
        rng.uniform(low, high)
        for low, high in (
            *((0.7, 2.0), (-2.0, 2.0), (0.5, 1.5), (0.25, 0.75)),
            *((0.1, 0.4), (0.05, 0.25), (0.0, np.pi), (0.02, 0.3)),
        )
    )
    return np.array([log10_pe, c, cx, cy, a, b, np.cos(2 * theta), np.sin(2 * theta), tau])


def inside(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return bool [ny, nx]: the cells whose centre lies in the ellipse.

    With C = cos 2 theta and S = sin 2 theta, no angle is needed: cos^2 = (1 + C)/2, sin^2 = (1 - C)/2 and
    sin cos = S/2.
    """
    cx, cy, a, b, cos2, sin2 = params[2:8]
    length = max(np.hypot(cos2, sin2), 1e-12)
    cos2, sin2 = cos2 / length, sin2 / length
    x, y = grid.centres()
    dx, dy = x - cx, y - cy
    p, q = 1 / a**2, 1 / b**2
    form = dx**2 * ((1 + cos2) * p + (1 - cos2) * q) + dy**2 * ((1 - cos2) * p + (1 + cos2) * q)
    return form + 2 * dx * dy * sin2 * (p - q) <= 2.0


def permeability(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return K [ny, nx]: 10^c in the ellipse, 1 outside."""
    return np.where(inside(params, grid), 10.0 ** params[1], 1.0)


def picture(params: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the permeability as a picture, uint8 [ny, nx], row 0 lowest: 128 outside, 128 + 60 c inside."""
    level = np.clip(np.rint(128 + 60 * params[1]), 0, 255)
    return np.where(inside(params, grid), level, 128).astype(np.uint8)


def symmetry(grid: Grid) -> Symmetry:
    """Return the mirror y -> 1 - y: cy -> 1 - cy, sin 2 theta -> -sin 2 theta."""
    matrix, offset = np.eye(len(PARAMS)), np.zeros(len(PARAMS))
    matrix[3, 3], offset[3] = -1.0, 1.0
    matrix[7, 7] = -1.0
    return Symmetry(grid.mirror(), np.ones(1), matrix, offset, flip_image=True)


def darcy_flux(permeable: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the volume fluxes through the x faces [ny, nx + 1] and the y faces [ny + 1, nx].

    The two-point flux with the harmonic mean of both cells; half a cell at inlet and outlet.
    """
    k, ny, nx = permeable, grid.ny, grid.nx
    tx = np.empty((ny, nx + 1))
    tx[:, 1:-1] = 2 * k[:, :-1] * k[:, 1:] / (k[:, :-1] + k[:, 1:])
    tx[:, 0], tx[:, -1] = 2 * k[:, 0], 2 * k[:, -1]
    tx *= grid.hy / grid.hx
    ty = np.zeros((ny + 1, nx))
    ty[1:-1] = 2 * k[:-1] * k[1:] / (k[:-1] + k[1:]) * (grid.hx / grid.hy)
    right = np.zeros((ny, nx))
    right[:, 0] = tx[:, 0]  # p = 1 there
    centre = tx[:, :-1] + tx[:, 1:] + ty[:-1] + ty[1:]
    matrix = five_point(centre, -tx[:, 1:-1], -tx[:, 1:-1], -ty[1:-1], -ty[1:-1])
    p = factored(matrix).solve(right.ravel()).reshape(ny, nx)
    padded = np.pad(p, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
    flux_y = np.zeros((ny + 1, nx))
    flux_y[1:-1] = -ty[1:-1] * np.diff(p, axis=0)
    return -tx * np.diff(padded, axis=1), flux_y


def five_point(
    centre: np.ndarray, east: np.ndarray, west: np.ndarray, north: np.ndarray, south: np.ndarray
) -> sparse.csc_matrix:
    """Return the matrix [M, M] of a five-point stencil.

    Args:
        centre: [ny, nx], the diagonal.
        east: [ny, nx - 1], weight of the right neighbour in the row of the left cell.
        west: [ny, nx - 1], weight of the left neighbour in the row of the right cell.
        north: [ny - 1, nx], weight of the upper neighbour in the row of the lower cell.
        south: [ny - 1, nx], weight of the lower neighbour in the row of the upper cell.
    """
    nx = centre.shape[1]
    right, left = np.zeros_like(centre), np.zeros_like(centre)
    right[:, :-1], left[:, :-1] = east, west  # the last entry of a row joins no neighbours
    diagonals = [centre.ravel(), right.ravel()[:-1], left.ravel()[:-1], north.ravel(), south.ravel()]
    offsets: Any = [0, 1, -1, nx, -nx]
    return sparse.diags_array(diagonals, offsets=offsets).tocsc()


def factored(matrix: sparse.csc_matrix) -> SuperLU:
    """Return the LU factors of a diagonally dominant matrix, ordered for little fill."""
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def make_flow(params: np.ndarray, grid: Grid) -> Flow:
    """Return the flow of one parameter set [9]."""
    peclet = 10.0 ** params[0]
    flux_x, flux_y = darcy_flux(permeability(params, grid), grid)
    return Flow(grid, peclet * flux_x, peclet * flux_y, float(params[8]))


def step_matrix(flow: Flow, dt: float) -> sparse.csc_matrix:
    """Return the matrix of one implicit step: volume / dt + upwind advection + diffusion."""
    grid = flow.grid
    dx, dy = grid.hy / grid.hx, grid.hx / grid.hy  # conductances between neighbours
    rightward, leftward = np.maximum(flow.flux_x, 0), np.maximum(-flow.flux_x, 0)
    upward, downward = np.maximum(flow.flux_y, 0), np.maximum(-flow.flux_y, 0)
    centre = np.full((grid.ny, grid.nx), grid.hx * grid.hy / dt)
    centre += rightward[:, 1:] + leftward[:, :-1] + upward[1:] + downward[:-1]
    centre[:, 1:] += dx
    centre[:, :-1] += dx
    centre[1:] += dy
    centre[:-1] += dy
    centre[:, 0] += 2 * dx  # half a cell to the inlet
    return five_point(
        centre,
        -(leftward[:, 1:-1] + dx),
        -(rightward[:, 1:-1] + dx),
        -(downward[1:-1] + dy),
        -(upward[1:-1] + dy),
    )


def simulate(params: np.ndarray, grid: Grid, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return temperature [T, ny, nx] at the ends of T equal intervals of [0, 0.25], and the balance [T, 3].

    The balance holds heat content, cumulative inflow and cumulative outflow; content = inflow - outflow
    exactly, since implicit Euler's fluxes are those at the end of a step.
    """
    flow = make_flow(params, grid)
    dt = T_END / (num_frames * SUB_STEPS)
    volume = grid.hx * grid.hy
    solver = factored(step_matrix(flow, dt))
    entering = flow.flux_x[:, 0] + 2 * grid.hy / grid.hx  # heat per time for an inlet temperature of 1
    temperature = np.zeros((grid.ny, grid.nx))
    frames = np.empty((num_frames, grid.ny, grid.nx))
    balance = np.empty((num_frames, 3))
    gained = lost = 0.0
    for step in range(1, num_frames * SUB_STEPS + 1):
        right = temperature * (volume / dt)
        right[:, 0] += entering * flow.inlet(step * dt)
        temperature = solver.solve(right.ravel()).reshape(grid.ny, grid.nx)
        gained += dt * flow.inflow(temperature, step * dt)
        lost += dt * flow.outflow(temperature)
        if step % SUB_STEPS == 0:
            frame = step // SUB_STEPS - 1
            frames[frame] = temperature
            balance[frame] = temperature.sum() * volume, gained, lost
    return frames, balance
