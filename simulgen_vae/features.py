"""Inputs as regressors see them: z-scored scalars, and the principal components of the picture.

Letters: n rows, B batch, P scalars, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from simulgen_vae.gp import MAX_EXACT_ROWS, fit_gp, thin
from simulgen_vae.predictor import PICTURE, Inputs, TrainingSet, pictures
from simulgen_vae.reduced import fit_trajectory_pod

NUM_PICTURE_MODES = 16
NUM_SCORES = 32  # POD scores that judge whether the picture helps
POOL = 4  # pictures enter the principal components at 64 x 64: they tell places, not textures
SIDE = PICTURE // POOL


class InputFeatures(nn.Module):
    """Map inputs to [B, F] of mean 0 and standard deviation 1 over the training rows, float64.

    Columns that never change in training become 0, whatever comes later.

    Args:
        num_params: P.
        num_modes: picture components; 0 = no picture.
    """

    mean: torch.Tensor
    inverse_std: torch.Tensor
    picture_mean: torch.Tensor
    picture_modes: torch.Tensor

    def __init__(self, num_params: int, num_modes: int = 0) -> None:
        super().__init__()
        self.num_params, self.num_modes = num_params, num_modes
        total = num_params + num_modes
        pixels = SIDE * SIDE if num_modes else 0
        self.register_buffer("mean", torch.zeros(total, dtype=torch.float64))
        self.register_buffer("inverse_std", torch.ones(total, dtype=torch.float64))
        self.register_buffer("picture_mean", torch.zeros(pixels, dtype=torch.float64))
        self.register_buffer("picture_modes", torch.zeros(num_modes, pixels, dtype=torch.float64))

    @property
    def config(self) -> dict[str, Any]:
        """What `InputFeatures(**config)` needs to hold the same state."""
        return {"num_params": self.num_params, "num_modes": self.num_modes}

    @property
    def width(self) -> int:
        """F, the number of features."""
        return self.num_params + self.num_modes

    def raw(self, inputs: Inputs) -> torch.Tensor:
        """Return the features before scaling, [B, F], float64."""
        parts = [inputs.params.double()]
        if self.num_modes:
            if inputs.image is None:
                raise ValueError("this predictor was fitted with pictures and was given none")
            parts.append((pooled(inputs.image) - self.picture_mean) @ self.picture_modes.T)
        return torch.cat(parts, 1)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the features [B, F], float64."""
        return (self.raw(inputs) - self.mean) * self.inverse_std


def pooled(image: torch.Tensor) -> torch.Tensor:
    """Return pictures [B, 1, 256, 256] averaged to [B, 64 * 64], float64."""
    return F.avg_pool2d(image, POOL).flatten(1).double()


def constant_columns(values: torch.Tensor) -> torch.Tensor:
    """Return which columns of values [n, F] never change beyond rounding, bool [F]."""
    spread = values.double().std(0, correction=0)
    return spread <= 1e-9 * values.double().abs().amax(0).clamp_min(1e-30)


def fit_features(data: TrainingSet, num_modes: int = NUM_PICTURE_MODES) -> InputFeatures:
    """Fit scalings and picture components to the rows of `data`."""
    if data.images is None or num_modes == 0:
        features, image = InputFeatures(data.params.shape[1]), None
    else:
        image = pictures(data.images)
        flat = pooled(image)
        centre = flat.mean(0)
        _, sizes, modes = torch.linalg.svd(flat - centre, full_matrices=False)
        kept = int((sizes[:num_modes] > 1e-8 * sizes[0].clamp_min(1e-300)).sum())
        features = InputFeatures(data.params.shape[1], kept)
        if kept:
            features.picture_mean.copy_(centre)
            features.picture_modes.copy_(modes[:kept])
    if features.width == 0:
        return features
    raw = features.raw(Inputs(data.params, image))
    std, constant = raw.std(0, correction=0), constant_columns(raw)
    features.mean.copy_(raw.mean(0))
    features.inverse_std.copy_(torch.where(constant, 0.0, 1.0 / std.clamp_min(1e-300)))
    return features


def informative_features(data: TrainingSet, groups: torch.Tensor) -> InputFeatures:
    """Return features of scalars alone, or with the picture's components: whichever leaves less error.

    A picture that repeats the scalars only adds inputs to tell apart, one that holds more is needed. The
    error is the leave-one-group-out error of a Gaussian process on the leading POD scores.

    Args:
        data: rows, mirror images included.
        groups: [n] rows that belong together.
    """
    if data.images is None or data.params.shape[1] == 0:
        return fit_features(data)
    pod = fit_trajectory_pod(data.c.numpy(), min(NUM_SCORES, len(data) - 1))
    scores = (pod.encode(data.c) * pod.scales).double()
    best, error = fit_features(data), float("inf")
    for features in (fit_features(data, 0), best):
        process = fit_gp(features(data.inputs()), scores, groups=groups, num_starts=1, seed=data.seed)
        kept = thin(groups, MAX_EXACT_ROWS, data.seed)
        found = float((process.leave_out(groups[kept]) - scores[kept]).square().mean())
        if found < error:
            best, error = features, found
    return best
