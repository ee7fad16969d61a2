"""Training losses: one formula, one function; every term per sample, then averaged over the batch.

B batch, Z Y X grid. Volumes are [B, 1, Z, Y, X]; targets `fsem` is 1 on faults, 0 off faults and -1 where
nobody has looked: those voxels count in no term. M are the labelled voxels, F the fault voxels. Targets
`fdip` and `fstrike` are angles over 180 degrees, as in files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses import masked_mean
from fault_seg.angles import normal_from_angles, outer_from_normal
from fault_seg.model import neighbours, off_fault, rgt_calibration

# Fault, orient, dhr, rgt. With 1, 1, 0.5, 2 the gradient clip was always active and faults learned slower.
WEIGHTS = {"fault": 1.0, "orient": 0.3, "dhr": 0.2, "rgt": 0.5}
GRID = (1, 2, 3, 4)


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32 if it is in half precision: sums over a cube need the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@overload
def labelled(fsem: Tensor) -> Tensor: ...
@overload
def labelled(fsem: Tensor | None) -> Tensor | None: ...
def labelled(fsem: Tensor | None) -> Tensor | None:
    """Return 1 on labelled voxels and 0 elsewhere; None, all voxels, without labels."""
    return None if fsem is None else (fsem >= 0).to(fsem.dtype)


def dice_loss(probability: Tensor, fsem: Tensor) -> Tensor:
    """Return the soft Dice loss 1 - (2 sum p y + 1)/(sum p + sum y + 1) over M, a scalar."""
    mask = labelled(fsem)
    p, y = (probability * mask).flatten(1), (fsem * mask).flatten(1)
    return (1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).mean()


def fault_loss(logit: Tensor, fsem: Tensor) -> Tensor:
    """Return mean_M BCE(p, y) + soft Dice, p = sigmoid(logit), a scalar."""
    logit, mask = wide(logit), labelled(fsem)
    bce = F.binary_cross_entropy_with_logits(logit, fsem.clamp(min=0), reduction="none")
    return masked_mean(bce, mask).mean() + dice_loss(torch.sigmoid(logit), fsem)


def target_normal(fdip: Tensor, fstrike: Tensor) -> Tensor:
    """Return unit normals [B, 3, Z, Y, X] (nz, ny, nx) of angles over 180 degrees, each [B, 1, Z, Y, X]."""
    return normal_from_angles(180 * wide(fdip)[:, 0], 180 * wide(fstrike)[:, 0]).movedim(0, 1)


def orient_loss(orient: Tensor, fdip: Tensor, fstrike: Tensor, fsem: Tensor) -> Tensor:
    """Return mean_F ||Nhat - n n^T||_F^2 of `orient` [B, 6, Z, Y, X], a scalar; 0 where F is empty.

    Off-diagonal components stand for two entries of the matrix and count twice.
    """
    normal = target_normal(fdip, fstrike)
    outer = outer_from_normal(normal.movedim(1, 0)).movedim(0, 1)
    square = (wide(orient) - outer).square()
    frobenius = square[:, :3].sum(1, keepdim=True) + 2 * square[:, 3:].sum(1, keepdim=True)
    return masked_mean(frobenius, (fsem >= 0.5).to(frobenius.dtype)).mean()


def normal_loss(dip: Tensor, strike: Tensor, fdip: Tensor, fstrike: Tensor, fsem: Tensor) -> Tensor:
    """Return mean_F (1 - (n . n')^2) of ungated angles over 180 degrees, a scalar (for mtl)."""
    cosine = (target_normal(dip, strike) * target_normal(fdip, fstrike)).sum(1, keepdim=True)
    return masked_mean(1 - cosine.square(), (fsem >= 0.5).to(cosine.dtype)).mean()


def dhr_loss(dhr_hat: Tensor, dhr: Tensor, fsem: Tensor | None = None) -> Tensor:
    """Return mean_M (dhr_hat - dhr)^2, a scalar; the target has unit standard deviation."""
    return masked_mean((wide(dhr_hat) - dhr).square(), labelled(fsem)).mean()


def gradient_loss(error: Tensor, fsem: Tensor | None) -> Tensor:
    """Return mean |grad error| over neighbour pairs along all axes with both ends off faults, [B]."""
    free = torch.ones_like(error) if fsem is None else off_fault(fsem)
    total, count = error.new_zeros(len(error)), error.new_zeros(len(error))
    for dim in (2, 3, 4):
        pairs = neighbours(free, dim)
        total = total + (error.diff(dim=dim).abs() * pairs).sum(GRID)
        count = count + pairs.sum(GRID)
    return total / count.clamp(min=1)


def rgt_loss(rho: Tensor, rgt: Tensor, fsem: Tensor | None = None) -> Tensor:
    """Return mean_M |q - t|/n1 + 0.5 mean |grad(q - t)|, a scalar.

    q = rho - mean(rho), `rho` being the time in voxels; t = (rgt - mean(rgt))/slope, `rgt` brought to voxels
    by its mean slope off faults. The gradient is that over pairs which no fault separates.
    """
    slope, _ = rgt_calibration(rgt, fsem)
    difference, mask = wide(rho) - rgt / slope, labelled(fsem)
    error = difference - masked_mean(difference, mask).view(-1, 1, 1, 1, 1)
    n1 = rho.shape[2]
    return (masked_mean(error.abs(), mask) / n1 + 0.5 * gradient_loss(error, fsem)).mean()


def unit_rgt_loss(rgt_hat: Tensor, rgt: Tensor, fsem: Tensor | None = None) -> Tensor:
    """Return mean_M |rgt_hat - rgt| + 0.5 n1 mean |grad(rgt_hat - rgt)| on 0..1, a scalar (for mtl).

    n1 makes the two terms weigh as in `rgt_loss`: a gradient of 1/n1 is one voxel of time a voxel.
    """
    error = wide(rgt_hat) - rgt
    n1 = error.shape[2]
    return (masked_mean(error.abs(), labelled(fsem)) + 0.5 * n1 * gradient_loss(error, fsem)).mean()


def strata_loss(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    weights: Mapping[str, float] = WEIGHTS,
) -> dict[str, Tensor]:
    """Return the scalars fsem, angle, dhr, rgt of the heads that are there, and `total`, their weighted sum.

    `outputs` are those of any layout. `targets` holds fsem, fdip, fstrike, dhr, rgt and, for the delta of hr,
    `tau`, the solved time in voxels; a head whose target is absent is left out.
    """
    fsem = targets.get("fsem")
    parts: dict[str, Tensor] = {}
    if "fault_logit" in outputs and fsem is not None:
        parts["fsem"] = fault_loss(outputs["fault_logit"], fsem)
    if fsem is not None and "fdip" in targets:
        angles = targets["fdip"], targets["fstrike"], fsem
        if "orient" in outputs:
            parts["angle"] = orient_loss(outputs["orient"], *angles)
        elif "dip" in outputs:
            parts["angle"] = normal_loss(outputs["dip"], outputs["strike"], *angles)
    if "dhr" in outputs and "dhr" in targets:
        parts["dhr"] = dhr_loss(outputs["dhr"], targets["dhr"], fsem)
    if "delta" in outputs and "rgt" in targets:
        parts["rgt"] = rgt_loss(targets["tau"] + wide(outputs["delta"]), targets["rgt"], fsem)
    elif "rgt" in outputs and "rgt" in targets:
        parts["rgt"] = unit_rgt_loss(outputs["rgt"], targets["rgt"], fsem)
    task = {"fsem": "fault", "angle": "orient", "dhr": "dhr", "rgt": "rgt"}
    return {**parts, "total": _total([weights[task[name]] * part for name, part in parts.items()])}


def _total(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ValueError("no output has a target, there is nothing to train")
    return torch.stack(parts).sum()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean structural similarity of volumes in 0..1, [B] (Wang et al. 2004).

    Gaussian window of 11 voxels, sigma 1.5 (fewer voxels on thinner axes), valid part only, data range 1.
    """
    batch = len(x)
    maps = torch.cat([x, y, x * x, y * y, x * y])
    for axis in (2, 3, 4):
        width = min(11, maps.shape[axis] - 1 + maps.shape[axis] % 2)
        place = torch.arange(width, device=x.device, dtype=x.dtype) - width // 2
        window = torch.exp(-place.square() / (2 * 1.5**2))
        shape = [1, 1, 1, 1, 1]
        shape[axis] = width
        maps = F.conv3d(maps, (window / window.sum()).view(shape))
    mean_x, mean_y, xx, yy, xy = maps.split(batch)
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast).mean(GRID)


def published_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of the published mtl loss and their total (Gao 2024), for comparison only.

    5 (1 - SSIM + L1) rgt, 10 MSE dhr, soft Dice fsem, and 10 L1 of the gated dip and strike over all voxels,
    which sees strike 179 and 1 as far apart. Keys as `strata_loss`; the parts hold their factors.
    """
    parts: dict[str, Tensor] = {}
    if "fsem" in outputs and "fsem" in targets:
        parts["fsem"] = dice_loss(outputs["fsem"], targets["fsem"])
        dip, strike = (F.l1_loss(outputs[key], targets[key]) for key in ("fdip", "fstrike"))
        parts["angle"] = 10 * (dip + strike)
    if "dhr" in outputs and "dhr" in targets:
        parts["dhr"] = 10 * F.mse_loss(outputs["dhr"], targets["dhr"])
    if "rgt" in outputs and "rgt" in targets:
        similarity = ssim(outputs["rgt"], targets["rgt"]).mean()
        parts["rgt"] = 5 * (1 - similarity + F.l1_loss(outputs["rgt"], targets["rgt"]))
    return {**parts, "total": _total(list(parts.values()))}
