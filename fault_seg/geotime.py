"""Relative geological time from reflection slopes: a weighted least-squares solve, without a network.

Every reflection is a surface of constant time tau(z, y, x) = z + d(z, y, x). The structure tensor of an image
gives the slopes P = dz/dy and Q = dz/dx of the reflections, so tau_y + P tau_z = 0 and tau_x + Q tau_z = 0; d
is the least-squares answer (after Lomask et al. 2006, "Flattening without picking", and Wu and Hale 2015).

Arrays are torch tensors [n1, n2, n3] = (z down, y crossline, x inline); lengths are voxels, slopes voxels per
voxel. Nothing here is differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from fault_seg.angles import normal_from_outer, outer_from_normal

GRADIENT_SIGMA = 1.0
TENSOR_SIGMAS = (4.0, 3.0, 3.0)
MAX_SLOPE = 2.0
MIN_FAULT_WEIGHT = 0.2
_KERNEL_REACH = 3.0  # standard deviations at which the Gaussian kernels end
_SMALLEST_COARSE_AXIS = 12


def _convolution_matrix(n: int, sigma: float, *, derivative: bool, replicate: bool, like: Tensor) -> Tensor:
    """Return the [n, n] matrix of a Gaussian (or its derivative), edges replicated or taken as zero.

    As a matrix product a convolution of a short axis runs at the speed of BLAS.
    """
    reach = max(1, math.ceil(_KERNEL_REACH * sigma))
    t = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (t / sigma) ** 2)
    kernel = t * kernel / (t * t * kernel).sum() if derivative else kernel / kernel.sum()
    matrix = np.zeros((n, n))
    for row in range(n):
        column = row + t
        inside = slice(None) if replicate else (column >= 0) & (column < n)
        np.add.at(matrix[row], np.clip(column, 0, n - 1)[inside], kernel[inside])
    return torch.as_tensor(matrix, dtype=like.dtype, device=like.device)


def _along(values: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Return `matrix` applied along an axis of a tensor [..., n1, n2, n3] (axis 0, 1 or 2)."""
    if axis == 2:
        return values @ matrix.T
    if axis == 1:
        return matrix @ values
    shape = values.shape
    return (matrix @ values.reshape(*shape[:-2], -1)).reshape(shape)


def _gradients(image: Tensor) -> list[Tensor]:
    """Return the three Gaussian derivatives of the image, zero where an edge would bias them."""
    gradients = []
    for direction in range(3):
        g = image
        for axis in range(3):
            g = _along(
                g,
                _convolution_matrix(
                    image.shape[axis],
                    GRADIENT_SIGMA,
                    derivative=axis == direction,
                    replicate=True,
                    like=image,
                ),
                axis,
            )
        gradients.append(g)
    margin = math.ceil(_KERNEL_REACH * GRADIENT_SIGMA)
    for axis, n in enumerate(image.shape):
        if n > 4 * margin:  # thinner axes keep their edges: a biased slope is better than none
            for g in gradients:
                g.narrow(axis, 0, margin).zero_()
                g.narrow(axis, n - margin, margin).zero_()
    return gradients


def structure_tensor(image: Tensor, sigmas: tuple[float, float, float] = TENSOR_SIGMAS) -> Tensor:
    """Return the smoothed gradient structure tensor [6, n1, n2, n3]: zz, yy, xx, zy, zx, yx.

    Gaussian derivatives of sigma 1, products smoothed with Gaussians of `sigmas` (z, y, x). Edges add no
    samples: only ratios of components are meant to be used.
    """
    image = image.float()
    z, y, x = _gradients(image / image.std(correction=0).clamp_min(1e-20))
    products = torch.stack((z * z, y * y, x * x, z * y, z * x, y * x))
    for axis, sigma in enumerate(sigmas):
        matrix = _convolution_matrix(
            image.shape[axis], sigma, derivative=False, replicate=False, like=products
        )
        products = _along(products, matrix, axis)
    return products


