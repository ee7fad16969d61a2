"""The data of a training: splits, and what the configuration must fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import distributed
from common.errors import DataError, UserError
from common.log import get_logger
from voxel_ode.augment import require_square
from voxel_ode.config import TrainConfig
from voxel_ode.dataset import PatchDataset, PatchOptions, open_split
from voxel_ode.items import loss_mask
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim
from voxel_ode.units import INTERNAL_UNITS

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test patches of one data set.

    Attributes:
        train: augmented patches; `with_steps` gives those for more years.
        val: without augmentation and noise; None when there is no such simulation.
        test: the same, logged but never used for a choice.
    """

    train: PatchDataset
    val: PatchDataset | None
    test: PatchDataset | None

    @property
    def normalizer(self) -> Normalizer:
        """The maps between physical values and the network's."""
        return self.train.normalizer

    @property
    def units(self) -> Mapping[str, str]:
        """The internal units, for the checkpoint."""
        return INTERNAL_UNITS

    @property
    def patch_shape(self) -> Shape:
        """(D, H, W) of the largest training patch."""
        box = self.train.index.box.reshape(-1, 3, 2)
        d, h, w = (int(n) for n in (box[..., 1] - box[..., 0]).max(axis=0))
        return d, h, w

    def rollout_simulations(self, count: int) -> list[PreppedSim]:
        """Return up to `count` validation simulations that have a year to predict."""
        sims = self.val.sims if self.val is not None else []
        return [sim for sim in sims if sim.t_valid > 1][:count]

    def can_choose(self, config: TrainConfig) -> bool:
        """Whether validation rollouts choose the best checkpoint."""
        return bool(self.rollout_simulations(config.rollout_eval_sims))


def open_splits(config: TrainConfig, seed: int) -> tuple[TrainConfig, Splits]:
    """Return the configuration that fits the data, and the data; unknown cell sizes turn flux inputs off.

    Raises:
        UserError: --prepped_root is missing, or patches are too small for the coarse levels.
        DataError: files are missing or damaged.
    """
    if config.prepped_root is None:
        raise UserError("--prepped_root: missing; name the folder that prep_data.py wrote")
    root = Path(config.prepped_root)
    train = open_split(root, "train", _options(config, seed), config.train_index)
    plain = PatchOptions(seed=seed, cache=config.cache)
    val = _held_out(root, "val", plain, config.val_index)
    test = _held_out(root, "test", plain, config.test_index)
    splits = Splits(train, val, test)
    _require_room(config, splits)
    per_step = config.batch_size * config.accum_steps * distributed.world_size()
    if len(train) < per_step:
        get_logger().info(f"{len(train)} patches for {per_step} a step: some are used more than once a step")
    if config.flux_inputs and any(sim.cell_size_m is None for sim in train.sims):
        get_logger().info("--flux_inputs: off, since the files do not say how large their cells are")
        config = replace(config, flux_inputs=False)
    return config, splits


def _options(config: TrainConfig, seed: int) -> PatchOptions:
    return PatchOptions(
        loss_margin=config.loss_margin,
        seed=seed,
        sample_weight=config.sample_weight,
        cache=config.cache,
        turns=config.aug_xy_rot,
        flips=config.aug_flip,
        turn_per_sample=config.rot_per_sample,
        global_batch=config.batch_size * config.accum_steps * distributed.world_size(),
        noise_std=config.noise_std,
    )


def _held_out(root: Path, split: str, options: PatchOptions, index: Path | None) -> PatchDataset | None:
    """Return a split, or None when the data set has no simulation in it."""
    path = index or root / f"index_{split}"
    exists = any(path.with_suffix(suffix).is_file() for suffix in (".jsonl", ".npz"))
    if index is None and (not exists or not any((root / split).glob("*.h5"))):
        return None
    return open_split(root, split, options, index)


def _require_room(config: TrainConfig, splits: Splits) -> None:
    """Refuse data that a later step would stumble over, before anything is written.

    Raises:
        UserError: an axis has fewer than 2^(L+1) cells, a patch is all margin, or cells to be turned are not
            square.
        DataError: a file holds more than --max_memory.
    """
    require_margin(splits.train)
    for sim in splits.train.sims if config.aug_xy_rot else ():
        require_square(sim.cell_size_m or (0.0, 0.0, 0.0), str(sim.path))
    least = 2 ** (config.multiscale + 1)
    if config.multiscale and min(splits.patch_shape) < least:
        raise UserError(
            f"--multiscale {config.multiscale}: patches of {splits.patch_shape} cells, expected {least} or "
            "more along each axis; lower it, or prepare larger patches"
        )
    for sim in splits.train.sims:
        if config.max_memory and sim.num_bytes > config.max_memory * 1e9:
            raise DataError(
                f"{sim.path}: {sim.num_bytes / 1e9:.2g} GB of grids, above --max_memory "
                f"{config.max_memory:g}; raise it, or leave the file out"
            )


def require_margin(data: PatchDataset) -> None:
    """Refuse a loss margin that leaves nothing of some patch.

    Raises:
        UserError: there is such a patch.
    """
    margin, index = data.options.loss_margin, data.index
    shapes = np.array([sim.shape for sim in data.sims])[index.sim]
    low, high = index.box[:, ::2], index.box[:, 1::2]
    room = high - low - margin * ((low > 0).astype(np.int64) + (high < shapes))
    if (room <= 0).any():
        i = int(np.argmax((room <= 0).any(axis=1)))
        loss_mask(index.slices(i), data.sims[int(index.sim[i])].shape, margin)
