"""What the tests of predictors share: tiny smooth data on a grid with an exact mirror symmetry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.noise import numpy_stream
from simulgen_vae.arrays import ArraySource
from simulgen_vae.basis import fit_basis
from simulgen_vae.field_data import FieldData
from simulgen_vae.predictor import TrainingSet
from simulgen_vae.reduced import reduce_all
from simulgen_vae.symmetry import Symmetry

NY, NX, FRAMES = 8, 8, 4


def bumps(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return fields [N, T, M, 1] of a bump at (x, y), drifting and fading, and params [N, 3]: x, y, rate."""
    rng = numpy_stream(seed, "test bumps")
    params = rng.uniform([0.3, 0.2, 0.5], [0.7, 0.8, 2.0], (num, 3))
    y, x = ((np.arange(n) + 0.5) / n for n in (NY, NX))
    t = np.linspace(0.0, 1.0, FRAMES)[:, None, None]
    fields = [
        np.exp(-rate * t - ((x[None, None] - px - 0.1 * t) ** 2 + (y[None, :, None] - py) ** 2) / 0.08)
        for px, py, rate in params
    ]
    return np.stack(fields).reshape(num, FRAMES, NY * NX, 1).astype(np.float32), params


def mirror() -> Symmetry:
    """Return y -> 1 - y of the bumps."""
    nodes = np.arange(NY * NX).reshape(NY, NX)[::-1].reshape(-1)
    matrix = np.diag([1.0, -1.0, 1.0])
    return Symmetry(nodes.copy(), np.ones(1), matrix, np.array([0.0, 1.0, 0.0]), flip_image=True)


def data_of(u: np.ndarray, params: np.ndarray, **more: object) -> FieldData:
    """Return arrays as a data set."""
    num, frames, nodes, num_fields = u.shape
    return FieldData(
        path=Path("case"),
        source=ArraySource(Path("case"), u),
        rows=np.arange(num),
        frames=slice(0, frames),
        nodes=slice(0, nodes),
        field_names=tuple(f"f{v}" for v in range(num_fields)),
        units=("",) * num_fields,
        params=params,
        param_names=tuple(f"p{k}" for k in range(params.shape[1])),
        time=np.linspace(0, 1, frames),
        sample_id=tuple(map(str, range(num))),
        **more,
    )


def training_set(
    num: int = 24, *, symmetric: bool = False, num_modes: int = 0, pictures: bool = False, seed: int = 0
) -> TrainingSet:
    """Return bumps as a training set with its own basis; pictures show where each bump starts."""
    u, params = bumps(num, seed)
    data = data_of(u, params)
    symmetry = mirror() if symmetric else None
    basis = fit_basis(data, range(num), num_modes, symmetry=symmetry)
    images = None
    if pictures:
        first = u[:, 0, :, 0].reshape(num, NY, NX)
        images = torch.from_numpy(np.kron(255 * first, np.ones((32, 32))).astype(np.uint8))
    return TrainingSet(
        torch.from_numpy(reduce_all(data, basis)),
        torch.from_numpy(params),
        basis,
        images=images,
        symmetry=symmetry,
        grid_shape=(NY, NX),
    )


def rows_for(fitted: TrainingSet, num: int, seed: int) -> tuple[TrainingSet, torch.Tensor]:
    """Return other bumps in the basis of `fitted`, and their true fields [N, T, M, 1]."""
    u, params = bumps(num, seed)
    c = fitted.basis.encode(torch.from_numpy(u))
    rows = TrainingSet(c, torch.from_numpy(params), fitted.basis, grid_shape=fitted.grid_shape)
    return rows, torch.from_numpy(u)
