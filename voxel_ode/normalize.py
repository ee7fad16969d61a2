"""Between physical values and the network's: one record of numbers that travels in checkpoints.

Whatever lies off its domain is 0 after normalisation: pressure, permeability and Pressure0 off the flow cells
(permeability of thermal-only rock ends at its floor instead), everything else off the active cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import DataError
from voxel_ode.schema import GRID_NAMES, SCALAR_NAMES

STATS_SCHEMA = "strata.voxel_ode.stats/1"
PERM_FLOOR = 1e-3  # mD
CLIP = 5.0  # standard deviations, of permeability
# How a static channel is prepared before (x - mean) / std, and where it is defined.
TRANSFORMS = {
    "FaultId": ("binary", "active"),
    "InjRate": ("identity", "active"),
    "IsActive": ("identity", "active"),
    "IsWell": ("identity", "active"),
    "PermX": ("log10", "active"),
    "PermY": ("log10", "active"),
    "PermZ": ("log10", "active"),
    "Porosity": ("identity", "active"),
    "Pressure0": ("identity", "flow"),
    "Temperature0": ("identity", "active"),
    "Depth": ("identity", "active"),
}
_LISTS = ("grid_mean", "grid_std", "delta_rms", "scalar_mean", "scalar_std", "scalar_log1p")
_PARAM_LISTS = ("param_mean", "param_std", "param_min", "param_max")


@dataclass(frozen=True, eq=False)
class Normalizer:
    """The maps of one data set, tensors float32 on the CPU.

    Attributes:
        static_channels: names, in the order of the network's inputs.
        static_kinds: per channel "identity", "binary" (id >= 1) or "log10" (floored, clipped).
        static_mean: [S], of the prepared values.
        static_std: [S].
        grid_mean: [2], pressure bar and temperature deg C.
        grid_std: [2].
        delta_rms: [2], root mean square of a year's change, bar and deg C.
        scalar_mean: [5], after log1p where flagged.
        scalar_std: [5].
        scalar_log1p: [5], 1 where log1p(max(x, 0)) comes first.
        params_raw: parameters are used as they are (all within 0..1 in training).
        param_mean: [P].
        param_std: [P].
        param_min: [P], of the training files.
        param_max: [P].
        channel_range: group -> name -> (p0.1, p99.9) of physical training values.
        dataset_id: hash of the training files and flags.
    """

    static_channels: tuple[str, ...]
    static_kinds: tuple[str, ...]
    static_mean: torch.Tensor
    static_std: torch.Tensor
    grid_mean: torch.Tensor
    grid_std: torch.Tensor
    delta_rms: torch.Tensor
    scalar_mean: torch.Tensor
    scalar_std: torch.Tensor
    scalar_log1p: torch.Tensor
    params_raw: bool
    param_mean: torch.Tensor
    param_std: torch.Tensor
    param_min: torch.Tensor
    param_max: torch.Tensor
    channel_range: dict[str, dict[str, list[float]]]
    dataset_id: str

    @classmethod
    def from_stats(cls, stats: dict[str, Any], where: str | Path = "stats.json") -> Normalizer:
        """Return the maps that a stats.json, named `where` in errors, describes.

        Raises:
            DataError: it has another schema or misses an entry.
        """
        schema = stats.get("schema") if isinstance(stats, dict) else None
        if schema != STATS_SCHEMA:
            raise DataError(f"{where}: schema {schema!r}, expected {STATS_SCHEMA!r}; run prep_data.py again")
        try:
            mean, std, transforms = stats["mean"], stats["std"], stats["transforms"]
            return cls.from_dict(
                {
                    "static_channels": stats["static_channels"],
                    "static_kinds": [entry["kind"] for entry in transforms["static"]],
                    "static_mean": mean["static"],
                    "static_std": std["static"],
                    "grid_mean": mean["grid"],
                    "grid_std": std["grid"],
                    "delta_rms": stats["delta_rms"],
                    "scalar_mean": mean["scalar"],
                    "scalar_std": std["scalar"],
                    "scalar_log1p": stats["log1p_flags"],
                    "params_raw": transforms["params"] == "raw",
                    **{name: stats[name] for name in _PARAM_LISTS},
                    "channel_range": stats["channel_range"],
                    "dataset_id": stats["dataset_id"],
                }
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: no entry {error}; run prep_data.py again") from error
        except DataError as error:
            raise DataError(f"{where}: {error}; run prep_data.py again") from error

    def state_dict(self) -> dict[str, Any]:
        """Return the maps as plain lists, numbers and strings."""
        return {
            name: value.tolist() if isinstance(value, torch.Tensor) else _plain(value)
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Normalizer:
        """Return the maps that `state_dict` described; further entries are left alone.

        Raises:
            DataError: an entry is missing, of another length or not finite, or a std is not above 0.
        """
        names = list(cls.__dataclass_fields__)
        missing = [name for name in names if name not in state]
        if missing:
            raise DataError(
                f"normalisation: no entry {missing[0]}, expected {names}; is the file of voxel_ode?"
            )
        channels = tuple(state["static_channels"])
        num_params = len(state["param_mean"])
        lengths = {"static_mean": len(channels), "static_std": len(channels)}
        lengths |= dict.fromkeys(_LISTS[:3], len(GRID_NAMES)) | dict.fromkeys(_LISTS[3:], len(SCALAR_NAMES))
        lengths |= dict.fromkeys(_PARAM_LISTS, num_params)
        tensors = {name: _tensor(name, state[name], count) for name, count in lengths.items()}
        kinds = tuple(state["static_kinds"])
        strangers = [name for name in channels if name not in TRANSFORMS]
        if strangers:
            raise DataError(
                f"normalisation: static channel {strangers[0]!r}, expected some of {list(TRANSFORMS)}"
            )
        if len(kinds) != len(channels) or not set(kinds) <= {"identity", "binary", "log10"}:
            raise DataError(f"normalisation: static_kinds {kinds}, expected one for each of {channels}")
        return cls(
            static_channels=channels,
            static_kinds=kinds,
            params_raw=bool(state["params_raw"]),
            channel_range=state["channel_range"],
            dataset_id=str(state["dataset_id"]),
            **tensors,
        )

    def difference(self, other: Normalizer) -> str:
        """Return the first entry in which `other` differs by more than 1e-5, "" when none does."""
        for name, value in vars(self).items():
            found = getattr(other, name)
            if isinstance(value, torch.Tensor):
                same = value.shape == found.shape and torch.allclose(value, found, rtol=1e-5, atol=1e-8)
            else:
                same = name in ("channel_range", "dataset_id") or value == found
            if not same:
                return name
        return ""

    def static(self, static: torch.Tensor, masks: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
        """Return the normalised statics, float32 [..., S, D, H, W] in the order of `static_channels`.

        Args:
            static: physical, [..., C, D, H, W]; anything off the active cells.
            masks: [..., 3, D, H, W]: active, flow, thermal.
            names: of the C channels.
        """
        active, flow = masks[..., 0, :, :, :] > 0, masks[..., 1, :, :, :] > 0
        out = static.new_zeros((*static.shape[:-4], len(self.static_channels), *static.shape[-3:]))
        for i, name in enumerate(self.static_channels):
            x = self.static_channel(name, static[..., names.index(name), :, :, :])
            domain = flow if TRANSFORMS[name][1] == "flow" else active
            out[..., i, :, :, :] = torch.where(domain, x, 0.0)
        return out

    def static_channel(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised values of one physical static channel, any shape; domains do not count."""
        i = self.static_channels.index(name)
        if self.static_kinds[i] == "binary":
            x = (x >= 1).to(x.dtype)
        if self.static_kinds[i] != "log10":
            return (x - self.static_mean[i].to(x)) / self.static_std[i].to(x)
        x = (torch.log10(x.clamp_min(PERM_FLOOR)) - self.static_mean[i].to(x)) / self.static_std[i].to(x)
        return x.clamp(-CLIP, CLIP)

    def state_to_normalized(self, state: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """Return (x - mean) / std of physical [..., 2, D, H, W]; 0 off the domains when `masks` are given.

        Args:
            state: bar and deg C.
            masks: [3, D, H, W] or [..., 3, D, H, W]: active, flow, thermal.
        """
        mean, std = _grid(self.grid_mean, state), _grid(self.grid_std, state)
        x = (state - mean) / std
        return x if masks is None else torch.where(domains(masks), x, 0.0)

    def state_to_physical(self, state: torch.Tensor) -> torch.Tensor:
        """Return bar and deg C of normalised [..., 2, D, H, W]; off-domain cells get the mean."""
        return state * _grid(self.grid_std, state) + _grid(self.grid_mean, state)

    def scalars_to_normalized(self, scalars: torch.Tensor) -> torch.Tensor:
        """Return the normalised field rates [..., 5] of W, W, J, kg/s, kg/s."""
        logged = torch.where(self.scalar_log1p.to(scalars) > 0, torch.log1p(scalars.clamp_min(0)), scalars)
        return (logged - self.scalar_mean.to(scalars)) / self.scalar_std.to(scalars)

    def params(self, params: torch.Tensor) -> torch.Tensor:
        """Return the parameters [..., P] as the network takes them: raw, or z-scored."""
        if self.params_raw:
            return params
        return (params - self.param_mean.to(params)) / self.param_std.to(params)


def domains(masks: torch.Tensor) -> torch.Tensor:
    """Return where P and T are defined, bool [..., 2, D, H, W], from [..., 3, D, H, W]: flow, active."""
    return masks[..., [1, 0], :, :, :] > 0


def _grid(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like).view(-1, 1, 1, 1)


def _tensor(name: str, values: Any, count: int) -> torch.Tensor:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"normalisation: {name} is {str(values)[:80]}, expected {count} numbers") from error
    with np.errstate(over="ignore", under="ignore"):  # what float32 does not hold is refused below
        array = array.astype(np.float32)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise DataError(f"normalisation: {name} is {str(values)[:80]}, expected {count} finite numbers")
    if name.endswith(("_std", "delta_rms")) and (array <= 0).any():
        raise DataError(f"normalisation: {name} is {str(values)[:80]}, expected numbers above 0")
    return torch.from_numpy(array)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
