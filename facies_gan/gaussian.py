"""Truncated Gaussian simulation: the baseline that knows proportions and variograms, and no shapes.

A Gaussian field with a fitted covariance is cut at thresholds so that each facies has its share
(Matheron et al. 1987). H W grid, C facies, h lag in cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from common.noise import numpy_stream
from facies_gan.metrics_spatial import Grids, as_grids, indicator_variogram, longest_lag, proportions
from facies_gan.wells import WellSet


@dataclass(frozen=True)
class Covariance:
    """rho(h) = exp(-(|h_y / a_y|^2 + |h_x / a_x|^2)^(power / 2)), with h in cells.

    Attributes:
        ranges: (a_y, a_x) in cells.
        power: from 0.5 (rough) to 2 (smooth).
    """

    ranges: tuple[float, float]
    power: float

    def __call__(self, lag_y: np.ndarray, lag_x: np.ndarray) -> np.ndarray:
        """Return the correlation at lags in cells."""
        squared = (lag_y / self.ranges[0]) ** 2 + (lag_x / self.ranges[1]) ** 2
        return np.exp(-(squared ** (self.power / 2)))


def truncated_variogram(rho: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return sum_c gamma_c of the facies cut from a Gaussian field with correlation rho.

    sum_c gamma_c = P(facies differ) = 1 - sum_c P(both in c), from the bivariate normal distribution:
    with rho = sin(theta), d/d rho P(X < s, Y < t) is the bivariate density at (s, t) (Plackett 1954), summed
    over
    the edges of each facies and integrated from 0.
    """
    nodes, weights = np.polynomial.legendre.leggauss(48)
    angles = np.arcsin(np.clip(rho, 0, 0.99999))[..., None] * (nodes + 1) / 2
    scale = np.arcsin(np.clip(rho, 0, 0.99999)) / 2
    edges = np.concatenate([[-np.inf], thresholds, [np.inf]])
    shares = np.diff(special.ndtr(edges))
    same = np.full(np.shape(rho), float((shares**2).sum()))
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        for s, t, sign in ((low, low, 1), (high, high, 1), (low, high, -2)):
            if np.isfinite(s) and np.isfinite(t):
                density = np.exp(-(s * s + t * t - 2 * s * t * np.sin(angles)) / (2 * np.cos(angles) ** 2))
                same = same + sign * (density * weights).sum(axis=-1) * scale / (2 * np.pi)
    return 1 - same


def thresholds_of(shares: np.ndarray) -> np.ndarray:
    """Return the C - 1 cuts of a standard normal that give facies their shares, in order of label."""
    inner = np.cumsum(shares)[:-1]
    return stats.norm.ppf(np.clip(inner, 1e-9, 1 - 1e-9))


def fit_covariance(reference: Grids, num_classes: int, max_lag: int = 60) -> Covariance:
    """Return the covariance whose truncated field has the reference's variograms, by least squares."""
    lag = longest_lag(reference, max_lag)
    measured = np.nansum([indicator_variogram(reference, c, lag) for c in range(num_classes)], axis=0)
    cuts = thresholds_of(proportions(reference, num_classes))
    lags, zero = np.arange(1, lag + 1.0), np.zeros(lag)

    def misfit(logs: np.ndarray) -> np.ndarray:
        model = Covariance((float(np.exp(logs[0])), float(np.exp(logs[1]))), float(logs[2]))
        down = truncated_variogram(model(lags, zero), cuts) - measured[0]
        along = truncated_variogram(model(zero, lags), cuts) - measured[1]
        return np.concatenate([down, along])

    start = np.array([np.log(max(1.0, lag / 6)), np.log(max(1.0, lag / 6)), 1.5])
    bounds = ([np.log(0.3), np.log(0.3), 0.5], [np.log(20.0 * lag), np.log(20.0 * lag), 2.0])
    found = optimize.least_squares(misfit, start, bounds=bounds).x
    return Covariance((float(np.exp(found[0])), float(np.exp(found[1]))), float(found[2]))


def gaussian_field(shape: tuple[int, int], covariance: Covariance, rng: np.random.Generator) -> np.ndarray:
    """Return a standard Gaussian field [H, W] with the covariance, by circulant embedding on a doubled grid.

    White noise is filtered in the Fourier domain with the root of the spectrum (Dietrich and Newsam 1997);
    negative parts of the spectrum, from ranges near the grid's size, are cut off.
    """
    box = tuple(2 * n for n in shape)
    lag_y, lag_x = (np.minimum(np.arange(n), n - np.arange(n)).astype(float) for n in box)
    spectrum = np.fft.rfft2(covariance(lag_y[:, None], lag_x[None])).real.clip(min=0)
    white = np.fft.rfft2(rng.standard_normal(box))
    field = np.fft.irfft2(white * np.sqrt(spectrum), s=box)[: shape[0], : shape[1]]
    weight = np.full(spectrum.shape[1], 2.0)  # the modes that rfft2 leaves out
    weight[[0, -1]] = 1.0
    return field / np.sqrt((spectrum * weight).sum() / (box[0] * box[1]))


def truncate(field: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return labels uint8 of a standard Gaussian field cut so that facies have `shares` on average."""
    return np.searchsorted(thresholds_of(shares), field).astype(np.uint8)


def simulate(
    reference: Grids,
    num_classes: int,
    shape: tuple[int, int],
    count: int,
    *,
    seed: int = 0,
    wells: WellSet | None = None,
    covariance: Covariance | None = None,
) -> np.ndarray:
    """Return truncated Gaussian realisations uint8 [N, H, W]; hard data are pasted in afterwards.

    Realisation i depends on (seed, i) alone.
    """
    grids = as_grids(reference)
    covariance = covariance or fit_covariance(grids, num_classes)
    shares = proportions(grids, num_classes)
    out = np.empty((count, *shape), dtype=np.uint8)
    for i in range(count):
        field = gaussian_field(shape, covariance, numpy_stream(seed, "truncated Gaussian", i))
        out[i] = truncate(field, shares)
    return out if wells is None else paste(out, wells)


def paste(realisations: np.ndarray, wells: WellSet) -> np.ndarray:
    """Return a copy of realisations [N, H, W] with the data written into their cells alone."""
    out = np.array(realisations)
    out[:, wells.rows, wells.cols] = wells.facies
    return out
