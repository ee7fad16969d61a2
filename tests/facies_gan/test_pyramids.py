"""Sizes from coarse to fine; facies and wells on them; resampling weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import UserError
from facies_gan.pyramids import (
    finest_size,
    generate_scales,
    pyramid_ratio,
    pyramid_sizes,
    scales_from_ratio,
    to_facies_pyramids,
    to_seismic_pyramids,
    to_wells_pyramids,
)
from facies_gan.resample import Extent, area, bilinear, cell_centre_index, overlap_weights, resize
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import blocky_labels, random_labels


def test_known_size_tables():
    """The published tables: 12..256 in 7 scales and 16..128 in 9."""
    seven = [12, 20, 34, 56, 92, 154, 256]
    nine = [16, 22, 28, 36, 46, 60, 76, 100, 128]
    assert generate_scales(256, 256, 12, 1024, 6) == [(n, n) for n in seven]
    assert generate_scales(128, 128, 16, 128, 8) == [(n, n) for n in nine]


@pytest.mark.parametrize("shape", [(96, 120), (120, 150), (97, 121), (40, 200)])
def test_rectangles_keep_their_aspect(shape: tuple[int, int]):
    """Every scale is even but the finest, has the native aspect within rounding, and the finest is exact."""
    scales = generate_scales(*shape, 16, 4096, 4)
    assert scales[-1] == shape and min(scales[0]) == 16
    for height, width in scales[:-1]:
        assert height % 2 == 0 and width % 2 == 0
        assert abs(width - height * shape[1] / shape[0]) <= 1.5 * shape[1] / shape[0] + 1.5


def test_one_scale_and_capped_sizes():
    """S = 0 is one scale; max_size shrinks the long side and never enlarges."""
    assert generate_scales(40, 50, 12, 1024, 0) == [(40, 50)]
    assert finest_size(250, 300, 150) == (125, 150) and finest_size(30, 40, 150) == (30, 40)
    ratio = pyramid_ratio(128, 16, 4)
    assert scales_from_ratio(256, 128, ratio, 4)[0] == (
        32,
        16,
    )  # coarse cells keep their size on a larger grid


def test_sections_of_different_size_share_cells():
    """Cells of one scale are alike in all sections, whatever their size."""
    small, large = pyramid_sizes([(64, 64), (128, 96)], 16, 1024, 2)
    assert small == [(16, 16), (32, 32), (64, 64)] and large == [(32, 24), (64, 48), (128, 96)]
    assert pyramid_sizes([(64, 64), (128, 96)], 16, 64, 1)[0][-1] == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((11, 50, 12, 64, 2), "below 12"),
        ((50, 50, 8, 64, 2), "--min_size 8"),
        ((50, 50, 70, 64, 2), "--min_size 70 is above --max_size 64"),
        ((50, 50, 12, 64, 40), "coincide; use --stop_scale"),
        ((100, 100, 60, 60, 2), "--stop_scale 0"),
        ((40, 400, 12, 64, 2), "use --max_size 120"),
    ],
)
def test_impossible_sizes(arguments: tuple[int, ...], message: str):
    """Sizes that cannot be are refused with a suggestion."""
    with pytest.raises(UserError, match=message):
        generate_scales(*arguments)


def test_suggested_scale_count_works():
    """The suggested --stop_scale gives distinct sizes."""
    with pytest.raises(UserError) as caught:
        generate_scales(50, 60, 12, 64, 40)
    suggested = int(str(caught.value).split("--stop_scale ")[-1])
    assert suggested > 0 and len(set(generate_scales(50, 60, 12, 64, suggested))) == suggested + 1


def test_area_average_by_hand():
    """Shares of a 3-cell row on 2 cells: the middle cell is halved; a constant stays constant."""
    labels = np.array([[0, 1, 1]] * 3)
    coarse = to_facies_pyramids(labels, [(3, 2)], "area", 2)[0]
    assert torch.allclose(coarse[1], torch.tensor([[1 / 3, 1.0]] * 3))
    assert np.allclose(overlap_weights(2, 3), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])


@pytest.mark.parametrize("size", [(5, 7), (16, 20), (23, 31)])
def test_proportions_survive_area_averaging(size: tuple[int, int]):
    """The mean over cells of each facies is the native proportion on every scale."""
    labels = random_labels()
    grid = to_facies_pyramids(labels, [size], "area", 4)[0]
    shares = np.bincount(labels.ravel(), minlength=4) / labels.size
    assert np.allclose(grid.mean((1, 2)).numpy(), shares, atol=1e-6)
    assert torch.allclose(grid.sum(0), torch.ones(size), atol=1e-5)


@pytest.mark.parametrize("height", [34, 150, 154, 256])
def test_alternating_well_keeps_its_order(height: int):
    """A well whose facies alternates on every row: each cell holds the mean, or the datum at its centre."""
    native = (150, 40)
    labels = (np.arange(150) % 2)[:, None].repeat(40, axis=1).astype(np.uint8)
    wells = WellSet.from_columns(labels, [17])
    grid = to_wells_pyramids(wells, native, [(height, 40)], 2)[0]
    column = grid[:, :, 17]
    assert (grid[2].sum(0) > 0).nonzero().flatten().tolist() == [17]
    assert (column[2] == 1).all()
    if height >= 150:
        expected = cell_centre_index(height, 150) % 2
        assert (column[:2].argmax(0).numpy() == expected).all()
    else:
        owner = cell_centre_index(150, height)
        expected = np.array([(np.flatnonzero(owner == i) % 2).mean() for i in range(height)])
        assert np.allclose(column[1].numpy(), expected)


@pytest.mark.parametrize("native", [(97, 121), (150, 150)])
def test_a_datum_survives_everywhere(native: tuple[int, int]):
    """Every single datum has a cell at every scale, and that cell contains it or is at its centre."""
    rng = np.random.default_rng(0)
    scales = [*generate_scales(*native, 12, 1024, 5), (native[0] + 6, native[1] + 33), (256, 300)]
    for _ in range(30):
        row, col = int(rng.integers(native[0])), int(rng.integers(native[1]))
        wells = WellSet.from_cells(np.array([row]), np.array([col]), np.array([2]))
        for (h, w), grid in zip(scales, to_wells_pyramids(wells, native, scales, 3), strict=True):
            rows, cols = np.nonzero(grid[3].numpy())
            assert len(rows) >= 1 and (grid[2].numpy()[rows, cols] == 1).all() and float(grid[:2].sum()) == 0
            if h <= native[0] and w <= native[1]:
                assert len(rows) == 1
                assert rows[0] == int((row + 0.5) * h / native[0])
                assert cols[0] == int((col + 0.5) * w / native[1])
            else:
                assert (np.abs((rows + 0.5) * native[0] / h - row - 0.5) <= 0.5 + 1e-9).all()


def test_bilinear_matches_torch():
    """Without halo it is torch's cell-centre bilinear interpolation; the gradient is its transpose."""
    x = torch.rand(2, 3, 14, 9, dtype=torch.float64, requires_grad=True)
    y = resize(x, (31, 20))
    expected = torch.nn.functional.interpolate(x, size=(31, 20), mode="bilinear", align_corners=False)
    assert torch.allclose(y, expected, atol=1e-12)
    weights = torch.rand_like(y)
    (ours,) = torch.autograd.grad((y * weights).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), x)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_windows_of_a_canvas_are_exact():
    """A window interpolates to the same bits as the same cells of the whole canvas."""
    x = torch.rand(1, 2, 46 + 12, 60 + 12)
    whole = bilinear(
        x, (Extent.whole(46, 6), Extent.whole(60, 6)), (Extent.whole(76, 4), Extent.whole(98, 4))
    )
    window = x[..., 9:40, 20:55]
    source = (Extent(46, 3, 31), Extent(60, 14, 35))
    target = (Extent(76, 10, 30), Extent(98, 30, 40))
    part = bilinear(window, source, target)
    assert torch.equal(part, whole[..., 14:44, 34:74])


