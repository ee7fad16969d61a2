"""Fault angles as files hold them, over 180 degrees and gated or folded degrees, back to dip and strike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from common.errors import DataError
from fault_seg.volumes import read_sidecar


@dataclass(frozen=True)
class FaultAngles:
    """Dip (0..180) and strike (0..180) in degrees [n1, n2, n3], and where a fault voxel has none."""

    dip_deg: np.ndarray
    strike_deg: np.ndarray
    missing: np.ndarray


def require_grid_angles(prefix: str) -> None:
    """Check that angles in degrees under a prefix are those of the voxel grid, as far as a side-car tells.

    Raises:
        DataError: they are true angles of unequal voxels, or strikes from north.
    """
    frame = (read_sidecar(f"{prefix}.fsem") or {}).get("angles", {})
    sizes = frame.get("voxel_sizes", [1, 1, 1])
    if frame and (len(set(sizes)) > 1 or frame.get("strike_from") != "x axis"):
        raise DataError(
            f"{prefix}.json: angles for voxel sizes {sizes}, strike from {frame.get('strike_from')}; "
            "expected those of the grid; run infer.py with --format raw, or without sizes and --north"
        )


def angles_in_degrees(
    fsem: np.ndarray, fdip: np.ndarray, fstrike: np.ndarray, units: str, threshold: float
) -> FaultAngles:
    """Return the angles of the fault voxels from what files hold; elsewhere they are 0.

    over180: angle/180 times probability, dip 0..180. degrees: dip folded to 0..90, and the side to which the
    plane dips is found again from the shape of the probability. auto: over180 when no fault dips more than 1.

    Args:
        fsem: fault probability [n1, n2, n3].
        fdip: dip as stored.
        fstrike: strike as stored.
        units: degrees, over180 or auto.
        threshold: probability from which a voxel is fault.
    """
    fault = np.nan_to_num(fsem) >= threshold
    p, dip, strike = (a[fault].astype(np.float64) for a in (fsem, fdip, fstrike))
    unset = ~(np.isfinite(dip) & np.isfinite(strike)) | ((dip == 0) & (strike == 0))
    dip[unset] = strike[unset] = 0
    if units == "auto":
        units = "over180" if dip.max(initial=0) <= 1 else "degrees"
    if units == "over180":
        dip, strike = 180 * dip / p, 180 * strike / p
    volumes = [np.zeros(fsem.shape, np.float32) for _ in range(2)]
    if units == "degrees":
        dip = np.where(_dips_other_way(fsem, fault, strike), 180 - dip, dip)
    for volume, values in zip(volumes, (np.clip(dip, 0, 180), strike % 180), strict=True):
        volume[fault] = values
    missing = np.zeros(fsem.shape, bool)
    missing[fault] = unset
    return FaultAngles(volumes[0], volumes[1], missing)


def _dips_other_way(fsem: np.ndarray, fault: np.ndarray, strike_deg: np.ndarray) -> np.ndarray:
    """Return [N], for the voxels of `fault`, whether the dip is above 90 degrees rather than below.

    The normals (-cos d, sin d cos s, -sin d sin s) of d and 180 - d differ in the sign of the product of
    their vertical part and their part along (cos s, -sin s); the mean of that product over the gradients of
    the smoothed probability tells which one it is.
    """
    smooth = ndimage.gaussian_filter(np.nan_to_num(fsem).astype(np.float32), 1.0, mode="nearest")
    along = np.radians(strike_deg)
    down = _gradient(smooth, 0)
    product = np.zeros(len(strike_deg))
    for axis, part in ((1, np.cos(along)), (2, -np.sin(along))):
        both = ndimage.gaussian_filter(down * _gradient(smooth, axis), 2.0, mode="nearest")
        product += both[fault] * part
    return product > 0


def _gradient(volume: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(volume, axis=axis) if volume.shape[axis] > 1 else np.zeros_like(volume)
