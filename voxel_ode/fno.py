"""A Fourier neural operator (Li et al. 2021) of the library neuraloperator, trained for equal time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from common import device as devices
from common.errors import missing_library
from common.noise import numpy_stream
from common.sampling import Draw
from voxel_ode.baselines import Batch, Step
from voxel_ode.dataset import PatchDataset
from voxel_ode.losses import grid_losses
from voxel_ode.normalize import Normalizer

MODES, HIDDEN, LAYERS = (8, 8, 8), 16, 4
LEARNING_RATE = 2e-3


def make_fno(num_inputs: int) -> nn.Module:
    """Return FNO(n_modes 8 8 8, 16 hidden channels, 4 layers) from `num_inputs` channels to two.

    Raises:
        UserError: neuraloperator is not installed; the message says how to.
    """
    try:
        from neuralop.models import FNO  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_library("neuralop", "the baseline fno", "neuraloperator") from error
    return FNO(n_modes=MODES, in_channels=num_inputs, out_channels=2, hidden_channels=HIDDEN, n_layers=LAYERS)


class Operator:
    """A network from statics, P and T to a year's change in delta_rms."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def start(self, batch: Batch, normalizer: Normalizer) -> Step:
        """Return the step on a batch."""
        domains = batch["masks"][:, [1, 0]]
        units = step_units(normalizer).to(domains)

        def step(state: torch.Tensor) -> torch.Tensor:
            change = self.network(torch.cat([batch["static"], state], dim=1))
            return state + units[:, None, None, None] * change.to(state.dtype) * domains

        return step


def step_units(normalizer: Normalizer) -> torch.Tensor:
    """Return delta_rms in normalised units, [2]."""
    return normalizer.delta_rms / normalizer.grid_std


def train_operator(
    network: nn.Module,
    data: PatchDataset,
    device: torch.device,
    *,
    minutes: float,
    seed: int = 0,
    max_steps: int = 1_000_000,
) -> tuple[Operator, int]:
    """Train `network` with the loss of the grids for some minutes; return it with the number of steps.

    Args:
        network: [1, S + 2, D, H, W] -> [1, 2, D, H, W].
        data: training patches, one year each.
        device: where to train.
        minutes: wall time; the learning rate falls to zero along a cosine of it.
        seed: of the order of patches.
        max_steps: stop earlier after so many.
    """
    network.to(device).train()
    operator = Operator(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    units = step_units(data.normalizer).to(device)
    began, step = time.perf_counter(), 0
    for batch in _batches(data, device, seed):
        share = (time.perf_counter() - began) / (60.0 * minutes)
        if share >= 1 or step >= max_steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * share))))
        following = operator.start(batch, data.normalizer)(batch["states"][:, 0])
        domains = batch["masks"][:, [1, 0]] * batch["loss_mask"][:, None]
        loss = sum(grid_losses(following, batch["states"][:, 1], domains, units))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
    network.eval()
    return operator, step


def _batches(data: PatchDataset, device: torch.device, seed: int) -> Iterator[dict[str, Any]]:
    """Yield patches in random order without end."""
    position = 0
    while True:
        for index in numpy_stream(seed, "operator order", position).permutation(len(data)):
            item = data[Draw(int(index), position)]
            tensors = {name: value for name, value in item.items() if isinstance(value, torch.Tensor)}
            yield devices.move(default_collate([tensors]), device)
            position += 1