def test_bilinear_is_exact_for_planes():
    """A plane over the area stays that plane inside a canvas with a halo."""

    def plane(side: int, halo: int) -> torch.Tensor:
        return ((torch.arange(-halo, side + halo) + 0.5) / side).double()

    coarse = plane(20, 5)[None, None, :, None] + 2 * plane(24, 5)[None, None, None]
    fine = resize(coarse, (33, 40), source_halo=5, target_halo=3)
    assert torch.allclose(fine[0, 0], plane(33, 3)[:, None] + 2 * plane(40, 3)[None], atol=1e-12)


def test_seismic_pyramid():
    """A constant stays constant on coarser and finer grids, and the mean survives averaging."""
    x = np.random.default_rng(0).normal(size=(2, 16, 20)).astype(np.float32)
    coarse, same, fine = to_seismic_pyramids(x, [(8, 10), (16, 20), (32, 40)])
    assert coarse.shape == (2, 8, 10) and fine.shape == (2, 32, 40) and torch.equal(same, torch.from_numpy(x))
    assert torch.allclose(coarse.mean((1, 2)), same.mean((1, 2)), atol=1e-6)
    for grid in to_seismic_pyramids(np.ones((1, 9, 9)), [(5, 7), (13, 20)]):
        assert torch.allclose(grid, torch.ones_like(grid))


def test_area_of_blocks_is_exact():
    """Averaging whole blocks gives the pure facies back."""
    labels = blocky_labels((16, 24), 3)
    grid = to_facies_pyramids(labels, [(4, 6)], "area", 3)[0]
    assert (grid.argmax(0).numpy() == labels[::4, ::4]).all() and float(grid.max()) == pytest.approx(1)
    assert area(grid, (4, 6)) is grid
