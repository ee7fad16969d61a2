"""What follows the ensemble: posterior samples, refinement, smoothing, misfit and figures of a prediction.

Letters: S shots, T time samples, R receivers, K posterior samples, Z depth, X horizontal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.noise import numpy_stream
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import Preprocessing, ShotDataset
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.misfit import misfit_per_shot, relative_misfit
from velocity_inversion.predictions import smooth
from velocity_inversion.refine import (
    RefineSettings,
    observed_traces,
    refine,
)
from velocity_inversion.refiner import Known, Refiner
from velocity_inversion.sections import draw_gathers, draw_misfit, draw_sections
from velocity_inversion.simulate import Simulation, default_simulation, simulate

AUTO_MISFITS = 50


@dataclass
class Prediction:
    """What is known about one sample after inference.

    Attributes:
        id: its name.
        vp: [Z, X], km/s.
        std: [Z, X], km/s.
        half_width: [Z, X], km/s, for the wanted coverage.
        misfit: ||F(v) - d|| / ||d||, NaN where it was not simulated.
        shot_misfits: the same, shot by shot.
        before: misfit before refinement, NaN without.
        seconds: wall time.
        label: what the uncertainty is worth: "calibrated" or "uncalibrated".
        history: misfit of every refinement iterate.
        posterior: [K, Z, X], km/s, sections drawn by the diffusion stage.
    """

    id: str
    vp: np.ndarray
    std: np.ndarray
    half_width: np.ndarray
    misfit: float = math.nan
    shot_misfits: tuple[float, ...] = ()
    before: float = math.nan
    seconds: float = 0.0
    label: str = "calibrated"
    history: tuple[float, ...] = ()
    posterior: np.ndarray | None = None


@dataclass(frozen=True)
class Finisher:
    """Everything that a prediction may meet after the ensemble.

    Attributes:
        config: what is wanted.
        ensemble: that predicted.
        dataset: the samples.
        simulation: grid of refinement and misfit.
        device: where to run.
        seed: of posterior samples.
        refiner: the diffusion stage, if wanted.
        known: wells and background for it.
    """

    config: InferConfig
    ensemble: Ensemble
    dataset: ShotDataset
    simulation: Simulation
    device: torch.device
    seed: int = 0
    refiner: Refiner | None = None
    known: Known = Known()

    def finish(self, one: Prediction, row: int, *, simulated: bool) -> None:
        """Sample, refine, post-process, clip and simulate the prediction of sample `row`, in place."""
        low, high = self.ensemble.bounds
        if self.refiner is not None:
            self._draw_posterior(one, self.refiner, row)
        observed = None
        if self.config.refine or simulated:
            gathers, _ = self.dataset.source.read_gathers(self.dataset.rows[row])
            observed = observed_traces(gathers, self.simulation).to(self.device)
        if self.config.refine and observed is not None:
            settings = RefineSettings(mode=self.config.refine_mode, iterations=self.config.refine)
            network = None
            if settings.mode != "fwi":
                network = as_network(self.ensemble, self.dataset, row, self.simulation, self.device)
            start = torch.from_numpy(one.vp).to(self.device)
            done = refine(start, observed, self.simulation, settings, network)
            one.vp, one.before = done.vp.detach().cpu().numpy(), done.start_misfit
            one.label, one.history = "uncalibrated", tuple(done.history)
        if self.config.post_process:
            one.vp = smooth(one.vp, self.config.smooth_sigma, (low, high))
        one.vp = np.clip(one.vp, low, high)
        if simulated and observed is not None:
            with torch.no_grad():
                traces = simulate(torch.from_numpy(one.vp).to(self.device)[None], self.simulation)[0]
            one.misfit = relative_misfit(traces, observed)
            one.shot_misfits = tuple(misfit_per_shot(traces, observed))

    def _draw_posterior(self, one: Prediction, refiner: Refiner, row: int) -> None:
        """Replace section and deviation by mean and spread of the diffusion stage's samples."""
        c = self.config
        one.posterior = refiner.sample(
            self.dataset[row], one.vp, one.std, c.num_posterior, c.sampler_steps, self.seed, self.known
        )
        factor = float(one.half_width.mean() / max(one.std.mean(), 1e-9))
        one.vp, one.label = one.posterior.mean(0), "uncalibrated"
        one.std = one.posterior.std(0, ddof=1 if c.num_posterior > 1 else 0)
        one.half_width = one.std * factor


def as_network(
    ensemble: Ensemble, dataset: ShotDataset, row: int, simulation: Simulation, device: torch.device
) -> Any:
    """Return gathers [S, T, R] at the simulation's interval -> section [Z, X], for data-space steps."""
    survey = replace(simulation.survey, dt_s=simulation.dt_s, num_samples=simulation.num_samples)
    preprocessing: Preprocessing = ensemble.preprocessing
    sample = dataset[row]
    members = list(ensemble.members(device))

    @torch.no_grad()
    def network(gathers: torch.Tensor) -> torch.Tensor:
        decimated = preprocessing.apply(gathers.cpu().numpy(), survey)
        length = sample["gathers"].shape[-2]
        fitted = np.zeros(sample["gathers"].shape, dtype=np.float32)
        count = min(length, decimated.shape[-2])
        fitted[:, :count] = decimated[:, :count]
        copy = {**sample, "gathers": torch.from_numpy(fitted)}
        batch = {k: v[None].to(device) for k, v in copy.items() if isinstance(v, torch.Tensor)}
        sections = torch.stack([member(batch)["vp"][0, 0].float() for member in members])
        return torch.einsum("m,mzx->zx", ensemble.weights.to(device), sections)

    return network


def misfit_rows(config: InferConfig, count: int, seed: int) -> Sequence[int]:
    """Return the samples whose gathers are simulated."""
    if config.misfit == "none":
        return []
    if config.misfit == "all" or (config.misfit == "auto" and count <= AUTO_MISFITS):
        return range(count)
    wanted = AUTO_MISFITS if config.misfit == "auto" else int(config.misfit)
    order = numpy_stream(seed, "misfit samples").permutation(count)
    return sorted(int(i) for i in order[:wanted])


def draw_prediction(
    folder: Path,
    one: Prediction,
    truth: np.ndarray | None,
    dataset: ShotDataset,
    row: int,
    ensemble: Ensemble,
    config: InferConfig,
) -> None:
    """Draw section, one shot and the misfits of a refinement, whatever there is of them."""
    survey = dataset.source.survey
    draw_sections(folder / f"{one.id}_section.png", one.vp, truth, one.half_width, survey, ensemble.bounds)
    if math.isfinite(one.misfit):
        simulation = default_simulation(survey, config.grid_m)
        gathers, _ = dataset.source.read_gathers(dataset.rows[row])
        observed = observed_traces(gathers, simulation)
        shot = survey.num_shots // 2
        with torch.no_grad():
            traces = simulate(torch.from_numpy(one.vp)[None], simulation, shots=(shot,))[0, 0]
        draw_gathers(
            folder / f"{one.id}_shot.png", observed[shot].numpy(), traces.numpy(), simulation.dt_s, shot
        )
    if one.history:
        draw_misfit(folder / f"{one.id}_refine.png", one.history)
