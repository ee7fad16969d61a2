"""The four-part loss: section, edges, wave equation, error scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from velocity_inversion import losses
from velocity_inversion.config import TrainConfig
from velocity_inversion.geometry import Survey
from velocity_inversion.preprocess import decimate_tensor, net_interval
from velocity_inversion.simulate import default_simulation, simulate


class VelocityInversionLoss(nn.Module):
    """L = w_mape MAPE + w_l2 L2 + w_grad grad + w_physics physics + w_scale scale.

    Args:
        config: the weights.
        survey: geometry of the wave equation term; without one the term has bounds only.
    """

    def __init__(self, config: TrainConfig, survey: Survey | None = None) -> None:
        super().__init__()
        self.config = config
        self.simulation = None
        if survey is not None:
            self.simulation = default_simulation(survey, config.physics_grid_m)
            self.factor = net_interval(survey.dt_s, config.net_dt_s, survey.wavelet.peak_hz)[0]
            self.factor = max(1, round(self.factor * survey.dt_s / self.simulation.dt_s))

    def forward(
        self, prediction: Mapping[str, torch.Tensor], batch: Mapping[str, Any], *, physics: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return the parts and "total".

        Args:
            prediction: "vp" and "log_scale", [B, 1, Z, X].
            batch: "vp" [B, 1, Z, X] and, for the wave equation, "clean" gathers [B, S, T, R], "flipped" [B].
            physics: whether to simulate some samples in this step.
        """
        c = self.config
        v, t = prediction["vp"].float(), batch["vp"].float()
        weight = losses.depth_weights(t.shape[-2], c.depth_weight, t) if c.depth_weight else 1.0
        parts = {
            "mape": losses.mape_loss(v, t, weight),
            "l2": losses.l2_loss(v, t, weight),
            "grad": losses.gradient_loss(v, t),
            "physics": losses.bounds_loss(v, c.v_min, c.v_max),
            "scale": losses.scale_loss(prediction["log_scale"].float(), v, t),
        }
        if physics and self.simulation is not None:
            parts["physics"] = parts["physics"] + self.waveform(v, batch)
        weights = {name: getattr(c, f"w_{name}") for name in parts}
        parts["total"] = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return parts

    def waveform(self, v: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the misfit between simulated and recorded gathers of some samples and shots.

        A flipped sample is turned back, so that the survey's own geometry holds.
        """
        assert self.simulation is not None
        count = min(self.config.physics_samples, len(v))
        flipped = batch["flipped"][:count, None, None]
        sections = torch.where(flipped, v[:count, 0].flip(-1), v[:count, 0])
        clean = batch["clean"][:count]
        # shots in turn by what the batch holds, so that no random state is touched
        first = int(batch["position"][0]) % clean.shape[1]
        wanted = min(self.config.physics_shots, clean.shape[1])
        shots = tuple(sorted((first + k * clean.shape[1] // wanted) % clean.shape[1] for k in range(wanted)))
        with torch.autocast(v.device.type, enabled=False):
            traces = simulate(sections.float(), self.simulation, shots=shots)
            found = decimate_tensor(traces, self.factor, clean.shape[2])
        return losses.waveform_loss(found, clean[:, list(shots)])
