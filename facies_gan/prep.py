"""Check a data set, say what is in it, and build its pyramids ahead of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.log import get_logger
from facies_gan.cache import PyramidCache, facies_pyramids
from facies_gan.config_data import PrepConfig
from facies_gan.dataset import SectionSet, read_training_data
from facies_gan.interpolators import InterpolatorConfig
from facies_gan.pyramids import pyramid_sizes


def prepare(
    config: PrepConfig,
    *,
    seed: int = 0,
    num_workers: int = 4,
    dry_run: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Read and describe the data; unless `check` or `dry_run`, build the pyramids for training.

    Returns what is printed, with `built` and `found`, the numbers of pyramids made and met in the cache.

    Raises:
        UserError, DataError: the data or the sizes are not what the flags say.
    """
    data = read_training_data(config, seed=seed)
    shapes = [section.shape for section in data.sections]
    names = [section.stem for section in data.sections]
    sizes = pyramid_sizes(shapes, config.min_size, config.max_size, config.stop_scale, names)
    told = describe(data, sizes)
    if config.check or dry_run:
        return told
    cache = PyramidCache(config.cache_dir)
    if config.clear_cache:
        get_logger().info(f"{cache.folder}: {cache.clear()} entries deleted")
    started = time.perf_counter()
    settings = InterpolatorConfig(num_classes=data.num_classes, fit_steps=config.fit_steps)
    pyramids = facies_pyramids(
        data.sections,
        data.palette,
        sizes,
        config.interpolator,
        cache=cache,
        num_workers=num_workers,
        config=settings,
        device=device,
    )
    seconds = time.perf_counter() - started
    told["found"] = cache.pyramid_hits
    told["built"] = len(pyramids) - cache.pyramid_hits
    told["seconds"] = round(seconds, 3)
    get_logger().info(
        f"{told['built']} pyramids built, {told['found']} found in {cache.folder}, {seconds:.2f} s"
    )
    return told


def describe(data: SectionSet, scales: Sequence[Sequence[tuple[int, int]]]) -> dict[str, Any]:
    """Return palette, proportions, sizes, wells and seismic of a data set, as plain values."""
    shares = data.counts / data.counts.sum()
    shapes: dict[str, int] = {}
    for section in data.sections:
        name = f"{section.shape[0]} x {section.shape[1]}"
        shapes[name] = shapes.get(name, 0) + 1
    wells = [0 if s.wells is None else s.wells.num_wells for s in data.sections]
    seismic = data.sections[0].seismic
    return {
        "sections": len(data),
        "facies": [
            {"code": code, "name": name, "rgb": rgb, "share": round(float(share), 5)}
            for code, name, rgb, share in zip(
                data.palette.codes.tolist(),
                data.palette.names,
                data.palette.colors.tolist(),
                shares,
                strict=True,
            )
        ],
        "sizes": shapes,
        "scales": [list(size) for size in scales[0]],
        "wells": {
            "sections_with": int(np.count_nonzero(wells)),
            "total": int(np.sum(wells)),
            "data": int(sum(len(s.wells) for s in data.sections if s.wells is not None)),
            "per_section": [min(wells), max(wells)],
        },
        "data_that_agree": sum(
            int(s.wells.matches(s.labels).sum()) for s in data.sections if s.wells is not None
        ),
        "frame": data.sections[0].geometry.to_dict(),
        "seismic_channels": 0 if seismic is None else len(seismic),
    }


def _frame_line(frame: dict[str, Any]) -> str:
    """Return which coordinates the cells have, to compare with those of hard data."""
    parts = []
    for axis in frame["axes"]:
        number = "xyz".index(axis)
        parts.append(f"{axis} from {frame['origin'][number]:g} in cells of {frame['cell_size'][number]:g}")
    return f"coordinates: {', '.join(parts)}, counted from the {'top' if frame['z_down'] else 'bottom'}"


def table(told: dict[str, Any]) -> list[str]:
    """Return the lines that tell a person what `describe` found."""
    sizes = ", ".join(f"{count} of {size}" for size, count in told["sizes"].items())
    lines = [f"{told['sections']} sections (H x W cells): {sizes}"]
    lines += [
        f"  facies code {f['code']:>4}  {f['name']:<16} rgb {f['rgb']!s:<16} {100 * f['share']:6.2f} %"
        for f in told["facies"]
    ]
    wells = told["wells"]
    low, high = wells["per_section"]
    lines.append(
        f"wells: {wells['total']} with {wells['data']} data in {wells['sections_with']} sections, "
        f"{low} to {high} a section; {told['data_that_agree']} data agree with their section"
        if wells["data"]
        else "wells: none"
    )
    lines.append(_frame_line(told["frame"]))
    if told["seismic_channels"]:
        lines.append(f"seismic: {told['seismic_channels']} channels")
    lines.append("scales: " + " ".join(f"{h}x{w}" for h, w in told["scales"]))
    return lines
