"""The generator: weights, extents, halos, windows that equal the whole, data that stay in their cells."""

from __future__ import annotations

import math

import pytest
import torch

from common.optim import parameter_count
from facies_gan.canvas import MODES, Canvas, halos, part_of, upsample, whole
from facies_gan.critic import ScaleCritic
from facies_gan.generator import (
    Architecture,
    ScaleGenerator,
    copy_equal_shapes,
    feature_widths,
    inject,
    run_scale,
)
from facies_gan.noise_field import plane_noise
from facies_gan.resample import Extent
from facies_gan.samples import cut_noise

QUICK = Architecture(2, 3, 3, (32,) * 5)
FOUR = Architecture(4, 5, 3, feature_widths(7, 32, 32, 4))


def test_parameter_counts():
    """Both networks have the published numbers of weights, for 2 and for 4 facies with wells."""
    assert [parameter_count(ScaleGenerator(QUICK, k)) for k in range(5)] == [32_674] + [33_250] * 4
    assert [parameter_count(ScaleCritic(QUICK, k)) for k in range(5)] == [29_505] * 5
    found = [parameter_count(ScaleGenerator(FOUR, k)) for k in range(7)]
    assert found == [35_556] + [36_708] * 3 + [128_708] * 3
    assert sum(parameter_count(ScaleCritic(FOUR, k)) for k in range(7)) == 472_455


def test_width_rule():
    """Features double every `growth` scales between the least width and 128; growth 0 keeps them."""
    assert feature_widths(9, 32, 32, 4) == (32,) * 4 + (64,) * 4 + (128,)
    assert feature_widths(4, 64, 32, 1) == (64, 128, 128, 128)
    assert feature_widths(3, 8, 24, 0) == (24, 24, 24)


def test_output_is_a_distribution():
    """An output has 5 cells less a side, sums to 1, and follows a confident coarse scale at the start."""
    block = ScaleGenerator(QUICK, 1, torch.Generator().manual_seed(0))
    prior = torch.zeros(2, 2, 30, 26)
    prior[:, 1] = 1.0
    noise, data = torch.randn(2, 3, 30, 26), torch.zeros(2, 3, 30, 26)
    done = run_scale(block, 5, noise, data, prior, injects=True)
    assert done.output.shape == (2, 2, 20, 16)
    torch.testing.assert_close(done.output.sum(1), torch.ones(2, 20, 16))
    assert (done.output[:, 1] > 0.9).all()


def test_inference_gives_the_values_of_training():
    """Without gradients arrays are reused: the values stay, bit for bit, and the inputs are not touched."""
    stream = torch.Generator().manual_seed(0)
    block = ScaleGenerator(QUICK, 1, stream)
    side = 16 + 2 * QUICK.border
    noise, prior = torch.randn(2, 3, side, side, generator=stream), torch.full((2, 2, side, side), 0.5)
    condition = torch.randn(2, QUICK.condition_channels, side, side, generator=stream)
    before = [x.clone() for x in (noise, condition, prior)]
    with_gradients = block(noise, condition, prior).detach()
    with torch.no_grad():
        assert torch.equal(block(noise, condition, prior), with_gradients)
    assert all(torch.equal(x, y) for x, y in zip((noise, condition, prior), before, strict=True))


def test_halos_by_hand():
    """h_S = 0, h_{k-1} = ceil((h_k + 5) side_{k-1} / side_k) + 1: 0, then 4, then 6; 0 without noise mode."""
    assert halos([16, 32, 64], 5) == [6, 4, 0]
    assert halos([12, 20, 34], 5) == [math.ceil((math.ceil(5 * 20 / 34) + 1 + 5) * 12 / 20) + 1, 4, 0]
    assert halos([16, 32, 64], 5, mode="zeros") == [0, 0, 0]


