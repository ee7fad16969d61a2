"""Generation: a model and what is known of a grid in, many realisations with maps and a summary out."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import device as devices
from common import distributed
from common.checkpoint import content_hash
from common.device import resolve_precision
from common.errors import UserError
from common.files import make_folder, read_json, remove_stale_temporaries, write_json
from common.log import get_logger
from common.run import MachineOptions, describe_run, machine
from facies_gan import pictures
from facies_gan.config import PACKAGE
from facies_gan.config_generate import GenerateConfig
from facies_gan.images import write_label_png
from facies_gan.metrics import change_probability, isolated_cells, seam_ratio
from facies_gan.model_files import load as load  # noqa: PLC0414 - part of the public names
from facies_gan.output_grid import OutputGrid, find_conditioning, output_grid
from facies_gan.outputs import EarlierSet, RealisationWriter, write_csv, write_maps, write_npy
from facies_gan.simulator import Conditioning, Realisations, Simulator, realisation_noise, rebuild
from facies_gan.summary import learnt_proportions, statistics, write_index

ADVICE = "lower --batch_size, or generate in pieces with --tile 256"
NAMES = ("realisations", "realisations.npy", "summary.json", "summary.csv", "probability.npy", "index.html")


def realisations(
    simulator: Simulator,
    conditioning: Conditioning,
    indices: list[int],
    *,
    seed: int = 0,
    batch_size: int = 8,
    tile: int = 0,
    halo: int = -1,
    noise_scale: float = 1.0,
    vary_from: int = 0,
) -> Iterator[tuple[int, Realisations]]:
    """Yield (index, realisation) one after another; a realisation holds B = 1.

    Args:
        simulator: of `load`.
        conditioning: what is known of the output grid.
        indices: of the realisations; index i of a seed is the same labels in any batch, tile or process.
        seed: of the set.
        batch_size: realisations computed at once.
        tile: edge of the pieces computed one after another; 0 = whole.
        halo: cells around a piece; -1 = all it needs.
        noise_scale: factor of the noise.
        vary_from: scales below share the noise of realisation 0.
    """
    noise = realisation_noise(simulator.card, seed, noise_scale, vary_from)
    for first in range(0, len(indices), batch_size):
        part = indices[first : first + batch_size]
        made = simulator.realise(conditioning, noise, part, tile=tile, halo=halo)
        for row, index in enumerate(part):
            yield index, Realisations(made.labels[row : row + 1], made.plain[row : row + 1])


@dataclass
class _Plan:
    """What one call of `generate` will do."""

    simulator: Simulator
    grid: OutputGrid
    conditioning: Conditioning
    settings: dict[str, Any]
    earlier: EarlierSet | None


def generate(config: GenerateConfig, run: MachineOptions) -> dict[str, Any]:
    """Write the realisations that `config` asks for and return the content of summary.json.

    Raises:
        UserError: the flags do not fit the model, or the output folder holds another set.
        DataError: the model, the data or the grid cannot be used.
    """
    started = time.perf_counter()
    with machine(run) as device, devices.explain_out_of_memory(ADVICE):
        with distributed.shared_errors():
            # fp32 unless asked for: equal labels on every device and batch come before speed.
            name = "fp32" if run.precision == "auto" else run.precision
            simulator = load(_model_path(config), device, precision=resolve_precision(name, device))
            plan = _plan(config, run, simulator)
        get_logger().info(
            f"{config.how_many} realisations of {plan.grid.size[0]} x {plan.grid.size[1]} cells (H x W), "
            f"{len(plan.conditioning.wells)} data, {device}"
        )
        if run.dry_run:
            return {"settings": plan.settings}
        with distributed.shared_errors():
            if distributed.is_main():
                remove_stale_temporaries(make_folder(config.out_path))
        summary = _write_all(config, run, plan)
        summary["seconds"] = round(time.perf_counter() - started, 2)
        summary["peak_memory_bytes"] = devices.peak_memory_bytes(device)
        if distributed.is_main():
            write_json(config.out_path / "summary.json", summary)
            write_index(config.out_path, summary)
            get_logger().info(f"{config.out_path}: {config.how_many} realisations in {summary['seconds']} s")
        distributed.barrier()
        return summary


def _model_path(config: GenerateConfig) -> Path:
    assert config.model_path is not None
    return config.model_path


def _plan(config: GenerateConfig, run: MachineOptions, simulator: Simulator) -> _Plan:
    card = simulator.card
    if config.tile and card.architecture.padding:
        raise UserError("--tile: this model pads its convolutions, its tiles would show; generate it whole")
    if config.vary_from_scale > simulator.top:
        raise UserError(
            f"--vary_from_scale {config.vary_from_scale}: the model has scales 0 to {simulator.top}"
        )
    grid = output_grid(config, card)
    conditioning = find_conditioning(config, card, grid, run.seed)
    wells = conditioning.wells
    settings = {
        "model": content_hash([block.state_dict() for block in simulator.blocks])[:16],
        "seed": run.seed,
        "size": list(grid.size),
        "data": content_hash([wells.rows.tolist(), wells.cols.tolist(), wells.facies.tolist()])[:16],
        "noise_scale": config.noise_scale,
        "vary_from_scale": config.vary_from_scale,
    }
    if conditioning.seismic is not None:
        settings["seismic"] = content_hash(list(conditioning.seismic))[:16]
    if config.tile and config.halo != "auto":  # seams that a narrow halo leaves depend on the tiles
        settings["halo"] = f"{config.halo} around tiles of {config.tile}"
    return _Plan(simulator, grid, conditioning, settings, _earlier(config, run, settings))


def _earlier(config: GenerateConfig, run: MachineOptions, settings: dict[str, Any]) -> EarlierSet | None:
    """Return the set that is extended; refuse a folder with anything else, unless it may be replaced."""
    folder = config.out_path
    if run.overwrite or not folder.is_dir() or not any(folder.iterdir()):
        return None
    path = folder / "summary.json"
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in folder.iterdir())[:3])
        raise UserError(f"{folder}: not empty (has {others}); choose another --out_path, or add --overwrite")
    if config.first_index == 0:
        raise UserError(
            f"{folder}: holds realisations; extend them with --first_index, replace them with --overwrite, "
            "or choose another --out_path"
        )
    saved = read_json(path, "replace the set with --overwrite")
    return EarlierSet(folder, settings, config.first_index, saved)


def _write_all(config: GenerateConfig, run: MachineOptions, plan: _Plan) -> dict[str, Any]:
    """Make and write the realisations of this process, then the maps and figures of all."""
    folder, card = config.out_path, plan.simulator.card
    earlier, count = plan.earlier, config.how_many
    first = config.first_index
    goes_on = earlier is not None and earlier.has_stack
    if earlier is not None and goes_on:
        first = earlier.indices[0]
    total = config.first_index + count - first
    writer = RealisationWriter(
        folder, plan.grid, card.palette, config.format_names, plan.conditioning.wells,
        first=first, count=total, seed=run.seed,
    )  # fmt: skip
    kept = _Kept(config, plan)
    try:
        if earlier is not None and goes_on and writer.stack is not None and distributed.is_main():
            earlier.copy_stack(writer.stack)
        expected = plan.simulator.data_at_top(plan.conditioning)
        for index, made in _made(config, run, plan, _mine(config)):
            writer.write(index, made.labels[0], made.plain[0], expected)
            kept.add(index, made.labels[0])
        differing = _differing_cells(config, run, plan, kept.first)
    except BaseException:
        if writer.stack is not None:
            writer.stack.abort()
        raise
    if writer.stack is not None:
        writer.stack.finish()
    counts = sum(distributed.gather_objects(writer.counts), np.zeros_like(writer.counts))
    rows = [row for part in distributed.gather_objects(writer.rows) for row in part]
    blending = kept.blending()
    if earlier is not None:
        blending = earlier.blended(blending, len(rows))
        counts, rows = counts + earlier.counts, rows + earlier.rows
    rows.sort(key=lambda row: row["index"])
    summary: dict[str, Any] = {}
    if distributed.is_main():
        summary = _summarise(config, run, plan, counts, rows)
        summary["blending"] = blending
        if differing is not None:
            summary["cells_differing_between_processes"] = differing
        kept.draw(folder)
    return distributed.broadcast_object(summary)


def _mine(config: GenerateConfig) -> list[int]:
    """Return the indices of the realisations of this process."""
    return [config.first_index + i for i in distributed.shard(config.how_many)]


def _made(
    config: GenerateConfig, run: MachineOptions, plan: _Plan, indices: list[int]
) -> Iterator[tuple[int, Realisations]]:
    return realisations(
        plan.simulator, plan.conditioning, indices, seed=run.seed, batch_size=config.batch_size,
        tile=config.tile, halo=-1 if config.halo == "auto" else int(config.halo),
        noise_scale=config.noise_scale, vary_from=config.vary_from_scale,
    )  # fmt: skip


def _differing_cells(
    config: GenerateConfig, run: MachineOptions, plan: _Plan, first: np.ndarray | None
) -> int | None:
    """Return how many cells differ when each process repeats the first realisation of the next one.

    Devices of one kind give 0; another GPU or another library may round otherwise. None for one process.
    """
    if distributed.world_size() == 1:
        return None
    mine = _mine(config)
    shown = distributed.gather_objects((mine[0], first) if mine else None)
    theirs = shown[(distributed.rank() + 1) % len(shown)]
    count = 0
    if theirs is not None:
        index, labels = theirs
        ((_, again),) = _made(config, run, plan, [index])
        count = int(np.count_nonzero(again.labels[0] != labels))
    total = sum(distributed.gather_objects(count))
    if distributed.is_main():
        get_logger().info(f"realisations repeated by another process: {total} cells differ")
    return total


def _summarise(
    config: GenerateConfig, run: MachineOptions, plan: _Plan, counts: np.ndarray, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write maps and summary.csv; return the content of summary.json."""
    folder, card = config.out_path, plan.simulator.card
    about = describe_run(PACKAGE, run.seed)
    summary: dict[str, Any] = {
        "command": shlex.join(about["command"]),
        "run": about,
        "settings": plan.settings,
        "how_many": len(rows),
        "num_data": len(plan.conditioning.wells),
        "num_wells": plan.conditioning.wells.num_wells,
        "facies": card.palette.to_dict(),
        "learnt_proportions": learnt_proportions(card),
        "geometry": plan.grid.geometry.to_dict(),
    }
    if rows:
        entropy = write_maps(folder, plan.grid, card.palette, counts, len(rows))
        wells, classes = plan.conditioning.wells, len(card.palette)
        pictures.draw_entropy(folder / "entropy.png", entropy, wells, classes)
        write_csv(folder / "summary.csv", rows)
        summary["mean_entropy_bits"] = float(entropy.mean())
        summary["statistics"] = statistics(rows, card.palette)
    else:
        summary["statistics"] = {"facies": {}, "hard_data": {}}
    if config.rec:
        summary["rebuilt"] = _rebuild_anchors(folder, plan.simulator)
    return summary


