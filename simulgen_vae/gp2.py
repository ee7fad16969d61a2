"""gp2: one Gaussian process with a long and a short scale for all whole-trajectory POD modes at once.

Letters: n rows (mirror images included), m modes, r_s spatial modes, T frames, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from simulgen_vae.features import InputFeatures, informative_features
from simulgen_vae.gp import GaussianProcess, fit_gp2
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet
from simulgen_vae.reduced import fit_trajectory_pod

NEGLIGIBLE = 1e-6  # modes below this share of the largest scale carry rounding only


class Gp2(Predictor):
    """c = cbar + sum_j y_j(x) W_j, y a Gaussian process with one covariance for all j."""

    name = "gp2"
    pod_mean: torch.Tensor
    modes: torch.Tensor
    spread: torch.Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        shape = tuple(config["shape"])
        self.features = InputFeatures(**config["features"])
        self.process = GaussianProcess(**config["process"])
        self.register_buffer("pod_mean", torch.zeros(shape))
        self.register_buffer("modes", torch.zeros(config["process"]["num_outputs"], *shape))
        self.register_buffer("spread", torch.zeros(shape))

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        return self._field(self.process(self.features(inputs)))

    def _field(self, scores: torch.Tensor) -> torch.Tensor:
        """Return cbar + scores W, [.., r_s, T], of scores [.., m]."""
        flat = scores.float() @ self.modes.flatten(1)
        return self.pod_mean + flat.unflatten(-1, self.pod_mean.shape)

    def std(self, inputs: Inputs) -> torch.Tensor:
        """Return the standard deviation of each coefficient, [B, r_s, T]."""
        variance = self.process.variance(self.features(inputs)).float()
        return torch.sqrt(variance)[:, None, None] * self.spread

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, B, r_s, T] whose coefficients vary together as the training rows' do."""
        return self._field(self.process.draws(self.features(inputs), num, seed))

    def leave_one_out(self, data: TrainingSet) -> torch.Tensor:
        """Return the prediction [n, r_s, T] of each fitted row, from all but that row and its mirror image.

        The POD, the centre and the covariance's parameters stay those of all rows.
        """
        groups = torch.arange(len(data)).repeat(1 if data.symmetry is None else 2)
        if len(groups) != len(self.process.x):
            raise ValueError(f"{len(self.process.x)} rows are conditioned on, {len(groups)} were given")
        return self._field(self.process.leave_out(groups)[: len(data)])

    def left_out_deviations(self, group: torch.Tensor, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, r_s, T] around the prediction of a row without its group, which it leads."""
        variance = self.process.left_out(group)[1][:1]
        return (self._field(self.process.deviations(variance, num, seed)) - self.pod_mean)[:, 0]


def fit_predictor(data: TrainingSet) -> Gp2:
    """Fit gp2 to the rows and their mirror images.

    The Gram matrix of the POD scores is that of the coefficients, so the choice of parameters sees all modes.
    """
    both, groups = data.augmented()
    features = informative_features(both, groups)
    pod = fit_trajectory_pod(both.c.numpy(), len(both) - 1)
    kept = max(1, int((pod.scales > NEGLIGIBLE * pod.scales[0]).sum()))
    shape = both.c.shape[1:]
    modes = pod.modes[:kept]
    scores = (both.c.flatten(1) - pod.mean).double() @ modes.double().T
    process = fit_gp2(features(both.inputs()), scores, groups=groups, seed=data.seed)
    config = {
        "kind": "gp2",
        "shape": list(shape),
        "features": features.config,
        "process": process.config,
    }
    predictor = Gp2(config)
    predictor.features.load_state_dict(features.state_dict())
    predictor.process.load_state_dict(process.state_dict())
    predictor.pod_mean.copy_(pod.mean.view(shape))
    predictor.modes.copy_(modes.view(kept, *shape))
    predictor.spread.copy_(spread_of(process, predictor.modes))
    return predictor.eval()


def spread_of(process: GaussianProcess, modes: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation [r_s, T] of each coefficient at unit predictive variance."""
    covariance = (process.root.T @ process.root).float()
    flat = modes.flatten(1)
    return (flat * (covariance @ flat)).sum(0).clamp_min(0).sqrt().reshape(modes.shape[1:])
