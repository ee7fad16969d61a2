"""What can be had without learning: coherence for faults, flat time, the input itself, one normal for all.

Cubes are NumPy arrays [n1, n2, n3] (z down, crossline y, inline x), float32. A model that does not beat these
has learned nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from fault_seg.angles import angles_from_normal, normal_from_angles, normal_from_outer, outer_from_normal
from fault_seg.geotime import reflection_slopes
from fault_seg.metrics_fault import Array

VERTICAL_SAMPLES = 9
VERTICAL_SMOOTHING = 3.0
COHERENCE_SIGMAS = (8.0, 6.0, 6.0)  # wider than for geological time: the slopes must not turn at the fault
NOISE_FLOOR = 0.05


def coherence_faults(image: Array, noise_floor: float = NOISE_FLOOR) -> Array:
    """Return a fault likelihood 0..1 from dip-steered coherence: c / (c + median c + `noise_floor`).

    c is `incoherence`. Noise raises c in a whole cube; its median takes that back, so that one threshold
    serves quiet and noisy cubes. The order of the voxels of a cube, and so its AP, stays that of c.
    """
    c = incoherence(image)
    return c / (c + np.median(c) + np.float32(noise_floor))


def incoherence(
    image: Array,
    samples: int = VERTICAL_SAMPLES,
    smoothing: float = VERTICAL_SMOOTHING,
    tensor_sigmas: tuple[float, float, float] = COHERENCE_SIGMAS,
) -> Array:
    """Return 1 - semblance along the local dip, smoothed vertically, 0..1.

    Semblance of the 3 x 3 traces around a voxel, read along the slopes of the gradient structure tensor, over
    a vertical window (Marfurt et al. 1998, eq. 5):

        S = sum_t (sum_j u_j)^2 / (J sum_t sum_j u_j^2)

    Args:
        image: seismic cube, any amplitude.
        samples: height of the window in samples.
        smoothing: standard deviation in samples of the Gaussian along z at the end.
        tensor_sigmas: smoothing of the structure tensor in voxels (z, y, x).
    """
    u = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    slope_y, slope_x, _ = reflection_slopes(u, tensor_sigmas)
    total, energy = torch.zeros_like(u), torch.zeros_like(u)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            trace = _read_along(u, dy * slope_y + dx * slope_x, dy, dx)
            total += trace
            energy += trace * trace
    stacked = ndimage.uniform_filter1d((total * total).numpy(), samples, axis=0)
    single = ndimage.uniform_filter1d(energy.numpy(), samples, axis=0)
    # Where nothing was recorded there is no evidence of a break.
    semblance = np.divide(
        stacked, 9 * single, out=np.ones_like(single), where=single > 1e-12 * energy.max().item()
    )
    smooth = ndimage.gaussian_filter1d(1 - np.clip(semblance, 0, 1), smoothing, axis=0)
    return np.clip(smooth, 0, 1).astype(np.float32)


def _read_along(u: torch.Tensor, shift: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Return u(z + shift, y + dy, x + dx), linear in z; the edges stand in for what is outside."""
    n1, n2, n3 = u.shape
    y = (torch.arange(n2) + dy).clamp_(0, n2 - 1)
    x = (torch.arange(n3) + dx).clamp_(0, n3 - 1)
    neighbour = u.index_select(1, y).index_select(2, x)
    if dy == 0 and dx == 0:
        return neighbour
    z = (torch.arange(n1, dtype=u.dtype)[:, None, None] + shift).clamp_(0, n1 - 1)
    upper = z.floor().clamp_(max=max(n1 - 2, 0))
    row = upper.long()
    above = neighbour.gather(0, row)
    below = neighbour.gather(0, (row + 1).clamp_(max=n1 - 1))
    return torch.lerp(above, below, z - upper)


def flat_rgt(shape: tuple[int, int, int]) -> Array:
    """Return the time of flat layers, z / (n1 - 1), as float32 [n1, n2, n3]."""
    z = np.arange(shape[0], dtype=np.float32) / max(shape[0] - 1, 1)
    return np.broadcast_to(z[:, None, None], shape).copy()


def input_as_dhr(image: Array) -> Array:
    """Return the input itself as the denoised image, with mean 0 and standard deviation 1 like the target."""
    image = np.asarray(image, dtype=np.float32)
    return (image - image.mean()) / max(float(image.std()), 1e-12)


def best_constant_angles(fdip: Array, fstrike: Array, fault: np.ndarray) -> tuple[float, float]:
    """Return (fdip, fstrike) in file units of the one plane nearest to those of all fault voxels.

    The leading eigenvector of the mean of n n^T maximises the mean squared cosine to their sign-free normals.

    Args:
        fdip: dip / 180, any shape; training cubes can be concatenated.
        fstrike: strike / 180.
        fault: mask of the voxels that count; with none of them a vertical plane of strike 0 is returned.
    """
    if not fault.any():
        return 0.5, 0.0
    dip, strike = (torch.as_tensor(a[fault], dtype=torch.float64) * 180 for a in (fdip, fstrike))
    mean = outer_from_normal(normal_from_angles(dip, strike)).mean(dim=1)
    normal, _ = normal_from_outer(mean[:, None])
    dip_deg, strike_deg = angles_from_normal(normal[:, 0])
    return dip_deg.item() / 180, strike_deg.item() / 180


def constant_angles(shape: tuple[int, int, int], fdip: float, fstrike: float) -> tuple[Array, Array]:
    """Return cubes of one dip and one strike in file units, float32."""
    return np.full(shape, fdip, dtype=np.float32), np.full(shape, fstrike, dtype=np.float32)


def always_empty(shape: tuple[int, int, int]) -> Array:
    """Return fault probability 0 everywhere."""
    return np.zeros(shape, dtype=np.float32)


def always_fault(shape: tuple[int, int, int]) -> Array:
    """Return fault probability 1 everywhere."""
    return np.ones(shape, dtype=np.float32)
