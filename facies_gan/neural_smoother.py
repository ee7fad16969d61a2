"""A smooth picture of a facies section: a small coordinate network per image, all fitted as one.

N images, P points, C facies. Fourier features of random frequencies let a network of coordinates follow sharp
edges (Tancik et al. 2020):

    phi = [sin 2 pi x B, cos 2 pi x B],  B in R^{2 x 128} ~ N(0, sigma^2),  x = (y, x) in [-1, 1]^2
    h = block2(block1(phi)),  logits = W block4(block3([h, phi])),  block = Linear, LayerNorm, GELU

The weights of the N networks are stacked and fitted by batched products, so that small images do not leave
the
processor waiting. Nothing couples them: a network is the same whoever is fitted beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.checkpoint import load_document
from common.errors import DataError
from common.noise import gaussian, torch_stream
from facies_gan.color_encoder import balance
from facies_gan.resample import area

FREQUENCIES = 128
WIDTH = 2 * FREQUENCIES
LEARNING_RATE = 3e-4
# Points at a time: activations that leave the processor's caches cost more than batched products save.
CHUNK_POINTS = {"cpu": 2048, "other": 1 << 15}
GROUP_POINTS = {"cpu": 4096, "other": 1 << 18}
Weights = list[torch.Tensor]  # B, then (W, b, gamma, beta) of four blocks, then W, b; each [N, ...]


def weight_shapes(num_classes: int) -> list[tuple[int, ...]]:
    """Return the shapes of one network's tensors, in order: 330,752 + 257 C numbers beside the buffer B."""
    shapes: list[tuple[int, ...]] = [(2, FREQUENCIES)]
    for fan_in in (WIDTH, WIDTH, 2 * WIDTH, WIDTH):
        shapes += [(WIDTH, fan_in), (WIDTH,), (WIDTH,), (WIDTH,)]
    return [*shapes, (num_classes, WIDTH), (num_classes,)]


def initial_weights(num_classes: int, sigma: float = 1.0, seed: int = 0) -> Weights:
    """Return one untrained network: Linear weights and biases U(-1/sqrt(fan_in), +), norms 1 and 0."""
    stream = torch_stream(seed, "smoother weights")
    weights = [gaussian((2, FREQUENCIES), seed, "smoother frequencies") * sigma]
    shapes = weight_shapes(num_classes)
    for number, shape in enumerate(shapes[1:], start=1):
        place = (number - 1) % 4 if number <= 16 else number - 17  # W, b, gamma, beta; then W, b
        if place >= 2:
            weights.append(torch.ones(shape) if place == 2 else torch.zeros(shape))
            continue
        fan_in = shape[-1] if place == 0 else shapes[number - 1][-1]
        weights.append((torch.rand(shape, generator=stream) * 2 - 1) / math.sqrt(fan_in))
    return weights


def coordinates(height: int, width: int) -> torch.Tensor:
    """Return the centres (y, x) in [-1, 1] of a grid, float32 [H W, 2], row by row."""
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * 2 / height - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5) * 2 / width - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2).float()


