"""The rows that a training sees: coefficients, inputs, weights, latent targets.

R rows: the N samples of the data in their order, then the mirror images of the training rows where a symmetry
is declared. C channels, T frames, n latents.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from common import distributed
from common.noise import gaussian, numpy_stream
from common.sampling import Draw
from simulgen_vae.front_end import FrontEnd
from simulgen_vae.layers import SLICE
from simulgen_vae.losses import relative_weights
from simulgen_vae.objectives import HostArray
from simulgen_vae.predictor import pictures
from simulgen_vae.split import Split

FEW_SAMPLES = 1000  # below, starting loader processes costs more than they save
MAX_WORKERS = 6


@dataclass(eq=False)
class TrainingData:
    """Everything a phase draws its batches from.

    Attributes:
        fetch: row numbers -> c [b, C, T] float32, from memory, the device or files.
        num_samples: N.
        train_rows: rows that are learnt from, mirror images included.
        split: of the N samples.
        front_end: between fields and coefficients.
        shape: (C, T).
        params: float64 [R, P], or None.
        images: uint8 [R, H, W], or None.
        norm2: |u|^2 of each row, [R] float64.
        relative: weigh samples by their norm.
        extra: what belongs to the data and travels along (basis, symmetry, ids, ...).
        in_memory: `fetch` reads no file.
    """

    fetch: Callable[[Sequence[int]], torch.Tensor]
    num_samples: int
    train_rows: np.ndarray
    split: Split
    front_end: FrontEnd
    shape: tuple[int, int]
    params: torch.Tensor | None
    images: torch.Tensor | None
    norm2: torch.Tensor
    relative: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    in_memory: bool = True

    def __post_init__(self) -> None:
        """Set the weights: 1 on average over the training rows."""
        self.weights = torch.ones(len(self.norm2))
        if self.relative:
            self.weights[self.train_rows] = relative_weights(self.norm2[self.train_rows]).float()
        self.latents: tuple[torch.Tensor, torch.Tensor] | None = None

    def image(self, rows: Sequence[int]) -> torch.Tensor | None:
        """Return the pictures of some rows, [b, 1, 256, 256] in 0..1."""
        return None if self.images is None else pictures(self.images[list(rows)])

    def inputs(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the conditioner's inputs of some rows."""
        found: dict[str, torch.Tensor] = {}
        if self.params is not None:
            found["params"] = self.params[list(rows)]
        image = self.image(rows)
        if image is not None:
            found["image"] = image
        return found


def default_workers(data: TrainingData) -> int:
    """Return the loader processes that pay: none where rows lie in memory or are few, else up to 6.

    Rows come from functions, which only forked processes share.
    """
    if data.in_memory or data.num_samples < FEW_SAMPLES or multiprocessing.get_start_method() != "fork":
        return 0
    cores = os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // distributed.world_size()))


class VaeRows(Dataset[dict[str, Any]]):
    """Draws for the VAE: coefficients, the noise of the posterior, augmentation; all from (seed, position).

    Args:
        data: the rows.
        num_latents: n.
        seed: of the run.
        noise: standard deviation of the noise on the encoder's input, in those of the channels.
        mixup: Beta parameter of the mixing of training rows; 0 = off.
        sigma: standard deviation of each channel, [C].
    """

    def __init__(
        self,
        data: TrainingData,
        num_latents: int,
        seed: int,
        *,
        noise: float = 0.0,
        mixup: float = 0.0,
        sigma: torch.Tensor | None = None,
    ) -> None:
        self.data = data
        self.num_latents = num_latents
        self.seed = seed
        self.noise = noise
        self.mixup = mixup
        self.sigma = sigma

    def __len__(self) -> int:
        return len(self.data.train_rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return c [C, T], noise [n], weight, the inputs, and `input` when it differs from c."""
        row = int(self.data.train_rows[draw.index])
        c, weight = self.data.fetch([row])[0], self.data.weights[row]
        if self.mixup > 0:
            rng = numpy_stream(self.seed, "mixup", draw.position)
            share = float(rng.beta(self.mixup, self.mixup))
            other = int(self.data.train_rows[rng.integers(len(self.data.train_rows))])
            c = share * c + (1 - share) * self.data.fetch([other])[0]
            weight = share * weight + (1 - share) * self.data.weights[other]
        item = {"c": c, "weight": weight}
        item["noise"] = gaussian((self.num_latents,), self.seed, "posterior", draw.position)
        if self.noise > 0:
            assert self.sigma is not None
            drawn = gaussian(tuple(c.shape), self.seed, "input noise", draw.position)
            item["input"] = c + self.noise * self.sigma[:, None].to(c.device) * drawn.to(c.device)
        return item


class ConditionerRows(Dataset[dict[str, Any]]):
    """Draws for the conditioner: inputs and latent targets, and the coefficients when they are needed.

    Args:
        data: the rows, with latents.
        whole: add coefficients and weight, for the end-to-end phase.
    """

    def __init__(self, data: TrainingData, *, whole: bool = False) -> None:
        self.data = data
        self.whole = whole

    def __len__(self) -> int:
        return len(self.data.train_rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return params [P], image [1, 256, 256], z [nz], h [K, nh], and c [C, T] with its weight."""
        assert self.data.latents is not None
        row = int(self.data.train_rows[draw.index])
        item: dict[str, Any] = {name: value[0] for name, value in self.data.inputs([row]).items()}
        item["z"], item["h"] = (part[row] for part in self.data.latents)
        if self.whole:
            item["c"], item["weight"] = self.data.fetch([row])[0], self.data.weights[row]
        return item


class JointRows(VaeRows):
    """Draws for VAE and conditioner together."""

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return what `VaeRows` does and the conditioner's inputs."""
        row = int(self.data.train_rows[draw.index])
        return {**super().__getitem__(draw), **{k: v[0] for k, v in self.data.inputs([row]).items()}}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch; coefficients of more than one slice of channels stay in host memory."""
    batch = default_collate(items)
    for name in ("c", "input"):
        if name in batch and batch[name].shape[1] > SLICE:
            batch[name] = HostArray(batch[name])
    return batch
