"""Predictions of an ensemble for samples in memory: members streamed, flip and noise averaged, calibrated.

Letters: M members, N samples, Z depth, X horizontal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.utils.data import Dataset

from common import device as devices
from common.device import Precision
from common.log import get_logger
from common.noise import gaussian
from velocity_inversion.augment import flip
from velocity_inversion.dataset import collate
from velocity_inversion.ensemble import Calibration, Ensemble, combine

FEW = 20  # fewer calibration samples than this are worth a warning
COVERAGE = 0.9


@dataclass(frozen=True)
class Tta:
    """Test-time augmentation: mean over the flipped sample, and over noisy copies of the gathers."""

    flips: bool = False
    noise: int = 0
    noise_level: float = 0.01
    seed: int = 0

    @property
    def mode(self) -> str:
        """The name under which its calibration is stored."""
        return "tta" if self.flips or self.noise else "plain"


@dataclass(frozen=True)
class MemberPredictions:
    """velocities [M, N, Z, X] and Laplace scales [M, N, Z, X], km/s, on the CPU."""

    velocities: torch.Tensor
    scales: torch.Tensor

    def combined(self, weights: torch.Tensor, how: str = "weighted") -> tuple[torch.Tensor, torch.Tensor]:
        """Return (v, sigma), each [N, Z, X]."""
        return combine(self.velocities, self.scales, weights, how)


@torch.no_grad()
def predict_members(
    ensemble: Ensemble,
    samples: Dataset[Any] | Sequence[Mapping[str, Any]],
    device: torch.device,
    *,
    batch_size: int = 8,
    tta: Tta = Tta(),
    precision: Precision | None = None,
) -> MemberPredictions:
    """Predict all samples with every member, one member in memory at a time."""
    count = len(samples)  # type: ignore[arg-type]
    velocities, scales = [], []
    for member in ensemble.members(device):
        found_v, found_b = [], []
        for first in range(0, count, batch_size):
            chosen: list[Any] = [samples[i] for i in range(first, min(first + batch_size, count))]
            batch = collate(chosen)
            v, b = predict_batch(member, batch, ensemble.survey.x_max_m, tta, precision)
            found_v.append(v)
            found_b.append(b)
        velocities.append(torch.cat(found_v))
        scales.append(torch.cat(found_b))
    return MemberPredictions(torch.stack(velocities), torch.stack(scales))


def predict_batch(
    member: nn.Module,
    batch: Mapping[str, Any],
    x_max_m: float,
    tta: Tta = Tta(),
    precision: Precision | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (velocity, Laplace scale), each [B, Z, X] on the CPU, averaged over the augmented copies.

    With flips v = (f(d) + P f(P d)) / 2, P the exact flip, so f(P d) = P f(d) to rounding.
    """
    device = next(member.parameters()).device
    velocities, scales = [], []
    for copy, turned in _copies(batch, x_max_m, tta):
        moved = devices.move(copy, device)
        if precision is None:
            found = member(moved)
        else:
            with precision.autocast():
                found = member(moved)
        v, b = found["vp"].float().cpu()[:, 0], found["log_scale"].float().exp().cpu()[:, 0]
        velocities.append(v.flip(-1) if turned else v)
        scales.append(b.flip(-1) if turned else b)
    return torch.stack(velocities).mean(0), torch.stack(scales).mean(0)


def _copies(batch: Mapping[str, Any], x_max_m: float, tta: Tta) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Yield (batch, whether it is flipped): the batch itself, its flip, noisy copies of both."""
    for number in range(tta.noise + 1):
        copy = dict(batch)
        if number:
            copy["gathers"] = torch.stack(
                [
                    gathers
                    + tta.noise_level
                    * gathers.square().mean().sqrt()
                    * gaussian(gathers.shape, tta.seed, f"tta noise {name}", number)
                    for gathers, name in zip(batch["gathers"], batch["id"], strict=True)
                ]
            )
        yield copy, False
        if tta.flips:
            yield flip({k: v for k, v in copy.items() if k != "vp"}, x_max_m), True


def smooth(velocity: np.ndarray, sigma_cells: float, bounds: tuple[float, float]) -> np.ndarray:
    """Return [.., Z, X] smoothed by a Gaussian of `sigma_cells`, clipped to the bounds: post-processing."""
    axes = (0,) * (velocity.ndim - 2) + (sigma_cells, sigma_cells)
    return np.clip(ndimage.gaussian_filter(velocity, axes, mode="nearest"), *bounds)


def conformal_factor(errors: torch.Tensor, sigma: torch.Tensor, coverage: float) -> float:
    """Return the smallest q with n/(n+1) R(q) + 1/(n+1) <= 1 - coverage, R(q) the share outside q sigma.

    Conformal risk control (Angelopoulos et al. 2024) with the risk of a sample = its fraction of cells with
    |error| > q sigma. Where n is too small for the bound, the q that covers every cell.

    Args:
        errors: [N, Z, X], |v - t|.
        sigma: [N, Z, X].
        coverage: wanted, 0..1.
    """
    ratio = (errors / sigma.clamp_min(1e-9)).flatten(1)
    n = len(ratio)
    allowed = ((1 - coverage) * (n + 1) - 1) / n
    if allowed < 0:
        return float(ratio.max())
    # all samples have as many cells, so the mean risk is the share of all cells above q
    values = ratio.flatten().sort().values
    outside = int(np.floor(allowed * len(values) + 1e-9))
    return float(values[max(0, len(values) - 1 - outside)])


def calibrate(
    ensemble: Ensemble, select: Dataset[Any], held_back: Dataset[Any], device: torch.device
) -> Calibration:
    """Fit half-width factors on the half of the validation data that chose nothing; judge smoothing."""
    count = len(held_back)  # type: ignore[arg-type]
    if count < FEW:
        get_logger().warning(f"{count} samples to calibrate the uncertainty on, expected {FEW} or more")
    truth = torch.stack([held_back[i]["vp"][0] for i in range(count)])
    factors = {}
    for tta in (Tta(), Tta(flips=True)):
        v, sigma = predict_members(ensemble, held_back, device, tta=tta).combined(ensemble.weights)
        factors[tta.mode] = conformal_factor((v - truth).abs(), sigma, COVERAGE)
    chosen = torch.stack([select[i]["vp"][0] for i in range(len(select))])  # type: ignore[arg-type]
    v, _ = predict_members(ensemble, select, device).combined(ensemble.weights)
    smoothed = torch.from_numpy(smooth(v.numpy(), 0.5, ensemble.bounds))
    gain = ((v - chosen).abs() / chosen).mean() - ((smoothed - chosen).abs() / chosen).mean()
    return Calibration(factors, COVERAGE, count, float(gain))
