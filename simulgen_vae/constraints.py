"""Physics that predictions keep: bounds, known nodes, conservation, a residual of the user's own.

Hard ones act inside the prediction, in training, inference and exports alike; soft ones are penalties of the
training. B batch, T frames, M nodes, V fields; u is [B, T, M, V] in physical units.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common.arrays import open_npz
from common.errors import DataError, UserError
from simulgen_vae.balance import Balance, rms
from simulgen_vae.paths import existing_file

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis
    from simulgen_vae.model_files import Surrogate

MODES = ("hard", "soft")
STORED = ("dirichlet_mask", "dirichlet_value")  # names among the arrays of a deliverable
Residual = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """The flags, as typed.

    Attributes:
        bounds: "", off, or LO,HI[:mode], or FIELD=LO,HI[:mode]; several joined by ;.
        nonnegative: off, soft or hard.
        dirichlet: "", off, or FILE[:mode].
        balance: off, advdiff or wave.
        residual_weight: of the residual in config.py.
    """

    bounds: str = ""
    nonnegative: str = "off"
    dirichlet: str = ""
    balance: str = "off"
    residual_weight: float = 0.0

    @classmethod
    def of(cls, config: Mapping[str, Any], **changes: str) -> Settings:
        """Return those of a training's config; a change that is "" keeps what the training was told."""
        found: dict[str, Any] = {n: config[n] for n in cls.__dataclass_fields__ if config.get(n) is not None}
        found |= {name: value for name, value in changes.items() if value}
        return cls(**found)

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        named = (self.bounds, self.nonnegative, self.dirichlet, self.balance)
        return any(value not in ("", "off") for value in named) or self.residual_weight > 0


def with_mode(text: str, flag: str) -> tuple[str, bool]:
    """Return (text without its mode, is it hard); without a mode it is hard."""
    head, colon, mode = text.rpartition(":")
    if colon and mode in MODES:
        return head, mode == "hard"
    if colon and mode.isalpha() and "." not in mode:
        raise UserError(f"{flag} {text}: mode {mode}, expected hard or soft")
    return text, True


def parse_bounds(text: str, field_names: Sequence[str]) -> list[tuple[list[int], float, float, bool]]:
    """Return (fields, low, high, is it hard) of each part of `--bounds`.

    Raises:
        UserError: it cannot be read, names an unknown field, or is empty (low above high).
    """
    found = []
    for part in text.split(";") if text not in ("", "off") else []:
        limits, hard = with_mode(part.strip(), "--bounds")
        name, equals, numbers = limits.rpartition("=")
        if equals and name.strip() not in field_names:
            raise UserError(
                f"--bounds {part}: field {name.strip()}, expected one of {', '.join(field_names)}"
            )
        fields = [list(field_names).index(name.strip())] if equals else list(range(len(field_names)))
        try:
            low, high = (float(v) for v in numbers.split(","))
        except ValueError:
            low, high = math.nan, math.nan
        if not low < high:
            raise UserError(f"--bounds {part}: expected LO,HI with LO below HI, as in 0,1:hard or 0,inf:soft")
        found.append((fields, low, high, hard))
    return found


