"""Training batches: which sections, which windows, which data and which noise iteration i of a group sees.

All of it is a function of (seed, group, position of the sample): a resumed run, and one on another number of
processes, sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common import distributed
from common.noise import numpy_stream, torch_stream
from common.sampling import draw
from facies_gan.canvas import (
    Box,
    Canvas,
    ScaleBox,
    Size,
    beyond,
    draw_start,
    equal_weights,
    halos,
    inside,
    on_canvas,
    part_of,
    upsample,
    whole,
)
from facies_gan.conditioning import ConditioningRule, draw_conditioning
from facies_gan.dataset import Section, SectionSet
from facies_gan.group import GroupPlan
from facies_gan.model_card import scales_from_fractions
from facies_gan.noise_field import plane_noise
from facies_gan.pyramids import finest_size, to_seismic_pyramids, to_wells_pyramids
from facies_gan.resample import Extent
from facies_gan.wells import WellSet

AMPLITUDE_SAMPLES = 64


def finest_sizes(sections: Sequence[Section], max_size: int) -> list[Size]:
    """Return the size of the finest grid of every section; all shrink by one factor."""
    longest = max(max(section.shape) for section in sections)
    factor = min(1.0, max_size / longest)
    return [finest_size(*section.shape, round(max(section.shape) * factor)) for section in sections]


def section_scales(
    sections: Sequence[Section], max_size: int, fractions: tuple[float, ...]
) -> list[list[Size]]:
    """Return the grid sizes of every section, coarse to fine; cells of a scale are alike in all sections."""
    return [scales_from_fractions(top, fractions) for top in finest_sizes(sections, max_size)]


@dataclass
class Batch:
    """One iteration's samples of this rank; lists are by scale.

    Attributes:
        group: index.
        iteration: of the group, from 0.
        positions: place of each sample in the row of all samples of the group.
        boxes: [scale][sample].
        condition: [B, E, h, w] on the input boxes of scales 0..top.
        real: [B, C, H, W] on the windows of the group's scales.
        real_condition: [B, E, H, W] there.
        rebuilt_prior: of the group's scales, as `ScaleInput`; the anchor's noise at scale 0.
        anchor: (condition, real) of the anchor that scale 0 rebuilds; None for other groups.
        map_weights: [B, h, w] of the group's score maps; None when whole grids are shown.
        cell_weights: [B, H, W] of the group's cells; None likewise.
    """

    group: int
    iteration: int
    positions: list[int]
    boxes: list[list[ScaleBox]]
    condition: list[torch.Tensor]
    real: list[torch.Tensor]
    real_condition: list[torch.Tensor]
    rebuilt_prior: list[torch.Tensor]
    anchor: tuple[torch.Tensor, torch.Tensor] | None
    map_weights: list[torch.Tensor | None]
    cell_weights: list[torch.Tensor | None]

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return Batch(**{name: _to(value, device) for name, value in vars(self).items()})


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_to(part, device) for part in value)
    return value


class Samples:
    """The sections of a training on all scales, and batches of them.

    Args:
        data: sections with wells and seismic.
        pyramids: [section][scale], float32 [C, H_k, W_k].
        mode: what lies beyond the grid.
        border: cells that a scale loses on each side.
        rule: of the random data; None = the model takes no data.
        flips: mirror sections at random.
        anchors: number of sections that are rebuilt from fixed noise.
        noise_channels: Z.
        seed: of the run.
    """

    def __init__(
        self,
        data: SectionSet,
        pyramids: list[list[torch.Tensor]],
        *,
        mode: str,
        border: int,
        rule: ConditioningRule | None,
        flips: bool,
        anchors: int,
        noise_channels: int,
        seed: int,
    ) -> None:
        self.data = data
        self.pyramids = pyramids
        self.sizes = [[(int(g.shape[-2]), int(g.shape[-1])) for g in grids] for grids in pyramids]
        self.canvases = [Canvas(tuple(sizes), border, mode) for sizes in self.sizes]
        self.mode, self.border, self.rule, self.flips = mode, border, rule, flips
        self.seed = seed
        self.noise_channels = noise_channels
        self._seismic: dict[int, list[torch.Tensor]] = {}
        self._classes = self._size_classes()
        chosen = numpy_stream(seed, "anchors").permutation(len(data))[: min(anchors, len(data))]
        self.anchors = [int(i) for i in sorted(chosen)]
        self.z_rec = [self._fixed_noise(i) for i in self.anchors]

    @property
    def num_classes(self) -> int:
        """Facies C."""
        return self.data.num_classes

    def _size_classes(self) -> list[list[int]]:
        """Return the sections in groups of equal size: a batch holds one size."""
        found: dict[tuple[Size, ...], list[int]] = {}
        for i, sizes in enumerate(self.sizes):
            found.setdefault(tuple(sizes), []).append(i)
        return list(found.values())

    def members(self, group: int, iteration: int, batch_size: int) -> tuple[list[int], list[int]]:
        """Return (sections, positions) of this rank's samples."""
        rng = numpy_stream(self.seed, "size class", group, iteration)
        weights = np.array([len(c) for c in self._classes], dtype=np.float64)
        chosen = self._classes[int(rng.choice(len(weights), p=weights / weights.sum()))]
        first = (iteration * distributed.world_size() + distributed.rank()) * batch_size
        positions = list(range(first, first + batch_size))
        return [chosen[draw(p, len(chosen), self.seed + group).index] for p in positions], positions

    def batches(self, plan: GroupPlan, first: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of iterations first..stop-1 of a group."""
        for iteration in range(first, stop):
            yield self.batch(plan, iteration)

    def batch(self, plan: GroupPlan, iteration: int) -> Batch:
        """Return the batch of one iteration on this rank."""
        sections, positions = self.members(plan.index, iteration, plan.batch_size)
        samples = [self._sample(plan, i, p) for i, p in zip(sections, positions, strict=True)]
        anchor = prior = None
        if plan.scales[0] == 0:
            number = iteration % len(self.anchors)
            prior, *pair = self.anchor_input(number)
            anchor = (pair[0], pair[1])
        stacked: dict[str, list[Any]] = {
            name: [torch.stack(list(grids)) for grids in zip(*(s[name] for s in samples), strict=True)]
            for name in ("condition", "real", "real_condition", "rebuilt_prior")
        }
        if prior is not None:
            stacked["rebuilt_prior"].insert(0, prior)
        shared: dict[str, list[Any]] = {
            name: [
                None if grids[0] is None else torch.stack(list(grids))
                for grids in zip(*(s[name] for s in samples), strict=True)
            ]
            for name in ("map_weights", "cell_weights")
        }
        boxes = [list(row) for row in zip(*(s["boxes"] for s in samples), strict=True)]
        return Batch(plan.index, iteration, positions, boxes, anchor=anchor, **stacked, **shared)

    def _sample(self, plan: GroupPlan, section: int, position: int) -> dict[str, list[Any]]:
        """Return the parts of one sample, as lists over scales."""
        top = plan.scales[-1]
        rng = numpy_stream(self.seed, "window", plan.index, position)
        sizes = self.sizes[section][: top + 1]
        start = [draw_start(n, min(plan.crop, n), rng.random()) for n in sizes[top]]
        flipped = self.flips and rng.random() < 0.5
        canvas = self.canvases[section]
        boxes = canvas.window(plan.scales, (start[0], start[1]), plan.crop)
        grids = [self._facies(section, k, flipped) for k in range(top + 1)]
        conditions = self.condition(section, sizes, plan.index, position, flipped)
        real, real_condition, priors, maps, cells = [], [], [], [], []
        for k in plan.scales:
            core = boxes[k].core
            real.append(part_of(grids[k], whole(sizes[k]), core))
            real_condition.append(part_of(conditions[k], whole(sizes[k]), core))
            if k:
                below = whole(sizes[k - 1])
                priors.append(upsample(grids[k - 1][None], [below], [boxes[k].input], self.mode)[0])
            maps.append(_weights(core, self.border))
            cells.append(_weights(core, 0))
        return {
            "boxes": boxes,
            "condition": [
                on_canvas(grid, box.input, self.mode) for grid, box in zip(conditions, boxes, strict=True)
            ],
            "real": real,
            "real_condition": real_condition,
            "rebuilt_prior": priors,
            "map_weights": maps,
            "cell_weights": cells,
        }

    def _facies(self, section: int, scale: int, flipped: bool) -> torch.Tensor:
        grid = self.pyramids[section][scale]
        return grid.flip(-1) if flipped else grid

    def condition(
        self, section: int, sizes: Sequence[Size], group: int, position: int, flipped: bool = False
    ) -> list[torch.Tensor]:
        """Return the conditioning [E, H_k, W_k] of a training sample on the grids `sizes`."""
        wells = WellSet.empty()
        if self.rule is not None:
            own = self.data.sections[section]
            wells = draw_conditioning(own.labels, own.wells, self.rule, self.seed, group, position)
        grids = self.condition_from(section, wells, sizes)
        return [grid.flip(-1) for grid in grids] if flipped else grids

    def condition_from(self, section: int, wells: WellSet, sizes: Sequence[Size]) -> list[torch.Tensor]:
        """Return the conditioning [E, H_k, W_k] of a section with given data."""
        own = self.data.sections[section]
        grids = [torch.zeros(0, *size) for size in sizes]
        if self.rule is not None:
            grids = to_wells_pyramids(wells, own.shape, sizes, self.num_classes)
        if own.seismic is not None:
            if section not in self._seismic:
                self._seismic[section] = to_seismic_pyramids(own.seismic, self.sizes[section])
            seismic = self._seismic[section]
            grids = [torch.cat([grid, seismic[k]]) for k, grid in enumerate(grids)]
        return grids

    def _fixed_noise(self, section: int) -> torch.Tensor:
        """Return z_rec of an anchor, float32 [Z, h, w] on the canvas of scale 0."""
        box = noise_box(self.canvases[section])
        return plane_noise(box, self.noise_channels, self.seed, "anchor noise", section)

    def anchor_noise(self, number: int, box: Box) -> torch.Tensor:
        """Return the fixed noise [Z, h, w] of an anchor on an input box of scale 0."""
        return cut_noise(self.z_rec[number], noise_box(self.canvases[self.anchors[number]]), box, self.mode)

    def anchor_input(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (noise, condition, real) with which scale 0 rebuilds an anchor, each with B = 1."""
        section = self.anchors[number]
        box = self.canvases[section].tile(0, whole(self.sizes[section][0]))[0].input
        wells = self.data.sections[section].wells or WellSet.empty()
        condition = self.condition_from(section, wells, self.sizes[section][:1])[0]
        noise = self.anchor_noise(number, box)
        return noise[None], on_canvas(condition, box, self.mode)[None], self.pyramids[section][0][None]

    def amplitude_errors(self, scale: int) -> float:
        """Return RMSE(u(real_{k-1}), real_k) over up to 64 sections."""
        chosen = numpy_stream(self.seed, "amplitudes").permutation(len(self.data))[:AMPLITUDE_SAMPLES]
        errors = []
        for i in chosen.tolist():
            coarse, fine = self.pyramids[i][scale - 1], self.pyramids[i][scale]
            boxes = whole(self.sizes[i][scale - 1]), whole(self.sizes[i][scale])
            errors.append((upsample(coarse[None], [boxes[0]], [boxes[1]], "noise")[0] - fine).square().mean())
        return float(torch.stack(errors).mean().sqrt())


def _weights(core: Box, margin: int) -> torch.Tensor | None:
    """Return the weights [h, w] of a window's score map, None when it shows the whole grid."""
    if all(extent.count == extent.side for extent in core):
        return None
    rows, cols = (equal_weights(extent, margin) for extent in core)
    return rows[:, None] * cols


def noise_box(canvas: Canvas) -> Box:
    """Return the input box of scale 0 that a whole realisation reads, with what rounding may add."""
    pair = []
    for axis in range(2):
        halo = halos([size[axis] for size in canvas.sizes], canvas.border, mode=canvas.mode)[0]
        more = 2 if canvas.mode == "noise" else 0
        pair.append(Extent.whole(canvas.sizes[0][axis], halo + canvas.border + more))
    return pair[0], pair[1]


def cut_noise(noise: torch.Tensor, box: Box, cut: Box, mode: str) -> torch.Tensor:
    """Return the cells `cut` of noise [..., h, w] that lies on `box`; beyond the grid as `mode` says."""
    if mode == "noise":
        return part_of(noise, box, cut)
    return beyond(part_of(noise, box, (inside(cut[0]), inside(cut[1]))), cut, mode)


def draw_noise(
    seed: int, batch: Batch, draws: int, turn: int, channels: int, mode: str, scales: range
) -> list[torch.Tensor]:
    """Return the noise [B m, Z, h, w] on the input boxes of `scales` for one pass of an iteration.

    Args:
        seed: of the run.
        batch: whose samples.
        draws: m.
        turn: which pass of the iteration; every pass draws anew.
        channels: Z.
        mode: what lies beyond the grid.
        scales: 0..top.
    """
    parts: list[list[torch.Tensor]] = [[] for _ in scales]
    for sample, position in enumerate(batch.positions):
        for number in range(draws):
            stream = torch_stream(seed, "training noise", batch.group, position, number, turn)
            for k in scales:
                box = batch.boxes[k][sample].input
                noise = torch.randn(channels, box[0].count, box[1].count, generator=stream)
                parts[k].append(noise if mode == "noise" else cut_noise(noise, box, box, mode))
    return [torch.stack(part) for part in parts]
