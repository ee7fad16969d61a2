"""Tiny low-rank data for the tests of network and training: travelling bumps that five numbers describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.noise import numpy_stream
from common.run import TrainOptions
from simulgen_vae.config import TrainConfig, smoke
from simulgen_vae.model import HierarchicalVae, Start, VaeShape

NUM, FRAMES, NODES, PARAMS = 24, 9, 20, 3


def fields(num: int = NUM, frames: int = FRAMES, nodes: int = NODES, num_fields: int = 1) -> np.ndarray:
    """Return u [N, T, M, V] float32: decaying waves whose amplitude, speed and offset are the parameters."""
    p = params(num)
    t, x = np.linspace(0, 1, max(frames, 2))[:frames, None], np.linspace(0, 1, nodes)[None, :]
    u = [a * np.sin(2 * np.pi * (x - 0.4 * s * t)) * np.exp(-0.5 * t) + 0.3 * o * x + 1.0 for a, s, o in p]
    scales = 10.0 ** np.arange(num_fields)
    return (np.stack(u)[..., None] * scales).astype(np.float32)


def params(num: int = NUM) -> np.ndarray:
    """Return the parameters [N, 3]: amplitude, speed, offset."""
    draws = [numpy_stream(0, "test parameters", i).uniform(size=PARAMS) for i in range(num)]
    return np.stack(draws) * [1.0, 1.0, 2.0] + [0.5, 0.5, -1.0]


def write_data(path: Path, **shape: Any) -> Path:
    """Write fields and parameters as npz and return its path."""
    u = fields(**shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, fields=u, params=params(len(u)))
    return path


def write_pictures(path: Path, num: int = NUM) -> Path:
    """Write the same data with pictures that show the amplitude, and the other numbers; return its path."""
    p = params(num)
    images = np.full((num, 256, 256), 20, np.uint8)
    for picture, amplitude in zip(images, p[:, 0], strict=True):
        picture[64 : 64 + int(80 * amplitude)] = 200
    np.savez(path, fields=fields(num), params=p[:, 1:], images=images)
    return path


def config(data: Path, **changes: Any) -> TrainConfig:
    """Return a training of seconds on `data`, without the slow predictors."""
    quick = {"data": str(data), "conditioner": "net", "field_net": "off", "max_cpu_s": 2.0}
    return replace(smoke(), **{**quick, **changes})


def options(out: Path, **changes: Any) -> TrainOptions:
    """Return run options on the CPU in fp32."""
    quick: dict[str, Any] = {"device": "cpu", "precision": "fp32", "tensorboard": False, "log_every": 4}
    return TrainOptions(out=out, **{**quick, **changes})


def random_start(shape: VaeShape, seed: int = 0, rank: int | None = None) -> Start:
    """Return a linear solution with orthonormal modes and falling scales."""
    generator = torch.Generator().manual_seed(seed)
    size = shape.channels * shape.frames
    rank = min(rank if rank is not None else shape.num_latents, size)
    modes = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0].T
    scales = 2.0 * 0.8 ** torch.arange(rank)
    mean = torch.randn(shape.channels, shape.frames, generator=generator)
    sigma = 0.9 ** torch.arange(shape.channels).float()
    return Start(mean, modes.float().reshape(rank, shape.channels, shape.frames), scales, sigma)


def tiny_vae(*, alpha: float = 1e6, seed: int = 0, **shape: Any) -> HierarchicalVae:
    """Return a small network at its linear start."""
    sizes = {"channels": 6, "frames": 9, "filters": (8, 6, 4), "latent_dim_end": 4, "latent_dim": 2}
    chosen = VaeShape(**{**sizes, **shape})
    torch.manual_seed(seed)
    return HierarchicalVae(chosen, random_start(chosen, seed), alpha=alpha)


def shake(module: torch.nn.Module, scale: float = 0.1, seed: int = 1) -> None:
    """Move every trained weight a little, so that nothing is zero by construction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
