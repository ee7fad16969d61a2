"""The losses of fault_seg: plane symmetry, ignored voxels, gradients, known values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.noise import gaussian
from fault_seg.angles import normal_from_angles, outer_from_normal
from fault_seg.losses import (
    dhr_loss,
    fault_loss,
    normal_loss,
    orient_loss,
    published_loss,
    rgt_loss,
    ssim,
    strata_loss,
    unit_rgt_loss,
)

SIZE = (2, 1, 4, 4, 3)


def noise(*shape: int, index: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal noise of `shape`."""
    return gaussian(shape, 0, "test_losses", index, dtype=dtype)


def faults(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return labels with voxels of all three kinds: fault, none, unlabelled."""
    draw = noise(*SIZE, index=9, dtype=dtype)
    return torch.where(draw > 0.3, 1.0, torch.where(draw < -1, -1.0, 0.0)).to(dtype)


def plane(dip_deg: float, strike_deg: float) -> tuple[Tensor, Tensor]:
    """Return file-style volumes of one dip and one strike."""
    one = torch.ones(SIZE, dtype=torch.float64)
    return one * dip_deg / 180, one * strike_deg / 180


def outer(dip_deg: float, strike_deg: float) -> Tensor:
    """Return n n^T of one plane as [B, 6, Z, Y, X]."""
    angles = torch.tensor([dip_deg, strike_deg], dtype=torch.float64)
    value = outer_from_normal(normal_from_angles(angles[0], angles[1]))
    return value.view(1, 6, 1, 1, 1).expand(SIZE[0], 6, *SIZE[2:])


def test_one_plane_has_one_loss():
    """(d, s) and (180 - d, s + 180) are the same plane to both orientation losses."""
    fsem, estimate, guess = faults(), noise(2, 6, *SIZE[2:]), plane(40, 100)
    for dip, strike in ((60, 30), (75, 0), (110, 140)):
        a, b = plane(dip, strike), plane(180 - dip, strike + 180)
        torch.testing.assert_close(orient_loss(estimate, *a, fsem), orient_loss(estimate, *b, fsem))
        torch.testing.assert_close(normal_loss(*guess, *a, fsem), normal_loss(*guess, *b, fsem))
        torch.testing.assert_close(normal_loss(*a, *guess, fsem), normal_loss(*b, *guess, fsem))


def test_strike_wrap_is_a_small_step():
    """Strike 179 and strike 1 (dip 70 and 110) differ by two degrees, not by 178."""
    fsem, target = faults(), plane(70, 1)
    near, far = outer(110, 179), outer(110, 91)
    assert orient_loss(near, *target, fsem) < 0.003 < 1 < orient_loss(far, *target, fsem)
    assert normal_loss(*plane(110, 179), *target, fsem) < 0.002
    assert normal_loss(*plane(110, 91), *target, fsem) > 0.8


def test_orient_loss_is_twice_the_squared_sine():
    """||n n^T - m m^T||_F^2 = 2 sin^2 of the angle between the planes; gates of p do not enter."""
    angles = math.radians(25)
    found = orient_loss(outer(60, 0), *plane(35, 0), torch.ones(SIZE, dtype=torch.float64))
    assert found.item() == pytest.approx(2 * math.sin(angles) ** 2, rel=1e-9)
    found = normal_loss(*plane(60, 0), *plane(35, 0), torch.ones(SIZE, dtype=torch.float64))
    assert found.item() == pytest.approx(math.sin(angles) ** 2, rel=1e-9)


def test_orient_loss_without_faults_is_zero():
    """A cube without faults gives orientation no loss and no gradient."""
    estimate = noise(2, 6, *SIZE[2:]).requires_grad_()
    loss = orient_loss(estimate, *plane(60, 30), torch.zeros(SIZE, dtype=torch.float64))
    loss.backward()
    assert loss == 0 and not estimate.grad.any()


def test_fault_loss_known_values():
    """At p = 1/2 the cross-entropy is log 2; a certain and right answer costs nothing."""
    fsem = torch.zeros(1, 1, 4, 4, 4)
    fsem[..., :2] = 1
    half = fault_loss(torch.zeros_like(fsem), fsem)
    assert half.item() == pytest.approx(math.log(2) + 1 - (32 + 1) / (32 + 32 + 1), rel=1e-6)
    assert fault_loss(60 * fsem - 30, fsem) < 1e-6


def full_case() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return outputs of hr, with gradients, and targets with unlabelled voxels."""
    fdip, fstrike = plane(60, 30)
    targets = {"fsem": faults(), "fdip": fdip, "fstrike": fstrike, "dhr": noise(*SIZE, index=1)}
    z = torch.arange(SIZE[2], dtype=torch.float64).view(1, 1, -1, 1, 1)
    targets["rgt"] = (z / 4 + 0.01 * noise(*SIZE, index=2)).clamp(0, 1)
    targets["tau"] = z + 0.1 * noise(*SIZE, index=3)
    shapes = {"fault_logit": 1, "orient": 6, "dhr": 1, "delta": 1}
    outputs = {
        key: noise(2, c, *SIZE[2:], index=10 + c + len(key)).requires_grad_() for key, c in shapes.items()
    }
    return outputs, targets


def test_unlabelled_voxels_have_no_gradient():
    """Label -1 leaves the voxel out of every term; the other voxels learn."""
    outputs, targets = full_case()
    strata_loss(outputs, targets)["total"].backward()
    hidden = targets["fsem"] < 0
    assert hidden.any()
    for key, value in outputs.items():
        mask = hidden.expand_as(value)
        if key == "delta":
            # The time of a voxel is known up to a constant: its mean is taken over labelled voxels alone.
            assert value.grad[mask].abs().max() < 1e-15
        else:
            assert not value.grad[mask].any()
        assert value.grad[~mask].any()


def test_gradients_are_those_of_finite_differences():
    """Autograd agrees with central differences for every term."""
    outputs, targets = full_case()
    names = list(outputs)

    def total(*values: Tensor) -> Tensor:
        return strata_loss(dict(zip(names, values, strict=True)), targets)["total"]

    assert torch.autograd.gradcheck(total, [outputs[name] for name in names], eps=1e-7, atol=1e-5)
    dip, strike = (torch.sigmoid(noise(*SIZE, index=i)).requires_grad_() for i in (30, 31))
    assert torch.autograd.gradcheck(
        lambda a, b: normal_loss(a, b, *plane(60, 30), targets["fsem"]), [dip, strike], eps=1e-7, atol=1e-5
    )


def test_weights_and_parts():
    """The total is the weighted sum of the parts; a head without target or output is left out."""
    outputs, targets = full_case()
    parts = strata_loss(outputs, targets, {"fault": 1, "orient": 2, "dhr": 3, "rgt": 4})
    expected = parts["fsem"] + 2 * parts["angle"] + 3 * parts["dhr"] + 4 * parts["rgt"]
    torch.testing.assert_close(parts["total"], expected)
    torch.testing.assert_close(parts["dhr"], dhr_loss(outputs["dhr"], targets["dhr"], targets["fsem"]))
    only = strata_loss({"fault_logit": outputs["fault_logit"]}, {"fsem": targets["fsem"]})
    assert set(only) == {"fsem", "total"}
    with pytest.raises(ValueError, match="nothing to train"):
        strata_loss({}, targets)


def test_every_sample_weighs_the_same():
    """The loss of a batch is the mean of its samples' losses, however many voxels each has labelled."""
    outputs, targets = full_case()
    both = strata_loss(outputs, targets)
    single = [
        strata_loss(
            {k: v[i : i + 1] for k, v in outputs.items()}, {k: v[i : i + 1] for k, v in targets.items()}
        )
        for i in (0, 1)
    ]
    for key, value in both.items():
        torch.testing.assert_close(value, (single[0][key] + single[1][key]) / 2)


def test_rgt_loss_ignores_shift_and_the_throw_of_a_fault():
    """True time in voxels costs nothing, up to a constant; a jump across a fault enters no gradient."""
    z = torch.arange(12, dtype=torch.float64).view(1, 1, -1, 1, 1).expand(1, 1, 12, 10, 8)
    fsem = torch.zeros_like(z)
    fsem[:, :, :, 4:6] = 1
    throw = torch.zeros_like(z)
    throw[:, :, :, 5:] = 3
    time = z + throw
    rgt = (time - time.min()) / (time.max() - time.min())
    assert rgt_loss(time + 7, rgt, fsem) < 1e-12
    # A solver without the throw errs by a jump: half the volume 1.5 voxels high, half 1.5 low.
    assert rgt_loss(z, rgt, fsem).item() == pytest.approx(1.5 / 12, rel=1e-9)
    assert rgt_loss(z, rgt, torch.zeros_like(fsem)) > 1.1 * 1.5 / 12


def test_unit_rgt_loss_weighs_as_the_one_in_voxels():
    """With one sample a voxel, the loss on 0..1 and the loss in voxels agree."""
    z = torch.arange(12, dtype=torch.float64).view(1, 1, -1, 1, 1).expand(1, 1, 12, 10, 8)
    error = noise(1, 1, 12, 10, 8)
    error = error - error.mean()
    rgt = z / 12
    torch.testing.assert_close(unit_rgt_loss(rgt + error / 12, rgt), rgt_loss(z + error, rgt))


def test_ssim():
    """Structural similarity is 1 for equal volumes, symmetric, and falls with noise, on thin volumes too."""
    for shape in ((2, 1, 16, 14, 12), (1, 1, 20, 1, 6)):
        x = torch.sigmoid(noise(*shape))
        y, z = (x + s * noise(*shape, index=5) for s in (0.02, 0.2))
        torch.testing.assert_close(ssim(x, x), torch.ones(shape[0], dtype=torch.float64))
        torch.testing.assert_close(ssim(x, y), ssim(y, x))
        assert (ssim(x, z) < ssim(x, y)).all() and (ssim(x, y) < 1).all()


def test_published_loss_has_its_factors():
    """The published loss is 5 (1 - SSIM + L1), 10 MSE, Dice and 10 L1 of both gated angles."""
    _, targets = full_case()
    targets["fsem"] = (targets["fsem"] > 0).double()
    targets["rgt"] = targets["rgt"].expand(SIZE)
    exact = {key: targets[key] for key in ("rgt", "dhr", "fsem", "fdip", "fstrike")}
    parts = published_loss(exact, targets)
    assert all(abs(value) < 1e-12 for value in parts.values())
    off = published_loss({**exact, "dhr": exact["dhr"] + 2, "fdip": exact["fdip"] + 0.1}, targets)
    assert off["dhr"].item() == pytest.approx(40) and off["angle"].item() == pytest.approx(1)
    assert off["total"].item() == pytest.approx(41)
    assert published_loss({**exact, "rgt": exact["rgt"] + 0.1}, targets)["rgt"] > 0.5


def test_half_precision_outputs_are_summed_in_float32():
    """Outputs in bf16 give float32 losses, close to those of the same values in float32."""
    outputs, targets = full_case()
    targets = {k: v.float() for k, v in targets.items()}
    low = {k: v.detach().bfloat16() for k, v in outputs.items()}
    found, expected = strata_loss(low, targets), strata_loss({k: v.float() for k, v in low.items()}, targets)
    torch.testing.assert_close(found, expected)
