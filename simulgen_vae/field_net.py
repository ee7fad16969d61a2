"""field_net: a U-Net on a regular grid that sees parameters, coordinates and picture; all frames at once.

Letters: B batch, C channels, ny nx grid, T frames, V fields, P scalars, M = ny nx nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from torch.optim.lr_scheduler import LambdaLR

from common.muon import KERNEL_LR, MIN_CHANNELS, Muon
from common.noise import torch_stream
from common.optim import Ema, clip_gradients
from simulgen_vae.direct import initialise, row_weights, set_to_zero
from simulgen_vae.features import InputFeatures, fit_features
from simulgen_vae.predictor import PICTURE, Inputs, Predictor, TrainingSet, pictures
from simulgen_vae.schedules import cosine_factor

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis

WIDTHS = (16, 32, 48, 64)
POINTWISE = 64
NORM_FLOOR = 0.05  # of the mean squared norm
MAX_TARGET_BYTES = 4 << 30


@dataclass(frozen=True)
class FieldNetOptions:
    """How the network is trained.

    Attributes:
        steps: optimizer steps; 0 = `steps_for` the number of rows.
        batch_size: rows a step.
        lr, weight_decay: of Muon under a cosine.
        warmup: linear, fraction of the steps.
        ema: decay of the averaged weights, which are what is kept.
    """

    steps: int = 0
    batch_size: int = 4
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    ema: float = 0.99


def steps_for(num_rows: int) -> int:
    """Return the optimizer steps for a number of rows, mirror images included."""
    return int(min(6000, max(600, 12 * num_rows)))


class FilmBlock(nn.Module):
    """x + Conv SiLU ((1 + a) Norm Conv x + b), with a and b from the scalars (FiLM, Perez et al. 2018)."""

    def __init__(self, width: int, num_scalars: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(max(1, width // 8), width)
        self.film = nn.Linear(num_scalars, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Return [B, C, ny, nx] of x and the scalars [B, S]."""
        gain, shift = self.film(scalars)[:, :, None, None].chunk(2, dim=1)
        h = (1.0 + gain) * self.norm(self.first(x)) + shift
        return x + self.second(F.silu(h))


class GridNet(nn.Module):
    """Pointwise layers, then a U-Net of three stride-2 levels: C input channels to V T output channels."""

    def __init__(self, num_inputs: int, num_outputs: int, num_scalars: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shapes = level_shapes(shape)
        self.pointwise = nn.Sequential(
            nn.Conv2d(num_inputs, POINTWISE, 1), nn.SiLU(), nn.Conv2d(POINTWISE, POINTWISE, 1), nn.SiLU()
        )
        self.scalars = nn.Sequential(nn.Linear(num_scalars, POINTWISE), nn.SiLU())
        self.stem = nn.Conv2d(POINTWISE, WIDTHS[0], 1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True)
        )
        self.encoder = nn.ModuleList(FilmBlock(w, POINTWISE) for w in WIDTHS)
        self.up = nn.ModuleList(
            nn.Conv2d(a + b, b, 3, padding=1) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.decoder = nn.ModuleList(FilmBlock(w, POINTWISE) for w in WIDTHS[-2::-1])
        self.widen = nn.Conv2d(WIDTHS[0], POINTWISE, 1)
        self.head = nn.Conv2d(POINTWISE, num_outputs, 1)

    def forward(self, x: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Return [B, V T, ny, nx] of x [B, C, ny, nx] and scalars [B, P]."""
        s = self.scalars(scalars)
        x = self.encoder[0](self.stem(self.pointwise(x)), s)
        skips = [x]
        for down, block in zip(self.down, list(self.encoder)[1:], strict=True):
            x = block(down(x), s)
            skips.append(x)
        for level, (up, block) in enumerate(zip(self.up, self.decoder, strict=True)):
            target = len(self.shapes) - 2 - level
            x = F.interpolate(x, self.shapes[target], mode="bilinear", align_corners=False)
            x = block(up(torch.cat([x, skips[target]], 1)), s)
        return self.head(F.silu(self.widen(x)))


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the grid of each level, finest first: a stride-2 convolution keeps ceil(n/2)."""
    shapes = [shape]
    for _ in WIDTHS[1:]:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def coordinate_channels(shape: tuple[int, int]) -> torch.Tensor:
    """Return x, y in 0..1 and sin, cos of (pi/2) k x and (pi/2) k y for k = 1, 2; [10, ny, nx]."""
    ny, nx = shape
    y, x = torch.meshgrid((torch.arange(ny) + 0.5) / ny, (torch.arange(nx) + 0.5) / nx, indexing="ij")
    waves = [f(0.5 * math.pi * k * v) for k in (1, 2) for v in (x, y) for f in (torch.sin, torch.cos)]
    return torch.stack([x, y, *waves])


def area_average(size: int, pixels: int = PICTURE) -> torch.Tensor:
    """Return the matrix [size, pixels] that averages pixels over equal cells; rows sum to 1."""
    edges = torch.linspace(0, pixels, size + 1, dtype=torch.float64)
    start = torch.arange(pixels, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], start + 1) - torch.maximum(edges[:-1, None], start)
    return (overlap.clamp_min(0) * size / pixels).float()


class FieldNet(Predictor):
    """The grid network, its output encoded to reduced coefficients.

    Args:
        config: sizes; see `fit_predictor`.
        basis: encodes fields; shared with whoever decodes.
    """

    name = "field_net"
    coordinates: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: Mapping[str, Any], basis: Basis) -> None:
        super().__init__(config)
        shape = tuple(config["grid_shape"])
        self.frames, self.num_fields, self.shape = config["frames"], config["num_fields"], shape
        self.has_picture = bool(config["has_picture"])
        self.features = InputFeatures(**config["features"])
        count = self.features.width
        inputs = count + 10 + int(self.has_picture)
        self.net = GridNet(inputs, self.frames * self.num_fields, max(count, 1), shape)
        self.register_buffer("coordinates", coordinate_channels(shape), persistent=False)
        self.register_buffer("rows", area_average(shape[0]), persistent=False)
        self.register_buffer("columns", area_average(shape[1]), persistent=False)
        nodes = shape[0] * shape[1]
        self.register_buffer("mean", torch.zeros(self.frames, nodes, self.num_fields))
        self.register_buffer("scale", torch.ones(self.num_fields))
        self._basis = (basis,)  # in a tuple: its tensors belong to the deliverable, not to this state

    def fields(self, inputs: Inputs) -> torch.Tensor:
        """Return the fields in physical units, [B, T, M, V]."""
        scalars = self.features(inputs).float()
        planes = scalars[:, :, None, None].expand(-1, -1, *self.shape)
        parts = [planes, self.coordinates.expand(scalars.shape[0], -1, -1, -1)]
        if self.has_picture:
            assert inputs.image is not None
            parts.append(self.rows @ inputs.image.float() @ self.columns.T)
        seen = scalars if scalars.shape[1] else scalars.new_zeros(scalars.shape[0], 1)
        out = self.net(torch.cat(parts, 1), seen)
        out = out.reshape(scalars.shape[0], self.num_fields, self.frames, -1).permute(0, 2, 3, 1)
        return self.mean + self.scale * out

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        return self._basis[0].encode(self.fields(inputs))