def reflection_slopes(
    dhr: Tensor, sigmas: tuple[float, float, float] = TENSOR_SIGMAS
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slopes P = dz/dy, Q = dz/dx (clipped to +-2) and the planarity of the reflections.

    The normal of a reflection is the leading eigenvector of the structure tensor; planarity is
    (l1 - l2) / l1 of its eigenvalues, 0..1, and 0 where the image is empty.
    """
    tensor = structure_tensor(dhr, sigmas)
    v, gap = normal_from_outer(tensor)
    largest = (
        tensor * outer_from_normal(v) * tensor.new_tensor([1, 1, 1, 2, 2, 2])[:, None, None, None]
    ).sum(0)
    planarity = (gap / largest.clamp_min(1e-20)).clamp_(0, 1)
    z = torch.where(v[0] < 0, -1.0, 1.0) * v[0].abs().clamp_min(1e-12)
    return (-v[1] / z).clamp_(-MAX_SLOPE, MAX_SLOPE), (-v[2] / z).clamp_(-MAX_SLOPE, MAX_SLOPE), planarity


@dataclass(frozen=True)
class _System:
    """The normal equations of one grid: slopes and weights between neighbours along y and x, weights along z.

    `reach_y`, `reach_x` are the cell sizes along y and x over that along z.
    """

    slope_y: Tensor
    slope_x: Tensor
    weight_y: Tensor
    weight_x: Tensor
    weight_z: Tensor
    reach_y: float
    reach_x: float

    @classmethod
    def build(cls, P: Tensor, Q: Tensor, weight: Tensor, factors: tuple[int, int, int]) -> _System:
        """Return the system for slopes and weights at the voxels of a grid decimated by `factors`."""
        return cls(
            slope_y=0.5 * (P[:, 1:] + P[:, :-1]),
            slope_x=0.5 * (Q[:, :, 1:] + Q[:, :, :-1]),
            weight_y=0.5 * (weight[:, 1:] + weight[:, :-1]),
            weight_x=0.5 * (weight[:, :, 1:] + weight[:, :, :-1]),
            weight_z=0.15 * 0.5 * (weight[1:] + weight[:-1]) + 0.02,
            reach_y=factors[1] / factors[0],
            reach_x=factors[2] / factors[0],
        )

    def residuals(self, d: Tensor, offset: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted residuals along y, x, z; `offset` 1: the equations, 0: their linear part."""
        c = _vertical_slope(d) + offset
        r_y = (d[:, 1:] - d[:, :-1]) / self.reach_y + 0.5 * self.slope_y * (c[:, 1:] + c[:, :-1])
        r_x = (d[:, :, 1:] - d[:, :, :-1]) / self.reach_x + 0.5 * self.slope_x * (c[:, :, 1:] + c[:, :, :-1])
        return self.weight_y * r_y, self.weight_x * r_x, self.weight_z * (d[1:] - d[:-1])

    def transposed(self, r_y: Tensor, r_x: Tensor, r_z: Tensor, shape: torch.Size) -> Tensor:
        """Return the transpose of the linear part applied to residuals."""
        result, c = r_y.new_zeros(shape), r_y.new_zeros(shape)
        for r, slope, reach, axis in (
            (r_y, self.slope_y, self.reach_y, 1),
            (r_x, self.slope_x, self.reach_x, 2),
        ):
            n = shape[axis]
            step = r if reach == 1 else r / reach
            result.narrow(axis, 1, n - 1).add_(step)
            result.narrow(axis, 0, n - 1).sub_(step)
            half = r * slope
            c.narrow(axis, 1, n - 1).add_(half, alpha=0.5)
            c.narrow(axis, 0, n - 1).add_(half, alpha=0.5)
        result[1:] += r_z
        result[:-1] -= r_z
        return _add_vertical_slope_transposed(result, c)

    def apply(self, d: Tensor) -> Tensor:
        """Return A^T W A d."""
        return self.transposed(*self.residuals(d, 0.0), d.shape)


def _vertical_slope(d: Tensor) -> Tensor:
    """Return d_z: central differences, one-sided at the two ends."""
    c = torch.empty_like(d)
    if d.shape[0] == 1:
        return c.zero_()
    torch.sub(d[2:], d[:-2], out=c[1:-1]).mul_(0.5)
    c[0] = d[1] - d[0]
    c[-1] = d[-1] - d[-2]
    return c


def _add_vertical_slope_transposed(result: Tensor, c: Tensor) -> Tensor:
    """Add the transpose of `_vertical_slope` applied to c to `result` and return it."""
    if c.shape[0] == 1:
        return result
    result[2:].add_(c[1:-1], alpha=0.5)
    result[:-2].sub_(c[1:-1], alpha=0.5)
    result[1] += c[0]
    result[0] -= c[0]
    result[-1] += c[-1]
    result[-2] -= c[-1]
    return result


def _conjugate_gradients(system: _System, d: Tensor, iterations: int, tolerance: float = 1e-4) -> Tensor:
    """Return d after at most `iterations` steps; stops when the residual norm fell by `tolerance`."""
    r = -system.transposed(*system.residuals(d, 1.0), d.shape)
    p = r.clone()
    rr = torch.dot(r.flatten(), r.flatten())
    goal = rr * tolerance**2
    for step in range(iterations):
        if step % 8 == 0 and rr <= goal:  # a device answers this question slowly, so it is seldom asked
            break
        q = system.apply(p)
        alpha = rr / torch.dot(p.flatten(), q.flatten()).clamp_min(1e-30)
        d = d + alpha * p
        r = r - alpha * q
        rr, old = torch.dot(r.flatten(), r.flatten()), rr
        p = r + (rr / old.clamp_min(1e-30)) * p
    return d


def _refined(values: Tensor, ratio: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Return cell values interpolated linearly to cells `ratio` times smaller, cut to `shape`.

    Cell centres stay where they are; outside the outermost centres the values go on in a straight line.
    """
    for axis, n in enumerate(values.shape):
        first, last = values.narrow(axis, 0, 1), values.narrow(axis, n - 1, 1)
        if n > 1:
            first = 2 * first - values.narrow(axis, 1, 1)
            last = 2 * last - values.narrow(axis, n - 2, 1)
        values = torch.cat((first, values, last), dim=axis)
    scale = tuple(float(r) for r in ratio)
    fine = torch.nn.functional.interpolate(values[None, None], scale_factor=scale, mode="trilinear")[0, 0]
    return fine[tuple(slice(r, r + n) for r, n in zip(ratio, shape, strict=True))]


def _pooled(values: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Return means over blocks of `factors` voxels; incomplete blocks at the far ends use what they have."""
    return torch.nn.functional.avg_pool3d(
        values[None, None], factors, ceil_mode=True, count_include_pad=False
    )[0, 0]


def _levels(shape: tuple[int, ...], decimate: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Return the block sizes of the grids, coarsest first; an axis is halved while it keeps enough cells."""
    levels = [decimate]
    while True:
        z, y, x = (
            2 * f if n // (2 * f) >= _SMALLEST_COARSE_AXIS else f
            for f, n in zip(levels[-1], shape, strict=True)
        )
        if (z, y, x) == levels[-1]:
            return levels[::-1]
        levels.append((z, y, x))


def _steps(num_levels: int, iterations: int) -> list[int]:
    """Return the steps on each grid, coarsest first: the long waves are found where a step is cheap."""
    coarse_to_fine = [iterations] * max(num_levels - 2, 1) + [iterations // 2, iterations // 6]
    return [max(1, steps) for steps in coarse_to_fine[:num_levels]]


def solve_from_slopes(
    P: Tensor, Q: Tensor, weight: Tensor, iterations: int = 120, decimate: int | tuple[int, int, int] = 1
) -> Tensor:
    """Return tau = z + d in voxels [n1, n2, n3] for slopes and weights at the voxels.

    d minimises sum w (d_y + P (1 + d_z))^2 + w (d_x + Q (1 + d_z))^2 + (0.15 w + 0.02) d_z^2 by conjugate
    gradients, first on coarse grids, which carry the long waves, then on the finest. tau has the mean of z.

    Args:
        P: slopes dz/dy.
        Q: slopes dz/dx.
        weight: weight of a voxel's slopes, >= 0; a voxel without data has 0.
        iterations: conjugate-gradient steps on the coarsest grids; the next takes 1/2, the last 1/6.
        decimate: block size of the finest grid solved, one or one an axis; d is interpolated back.
    """
    shape = tuple(P.shape)
    factors = (decimate, decimate, decimate) if isinstance(decimate, int) else decimate
    if len(shape) != 3 or min(factors) < 1:
        raise ValueError(f"slopes {shape} must be 3-D and decimate {decimate} at least 1")
    levels = _levels(shape, factors)
    d, last = None, levels[0]
    for level, steps in zip(levels, _steps(len(levels), iterations), strict=True):
        p, q, w = (_pooled(v, level) if level != (1, 1, 1) else v for v in (P * weight, Q * weight, weight))
        safe = w.clamp_min(1e-6)
        system = _System.build(p / safe, q / safe, w, level)
        if d is None:
            d = torch.zeros_like(w)
        else:  # d counts in cells along z
            d = _refined(d, _ratio(last, level), w.shape) * (last[0] / level[0])
        d = _conjugate_gradients(system, d, steps)
        last = level
    assert d is not None  # there is at least one level
    if last != (1, 1, 1):
        d = _refined(d, last, shape) * last[0]
    d = d - d.mean()
    return d + torch.arange(shape[0], dtype=d.dtype, device=d.device)[:, None, None]


def _ratio(coarse: tuple[int, int, int], fine: tuple[int, int, int]) -> tuple[int, ...]:
    """Return how many fine cells a coarse cell holds along each axis."""
    return tuple(c // f for c, f in zip(coarse, fine, strict=True))


@torch.no_grad()
def solve_geological_time(
    dhr: Tensor,
    fsem: Tensor | None = None,
    iterations: int = 120,
    decimate: int | tuple[int, int, int] = 1,
) -> Tensor:
    """Return the geological time tau = z + d in voxels [n1, n2, n3], float32, growing downwards.

    The weight of a voxel is max(1 - fsem, 0.2) x planarity: slopes across a fault say little, but a floor
    keeps the blocks together. Steps of tau across faults are not found; they are smeared.

    Args:
        dhr: seismic image, any amplitude; zeros (dead traces) have no weight.
        fsem: fault probability 0..1, or None.
        iterations: conjugate-gradient steps on the coarsest grids (see `solve_from_slopes`).
        decimate: solve on blocks of this size (surveys too large for the memory).
    """
    P, Q, weight = reflection_slopes(dhr)
    if fsem is not None:
        weight = weight * (1 - fsem.float()).clamp_min(MIN_FAULT_WEIGHT)
    return solve_from_slopes(P, Q, weight, iterations, decimate)


def normalise_rgt(tau: Tensor, live: Tensor | None = None) -> Tensor:
    """Return tau rescaled to 0..1 over its live voxels, growing downwards; dead voxels are 0.

    Args:
        tau: time in any unit; turned over when it falls with z on the whole.
        live: boolean mask [n1, n2, n3] or [1, n2, n3] of the voxels with data; None means all.
    """
    live = torch.ones_like(tau, dtype=torch.bool) if live is None else live.bool().expand_as(tau)
    if not live.any():
        return torch.zeros_like(tau)
    steps = (tau[1:] - tau[:-1])[live[1:] & live[:-1]]
    if steps.numel() and steps.sum() < 0:
        tau = -tau
    low, high = tau[live].min(), tau[live].max()
    return torch.where(live, (tau - low) / (high - low).clamp_min(1e-12), 0.0)


def monotone(rgt: np.ndarray, fault: np.ndarray | None = None) -> np.ndarray:
    """Return rgt with every trace made non-decreasing downwards: the nearest such trace in least squares.

    Isotonic regression (pool adjacent violators) of the traces that need it. Where `fault` is True the
    trace is cut and the voxel kept: across a reverse fault time truly falls.

    Args:
        rgt: array [n1, n2, n3].
        fault: boolean mask of the same shape, or None.
    """
    result = np.array(rgt, copy=True)
    falls = np.diff(result, axis=0) < 0
    if fault is not None:
        falls &= ~(fault[1:] | fault[:-1])
    n1 = result.shape[0]
    for y, x in np.argwhere(falls.any(axis=0)):
        cuts = np.flatnonzero(fault[:, y, x]) if fault is not None else np.empty(0, dtype=np.int64)
        edges = np.concatenate(([-1], cuts, [n1]))
        for start, stop in zip(edges[:-1] + 1, edges[1:], strict=True):
            if stop - start > 1:
                result[start:stop, y, x] = isotonic_regression(result[start:stop, y, x]).x
    return result
