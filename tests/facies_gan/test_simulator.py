"""Realisations: data honoured to the last cell, the same labels for any batch, tile and grid around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facies_gan.canvas import MODES, whole
from facies_gan.model_card import ModelCard, StoredSection
from facies_gan.noise_field import plane_noise
from facies_gan.pyramids import to_wells_pyramids
from facies_gan.resample import Extent
from facies_gan.simulator import Conditioning, Simulator, realisation_noise, rebuild
from facies_gan.wells import WellSet
from tests.facies_gan.cases_gan import bands, random_model


def realise(model: Simulator, indices: list[int], wells: WellSet | None = None, **how) -> np.ndarray:
    """Return labels [B, H, W] of seed 0 on the model's own grid, or on `size`."""
    size = how.pop("size", model.card.size)
    seed = how.pop("seed", 0)
    told = Conditioning(model.card, size, wells)
    return model.realise(told, realisation_noise(model.card, seed), indices, **how).labels


def data_sets(shape: tuple[int, int], num_classes: int) -> dict[str, WellSet]:
    """Return hard data of every kind whose facies are random: the network cannot have learnt them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    columns = rng.permutation(shape[1])
    flat = rng.permutation(shape[0] * shape[1])[:64]
    rows = np.arange(shape[0])
    path = np.minimum(3 + rows, shape[1] - 1)
    return {
        "1 well": WellSet.from_columns(labels, columns[:1]),
        "8 wells": WellSet.from_columns(labels, columns[:8]),
        "as many wells as columns": WellSet.from_columns(labels, columns),
        "deviated": WellSet.from_cells(rows, path, labels[rows, path]),
        "64 points": WellSet.from_cells(*np.divmod(flat, shape[1]), labels.reshape(-1)[flat]),
    }


@pytest.mark.parametrize("num_classes", [2, 4, 7])
def test_data_are_honoured(num_classes: int):
    """Every datum of every facies, the first (black) included: training grid, a larger one, in tiles."""
    model = random_model(num_classes)
    for name, wells in data_sets((40, 48), num_classes).items():
        assert set(range(num_classes)) <= set(wells.facies) or name == "1 well"
        for how in ({}, {"size": (70, 90)}, {"tile": 20}):
            labels = realise(model, [0, 1], wells, **how)
            assert all(wells.matches(grid).all() for grid in labels), name
            assert labels.max() < num_classes


def test_data_do_not_repeat_at_coarse_cells():
    """One datum sets one cell: those beside it are the network's own."""
    model = random_model()
    wells = WellSet.from_cells(np.array([20]), np.array([24]), np.array([1]))
    labels = realise(model, list(range(24)), wells)
    beside = labels[:, [19, 21, 20, 20], [24, 24, 23, 25]]
    assert (labels[:, 20, 24] == 1).all() and beside.mean() < 0.95


@pytest.mark.parametrize("mode", MODES)
def test_batch_tile_and_index(mode: str):
    """Realisation 5 is the same labels alone, in batches of 3 and 8, and computed in tiles of any size."""
    model = random_model(3, mode, size=(61, 75))
    wells = data_sets((61, 75), 3)["8 wells"]
    alone = realise(model, [5], wells)[0]
    assert 0.02 < (alone == 1).mean() < 0.98
    for indices in ([3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]):
        assert np.array_equal(realise(model, indices, wells)[indices.index(5)], alone)
    for tile in (16, 29, 64):
        assert np.array_equal(realise(model, [5], wells, tile=tile)[0], alone)


def test_limited_halo():
    """A halo as wide as the grid changes nothing; a narrow one does."""
    model = random_model(size=(96, 96))
    exact = realise(model, [0], tile=32)
    assert np.array_equal(realise(model, [0], tile=32, halo=96), exact)
    narrow = realise(model, [0], tile=32, halo=0)
    assert 0 < (narrow != exact).mean() < 0.5


def test_seeds_and_indices_differ():
    """Other seeds and other indices are other realisations; the same are the same."""
    model = random_model()
    one, two = realise(model, [0, 1])
    assert np.array_equal(realise(model, [0])[0], one)
    assert (one != two).mean() > 0.05 and (realise(model, [0], seed=1)[0] != one).mean() > 0.05


def test_shared_coarse_noise():
    """Realisations that vary from scale 2 on differ, but less than others."""
    model = random_model()
    told = Conditioning(model.card, model.card.size)
    free, tied = (
        model.realise(told, realisation_noise(model.card, 0, vary_from=k), [0, 1]).labels for k in (0, 2)
    )
    assert 0 < (tied[0] != tied[1]).mean() < (free[0] != free[1]).mean()
    still = model.realise(told, realisation_noise(model.card, 0, noise_scale=0.0), [0, 1]).labels
    assert np.array_equal(still[0], still[1])


def test_noise_belongs_to_cells():
    """A box holds the numbers of the plane: cut out, over block borders and at negative cells; N(0, 1)."""
    big = plane_noise((Extent(10, -70, 200), Extent(10, -3, 150)), 2, 0, "test", 1)
    small = plane_noise((Extent(10, -9, 80), Extent(10, 60, 10)), 2, 0, "test", 1)
    assert torch.equal(small, big[:, 61:141, 63:73])
    assert abs(float(big.mean())) < 0.02 and abs(float(big.std()) - 1) < 0.02
    assert not torch.equal(small, plane_noise((Extent(10, -9, 80), Extent(10, 60, 10)), 2, 0, "test", 2))


def test_sparse_conditioning_is_the_well_pyramid():
    """Data kept as cells give the same tensors as the pyramid of the whole grid."""
    model = random_model(4, "zeros")
    size = model.card.size
    wells = data_sets(size, 4)["64 points"]
    told = Conditioning(model.card, size, wells)
    scales = model.card.scales(size)
    for k, grid in enumerate(to_wells_pyramids(wells, size, scales, 4)):
        torch.testing.assert_close(told.on(k, whole(scales[k])), grid)
        cut = (Extent(scales[k][0], 2, 7), Extent(scales[k][1], -3, 9))
        expected = torch.nn.functional.pad(grid[:, 2:9, :6], (3, 0))
        torch.testing.assert_close(told.on(k, cut), expected)


def test_accuracy_before_injection_is_the_networks():
    """`plain` is what the network says at the data: for random data about half right, not all."""
    model = random_model()
    wells = data_sets((40, 48), 2)["64 points"]
    made = model.realise(Conditioning(model.card, (40, 48), wells), realisation_noise(model.card, 0), [0, 1])
    expected = model.data_at_top(Conditioning(model.card, (40, 48), wells))
    assert sorted(expected.tolist()) == sorted(wells.facies.tolist())
    assert 0.1 < (made.plain == expected).mean() < 0.9


def test_card_survives_a_checkpoint():
    """A card in plain values and back rebuilds the same anchor from its noise."""
    labels = bands((40, 48))
    z_rec = torch.randn(3, 60, 60)
    wells = WellSet.from_columns(labels, [3])
    stored = StoredSection("a", (40, 48), wells, labels, z_rec)
    model = random_model(sections=(stored,))
    card = ModelCard.from_dict(model.card.to_dict())
    again = Simulator(card, model.blocks, model.device)
    first = rebuild(model, model.card.anchors[0])
    assert np.array_equal(first, rebuild(again, card.anchors[0])) and wells.matches(first).all()
    assert card.palette == model.card.palette and card.architecture == model.card.architecture
