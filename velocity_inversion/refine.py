"""Physics refinement: change a section until simulated gathers fit the recorded ones better.

Both ways keep the iterate with the lowest full-band misfit, the start included, so the result is never worse.
Letters: S shots, T time samples, R receivers, Z depth, X horizontal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from velocity_inversion import quasi_newton
from velocity_inversion.misfit import band_misfit, relative_misfit, total_variation
from velocity_inversion.preprocess import decimate
from velocity_inversion.simulate import Simulation, coarsen, simulate

PATIENCE = 5  # iterations that must gain together
LEAST_GAIN = 0.005
LATERAL = 8 / 3  # smoothing along x over that along z
STEP_RATIO = 0.53  # step of a band over that of the band before
NEAR_STEP = 0.2  # step from a start that fits already over that from one that does not
BETAS = (0.9, 0.99)
MODES = ("data_space", "fwi", "both")
OPTIMIZERS = ("lbfgs", "adam")
# what is good for an optimizer, where a setting is left open
STEP_KM_S = {"lbfgs": 0.05, "adam": 0.15}
BANDS_HZ = (3.0, 5.0, 0.0)
LEAST_IN_BAND = 10  # L-BFGS leaves out low bands rather than give fewer iterations to each
SMOOTH_CELLS = {"lbfgs": 1.0, "adam": 3.0}
NEAR_MISFIT = {"lbfgs": 0.0, "adam": 0.3}
MISFIT_KIND = {"lbfgs": "l2", "adam": "l1"}


@dataclass(frozen=True)
class RefineSettings:
    """How to refine; what is None becomes what is good for the optimizer.

    Attributes:
        mode: "fwi", "data_space", or "both" (data space first).
        iterations: of each mode: simulations of all shots, with their gradient in mode "fwi"; L-BFGS takes
            two for one, the start and a trial.
        optimizer: "lbfgs" (preconditioned) or "adam".
        step_km_s: the largest change by L-BFGS's first trial in a band, or Adam's first step of the first
            band, of which later bands take about half of the one before.
        tv: weight of the total variation, relative to the misfit.
        relaxation: lambda of the data-space iteration.
        bands_hz: low-pass corners, one after another; 0 = full band.
        smooth_cells: Gaussian smoothing of the change (of Adam's gradient) over depth in the first band; it
            falls linearly from band to band, and is wider along x, as layers are.
        near_misfit: a start whose relative misfit lies below needs no low frequencies and no long steps: all
            iterations go to the last band, with a fifth of the step and its smoothing; 0 = never.
        misfit_kind: "l1", "l2" or "envelope".
        gradient_interval: time steps between samples kept for the gradient.
    """

    mode: str = "fwi"
    iterations: int = 20
    optimizer: str = "lbfgs"
    step_km_s: float | None = None
    tv: float = 1e-3
    relaxation: float = 0.5
    bands_hz: tuple[float, ...] | None = None
    smooth_cells: float | None = None
    near_misfit: float | None = None
    misfit_kind: str | None = None
    gradient_interval: int = 4

    def filled(self) -> Filled:
        """Return the settings with nothing left open."""
        name = self.optimizer
        bands = BANDS_HZ[-max(1, self.iterations // LEAST_IN_BAND) :] if name == "lbfgs" else BANDS_HZ
        return Filled(
            STEP_KM_S[name] if self.step_km_s is None else self.step_km_s,
            bands if self.bands_hz is None else self.bands_hz,
            SMOOTH_CELLS[name] if self.smooth_cells is None else self.smooth_cells,
            NEAR_MISFIT[name] if self.near_misfit is None else self.near_misfit,
            MISFIT_KIND[name] if self.misfit_kind is None else self.misfit_kind,
        )


class Filled(NamedTuple):
    """The settings that depend on the optimizer."""

    step_km_s: float
    bands_hz: tuple[float, ...]
    smooth_cells: float
    near_misfit: float
    misfit_kind: str


@dataclass
class Refined:
    """The best section [Z, X] (km/s), its misfit, that of the start, and the misfit of every iterate."""

    vp: torch.Tensor
    misfit: float
    start_misfit: float
    history: list[float] = field(default_factory=list)


def observed_traces(gathers: np.ndarray, simulation: Simulation) -> torch.Tensor:
    """Return recorded gathers [S, T, R] at the simulation's interval."""
    factor = max(1, round(simulation.dt_s / simulation.survey.dt_s))
    return torch.from_numpy(decimate(gathers, factor, simulation.num_samples))


def refine(
    vp: torch.Tensor,
    observed: torch.Tensor,
    simulation: Simulation,
    settings: RefineSettings,
    network: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Refined:
    """Refine one section.

    Args:
        vp: [Z, X], km/s, on the survey's grid.
        observed: [S, T, R] at the simulation's interval.
        simulation: grid and survey.
        settings: mode, iterations, steps.
        network: gathers [S, T, R] at the simulation's interval -> section [Z, X]; data-space mode needs it.

    Raises:
        ValueError: data-space mode without a network.
    """
    best = _evaluated(vp, observed, simulation)
    start = best.misfit
    history = [start]
    if settings.mode in ("data_space", "both"):
        if network is None:
            raise ValueError("data-space refinement needs the network")
        best = _data_space(best, observed, simulation, settings, network, history)
    if settings.mode in ("fwi", "both"):
        best = _fwi(best, observed, simulation, settings, history)
    return Refined(best.vp, best.misfit, start, history)


@dataclass
class _Iterate:
    vp: torch.Tensor
    misfit: float
    traces: torch.Tensor


@torch.no_grad()
def _evaluated(vp: torch.Tensor, observed: torch.Tensor, simulation: Simulation) -> _Iterate:
    traces = simulate(vp[None].float(), simulation)[0]
    return _Iterate(vp, relative_misfit(traces, observed), traces)


def _data_space(
    best: _Iterate,
    observed: torch.Tensor,
    simulation: Simulation,
    settings: RefineSettings,
    network: Callable[[torch.Tensor], torch.Tensor],
    history: list[float],
) -> _Iterate:
    """Iterate d <- d - lambda (F(M(d)) - observed), v = M(d): one simulation a step, no gradient."""
    data = observed.clone()
    with torch.no_grad():
        current = _evaluated(network(data), observed, simulation)
        for _ in range(settings.iterations):
            data = data - settings.relaxation * (current.traces - observed)
            if not torch.isfinite(data).all():
                break
            current = _evaluated(network(data), observed, simulation)
            history.append(current.misfit)
            if current.misfit < best.misfit:
                best = current
            if _stalled(history):
                break
    return best


@dataclass(frozen=True)
class _Band:
    """One stretch of the descent: low-pass corner (0 = full band), iterations, step, smoothing."""

    corner_hz: float
    iterations: int
    step_km_s: float
    smooth_cells: float


def plan(settings: RefineSettings, start_misfit: float = math.inf) -> list[_Band]:
    """Return the stretches of a descent: the bands share the iterations.

    Smoothing, and Adam's steps, fall from band to band, as the wavelengths do that a band can tell apart. A
    start that explains most of the gathers would be spoilt by the long steps of Adam that another one needs.
    L-BFGS gives the last band, where most is gained, half as many iterations again as the others.
    """
    step, bands, smooth, near, _ = settings.filled()
    count, total = len(bands), settings.iterations
    if start_misfit < near and total:
        return [_Band(bands[-1], total, NEAR_STEP * step, smooth / count)]
    if settings.optimizer == "lbfgs":
        share = 2 * total // (2 * count + 1)
        shares = [share if share > 1 else 0] * count  # one alone would only look at the start
        shares[-1] += total - sum(shares)
        ratio = 1.0
    else:
        shares = [total // count] * count
        shares[0] += total - sum(shares)
        ratio = STEP_RATIO
    return [
        _Band(corner, share, step * ratio**k, smooth * (1 - k / count))
        for k, (corner, share) in enumerate(zip(bands, shares, strict=True))
        if share
    ]


def _fwi(
    best: _Iterate,
    observed: torch.Tensor,
    simulation: Simulation,
    settings: RefineSettings,
    history: list[float],
) -> _Iterate:
    """Descend on the velocity of the simulation's grid, low frequencies first (Bunks et al. 1995)."""
    entry, base = best, best.vp.float()
    coarse = coarsen(base[None], simulation.factor)[0]

    def judge(v: torch.Tensor, traces: torch.Tensor) -> None:
        """Note the full-band misfit of an iterate and keep it if it is the best so far."""
        nonlocal best
        misfit = relative_misfit(traces, observed)
        history.append(misfit)
        if misfit < best.misfit:
            best = _Iterate(_refilled(v, coarse, base, simulation), misfit, traces)

    v, moved = coarse.clone(), False
    for band in plan(settings, best.misfit):
        if settings.optimizer == "lbfgs":
            v = _quasi_newton(v, observed, simulation, settings, band, judge)
        else:
            v = _descend(v, observed, simulation, settings, band, judge, history, moved=moved)
        moved = True
    if moved and settings.optimizer == "adam":
        with torch.no_grad():
            judge(v, simulate(v[None], simulation)[0])
    if simulation.factor > 1 and best is not entry:  # what is returned is what is judged
        checked = _evaluated(best.vp, observed, simulation)
        return checked if checked.misfit <= entry.misfit else entry
    return best


def _descend(
    start: torch.Tensor,
    observed: torch.Tensor,
    simulation: Simulation,
    settings: RefineSettings,
    band: _Band,
    judge: Callable[[torch.Tensor, torch.Tensor], None],
    history: list[float],
    *,
    moved: bool,
) -> torch.Tensor:
    """Return the section [Z, X] after the iterations of one band; `judge` sees every iterate but the last.

    Args:
        start: on the simulation's grid.
        observed: [S, T, R].
        simulation: grid and survey.
        settings: of the refinement.
        band: what to do.
        judge: called with iterates and their gathers.
        history: full-band misfits so far, to see when nothing is gained any more.
        moved: whether `start` is an iterate that nobody judged yet.
    """
    low, high = simulation.survey.v_bounds_km_s
    kind = settings.filled().misfit_kind
    v = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([v], lr=band.step_km_s, betas=BETAS)
    since = len(history)
    for step in range(band.iterations):
        for group in optimizer.param_groups:  # from the whole step down to a tenth of it
            group["lr"] = band.step_km_s * (0.55 + 0.45 * math.cos(math.pi * step / band.iterations))
        traces = simulate(v[None], simulation, gradient_interval=settings.gradient_interval)[0]
        if step or moved:
            judge(v.detach().clone(), traces.detach())
            if not band.corner_hz and _stalled(history[since:]):
                break
        loss = band_misfit(traces, observed, band.corner_hz, simulation.dt_s, kind)
        loss = loss + settings.tv * total_variation(v)
        optimizer.zero_grad()
        loss.backward()
        if v.grad is None or not torch.isfinite(v.grad).all():
            break
        v.grad = smoothed(v.grad, band.smooth_cells)
        optimizer.step()
        with torch.no_grad():
            v.clamp_(low, high)
    return v.detach()


def _quasi_newton(
    start: torch.Tensor,
    observed: torch.Tensor,
    simulation: Simulation,
    settings: RefineSettings,
    band: _Band,
    judge: Callable[[torch.Tensor, torch.Tensor], None],
) -> torch.Tensor:
    """Return the best section [Z, X] of a band by L-BFGS; `judge` sees every section that was simulated."""
    kind = settings.filled().misfit_kind

    def loss(v: torch.Tensor) -> torch.Tensor:
        traces = simulate(v[None], simulation, gradient_interval=settings.gradient_interval)[0]
        judge(v.detach(), traces.detach())
        misfit = band_misfit(traces, observed, band.corner_hz, simulation.dt_s, kind)
        return misfit + settings.tv * total_variation(v)

    return quasi_newton.descend(
        start,
        loss,
        lambda change: smoothed(change, band.smooth_cells),
        evaluations=max(2, band.iterations),
        first_step=band.step_km_s,
        bounds=simulation.survey.v_bounds_km_s,
    )


def smoothed(field: torch.Tensor, sigma_cells: float) -> torch.Tensor:
    """Return [Z, X] smoothed by a Gaussian of `sigma_cells` along z, 8/3 of it along x."""
    if sigma_cells <= 0:
        return field
    for sigma in (sigma_cells, LATERAL * sigma_cells):  # z, then x; turned in between and back
        reach = max(1, round(3 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=field.device) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(field)
        padded = functional.pad(field.T[:, None], (reach, reach), mode="replicate")
        field = functional.conv1d(padded, kernel[None, None])[:, 0]
    return field


def _refilled(
    v: torch.Tensor, coarse: torch.Tensor, base: torch.Tensor, simulation: Simulation
) -> torch.Tensor:
    """Return the section on its own grid: the network's detail plus the upsampled change."""
    if simulation.factor == 1:
        return v.clone()
    size = [n * simulation.factor for n in v.shape]
    change = functional.interpolate((v - coarse)[None, None], size, mode="bilinear", align_corners=False)
    z, x = base.shape
    return (base + change[0, 0, :z, :x]).clamp(*simulation.survey.v_bounds_km_s)


def _stalled(history: Sequence[float]) -> bool:
    """Whether the last five iterations gained less than 0.5 % together."""
    if len(history) <= PATIENCE:
        return False
    before = min(history[:-PATIENCE])
    return min(history[-PATIENCE:]) > before * (1 - LEAST_GAIN)
