"""What the diffusion stage adds on held-out samples, without and with one well taken from the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from common.log import get_logger
from common.report import Row
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import ShotDataset
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.refiner import Known, open_refiner

REACH = 5  # columns on either side of the well
SAMPLES, STEPS = 4, 8


def judge_diffusion(
    ensemble: Ensemble,
    test: ShotDataset,
    first: np.ndarray,
    sigma: np.ndarray,
    count: int,
    device: torch.device,
    seed: int = 0,
) -> dict[str, float]:
    """Return means over the first `count` samples, in m/s.

    mae_first and mae_diffusion: of the ensemble, of the posterior mean; near_without and near_with: of the
    posterior mean within five columns of a well in the middle, the well's own column left out, without and
    with that well; spread: mean deviation of the posterior samples.

    Args:
        ensemble: the first stage; its diffusion.pth lies beside it.
        test: held-out samples.
        first: [N, Z, X], the ensemble's sections, km/s.
        sigma: [N, Z, X], its deviations.
        count: samples to judge.
        device: where to sample.
        seed: of the posterior samples.
    """
    refiner = open_refiner(InferConfig(model_path=str(ensemble.path), quick_test=True), ensemble, device)
    rows = []
    for i in range(min(count, len(test))):
        sample = test[i]
        truth = sample["vp"][0].numpy()
        column = truth.shape[1] // 2
        mask = np.zeros_like(truth)
        mask[:, column] = 1
        known = replace(Known(), wells=truth * mask, mask=mask)
        parts = sample, first[i], sigma[i], SAMPLES, STEPS, seed
        without, using = refiner.sample(*parts), refiner.sample(*parts, known)
        near = [c for c in range(column - REACH, column + REACH + 1) if c != column]
        errors = [np.abs(found.mean(0) - truth) for found in (without, using)]
        rows.append(
            {
                "mae_first": float(np.abs(first[i] - truth).mean()),
                "mae_diffusion": float(errors[0].mean()),
                "near_without": float(errors[0][:, near].mean()),
                "near_with": float(errors[1][:, near].mean()),
                "spread": float(without.std(0).mean()),
            }
        )
    means = {name: 1000 * float(np.mean([row[name] for row in rows])) for name in rows[0]}
    get_logger().info(
        f"diffusion stage, {len(rows)} samples, m/s: {', '.join(f'{k} {v:.0f}' for k, v in means.items())}"
    )
    return means


def diffusion_rows(first: Row, means: dict[str, float], count: int) -> list[Row]:
    """Return the rows of `judge_diffusion`'s means over `count` samples."""
    told = f"{count} sample{'s' if count > 1 else ''}"
    first = replace(first, seconds=None)
    return [
        replace(
            first,
            measure=f"velocity MAE of the posterior's mean, {told}",
            ours=means["mae_diffusion"],
            baselines={"first stage": means["mae_first"]},
        ),
        replace(
            first,
            measure=f"velocity MAE within {REACH} columns of a well, {told}",
            ours=means["near_with"],
            baselines={"without the well": means["near_without"]},
        ),
    ]
