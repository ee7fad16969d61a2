"""Scores of networks on the validation rows, and the latents of all rows; the same on every rank.

C channels, T frames, K levels, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from common import device as devices
from common.metrics import relative_l2
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.field_data import FieldData
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.training_data import TrainingData

ACTIVE_VARIANCE = 0.01
BATCH = 16


def chunks(
    data: TrainingData, rows: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield row numbers and their coefficients [b, C, T] on `device`, some at a time."""
    for i in range(0, len(rows), BATCH):
        part = [int(row) for row in rows[i : i + BATCH]]
        yield part, data.fetch(part).to(device)


@torch.no_grad()
def reconstruction_errors(
    data: TrainingData, rows: Sequence[int], vae: HierarchicalVae, device: torch.device
) -> torch.Tensor:
    """Return the relative L2 error of each row's field at its posterior mean, [rows] float64."""
    found = [data.front_end.relative_l2(vae.reconstruct(c), c) for _, c in chunks(data, rows, device)]
    return torch.cat(found)


@torch.no_grad()
def field_errors(data: TrainingData, fields: FieldData, vae: HierarchicalVae) -> torch.Tensor:
    """Return the relative L2 error of each sample's true field at its posterior mean, [N] float64; CPU only.

    Unlike `reconstruction_errors` it counts what the basis leaves out, and so reads every trajectory.
    """
    basis, errors = data.front_end.basis, []
    for part, c in chunks(data, range(fields.num_samples), torch.device("cpu")):
        for row, found in zip(part, vae.reconstruct(c), strict=True):
            errors.append(relative_l2(basis.decode(found).numpy(), fields.trajectory(row)))
    return torch.tensor(errors, dtype=torch.float64)


@torch.no_grad()
def prediction_errors(
    data: TrainingData,
    rows: Sequence[int],
    vae: HierarchicalVae,
    conditioner: Conditioner,
    device: torch.device,
) -> torch.Tensor:
    """Return the relative L2 error of each row's field as predicted from its inputs, [rows] float64."""
    errors = []
    for part, c in chunks(data, rows, device):
        inputs = devices.move(data.inputs(part), device)
        z, flat = conditioner.latents(inputs.get("params"), inputs.get("image"))
        errors.append(data.front_end.relative_l2(vae.decode(z, vae.levels_of(flat)), c))
    return torch.cat(errors)


@torch.no_grad()
def posterior_means(
    data: TrainingData, rows: Sequence[int], vae: HierarchicalVae, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the posterior means z [rows, nz] and h [rows, K, nh], on the CPU."""
    parts = [[part.cpu() for part in vae.latents(c)] for _, c in chunks(data, rows, device)]
    return torch.cat([z for z, _ in parts]), torch.cat([h for _, h in parts])


def active_units(z: torch.Tensor, h: torch.Tensor) -> int:
    """Return how many latents have a posterior mean of variance above 0.01 (Burda et al. 2016)."""
    return int((torch.cat([z, h.flatten(1)], dim=1).var(dim=0) > ACTIVE_VARIANCE).sum())
