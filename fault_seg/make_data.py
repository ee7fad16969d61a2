"""Write a data set of the generator: inputs, targets, dataset.json and figures of three samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from joblib import Parallel, delayed

from common.errors import UserError
from common.files import remove_stale_temporaries, require_free_space, require_writable, write_json
from common.log import get_logger
from common.run import BasicOptions
from fault_seg.config import DataConfig
from fault_seg.sections import draw_sample
from fault_seg.synthetic import GENERATOR_VERSION, GeneratorConfig, degrade, make_sample, preset
from fault_seg.volumes import write_volume

NUM_VOLUMES = 11  # a sample: the image, five targets, five degraded volumes
SUFFIXES = {"raw": ".bin", "npy": ".npy", "h5": ".h5"}


def generator_config(config: DataConfig) -> GeneratorConfig:
    """Return what the generator makes for these flags."""
    chosen = preset(config.data_preset)
    sizes = [given or own for given, own in zip((config.n1, config.n2, config.n3), chosen.shape, strict=True)]
    return replace(
        chosen,
        shape=(sizes[0], sizes[1], sizes[2]),
        fault_width=config.fault_width or chosen.fault_width,
        fault_count=(config.faults[0], config.faults[1]) if config.faults else chosen.fault_count,
        noise_max=config.noise,
    )


def make_data(
    config: DataConfig, options: BasicOptions, out: Path, seed: int = 0, num_workers: int = 0
) -> dict[str, Any]:
    """Write `data_train`, `target_train`, `data_valid`, `target_valid` below `out`; return what is described.

    Sample i of a seed is the same whatever the number of workers; validation samples come after training.

    Raises:
        UserError: `out` cannot be written or holds a data set already.
        DataError: the disk is too small.
    """
    generator = generator_config(config)
    require_writable(out)
    old = samples_in(out)
    if old and not options.overwrite:
        raise UserError(
            f"{out}: holds a data set ({old[0].relative_to(out)}); add --overwrite or choose another --out"
        )
    count = config.ntrain + config.nvalid
    require_free_space(out, 4 * NUM_VOLUMES * count * int(np.prod(generator.shape)))
    if options.dry_run:
        return {"shape": list(generator.shape), "samples": count}
    remove_stale_temporaries(out)
    for path in old:  # a smaller set must not keep samples of a larger one
        path.unlink()
    fractions = _write_samples(config, generator, out, seed, num_workers)
    description = {
        "shape": list(generator.shape),
        "seed": seed,
        "generator": asdict(generator),
        "generator_version": GENERATOR_VERSION,
        "ntrain": config.ntrain,
        "nvalid": config.nvalid,
        "fault_fraction": fractions,
    }
    if config.figures:
        for i in range(min(3, count)):
            draw_sample(
                out / "figures" / f"sample_{i}.png",
                make_sample(seed, i, generator).volumes(),
                f"{config.data_preset} sample {i}",
            )
    write_json(out / "dataset.json", description)
    return description


def _write_samples(
    config: DataConfig, generator: GeneratorConfig, out: Path, seed: int, num_workers: int
) -> dict[str, list[float]]:
    """Write all samples; return the fault fraction of each, by part of the data set."""
    jobs = [("train", i, i) for i in range(config.ntrain)]
    jobs += [("valid", i, config.ntrain + i) for i in range(config.nvalid)]
    work = Parallel(n_jobs=max(1, num_workers), return_as="generator")
    suffix = SUFFIXES[config.format]
    samples = (
        delayed(write_sample)(out, part, number, seed, index, generator, suffix)
        for part, number, index in jobs
    )
    results = cast(Iterator[float], work(samples))  # one at a time, in the order of the jobs
    fractions: dict[str, list[float]] = {"train": [], "valid": []}
    for done, ((part, _, _), fraction) in enumerate(zip(jobs, results, strict=True), start=1):
        fractions[part].append(round(fraction, 5))
        if done % max(1, len(jobs) // 5) == 0:
            get_logger().info(f"{done} of {len(jobs)} cubes")
    return fractions


def samples_in(out: Path) -> list[Path]:
    """Return dataset.json and the volumes of samples below `out`, whoever wrote them."""
    folders = [out / f"{kind}_{part}" for kind in ("data", "target") for part in ("train", "valid")]
    volumes = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return [
        *(path for path in [out / "dataset.json"] if path.exists()),
        *(path for path in volumes if re.fullmatch(r"[0-9]+(_[a-z]+)?\.(bin|npy|h5)", path.name)),
    ]


def write_sample(
    out: Path, part: str, number: int, seed: int, index: int, generator: GeneratorConfig, suffix: str
) -> float:
    """Write sample `index` as number `number` of `part`; return its fault fraction."""
    sample = make_sample(seed, index, generator)
    worse = degrade(sample, seed, index, generator.fault_width)
    data, target = out / f"data_{part}", out / f"target_{part}"
    write_volume(data / f"{number}{suffix}", sample.image)
    for name, values in sample.volumes().items():
        if name != "image":
            write_volume(target / f"{number}_{name}{suffix}", values)
            write_volume(data / f"{number}_{name}{suffix}", worse[name])
    return float(sample.fsem.mean())
