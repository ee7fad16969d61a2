"""Training patches from prepped files: drawn by place in the run, augmented, read by whoever asks."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common import distributed
from common.errors import DataError, UserError
from common.files import read_json
from common.log import get_logger
from common.noise import numpy_stream, torch_stream
from common.sampling import Draw
from voxel_ode.augment import add_noise, collate, flip, turn
from voxel_ode.index import PatchIndex, read_index
from voxel_ode.items import make_item
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim, open_prepped

__all__ = ["PatchDataset", "PatchOptions", "collate", "open_split", "read_index", "read_stats"]

MAX_OPEN_FILES = 64
RAM_SHARE = 0.3  # of the free memory, for --cache auto
CALM_WEIGHT = 0.2  # of a patch where nothing happens, beside 1 of the mean change
MAX_ACTIVITY = 5.0  # times the mean change
WELL_WEIGHT = 4.0  # of a patch with a well cell beside one without


@dataclass(frozen=True)
class PatchOptions:
    """How patches are drawn and changed.

    Attributes:
        num_steps: K, states to predict.
        loss_margin: cells without loss beside a cut that is no grid edge.
        seed: of everything random.
        sample_weight: "uniform" (the index in Draw's order), "activity" or "well" (drawn with replacement).
        cache: "none", "ram" or "auto".
        turns: quarter turns.
        flips: flips of Y and X, each with probability one half.
        turn_per_sample: a turn for each sample instead of one a global batch.
        global_batch: samples of a step over all ranks, for one turn a step.
        noise_std: of the given state and statics, normalised.
    """

    num_steps: int = 1
    loss_margin: int = 0
    seed: int = 0
    sample_weight: str = "uniform"
    cache: str = "none"
    turns: bool = False
    flips: bool = False
    turn_per_sample: bool = False
    global_batch: int = 1
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        """Check the words and numbers."""
        if self.num_steps < 1 or self.loss_margin < 0 or self.global_batch < 1 or self.noise_std < 0:
            raise ValueError(f"{self}: expected steps and batch of 1 or more, margin and noise of 0 or more")
        for name, words in (
            ("sample_weight", ("uniform", "activity", "well")),
            ("cache", ("none", "ram", "auto")),
        ):
            if getattr(self, name) not in words:
                raise ValueError(f"--{name} {getattr(self, name)}: expected one of {', '.join(words)}")


class PatchDataset(Dataset[dict[str, Any]]):
    """Patches of an index; an item is what `voxel_ode.items.make_item` describes.

    With "uniform" weights item `Draw(index, position)` is patch `index`. With others the patch is drawn by
    the position alone, so that batches stay a function of (seed, step, rank). Files are opened by the process
    that reads them. With cache "ram" the grids lie in memory, shared with workers that are forked later.

    Args:
        index: of one split; patches too late for `num_steps` are left out.
        root: folder that the index's paths are relative to.
        stats: content of stats.json, or the maps made of it.
        options: how to draw and change.

    Raises:
        UserError: no patch is early enough for `num_steps`.
        DataError: a file does not fit the statistics.
    """

    def __init__(
        self,
        index: PatchIndex,
        root: Path,
        stats: dict[str, Any] | Normalizer,
        options: PatchOptions,
        *,
        sims: list[PreppedSim] | None = None,
    ) -> None:
        self.root, self.options = root, options
        self.normalizer = stats if isinstance(stats, Normalizer) else Normalizer.from_stats(stats)
        self.full_index = index
        self.sims = sims or [open_prepped(root / name) for name in index.sim_paths]
        last = np.array([sim.t_valid for sim in self.sims])[index.sim] - 1 - options.num_steps
        self.index = index.take(index.t <= last)
        if not len(self.index):
            raise UserError(
                f"--unroll_steps {options.num_steps}: simulations below {root} have too few states; lower it"
            )
        num_params = len(self.normalizer.param_mean)
        for sim in self.sims:
            if len(sim.params) != num_params:
                raise DataError(
                    f"{sim.path}: {len(sim.params)} parameters, stats.json has {num_params}; "
                    "run prep_data.py again"
                )
        self._cumulative = _cumulative(self.index, options.sample_weight)
        self._recent: OrderedDict[int, None] = OrderedDict()
        if sims is None and wants_ram(self.sims, options.cache):
            for sim in self.sims:
                sim.load()

    def with_steps(self, num_steps: int) -> PatchDataset:
        """Return the data set for another number of states to predict, on the same files and cache."""
        options = dataclasses.replace(self.options, num_steps=num_steps)
        return PatchDataset(self.full_index, self.root, self.normalizer, options, sims=self.sims)

    def __len__(self) -> int:
        return len(self.index)

    def chosen(self, draw: Draw) -> int:
        """Return the patch of the index that a draw stands for."""
        if self._cumulative is None:
            return draw.index
        u = numpy_stream(self.options.seed, "patch", draw.position).random() * self._cumulative[-1]
        return min(int(np.searchsorted(self._cumulative, u, side="right")), len(self.index) - 1)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        i = self.chosen(draw)
        item = make_item(
            self._sim(int(self.index.sim[i])),
            int(self.index.t[i]),
            self.options.num_steps,
            self.normalizer,
            self.index.slices(i),
            self.options.loss_margin,
        )
        return self._augmented(item, draw.position)

    def _augmented(self, item: dict[str, Any], position: int) -> dict[str, Any]:
        o = self.options
        if o.turns:
            place = position if o.turn_per_sample else position // o.global_batch
            item = turn(item, int(numpy_stream(o.seed, "turn", place).integers(4)), self.normalizer)
        if o.flips:
            for axis, draw in zip("yx", numpy_stream(o.seed, "flip", position).random(2), strict=True):
                item = flip(item, axis) if draw < 0.5 else item
        return add_noise(item, o.noise_std, self.normalizer, torch_stream(o.seed, "noise", position))

    def _sim(self, number: int) -> PreppedSim:
        """Return a simulation; only the last `MAX_OPEN_FILES` used keep their file open."""
        sim = self.sims[number]
        if not sim.arrays:
            self._recent[number] = None
            self._recent.move_to_end(number)
            if len(self._recent) > MAX_OPEN_FILES:
                self.sims[self._recent.popitem(last=False)[0]].close()
        return sim


def _cumulative(index: PatchIndex, sample_weight: str) -> np.ndarray | None:
    """Return the running sum of the patches' weights, float64 [N]; None when all weigh the same."""
    if sample_weight == "uniform":
        return None
    if sample_weight == "well":
        weight = np.where(index.has_well, WELL_WEIGHT, 1.0)
    else:
        mean = float(np.sqrt(np.mean(index.activity.astype(np.float64) ** 2)))
        change = np.minimum(index.activity / mean, MAX_ACTIVITY) if mean > 0 else np.ones(len(index))
        weight = index.active_fraction * (CALM_WEIGHT + change.astype(np.float64))
    return np.cumsum(weight)


def wants_ram(sims: list[PreppedSim], cache: str) -> bool:
    """Return whether the grids of these simulations shall be kept in memory."""
    if cache != "auto":
        return cache == "ram"
    needed = sum(sim.num_bytes for sim in sims) * distributed.world_size()
    return needed <= RAM_SHARE * free_memory_bytes()


def free_memory_bytes() -> int:
    """Return the memory that is free or can be freed, bytes; half of all memory where nothing tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def read_stats(path: Path) -> dict[str, Any]:
    """Return stats.json, refused when the manifest beside it speaks of another data set.

    Raises:
        DataError: it is missing, no JSON, or of another data set.
    """
    stats = _read_json(path, "run prep_data.py")
    beside = path.parent / "manifest.json"
    if beside.is_file():
        expected = _read_json(beside, "run prep_data.py again").get("dataset_id")
        if expected != stats.get("dataset_id"):
            raise DataError(
                f"{path}: of data set {str(stats.get('dataset_id'))[:12]}, {beside.name} is of "
                f"{str(expected)[:12]}; run prep_data.py again"
            )
    return stats


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    value = read_json(path, advice)
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected an object; {advice}")
    return value


def open_split(root: Path, split: str, options: PatchOptions, index_path: Path | None = None) -> PatchDataset:
    """Return the data set of "train", "val" or "test" below a prepped root, or of another index file.

    Raises:
        DataError: an index, file or the statistics are missing or damaged.
    """
    stats = read_stats(root / "stats.json")
    index = read_index(index_path or root / f"index_{split}", root)
    dataset = PatchDataset(index, root, stats, options)
    where = "memory" if dataset.sims[0].arrays else "files"
    get_logger().info(
        f"{split}: {len(dataset)} patches of {len(dataset.sims)} simulations, read from {where}"
    )
    return dataset
