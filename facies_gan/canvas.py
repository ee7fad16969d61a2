"""Which cells each scale computes: a grid, the halo around it, windows and tiles of it.

A scale computes an output box from an input box that is `border` cells wider on each side, because its
convolutions are not padded. The input box reads the coarser scale by bilinear interpolation, which asks for
cells of that scale, and so on down to the coarsest.

Padding modes: in `noise` the model goes on beyond the grid: noise everywhere, no data, so that an edge of the
grid is a cut and not a border. In `zeros` and `reflect` every scale ends at its grid, and the cells beyond it
are zero or mirrored: a network can tell how far the edge is, as it must where depth matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from facies_gan.resample import Extent, bilinear

Size = tuple[int, int]
Box = tuple[Extent, Extent]
MODES = ("noise", "zeros", "reflect")


def halos(sides: Sequence[int], border: int, *, mode: str = "noise") -> list[int]:
    """Return the halo of every scale: h_S = 0, h_{k-1} = ceil((h_k + border) side_{k-1} / side_k) + 1."""
    widths = [0] * len(sides)
    if mode == "noise":
        for k in range(len(sides) - 1, 0, -1):
            widths[k - 1] = math.ceil((widths[k] + border) * sides[k - 1] / sides[k] - 1e-9) + 1
    return widths


def grown(extent: Extent, width: int) -> Extent:
    """Return the extent with `width` more cells on both ends."""
    return Extent(extent.side, extent.start - width, extent.count + 2 * width)


def inside(extent: Extent) -> Extent:
    """Return the part of the extent that lies in its grid."""
    start, stop = max(extent.start, 0), min(extent.start + extent.count, extent.side)
    return Extent(extent.side, start, stop - start)


def shifted_inside(extent: Extent) -> Extent:
    """Return an extent in the grid with as many cells as possible, moved as little as possible."""
    count = min(extent.count, extent.side)
    return Extent(extent.side, min(max(extent.start, 0), extent.side - count), count)


def reads(target: Extent, side: int) -> Extent:
    """Return the cells of a grid of `side` cells that bilinear interpolation to `target` touches.

    The number of cells depends on the size of the target, not on its place, so that windows form batches.
    """
    ratio = side / target.side
    first = math.floor((target.start + 0.5) * ratio - 0.5)
    return Extent(side, first, math.floor((target.count - 1) * ratio + 1e-9) + 3)


def whole(size: Size) -> Box:
    """Return the box of a whole grid."""
    return Extent.whole(size[0]), Extent.whole(size[1])


@dataclass(frozen=True)
class ScaleBox:
    """The cells of one scale in one pass.

    Attributes:
        output: the cells computed.
        input: the cells read: noise, data and the coarser scale.
        core: the cells of the grid that count (the window that a critic sees).
    """

    output: Box
    input: Box
    core: Box


@dataclass(frozen=True)
class Canvas:
    """The geometry of a pyramid.

    Attributes:
        sizes: (H, W) of every grid, coarsest first.
        border: cells that a scale loses on each side.
        mode: what lies beyond the grid.
    """

    sizes: tuple[Size, ...]
    border: int
    mode: str = "noise"

    def needed(self, box: Box, scale: int) -> Box:
        """Return the cells of scale - 1 that an input box of `scale` reads."""
        pair = [reads(extent, side) for extent, side in zip(box, self.sizes[scale - 1], strict=True)]
        if self.mode != "noise":
            pair = [shifted_inside(extent) for extent in pair]
        return pair[0], pair[1]

    def input_of(self, box: Box) -> Box:
        """Return the input box of an output box."""
        return grown(box[0], self.border), grown(box[1], self.border)

    def tile(self, top: int, core: Box) -> list[ScaleBox]:
        """Return the boxes of scales 0..top that the cells `core` of scale `top` depend on."""
        boxes = []
        output = core
        for scale in range(top, -1, -1):
            source = self.input_of(output)
            boxes.append(ScaleBox(output, source, output))
            if scale:
                output = self.needed(source, scale)
        return boxes[::-1]

    def window(self, scales: Sequence[int], start: Size, crop: int) -> list[ScaleBox]:
        """Return the boxes of scales 0..top for a training window at `start` of the top scale.

        Args:
            scales: the scales trained together; each has a window of `crop` cells (its whole grid when that
                is smaller) which holds all that the finer one needs.
            start: first row and column of the window of the finest of them.
            crop: cells of a window.
        """
        top, first = scales[-1], scales[0]
        pair = [Extent(n, s, min(crop, n)) for n, s in zip(self.sizes[top], start, strict=True)]
        core = output = (pair[0], pair[1])
        boxes: list[ScaleBox] = []
        margins = (0, 0)
        for scale in range(top, -1, -1):
            source = self.input_of(output)
            boxes.append(ScaleBox(output, source, core))
            if scale == 0:
                break
            output = core = self.needed(source, scale)
            if scale > first:
                margins = self._margins(margins, scale)
                windows = [self._around(need, crop) for need in output]
                core = (windows[0], windows[1])
                output = (grown(core[0], margins[0]), grown(core[1], margins[1]))
        return boxes[::-1]

    def _margins(self, margins: Size, scale: int) -> Size:
        """Return the halo of scale - 1 that the halo of `scale` asks for."""
        if self.mode != "noise":
            return 0, 0
        ratios = [a / b for a, b in zip(self.sizes[scale - 1], self.sizes[scale], strict=True)]
        pair = [math.ceil((h + self.border) * r - 1e-9) + 2 for h, r in zip(margins, ratios, strict=True)]
        return pair[0], pair[1]

    @staticmethod
    def _around(need: Extent, crop: int) -> Extent:
        """Return the window that holds the part of `need` inside the grid."""
        count = min(need.side, max(crop, need.count))
        return shifted_inside(Extent(need.side, need.start + (need.count - count) // 2, count))


def on_canvas(values: torch.Tensor, box: Box, mode: str) -> torch.Tensor:
    """Return grid values [..., H, W] on a box; beyond the grid they are mirrored in mode reflect, else 0."""
    rows, cols = inside(box[0]), inside(box[1])
    part = values[..., rows.start : rows.start + rows.count, cols.start : cols.start + cols.count]
    return beyond(part, box, mode)


def beyond(part: torch.Tensor, box: Box, mode: str) -> torch.Tensor:
    """Return values of the cells of `box` inside its grid, with what lies beyond added."""
    widths: list[int] = []
    for extent in (box[1], box[0]):
        cells = inside(extent)
        before = cells.start - extent.start
        widths += [before, extent.count - cells.count - before]
    if not any(widths):
        return part
    return F.pad(part, widths, mode="reflect") if mode == "reflect" else F.pad(part, widths)


def upsample(previous: torch.Tensor, source: Sequence[Box], target: Sequence[Box], mode: str) -> torch.Tensor:
    """Return probabilities [B, C, h, w] of a scale on the input boxes of the next.

    Args:
        previous: on the boxes `source`, one a sample, or one for all.
        source: boxes of `previous`.
        target: input boxes of the next scale, as many.
        mode: what lies beyond the grid.
    """
    pairs = list(zip(source, target, strict=True))
    if len(set(pairs)) == 1:
        return _upsample_one(previous, *pairs[0], mode)
    repeats = previous.shape[0] // len(pairs)
    parts = previous.split(repeats)
    done = [_upsample_one(part, a, b, mode) for part, (a, b) in zip(parts, pairs, strict=True)]
    return torch.cat(done)


def _upsample_one(previous: torch.Tensor, source: Box, target: Box, mode: str) -> torch.Tensor:
    if mode == "noise":
        return bilinear(previous, source, target)
    cells = inside(target[0]), inside(target[1])
    return beyond(bilinear(previous, source, cells), target, mode)


def part_of(values: torch.Tensor, box: Box, cut: Box) -> torch.Tensor:
    """Return the cells `cut` of values [..., h, w] that lie on `box`."""
    top, left = cut[0].start - box[0].start, cut[1].start - box[1].start
    return values[..., top : top + cut[0].count, left : left + cut[1].count]


def coverage_extension(count: int) -> int:
    """Return how far, in cells, window starts are drawn beyond the first and last place before clamping."""
    return count // 2


def draw_start(side: int, count: int, uniform: float) -> int:
    """Return the start of a window for a number in [0, 1); starts beyond the ends are moved to the ends."""
    last, extra = side - count, coverage_extension(count)
    if last <= 0:
        return 0
    return min(max(int(uniform * (last + 2 * extra + 1)) - extra, 0), last)


def coverage(side: int, count: int, margin: int) -> torch.Tensor:
    """Return the probability that a drawn window shows each place of a score map, float32 [side - 2 margin].

    A critic without padding scores the places whose receptive field of 2 margin + 1 cells lies in the window.
    """
    last, extra = side - count, coverage_extension(count)
    places, seen = side - 2 * margin, count - 2 * margin
    if last <= 0:
        return torch.ones(places)
    chance = torch.ones(last + 1, dtype=torch.float64)
    chance[0] += extra
    chance[-1] += extra
    total = torch.cumsum(torch.cat([torch.zeros(1, dtype=torch.float64), chance / chance.sum()]), 0)
    place = torch.arange(places)
    high = torch.clamp(place, max=last) + 1
    low = torch.clamp(place - seen + 1, min=0)
    return (total[high] - total[low]).float()


def equal_weights(extent: Extent, margin: int) -> torch.Tensor:
    """Return weights [count - 2 margin] of a window's score map whose mean estimates that of the whole grid.

    Weight = seen / (places * coverage), Horvitz and Thompson (1952): without it the middle of the grid, which
    more windows show, would count most.
    """
    cover = coverage(extent.side, extent.count, margin)
    own = cover[extent.start : extent.start + extent.count - 2 * margin]
    return own.numel() / (cover.numel() * own)
