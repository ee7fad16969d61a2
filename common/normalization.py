"""Maps that bring data to a network's range and back, and the statistics they are made from.

Normalisers are small frozen records of plain floats and lists that travel inside a checkpoint; they take
NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from common.errors import DataError
from common.running_stats import Reservoir, RunningStats, merged

__all__ = [
    "Chain",
    "ClippedZScore",
    "Log1p",
    "MinMax",
    "Normalizer",
    "Reservoir",
    "RunningStats",
    "ZScore",
    "merged",
]

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Base: `apply` maps physical values to the network's range, `invert` maps back.

    Fields hold one value a channel, or one for all. `channel_axis` is 1 for [B, C, ...]; it is not looked
    at when there is one value. Floating arrays keep their type; other types become float32.
    """

    kind: ClassVar[str] = ""

    def apply(self, x: Array, channel_axis: int = 1) -> Array:
        """Return the normalised values of `x`, same shape."""
        raise NotImplementedError

    def invert(self, x: Array, channel_axis: int = 1) -> Array:
        """Return the physical values of a normalised `x`, same shape."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return a plain dict: `kind` and the fields."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"kind": self.kind, **fields}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Normalizer:
        """Return the normaliser that `state` describes; on a subclass, only that kind is accepted.

        Raises:
            DataError: the kind is another, or the fields are not those of the kind.
        """
        kinds = {k.kind: k for k in _all_kinds(cls)}
        found = state.get("kind") if isinstance(state, dict) else None
        if found not in kinds:
            raise DataError(f"normalisation: found kind {found!r}, expected one of {sorted(kinds)}")
        try:
            return kinds[found]._from_fields({k: v for k, v in state.items() if k != "kind"})
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"normalisation of kind {found}: {error}; the file is damaged or newer"
            ) from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Normalizer:
        return cls(**fields)

    def _set(self, name: str, values: Sequence[float] | np.ndarray | float) -> np.ndarray:
        """Store a field as a tuple of finite floats."""
        array = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite numbers, one a channel; found {values}")
        object.__setattr__(self, name, tuple(array.tolist()))
        return array


@dataclasses.dataclass(frozen=True)
class ZScore(Normalizer):
    """(x - mean) / std for each channel."""

    kind: ClassVar[str] = "zscore"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        mean, std = self._set("mean", self.mean), self._set("std", self.std)
        if mean.shape != std.shape or (std <= 0).any():
            raise ValueError(f"mean {self.mean} and std {self.std} must match, std above 0")

    @classmethod
    def from_stats(cls, stats: RunningStats, *, floor: float = 0.0, relative_floor: float = 0.0) -> ZScore:
        """Return the z-score of `stats`: std = max(std, floor, relative_floor |mean|).

        A channel whose values are all equal gets std 1, so it becomes 0 and comes back unchanged.
        """
        std = np.maximum(np.maximum(stats.std, floor), relative_floor * np.abs(stats.mean))
        return cls(tuple(stats.mean), tuple(np.where(stats.constant | (stats.std == 0), 1.0, std)))

    def apply(self, x: Array, channel_axis: int = 1) -> Array:
        """Return (x - mean) / std."""
        x, (mean, std) = _prepare(x, channel_axis, self.mean, self.std)
        return (x - mean) / std

    def invert(self, x: Array, channel_axis: int = 1) -> Array:
        """Return x std + mean."""
        x, (mean, std) = _prepare(x, channel_axis, self.mean, self.std)
        return x * std + mean


@dataclasses.dataclass(frozen=True)
class MinMax(Normalizer):
    """(x - minimum) / (maximum - minimum) for each channel: 0..1. A constant channel becomes 0."""

    kind: ClassVar[str] = "minmax"
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def __post_init__(self) -> None:
        low, high = self._set("minimum", self.minimum), self._set("maximum", self.maximum)
        if low.shape != high.shape or (high < low).any():
            raise ValueError(f"minimum {self.minimum} and maximum {self.maximum} must match and be in order")

    @classmethod
    def from_stats(cls, stats: RunningStats) -> MinMax:
        """Return the map from the range that `stats` has seen to 0..1."""
        seen = stats.count > 0
        return cls(tuple(np.where(seen, stats.min, 0.0)), tuple(np.where(seen, stats.max, 0.0)))

    @property
    def _range(self) -> tuple[float, ...]:
        return tuple(
            high - low if high > low else 1.0 for low, high in zip(self.minimum, self.maximum, strict=True)
        )

    def apply(self, x: Array, channel_axis: int = 1) -> Array:
        """Return (x - minimum) / (maximum - minimum)."""
        x, (low, extent) = _prepare(x, channel_axis, self.minimum, self._range)
        return (x - low) / extent

    def invert(self, x: Array, channel_axis: int = 1) -> Array:
        """Return x (maximum - minimum) + minimum."""
        x, (low, extent) = _prepare(x, channel_axis, self.minimum, self._range)
        return x * extent + low


@dataclasses.dataclass(frozen=True)
class Log1p(Normalizer):
    """log(1 + max(x, 0)) for the channels whose flag is set; the others stay as they are."""

    kind: ClassVar[str] = "log1p"
    flags: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not np.isin(self._set("flags", self.flags), (0.0, 1.0)).all():
            raise ValueError(f"flags {self.flags} must be 0 or 1")

    def apply(self, x: Array, channel_axis: int = 1) -> Array:
        """Return log(1 + max(x, 0))."""
        x, (flags,) = _prepare(x, channel_axis, self.flags)
        if isinstance(x, torch.Tensor):
            return torch.where(flags > 0, torch.log1p(x.clamp_min(0)), x)
        return np.where(flags > 0, np.log1p(np.maximum(x, 0)), x)

    def invert(self, x: Array, channel_axis: int = 1) -> Array:
        """Return exp(x) - 1."""
        x, (flags,) = _prepare(x, channel_axis, self.flags)
        if isinstance(x, torch.Tensor):
            return torch.where(flags > 0, torch.expm1(x), x)
        return np.where(flags > 0, np.expm1(np.where(flags > 0, x, 0)), x)


@dataclasses.dataclass(frozen=True)
class ClippedZScore(Normalizer):
    """clip((x - mean) / std, -limit, limit), one mean and std for a whole survey.

    Mean and std are those of the values clipped to two percentiles, so that a few spikes do not set the
    scale. `low` and `high` keep the percentiles' values for the record.
    """

    kind: ClassVar[str] = "clipped_zscore"
    mean: float
    std: float
    low: float
    high: float
    limit: float = 5.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = float(getattr(self, field.name))
            if not np.isfinite(value):
                raise ValueError(f"{field.name} must be finite, found {value}")
            object.__setattr__(self, field.name, value)
        if self.std <= 0 or self.limit <= 0:
            raise ValueError(f"std {self.std} and limit {self.limit} must be above 0")

    @classmethod
    def from_sample(
        cls,
        values: np.ndarray,
        *,
        low_percentile: float = 0.1,
        high_percentile: float = 99.9,
        limit: float = 5.0,
    ) -> ClippedZScore:
        """Return the rule for a sample, e.g. `Reservoir.values` of the live, non-zero samples.

        A constant sample gets std 1.

        Raises:
            DataError: the sample is empty or holds NaN or infinity.
        """
        values = np.asarray(values, dtype=np.float64).reshape(-1)
        if values.size == 0 or not np.isfinite(values).all():
            raise DataError(
                f"normalisation: {values.size} samples, all must be finite and at least one is needed"
            )
        low, high = np.percentile(values, [low_percentile, high_percentile])
        clipped = np.clip(values, low, high)
        std = clipped.std() if high > low else 1.0
        return cls(clipped.mean(), std, low, high, limit)

    def apply(self, x: Array, channel_axis: int = 1) -> Array:
        """Return (x - mean) / std, clipped to +-limit."""
        x, _ = _prepare(x, channel_axis)
        return ((x - self.mean) / self.std).clip(-self.limit, self.limit)

    def invert(self, x: Array, channel_axis: int = 1) -> Array:
        """Return x std + mean; what was clipped stays at the limit."""
        x, _ = _prepare(x, channel_axis)
        return x * self.std + self.mean


@dataclasses.dataclass(frozen=True)
class Chain(Normalizer):
    """Several normalisers, one after the other, e.g. log1p and then z-score."""

    kind: ClassVar[str] = "chain"
    steps: tuple[Normalizer, ...]

    def apply(self, x: Array, channel_axis: int = 1) -> Array:
        """Apply the steps in order."""
        for step in self.steps:
            x = step.apply(x, channel_axis)
        return x

    def invert(self, x: Array, channel_axis: int = 1) -> Array:
        """Invert the steps, last first."""
        for step in reversed(self.steps):
            x = step.invert(x, channel_axis)
        return x

    def state_dict(self) -> dict[str, Any]:
        """Return a plain dict with those of the steps."""
        return {"kind": self.kind, "steps": [step.state_dict() for step in self.steps]}

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Chain:
        return cls(tuple(Normalizer.from_state_dict(step) for step in fields["steps"]))


def _all_kinds(cls: type[Normalizer]) -> list[type[Normalizer]]:
    return ([cls] if cls.kind else []) + [k for sub in cls.__subclasses__() for k in _all_kinds(sub)]


def _prepare(x: Array, channel_axis: int, *fields: tuple[float, ...]) -> tuple[Array, list[Any]]:
    """Return `x` as a floating array and the fields shaped to broadcast along its channel axis."""
    shape = [1] * x.ndim
    if fields and len(fields[0]) > 1:
        if x.ndim <= channel_axis or x.shape[channel_axis] != len(fields[0]):
            raise ValueError(
                f"shape {tuple(x.shape)}: expected {len(fields[0])} channels on axis {channel_axis}"
            )
        shape[channel_axis] = len(fields[0])
    if isinstance(x, torch.Tensor):
        x = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
        return x, [torch.tensor(f, dtype=x.dtype, device=x.device).reshape(shape) for f in fields]
    x = np.asarray(x)
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    return x, [np.array(f, dtype=x.dtype).reshape(shape) for f in fields]
