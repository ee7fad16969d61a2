"""First estimates: the five volumes that a network of kind refine takes, as training items and as its input.

An estimate holds tensors [B, 1, Z, Y, X]: `rgt` 0..1, `tau` (the same time in voxels, z on average),
`dhr`, `fsem`, and `fdip`, `fstrike`, ungated angles over 180 degrees, both 0 where there is no angle.
In a batch their names begin with "first_".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fault_seg.angles import angles_from_normal, normal_from_outer
from fault_seg.maps import MIN_ANGLE_PROBABILITY
from fault_seg.model import REFINE_INPUTS, refine_input, rgt_calibration

PREFIX = "first_"
Estimate = dict[str, Tensor]


def time_in_voxels(rgt: np.ndarray, fsem: np.ndarray) -> np.ndarray:
    """Return relative time [Z, Y, X] as a time in voxels that is z on average."""
    volumes = [torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32))[None, None] for v in (rgt, fsem)]
    slope, offset = rgt_calibration(*volumes)
    return (volumes[0] / slope - offset)[0, 0].numpy()


def estimate_of(batch: Mapping[str, Tensor]) -> Estimate:
    """Return the first estimate that a batch carries."""
    return {name: batch[f"{PREFIX}{name}"] for name in (*REFINE_INPUTS, "tau")}


def refine_channels(estimate: Mapping[str, Tensor], layout: str, first_z: int = 0) -> Tensor:
    """Return the input of a refining network: nine channels for hr; for mtl the five volumes, angles gated.

    `first_z` is the depth index of the first sample; it matters to hr alone.
    """
    if layout == "mtl":
        fsem = estimate["fsem"]
        gated = [estimate[name] * fsem for name in ("fdip", "fstrike")]
        return torch.cat([estimate["rgt"], estimate["dhr"], fsem, *gated], dim=1)
    one, zero = torch.ones((), device=estimate["tau"].device), torch.zeros((), device=estimate["tau"].device)
    volumes = {name: estimate[name] for name in ("dhr", "fsem", "fdip", "fstrike")}
    return refine_input(estimate["tau"], **volumes, calibration=(one, zero), first_z=first_z)


@torch.no_grad()
def estimate_from(outputs: Mapping[str, Tensor], tau: Tensor) -> Estimate:
    """Return what a network says as the estimate for the next one; `tau` is the time its delta corrects."""
    fsem = torch.sigmoid(outputs["fault_logit"].float())
    if "orient" in outputs:
        normal, _ = normal_from_outer(outputs["orient"].float().movedim(1, 0))
        dip, strike = (angle[:, None] / 180 for angle in angles_from_normal(normal))
    else:
        dip, strike = outputs["dip"].float(), outputs["strike"].float()
    known = (fsem >= MIN_ANGLE_PROBABILITY).to(fsem.dtype)
    if "delta" in outputs:
        tau = tau + outputs["delta"].float()
        low, high = tau.amin((1, 2, 3, 4), keepdim=True), tau.amax((1, 2, 3, 4), keepdim=True)
        rgt = (tau - low) / (high - low).clamp_min(1e-6)
    else:
        rgt = outputs["rgt"].float()
        slope, offset = rgt_calibration(rgt, fsem)
        tau = rgt / slope - offset
    return {
        "rgt": rgt,
        "tau": tau,
        "dhr": outputs["dhr"].float(),
        "fsem": fsem,
        "fdip": dip * known,
        "fstrike": strike * known,
    }


def network_input(batch: Mapping[str, Tensor], kind: str, layout: str) -> Tensor:
    """Return what the network takes of a batch: the image (infer), or the channels of the first estimate."""
    return batch["image"] if kind == "infer" else refine_channels(estimate_of(batch), layout)


def replaced(batch: Mapping[str, Tensor], estimate: Estimate, chosen: Tensor) -> dict[str, Tensor]:
    """Return the batch with the estimate of the `chosen` samples ([B] bool) replaced by another one."""
    changed = dict(batch)
    mask = chosen.view(-1, 1, 1, 1, 1)
    for name, value in estimate.items():
        changed[f"{PREFIX}{name}"] = torch.where(mask, value, batch[f"{PREFIX}{name}"])
    changed["tau"] = changed[f"{PREFIX}tau"]
    return changed
