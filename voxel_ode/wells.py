"""Wells as connected cells: who they are, what they inject or produce, what the reservoir is like at them.

Letters: W wells, n perforated cells of all wells, [Z, Y, X] a grid with Z depth downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

Box = tuple[slice, slice, slice]
_SAME_RATE = 1e-6  # relative: rates are repeated on each cell of a well, up to the rounding of a file


@dataclass(frozen=True)
class Wells:
    """The wells of one simulation.

    Attributes:
        sign: int8 [W], +1 injector, -1 producer, 0 shut in.
        rate_kg_s: float64 [W], magnitude of the whole well's rate.
        cells: int32 [n, 3], (z, y, x) of the perforated cells.
        weight: float64 [n], share of a cell in its well; the shares of a well sum to 1.
        cell_well: int32 [n], the well that a cell belongs to.
    """

    sign: np.ndarray
    rate_kg_s: np.ndarray
    cells: np.ndarray
    weight: np.ndarray
    cell_well: np.ndarray

    def __post_init__(self) -> None:
        n, num_wells = len(self.cells), len(self.sign)
        if self.cells.shape != (n, 3) or self.weight.shape != (n,) or self.cell_well.shape != (n,):
            raise ValueError(f"cells {self.cells.shape}, weight {self.weight.shape}: expected [n, 3] and [n]")
        if self.rate_kg_s.shape != (num_wells,) or (n and self.cell_well.max() >= num_wells):
            raise ValueError(f"{num_wells} signs, {len(self.rate_kg_s)} rates: cells name another number")

    def __len__(self) -> int:
        return len(self.sign)

    @property
    def signed_rate_kg_s(self) -> np.ndarray:
        """Rate of each well, + injection, - production, float64 [W]."""
        return self.sign * self.rate_kg_s

    @property
    def total_rates_kg_s(self) -> np.ndarray:
        """Total injection and total production, both >= 0, float64 [2]."""
        return np.array([self.rate_kg_s[self.sign == sign].sum() for sign in (1, -1)])

    def source_kg_s(self, shape: Sequence[int], box: Box | None = None) -> np.ndarray:
        """Return the rate of each cell (well rate x share), + injection, float32 [Z, Y, X] or its box."""
        box = box or (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        source = np.zeros([s.stop - s.start for s in box], dtype=np.float64)
        inside = self.inside(box)
        at = self.cells[inside] - [s.start for s in box]
        rates = (self.signed_rate_kg_s[self.cell_well] * self.weight)[inside]
        np.add.at(source, tuple(at.T), rates)
        return source.astype(np.float32)

    def inside(self, box: Box) -> np.ndarray:
        """Return which cells lie in a box of the grid, bool [n]."""
        low = np.array([s.start for s in box])
        high = np.array([s.stop for s in box])
        return np.asarray(((self.cells >= low) & (self.cells < high)).all(axis=1))

    def cell_weights(self, sign: int) -> np.ndarray:
        """Return w [n] such that sum(w x) is the |rate|-weighted mean over the wells of this sign.

        A well's value is the mean of its cells weighted by their shares, so sum|q| c_w T is linear in T. All
        zero when no well has the sign.
        """
        rate = np.where(self.sign == sign, self.rate_kg_s, 0.0)
        total = rate.sum()
        return self.weight * (rate / total if total > 0 else rate)[self.cell_well]

    def features(
        self, pressure: np.ndarray, temperature: np.ndarray, active: np.ndarray, flow: np.ndarray
    ) -> np.ndarray:
        """Return [T_inj, T_prod, P_inj, P_prod, T_active, P_flow] of one state, float64 [6].

        Without a well of a sign its two values are those of the whole field.

        Args:
            pressure: bar, [Z, Y, X].
            temperature: deg C, [Z, Y, X].
            active: where the temperature is defined.
            flow: where the pressure is defined.
        """
        at = tuple(self.cells.T)
        means = [float(x[m].mean(dtype=np.float64)) for x, m in ((temperature, active), (pressure, flow))]
        values = []
        for grid, mean in zip((temperature, pressure), means, strict=True):
            for sign in (1, -1):
                weights = self.cell_weights(sign)
                values.append(float(weights @ grid[at].astype(np.float64)) if weights.any() else mean)
        return np.array([*values, *means])


def find_wells(is_well: np.ndarray, rate_kg_s: np.ndarray, perm_x: np.ndarray) -> Wells:
    """Return the wells of a grid: connected cells (26-neighbourhood) of equal sign and rate.

    Args:
        is_well: perforated cells, bool [Z, Y, X].
        rate_kg_s: the rate of the whole well on each of its cells, + injection, [Z, Y, X].
        perm_x: permeability along X; its share in the well is the cell's weight, uniform when all is zero.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    cells = np.argwhere(is_well).astype(np.int32)
    if not len(cells):
        empty = np.zeros(0)
        return Wells(empty.astype(np.int8), empty, cells.reshape(0, 3), empty, empty.astype(np.int32))
    at = tuple(cells.T)
    rates = rate_kg_s[at].astype(np.float64)
    group = _equal_rates(rates)
    pairs = KDTree(cells).query_pairs(1, p=np.inf, output_type="ndarray")
    pairs = pairs[group[pairs[:, 0]] == group[pairs[:, 1]]]
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(cells), len(cells)))
    num_wells, label = connected_components(graph, directed=False)
    first = np.unique(label, return_index=True)[1]
    perm = np.maximum(perm_x[at].astype(np.float64), 0.0)
    total = np.bincount(label, perm, minlength=num_wells)[label]
    count = np.bincount(label, minlength=num_wells)[label]
    weight = np.where(total > 0, perm / np.where(total > 0, total, 1.0), 1.0 / count)
    return Wells(
        np.sign(rates[first]).astype(np.int8), np.abs(rates[first]), cells, weight, label.astype(np.int32)
    )


