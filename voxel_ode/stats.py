"""Statistics of the training files: float64, over valid cells only, mergeable, no loop over values.

Pressure and permeability count on flow cells, temperature and porosity on active cells, rates on well cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.normalization import ZScore
from common.running_stats import Reservoir, RunningStats
from voxel_ode.normalize import CLIP, PERM_FLOOR, STATS_SCHEMA, TRANSFORMS
from voxel_ode.prepped import PreppedSim, open_prepped
from voxel_ode.schema import GRID_NAMES, SCALAR_NAMES, STATIC_NAMES

SAMPLE = 50_000  # values a channel kept for percentiles
STD_FLOOR = 1e-6  # of grids
SCALAR_STD_FLOOR = 1e-3  # of |mean|
_BLOCK = 2  # states read at once: those of a chunk
_FLOW_CHANNELS = ("PermX", "PermY", "PermZ", "Pressure0")
UNITS = {
    **{"Pressure": "bar", "Temperature": "degC", "Pressure0": "bar", "Temperature0": "degC"},
    **dict.fromkeys(("PermX", "PermY", "PermZ"), "mD"),
    **dict.fromkeys(("InjRate", *SCALAR_NAMES[3:]), "kg/s"),
    **dict.fromkeys(SCALAR_NAMES[:2], "W"),
    SCALAR_NAMES[2]: "J",
}


class FileStats:
    """What is counted of one file or of many.

    Args:
        num_params: parameters of a simulation.
        log1p_flags: which scalars are counted after log1p.
        index: of the file, so that samples of different files are drawn independently.
    """

    def __init__(self, num_params: int, log1p_flags: Sequence[bool], index: int = 0) -> None:
        self.log1p_flags = np.asarray(log1p_flags, dtype=bool)
        self.static = RunningStats(len(STATIC_NAMES))
        self.grid, self.delta = RunningStats(2), RunningStats(2)
        self.scalar = RunningStats(len(SCALAR_NAMES))
        self.params = RunningStats(num_params)
        names = [*STATIC_NAMES, *GRID_NAMES, *SCALAR_NAMES]
        self.samples = {name: Reservoir(SAMPLE, 0, f"statistics {name}", index) for name in names}
        self.num_files = 0

    def add(self, sim: PreppedSim) -> None:
        """Take in one simulation, two states in memory at a time."""
        z0, z1, y0, y1, x0, x1 = sim.bbox
        box = (slice(z0, z1), slice(y0, y1), slice(x0, x1))
        masks = sim.masks(box) > 0
        inside = [np.flatnonzero(masks[1]), np.flatnonzero(masks[0])]  # of P, of T
        self._add_static(sim.static(box), masks)
        last: list[np.ndarray] = []
        for first in range(0, sim.t_valid, _BLOCK):
            for state in sim.states(first, min(first + _BLOCK, sim.t_valid), box):
                values = [
                    np.take(grid, cells) for grid, cells in zip(state.reshape(2, -1), inside, strict=True)
                ]
                for k, name in enumerate(GRID_NAMES):
                    add_channel(self.grid, k, values[k])
                    self.samples[name].update(values[k])
                    if last:
                        add_channel(self.delta, k, values[k].astype(np.float64) - last[k])
                last = values
        for k, name in enumerate(SCALAR_NAMES):
            rates = sim.scalars[:, k]
            self.samples[name].update(rates)
            add_channel(self.scalar, k, np.log1p(np.maximum(rates, 0)) if self.log1p_flags[k] else rates)
        if len(sim.params):
            self.params.update(sim.params[None])
        self.num_files += 1

    def _add_static(self, static: np.ndarray, masks: np.ndarray) -> None:
        for k, name in enumerate(STATIC_NAMES):
            domain = masks[1] if name in _FLOW_CHANNELS else masks[0]
            if name == "InjRate":
                domain = static[STATIC_NAMES.index("IsWell")] > 0.5
            values = static[k][domain]
            self.samples[name].update(values)
            if TRANSFORMS[name][0] == "log10":
                values = np.log10(np.maximum(values.astype(np.float64), PERM_FLOOR))
            add_channel(self.static, k, values)

    def merge(self, other: FileStats) -> None:
        """Take in what `other` has counted."""
        for name in ("static", "grid", "delta", "scalar", "params"):
            getattr(self, name).merge(getattr(other, name))
        for name, sample in self.samples.items():
            sample.merge(other.samples[name])
        self.num_files += other.num_files


def add_channel(stats: RunningStats, channel: int, values: np.ndarray) -> None:
    """Take in `values`, any shape, as values of one channel."""
    one = RunningStats(1)
    one.update(values.reshape(1, -1), channel_axis=0)
    part = RunningStats(len(stats.mean))
    for name in ("count", "mean", "m2", "min", "max"):
        getattr(part, name)[channel] = getattr(one, name)[0]
    stats.merge(part)


def file_stats(path: Path, index: int, num_params: int, log1p_flags: Sequence[bool]) -> FileStats:
    """Return the statistics of one prepped file."""
    found = FileStats(num_params, log1p_flags, index)
    sim = open_prepped(path)
    found.add(sim)
    sim.close()
    return found


def stats_dict(
    stats: FileStats, fault_encoding: str, param_names: Sequence[str], dataset_id: str
) -> dict[str, Any]:
    """Return the content of stats.json."""
    kinds = {name: kind for name, (kind, _) in TRANSFORMS.items()}
    if fault_encoding == "ordinal":
        kinds["FaultId"] = "identity"
    grid = ZScore.from_stats(stats.grid, floor=STD_FLOOR)
    scalar = ZScore.from_stats(stats.scalar, relative_floor=SCALAR_STD_FLOOR)
    mean, std = static_scales(stats, kinds, grid)
    params, seen = stats.params, stats.params.count > 0
    raw = bool(np.all((params.min >= 0) & (params.max <= 1)))
    rms = np.where(stats.delta.rms > 0, stats.delta.rms, 1.0)
    return {
        "schema": STATS_SCHEMA,
        "dataset_id": dataset_id,
        "num_files": stats.num_files,
        "units": UNITS,
        "static_channels": list(STATIC_NAMES),
        "grid_channels": list(GRID_NAMES),
        "scalar_channels": list(SCALAR_NAMES),
        "mean": {"static": mean, "grid": list(grid.mean), "scalar": list(scalar.mean)},
        "std": {"static": std, "grid": list(grid.std), "scalar": list(scalar.std)},
        "delta_rms": np.maximum(rms, STD_FLOOR).tolist(),
        "log1p_flags": stats.log1p_flags.astype(int).tolist(),
        "transforms": {
            "static": [static_entry(name, kinds[name]) for name in STATIC_NAMES],
            "grid": ["zscore"] * 2,
            "scalar": ["log1p, zscore" if flag else "zscore" for flag in stats.log1p_flags],
            "params": "raw" if raw else "zscore",
        },
        "param_names": list(param_names),
        "param_min": np.where(seen, params.min, 0).tolist(),
        "param_max": np.where(seen, params.max, 0).tolist(),
        "param_mean": params.mean.tolist(),
        "param_std": np.where(params.constant | (params.std == 0), 1.0, params.std).tolist(),
        "channel_range": {
            group: {name: percentiles(stats.samples[name]) for name in names}
            for group, names in (("static", STATIC_NAMES), ("grid", GRID_NAMES), ("scalar", SCALAR_NAMES))
        },
    }


def static_scales(stats: FileStats, kinds: dict[str, str], grid: ZScore) -> tuple[list[float], list[float]]:
    """Return mean and std that bring each prepared static channel to the network's range."""
    own = ZScore.from_stats(stats.static, floor=STD_FLOOR)
    mean, std = list(own.mean), list(own.std)
    for k, name in enumerate(STATIC_NAMES):
        if name in ("IsActive", "IsWell", "Depth") or kinds[name] == "binary":
            mean[k], std[k] = 0.0, 1.0
        elif name == "InjRate":
            seen = stats.static.count[k] > 0
            largest = max(abs(stats.static.min[k]), abs(stats.static.max[k])) if seen else 0.0
            mean[k], std[k] = 0.0, float(largest) or 1.0
        elif name in ("Pressure0", "Temperature0"):
            row = GRID_NAMES.index(name[:-1])
            mean[k], std[k] = grid.mean[row], grid.std[row]
    return mean, std


def static_entry(name: str, kind: str) -> dict[str, Any]:
    """Return how a static channel is transformed, for a reader of stats.json."""
    entry: dict[str, Any] = {"name": name, "kind": kind, "domain": TRANSFORMS[name][1]}
    return {**entry, "floor": PERM_FLOOR, "clip": CLIP} if kind == "log10" else entry


def percentiles(sample: Reservoir) -> list[float]:
    """Return the 0.1 and 99.9 percentile of a sample; zeros when it is empty."""
    return np.percentile(sample.values, [0.1, 99.9]).tolist() if len(sample.values) else [0.0, 0.0]
