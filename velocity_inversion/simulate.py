"""Acoustic shot gathers of a velocity section, by deepwave; differentiable with respect to the velocity.

Constant-density acoustics, u_tt = v^2 (lap u + f), absorbing on all sides (Richardson 2023, deepwave).
Letters: B samples, S shots, R receivers, T time samples, Z depth, X horizontal.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import signal
from torch.nn import functional

from common.errors import UserError, missing_library
from common.log import get_logger
from velocity_inversion.geometry import Survey, Wavelet

ACCURACY = 4  # that of the generator of the published families; order 8 differs from them by 2.8 %
PML_WIDTH = 20
MARGIN = 8  # replicated cells around the model: off-grid points use windows of half-width 4
CELLS_PER_WAVELENGTH = 3.0
FEWEST_CELLS = 1.0  # in the shortest wavelength
BANDWIDTH = 2.5  # a Ricker wavelet has next to no energy above 2.5 peak frequencies


def ricker(peak_hz: float, num_samples: int, dt_s: float, peak_s: float) -> torch.Tensor:
    """Return a zero-phase Ricker wavelet, shape [num_samples], float64, amplitude 1 at `peak_s`.

    w(t) = (1 - 2 a) exp(-a),  a = (pi peak_hz (t - peak_s))^2       (Ricker 1953)

    Raises:
        ValueError: `dt_s` is too coarse for the wavelet (peak_hz above one third of Nyquist).
    """
    if peak_hz > 1 / (6 * dt_s):
        raise ValueError(f"peak_hz {peak_hz}: above a third of the Nyquist frequency {0.5 / dt_s:g} Hz")
    t = torch.arange(num_samples, dtype=torch.float64) * dt_s
    a = (math.pi * peak_hz * (t - peak_s)) ** 2
    return (1 - 2 * a) * torch.exp(-a)


@dataclass(frozen=True)
class Simulation:
    """The grid and clock on which a survey is simulated.

    Attributes:
        survey: whose gathers are wanted.
        grid_m: cell of the simulation.
        dt_s: its output interval; traces are brought to the survey's own by `to_survey_rate`.
    """

    survey: Survey
    grid_m: float
    dt_s: float = 1e-3

    @property
    def factor(self) -> int:
        """Model cells a simulation cell, along each axis."""
        return max(1, round(self.grid_m / self.survey.dx_m))

    @property
    def cells_in_wavelength(self) -> float:
        """Cells in the shortest wavelength: the lowest velocity at the highest frequency."""
        return shortest_wavelength_m(self.survey) / self.grid_m

    @property
    def shape(self) -> tuple[int, int]:
        """(Z, X) of the simulated grid."""
        z, x = self.survey.model_shape_zx
        return math.ceil(z / self.factor), math.ceil(x / self.factor)

    @property
    def num_samples(self) -> int:
        """Samples simulated: the survey's record length at `dt_s`, its last sample included."""
        return round((self.survey.num_samples - 1) * self.survey.dt_s / self.dt_s) + 1

    def cells(self, xz_m: np.ndarray) -> np.ndarray:
        """Return positions [.., 2] (x, z in metres) as (z, x) in cells of the padded simulation grid.

        A coarse cell covers `factor` fine ones, so its centre lies (factor - 1) / 2 fine cells further in.
        """
        size = np.array([self.survey.dx_m, self.survey.dz_m])
        index = (np.asarray(xz_m) / size - (self.factor - 1) / 2) / self.factor
        index = index + np.array([self.margin, self.top_margin])
        return np.where(np.abs(index - np.rint(index)) < 1e-6, np.rint(index), index)[..., ::-1].copy()

    @property
    def margin(self) -> int:
        """Replicated cells around the model; none where every point lies on a cell of it."""
        survey = self.survey
        points = np.concatenate([survey.sources, survey.receivers.reshape(-1, 2)])
        points = points[np.isfinite(points).all(1)]
        index = (points / [survey.dx_m, survey.dz_m] - (self.factor - 1) / 2) / self.factor
        on_grid = np.abs(index - np.rint(index)).max() < 1e-6
        inside = (index >= 0).all() and (index <= np.array(self.shape[::-1]) - 1).all()
        return 0 if on_grid and inside else MARGIN

    @property
    def top_margin(self) -> int:
        """Replicated cells above the model: none below a free surface, which must stay where it is."""
        return 0 if self.survey.boundary == "free_surface" else self.margin


