"""Fault dip and strike, the unit normal of the plane, and its outer product.

Tensors carry the component first, in the order of the axes (z down, y, x). With dip d in (0, 180) degrees
and strike s in [0, 180) degrees from +x towards +y, the normal is

    n = (nz, ny, nx) = (-cos d, sin d cos s, -sin d sin s)

up to its sign: (d, s) and (180 - d, s + 180) are one plane. Networks learn n n^T: it has no sign and no wrap.
"""

from __future__ import annotations

import torch

CHUNK_VOXELS = 1 << 18
DEGENERATE = 1e-3


def normal_from_angles(dip_deg: torch.Tensor, strike_deg: torch.Tensor) -> torch.Tensor:
    """Return the unit normal [3, ...] (nz, ny, nx) of planes with dip and strike [...] in degrees."""
    dip, strike = torch.deg2rad(dip_deg), torch.deg2rad(strike_deg)
    sine = torch.sin(dip)
    return torch.stack([-torch.cos(dip), sine * torch.cos(strike), -sine * torch.sin(strike)])


def angles_from_normal(normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (dip_deg in [0, 180], strike_deg in [0, 180)) of normals [3, ...], of any length and sign.

    A horizontal plane, whose strike is undefined, gets dip 0 or 180.
    """
    nz, ny, nx = normal.unbind(0)
    strike = torch.rad2deg(torch.atan2(-nx, ny))
    # A strike outside [0, 180) is that of the opposite normal. A tiny negative one rounds up to 180 when 180
    # is added, which is outside again: it stays with its own normal, as 0.
    turned = torch.where(strike < 0, strike + 180, strike - 180)
    opposite = ((strike < 0) | (strike >= 180)) & (turned < 180)
    strike = torch.where(opposite, turned, torch.where(strike < 0, torch.zeros_like(strike), strike))
    nz = torch.where(opposite, -nz, nz)
    dip = torch.rad2deg(torch.atan2(torch.hypot(ny, nx), -nz))
    return dip, strike


def fold_dip(dip_deg: torch.Tensor) -> torch.Tensor:
    """Return the steepness 0..90 of dips 0..180 (above 90 the plane dips the other way)."""
    return 90 - (dip_deg - 90).abs()


def outer_from_normal(normal: torch.Tensor) -> torch.Tensor:
    """Return n n^T of normals [3, ...] as [6, ...] in the order Nzz, Nyy, Nxx, Nzy, Nzx, Nyx."""
    nz, ny, nx = normal.unbind(0)
    return torch.stack([nz * nz, ny * ny, nx * nx, nz * ny, nz * nx, ny * nx])


@torch.no_grad()
def normal_from_outer(outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the leading unit eigenvector [3, ...] of symmetric 3x3 matrices and its eigenvalue gap [...].

    Args:
        outer: [6, ...] in the order of `outer_from_normal`; any symmetric matrices (blended estimates).

    Returns:
        The eigenvector of the largest eigenvalue, (1, 0, 0) where the matrix is isotropic, and the difference
        between the two largest eigenvalues: a confidence, 1 for an exact n n^T and 0 for no direction.
    """
    flat = outer.reshape(6, -1)
    if not flat.is_floating_point() or flat.element_size() < 4:
        flat = flat.float()
    normal = flat.new_empty((3, flat.shape[1]))
    gap = flat.new_empty(flat.shape[1])
    for start in range(0, flat.shape[1], CHUNK_VOXELS):
        part = slice(start, start + CHUNK_VOXELS)
        normal[:, part], gap[part] = _leading_eigenvector(flat[:, part])
    return normal.reshape(3, *outer.shape[1:]), gap.reshape(outer.shape[1:])


def _leading_eigenvector(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return leading eigenvectors [3, N] and gaps [N] of a [6, N].

    Eigenvalues by the trigonometric formula (Smith 1961). Every column of (A - l2)(A - l3) =
    (l1 - l2)(l1 - l3) v1 v1^T is then a multiple of v1, and an error e of l2 or l3 enters as e^2 only.
    Where l1 = l2 all columns vanish and an iterative solver takes over.
    """
    tiny = torch.finfo(a.dtype).tiny
    # Squares of very small entries, as beside a mute, would vanish: work on matrices of size 1.
    size = a.abs().amax(0)
    a = a / size.clamp_min(tiny)
    mean = (a[0] + a[1] + a[2]) / 3
    zz, yy, xx = a[0] - mean, a[1] - mean, a[2] - mean
    zy, zx, yx = a[3], a[4], a[5]
    p = ((zz * zz + yy * yy + xx * xx + 2 * (zy * zy + zx * zx + yx * yx)) / 6).sqrt()
    scale = 1 / p.clamp_min(tiny)
    zz, yy, xx, zy, zx, yx = (v * scale for v in (zz, yy, xx, zy, zx, yx))
    det = zz * (yy * xx - yx * yx) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    phi = torch.acos((det / 2).clamp(-1, 1)) / 3
    l1 = 2 * torch.cos(phi)
    l3 = 2 * torch.cos(phi + 2 * torch.pi / 3)
    l2 = -l1 - l3
    s, t = -(l2 + l3), l2 * l3
    m_zz = zz * zz + zy * zy + zx * zx + s * zz + t
    m_yy = zy * zy + yy * yy + yx * yx + s * yy + t
    m_xx = zx * zx + yx * yx + xx * xx + s * xx + t
    m_zy = zz * zy + zy * yy + zx * yx + s * zy
    m_zx = zz * zx + zy * yx + zx * xx + s * zx
    m_yx = zy * zx + yy * yx + yx * xx + s * yx
    use_z = (m_zz >= m_yy) & (m_zz >= m_xx)
    use_y = ~use_z & (m_yy >= m_xx)
    v = torch.stack(
        [
            torch.where(use_z, m_zz, torch.where(use_y, m_zy, m_zx)),
            torch.where(use_z, m_zy, torch.where(use_y, m_yy, m_yx)),
            torch.where(use_z, m_zx, torch.where(use_y, m_yx, m_xx)),
        ]
    )
    v = v / torch.linalg.vector_norm(v, dim=0).clamp_min(tiny)
    isotropic = p <= 1e-6 * mean.abs().clamp_min(tiny)
    up = torch.zeros_like(v)
    up[0] = 1
    v = torch.where(isotropic, up, v)
    gap = ((l1 - l2) * p).clamp_min(0)
    hard = torch.nonzero(((l1 - l2) < DEGENERATE) & ~isotropic).squeeze(1)
    if len(hard):
        v[:, hard], gap[hard] = (r.to(a) for r in _eigh(a[:, hard]))
    return v, gap * size


def _eigh(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `_leading_eigenvector` does by the library's solver, on the CPU in float64."""
    zz, yy, xx, zy, zx, yx = a.detach().cpu().double().unbind(0)
    matrix = torch.stack([zz, zy, zx, zy, yy, yx, zx, yx, xx], dim=-1).reshape(-1, 3, 3)
    values, vectors = torch.linalg.eigh(matrix)
    return vectors[..., 2].T, values[:, 2] - values[:, 1]
