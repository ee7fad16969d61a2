"""What a run shows of itself: scalars and samples of every scale, and scores of the anchors' realisations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from facies_gan.canvas import Size
from facies_gan.conditioning import draw_conditioning
from facies_gan.config import RunOptions
from facies_gan.images import write_png
from facies_gan.metrics_spatial import (
    connectivity_error,
    longest_lag,
    proportion_error,
    variogram_error,
)
from facies_gan.model_card import StoredSection
from facies_gan.setup import Setup
from facies_gan.simulator import Conditioning, Realisations, Simulator, grid_of, realisation_noise
from facies_gan.wells import WellSet

NUM_SCORED = 4
GAP = 2  # white cells between the panels
LEAST_PANEL = 96  # pixels of a panel's long side: cells of coarse grids are drawn larger
PREVIEW_SEED = 20_000


class Previews:
    """Writers of the scale folders, and the preview realisations.

    Args:
        folder: of the run.
        setup: data and options.
        run: the shared flags.
    """

    def __init__(self, folder: Path, setup: Setup, run: RunOptions) -> None:
        self.folder, self.setup, self.run = folder, setup, run
        self.step = 0
        self._writers: dict[int, Any] = {}

    def _writer(self, scale: int) -> Any:
        if scale not in self._writers:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writers[scale] = SummaryWriter(str(self.folder / str(scale)), purge_step=self.step or None)
        return self._writers[scale]

    def scalars(self, step: int, values: dict[str, Any], scales: Sequence[int]) -> None:
        """Note the step, and write the losses of each scale into its own folder."""
        self.step = step
        if not (self.run.tensorboard and distributed.is_main()) or step % self.run.log_every:
            return
        for k in scales:
            for name, value in values.items():
                if name.startswith(f"Scale_{k}/"):
                    self._writer(k).add_scalar(name, float(value), step)

    def draw(self, simulator: Simulator) -> dict[str, float]:
        """Draw the previews of the group under way, scale by scale, and return the scores of its finest."""
        o = self.setup.options
        anchors = simulator.card.anchors
        rows, fakes, reals, plain = [], [], [], []
        for number, anchor in enumerate(anchors[: max(NUM_SCORED, o.num_real_facies)]):
            real = self._real(simulator, number)
            conditioning = self._conditioning(simulator, anchor)
            shown = max(1, o.num_generated_per_real if o.plot_facies else 1)
            scored = -(-NUM_SCORED // len(anchors)) if number < NUM_SCORED else 1
            noise = realisation_noise(simulator.card, PREVIEW_SEED + number)
            made = simulator.realise(conditioning, noise, range(max(shown, scored)))
            if number < NUM_SCORED:
                fakes += list(made.labels)
                reals.append(real)
                plain.append(self._right(simulator, conditioning, made, number))
            rows.append(self._row(simulator, conditioning, real, made.labels[:shown]))
        if o.plot_facies:
            self._show(rows, simulator.top)
            self._show_coarser(simulator)
        return self._scores(fakes, reals, np.concatenate(plain))

    def _right(
        self, simulator: Simulator, conditioning: Conditioning, made: Realisations, number: int
    ) -> np.ndarray:
        """Return bool [n], whether the network alone has the data; of an anchor without any, drawn ones."""
        rule, anchor = self.setup.samples.rule, simulator.card.anchors[number]
        if not len(conditioning.wells) and rule is not None and anchor.labels is not None:
            rule = replace(rule, no_well_prob=0.0)
            wells = draw_conditioning(anchor.labels, None, rule, PREVIEW_SEED, number)
            conditioning = self._conditioning(simulator, replace(anchor, wells=wells))
            noise = realisation_noise(simulator.card, PREVIEW_SEED + number)
            made = simulator.realise(conditioning, noise, [0])
        return (made.plain == simulator.data_at_top(conditioning)).reshape(-1)

    def _show_coarser(self, simulator: Simulator) -> None:
        """Show the same realisations at the coarser scales that train with the finest one."""
        plan = next(plan for plan in self.setup.plans if simulator.top in plan.scales)
        card, count = simulator.card, self.setup.options.num_generated_per_real
        for k in (k for k in plan.scales if k < simulator.top):
            part = Simulator(card, simulator.blocks[: k + 1], simulator.device, simulator.precision)
            rows = []
            for number, anchor in enumerate(card.anchors):
                conditioning = self._conditioning(part, anchor)
                noise = realisation_noise(card, PREVIEW_SEED + number)
                made = part.realise(conditioning, noise, range(count))
                rows.append(self._row(part, conditioning, self._real(part, number), made.labels))
            self._show(rows, k)

    def _real(self, simulator: Simulator, number: int) -> np.ndarray:
        """Return the most likely facies of an anchor on the finest scale so far, uint8 [H, W]."""
        section = self.setup.samples.anchors[number]
        grid = self.setup.samples.pyramids[section][simulator.top]
        return grid.argmax(dim=0).to(torch.uint8).numpy()

    def _conditioning(self, simulator: Simulator, anchor: StoredSection) -> Conditioning:
        """Return the anchor's own data, those of its files and of the masked columns."""
        card = simulator.card
        size = grid_of(card, anchor.shape)
        wells = anchor.wells if card.has_data else WellSet.empty()
        if size != anchor.shape:
            wells = wells.resampled(anchor.shape, size)
        return Conditioning(card, size, wells, anchor.seismic)

    def _scores(
        self, fakes: list[np.ndarray], reals: list[np.ndarray], right: np.ndarray
    ) -> dict[str, float]:
        classes = self.setup.data.num_classes
        scores = {"proportion_error": proportion_error(fakes, reals, classes)}
        if right.size:
            scores["data_accuracy_before_injection"] = float(right.mean())
        lag = longest_lag([*fakes, *reals])
        scores["variogram_mae"] = variogram_error(fakes, reals, classes, lag)
        scores["connectivity_mae"] = connectivity_error(fakes, reals, classes, lag)
        return scores

    def _row(
        self, simulator: Simulator, conditioning: Conditioning, real: np.ndarray, fakes: np.ndarray
    ) -> np.ndarray:
        """Return one picture uint8 [H, W, 3]: real, then generated, data cells framed by their own colour."""
        palette = simulator.card.palette
        size: Size = real.shape[0], real.shape[1]
        panels = [palette.to_rgb(real), *(palette.to_rgb(fake) for fake in fakes)]
        if simulator.card.has_data and len(conditioning.wells):
            rows, cols, _ = conditioning.cells(size)
            for panel in panels[1:]:  # half-way to grey, so that the facies can still be told
                panel[rows, cols] = (panel[rows, cols].astype(np.uint16) + 128) // 2
        gap = np.full((real.shape[0], GAP, 3), 255, dtype=np.uint8)
        parts = [part for panel in panels for part in (panel, gap)]
        return np.concatenate(parts[:-1], axis=1)

    def _show(self, rows: list[np.ndarray], scale: int) -> None:
        width = max(row.shape[1] for row in rows)
        padded = [
            np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows
        ]
        picture = np.concatenate(padded)[:-GAP]
        larger = -(-LEAST_PANEL // max(self.setup.samples.sizes[0][scale]))
        picture = picture.repeat(larger, axis=0).repeat(larger, axis=1)
        write_png(self.folder / str(scale) / "samples" / f"step_{self.step:06d}.png", picture)
        if self.run.tensorboard:
            self._writer(scale).add_image(f"Samples/Scale_{scale}", picture, self.step, dataformats="HWC")
            self._writer(scale).flush()

    def close(self) -> None:
        """Finish the writers."""
        for writer in self._writers.values():
            writer.close()
