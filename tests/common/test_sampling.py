"""Which samples a step uses is a function of (seed, step, rank, world size) and of nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.data import Dataset

from common import distributed
from common.errors import DataError
from common.noise import gaussian
from common.sampling import Draw, StepSampler, draw, steps_of, train_loader


class Jittered(Dataset):
    """Samples whose values depend on index and position."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, d: Draw) -> dict:
        return {"index": d.index, "position": d.position, "x": gaussian((3,), 0, "jitter", d.position)}


def of_rank(
    monkeypatch: pytest.MonkeyPatch, rank: int, world: int, batch: int, start: int, stop: int
) -> list:
    """Return the batches that this rank of this world would draw."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    return list(StepSampler(10, batch, 5, start, stop))


def test_each_sample_once_an_epoch():
    """Every epoch holds every sample once, in an order of its own; without shuffling in the data's order."""
    epochs = [[draw(e * 10 + k, 10, seed=1).index for k in range(10)] for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [draw(k, 10, 1, shuffle=False).index for k in range(20)] == [*range(10)] * 2
    assert [draw(k, 10, seed=2).index for k in range(10)] != epochs[0]


def test_one_process_equals_two(monkeypatch: pytest.MonkeyPatch):
    """One process with batch 8 and two with batch 4 see the same samples at the same positions."""
    alone = of_rank(monkeypatch, 0, 1, 8, 0, 9)
    pair = [of_rank(monkeypatch, rank, 2, 4, 0, 9) for rank in (0, 1)]
    assert alone == [left + right for left, right in zip(*pair, strict=True)]
    four = [of_rank(monkeypatch, rank, 4, 2, 0, 9) for rank in range(4)]
    assert alone == [sum(parts, []) for parts in zip(*four, strict=True)]


def test_epochs_over_ranks(monkeypatch: pytest.MonkeyPatch):
    """Over all ranks no sample is used twice before each was used once, whatever divides whatever."""
    drawn = [of_rank(monkeypatch, rank, 3, 3, 0, 10) for rank in range(3)]
    row = [d for step in zip(*drawn, strict=True) for part in step for d in part]
    assert [d.position for d in row] == list(range(90))
    assert set(Counter(d.index for d in row).values()) == {9}


def test_more_ranks_than_samples(monkeypatch: pytest.MonkeyPatch):
    """A global batch larger than the data set goes on into the next epoch instead of running dry."""
    drawn = [of_rank(monkeypatch, rank, 4, 8, 0, 1)[0] for rank in range(4)]
    assert all(len(batch) == 8 for batch in drawn)


def test_resume_offset():
    """A sampler that starts at step 4 draws what a whole one draws from step 4 on."""
    whole = list(StepSampler(10, 4, 5, 0, 9))
    assert list(StepSampler(10, 4, 5, 4, 9)) == whole[4:]
    assert len(StepSampler(10, 4, 5, 4, 9)) == 5 and len(StepSampler(10, 4, 5, 9, 4)) == 0


def test_workers_change_nothing():
    """0, 1 and 2 workers deliver identical batches in the same order."""

    def batches(num_workers: int) -> list[dict]:
        loader = train_loader(Jittered(), StepSampler(10, 4, 5, 3, 7), num_workers=num_workers)
        return list(loader)

    alone = batches(0)
    assert len(alone) == 4 and alone[0]["x"].shape == (4, 3)
    for num_workers in (1, 2):
        for a, b in zip(alone, batches(num_workers), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_loader_leaves_the_global_generator_alone():
    """Starting a loader draws nothing from torch's global generator, else resume would shift dropout."""
    before = torch.get_rng_state()
    list(train_loader(Jittered(), StepSampler(10, 4, 5, 0, 2)))
    list(train_loader(Jittered(), StepSampler(10, 4, 5, 0, 2), num_workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_collate_is_used():
    """A collate function of the package's own replaces torch's."""
    assert list(train_loader(Jittered(), StepSampler(10, 4, 5, 0, 3), collate=len)) == [4, 4, 4]


@pytest.mark.parametrize(
    ("epochs", "samples", "batch", "steps"), [(1, 10, 4, 3), (2, 10, 4, 5), (0.5, 10, 5, 1), (3, 7, 100, 1)]
)
def test_steps_of_epochs(epochs: float, samples: int, batch: int, steps: int):
    """Epochs become the steps after which every sample was used that often."""
    assert steps_of(epochs, samples, batch) == steps


class _Broken(torch.utils.data.Dataset):
    """A data set whose files are bad."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, draw: Draw) -> None:
        raise DataError(f"{draw.index}.bin: 3 bytes, expected 4; copy it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_the_same_line(workers: int):
    """A bad file is one line, whichever process meets it."""
    loader = train_loader(_Broken(), StepSampler(4, 1, 0, 0, 2, shuffle=False), num_workers=workers)
    with pytest.raises(DataError, match=r"^0\.bin: 3 bytes, expected 4; copy it again$"):
        next(iter(loader))
