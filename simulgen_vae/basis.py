"""The spatial POD front end: c = Phi^T (u - mean) / (std sqrt(D / r)), fitted by streaming.

T frames, M nodes, V fields, D = M V (d = m V + v), r spatial modes. With this scale the mean square of c is
that of the standardised field, up to what the modes leave out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import DataError, UserError
from common.log import get_logger
from common.noise import gaussian
from simulgen_vae.field_data import FieldData
from simulgen_vae.normalize import FieldStatistics
from simulgen_vae.symmetry import Symmetry

MODES_CAP = 512
OVERSAMPLING = 20
EXACT_LIMIT = 1024  # up to this D the covariance itself is accumulated and solved
FRAMES_AT_ONCE = 64  # that are standardised beside the trajectory they are of
ENERGY = 1 - 1e-6
_BUFFERS = ("modes", "node_mean", "field_mean", "field_std", "sigma", "energy")
Snapshots = Callable[[], Iterator[np.ndarray]]


class Basis(nn.Module):
    """An orthonormal spatial basis with the statistics that standardise fields; encodes and decodes.

    Attributes:
        modes: float32 [D, r], orthonormal columns; [D, 0] stands for the identity, which is never formed.
        node_mean: float32 [D].
        field_mean: float32 [V].
        field_std: float32 [V].
        sigma: float32 [r], the standard deviation of each coefficient over training frames.
        energy: float64, the part of the training frames' variance that the modes hold.
    """

    modes: Tensor
    node_mean: Tensor
    field_mean: Tensor
    field_std: Tensor
    sigma: Tensor
    energy: Tensor

    def __init__(self, buffers: dict[str, Tensor]) -> None:
        super().__init__()
        for name in _BUFFERS:
            self.register_buffer(name, buffers[name])

    @classmethod
    def from_dict(cls, state: dict[str, Tensor]) -> Basis:
        """Return the basis whose `state_dict` this is.

        Raises:
            DataError: a tensor is missing or the shapes do not agree.
        """
        missing = [name for name in _BUFFERS if name not in state]
        if missing:
            raise DataError(f"basis: without {', '.join(missing)}, expected {', '.join(_BUFFERS)}")
        basis = cls({name: torch.as_tensor(state[name]).clone() for name in _BUFFERS})
        rank = basis.modes.shape[-1] or len(basis.node_mean)
        if basis.modes.ndim != 2 or len(basis.modes) != len(basis.node_mean) or len(basis.sigma) != rank:
            raise DataError(
                f"basis: modes {tuple(basis.modes.shape)}, node_mean {tuple(basis.node_mean.shape)} and "
                f"sigma {tuple(basis.sigma.shape)} do not agree; the file is damaged"
            )
        return basis

    @property
    def is_identity(self) -> bool:
        """Whether there is no basis: one channel a node and field."""
        return self.modes.shape[1] == 0

    @property
    def num_modes(self) -> int:
        """The number r of channels of c."""
        return len(self.sigma)

    @property
    def num_fields(self) -> int:
        """The number V of fields a node."""
        return len(self.field_std)

    @property
    def num_nodes(self) -> int:
        """The number M of nodes."""
        return len(self.node_mean) // self.num_fields

    @property
    def scale(self) -> float:
        """The constant sqrt(D / r)."""
        return math.sqrt(len(self.node_mean) / self.num_modes)

    def standardize(self, u: Tensor) -> Tensor:
        """Return (u - node mean) / field std, [..., T, D], of physical u [..., T, M, V]."""
        return ((u - self.node_mean.view(-1, self.num_fields)) / self.field_std).flatten(-2)

    def encode(self, u: Tensor) -> Tensor:
        """Return c [..., r, T] of physical fields u [..., T, M, V]."""
        x = self.standardize(u)
        c = x if self.is_identity else (x @ self.modes) / self.scale
        return c.transpose(-1, -2)

    def decode_standardized(self, c: Tensor, channels: Tensor | None = None) -> Tensor:
        """Return the standardised field [..., T, D] of c [..., r, T], or only its `channels` (indices)."""
        x = c.transpose(-1, -2)
        if self.is_identity:
            return x if channels is None else x.index_select(-1, channels)
        modes = self.modes if channels is None else self.modes.index_select(0, channels)
        return x @ (modes * self.scale).T if channels is not None else (x * self.scale) @ modes.T

    def decode(self, c: Tensor) -> Tensor:
        """Return physical fields u [..., T, M, V] of c [..., r, T]; differentiable."""
        x = self.decode_standardized(c).unflatten(-1, (self.num_nodes, self.num_fields))
        return x * self.field_std + self.node_mean.view(-1, self.num_fields)

    def mirror(self, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
        """Return (R [r, r], o [r]) so that c' = R c + o is c of the field that `symmetry` maps u to.

        Exact when the modes span mirrored fields too, as they do when `fit_basis` was given the symmetry.

        Raises:
            ValueError: there is no basis; map fields instead.
        """
        if self.is_identity:
            raise ValueError("a symmetry of the identity basis is a permutation; map the fields")
        maps = symmetry.apply_fields
        modes = maps(self.modes.double().T.unflatten(-1, (self.num_nodes, self.num_fields))).flatten(-2)
        mean = self.node_mean.double().view(-1, self.num_fields)
        shift = ((maps(mean) - mean) / self.field_std).flatten(-2)
        matrix = (modes @ self.modes.double()).T
        return matrix.float(), (shift @ self.modes.double() / self.scale).float()


def fit_basis(
    data: FieldData,
    rows: Sequence[int] | np.ndarray,
    num_modes: int = 0,
    energy: float = ENERGY,
    max_memory: float = 0.0,
    *,
    symmetry: Symmetry | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Basis:
    """Return the POD basis of the frames of `rows`, one trajectory in memory at a time.

    Up to D = 1024 the covariance is solved exactly (2 passes); beyond, a randomised SVD with oversampling 20
    and 2 power iterations is used (4 passes; Halko, Martinsson and Tropp 2011, algorithm 4.4), whose
    statistics and first sketch share a pass. The captured energy is exact in both.

    Args:
        data: the fields.
        rows: training rows; no other is read.
        num_modes: r; 0 = the smallest that reaches `energy`, at most 512.
        energy: share of the variance of the standardised training frames, for num_modes 0.
        max_memory: bound in GiB on the working arrays; 0 = none. The rank shrinks to fit, with a warning.
        symmetry: fit on the mirrored trajectories as well, so that the modes span both.
        seed: of the random sketch.
        device: where the products are computed.

    Raises:
        DataError: a field is constant or not finite.
        UserError: the memory bound is too small for one mode.
    """

    def snapshots() -> Iterator[np.ndarray]:
        for i in rows:  # no name may hold a trajectory while the next one is read
            if symmetry is None:
                yield data.trajectory(int(i))
            else:
                u = data.trajectory(int(i))
                yield u
                yield symmetry.apply_fields(u)
                del u

    dim = data.num_nodes * data.num_fields
    limit = min(dim, len(rows) * data.num_frames * (1 if symmetry is None else 2))
    wanted = min(num_modes or MODES_CAP, limit)
    if dim <= EXACT_LIMIT:
        statistics, vectors, values = _exact(snapshots, data)
    else:
        ideal = min(wanted + OVERSAMPLING, limit)
        width = _width(ideal, data, max_memory)
        wanted = wanted if width == ideal else width - OVERSAMPLING
        statistics, vectors, values = _randomized(snapshots, data, width, seed, torch.device(device))
    return _assemble(statistics, vectors, values, wanted if num_modes else 0, wanted, energy)


def identity_basis(data: FieldData, rows: Sequence[int] | np.ndarray) -> Basis:
    """Return the front end `none`: standardised nodes are the channels; one pass over `rows`."""
    statistics = FieldStatistics()
    for i in rows:
        statistics.update(data.trajectory(int(i)))
    statistics.require_varying(data.field_names, str(data.path))
    std = statistics.normalizer().std
    sigma = np.sqrt(statistics.deviation / max(1, statistics.count)) / std
    modes = torch.zeros(sigma.size, 0)
    return Basis(_buffers(statistics, modes, torch.from_numpy(sigma.reshape(-1)), 1.0))


def _width(width: int, data: FieldData, max_memory: float) -> int:
    """Return how many sketch columns fit `max_memory` GiB: four arrays [D, width] and three trajectories.

    A float64 file, a mirrored copy, or the statistics of a small mesh take two more beside the one.
    """
    if max_memory <= 0:
        return width
    dim = data.num_nodes * data.num_fields
    frames = 3 * data.num_frames
    left = max_memory * 2**30 - 4 * dim * frames
    fits = int(left // (4 * 4 * dim))
    if fits < OVERSAMPLING + 1:
        least = (4 * dim * frames + 16 * dim * (OVERSAMPLING + 1)) / 2**30
        raise UserError(
            f"--max_memory {max_memory:g}: the basis of {dim} values a frame and {data.num_frames} frames "
            f"needs at least {least:.2f} GiB; raise it"
        )
    if fits < width:
        get_logger().warning(
            "warning: --max_memory %g: at most %d modes fit instead of %d",
            max_memory,
            fits - OVERSAMPLING,
            width - OVERSAMPLING,
        )
    return min(width, fits)


def _exact(snapshots: Snapshots, data: FieldData) -> tuple[FieldStatistics, Tensor, np.ndarray]:
    """Return statistics, eigenvectors [D, D] and eigenvalues of the covariance of standardised frames."""
    statistics = FieldStatistics()
    for u in snapshots():
        statistics.update(u)
    statistics.require_varying(data.field_names, str(data.path))
    dim = statistics.node_mean.size
    total = np.zeros((dim, dim))
    mean, std = statistics.node_mean, statistics.normalizer().std
    for u in snapshots():
        x = ((u - mean) / std).reshape(len(u), dim)
        total += x.T @ x
    values, vectors = torch.linalg.eigh(torch.from_numpy(total))
    return statistics, vectors.flip(1), values.flip(0).numpy()


def _randomized(
    snapshots: Snapshots, data: FieldData, width: int, seed: int, device: torch.device
) -> tuple[FieldStatistics, Tensor, np.ndarray]:
    """Return statistics, left singular vectors [D, width] and squared singular values of the frames."""
    statistics, sketch = _sketch(snapshots, data, width, seed, device)
    statistics.require_varying(data.field_names, str(data.path))
    mean = torch.from_numpy(statistics.node_mean.astype(np.float32).reshape(-1)).to(device)
    std = torch.from_numpy(statistics.normalizer().std.astype(np.float32)).repeat(data.num_nodes).to(device)
    sketch /= std[:, None]

    def standardized() -> Iterator[Tensor]:
        for u in snapshots():
            for part in torch.from_numpy(u).flatten(1).split(FRAMES_AT_ONCE):
                yield (part.to(device) - mean).div_(std)
            del u, part

    for _ in range(2):  # power iterations, (X X^T)^2 X Omega
        frame = torch.linalg.qr(sketch)[0]
        sketch.zero_()
        for x in standardized():
            sketch.addmm_(x.T, x @ frame)
        del frame
    frame = torch.linalg.qr(sketch)[0]
    del sketch
    gram = torch.zeros(width, width, dtype=torch.float64)
    for x in standardized():
        y = (x @ frame).cpu().double()
        gram += y.T @ y
    values, vectors = torch.linalg.eigh(gram)
    return statistics, frame.cpu() @ vectors.flip(1).float(), values.flip(0).numpy()


def _sketch(
    snapshots: Snapshots, data: FieldData, width: int, seed: int, device: torch.device
) -> tuple[FieldStatistics, Tensor]:
    """Return the statistics and (X - mean 1^T) Omega [D, width], not yet divided by the fields' std.

    The mean is known only at the end, so frames are centred by that of the first trajectory and the rest,
    (mean - first) (1^T Omega), is taken off afterwards.
    """
    statistics = FieldStatistics()
    dim = data.num_nodes * data.num_fields
    sketch = torch.zeros(dim, width, device=device)
    ones = torch.zeros(width, device=device)
    first = torch.zeros(dim, device=device)
    numbers = itertools.count()
    for u in snapshots():  # enumerate() would hold the one before
        k = next(numbers)
        statistics.update(u)
        if k == 0:
            first = torch.from_numpy(statistics.node_mean.astype(np.float32).reshape(-1)).to(device)
        omega = gaussian((len(u), width), seed, "basis sketch", k, device=device)
        frames = torch.from_numpy(u).flatten(1)
        for part, its in zip(frames.split(FRAMES_AT_ONCE), omega.split(FRAMES_AT_ONCE), strict=True):
            sketch.addmm_((part.to(device) - first).T, its)
        ones += omega.sum(0)
        del u, frames, part
    shift = torch.from_numpy(statistics.node_mean.astype(np.float32).reshape(-1)).to(device) - first
    sketch.addr_(shift, ones, alpha=-1)
    return statistics, sketch


def _assemble(
    statistics: FieldStatistics, vectors: Tensor, values: np.ndarray, fixed: int, most: int, energy: float
) -> Basis:
    """Return the basis of the leading vectors: `fixed`, or as many as reach `energy`, up to `most`."""
    std = statistics.normalizer().std
    total = float((statistics.deviation / std**2).sum())
    share = np.cumsum(np.maximum(values, 0.0)) / max(total, np.finfo(np.float64).tiny)
    rank = fixed or int(min(np.searchsorted(share, energy - 1e-12) + 1, most))
    if not fixed and share[rank - 1] < energy - 1e-9:
        get_logger().warning(
            "warning: %d modes hold %.8f of the variance, not %.8f as asked for; see --num_modes, --energy",
            rank,
            share[rank - 1],
            energy,
        )
    scale = math.sqrt(len(vectors) / rank)
    sigma = torch.from_numpy(np.sqrt(np.maximum(values[:rank], 0.0) / statistics.count) / scale)
    modes = vectors[:, :rank]
    signs = modes.gather(0, modes.abs().argmax(0, keepdim=True)).sign()
    modes = modes * torch.where(signs == 0, 1.0, signs)
    return Basis(_buffers(statistics, modes, sigma, float(share[rank - 1])))


def _buffers(statistics: FieldStatistics, modes: Tensor, sigma: Tensor, share: float) -> dict[str, Tensor]:
    normalizer = statistics.normalizer()
    return {
        "modes": modes.float().contiguous(),
        "node_mean": torch.from_numpy(statistics.node_mean.reshape(-1)).float(),
        "field_mean": torch.from_numpy(normalizer.mean).float(),
        "field_std": torch.from_numpy(normalizer.std).float(),
        "sigma": sigma.float(),
        "energy": torch.tensor(min(share, 1.0), dtype=torch.float64),
    }