def _rebuild_anchors(folder: Path, simulator: Simulator) -> dict[str, float]:
    """Write every anchor rebuilt from its saved noise; return the share of its cells that are right."""
    shares = {}
    for anchor in simulator.card.anchors:
        labels = rebuild(simulator, anchor)
        write_label_png(folder / "rebuilt" / f"{anchor.stem}.png", labels, simulator.card.palette.colors)
        write_npy(folder / "rebuilt" / f"{anchor.stem}.npy", labels)
        if anchor.labels is not None and anchor.labels.shape == labels.shape:
            shares[anchor.stem] = float((labels == anchor.labels).mean())
    return shares


class _Kept:
    """The few realisations that figures need, and sums for the blending measures."""

    def __init__(self, config: GenerateConfig, plan: _Plan) -> None:
        self.config, self.plan = config, plan
        most = (
            pictures.MOST_IN_MDS
            if config.plot_mds
            else pictures.MOST_COMPARED
            if config.comparison_plots
            else 0
        )
        self.most = most
        self.labels: list[np.ndarray] = []
        self.indices: list[int] = []
        self.first: np.ndarray | None = None  # of this process
        self.references = [a.labels for a in plan.simulator.card.anchors if a.labels is not None]
        classes = plan.simulator.card.palette.num_classes
        self.change = change_probability(self.references, classes) if self.references else None
        self.seams: list[float] = []
        self.isolated: list[float] = []

    def add(self, index: int, labels: np.ndarray) -> None:
        """Note realisation `index`."""
        wells = self.plan.conditioning.wells
        self.first = labels.copy() if self.first is None else self.first
        if len(self.labels) < self.most:
            self.labels.append(labels.copy())
            self.indices.append(index)
        if len(wells) and self.change is not None:
            self.seams.append(seam_ratio(labels, wells, self.change))
            self.isolated.append(float(isolated_cells(labels)[wells.rows, wells.cols].mean()))

    def blending(self) -> dict[str, float | None]:
        """Return the mean seam ratio and share of isolated data cells over all processes' realisations."""
        found: dict[str, float | None] = {}
        for name, values in (("seam_ratio", self.seams), ("isolated_data_cells", self.isolated)):
            every = [v for part in distributed.gather_objects(values) for v in part if np.isfinite(v)]
            found[name] = float(np.mean(every)) if every else None
        return found

    def draw(self, folder: Path) -> None:
        """Draw the figures that were asked for."""
        card, wells = self.plan.simulator.card, self.plan.conditioning.wells
        if self.config.plot_well_mask:
            pictures.draw_well_mask(folder / "well_mask.png", self.plan.grid.size, card.palette, wells)
        if self.config.comparison_plots and self.labels:
            reference = self.references[0] if self.references else None
            pictures.draw_comparison(
                folder / "comparison.png", reference, self.labels, card.palette, wells, self.indices
            )
        if self.config.plot_mds and self.labels:
            classes = card.palette.num_classes
            if not pictures.draw_mds(folder / "mds.png", self.references, self.labels, classes):
                get_logger().warning("warning: --plot_mds needs three images or more, nothing drawn")