def run_boxes(boxes, blocks, mode, only=None):
    """Run scales on boxes with noise that belongs to the cells, and return all outputs."""
    outputs, previous = [], None
    for k, (block, box) in enumerate(zip(blocks, boxes, strict=True)):
        wide = (Extent(box.input[0].side, -60, 200), Extent(box.input[1].side, -60, 200))
        noise = cut_noise(plane_noise(wide, 3, 0, "test", k), wide, box.input, mode)[None]
        prior = None
        if previous is not None:
            prior = upsample(previous, [boxes[k - 1].output], [box.input], mode)
        empty = torch.zeros(1, 3, *noise.shape[-2:])
        previous = run_scale(block, 5, noise, empty, prior, injects=False).output
        outputs.append(previous)
    return outputs


@pytest.mark.parametrize("mode", MODES)
def test_windows_equal_the_whole(mode: str):
    """A training window computes what the whole image computes there, at every scale of its group."""
    torch.manual_seed(0)
    sizes = ((16, 20), (30, 38), (56, 70))
    canvas = Canvas(sizes, 5, mode)
    small = Architecture(2, 3, 3, (6,) * 3)
    blocks = [ScaleGenerator(small, k, torch.Generator().manual_seed(k)) for k in range(3)]
    complete = run_boxes(canvas.window([0, 1, 2], (0, 0), 70), blocks, mode)
    whole_boxes = canvas.window([0, 1, 2], (0, 0), 70)
    for start in ((0, 0), (17, 33), (32, 46)):
        boxes = canvas.window([1, 2], start, 24)
        window = run_boxes(boxes, blocks, mode)
        for k in (1, 2):
            core = boxes[k].core
            assert all(e.start >= 0 and e.start + e.count <= e.side for e in core)
            mine = part_of(window[k], boxes[k].output, core)
            theirs = part_of(complete[k], whole_boxes[k].output, core)
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
            assert boxes[k].core[0].count == 24 and boxes[2].core[0].start == start[0]


def test_windows_of_one_size_make_a_batch():
    """The extents of a window's boxes do not depend on its place, so that windows can be stacked."""
    for mode in MODES:
        canvas = Canvas(((16, 20), (30, 38), (56, 70), (120, 150)), 5, mode)
        shapes = {
            tuple((b.output[0].count, b.output[1].count, b.core[0].count) for b in boxes)
            for y in range(0, 97, 12)
            for boxes in [canvas.window([2, 3], (y, y + 20), 24)]
        }
        assert len(shapes) == 1


def test_data_do_not_drift():
    """A datum changes the output in a square of 5 cells around itself, and nowhere else."""
    block = ScaleGenerator(QUICK, 0, torch.Generator().manual_seed(1))
    noise, data = torch.randn(1, 3, 41, 41), torch.zeros(1, 3, 41, 41)
    told = data.clone()
    told[:, [1, 2], 20, 22] = 1.0
    change = (block(noise, told) - block(noise, data)).abs().sum(1)[0]
    rows, cols = change.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (10, 20, 12, 22)  # 15 +- 5, 17 +- 5


def test_injection():
    """Injected cells hold the data exactly and pass no gradient; the others are the network's."""
    probabilities = torch.rand(1, 2, 6, 6).requires_grad_()
    data = torch.zeros(1, 3, 6, 6)
    data[:, [0, 2], 3, 4] = 1.0
    output = inject(probabilities, data)
    assert output[0, :, 3, 4].tolist() == [1.0, 0.0]
    output.square().sum().backward()
    touched = probabilities.grad.abs().sum(1)[0]
    assert touched[3, 4] == 0 and (touched > 0).sum() == 35


def test_new_scale_copies_equal_shapes():
    """A new scale takes the tensors of the one before where shapes agree, and keeps its own first layer."""
    old, new = ScaleGenerator(QUICK, 0), ScaleGenerator(QUICK, 1)
    first = new.convolutions[0].weight.clone()
    copy_equal_shapes(new, old)
    assert torch.equal(new.convolutions[0].weight, first)
    for a, b in zip(new.convolutions[1:], old.convolutions[1:], strict=True):
        assert torch.equal(a.weight, b.weight)


def test_whole_box():
    """The box of a grid begins at its first cell and has its size."""
    assert whole((12, 15)) == (Extent(12, 0, 12), Extent(15, 0, 15))