def default_simulation(survey: Survey, grid_m: float = 0.0, *, on_gpu: bool = False) -> Simulation:
    """Return how to simulate a survey: its own cells, except that 1 m cells become 5 m on a CPU.

    Warns when the grid has fewer than three cells in the shortest wavelength.

    Raises:
        UserError: the grid is no whole multiple of the survey's cells.
    """
    if not grid_m:
        grid_m = survey.dx_m if survey.dx_m >= 2.5 or on_gpu else round(5 / survey.dx_m) * survey.dx_m
    if abs(grid_m / survey.dx_m - max(1, round(grid_m / survey.dx_m))) > 1e-6:
        raise UserError(
            f"--grid_m {grid_m:g}: expected a whole multiple of the {survey.dx_m:g} m cells of the section"
        )
    found = Simulation(survey, grid_m, max(survey.dt_s, 1e-3))
    if found.cells_in_wavelength < CELLS_PER_WAVELENGTH:
        get_logger().warning(
            f"grid {grid_m:g} m: {found.cells_in_wavelength:.1f} cells in the shortest wavelength "
            f"({shortest_wavelength_m(survey):.3g} m), expected {CELLS_PER_WAVELENGTH:g} or more; "
            f"{_finer(found)}"
        )
    return found


def shortest_wavelength_m(survey: Survey) -> float:
    """Return the wavelength of the lowest velocity at the highest frequency of the wavelet, m."""
    return survey.v_bounds_km_s[0] * 1000 / (BANDWIDTH * survey.wavelet.peak_hz)


def require_resolved(simulation: Simulation) -> None:
    """Check that the grid has a cell or more in the shortest wavelength: below that there are no waves.

    Raises:
        UserError: it has less; the message says which wavelet or cell would do.
    """
    if simulation.cells_in_wavelength < FEWEST_CELLS:
        raise UserError(
            f"peak frequency {simulation.survey.wavelet.peak_hz:g} Hz on cells of {simulation.grid_m:g} m: "
            f"{simulation.cells_in_wavelength:.2g} cells in the shortest wavelength, expected "
            f"{CELLS_PER_WAVELENGTH:g} or more, at least {FEWEST_CELLS:g}; {_finer(simulation)}"
        )


def _finer(simulation: Simulation) -> str:
    """Return the advice that brings enough cells into the shortest wavelength."""
    survey = simulation.survey
    highest = survey.wavelet.peak_hz * simulation.cells_in_wavelength / CELLS_PER_WAVELENGTH
    lower = f"use a wavelet of at most {highest:.3g} Hz (--peak_hz)"
    return f"lower --grid_m, or {lower}" if simulation.factor > 1 else lower


def coarsen(vp: torch.Tensor, factor: int) -> torch.Tensor:
    """Average slowness over cells of factor x factor, [.., Z, X] -> [.., ceil(Z / f), ceil(X / f)].

    Slowness, because travel times add. Edges are replicated to whole cells.
    """
    if factor == 1:
        return vp
    z, x = vp.shape[-2:]
    flat = vp.reshape(-1, 1, z, x)
    padded = functional.pad(flat, (0, -x % factor, 0, -z % factor), mode="replicate")
    coarse = 1 / functional.avg_pool2d(1 / padded, factor)
    return coarse.reshape(*vp.shape[:-2], *coarse.shape[-2:])


