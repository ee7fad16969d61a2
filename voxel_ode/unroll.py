"""Several years in a row: the loss of a batch, and how many years each part of the training takes.

The prediction of a year is the input of the next, the target is always the truth of that year, so a network
that predicts changes learns truth minus its own drifted state (Sanchez-Gonzalez et al. 2020; Brandstetter,
Worrall and Welling 2022 for the pushforward variant).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from voxel_ode.fields import Fields
from voxel_ode.losses import grid_losses, scalar_loss, weighted_sum
from voxel_ode.model import VoxelAutoRegressor


def curriculum(max_steps: int, unroll_steps: int, unroll_start: float) -> list[tuple[int, int]]:
    """Return [(years K, optimizer steps)]: K = 1 until `unroll_start`, then 2, 4, .. in equal parts.

    Args:
        max_steps: optimizer steps of the training.
        unroll_steps: largest K.
        unroll_start: fraction of the training with K = 1.
    """
    if unroll_steps == 1:
        return [(1, max_steps)]
    first = round(unroll_start * max_steps)
    doubled = [2**i for i in range(1, unroll_steps.bit_length()) if 2**i < unroll_steps]
    stages = [*doubled, unroll_steps]
    ends = [first + round((max_steps - first) * (i + 1) / len(stages)) for i in range(len(stages))]
    lengths = [end - start for start, end in zip([first, *ends], ends, strict=False)]
    return [(k, steps) for k, steps in [(1, first), *zip(stages, lengths, strict=True)] if steps > 0]


class UnrolledLoss(nn.Module):
    """The loss of a batch over as many years as it holds, in one forward (as DistributedDataParallel wants).

    Args:
        model: the network.
        weights: of pressure, temperature and scalars.
        grad_steps: last states that gradients flow through; 1 = none of them is an input with gradient.
    """

    def __init__(self, model: VoxelAutoRegressor, weights: Sequence[float], grad_steps: int) -> None:
        super().__init__()
        self.model = model
        self.weights = tuple(weights)
        self.grad_steps = grad_steps

    def units(self) -> torch.Tensor:
        """Return the errors that count 1, in normalised units, [2]: a year's change, or the spread."""
        scales = self.model.scales
        is_delta = self.model.config.predict == "delta"
        return scales.delta_rms / scales.std if is_delta else torch.ones_like(scales.std)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the mean over the years of each part of the loss, and their weighted sum "loss".

        Args:
            batch: of the data set with K+1 states; see `voxel_ode.dataset`.
        """
        num_years = batch["states"].shape[1] - 1
        keep = batch["loss_mask"][:, None]
        domains = torch.stack([batch["masks"][:, 1], batch["masks"][:, 0]], dim=1) * keep
        fixed = self.model.static_features(Fields.from_batch(batch), once=num_years > 1)
        state = batch["states"][:, 0]
        sums: list[torch.Tensor] = []
        for k in range(num_years):
            fields = Fields.from_batch(batch, k)
            following, trunk = self.model.step(fixed, state)
            rates = self.model.scalars(fixed, trunk, fields.well_now, fields.well_next, fields.previous_total)
            truth = batch["states"][:, k + 1]
            parts = [
                *grid_losses(following, truth, domains, self.units()),
                scalar_loss(rates, batch["scalars"][:, k], self._countable(batch)),
            ]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            # Beside a cut the patch lacks its surroundings: what happens there is given, as at an inflow.
            state = torch.where(keep > 0, following, truth)
            if k + 1 <= num_years - self.grad_steps:
                state = state.detach()
        means = [part / num_years for part in sums]
        names = ("grid_p", "grid_T", "scalar")
        return dict(zip(names, means, strict=True)) | {"loss": weighted_sum(means, self.weights)}

    def _countable(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return which samples' scalars can be learned, [B]: a pooled head must have seen all wells."""
        complete = batch["wells_complete"].float()
        return complete if self.model.config.scalar_head == "pooled" else torch.ones_like(complete)
