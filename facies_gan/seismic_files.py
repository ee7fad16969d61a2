"""Seismic that belongs to sections: images or arrays of the same size, scaled by one mean and deviation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.normalization import ZScore
from common.running_stats import RunningStats
from facies_gan.arrays import read_npy
from facies_gan.images import beside, open_image

SUFFIXES = (".npy", ".png")
_PLAIN_MODES = {"P": "RGB", "PA": "RGB", "1": "L", "LA": "L"}


def read_seismic_file(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Return seismic float32 [n_s, H, W], unscaled, from `.npy` ([H, W] or [n_s, H, W]) or a PNG.

    Raises:
        DataError: another size than `shape`, more than 16 channels, or values that are no finite numbers.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        values = read_npy(path)
    else:
        image = open_image(path)
        if image.mode in _PLAIN_MODES:  # a colour table, transparency or bits instead of values
            image = image.convert(_PLAIN_MODES[image.mode])
        pixels = np.asarray(image)
        values = pixels if pixels.ndim == 2 else np.moveaxis(pixels[..., :3], 2, 0)
        if values.ndim == 3 and (values == values[:1]).all():  # a grey image saved in colours
            values = values[0]
    if values.dtype.kind not in "iuf" or values.ndim not in (2, 3) or 0 in values.shape:
        raise DataError(f"{path}: {values.dtype} {values.shape}, expected numbers [H, W] or [channels, H, W]")
    grid = values[None] if values.ndim == 2 else values
    if len(grid) > 16:
        raise DataError(
            f"{path}: {len(grid)} channels of shape {grid.shape}, expected [channels, H, W], at most 16"
        )
    if shape is not None and grid.shape[1:] != tuple(shape):
        raise DataError(
            f"{path}: {grid.shape[1]} x {grid.shape[2]} cells (H x W), its section has {shape[0]} x "
            f"{shape[1]}; "
            "export both at one size"
        )
    with np.errstate(over="ignore"):  # what single precision cannot hold becomes infinite, and is refused
        grid = grid.astype(np.float32)
    if not np.isfinite(grid).all():
        raise DataError(
            f"{path}: {int((~np.isfinite(grid)).sum())} values are NaN or infinite; fill them first"
        )
    return grid


def read_seismic(folder: Path, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the seismic of sections {stem: labels [H, W]}, float32 [n_s, H, W] each, unscaled.

    Raises:
        DataError: sections without a file (up to five are named), another size, or differing channels.
    """
    paths = {}
    for stem in labels:
        found = next(filter(None, (beside(folder, stem, suffix) for suffix in SUFFIXES)), None)
        if found:
            paths[stem] = found
    missing = [stem for stem in labels if stem not in paths]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(labels)} sections have no seismic ({', '.join(missing[:5])}), "
            "expected <stem>.npy or <stem>.png for each; add them or train without --use_seismic"
        )
    grids = {stem: read_seismic_file(path, labels[stem].shape) for stem, path in paths.items()}
    first = next(iter(grids))
    for stem, grid in grids.items():
        if len(grid) != len(grids[first]):
            raise DataError(f"{paths[stem]}: {len(grid)} channels, {paths[first]} has {len(grids[first])}")
    return grids


def seismic_scaling(grids: Iterable[np.ndarray]) -> ZScore:
    """Return mean and standard deviation of each channel over all sections [n_s, H, W]."""
    stats = None
    for grid in grids:
        stats = stats or RunningStats(len(grid))
        stats.update(grid[None])
    if stats is None:
        raise ValueError("no seismic")
    return ZScore.from_stats(stats)
