"""Statistics of data larger than memory: float64, streaming, mergeable across files and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from common.errors import DataError
from common.noise import numpy_stream

_PIECE = 1 << 22  # values worked on at once in float64


class RunningStats:
    """Count, mean, sum of squared deviations, minimum and maximum of each channel, in float64.

    Two sets of values A and B merge as
        n = n_A + n_B,  d = mean_B - mean_A,  mean = mean_A + d n_B / n,  M2 = M2_A + M2_B + d^2 n_A n_B / n
    (Chan, Golub and LeVeque 1979), so the result does not depend on how the data was cut.
    """

    def __init__(self, num_channels: int) -> None:
        self.count = np.zeros(num_channels, dtype=np.int64)
        self.mean = np.zeros(num_channels)
        self.m2 = np.zeros(num_channels)
        self.min = np.full(num_channels, np.inf)
        self.max = np.full(num_channels, -np.inf)

    def update(
        self,
        array: np.ndarray | torch.Tensor,
        mask: np.ndarray | torch.Tensor | None = None,
        *,
        channel_axis: int = 1,
    ) -> None:
        """Take in `array`, by default [N, C, ...]; only where `mask` is true when that is given.

        `mask` has the array's shape, or that shape without the channel axis.

        Raises:
            DataError: a counted value is not finite.
            ValueError: the channels or the mask do not fit.
        """
        values = np.moveaxis(np.asarray(array), channel_axis, 0)
        if len(values) != len(self.mean):
            raise ValueError(f"array has {len(values)} channels, expected {len(self.mean)}")
        if mask is not None:
            mask = np.asarray(mask, dtype=bool)
            if mask.ndim == values.ndim:
                mask = np.moveaxis(mask, channel_axis, 0)
            if mask.shape not in (values.shape, values.shape[1:]):
                raise ValueError(f"mask {mask.shape} does not fit the values {values.shape}")
        for c, channel in enumerate(values):
            inside = mask if mask is None or mask.ndim < values.ndim else mask[c]
            for piece in _pieces(channel):
                part = channel[piece] if inside is None else channel[piece][inside[piece]]
                self._add(c, part)

    def _add(self, c: int, part: np.ndarray) -> None:
        if part.size == 0:
            return
        mean = float(part.mean(dtype=np.float64))
        if not np.isfinite(mean):
            bad = int(part.size - np.isfinite(part).sum())
            raise DataError(
                f"channel {c}: {bad} of {part.size} values are NaN or infinite; mask or repair them"
            )
        deviation = part.astype(np.float64) - mean
        count, m2 = np.array([part.size]), np.array([float(np.sum(deviation**2))])
        self._merge(slice(c, c + 1), count, np.array([mean]), m2, part.min(), part.max())

    def _merge(
        self,
        c: slice,
        count: np.ndarray,
        mean: np.ndarray,
        m2: np.ndarray,
        low: np.ndarray | float,
        high: np.ndarray | float,
    ) -> None:
        total = self.count[c] + count
        share = count / np.maximum(total, 1)
        delta = np.where(count > 0, mean - self.mean[c], 0.0)
        self.m2[c] += m2 + delta**2 * self.count[c] * share
        self.mean[c] += delta * share
        self.count[c] = total
        self.min[c] = np.minimum(self.min[c], low)
        self.max[c] = np.maximum(self.max[c], high)

    def merge(self, other: RunningStats) -> None:
        """Take in everything that `other` has seen."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"cannot merge {len(other.mean)} channels into {len(self.mean)}")
        self._merge(slice(None), other.count, other.mean, other.m2, other.min, other.max)

    @property
    def variance(self) -> np.ndarray:
        """Population variance of each channel; 0 where nothing was seen."""
        return self.m2 / np.maximum(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation of each channel."""
        return np.sqrt(self.variance)

    @property
    def rms(self) -> np.ndarray:
        """Root mean square of each channel."""
        return np.sqrt(self.variance + self.mean**2)

    @property
    def constant(self) -> np.ndarray:
        """True for channels whose values are all equal, or that were never seen."""
        return self.max <= self.min

    def state_dict(self) -> dict[str, Any]:
        """Return the state as lists of finite numbers."""
        seen = self.count > 0
        return {
            "count": self.count.tolist(),
            "mean": self.mean.tolist(),
            "m2": self.m2.tolist(),
            "min": np.where(seen, self.min, 0.0).tolist(),
            "max": np.where(seen, self.max, 0.0).tolist(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Sequence[float]]) -> RunningStats:
        """Return the statistics that `state_dict` described.

        Raises:
            DataError: a key is missing or lists differ in length.
        """
        keys = ("count", "mean", "m2", "min", "max")
        if any(key not in state for key in keys) or len({len(state[key]) for key in keys}) != 1:
            raise DataError(
                f"statistics: found the keys {sorted(state)}, expected {sorted(keys)} of equal length"
            )
        stats = cls(len(state["mean"]))
        stats._merge(
            slice(None), np.array(state["count"], dtype=np.int64), *(np.array(state[k]) for k in keys[1:])
        )
        stats.min[stats.count == 0], stats.max[stats.count == 0] = np.inf, -np.inf
        return stats


def merged(parts: Iterable[RunningStats]) -> RunningStats:
    """Return the statistics of everything that the `parts` have seen, in their order (ranks, files)."""
    parts = list(parts)
    total = RunningStats(len(parts[0].mean))
    for part in parts:
        total.merge(part)
    return total


def _pieces(channel: np.ndarray) -> list[Any]:
    """Cut the first axis so that a piece holds about `_PIECE` values."""
    if channel.ndim == 0 or channel.size <= _PIECE:
        return [...]
    rows = max(1, _PIECE * len(channel) // channel.size)
    return [slice(i, i + rows) for i in range(0, len(channel), rows)]


class Reservoir:
    """A uniform sample of at most `capacity` values from a stream of any length, for percentiles.

    The i-th value of the stream gets the i-th random number of the stream (seed, purpose, index), and the
    values with the smallest numbers stay. So the sample depends on the order of the values, not on how
    they arrive in chunks, and samples of different ranks (different `index`) merge.
    """

    def __init__(self, capacity: int, seed: int, purpose: str = "reservoir", index: int = 0) -> None:
        self.capacity = capacity
        self.count = 0
        self._rng = numpy_stream(seed, purpose, index)
        self._keys = np.empty(0)
        self._values = np.empty(0)

    def update(self, values: np.ndarray) -> None:
        """Take in all of `values`, any shape."""
        flat = np.asarray(values).reshape(-1)
        for start in range(0, len(flat), _PIECE):
            part = flat[start : start + _PIECE]
            keys = self._rng.random(len(part))
            if len(self._keys) == self.capacity:
                keep = keys < self._keys.max()
                keys, part = keys[keep], part[keep]
            self._take(keys, part.astype(np.float64))
        self.count += len(flat)

    def merge(self, other: Reservoir) -> None:
        """Take in another rank's sample."""
        self._take(other._keys, other._values)
        self.count += other.count

    def _take(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._keys = np.concatenate([self._keys, keys])
        self._values = np.concatenate([self._values, values])
        if len(self._keys) > self.capacity:
            keep = np.argpartition(self._keys, self.capacity)[: self.capacity]
            self._keys, self._values = self._keys[keep], self._values[keep]

    @property
    def values(self) -> np.ndarray:
        """The sample, float64, sorted."""
        return np.sort(self._values)
