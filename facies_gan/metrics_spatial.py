"""Spatial statistics of facies grids: proportions, variograms, transitions, connected bodies.

Grids are labels [H, W], row 0 on top. Curves have shape [2, L]: axis 0 down the rows, axis 1 along them, lags
1..L in cells. Several grids are averaged curve by curve; errors are between mean curves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

Grids = Sequence[np.ndarray] | np.ndarray


def as_grids(grids: Grids) -> list[np.ndarray]:
    """Return a list of grids [H, W] of one grid, a stack [N, H, W] or a sequence."""
    if isinstance(grids, np.ndarray):
        return [grids] if grids.ndim == 2 else list(grids)
    return [np.asarray(grid) for grid in grids]


def proportions(grids: Grids, num_classes: int) -> np.ndarray:
    """Return the share of each facies in all cells together, float64 [C]."""
    counts = sum(np.bincount(g.reshape(-1), minlength=num_classes) for g in as_grids(grids))
    return np.asarray(counts, dtype=np.float64) / np.sum(counts)


def vertical_proportions(grids: Grids, num_classes: int) -> np.ndarray:
    """Return the share of each facies in each row, float64 [C, H], over grids of one height.

    Raises:
        ValueError: the heights differ.
    """
    stack = as_grids(grids)
    if len({g.shape[0] for g in stack}) > 1:
        raise ValueError("grids of different heights have no common proportion curve")
    rows = np.concatenate(stack, axis=1)
    return np.stack([(rows == c).mean(axis=1) for c in range(num_classes)])


def longest_lag(grids: Grids, most: int = 60) -> int:
    """Return the longest lag of the curves: `most`, or half the shortest side of the grids."""
    return max(1, min(most, *(min(g.shape) // 2 for g in as_grids(grids))))


def _pairs(grid: np.ndarray, axis: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that have a partner `lag` cells on along `axis`, and their partners."""
    if axis == 0:
        return grid[:-lag], grid[lag:]
    return grid[:, :-lag], grid[:, lag:]