def fits(data: TrainingSet) -> bool:
    """Tell whether the network can be trained: a regular grid, and targets that fit in memory."""
    if data.grid_shape is None or min(data.grid_shape) < 4:
        return False
    nodes = math.prod(data.grid_shape)
    return len(data) * data.c.shape[-1] * nodes * data.basis.num_fields * 4 <= MAX_TARGET_BYTES


def fit_predictor(data: TrainingSet, options: FieldNetOptions | None = None) -> FieldNet:
    """Train the network on the rows; mirror images are made of them on the fly.

    Raises:
        ValueError: the nodes form no regular grid.
    """
    if data.grid_shape is None:
        raise ValueError("field_net needs a regular grid")
    options = options or FieldNetOptions()
    both, _ = data.augmented()
    features = fit_features(both, 0)
    targets = data.basis.decode(data.c)  # [n, T, M, V]
    num_fields, frames = targets.shape[-1], targets.shape[1]
    config = {
        "kind": "field_net",
        "grid_shape": list(data.grid_shape),
        "frames": frames,
        "num_fields": num_fields,
        "has_picture": data.images is not None,
        "features": features.config,
    }
    predictor = FieldNet(config, data.basis)
    predictor.features.load_state_dict(features.state_dict())
    mean = targets.mean(0)
    if data.symmetry is not None:
        mean = 0.5 * (mean + data.symmetry.apply_fields(mean))
    predictor.mean.copy_(mean)
    spread = (targets - mean).square().mean((0, 1, 2)).sqrt()
    predictor.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
    weight = row_weights((targets / predictor.scale).square().sum((1, 2, 3)), NORM_FLOOR)
    _train(predictor, both, targets, weight, options)
    return predictor.eval().requires_grad_(False)


def _train(
    predictor: FieldNet,
    both: TrainingSet,
    targets: torch.Tensor,
    weight: torch.Tensor,
    options: FieldNetOptions,
) -> None:
    """Minimise the relative-weighted squared error of standardised fields; leave the averaged weights."""
    initialise(predictor.net, torch_stream(both.seed, "field_net weights"))
    set_to_zero(predictor.net.head)
    steps = options.steps or steps_for(len(both))
    kernel_decay = KERNEL_LR * options.weight_decay
    optimizer = Muon(
        predictor.net, options.lr, options.weight_decay, min_inputs=MIN_CHANNELS, kernel_decay=kernel_decay
    )
    schedule = LambdaLR(optimizer, cosine_factor(steps, max(1, round(options.warmup * steps)), 0.0))
    ema = Ema(predictor.net, options.ema)
    num_rows, size = len(targets), min(options.batch_size, len(both))
    order = torch.zeros(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < size:
            stream = torch_stream(both.seed, "field_net order", step)
            order = torch.cat([order, torch.randperm(len(both), generator=stream)])
        batch, order = order[:size], order[size:]
        own = batch % num_rows
        truth = targets[own]
        if both.symmetry is not None:
            mirrored = (batch >= num_rows)[:, None, None, None]
            truth = torch.where(mirrored, both.symmetry.apply_fields(truth), truth)
        image = None if both.images is None else pictures(both.images[batch])
        predictor.net.zero_grad(set_to_none=True)
        error = ((predictor.fields(Inputs(both.params[batch], image)) - truth) / predictor.scale).square()
        (weight[own] * error.mean((1, 2, 3))).mean().backward()
        clip_gradients(predictor.net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update(predictor.net)
    predictor.net.load_state_dict(ema.module.state_dict())