def _equal_rates(rates: np.ndarray) -> np.ndarray:
    """Return the number of the group of equal rates, up to rounding, that each value belongs to, int [n]."""
    order = np.argsort(rates, kind="stable")
    ordered = rates[order]
    jumps = np.diff(ordered) > _SAME_RATE * np.maximum(np.abs(ordered[1:]), np.abs(ordered[:-1]))
    group = np.zeros(len(rates), dtype=np.int64)
    group[order[1:]] = np.cumsum(jumps)
    return group


@dataclass(frozen=True)
class WellReader:
    """The differentiable twin of `Wells.features`, for states on any device.

    Attributes:
        cells: int64 [n, 3].
        injector: float32 [n], weights whose sum over cells is the mean at injectors.
        producer: float32 [n], the same for producers.
        active: float32 [Z, Y, X], where the temperature is defined.
        flow: float32 [Z, Y, X], where the pressure is defined.
    """

    cells: torch.Tensor
    injector: torch.Tensor
    producer: torch.Tensor
    active: torch.Tensor
    flow: torch.Tensor

    @classmethod
    def of(cls, wells: Wells, masks: np.ndarray | torch.Tensor) -> WellReader:
        """Return the reader for `wells` and the masks [active, flow, ...], [>=2, Z, Y, X]."""
        masks = torch.as_tensor(masks)
        injector, producer = (torch.from_numpy(wells.cell_weights(sign)).float() for sign in (1, -1))
        return cls(
            torch.from_numpy(wells.cells).long(), injector, producer, masks[0].float(), masks[1].float()
        )

    def to(self, device: torch.device | str) -> WellReader:
        """Return the reader on a device."""
        return WellReader(*(getattr(self, field.name).to(device) for field in fields(self)))

    def features(self, pressure: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """Return [T_inj, T_prod, P_inj, P_prod, T_active, P_flow], [..., 6].

        Args:
            pressure: bar, [..., Z, Y, X]; anything outside the flow cells.
            temperature: deg C, [..., Z, Y, X]; anything outside the active cells.
        """
        z, y, x = self.cells.unbind(1)
        means = [_masked_mean(temperature, self.active), _masked_mean(pressure, self.flow)]
        values = []
        for grid, mean in zip((temperature, pressure), means, strict=True):
            at_cells = grid[..., z, y, x]
            for weights in (self.injector, self.producer):
                known = weights.sum()  # 1, or 0 where no well has the sign
                values.append((at_cells * weights.to(grid.dtype)).sum(-1) + (1 - known) * mean)
        return torch.stack([*values, *means], dim=-1)


def _masked_mean(grid: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    inside = torch.where(mask > 0, grid, 0.0)
    return inside.sum((-3, -2, -1)) / mask.sum().clamp_min(1)
