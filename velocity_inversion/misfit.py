"""How far simulated gathers lie from recorded ones.

Letters: S shots, T time samples, R receivers, Z depth, X horizontal.
"""

from __future__ import annotations

import torch

MISFITS = ("l1", "l2", "envelope")


def relative_misfit(simulated: torch.Tensor, observed: torch.Tensor) -> float:
    """Return ||F(v) - d|| / ||d||."""
    return float((simulated - observed).norm() / observed.norm().clamp_min(1e-20))


def misfit_per_shot(simulated: torch.Tensor, observed: torch.Tensor) -> list[float]:
    """Return ||F(v)_s - d_s|| / ||d_s|| of each shot."""
    return [relative_misfit(s, o) for s, o in zip(simulated, observed, strict=True)]


def low_pass(traces: torch.Tensor, corner_hz: float, dt_s: float) -> torch.Tensor:
    """Keep what lies below `corner_hz` of [.., T, R] (zero phase, 8th-order roll-off); 0 keeps all."""
    if not corner_hz:
        return traces
    length = traces.shape[-2]
    frequency = torch.fft.rfftfreq(2 * length, dt_s, device=traces.device)
    gain = 1 / (1 + (frequency / corner_hz) ** 8)
    spectrum = torch.fft.rfft(traces, n=2 * length, dim=-2) * gain[:, None]
    return torch.fft.irfft(spectrum, n=2 * length, dim=-2)[..., :length, :]


def envelope(traces: torch.Tensor) -> torch.Tensor:
    """Return the envelope of [.., T, R]: the modulus of the analytic signal along time."""
    length = traces.shape[-2]
    spectrum = torch.fft.fft(traces, dim=-2)
    weight = torch.zeros(length, device=traces.device)
    weight[0] = 1
    weight[1 : (length + 1) // 2] = 2
    if length % 2 == 0:
        weight[length // 2] = 1
    analytic = torch.fft.ifft(spectrum * weight[:, None], dim=-2)
    return (analytic.real.square() + analytic.imag.square() + 1e-12).sqrt()


def band_misfit(
    simulated: torch.Tensor, observed: torch.Tensor, corner_hz: float, dt_s: float, kind: str = "l1"
) -> torch.Tensor:
    """Return the relative misfit below `corner_hz`: l1, squared l2, or squared l2 of the envelopes."""
    s, o = low_pass(simulated, corner_hz, dt_s), low_pass(observed, corner_hz, dt_s)
    if kind == "l1":
        return (s - o).abs().sum() / o.abs().sum()
    if kind == "envelope":
        s, o = envelope(s), envelope(o)
    return (s - o).square().sum() / o.square().sum()


def total_variation(v: torch.Tensor) -> torch.Tensor:
    """Return mean |D_z v| + mean |D_x v| of [Z, X]."""
    return v.diff(dim=0).abs().mean() + v.diff(dim=1).abs().mean()
