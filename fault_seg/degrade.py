"""Degraded volumes: what a first inference gets wrong, as training input of the refining network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.noise import numpy_stream
from fault_seg.fields import smooth_noise
from fault_seg.structure import FaultStyle, draw_faults, fault_volumes, grid, pull_back

if TYPE_CHECKING:
    from fault_seg.synthetic import Sample


def degrade(sample: Sample, seed: int, index: int, fault_width: float = 2.0) -> dict[str, np.ndarray]:
    """Return degraded rgt, dhr, fsem, fdip, fstrike of `sample`, float32 [n1, n2, n3].

    Faults lose smooth random blobs and gain pieces of faults that are not there, the angles follow their
    pieces; rgt is bent by up to 10 %; dhr is noisy and fades out in places (the corruptions of Gao 2024).
    A function of the sample and (seed, index) only.

    Args:
        sample: The true volumes; it is left as it is.
        seed: Seed of the data set.
        index: Index of the sample.
        fault_width: Width of the spurious pieces in voxels.
    """
    fsem, fdip, fstrike = _degrade_faults(sample, seed, index, fault_width)
    shape = sample.fsem.shape
    rng = numpy_stream(seed, "fault_seg/degrade_rgt", index)
    bend = np.tanh(smooth_noise(shape, 5, rng)) * np.float32(rng.uniform(0, 0.1))
    rgt = np.clip(sample.rgt * (1 + bend), 0, 1)
    rng = numpy_stream(seed, "fault_seg/degrade_dhr", index)
    noisy = sample.dhr + np.float32(0.05 * sample.dhr.std()) * smooth_noise(shape, 2, rng)
    fade = smooth_noise(shape, 5, rng)
    fade -= fade.min()
    fade /= max(fade.max(), np.float32(1e-6))
    dhr = noisy * np.clip((fade - np.float32(0.2)) / np.float32(0.3), 0, 1)
    return {"rgt": rgt, "dhr": dhr, "fsem": fsem, "fdip": fdip, "fstrike": fstrike}


def _degrade_faults(
    sample: Sample, seed: int, index: int, fault_width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return fsem, fdip and fstrike with 5-45 % of the fault voxels removed and spurious pieces added."""
    shape = sample.fsem.shape
    rng = numpy_stream(seed, "fault_seg/degrade_faults", index)
    true = sample.fsem > 0
    lost = true & _blobs(rng, true, rng.uniform(0.05, 0.45))
    rng = numpy_stream(seed, "fault_seg/degrade_spurious", index)
    faults = draw_faults(rng, shape, int(rng.integers(6, 17)), FaultStyle())
    _, nearest, normal = pull_back(grid(shape), faults, fault_width)
    false = np.isfinite(nearest).reshape(shape)
    added = false & ~_blobs(rng, false, rng.uniform(0.85, 0.95)) & ~true
    nearest[~added.ravel()] = np.inf
    volumes = fault_volumes(nearest, normal, shape)
    kept = true & ~lost
    for volume, original in zip(volumes, (sample.fsem, sample.fdip, sample.fstrike), strict=True):
        np.copyto(volume, original, where=kept)
    return volumes


def _blobs(rng: np.random.Generator, mask: np.ndarray, share: float) -> np.ndarray:
    """Return smooth blobs (sigma 4 voxels), bool of the shape of `mask`, that cover `share` of it."""
    field = smooth_noise(mask.shape, 4, rng)
    if not mask.any():
        return np.zeros(mask.shape, dtype=bool)
    return field < np.quantile(field[mask], share)
