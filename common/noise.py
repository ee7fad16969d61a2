"""Counter-based random streams and correlated Gaussian fields.

A generator is a function of (seed, purpose, indices): sample 17 of seed 0 is the same numbers in any process,
on any rank, after any number of other draws. Nothing here reads or writes global random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


def stream_key(seed: int, purpose: str, *indices: int) -> int:
    """Return the 128-bit key of a stream: the hash of (seed, purpose, indices).

    `purpose` keeps streams of one sample apart (say "augment" and "noise"), so that adding a draw to one
    never shifts the other.
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(i)) for i in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def numpy_stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for (seed, purpose, indices)."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, purpose, *indices)))


def torch_stream(
    seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator on `device` for (seed, purpose, indices).

    Streams of different device types hold different numbers; draw on the CPU and move the result where every
    device must see the same.
    """
    generator = torch.Generator(device=device)
    return generator.manual_seed(stream_key(seed, purpose, *indices) & 0x7FFF_FFFF_FFFF_FFFF)


def gaussian(
    shape: Sequence[int],
    seed: int,
    purpose: str,
    *indices: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return standard normal noise of `shape`, drawn on the CPU and moved: the same on every device."""
    generator = torch_stream(seed, purpose, *indices)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).to(device)


def correlated_gaussian(
    shape: Sequence[int],
    correlation_length: float | Sequence[float],
    rng: np.random.Generator,
    *,
    periodic: bool = False,
) -> np.ndarray:
    """Return a stationary Gaussian random field, float32 of `shape`, expected mean 0 and variance 1.

    The covariance is exp(-|h|^2 / (2 l^2)) with the lag h and l = `correlation_length` in cells (one value,
    or one an axis; 0 leaves an axis uncorrelated). White noise is filtered in the Fourier domain with
    the square root of the spectrum (spectral method, Dietrich and Newsam 1997). Unless `periodic`, the field
    is cut from a box padded by four correlation lengths, so opposite edges are independent.

    Raises:
        ValueError: a correlation length is negative, or their number differs from the number of axes.
    """
    shape = tuple(int(n) for n in shape)
    lengths = np.broadcast_to(np.asarray(correlation_length, dtype=np.float64), (len(shape),))
    if (lengths < 0).any():
        raise ValueError(f"correlation_length {correlation_length} is negative")
    box = shape if periodic else tuple(n + int(np.ceil(4 * s)) for n, s in zip(shape, lengths, strict=True))
    log_spectrum = np.zeros((1,) * len(box))
    for axis, (n, length) in enumerate(zip(box, lengths, strict=True)):
        frequency = np.fft.rfftfreq(n) if axis == len(box) - 1 else np.fft.fftfreq(n)
        view = [1] * len(box)
        view[axis] = -1
        log_spectrum = log_spectrum - ((2 * np.pi * frequency * length) ** 2 / 4).reshape(view)
    amplitude = np.exp(log_spectrum)
    # Every mode but those on the last axis' zero and Nyquist planes stands for itself and its conjugate.
    weight = np.full(amplitude.shape[-1], 2.0)
    weight[0] = 1.0
    if box[-1] % 2 == 0:
        weight[-1] = 1.0
    full = np.broadcast_to(amplitude, (*box[:-1], box[-1] // 2 + 1))
    amplitude = full / np.sqrt((full**2 * weight).sum() / np.prod(box))
    white = rng.standard_normal(box)
    field = np.fft.irfftn(np.fft.rfftn(white) * amplitude, s=box, axes=range(len(box)))
    return field[tuple(slice(n) for n in shape)].astype(np.float32)
