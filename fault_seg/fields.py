"""Smooth random fields and bilinear maps for the generator: NumPy float32, made on the fly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

REACH = 4.0  # a Gaussian is cut where it falls to exp(-8)


def smooth_noise(
    shape: Sequence[int],
    sigma: float | Sequence[float],
    rng: np.random.Generator,
    draw: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> np.ndarray:
    """Return white noise filtered by a Gaussian, float32 of `shape`, expected mean 0 and variance 1.

    The field is a sum of Gaussian bumps on a lattice that is as coarse as `sigma` (one value, or one an axis,
    in cells; 0 leaves an axis white) and reaches beyond the box, so edges look like the inside. At that
    spacing its covariance is that of filtered white noise to 1e-3, and few random numbers are needed.

    Args:
        shape: Size of the field.
        sigma: Standard deviation of the Gaussian filter.
        rng: Source of the weights of the bumps.
        draw: Function of a shape that returns white noise of mean 0 and variance 1; default standard normal.
    """
    sigmas = np.broadcast_to(np.asarray(sigma, dtype=np.float64), (len(shape),))
    kernels = [None if s == 0 else _bumps(n, s) for n, s in zip(shape, sigmas, strict=True)]
    nodes = tuple(n if k is None else k.shape[1] for n, k in zip(shape, kernels, strict=True))
    field = draw(nodes) if draw is not None else rng.standard_normal(nodes, dtype=np.float32)
    for axis, kernel in enumerate(kernels):
        if kernel is not None:
            field = along(kernel, field, axis)
    return np.ascontiguousarray(field, dtype=np.float32)


def along(matrix: np.ndarray, field: np.ndarray, axis: int) -> np.ndarray:
    """Return `field` with the banded `matrix` [m, n] applied to its axis of length n.

    A sparse product runs on one thread. BLAS would round differently for each number of threads, and a sample
    must have the same bytes in a loader worker as in the main process.
    """
    moved = np.moveaxis(field, axis, 0)
    result = sparse.csr_array(matrix) @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    result = np.moveaxis(result.reshape(-1, *moved.shape[1:]), 0, axis)
    return np.ascontiguousarray(result)


def _bumps(n: int, sigma: float) -> np.ndarray:
    """Return bumps [n, nodes], every row of unit L2 norm: the variance of the sum is 1 at each cell."""
    spacing = max(1.0, sigma)
    beyond = int(np.ceil(REACH * sigma / spacing))
    nodes = np.arange(-beyond, int(np.ceil((n - 1) / spacing)) + beyond + 1) * spacing
    lag = np.arange(n)[:, None] - nodes
    kernel = np.exp(-(lag**2) / (2 * sigma**2)) * (np.abs(lag) <= REACH * sigma)
    return (kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32)


def gaussian_average(n: int, sigma: float) -> np.ndarray:
    """Return the matrix [n, n] of a Gaussian average along an axis, renormalised at the ends."""
    lag = np.arange(n)[:, None] - np.arange(n)
    kernel = np.exp(-(lag**2) / (2 * sigma**2)) * (np.abs(lag) <= np.ceil(REACH * sigma))
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def bilinear(maps: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return `maps` [K, ny, nx] at fractional cells y, x [N] as [K, N]; positions outside are clamped."""
    num_maps, ny, nx = maps.shape
    y = np.clip(y, 0, np.float32(ny - 1.001))
    x = np.clip(x, 0, np.float32(nx - 1.001))
    iy, ix = y.astype(np.int32), x.astype(np.int32)
    fy, fx = y - iy, x - ix
    corner = iy * nx + ix
    out = np.empty((num_maps, len(y)), dtype=np.float32)
    for values, result in zip(maps.reshape(num_maps, -1), out, strict=True):
        v00, v01 = values[corner], values[1:][corner]
        v10, v11 = values[nx:][corner], values[nx + 1 :][corner]
        top = v00 + fx * (v01 - v00)
        np.add(top, fy * (v10 + fx * (v11 - v10) - top), out=result)
    return out
