"""Statistics of fields, of the rows that are given and no others, streaming, in float64.

T frames, M nodes, V fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from common.errors import DataError

_NODES_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Mean and standard deviation of each field over nodes, frames and samples.

    Attributes:
        mean: float64 [V].
        std: float64 [V].
    """

    mean: np.ndarray
    std: np.ndarray


@dataclass(eq=False)
class FieldStatistics:
    """Node-wise mean and total squared deviation of trajectories, merged one by one.

    d = mean_i - mean,  mean += d n_i / n,  M2 += M2_i + d^2 n n_i / (n + n_i)  (Chan, Golub, LeVeque 1979)

    Attributes:
        count: frames seen.
        node_mean: float64 [M, V].
        deviation: float64 [M, V], the sum over frames of (u - node_mean)^2.
        low: [V], the smallest value.
        high: [V], the largest value.
    """

    count: int = 0
    node_mean: np.ndarray = field(default_factory=lambda: np.zeros((1, 1)))
    deviation: np.ndarray = field(default_factory=lambda: np.zeros((1, 1)))
    low: np.ndarray = field(default_factory=lambda: np.array([np.inf]))
    high: np.ndarray = field(default_factory=lambda: np.array([-np.inf]))

    def update(self, u: np.ndarray) -> None:
        """Take in one trajectory [T, M, V]."""
        frames, num_nodes, num_fields = u.shape
        if not self.count:
            self.node_mean, self.deviation = (np.zeros((num_nodes, num_fields)) for _ in range(2))
        total = self.count + frames
        for start in range(0, num_nodes, _NODES_AT_ONCE):
            nodes = slice(start, start + _NODES_AT_ONCE)
            part = u[:, nodes].astype(np.float64)
            mean = part.mean(axis=0)
            part -= mean
            delta = mean - self.node_mean[nodes]
            self.deviation[nodes] += np.einsum("tmv,tmv->mv", part, part)
            self.deviation[nodes] += delta**2 * self.count * frames / total
            self.node_mean[nodes] += delta * frames / total
        self.low, self.high = np.minimum(self.low, u.min((0, 1))), np.maximum(self.high, u.max((0, 1)))
        self.count = total

    def normalizer(self) -> Normalizer:
        """Return mean and std of each field."""
        mean = self.node_mean.mean(axis=0)
        between = ((self.node_mean - mean) ** 2).mean(axis=0)
        within = self.deviation.mean(axis=0) / max(1, self.count)
        return Normalizer(mean, np.sqrt(within + between))

    def require_varying(self, names: tuple[str, ...], where: str) -> None:
        """Raise DataError when a field has one value everywhere."""
        for name, low, high in zip(names, self.low, self.high, strict=True):
            if low == high:
                raise DataError(
                    f"{where}: the field {name} is {low:g} everywhere, expected values that vary; drop it"
                )
