"""Realisations from a trained pyramid: whole or tile by tile, the same labels either way.

Realisation i of seed s at scale k reads noise that is a function of (s, i, k) and the cell. The network has
no statistics over space or batch, and its convolutions run in channels-last order, whose kernels treat every
cell alike; so batches, tiles and the number of processes change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.device import Precision
from facies_gan.canvas import (
    Box,
    ScaleBox,
    Size,
    beyond,
    grown,
    inside,
    on_canvas,
    upsample,
    whole,
)
from facies_gan.generator import Pass, ScaleGenerator, run_scale
from facies_gan.model_card import ModelCard, StoredSection
from facies_gan.noise_field import plane_noise
from facies_gan.pyramids import to_seismic_pyramids
from facies_gan.resample import Extent, cell_centre_index
from facies_gan.samples import cut_noise, noise_box
from facies_gan.wells import WellSet

Noise = Callable[[int, Box, int], torch.Tensor]


class Conditioning:
    """Data and seismic of an output grid, put on any box of any scale.

    Data are kept as cells, so that the memory does not grow with the grid.

    Args:
        card: of the model.
        size: (H, W) of the output grid, on which the data are.
        wells: hard data.
        seismic: float32 [n_s, H, W], scaled; None without.
    """

    def __init__(
        self, card: ModelCard, size: Size, wells: WellSet | None = None, seismic: np.ndarray | None = None
    ) -> None:
        self.card, self.size = card, size
        self.wells = wells if wells is not None else WellSet.empty()
        self.sizes = card.scales(size)
        self.mode = card.mode
        self._cells = [self.cells(scale) for scale in self.sizes] if card.has_data else []
        self.seismic = None if seismic is None else to_seismic_pyramids(seismic, self.sizes)

    def cells(self, size: Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (rows, cols, shares [n, C]) of the cells of a scale that hold data."""
        num_classes = self.card.architecture.num_classes
        rows = cell_centre_index(self.size[0], size[0])[self.wells.rows]
        cols = cell_centre_index(self.size[1], size[1])[self.wells.cols]
        key, inverse = np.unique(rows * size[1] + cols, return_inverse=True)
        counts = np.zeros((len(key), num_classes), dtype=np.float64)
        np.add.at(counts, (inverse, self.wells.facies), 1.0)
        shares = torch.from_numpy((counts / counts.sum(axis=1, keepdims=True)).astype(np.float32))
        return torch.from_numpy(key // size[1]), torch.from_numpy(key % size[1]), shares

    def on(self, scale: int, box: Box) -> torch.Tensor:
        """Return the conditioning [E, h, w] of a scale on a box."""
        parts = [self._data_on(scale, box)] if self.card.has_data else []
        if self.seismic is not None:
            parts.append(on_canvas(self.seismic[scale], box, self.mode))
        return torch.cat(parts) if parts else torch.zeros(0, box[0].count, box[1].count)

    def _data_on(self, scale: int, box: Box) -> torch.Tensor:
        rows, cols, shares = self._cells[scale]
        cells = inside(box[0]), inside(box[1])
        num_classes = self.card.architecture.num_classes
        grid = torch.zeros(num_classes + 1, cells[0].count, cells[1].count)
        row, col = rows - cells[0].start, cols - cells[1].start
        seen = (row >= 0) & (row < cells[0].count) & (col >= 0) & (col < cells[1].count)
        grid[:num_classes, row[seen], col[seen]] = shares[seen].T
        grid[num_classes, row[seen], col[seen]] = 1.0
        return beyond(grid, box, self.mode)


def realisation_noise(card: ModelCard, seed: int, noise_scale: float = 1.0, vary_from: int = 0) -> Noise:
    """Return the noise of realisations: (scale, box, index) -> [Z, h, w], times its amplitude.

    Args:
        card: of the model.
        seed: of the set of realisations.
        noise_scale: factor of all amplitudes.
        vary_from: scales below share the noise of realisation 0.
    """

    def noise(scale: int, box: Box, index: int) -> torch.Tensor:
        own = index if scale >= vary_from else 0
        cells = box if card.mode == "noise" else (inside(box[0]), inside(box[1]))
        drawn = plane_noise(cells, card.architecture.noise_channels, seed, "realisation", own, scale)
        drawn = drawn * (card.amplitudes[scale] * noise_scale)
        return drawn if card.mode == "noise" else beyond(drawn, box, card.mode)

    return noise


def anchor_noise(card: ModelCard, anchor: StoredSection) -> Noise:
    """Return the noise that rebuilds an anchor: its own at scale 0, none above."""
    canvas = card.canvas(grid_of(card, anchor.shape))
    stored = noise_box(canvas)
    z_rec = anchor.z_rec
    assert z_rec is not None

    def noise(scale: int, box: Box, _index: int) -> torch.Tensor:
        if scale:
            return torch.zeros(card.architecture.noise_channels, box[0].count, box[1].count)
        return cut_noise(z_rec, stored, box, card.mode) * card.amplitudes[0]

    return noise


def grid_of(card: ModelCard, shape: Size) -> Size:
    """Return the size of the finest grid of a section of `shape` native cells."""
    return round(shape[0] * card.size[0] / card.native[0]), round(shape[1] * card.size[1] / card.native[1])


@dataclass(frozen=True)
class Realisations:
    """Some realisations of one output grid.

    Attributes:
        labels: uint8 [B, H, W], the data honoured.
        plain: uint8 [B, n], what the network alone says at the n data, before injection.
    """

    labels: np.ndarray
    plain: np.ndarray


class Simulator:
    """A model ready to generate.

    Args:
        card: its facts.
        blocks: generators of the trained scales.
        device: where to run.
        precision: fp32 unless speed matters more than equal labels on every device.
    """

    def __init__(
        self,
        card: ModelCard,
        blocks: Sequence[ScaleGenerator],
        device: torch.device,
        precision: Precision | None = None,
    ) -> None:
        self.card = card
        self.blocks = [block.to(device).eval() for block in blocks]
        self.device = device
        self.precision = precision or Precision(device, torch.float32)

    @property
    def top(self) -> int:
        """The finest trained scale."""
        return len(self.blocks) - 1

    @torch.inference_mode()
    def realise(
        self,
        conditioning: Conditioning,
        noise: Noise,
        indices: Sequence[int],
        *,
        tile: int = 0,
        halo: int = -1,
    ) -> Realisations:
        """Return realisations on the grid of `conditioning`.

        Args:
            conditioning: what is known.
            noise: (scale, box, index) -> [Z, h, w].
            indices: of the realisations.
            tile: edge of the pieces computed one after another, in cells of the finest grid; 0 = whole.
            halo: cells of the finest grid around a piece that its coarser scales may see; -1 = all they need,
                which makes tiled equal whole.
        """
        canvas = self.card.canvas(conditioning.size)
        size = canvas.sizes[self.top]
        labels = np.zeros((len(indices), *size), dtype=np.uint8)
        rows, cols, _ = conditioning.cells(size) if self.card.has_data else (None, None, None)
        plain = np.zeros((len(indices), 0 if rows is None else len(rows)), dtype=np.uint8)
        for core in cores(size, tile):
            boxes = canvas.tile(self.top, core)
            if halo >= 0:
                boxes = limited(boxes, canvas.sizes, halo)
            done = self._run(conditioning, noise, indices, boxes)
            ys, xs = (slice(e.start, e.start + e.count) for e in core)
            labels[:, ys, xs] = done.output.argmax(dim=1).to(torch.uint8).cpu().numpy()
            if rows is not None and cols is not None and len(rows):
                row, col = rows - core[0].start, cols - core[1].start
                seen = (row >= 0) & (row < core[0].count) & (col >= 0) & (col < core[1].count)
                at_data = done.plain.argmax(dim=1).cpu()[:, row[seen], col[seen]]
                plain[:, seen.numpy()] = at_data.to(torch.uint8).numpy()
        return Realisations(labels, plain)

    def _run(
        self, conditioning: Conditioning, noise: Noise, indices: Sequence[int], boxes: list[ScaleBox]
    ) -> Pass:
        """Run all scales for one piece of the grid."""
        done: Pass | None = None
        for k, (block, box) in enumerate(zip(self.blocks, boxes, strict=True)):
            z = torch.stack([noise(k, box.input, index) for index in indices]).to(self.device)
            told = conditioning.on(k, box.input).to(self.device).expand(len(indices), -1, -1, -1)
            prior = None
            if done is not None:
                prior = upsample(done.output, [boxes[k - 1].output], [box.input], self.card.mode)
            with self.precision.autocast():
                done = run_scale(block, block.border, z, told, prior, injects=self.card.injects[k])
        assert done is not None
        return done

    def data_at_top(self, conditioning: Conditioning) -> np.ndarray:
        """Return the facies uint8 [n] that the cells with data must have, ordered as `Realisations.plain`."""
        if not self.card.has_data:
            return np.zeros(0, dtype=np.uint8)
        shares = conditioning.cells(conditioning.sizes[self.top])[2]
        return shares.argmax(dim=1).to(torch.uint8).numpy() if len(shares) else np.zeros(0, dtype=np.uint8)


def cores(size: Size, tile: int) -> list[Box]:
    """Return the pieces of a grid: the whole, or equal tiles of at most `tile` cells."""
    if tile <= 0:
        return [whole(size)]
    axes = []
    for side in size:
        step = -(-side // -(-side // tile))
        axes.append([Extent(side, start, min(step, side - start)) for start in range(0, side, step)])
    return [(rows, cols) for rows in axes[0] for cols in axes[1]]


def limited(boxes: list[ScaleBox], sizes: Sequence[Size], halo: int) -> list[ScaleBox]:
    """Return the boxes of a piece with coarser scales cut to `halo` cells (of the finest grid) around it."""
    core = boxes[-1].output
    found = []
    for k, box in enumerate(boxes):
        pair = []
        for axis in range(2):
            ratio = sizes[k][axis] / core[axis].side
            first = int(np.floor((core[axis].start - halo) * ratio))
            last = int(np.ceil((core[axis].start + core[axis].count + halo) * ratio))
            own = box.output[axis]
            start, stop = max(own.start, first), min(own.start + own.count, last)
            pair.append(Extent(own.side, start, max(stop - start, 1)))
        output = (pair[0], pair[1])
        border = (box.input[0].count - box.output[0].count) // 2
        found.append(ScaleBox(output, (grown(output[0], border), grown(output[1], border)), output))
    return found


def rebuild(simulator: Simulator, anchor: StoredSection) -> np.ndarray:
    """Return an anchor uint8 [H, W] rebuilt from its saved noise and its own data."""
    card = simulator.card
    size = grid_of(card, anchor.shape)
    wells = anchor.wells if size == anchor.shape else anchor.wells.resampled(anchor.shape, size)
    conditioning = Conditioning(card, size, wells if card.has_data else None, anchor.seismic)
    return simulator.realise(conditioning, anchor_noise(card, anchor), [0]).labels[0]
