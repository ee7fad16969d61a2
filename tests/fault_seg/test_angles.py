"""Dip, strike, normals and their outer products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fault_seg.angles import (
    angles_from_normal,
    fold_dip,
    normal_from_angles,
    normal_from_outer,
    outer_from_normal,
)
from tests.fault_seg.planes import angle_between_deg


def _grid() -> tuple[torch.Tensor, torch.Tensor]:
    dip = torch.arange(1.0, 180.0, 4.0, dtype=torch.float64)
    strike = torch.arange(0.0, 180.0, 3.0, dtype=torch.float64)
    return torch.meshgrid(dip, strike, indexing="ij")


def _random_outer(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(6, num, generator=torch.Generator().manual_seed(seed))


def test_degrees_survive_the_normal_in_either_sign():
    """Degrees -> normal -> degrees is the identity for every dip and strike, also from the negated normal."""
    dip, strike = _grid()
    normal = normal_from_angles(dip, strike)
    torch.testing.assert_close(normal.norm(dim=0), torch.ones_like(dip))
    for sign in (1, -3):
        dip2, strike2 = angles_from_normal(sign * normal)
        torch.testing.assert_close(dip2, dip)
        torch.testing.assert_close(strike2, strike, atol=1e-9, rtol=0)


def test_the_convention_by_hand():
    """A plane with strike along x that dips 30 degrees towards +y deepens by tan 30 a voxel of y."""
    nz, ny, nx = normal_from_angles(torch.tensor(30.0), torch.tensor(0.0)).tolist()
    assert abs(nx) < 1e-6
    np.testing.assert_allclose(-ny / nz, np.tan(np.deg2rad(30)), rtol=1e-5)
    towards_y = normal_from_angles(torch.tensor(90.0), torch.tensor(90.0))
    np.testing.assert_allclose(towards_y.abs().numpy(), [0, 0, 1], atol=1e-6)


def test_strike_stays_below_180_at_the_wrap():
    """Strike is in [0, 180) in float32 too, where -1e-9 degrees would round up to 180."""
    tiny = torch.tensor([0.0, -1e-12, 1e-12, -0.0])
    normal = torch.stack([torch.full((4,), -0.5), torch.full((4,), 0.8), tiny])
    for sign in (1, -1):
        dip, strike = angles_from_normal(sign * normal)
        assert ((strike >= 0) & (strike < 180)).all()
        assert (torch.minimum(strike, 180 - strike) < 1e-4).all()
        assert torch.isfinite(dip).all()


def test_one_plane_has_one_outer_product():
    """(d, s) and (180 - d, s + 180) give the same n n^T; strikes 179 and 1 are two degrees apart, not 178."""
    dip, strike = _grid()
    torch.testing.assert_close(
        outer_from_normal(normal_from_angles(dip, strike)),
        outer_from_normal(normal_from_angles(180 - dip, strike + 180)),
    )
    steep = torch.tensor(90.0, dtype=torch.float64)
    n179, n1 = normal_from_angles(steep, steep * 0 + 179), normal_from_angles(180 - steep, steep * 0 + 1)
    np.testing.assert_allclose(angle_between_deg(n179, n1).item(), 2, atol=1e-9)


def test_fold_dip():
    """A dip beyond 90 degrees is as steep as its mirror image."""
    assert fold_dip(torch.tensor([0.0, 30.0, 90.0, 150.0, 180.0])).tolist() == [0, 30, 90, 30, 0]


def test_angle_between_is_sign_free_and_accurate():
    """Known rotations about an axis come back to 1e-3 degrees in float32, for any signs, between 0 and 90."""
    angle = torch.tensor([0.0, 0.01, 1.0, 45.0, 89.9, 90.0])
    n1 = torch.tensor([0.0, 1.0, 0.0])[:, None]
    n2 = torch.stack([torch.sin(angle.deg2rad()), torch.cos(angle.deg2rad()), 0 * angle])
    for sign in (1, -1):
        torch.testing.assert_close(angle_between_deg(n1, sign * n2), angle, atol=1e-3, rtol=0)


def test_an_angle_does_not_shrink_with_probability():
    """Sixty degrees stay sixty when n n^T is scaled by p = 0.6; the gap tells the scale."""
    dip, strike = torch.tensor([60.0]), torch.tensor([25.0])
    normal, gap = normal_from_outer(0.6 * outer_from_normal(normal_from_angles(dip, strike)))
    dip2, strike2 = angles_from_normal(normal)
    torch.testing.assert_close(dip2, dip, atol=1e-3, rtol=0)
    torch.testing.assert_close(strike2, strike, atol=1e-3, rtol=0)
    torch.testing.assert_close(gap, torch.tensor([0.6]), atol=1e-3, rtol=0)


def test_leading_eigenvector_against_the_library():
    """Random symmetric matrices: eigenvector and gap agree with numpy.linalg.eigh, over two chunks."""
    outer = _random_outer(300_000)
    normal, gap = normal_from_outer(outer)
    zz, yy, xx, zy, zx, yx = outer[:, ::97].double().numpy()
    matrix = np.stack([zz, zy, zx, zy, yy, yx, zx, yx, xx], -1).reshape(-1, 3, 3)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(gap[::97].numpy(), values[:, 2] - values[:, 1], atol=1e-3)
    angle = angle_between_deg(normal[:, ::97].double(), torch.from_numpy(vectors[..., 2].T.copy()))
    assert angle[torch.from_numpy(values[:, 2] - values[:, 1]) > 0.05].max() < 0.05
    torch.testing.assert_close(normal.norm(dim=0), torch.ones(300_000), atol=1e-5, rtol=0)


def test_degenerate_matrices_give_unit_vectors_and_no_confidence():
    """Zero, isotropic and degenerate matrices: a unit vector in the leading plane, gap 0, never NaN."""
    outer = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.3, 0.3, 0.3, 0.0, 0.0, 0.0],
            [1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
            [1e-20, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    ).T
    normal, gap = normal_from_outer(outer)
    torch.testing.assert_close(normal.norm(dim=0), torch.ones(5))
    torch.testing.assert_close(gap, torch.tensor([0, 0, 0, 1e-20, 0]), atol=1e-6, rtol=0)
    assert normal[2, 2].abs() < 1e-6  # in the plane of the equal eigenvalues
    assert normal[0, 4].abs() < 1e-6
    assert normal[0, 3].abs() > 1 - 1e-6


def test_shapes_and_half_precision():
    """Any trailing shape, none included, and reduced precision in; normals [3, ...] and gap [...] out."""
    for shape in ((), (4,), (2, 3, 4)):
        outer = _random_outer(int(np.prod(shape)) if shape else 1).reshape(6, *shape)
        normal, gap = normal_from_outer(outer.bfloat16())
        assert normal.shape == (3, *shape)
        assert gap.shape == shape
        assert normal.dtype == torch.float32
        assert angle_between_deg(normal, normal_from_outer(outer)[0]).max() < 5


def test_turning_the_cube_turns_the_angles():
    """A quarter turn about z takes (ny, nx) to (-nx, ny): dip stays, strike turns by 90 degrees."""
    dip, strike = _grid()
    nz, ny, nx = normal_from_angles(dip, strike)
    dip2, strike2 = angles_from_normal(torch.stack([nz, -nx, ny]))
    turn = (strike2 - strike) % 180
    torch.testing.assert_close(turn, torch.full_like(turn, 90))
    torch.testing.assert_close(fold_dip(dip2), fold_dip(dip))


def test_gradients():
    """The maps that a loss goes through have right derivatives (float64 finite differences)."""
    dip = torch.tensor([20.0, 95.0, 140.0], dtype=torch.float64, requires_grad=True)
    strike = torch.tensor([10.0, 90.0, 170.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d, s: outer_from_normal(normal_from_angles(d, s)), (dip, strike))
    target = normal_from_angles(torch.tensor(50.0).double(), torch.tensor(60.0).double())[:, None]
    assert torch.autograd.gradcheck(
        lambda d, s: angle_between_deg(normal_from_angles(d, s), target), (dip, strike)
    )


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-24, 1e-12, 1e12, 1e30])
def test_leading_normal_of_any_size(scale: float):
    """The eigenvector of a matrix does not depend on its size, and its gap grows with it; nothing is NaN."""
    angles = torch.tensor([[20.0, 65.0, 88.0], [10.0, 100.0, 179.0]])
    normal = normal_from_angles(*angles)
    found, gap = normal_from_outer(outer_from_normal(normal) * scale)
    assert angle_between_deg(found, normal).max() < 0.1
    torch.testing.assert_close(gap, torch.full((3,), scale), rtol=1e-3, atol=0)
    assert torch.isfinite(normal_from_outer(torch.zeros(6, 2))[1]).all()
