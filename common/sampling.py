"""Which samples step s uses: a function of (seed, step, rank, world size), so a resumed run needs no state.

All samples that a run will ever see stand in one endless row: epoch 0 in a seeded order, then epoch 1, and so
on. Step s takes the next `batch_size * world` of them, each rank its own contiguous part, so that one process
with batch 8 and two with batch 4 see the same samples. The place in the row is the sample's position; random
choices about a sample (augmentation, noise) are made from (seed, position) alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common import distributed
from common.noise import numpy_stream, torch_stream


class Draw(NamedTuple):
    """What a dataset's `__getitem__` receives: which sample, and its position in the row of all samples."""

    index: int
    position: int


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return numpy_stream(seed, "epoch order", epoch).permutation(num_samples)


def draw(position: int, num_samples: int, seed: int, shuffle: bool = True) -> Draw:
    """Return the sample at `position` of the endless row over `num_samples` samples."""
    epoch, place = divmod(position, num_samples)
    return Draw(int(_order(seed, epoch, num_samples)[place]) if shuffle else place, position)


def steps_of(epochs: float, num_samples: int, global_batch: int) -> int:
    """Return the optimizer steps after which every sample was used at least `epochs` times."""
    return math.ceil(epochs * num_samples / global_batch)


class StepSampler(Sampler[list[Draw]]):
    """Batches of draws for the steps start..stop-1 of this rank.

    Args:
        num_samples: length of the data set.
        batch_size: samples a step on this rank.
        seed: of the order.
        start: first step.
        stop: one past the last step.
        shuffle: a new order every epoch, else the order of the data set.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, start: int, stop: int, *, shuffle: bool = True
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.shuffle = shuffle
        self.rank = distributed.rank()
        self.world_size = distributed.world_size()

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.stop):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [draw(first + k, self.num_samples, self.seed, self.shuffle) for k in range(self.batch_size)]

    def __len__(self) -> int:
        return max(0, self.stop - self.start)


def train_loader(
    dataset: Dataset[Any],
    sampler: StepSampler,
    *,
    num_workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return the loader of one training run; its batches do not depend on `num_workers`."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=seed_worker,
        # Without a generator of its own a loader draws from the global one and so disturbs exact resume.
        generator=torch_stream(sampler.seed, "loader", sampler.start),
    )


def seed_worker(_worker: int) -> None:
    """Give a loader worker one thread; its randomness comes from positions, never from worker state."""
    torch.set_num_threads(1)
