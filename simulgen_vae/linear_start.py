"""The linear solution of a training set that is too large for memory: POD through the Gram matrix, in blocks.

With centred rows X [N, C T] and the eigenpairs (lambda, a) of X X^T the modes are w = X^T a / sqrt(lambda)
and the standard deviations of the scores s = sqrt(lambda / N) (method of snapshots, Sirovich 1987).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

RANK_TOLERANCE = 1e-12  # of the largest eigenvalue: below it a mode is noise of the arithmetic
Fetch = Callable[[Sequence[int]], torch.Tensor]


def streamed_pod(
    fetch: Fetch, rows: Sequence[int], num_modes: int, block: int = 64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean [C, T], modes [m, C, T] and scales [m] of the trajectories `rows`, m <= num_modes.

    Every block of rows is fetched once for the mean, once for each block before it, and once for the modes.

    Args:
        fetch: row numbers -> coefficients [b, C, T].
        rows: training rows.
        num_modes: modes wanted; at most len(rows) - 1 come back.
        block: rows in memory at once, twice.
    """
    starts = range(0, len(rows), block)
    blocks = [list(rows[i : i + block]) for i in starts]
    mean = torch.stack([fetch(b).double().sum(dim=0) for b in blocks]).sum(dim=0) / len(rows)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, first in zip(starts, blocks, strict=True):
        x = (fetch(first).double() - mean).flatten(1)
        for j, second in zip(starts, blocks, strict=True):
            if j >= i:
                y = x if i == j else (fetch(second).double() - mean).flatten(1)
                part = x @ y.T
                gram[i : i + len(x), j : j + len(y)] = part
                gram[j : j + len(y), i : i + len(x)] = part.T
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(gram))
    kept = int((values > RANK_TOLERANCE * values[0].clamp_min(1e-300)).sum())
    kept = min(kept, num_modes, max(0, len(rows) - 1))
    coefficients = vectors[:, :kept] / values[:kept].sqrt()
    modes = torch.zeros(kept, mean.numel(), dtype=torch.float64)
    for i, b in zip(starts, blocks, strict=True):
        x = (fetch(b).double() - mean).flatten(1)
        modes += coefficients[i : i + len(x)].T @ x
    scales = torch.sqrt(values[:kept] / len(rows))
    return mean.float(), modes.unflatten(1, mean.shape).float(), scales.float()