def simulate(
    vp: torch.Tensor, simulation: Simulation, *, shots: tuple[int, ...] = (), gradient_interval: int = 1
) -> torch.Tensor:
    """Return gathers [B, S, T, R] at the simulation's interval for velocities `vp` [B, Z, X] in km/s.

    Args:
        vp: on the survey's model grid, or already on the simulation's.
        simulation: grid and survey.
        shots: indices of the shots wanted; none = all.
        gradient_interval: time steps between the samples kept for the gradient.

    Raises:
        UserError: deepwave is not installed, or the grid has no cell a wavelength.
    """
    require_resolved(simulation)
    try:
        import deepwave
    except ImportError as error:
        raise missing_library("deepwave", "simulating gathers") from error
    survey, wavelet = simulation.survey, simulation.survey.wavelet
    chosen = list(shots) or list(range(survey.num_shots))
    if tuple(vp.shape[-2:]) != simulation.shape:
        vp = coarsen(vp, simulation.factor)
    m, top = simulation.margin, simulation.top_margin
    v = functional.pad(vp[:, None] * 1000, (m, m, top, m), mode="replicate")[:, 0] if m else vp * 1000
    batch, count = len(vp), simulation.num_samples
    steps = count + (-count) % gradient_interval
    amplitude = _amplitude(wavelet, simulation, steps).to(v)
    sources = torch.from_numpy(simulation.cells(survey.sources[chosen]))[:, None].to(v.device)
    receivers, live = _receivers(simulation, chosen)
    on_grid = bool((sources == sources.round()).all() and (receivers == receivers.round()).all())
    kind = torch.long if on_grid else torch.float32
    # the place of off-grid windows changed between versions of the library; ours are its newest
    warnings.filterwarnings("ignore", category=deepwave.MigrationWarning)
    out = deepwave.scalar(
        v.repeat_interleave(len(chosen), 0),
        simulation.grid_m,
        simulation.dt_s,
        source_amplitudes=amplitude.expand(batch * len(chosen), 1, steps),
        source_locations=sources.to(kind).repeat(batch, 1, 1),
        receiver_locations=receivers.to(v.device, kind).repeat(batch, 1, 1),
        receiver_mask=live.to(v.device).repeat(batch, 1),
        accuracy=ACCURACY,
        **_boundary(survey),
        pml_freq=wavelet.peak_hz,
        # a fixed largest velocity keeps the number of internal steps the same for every model
        max_vel=survey.v_bounds_km_s[1] * 1000,
        model_gradient_sampling_interval=gradient_interval,
    )[-1]
    traces = out.reshape(batch, len(chosen), -1, steps)[..., :count].transpose(2, 3)
    return delayed(traces, wavelet.delay_samples * survey.dt_s / simulation.dt_s)


def _boundary(survey: Survey) -> dict[str, Any]:
    """Return what absorbs: all sides, or all but the top, whose exact image keeps the pressure at zero."""
    if survey.boundary == "absorbing":
        return {"pml_width": PML_WIDTH}
    return {"pml_width": [0, PML_WIDTH, PML_WIDTH, PML_WIDTH], "boundary": ["free", "pml", "pml", "pml"]}


def delayed(traces: torch.Tensor, samples: float) -> torch.Tensor:
    """Shift traces [.., T, R] later by whole samples (fractions are dropped), zeros at the start."""
    shift = int(samples)
    if not shift:
        return traces
    return functional.pad(traces, (0, 0, shift, 0))[..., : traces.shape[-2], :]


def to_survey_rate(traces: np.ndarray, simulation: Simulation) -> np.ndarray:
    """Interpolate simulated traces [.., T, R] to the survey's own interval and length, band-limited."""
    factor = round(simulation.dt_s / simulation.survey.dt_s)
    if factor > 1:
        traces = signal.resample_poly(traces, factor, 1, axis=-2).astype(np.float32)
    return traces[..., : simulation.survey.num_samples, :]


@functools.lru_cache(maxsize=8)
def _amplitude(wavelet: Wavelet, simulation: Simulation, steps: int) -> torch.Tensor:
    """Return the source time function; a source of one cell is divided by the cell's area in model cells."""
    area = simulation.factor**2
    shape = ricker(wavelet.peak_hz, steps, simulation.dt_s, wavelet.peak_s)
    return wavelet.scale / area * shape


def _receivers(simulation: Simulation, shots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (places [S, R, 2] in cells, live [S, R]); absent places are put aside and masked."""
    places: Any = simulation.survey.receivers[shots]
    live = np.isfinite(places).all(-1)
    cells = simulation.cells(np.where(live[..., None], places, 0.0))
    return torch.from_numpy(cells), torch.from_numpy(live)
