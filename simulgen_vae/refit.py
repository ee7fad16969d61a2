"""A conditioner trained on some rows alone, for cross-validation: same network and loss, without a run."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch

from common.noise import stream_key, torch_stream
from common.optim import clip_gradients
from simulgen_vae.conditioner import Conditioner, ConditionerShape
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.objectives import ConditionerObjective
from simulgen_vae.predictor import TrainingSet, pictures
from simulgen_vae.schedules import adamw_without, lr_schedule

HELD_OUT = 0.1  # of the rows, to keep the best state
TIMED_STEPS = 3


@dataclass(frozen=True)
class RefitOptions:
    """How a conditioner is trained again.

    Attributes:
        epochs: passes over the rows, fewer when they would take longer than `max_cpu_s`.
        batch: rows a step.
        lr: peak learning rate.
        weight_decay: on matrices.
        max_cpu_s: bound on the CPU time.
        warmup_fraction: of the steps.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    max_cpu_s: float
    warmup_fraction: float = 0.05


class _Rows:
    """Inputs and latent targets of a set of rows and their mirror images."""

    def __init__(self, rows: TrainingSet, vae: HierarchicalVae, shape: ConditionerShape) -> None:
        both, groups = rows.augmented()
        self.params = both.params if shape.uses_params else None
        self.images = both.images if shape.uses_image else None
        with torch.no_grad():
            self.z, self.h = vae.latents(both.c)
        names = torch.unique(groups)
        order = torch.randperm(len(names), generator=torch_stream(rows.seed, "refit held out"))
        out = torch.isin(groups, names[order[: max(1, round(HELD_OUT * len(names)))]])
        self.train, self.check = torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0]

    def batch(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what `ConditionerObjective` takes."""
        found = {"z": self.z[index], "h": self.h[index]}
        if self.params is not None:
            found["params"] = self.params[index]
        if self.images is not None:
            found["image"] = pictures(self.images[index])
        return found


def fit_conditioner(
    rows: TrainingSet, vae: HierarchicalVae, shape: ConditionerShape, options: RefitOptions
) -> Conditioner:
    """Return a conditioner trained on `rows` and their mirror images, on the latents of `vae`.

    Its best state on a held-out tenth of the rows is kept.
    """
    data = _Rows(rows, vae, shape)
    # Layers draw their weights, and dropout its masks, from the global generator: lend it a seed of its own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(rows.seed, "refit") & 0x7FFF_FFFF)
        network = Conditioner(shape)
        network.fit_latents(data.z[data.train], data.h[data.train])
        if data.params is not None:
            known = data.params[data.train]
            network.fit_params(known)
            network.fit_linear(known, data.z[data.train], data.h[data.train])
        _train(ConditionerObjective(network), data, options, rows.seed)
    return network.eval().requires_grad_(False)


def _train(objective: ConditionerObjective, data: _Rows, options: RefitOptions, seed: int) -> None:
    """Train with AdamW and one cosine, and leave the network in its best state."""
    network = objective.conditioner
    per_epoch = math.ceil(len(data.train) / options.batch)
    affordable = _affordable(objective, data.batch(data.train[: options.batch]), options.max_cpu_s)
    total = max(1, min(options.epochs * per_epoch, affordable))
    optimizer = adamw_without(network, torch.nn.Identity(), options.lr, options.weight_decay)
    schedule = lr_schedule(
        optimizer, total, lr=options.lr, eta_min=1e-6, warmup_fraction=options.warmup_fraction
    )
    best, kept = math.inf, copy.deepcopy(network.state_dict())
    for step in range(total):
        epoch, place = divmod(step, per_epoch)
        generator = torch_stream(seed, "refit order", epoch)
        order = data.train[torch.randperm(len(data.train), generator=generator)]
        network.train()
        optimizer.zero_grad(set_to_none=True)
        index = order[place * options.batch : (place + 1) * options.batch]
        objective(data.batch(index))["loss"].backward()
        clip_gradients(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if place + 1 == per_epoch or step + 1 == total:
            network.eval()
            with torch.no_grad():
                error = float(objective(data.batch(data.check))["loss"])
            if error < best:
                best, kept = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)


def _affordable(objective: ConditionerObjective, batch: dict[str, torch.Tensor], max_cpu_s: float) -> int:
    """Return the steps that `max_cpu_s` allows, from the time of a few."""
    started = time.process_time()
    for _ in range(TIMED_STEPS):
        objective(batch)["loss"].backward()
    objective.zero_grad(set_to_none=True)
    return int(max_cpu_s / max((time.process_time() - started) / TIMED_STEPS, 1e-6))
