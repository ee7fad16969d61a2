"""Whether a survey's geometry and wavelet explain recorded gathers: simulation through the truth, compared.

Letters: S shots, T time samples, R receivers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from common.errors import DataError
from common.log import get_logger
from velocity_inversion.geometry import Survey
from velocity_inversion.refine import observed_traces
from velocity_inversion.simulate import default_simulation, simulate
from velocity_inversion.sources import Source


@dataclass(frozen=True)
class PhysicsCheck:
    """How simulated gathers compare with recorded ones.

    Attributes:
        correlation: of both as they are.
        best_correlation: at the best lag.
        sign: 1 or -1, which polarity of the simulation fits.
        scale: factor on the simulation that fits best, positive.
        lag_s: by how much the recording is later than the simulation.
        relative_l2: ||F - d|| / ||d|| as they are.
        fitted_l2: the same after sign, scale and lag.
    """

    correlation: float
    best_correlation: float
    sign: int
    scale: float
    lag_s: float
    relative_l2: float
    fitted_l2: float


def compare(simulated: np.ndarray, recorded: np.ndarray, dt_s: float) -> PhysicsCheck:
    """Compare gathers [S, T, R] of one interval."""
    s, d = simulated.astype(np.float64), recorded.astype(np.float64)
    length = s.shape[1]
    cross = np.fft.irfft(
        (np.fft.rfft(d, 2 * length, axis=1) * np.fft.rfft(s, 2 * length, axis=1).conj()).sum((0, 2)),
        2 * length,
    )
    norm = float(np.linalg.norm(s) * np.linalg.norm(d)) or 1.0
    best = int(np.abs(cross).argmax())
    lag = best if best < length else best - 2 * length
    sign = 1 if cross[best] >= 0 else -1
    moved = np.zeros_like(s)
    moved[:, max(lag, 0) : length + min(lag, 0)] = s[:, max(-lag, 0) : length - max(lag, 0)]
    scale = abs(float((moved * d).sum()) / (float((moved**2).sum()) or 1.0))
    size = float(np.linalg.norm(d)) or 1.0
    return PhysicsCheck(
        correlation=float((s * d).sum()) / norm,
        best_correlation=float(abs(cross[best])) / norm,
        sign=sign,
        scale=scale,
        lag_s=lag * dt_s,
        relative_l2=float(np.linalg.norm(s - d)) / size,
        fitted_l2=float(np.linalg.norm(sign * scale * moved - d)) / size,
    )


def check_physics(source: Source, count: int) -> list[PhysicsCheck]:
    """Simulate the first samples through their truth, compare with what was recorded, and print it.

    Raises:
        DataError: the data have no velocities.
    """
    if not source.has_truth:
        raise DataError("--check_physics: the data have no velocities; it needs samples with truth")
    simulation = default_simulation(source.survey)
    checks = []
    for row in range(min(count, len(source))):
        recorded = observed_traces(source.read_gathers(row)[0], simulation).numpy()
        with torch.no_grad():
            simulated = simulate(torch.from_numpy(source.velocity(row))[None], simulation)[0].numpy()
        checks.append(compare(simulated, recorded, simulation.dt_s))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in asdict(checks[-1]).items())
        get_logger().info(f"{source.ids[row]}: {shown}")
    return checks


def corrected(survey: Survey, checks: list[PhysicsCheck]) -> Survey:
    """Return the survey with the sign, scale and delay of the wavelet that fit the samples best (medians)."""
    sign = 1 if sum(check.sign for check in checks) >= 0 else -1
    scale = float(np.median([check.scale for check in checks]))
    lag = float(np.median([check.lag_s for check in checks]))
    wavelet = survey.wavelet
    return replace(
        survey,
        wavelet=replace(wavelet, scale=sign * scale * wavelet.scale, peak_s=wavelet.peak_s + lag),
    )
