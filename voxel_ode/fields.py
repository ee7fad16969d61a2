"""What the network reads for one step, and the alignment of patches to the coarse cells of the full grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Fields:
    """A batch of states with all that the network and the flow need; grids are [B, ., D, H, W].

    Attributes:
        state: normalised pressure and temperature at t, [B, 2, ...], 0 off their domains.
        static: normalised static channels, [B, S, ...].
        masks: active, flow and thermal cells, 0 or 1, [B, 3, ...].
        params: [B, P].
        initial: normalised pressure and temperature before the first year, [B, 2, ...].
        rock: PermX, PermY, PermZ in mD, [B, 3, ...].
        porosity: [B, 1, ...].
        well_source: kg/s that each cell receives, [B, 1, ...].
        cell_size: (dz, dy, dx) in m, [B, 3].
        dt_s: length of a step, [B].
        injection_c: temperature of what injectors bring, deg C, [B]; NaN when unknown.
        origin: first cell (z, y, x) in the full grid, int64 [B, 3].
        well_rates: total injection and production, kg/s, [B, 2].
        well_now: well features at t, deg C and bar, [B, 6].
        well_next: well features at t+1, [B, 6].
        previous_total: energy produced until t, J, [B].
    """

    state: torch.Tensor
    static: torch.Tensor
    masks: torch.Tensor
    params: torch.Tensor
    initial: torch.Tensor
    rock: torch.Tensor
    porosity: torch.Tensor
    well_source: torch.Tensor
    cell_size: torch.Tensor
    dt_s: torch.Tensor
    injection_c: torch.Tensor
    origin: torch.Tensor
    well_rates: torch.Tensor
    well_now: torch.Tensor
    well_next: torch.Tensor
    previous_total: torch.Tensor

    @classmethod
    def from_batch(cls, batch: Mapping[str, torch.Tensor], k: int = 0) -> Fields:
        """Return the fields of step t+k -> t+k+1 from a collated batch of the data set.

        The wells' features of t+k+1 are those of the file, which a patch could not give.
        """
        return cls(
            state=batch["states"][:, k],
            static=batch["static"],
            masks=batch["masks"],
            params=batch["params"],
            initial=batch["initial"],
            rock=batch["rock"],
            porosity=batch["porosity"],
            well_source=batch["well_source"],
            cell_size=batch["cell_size"],
            dt_s=batch["dt_s"],
            injection_c=batch["injection_c"],
            origin=batch["origin"],
            well_rates=batch["well_rates"],
            well_now=batch["well_features"][:, k],
            well_next=batch["well_features"][:, k + 1],
            previous_total=batch["scalars_raw"][:, k, 2],
        )

    @classmethod
    def first_of(cls, batch: Mapping[str, torch.Tensor]) -> Fields:
        """Return the fields of a rollout's first step from a batch that may hold one state only.

        The wells' features of t+1 are not known then; those of t stand in their place.
        """
        features = batch["well_features"][:, :1]
        return cls.from_batch({**batch, "well_features": torch.cat([features, features], dim=1)})


@dataclass(frozen=True)
class Frame:
    """A box for each sample whose first cell stands at a multiple of `multiple` in the full grid.

    Attributes:
        offsets: cells before the sample's first one, for each sample and axis.
        inner: (D, H, W) of the samples.
        outer: (D, H, W) of the boxes, multiples of `multiple`.
    """

    offsets: tuple[tuple[int, ...], ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]

    @classmethod
    def of(cls, origin: torch.Tensor, inner: torch.Size, multiple: int) -> Frame:
        """Return the frame of samples [D, H, W] that begin at `origin` [B, 3] of the full grid."""
        if multiple == 1:
            offsets: tuple[tuple[int, ...], ...] = ((0, 0, 0),) * len(origin)
        else:
            offsets = tuple(tuple(int(i) % multiple for i in row) for row in origin.tolist())
        furthest = [max(row[axis] for row in offsets) for axis in range(3)]
        outer = tuple(-(-(n + o) // multiple) * multiple for n, o in zip(inner, furthest, strict=True))
        return cls(offsets, tuple(inner), outer)

    @property
    def is_trivial(self) -> bool:
        """Whether nothing has to be added."""
        return self.outer == self.inner

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` [B, C, D, H, W] in its boxes, zero outside."""
        if self.is_trivial:
            return x
        if len(set(self.offsets)) == 1:
            return F.pad(x, self._pads(self.offsets[0]))
        return torch.stack([F.pad(s, self._pads(o)) for s, o in zip(x, self.offsets, strict=True)])

    def extract(self, x: torch.Tensor) -> torch.Tensor:
        """Return the samples' own cells of `x` [B, C, D', H', W']."""
        if self.is_trivial:
            return x
        if len(set(self.offsets)) == 1:
            return x[(slice(None), slice(None), *self._inside(self.offsets[0]))]
        return torch.stack([s[(slice(None), *self._inside(o))] for s, o in zip(x, self.offsets, strict=True)])

    def _pads(self, offsets: tuple[int, ...]) -> list[int]:
        sizes = zip(offsets, self.inner, self.outer, strict=True)
        pairs = [(low, outer - inner - low) for low, inner, outer in sizes]
        return [n for pair in reversed(pairs) for n in pair]

    def _inside(self, offsets: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(o, o + n) for o, n in zip(offsets, self.inner, strict=True))
