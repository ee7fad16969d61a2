"""Blended tiles with the shipped weights: their distance from the whole volume, and what borders show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common import blocks
from fault_seg.dataset import normalise_image
from fault_seg.infer import load
from fault_seg.maps import Model
from fault_seg.synthetic import make_sample, preset

BLOCK, OVERLAP = 32, 16
SHAPE = (32, 32, 96)
MEAN_LIMIT, MAX_LIMIT = 0.004, 0.6  # of |p blended - p whole|; one voxel beside a fault may differ much
RGT_LIMIT = 0.6  # mean difference of the time correction, voxels


@pytest.fixture(scope="module")
def model() -> Model:
    """Return the shipped network, its time correction on, which inference leaves out if it did not help."""
    shipped = load(precision="fp32")
    shipped.keeps_residual = True
    return shipped


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Return a held-out image, long enough for five tiles along the inlines."""
    from dataclasses import replace

    return normalise_image(make_sample(0, 5000, replace(preset("standard"), shape=SHAPE)).image)


def tiled(model: Model, image: np.ndarray, overlap: int) -> np.ndarray:
    """Return the maps [C, Z, Y, X] of blended tiles."""
    out = np.zeros((9, *SHAPE), np.float32)
    tiles = blocks.plan_blended(SHAPE, BLOCK, overlap, model.multiple)

    def write(x0: int, slab: np.ndarray) -> None:
        out[..., x0 : x0 + slab.shape[-1]] = slab

    blocks.run_blended(model.maps, image[None], tiles, write)
    return out


def border_jump(maps: np.ndarray, whole: np.ndarray) -> float:
    """Return the largest mean change of slope of the error across one plane between two inlines."""
    error = maps[0] - whole[0]
    return float(np.abs(np.diff(error, n=2, axis=2)).mean(axis=(0, 1)).max())


def test_blended_tiles_are_near_the_whole(model: Model, image: np.ndarray):
    """Blended tiles stay near the whole volume, and show far less of their borders than abutting ones."""
    whole = model.maps(torch.from_numpy(image)[None, None])[0].numpy()
    blended, abutting = tiled(model, image, OVERLAP), tiled(model, image, 0)
    apart = np.abs(blended[0] - whole[0])
    figures = apart.mean(), apart.max(), np.abs(blended[8] - whole[8]).mean()
    assert figures[0] < MEAN_LIMIT and figures[1] < MAX_LIMIT and figures[2] < RGT_LIMIT, figures
    assert apart.mean() < np.abs(abutting[0] - whole[0]).mean()
    jumps = border_jump(blended, whole), border_jump(abutting, whole)
    assert jumps[0] < 0.5 * jumps[1], jumps
