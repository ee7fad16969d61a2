"""What the built-in simulations conserve, in terms of predicted fields: heat of advdiff, energy of wave.

B batch, T frames, M nodes = ny nx. Residuals are differentiable in the field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from simulgen_vae import advdiff, wave
from simulgen_vae.grids import HEIGHT, WIDTH, Grid

LAWS = ("advdiff", "wave")
NUM_PARAMS = {"advdiff": len(advdiff.PARAMS), "wave": len(wave.PARAMS)}


@dataclass(frozen=True)
class Gates:
    """Fluxes through inlet and outlet of advdiff, times the face area.

    Attributes:
        inlet: [B, ny].
        outlet: [B, ny].
        tau: rise time of the inlet temperature, [B].
    """

    inlet: Tensor
    outlet: Tensor
    tau: Tensor


class Balance:
    """The law of one simulation on one grid; what depends on parameters alone is remembered.

    Args:
        name: advdiff or wave.
        grid_shape: (ny, nx).
        time: of the frames, [T].

    Raises:
        UserError: the data is none of this simulation.
    """

    def __init__(self, name: str, grid_shape: tuple[int, int] | None, time: Tensor) -> None:
        if grid_shape is None or name not in LAWS or len(time) < 3:
            raise UserError(
                f"--balance {name}: grid {grid_shape}, {len(time)} frames, expected one of {', '.join(LAWS)} "
                "on its own grid with 3 frames or more"
            )
        self.name = name
        self.grid = Grid(grid_shape[1], grid_shape[0])
        self.time = time.double()
        self._known: dict[bytes, np.ndarray] = {}

    def residual(self, u: Tensor, params: Tensor) -> Tensor:
        """Return what is violated in each interval, [B, ...], dimensionless, 0 where the law holds.

        Args:
            u: [B, T, M, 1] physical.
            params: [B, P] physical.

        Raises:
            UserError: the number of parameters or fields is not that of the simulation.
        """
        if params.shape[1] != NUM_PARAMS[self.name] or u.shape[-1] != 1:
            raise UserError(
                f"--balance {self.name}: {params.shape[1]} parameters and {u.shape[-1]} fields, expected "
                f"{NUM_PARAMS[self.name]} and 1"
            )
        flat = u[..., 0]
        if self.name == "advdiff":
            return heat_residual(flat, self._gates(params), self.grid, self.time)
        return energy_rise(flat, self._speeds(params), params[:, 4], self.grid, self.time)

    def _remembered(self, params: Tensor) -> list[np.ndarray]:
        found = []
        for row in params.detach().double().cpu().numpy():
            key = row.tobytes()
            if key not in self._known:
                if self.name == "advdiff":
                    flow = advdiff.make_flow(row, self.grid)
                    self._known[key] = np.stack([flow.flux_x[:, 0], flow.flux_x[:, -1]])
                else:
                    self._known[key] = wave.speed(row, self.grid)
            found.append(self._known[key])
        return found

    def _gates(self, params: Tensor) -> Gates:
        both = torch.from_numpy(np.stack(self._remembered(params))).to(params.device, torch.float32)
        return Gates(both[:, 0], both[:, 1], params[:, 8].float())

    def _speeds(self, params: Tensor) -> Tensor:
        return torch.from_numpy(np.stack(self._remembered(params))).to(params.device, torch.float32)


def heat_residual(u: Tensor, gates: Gates, grid: Grid, time: Tensor) -> Tensor:
    """Return (E_{n+1} - E_n - dt/2 (F_n + F_{n+1})) / area, [B, T - 1]: missing heat as mean temperature.

    E = sum T h_x h_y; F = advected and conducted inflow minus advected outflow (see advdiff.Flow). The
    trapezoidal rule between frames leaves a small residual of the simulation itself.

    Args:
        u: temperature [B, T, M].
        gates: fluxes.
        grid: the cells.
        time: of the frames, [T].
    """
    cells = u.unflatten(-1, (grid.ny, grid.nx))
    content = cells.sum((-1, -2)) * grid.hx * grid.hy
    t = time.to(u.device, u.dtype)
    hot = (1.0 - torch.exp(-t / gates.tau[:, None]))[..., None]
    conduction = 2.0 * grid.hy / grid.hx
    first, last = cells[..., 0], cells[..., -1]
    inflow = (gates.inlet[:, None] * hot + conduction * (hot - first)).sum(-1)
    net = inflow - (gates.outlet[:, None] * last).sum(-1)
    gained = 0.5 * (t[1:] - t[:-1]) * (net[:, 1:] + net[:, :-1])
    return (content[:, 1:] - content[:, :-1] - gained) / (WIDTH * HEIGHT)


def frame_energy(u: Tensor, speed: Tensor, grid: Grid, time: Tensor) -> Tensor:
    """Return the energy between successive frames, [B, T - 1].

    E = h^2/2 sum [((u^{n+1} - u^n)/dt)^2 / c^2 - (u^n + u^{n+1})/2 lap (u^n + u^{n+1})/2], zero outside.

    Args:
        u: pressure [B, T, M].
        speed: [B, ny, nx].
        grid: square cells.
        time: of the frames, [T].
    """
    cells = u.unflatten(-1, (grid.ny, grid.nx))
    t = time.to(u.device, u.dtype)
    rate = (cells[:, 1:] - cells[:, :-1]) / (t[1:] - t[:-1])[:, None, None]
    middle = 0.5 * (cells[:, 1:] + cells[:, :-1])
    rim = torch.nn.functional.pad(middle, (1, 1, 1, 1))
    right, up = rim[..., 1:-1, 1:] - rim[..., 1:-1, :-1], rim[..., 1:, 1:-1] - rim[..., :-1, 1:-1]
    kinetic = grid.hx * grid.hy * (rate / speed[:, None]).square().sum((-1, -2))
    return 0.5 * (kinetic + right.square().sum((-1, -2)) + up.square().sum((-1, -2)))


def energy_rise(u: Tensor, speed: Tensor, f0: Tensor, grid: Grid, time: Tensor) -> Tensor:
    """Return by how much the energy rises after the source's end (t > 2/f0), over its maximum, [B, T - 2]."""
    found = frame_energy(u, speed, grid, time)
    rise = torch.relu(found[:, 1:] - found[:, :-1]) / found.detach().amax(1, keepdim=True).clamp_min(1e-30)
    t = time.to(u.device, u.dtype)
    silent = t[:-2][None] > 2.0 / f0[:, None].to(u.dtype)
    return rise * silent


def rms(residual: Tensor) -> Tensor:
    """Return the root mean square of a residual [B, ...] of each sample, [B]."""
    return residual.flatten(1).square().mean(1).sqrt()
