"""Which samples a training sees: pairs of volumes, cubes made on the fly, or crops around sparse labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common import distributed
from common.errors import DataError
from fault_seg.config import TrainConfig
from fault_seg.dataset import Shape, SyntheticVolumes, VolumePairs
from fault_seg.labels import LabelledCrops, Replayed, open_labelled
from fault_seg.synthetic import GeneratorConfig, preset

ADVICE = "run make_data.py, or train with --synthetic"
NUM_SYNTHETIC_VALID = 16
VALID_SEED_OFFSET = 1_000_000_007  # validation cubes come from a seed of their own


def make_datasets(config: TrainConfig, seed: int) -> tuple[Any, Any]:
    """Return (training, validation) samples, checked.

    Validation cubes of a synthetic run come from a seed of their own, so training never sees them.

    Raises:
        DataError: files are missing, of a wrong size, or hold wrong values.
    """
    crops = {
        "heads": config.heads,
        "seed": seed,
        "crop_shape": config.crop_shape,
        "augmented": config.augment,
        "disturbed": config.disturb,
        "kind": config.task,
        "with_image": bool(config.init_infer),
    }
    if config.labels:
        return _labelled_crops(config, seed, crops), make_valid_set(config, seed)
    if config.synthetic:
        train_set = SyntheticVolumes(_generator(config), config.samples_per_epoch, **crops)
        return train_set, make_valid_set(config, seed)
    shape: Shape = (config.n1, config.n2, config.n3)
    folders = config.folder("data_train"), config.folder("target_train")
    pairs = VolumePairs(*folders, shape, limit=config.ntrain, advice=ADVICE, **crops)
    valid_set = make_valid_set(config, seed)
    if distributed.is_main():
        pairs.check()
        valid_set.check()
    return pairs, valid_set


def make_valid_set(config: TrainConfig, seed: int) -> Any:
    """Return the whole held-out cubes, files not yet read through.

    Raises:
        DataError: files are missing or of a wrong size.
    """
    whole = {"heads": config.heads, "kind": config.task, "with_image": False}
    if config.synthetic or config.labels:
        number = config.nvalid or NUM_SYNTHETIC_VALID
        return SyntheticVolumes(_generator(config), number, seed=seed + VALID_SEED_OFFSET, **whole)
    shape: Shape = (config.n1, config.n2, config.n3)
    folders = config.folder("data_valid"), config.folder("target_valid")
    return VolumePairs(*folders, shape, limit=config.nvalid, seed=seed, advice=ADVICE, **whole)


def _generator(config: TrainConfig) -> GeneratorConfig:
    """Return what cubes are made on the fly.

    Raises:
        DataError: the crop is larger than they are.
    """
    generator = preset(config.data_preset)
    shape = (0, 0, 0) if config.labels else (config.n1, config.n2, config.n3)
    sizes = [given or default for given, default in zip(shape, generator.shape, strict=True)]
    generator = replace(generator, shape=(sizes[0], sizes[1], sizes[2]))
    if config.crop_shape and any(c > n for c, n in zip(config.crop_shape, generator.shape, strict=True)):
        raise DataError(f"--crop {config.crop_shape}: larger than the cubes of {generator.shape}; lower it")
    return generator


def _labelled_crops(config: TrainConfig, seed: int, crops: dict[str, Any]) -> Any:
    """Return crops of the survey of `--input` around its labels, each with a synthetic one to replay."""
    assert config.crop_shape is not None
    image, labels = open_labelled(
        config.input, config.labels, config.labelled_inlines, (config.n1, config.n2, config.n3), seed
    )
    survey = LabelledCrops(
        image,
        labels,
        config.samples_per_epoch,
        seed=seed,
        crop_shape=config.crop_shape,
        augmented=config.augment,
        disturbed=config.disturb,
        source=config.input,
    )
    if not config.replay:
        return survey
    return Replayed(survey, SyntheticVolumes(_generator(config), config.samples_per_epoch, **crops))