def read_dirichlet(path: str | Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return mask [M] bool and value [T, M, V] of an npz file.

    Args:
        path: holds `mask` [M] and `value` [M], [T, M] (one field) or [T, M, V].
        shape: (T, M, V).

    Raises:
        DataError: there is no such file, it is damaged, an array is missing, or a shape does not fit.
    """
    path = existing_file(path, "--dirichlet", "an npz with mask and value")
    frames, nodes, num_fields = shape
    with open_npz(path, "expected an npz with mask and value; write it with np.savez") as archive:
        mask, value = archive["mask"], archive["value"]
    if mask.shape != (nodes,) or mask.dtype.kind not in "biu":
        raise DataError(f"{path}: mask {mask.dtype} {mask.shape}, expected bool ({nodes},), one a node")
    full = {(nodes,), (frames, nodes)} if num_fields == 1 else set()
    if value.shape not in full | {shape} or value.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: value {value.dtype} {value.shape}, expected numbers of one of "
            f"{sorted([*full, shape], key=len)}"
        )
    mask = mask.astype(bool)
    value = value if value.shape == shape else value[..., None]
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        value = np.broadcast_to(value, shape).astype(np.float32)
    if not mask.any() or not np.isfinite(value[:, mask]).all():
        raise DataError(f"{path}: {int(mask.sum())} nodes, expected at least one, all with finite values")
    return mask, np.where(mask[:, None], value, np.float32(0))


class Constraints(nn.Module):
    """Hard limits as a layer, and the measure of everything that was asked for.

    Attributes:
        low, high: hard bounds [V], infinite where there are none.
        soft_low, soft_high: soft ones.
        mask: known nodes [M], all false without any.
        value: their values [T, M, V]; [0, 0, 0] without any.
        field_std: [V], what penalties are measured in.
        has_bounds: whether there are hard bounds.
        hard_nodes: whether the known nodes are overwritten.
        balance: the conservation law, or None.
        residual: the user's own, with its weight.
    """

    low: Tensor
    high: Tensor
    soft_low: Tensor
    soft_high: Tensor
    mask: Tensor
    value: Tensor
    field_std: Tensor

    def __init__(self, num_nodes: int, field_std: Tensor) -> None:
        super().__init__()
        infinite = torch.full_like(field_std, torch.inf)
        for name, sign in (("low", -1), ("high", 1), ("soft_low", -1), ("soft_high", 1)):
            self.register_buffer(name, sign * infinite)
        self.register_buffer("mask", torch.zeros(num_nodes, dtype=torch.bool))
        self.register_buffer("value", torch.zeros(0, 0, 0))
        self.register_buffer("field_std", field_std.clone())
        self.has_bounds = False  # a plain value: exported graphs cannot ask a tensor
        self.hard_nodes = False
        self.balance: Balance | None = None
        self.residual: tuple[Residual, float] | None = None
        self.time = torch.zeros(0)

    def limit(self, fields: Sequence[int], low: float, high: float, hard: bool) -> None:
        """Narrow the bounds of some fields."""
        lows, highs = (self.low, self.high) if hard else (self.soft_low, self.soft_high)
        for v in fields:
            lows[v], highs[v] = max(low, float(lows[v])), min(high, float(highs[v]))
            if not float(lows[v]) < float(highs[v]):
                raise UserError(f"--bounds --nonnegative: nothing is left of field {v}; correct the bounds")
        self.has_bounds = self.has_bounds or hard

    def fix(self, mask: np.ndarray | Tensor, value: np.ndarray | Tensor, hard: bool) -> None:
        """Take known nodes: mask [M] and value [T, M, V]."""
        self.mask = torch.as_tensor(mask)
        self.value = torch.as_tensor(value)
        self.hard_nodes = hard

    @property
    def has_nodes(self) -> bool:
        """Whether there are known nodes."""
        return self.value.numel() > 0

    @property
    def is_hard(self) -> bool:
        """Whether predictions change."""
        return self.has_bounds or (self.has_nodes and self.hard_nodes)

    @property
    def is_soft(self) -> bool:
        """Whether there is something to penalise."""
        soft = (self.soft_low > -torch.inf).any() or (self.soft_high < torch.inf).any()
        nodes = self.has_nodes and not self.hard_nodes
        return bool(soft or nodes or self.balance is not None or self.residual is not None)

    def forward(self, u: Tensor) -> Tensor:
        """Return u [..., T, M, V] inside the hard bounds, known nodes at their values."""
        if self.has_bounds:
            u = torch.minimum(torch.maximum(u, self.low), self.high)
        if self.has_nodes and self.hard_nodes:
            u = torch.where(self.mask[:, None], self.value, u)
        return u

    def straight(self, u: Tensor) -> Tensor:
        """Return the same values with the gradient of u itself, so that a clamped point still learns."""
        return u + (self(u) - u).detach() if self.is_hard else u

    def of_std(self, std: Tensor) -> Tensor:
        """Return standard deviations [..., T, M, V]; known nodes have none."""
        return torch.where(self.mask[:, None], 0.0, std) if self.has_nodes and self.hard_nodes else std

    def on_nodes(self, nodes: Tensor) -> Constraints:
        """Return the hard constraints of some nodes (indices) alone."""
        part = Constraints(len(nodes), self.field_std)
        part.low, part.high, part.has_bounds = self.low, self.high, self.has_bounds
        if self.has_nodes:
            part.fix(self.mask[nodes], self.value[:, nodes], self.hard_nodes)
        return part

    def penalty(self, u: Tensor, params: Tensor | None = None) -> Tensor:
        """Return the soft violations of u [B, T, M, V], [B]: mean squares in the fields' standard deviations.

        Args:
            u: physical fields.
            params: [B, P], needed by conservation laws and by a user's residual.

        Raises:
            UserError: a law needs parameters and there are none.
        """
        total = u.new_zeros(len(u))
        outside = torch.relu(self.soft_low - u) + torch.relu(u - self.soft_high)
        total = total + (outside / self.field_std).square().flatten(1).mean(1)
        if self.has_nodes and not self.hard_nodes:
            wrong = (u[:, :, self.mask] - self.value[:, self.mask]) / self.field_std
            total = total + wrong.square().flatten(1).mean(1)
        if (self.balance is not None or self.residual is not None) and params is None:
            raise UserError("--balance, --residual_weight: the training has no parameters; switch them off")
        if self.balance is not None and params is not None:
            total = total + self.balance.residual(u, params).flatten(1).square().mean(1)
        if self.residual is not None and params is not None:
            function, weight = self.residual
            total = total + weight * function(u, params, self.time.to(u.device))
        return total

    @torch.no_grad()
    def violations(self, u: Tensor, params: Tensor | None = None) -> dict[str, float]:
        """Return how far u [B, T, M, V] is from everything asked for: worst value, RMS, RMS."""
        found: dict[str, float] = {}
        low, high = torch.maximum(self.low, self.soft_low), torch.minimum(self.high, self.soft_high)
        if (low > -torch.inf).any() or (high < torch.inf).any():
            found["bounds_worst"] = float((torch.relu(low - u) + torch.relu(u - high)).max())
        if self.has_nodes:
            found["dirichlet_rms"] = float((u - self.value)[:, :, self.mask].square().mean().sqrt())
        if self.balance is not None and params is not None:
            found[f"{self.balance.name}_balance_rms"] = float(rms(self.balance.residual(u, params)).mean())
        return found

    def describe(self) -> dict[str, Any]:
        """Return what holds, as plain values."""
        found: dict[str, Any] = {}
        for name in ("low", "high", "soft_low", "soft_high"):
            values = [v if math.isfinite(v) else None for v in getattr(self, name).tolist()]
            if any(v is not None for v in values):
                found[name] = values
        if self.has_nodes:
            found["known_nodes"] = int(self.mask.sum())
            found["known_nodes_mode"] = "hard" if self.hard_nodes else "soft"
        if self.balance is not None:
            found["balance"] = self.balance.name
        return found


def make_constraints(
    settings: Settings,
    *,
    shape: tuple[int, int, int],
    field_names: Sequence[str],
    field_std: Tensor,
    time: Tensor,
    grid_shape: tuple[int, int] | None = None,
    nodes: tuple[Tensor, Tensor] | None = None,
) -> Constraints:
    """Return the constraints that the flags ask for.

    Args:
        settings: the flags.
        shape: (T, M, V).
        field_names: V names.
        field_std: [V].
        time: of the frames, [T].
        grid_shape: (ny, nx), for conservation laws.
        nodes: mask and value of known nodes that were stored; None reads the file.

    Raises:
        UserError: the flags do not fit each other or the data.
        DataError: the file of known nodes is bad.
    """
    made = Constraints(shape[1], field_std)
    for part in parse_bounds(settings.bounds, field_names):
        made.limit(*part)
    if settings.nonnegative in MODES:
        made.limit(range(shape[2]), 0.0, math.inf, settings.nonnegative == "hard")
    if settings.dirichlet not in ("", "off"):
        path, hard = with_mode(settings.dirichlet, "--dirichlet")
        made.fix(*(nodes if nodes is not None else read_dirichlet(path, shape)), hard)
    if settings.balance != "off":
        made.balance = Balance(settings.balance, grid_shape, time)
    if settings.residual_weight > 0:
        from simulgen_vae import config

        if config.residual is None:
            raise UserError("--residual_weight: no residual is set; write one in simulgen_vae/config.py")
        made.residual = (config.residual, settings.residual_weight)
    made.time = time
    return made


def constraints_of(surrogate: Surrogate, flags: Any = None) -> Constraints:
    """Return those of a deliverable, changed by the flags `bounds`, `nonnegative`, `dirichlet` of a tool."""
    changes = {} if flags is None else {n: getattr(flags, n) for n in ("bounds", "nonnegative", "dirichlet")}
    config, basis, arrays = surrogate.config, surrogate.basis, surrogate.arrays
    stored = None
    if not changes.get("dirichlet") and all(name in arrays for name in STORED):
        stored = (arrays[STORED[0]], arrays[STORED[1]])
    grid = config["grid_shape"]
    settings = Settings.of(config, **changes)
    # A user's residual shapes the training alone: a prediction neither needs it nor has it.
    return make_constraints(
        Settings(settings.bounds, settings.nonnegative, settings.dirichlet, settings.balance),
        shape=(surrogate.vae.shape.frames, basis.num_nodes, basis.num_fields),
        field_names=config["field_names"],
        field_std=basis.field_std,
        time=arrays["time"],
        grid_shape=None if grid is None else (grid[0], grid[1]),
        nodes=stored,
    )


def arrays_to_store(settings: Settings, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return what a deliverable keeps of the file of known nodes, by the names of `STORED`."""
    if settings.dirichlet in ("", "off"):
        return {}
    path, _ = with_mode(settings.dirichlet, "--dirichlet")
    return dict(zip(STORED, read_dirichlet(path, shape), strict=True))


class CoefficientPenalty:
    """The soft constraints as a loss of coefficients: decode, apply the hard ones, measure the rest.

    Args:
        constraints: what to keep.
        basis: from coefficients to fields.
        weight: of the sum.
        device: where the coefficients will be.
    """

    def __init__(
        self, constraints: Constraints, basis: Basis, weight: float = 1.0, device: torch.device | str = "cpu"
    ) -> None:
        self.constraints = copy.deepcopy(constraints).to(device)
        self.basis = copy.deepcopy(basis).to(device)
        self.weight = weight

    def __call__(self, c_hat: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return [B] of c_hat [B, r_s, T] and the batch, whose `params` [B, P] laws need."""
        u = self.constraints.straight(self.basis.decode(c_hat))
        return self.weight * self.constraints.penalty(u, batch.get("params"))