def _curves(grid: np.ndarray, max_lag: int, measure: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """Return `measure` of the pairs at every lag on both axes, [2, max_lag]; NaN beyond the grid."""
    curve = np.full((2, max_lag), np.nan)
    for axis in (0, 1):
        for lag in range(1, min(max_lag, grid.shape[axis] - 1) + 1):
            curve[axis, lag - 1] = measure(*_pairs(grid, axis, lag))
    return curve


def mean_curve(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of curves of one shape; NaN only where all are."""
    stack = np.stack(curves)
    count = np.isfinite(stack).sum(axis=0)
    return np.where(count > 0, np.nansum(stack, axis=0) / np.maximum(count, 1), np.nan)


def indicator_variogram(grids: Grids, facies: int, max_lag: int = 60) -> np.ndarray:
    """Return gamma_c(h) = 1/2 P(I(x) != I(x + h)), I = 1 in facies c, for both axes, [2, max_lag]."""

    def gamma(a: np.ndarray, b: np.ndarray) -> float:
        return 0.5 * float(np.mean(a != b))

    return mean_curve([_curves(g == facies, max_lag, gamma) for g in as_grids(grids)])


def transiogram(grids: Grids, start: int, end: int, max_lag: int = 60) -> np.ndarray:
    """Return t_ij(h) = P(facies j at x + h | facies i at x), downwards and to the right, [2, max_lag]."""

    def share(a: np.ndarray, b: np.ndarray) -> float:
        inside = a == start
        return float(np.mean(b[inside] == end)) if inside.any() else np.nan

    return mean_curve([_curves(g, max_lag, share) for g in as_grids(grids)])


def bodies(grid: np.ndarray, facies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 4-connected bodies of a facies: numbers from 1 [H, W] (0 outside), and sizes [n]."""
    found: Any = ndimage.label(grid == facies)
    numbers = found[0]
    return numbers, np.bincount(numbers.reshape(-1))[1:]


def connectivity(grids: Grids, facies: int, max_lag: int = 60) -> np.ndarray:
    """Return tau_c(h) = P(same 4-connected body | both cells in c), [2, max_lag]; NaN without pairs."""

    def tau(a: np.ndarray, b: np.ndarray) -> float:
        both = (a > 0) & (b > 0)
        count = np.count_nonzero(both)
        return float(np.count_nonzero(both & (a == b)) / count) if count else np.nan

    return mean_curve([_curves(bodies(g, facies)[0], max_lag, tau) for g in as_grids(grids)])


def gamma_connectivity(grid: np.ndarray, facies: int) -> float:
    """Return Gamma = sum n^2 / (sum n)^2 over the bodies' sizes n: chance that two cells of c are connected.

    (Renard and Allard 2013.) 0 when the facies is absent.
    """
    sizes = bodies(grid, facies)[1].astype(np.float64)
    return float((sizes**2).sum() / sizes.sum() ** 2) if sizes.size else 0.0


def number_of_bodies(grid: np.ndarray, facies: int) -> int:
    """Return how many 4-connected bodies a facies has."""
    return len(bodies(grid, facies)[1])


def largest_body(grid: np.ndarray, facies: int) -> int:
    """Return the cells of the largest 4-connected body of a facies; 0 when it is absent."""
    return int(bodies(grid, facies)[1].max(initial=0))


def small_bodies(grid: np.ndarray, num_classes: int, below: int = 8) -> int:
    """Return the number of bodies of any facies with fewer than `below` cells."""
    return sum(int((bodies(grid, c)[1] < below).sum()) for c in range(num_classes))


def euler_number(grid: np.ndarray, facies: int) -> int:
    """Return bodies minus holes, for 4-connected bodies: cells - adjacent pairs + full 2 x 2 blocks."""
    inside = grid == facies
    down, right = inside[:-1] & inside[1:], inside[:, :-1] & inside[:, 1:]
    blocks = down[:, :-1] & down[:, 1:]
    return int(inside.sum()) - int(down.sum()) - int(right.sum()) + int(blocks.sum())


def curve_error(mean: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean absolute difference of two mean curves over lags where both are known; NaN for none."""
    known = np.isfinite(mean) & np.isfinite(reference)
    return float(np.abs(mean - reference)[known].mean()) if known.any() else np.nan


def compared_facies(reference: Grids, num_classes: int) -> list[int]:
    """Return the facies whose curves are compared: of two the rarer one (they are complements), else all."""
    shares = proportions(reference, num_classes)
    if num_classes == 2:
        return [int(shares.argmin())]
    return [c for c in range(num_classes) if 0 < shares[c] < 1]


def proportion_error(grids: Grids, reference: Grids, num_classes: int) -> float:
    """Return mean_c |p_c - p_c of the reference|, p over all grids together."""
    return float(np.abs(proportions(grids, num_classes) - proportions(reference, num_classes)).mean())


def vertical_proportion_error(grids: Grids, reference: Grids, num_classes: int) -> float:
    """Return the mean absolute difference by row of the vertical proportion curves; NaN for other heights."""
    heights = {g.shape[0] for g in [*as_grids(grids), *as_grids(reference)]}
    if len(heights) > 1:
        return np.nan
    found, expected = (vertical_proportions(g, num_classes) for g in (grids, reference))
    return float(np.abs(found - expected).mean())


def variogram_error(
    grids: Grids, reference: Grids, num_classes: int, max_lag: int, shares: np.ndarray | None = None
) -> float:
    """Return mean_c MAE(gamma_c) / (p_c (1 - p_c)), p_c = `shares` or the reference's: over the sill."""
    shares = proportions(reference, num_classes) if shares is None else shares
    errors = [
        curve_error(indicator_variogram(grids, c, max_lag), indicator_variogram(reference, c, max_lag))
        / (shares[c] * (1 - shares[c]))
        for c in compared_facies(reference, num_classes)
    ]
    return float(np.mean(errors)) if errors else np.nan


def connectivity_error(grids: Grids, reference: Grids, num_classes: int, max_lag: int) -> float:
    """Return mean_c MAE(tau_c)."""
    errors = [
        curve_error(connectivity(grids, c, max_lag), connectivity(reference, c, max_lag))
        for c in compared_facies(reference, num_classes)
    ]
    return float(np.nanmean(errors)) if np.isfinite(errors).any() else np.nan


def transiogram_error(grids: Grids, reference: Grids, num_classes: int, max_lag: int) -> float:
    """Return the mean absolute difference of all transiograms t_ij."""
    present = compared_facies(reference, num_classes)
    errors = [
        curve_error(transiogram(grids, i, j, max_lag), transiogram(reference, i, j, max_lag))
        for i in present
        for j in range(num_classes)
    ]
    return float(np.nanmean(errors)) if np.isfinite(errors).any() else np.nan
