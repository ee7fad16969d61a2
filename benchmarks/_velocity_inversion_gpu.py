"""What velocity_inversion costs on a GPU: training, inference, and simulation on the section's own cells."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks._table import row
from benchmarks._velocity_inversion_memory import Table, batch_and_statistics, new_task
from common import device as devices
from common.device import resolve_precision
from velocity_inversion.config import TrainConfig
from velocity_inversion.geometry import Survey, challenge_survey, openfwi_survey
from velocity_inversion.simulate import default_simulation, simulate
from velocity_inversion.synthetic import make_section

BATCHES = (8, 64)
MODES = {"fp32": ("fp32", False), "bf16, compiled": ("bf16", True)}  # name -> precision, compiled
WARM_UP, REPEATS = 3, 10


def clock_s(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median seconds of the clock of one call, after calls that compile and choose kernels."""
    times = []
    for i in range(WARM_UP + repeats):
        devices.synchronize(device)
        began = time.perf_counter()
        function()
        devices.synchronize(device)
        if i >= WARM_UP:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def network_rows(
    device: torch.device, survey: Survey, config: TrainConfig, batches: Sequence[int], repeats: int
) -> Table:
    """Measure training and inference of one member in samples a second."""
    rows = []
    for count in batches:
        given, fitted = batch_and_statistics(survey, count)
        batch = devices.move(given, device)
        for mode, (precision_name, compiled) in MODES.items():
            precision = resolve_precision(precision_name, device)
            task = new_task(config, survey, fitted, precision, compiled=compiled)
            seconds = clock_s(lambda t=task, b=batch: t.step(b, 0), device, repeats)
            rows.append(row(f"training, batch {count}, {mode}", count / seconds, "samples/s"))
            member = devices.compile_if(compiled, task.member.eval())
            with torch.inference_mode(), precision.autocast():
                seconds = clock_s(lambda m=member, b=batch: m(b), device, repeats)
            rows.append(row(f"inference, batch {count}, {mode}", count / seconds, "samples/s"))
    return rows


def simulation_row(device: torch.device, survey: Survey, repeats: int) -> dict[str, Any]:
    """Measure the gathers of one section, simulated on its own cells."""
    z, x = survey.model_shape_zx
    vp = torch.from_numpy(make_section((z, x), "layered", 0, "bench", 0).vp)[None].to(device)
    simulation = default_simulation(survey, survey.dx_m)
    with torch.no_grad():
        seconds = clock_s(lambda: simulate(vp, simulation), device, repeats)
    return row(f"simulation of a {x} x {z} section on its own cells of {survey.dx_m:g} m", seconds, "s")


def gpu_rows(
    device: torch.device,
    survey: Survey | None = None,
    large: Survey | None = None,
    config: TrainConfig | None = None,
    batches: Sequence[int] = BATCHES,
    repeats: int = REPEATS,
) -> Table:
    """Return the lines of case gpu.

    Args:
        device: to measure.
        survey: of the networks; None = the OpenFWI acquisition.
        large: whose section is simulated; None = the challenge's.
        config: of the member; None = the default one, without waveform terms.
        batches: sizes, samples.
        repeats: measurements, their median counts.
    """
    config = config or TrainConfig(physics_every=0)
    rows = network_rows(device, survey or openfwi_survey(), config, batches, repeats)
    rows.append(simulation_row(device, large or challenge_survey(), min(3, repeats)))
    if devices.is_cuda(device):
        rows.append(row("peak memory on the device", devices.peak_memory_bytes(device) / 1e6, "MB"))
    return rows
