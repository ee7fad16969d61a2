"""Sign, size and delay of simulated traces: the analytic direct wave, and three traces kept from before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from velocity_inversion.geometry import Survey, openfwi_survey
from velocity_inversion.preprocess import decimate
from velocity_inversion.simulate import default_simulation, ricker, simulate

KEPT = Path(__file__).with_name("reference_traces.npy")  # [3, 250] float32, every fourth sample
FINE = 20  # steps of the analytic integral a sample


def analytic(survey: Survey, velocity_m_s: float, offset_m: float) -> np.ndarray:
    """Return the trace [T] of a point source of one cell in an endless homogeneous plane.

    u = -h^2 (f * G), G = 1 / (2 pi sqrt(t^2 - r^2/v^2)) for t > r/v: the 2-D Green's function of
    u_tt / v^2 = lap u + f in the library's sign, integrated exactly over each step.
    """
    wavelet, dt_s = survey.wavelet, survey.dt_s / FINE
    count = survey.num_samples * FINE
    source = wavelet.scale * ricker(wavelet.peak_hz, count, dt_s, wavelet.peak_s).numpy()
    arrival = offset_m / velocity_m_s
    edges = np.maximum((np.arange(count + 1) - 0.5) * dt_s / arrival, 1.0)
    green = np.diff(np.arccosh(edges)) / (2 * np.pi)
    field = -(survey.dx_m**2) * np.convolve(source, green)[:count:FINE]
    return np.concatenate([np.zeros(wavelet.delay_samples), field])[: survey.num_samples]


@pytest.mark.parametrize("offset_m", [100.0, 200.0])
@torch.no_grad()
def test_direct_wave_is_the_analytic_one(offset_m: float):
    """In a homogeneous plane the trace has the sign, size and delay of the formula, within 1.5 %."""
    source, receiver = (340.0, 300.0), (340.0 + offset_m, 300.0)
    survey = replace(openfwi_survey(1, 1), num_samples=300, source_xz=(source,), receiver_xz=((receiver,),))
    found = simulate(torch.full((1, 70, 70), 2.0), default_simulation(survey))[0, 0, :, 0].numpy()
    wanted = analytic(survey, 2000.0, offset_m)
    assert np.linalg.norm(found - wanted) < 0.015 * np.linalg.norm(wanted)
    late = np.roll(wanted, 1)
    assert np.linalg.norm(found - late) > 0.05 * np.linalg.norm(wanted)  # one sample would be seen


@pytest.mark.parametrize("shift_m", [0.0, 3.0])
@torch.no_grad()
def test_a_free_surface_has_its_image(shift_m: float):
    """Below a free surface the trace is the direct wave less that of the mirrored source, on cells or off."""
    source, receiver = (340.0 + shift_m, 60.0), (440.0 + 2 * shift_m, 90.0)
    survey = replace(openfwi_survey(1, 1), num_samples=300, source_xz=(source,), receiver_xz=((receiver,),))
    survey = replace(survey, boundary="free_surface")
    found = simulate(torch.full((1, 70, 70), 2.0), default_simulation(survey))[0, 0, :, 0].numpy()
    wide, surface = receiver[0] - source[0], -survey.dz_m
    up, down = receiver[1] - source[1], receiver[1] + source[1] - 2 * surface
    direct, image = (analytic(survey, 2000.0, float(np.hypot(wide, z))) for z in (up, down))
    assert np.linalg.norm(found - (direct - image)) < 0.02 * np.linalg.norm(direct - image)


@torch.no_grad()
def kept_traces() -> np.ndarray:
    """Return three traces [3, 250] of a fast layer under a slow one, in the acquisition of OpenFWI."""
    vp = torch.full((1, 70, 70), 2.0)
    vp[:, 30:] = 3.5
    survey = openfwi_survey()
    shot = replace(
        survey,
        source_xz=survey.source_xz[1:2],
        receiver_xz=(tuple(survey.receiver_xz[0][i] for i in (3, 30, 66)),),
    )
    traces = simulate(vp, default_simulation(shot))[0].numpy()
    return decimate(traces, 4, 250)[0].T


def test_traces_have_not_changed():
    """Three traces are those that were stored, within 1 %: sign, delay, reflection and absorption."""
    kept, found = np.load(KEPT, allow_pickle=False), kept_traces()
    assert kept.shape == found.shape
    for one, other in zip(kept, found, strict=True):
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(one)
