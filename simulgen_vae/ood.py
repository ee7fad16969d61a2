"""Which inputs are unlike those of the training: Mahalanobis distances in parameters and in latents.

n training rows, d numbers a row, B new rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.arrays import open_npy
from common.errors import DataError
from common.log import get_logger
from simulgen_vae.model_files import Surrogate

QUANTILE = 0.99
LATENT_FILES = ("latent_vectors.npy", "xs.npy")


@dataclass(frozen=True, eq=False)
class Cloud:
    """Training rows as a cloud with a centre and a shape.

    Attributes:
        mean: [d].
        scale: standard deviation of each number, 0 for constant ones, [d].
        inverse: inverse covariance of the standardised numbers, [d, d].
        limit: distance that 99 % of training rows keep, each measured without itself.
        low, high: range of each number, [d], wider by twice the mean gap between n numbers spread over it.
    """

    mean: np.ndarray
    scale: np.ndarray
    inverse: np.ndarray
    limit: float
    low: np.ndarray
    high: np.ndarray

    def distance(self, x: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance of rows [B, d], [B]."""
        z = self._standardised(x)
        return np.sqrt(np.maximum(((z @ self.inverse) * z).sum(1), 0.0))

    def outside(self, x: np.ndarray) -> np.ndarray:
        """Return which numbers of rows [B, d] lie beyond the training range, bool [B, d]."""
        slack = 1e-6 * (self.high - self.low) + 1e-9 * np.abs(self.high)
        return (x < self.low - slack) | (x > self.high + slack)

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x, dtype=np.float64) - self.mean) * np.where(
            self.scale > 0, 1 / np.where(self.scale > 0, self.scale, 1), 0.0
        )


def fit_cloud(x: np.ndarray, quantile: float = QUANTILE) -> Cloud:
    """Return the cloud of training rows [n, d].

    The covariance is shrunk towards a sphere (Ledoit and Wolf 2004), for rows may be fewer than numbers.
    The limit comes from leaving each row out, in closed form for a fixed shrinkage: with the shrunk
    covariance A of the others, d^2 = (n/(n-1))^2 q/(1 - c q), q = x^T A^-1 x (Sherman and Morrison 1950).
    """
    from sklearn.covariance import ledoit_wolf

    x = np.asarray(x, dtype=np.float64)
    n, d = x.shape
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9 * np.maximum(np.abs(x).max(0), 1e-30), scale, 0.0)
    z = (x - mean) * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0.0)
    varying = max(1, int((scale > 0).sum()))
    _, shrinkage = ledoit_wolf(z, assume_centered=True) if n > 1 else (None, 1.0)
    keep = 1.0 - float(shrinkage)
    covariance = z.T @ z / n
    sphere = np.trace(covariance) / varying
    floor = max(float(shrinkage) * sphere, 1e-6) * np.eye(d)
    share = n / max(n - 1, 1)
    others = keep * share * covariance + floor
    q = np.einsum("ij,ij->i", z @ np.linalg.inv(others), z)
    c = keep * share / max(n - 1, 1)
    left_out = share * np.sqrt(q / np.maximum(1.0 - c * q, 1e-9))
    limit = float(np.quantile(left_out, quantile, method="higher"))
    low, high = x.min(0), x.max(0)
    gap = 2 * (high - low) / max(n - 1, 1)
    return Cloud(mean, scale, np.linalg.inv(keep * covariance + floor), limit, low - gap, high + gap)


def parameter_cloud(surrogate: Surrogate) -> Cloud | None:
    """Return the cloud of the training's parameters, None for a model of pictures alone."""
    stored = surrogate.arrays.get("train_params")
    if not surrogate.uses_params or stored is None:
        return None
    return fit_cloud(stored.numpy())


def stored_latents(surrogate: Surrogate, model_path: Path) -> np.ndarray | None:
    """Return the latents [N, n] that the training left beside its model, rows in data order, or None.

    Raises:
        DataError: the files are not of this model.
    """
    paths = [model_path.parent / name for name in LATENT_FILES]
    if not all(path.is_file() for path in paths):
        return None
    z, h = (open_npy(path) for path in paths)
    shape, num = surrogate.vae.shape, int(surrogate.config["num_samples"])
    expected = [(num, shape.latent_dim_end), (num, shape.num_levels, shape.latent_dim)]
    if [z.shape, h.shape] != expected:
        raise DataError(
            f"{paths[0]}, {paths[1].name}: shapes {z.shape} {h.shape}, expected {expected[0]} {expected[1]} "
            "of the model beside them; restore its folder"
        )
    return np.concatenate([z, h.reshape(num, -1)], 1).astype(np.float64)


def latent_cloud(surrogate: Surrogate, model_path: Path) -> Cloud | None:
    """Return the cloud of the training rows' latents; None, with a warning, when their files are gone."""
    latents = stored_latents(surrogate, model_path)
    if latents is None:
        get_logger().warning(
            "warning: no %s beside %s; distances in latents are left out", LATENT_FILES[0], model_path
        )
        return None
    return fit_cloud(latents[surrogate.split.train])
