"""direct: plain residual networks from inputs to whitened whole-trajectory POD coefficients, mean of three.

Letters: n rows, F features, m modes, r_s spatial modes, T frames, B batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from common.noise import torch_stream
from common.optim import adamw, clip_gradients
from simulgen_vae.features import InputFeatures, informative_features
from simulgen_vae.field_metric import FieldMetric
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet, draws_of_members
from simulgen_vae.reduced import fit_trajectory_pod

MAX_MODES = 250
NORM_FLOOR = 0.1  # of the mean squared norm, so that nearly silent samples do not rule the loss


@dataclass(frozen=True)
class DirectOptions:
    """How the networks are trained.

    Attributes:
        width, depth: of the residual stack.
        num_nets: networks whose mean is the prediction.
        epochs: passes over the rows; fewer for many rows (see `steps`).
        lr, weight_decay, batch_size, clip: of AdamW; matrices alone decay.
    """

    width: int = 256
    depth: int = 6
    num_nets: int = 3
    epochs: int = 250
    lr: float = 2e-3
    weight_decay: float = 0.1
    batch_size: int = 32
    clip: float = 1.0


class DirectNet(nn.Module):
    """Linear, `depth` times h + SiLU(Linear h), Linear that starts at zero."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(num_inputs, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, m] of features [B, F]."""
        h = self.first(x)
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all linear and convolutional layers anew from `generator` (torch's default law)."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1.0 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def set_to_zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Let a last layer start with the output 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Direct(Predictor):
    """c = cbar + sum_j s_j zeta_j(x) W_j, zeta the mean of the networks; their spread is its std."""

    name = "direct"
    pod_mean: torch.Tensor
    modes: torch.Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        shape, count = tuple(config["shape"]), config["num_modes"]
        self.features = InputFeatures(**config["features"])
        size = (self.features.width, count, config["width"], config["depth"])
        self.nets = nn.ModuleList(DirectNet(*size) for _ in range(config["num_nets"]))
        self.register_buffer("pod_mean", torch.zeros(shape))
        self.register_buffer("modes", torch.zeros(count, *shape))  # scaled: s_j W_j

    def members(self, inputs: Inputs) -> torch.Tensor:
        """Return each network's coefficients, [nets, B, r_s, T]."""
        x = self.features(inputs).float()
        flat = torch.stack([net(x) for net in self.nets]) @ self.modes.flatten(1)
        return self.pod_mean + flat.unflatten(-1, self.pod_mean.shape)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        x = self.features(inputs).float()
        zeta = torch.stack([net(x) for net in self.nets]).mean(0)
        return self.pod_mean + (zeta @ self.modes.flatten(1)).unflatten(-1, self.pod_mean.shape)

    def std(self, inputs: Inputs) -> torch.Tensor | None:
        """Return the spread of the networks, [B, r_s, T]; None with one network."""
        return self.members(inputs).std(0) if len(self.nets) > 1 else None

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, B, r_s, T] whose coefficients vary together as the networks' do."""
        members = self.members(inputs)
        return draws_of_members(members, num, seed) if len(members) > 1 else super().draws(inputs, num, seed)


class _Rows(NamedTuple):
    """What the networks are trained on: features [n, F], scores [n, m], mode weights [m], row weights [n]."""

    x: torch.Tensor
    zeta: torch.Tensor
    mode_weight: torch.Tensor
    row_weight: torch.Tensor

    def loss(self, net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over rows of w_i sum_j s_j^2 (zeta_hat - zeta)^2: a field error."""
        error = (net(self.x[rows]) - self.zeta[rows]).square() @ self.mode_weight
        return (self.row_weight[rows] * error).mean()


def row_weights(norm2: torch.Tensor, floor: float = NORM_FLOOR) -> torch.Tensor:
    """Return 1/(norm2 + floor mean norm2) scaled to the mean 1, float32 [n]: errors count relatively."""
    weight = 1.0 / (norm2 + floor * norm2.mean())
    return (weight / weight.mean()).float()


def fit_predictor(data: TrainingSet, options: DirectOptions | None = None) -> Direct:
    """Fit the networks to the rows and their mirror images.

    Each network keeps its best state on another tenth of the groups, which it does not learn from.
    """
    options = options or DirectOptions()
    both, groups = data.augmented()
    features = informative_features(both, groups)
    count = max(1, min(len(both) - 2, MAX_MODES))
    pod = fit_trajectory_pod(both.c.numpy(), count)
    pod = pod.first(max(1, pod.rank))
    shape = both.c.shape[1:]
    config = {
        "kind": "direct",
        "shape": list(shape),
        "features": features.config,
        "num_modes": pod.num_modes,
        "width": options.width,
        "depth": options.depth,
        "num_nets": options.num_nets,
    }
    predictor = Direct(config)
    predictor.features.load_state_dict(features.state_dict())
    predictor.pod_mean.copy_(pod.mean.view(shape))
    predictor.modes.copy_((pod.modes * pod.scales[:, None]).view(-1, *shape))
    share = pod.scales.square()
    rows = _Rows(
        features(both.inputs()).float(),
        pod.encode(both.c),
        share / share.sum(),
        row_weights(FieldMetric(both.basis).norm2(both.c)),
    )
    nets: list[Any] = list(predictor.nets)
    for number, net in enumerate(nets):
        _train(net, rows, groups, options, data.seed, number)
    return predictor.eval().requires_grad_(False)


def held_out_tenth(groups: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """Return a mask [n] of about a tenth of the groups, another tenth for each `number` below 10."""
    names = torch.unique(groups)
    order = torch.randperm(len(names), generator=torch_stream(seed, "held-out tenth"))
    return torch.isin(groups, names[order[number % 10 :: 10]])


def _train(
    net: DirectNet, rows: _Rows, groups: torch.Tensor, options: DirectOptions, seed: int, number: int
) -> None:
    """Train one network with a one-cycle learning rate and leave it in its best state."""
    initialise(net, torch_stream(seed, "direct weights", number))
    set_to_zero(net.last)
    out = held_out_tenth(groups, seed, number)
    train, check = torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0]
    per_epoch = math.ceil(len(train) / options.batch_size)
    optimizer = adamw(net, options.lr, options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=per_epoch * options.epochs, cycle_momentum=False
    )
    best, kept = math.inf, copy.deepcopy(net.state_dict())
    for epoch in range(options.epochs):
        order = train[torch.randperm(len(train), generator=torch_stream(seed, "direct order", number, epoch))]
        for batch in torch.split(order, options.batch_size):
            optimizer.zero_grad(set_to_none=True)
            rows.loss(net, batch).backward()
            clip_gradients(net.parameters(), options.clip)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            error = float(rows.loss(net, check))
        if error < best:
            best, kept = error, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