def _block(x: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return GELU(LayerNorm(x W^T + b)) for stacked x [N, P, in]."""
    weight, bias, gamma, beta = parts
    x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    x = F.layer_norm(x, (x.shape[-1],))
    return F.gelu(torch.addcmul(beta[:, None], x, gamma[:, None]))


def features(weights: Weights, points: torch.Tensor) -> torch.Tensor:
    """Return phi [N, P, 256] of points [N, P, 2]; it does not change while a network is fitted."""
    angles = 2 * math.pi * (points @ weights[0])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def logits(weights: Weights, phi: torch.Tensor) -> torch.Tensor:
    """Return the logits [N, P, C] of N stacked networks at features [N, P, 256]."""
    h = _block(_block(phi, weights[1:5]), weights[5:9])
    h = _block(_block(torch.cat([h, phi], dim=-1), weights[9:13]), weights[13:17])
    return torch.baddbmm(weights[18][:, None], h, weights[17].transpose(1, 2))


def _class_weights(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Return N / (C count_c) over its mean, float32 [C]."""
    return balance(torch.from_numpy(np.bincount(labels.reshape(-1), minlength=num_classes)))


def fit(
    images: Sequence[np.ndarray],
    num_classes: int,
    *,
    steps: int = 2000,
    sigma: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Weights]:
    """Return a fitted network for each image of labels [H, W].

    Weighted cross-entropy over all pixels of an image, Adam 3e-4 with a cosine to 0 over `steps`; the sum
    over
    the images is minimised, so that each follows its own gradient. Images of different size share a group.
    """
    place = torch.device(device)
    kind = "cpu" if place.type == "cpu" else "other"
    chunk = CHUNK_POINTS[kind]
    fitted: list[Weights] = []
    for group in _groups([min(image.size, chunk) for image in images], GROUP_POINTS[kind]):
        fitted += _fit_group([images[i] for i in group], num_classes, steps, sigma, seed, place, chunk)
    return fitted


def _groups(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Return the images fitted together: as many as make `most` points at a time, at least one."""
    groups: list[list[int]] = []
    for number, _ in enumerate(sizes):
        grown = [*groups[-1], number] if groups else [number]
        if groups and max(sizes[i] for i in grown) * len(grown) <= most:
            groups[-1] = grown
        else:
            groups.append([number])
    return groups


def _fit_group(
    images: Sequence[np.ndarray],
    num_classes: int,
    steps: int,
    sigma: float,
    seed: int,
    device: torch.device,
    chunk: int,
) -> list[Weights]:
    """Fit one group; the gradient of a step is summed over chunks of points."""
    count, most = len(images), max(image.size for image in images)
    points = torch.zeros(count, most, 2)
    targets = torch.zeros(count, most, dtype=torch.int64)
    shares = torch.zeros(count, most)  # weight of each pixel in its image's loss; padding has none
    for i, image in enumerate(images):
        labels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.int64)).reshape(-1)
        weight = _class_weights(image, num_classes)[labels]
        points[i, : image.size], targets[i, : image.size] = coordinates(*image.shape), labels
        shares[i, : image.size] = weight / weight.sum()
    points, targets, shares = points.to(device), targets.to(device), shares.to(device)
    one = initial_weights(num_classes, sigma, seed)
    weights = [w.expand(count, *w.shape).clone().to(device) for w in one]
    trained = [w.requires_grad_() for w in weights[1:]]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    phi = features(weights, points).split(chunk, 1)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        for part, target, share in zip(phi, targets.split(chunk, 1), shares.split(chunk, 1), strict=True):
            loss = F.cross_entropy(logits(weights, part).transpose(1, 2), target, reduction="none")
            (loss * share).sum().backward()
        optimizer.step()
        schedule.step()
    return [[w[i].detach().cpu().clone() for w in weights] for i in range(count)]


@torch.no_grad()
def render(
    weights: Weights, height: int, width: int, *, chunk_size: int = 65536, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the probabilities of one network on a grid, float32 [C, height, width], chunk by chunk."""
    stacked = [w[None].to(device) for w in weights]
    parts = coordinates(height, width).to(device).split(max(1, chunk_size))
    rows = [logits(stacked, features(stacked, part[None]))[0].softmax(dim=-1).cpu() for part in parts]
    return torch.cat(rows).T.reshape(-1, height, width)


def smooth_pyramid(
    weights: Weights,
    native: tuple[int, int],
    scales: Sequence[tuple[int, int]],
    *,
    upsample: int = 4,
    chunk_size: int = 65536,
    device: torch.device | str = "cpu",
) -> list[torch.Tensor]:
    """Return the area averages of a rendering at `upsample` times the native grid, [C, H_k, W_k] each."""
    height, width = native[0] * upsample, native[1] * upsample
    fine = render(weights, height, width, chunk_size=chunk_size, device=device)
    return [normalised(area(fine, size)) for size in scales]


def normalised(shares: torch.Tensor) -> torch.Tensor:
    """Return shares [C, H, W] that sum to 1 in every cell."""
    return shares / shares.sum(dim=0, keepdim=True)


def load_smoother(path: str | Path, num_classes: int) -> Weights:
    """Read the weights of one network from a `.pt` file, {"model_state": ...} or a bare state dict.

    Tensors are recognised by their order and shapes, whatever they are called.

    Raises:
        DataError: unreadable, or they are not those of a smoother of `num_classes` facies.
    """
    document = load_document(path)
    state = next((document[k] for k in ("model_state", "state_dict") if k in document), document)
    tensors = (
        [v.float() for v in state.values() if isinstance(v, torch.Tensor)] if isinstance(state, dict) else []
    )
    expected = weight_shapes(num_classes)
    frequencies = [t for t in tensors if tuple(t.shape) == expected[0]]
    others = [t for t in tensors if tuple(t.shape) != expected[0]]
    found = [*frequencies, *others]
    if [tuple(t.shape) for t in found] != expected:
        last = tuple(others[-1].shape) if others else "none"
        raise DataError(
            f"{path}: {len(found)} tensors, the last {last}, expected the {len(expected)} of a smoother of "
            f"{num_classes} facies (the last {expected[-1]}); delete the file to fit it again"
        )
    return found
