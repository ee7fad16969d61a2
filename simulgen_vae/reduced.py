"""Data in reduced form: coefficients of all trajectories, and the POD of whole trajectories.

N samples, r spatial modes, T frames; c [N, r, T]. K = r T is the length of one flattened trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import DataError
from simulgen_vae.basis import Basis
from simulgen_vae.field_data import FieldData

_COLUMNS_AT_ONCE = 65536
_RANK_TOLERANCE = 1e-12  # of the largest eigenvalue: below, a mode is rounding


@torch.no_grad()
def reduce_one(data: FieldData, basis: Basis, row: int) -> np.ndarray:
    """Return c [r, T] of one sample, float32, by one read."""
    u = torch.from_numpy(data.trajectory(row)).to(basis.node_mean.device)
    return basis.encode(u).contiguous().cpu().numpy()


def reduce_all(data: FieldData, basis: Basis, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Return c float32 [N, r, T] of all samples, or of `rows`; one trajectory in memory at a time."""
    rows = range(data.num_samples) if rows is None else rows
    out = np.empty((len(rows), basis.num_modes, data.num_frames), dtype=np.float32)
    for k, row in enumerate(rows):
        out[k] = reduce_one(data, basis, int(row))
    return out


class TrajectoryPod(nn.Module):
    """POD of whole trajectories: c = cbar + W^T diag(s) zeta, with unit variance of zeta over training rows.

    Attributes:
        mean: float32 [r T], cbar.
        modes: float32 [n, r T], W with orthonormal rows; rows beyond the data's rank are zero.
        scales: float32 [n], s, the standard deviation of each score; 0 beyond the rank.
        channels: r.
        frames: T.
    """

    mean: Tensor
    modes: Tensor
    scales: Tensor

    def __init__(self, mean: Tensor, modes: Tensor, scales: Tensor, channels: int) -> None:
        super().__init__()
        self.channels, self.frames = channels, len(mean) // channels
        self.register_buffer("mean", mean)
        self.register_buffer("modes", modes)
        self.register_buffer("scales", scales)

    @property
    def num_modes(self) -> int:
        """The number n of scores."""
        return len(self.scales)

    @property
    def rank(self) -> int:
        """The number of modes that the data supports."""
        return int((self.scales > 0).sum())

    def encode(self, c: Tensor) -> Tensor:
        """Return the whitened scores zeta [B, n] of c [B, r, T]; 0 beyond the rank."""
        scores = (c.flatten(-2) - self.mean) @ self.modes.T
        return scores / torch.where(self.scales > 0, self.scales, torch.ones_like(self.scales))

    def decode(self, zeta: Tensor) -> Tensor:
        """Return c [B, r, T] of whitened scores [B, n]."""
        c = self.mean + (zeta * self.scales) @ self.modes
        return c.unflatten(-1, (self.channels, self.frames))

    def first(self, num_modes: int) -> TrajectoryPod:
        """Return the POD of the leading `num_modes` modes."""
        modes, scales = self.modes[:num_modes], self.scales[:num_modes]
        return TrajectoryPod(self.mean, modes, scales, self.channels)

    @classmethod
    def from_dict(cls, state: dict[str, Tensor], channels: int) -> TrajectoryPod:
        """Return the POD whose `state_dict` this is.

        Raises:
            DataError: a tensor is missing or the shapes do not agree.
        """
        mean, modes, scales = (state.get(name) for name in ("mean", "modes", "scales"))
        if mean is None or modes is None or scales is None or len(mean) % channels:
            raise DataError(f"trajectory POD: found {sorted(state)}, expected mean, modes and scales")
        if modes.shape != (len(scales), len(mean)):
            raise DataError(f"trajectory POD: modes {tuple(modes.shape)} do not agree; the file is damaged")
        return cls(mean.clone(), modes.clone(), scales.clone(), channels)


def trajectory_gram(c: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the Gram matrix (c - mean)(c - mean)^T, float64 [N, N], of flattened trajectories [N, r T]."""
    gram = np.zeros((len(c), len(c)))
    for start in range(0, c.shape[1], _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        part = c[:, columns].astype(np.float64) - mean[columns]
        gram += part @ part.T
    return gram


def fit_trajectory_pod(c: np.ndarray, num_modes: int) -> TrajectoryPod:
    """Return the POD of training coefficients c [N, r, T], by the method of snapshots (Sirovich 1987).

    At most N - 1 modes exist; of `num_modes`, those beyond have scale 0 and zero rows.
    """
    num_samples, channels, frames = c.shape
    flat = c.reshape(num_samples, channels * frames)
    mean = flat.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(trajectory_gram(flat, mean))
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = max(float(values[0]), np.finfo(np.float64).tiny)
    supported = int((values > _RANK_TOLERANCE * largest).sum())
    rank = min(num_modes, num_samples - 1, flat.shape[1], supported)
    modes = np.zeros((num_modes, flat.shape[1]), dtype=np.float32)
    lengths = np.sqrt(values[:rank])
    for start in range(0, flat.shape[1], _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        part = flat[:, columns].astype(np.float64) - mean[columns]
        modes[:rank, columns] = vectors[:, :rank].T @ part / lengths[:, None]
    scales = np.zeros(num_modes)
    scales[:rank] = lengths / np.sqrt(num_samples)
    mean_, modes_, scales_ = (torch.from_numpy(a.astype(np.float32)) for a in (mean, modes, scales))
    return TrajectoryPod(mean_, modes_, scales_, channels)
