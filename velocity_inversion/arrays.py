"""NumPy files of gathers and velocities: opened as maps, checked before a value is read, never unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.arrays import open_npy
from common.errors import DataError
from common.log import get_logger
from velocity_inversion.geometry import Survey

UNIT_MEDIAN = 100.0  # a median velocity above this is in m/s, below in km/s
BOUND_SLACK = 0.01  # share by which files may leave the declared bounds


def open_array(path: Path, num_axes: int) -> np.ndarray:
    """Return a memory map of a float array with `num_axes` axes.

    Raises:
        DataError: missing, empty, cut, an object array, no number type, or another number of axes.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    found = open_npy(path, advice="export it again")
    if found.dtype.kind not in "fiu":
        raise DataError(f"{path}: {found.dtype}, expected a .npy array of float32")
    if found.ndim != num_axes:
        raise DataError(f"{path}: shape {found.shape}, expected {num_axes} axes")
    if found.dtype != np.dtype("float32"):
        get_logger().info(f"{path}: {found.dtype}, converted to float32")
    return found


def check_gather(gather: np.ndarray, name: str, *, training: bool) -> np.ndarray:
    """Return `live` [R] of one gather [T, R]: false where a trace is all zero.

    Raises:
        DataError: NaN or infinite values; or every trace is zero, in training.
    """
    if not np.isfinite(gather).all():
        t, r = (int(i[0]) for i in np.nonzero(~np.isfinite(gather)))
        bad = int((~np.isfinite(gather)).sum())
        raise DataError(
            f"{name}: {bad} values NaN or infinite, the first at t = {t}, receiver {r}; export it again"
        )
    live = (gather != 0).any(axis=0)
    if not live.any():
        if training:
            raise DataError(f"{name}: all values are zero; leave this sample out or export it again")
        get_logger().warning(f"{name}: all values are zero; the shot is ignored")
    elif not live.all():
        get_logger().warning(f"{name}: {int((~live).sum())} of {len(live)} traces are zero and are ignored")
    return live


def require_gather_shape(shape: tuple[int, ...], name: str, survey: Survey, num_receivers: int) -> None:
    """Check the shape (T, R) of one gather.

    Raises:
        DataError: telling a transposed gather and a velocity model from other shapes.
    """
    wanted = (survey.num_samples, num_receivers)
    if shape == wanted:
        return
    z, x = survey.model_shape_zx
    if shape in ((z, x), (x, z)):
        hint = "this looks like vp_model"
    elif shape == wanted[::-1]:
        hint = "this gather is transposed; save gather.T"
    else:
        hint = "correct geometry.json or export this gather again"
    raise DataError(f"{name}: shape {shape}, expected (T, R) = {wanted}; {hint}")


def to_km_s(values: np.ndarray, name: str, survey: Survey) -> np.ndarray:
    """Return a velocity section [Z, X] float32 in km/s from a file's array.

    Raises:
        DataError: no real numbers, axes swapped, wrong shape or unit, values not finite, not positive or out
            of the bounds.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(f"{name}: {values.dtype}, expected real velocities; export it again")
    z, x = survey.model_shape_zx
    stored = (z, x) if survey.model_file_axes == "zx" else (x, z)
    if values.shape != stored:
        swapped = values.shape == stored[::-1]
        hint = (
            f"axes are swapped: geometry says {survey.model_file_axes}" if swapped else "check geometry.json"
        )
        raise DataError(f"{name}: shape {values.shape}, expected {stored}; {hint}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        vp = np.asarray(values, dtype=np.float32)
    vp = vp if survey.model_file_axes == "zx" else vp.T
    if not np.isfinite(vp).all() or vp.min() <= 0:
        raise DataError(f"{name}: velocities NaN, infinite or not positive (lowest {float(vp.min()):g})")
    looks_like = "m/s" if np.median(vp) > UNIT_MEDIAN else "km/s"
    if looks_like != survey.velocity_unit:
        raise DataError(
            f"{name}: median velocity {np.median(vp):g}, so {looks_like}; geometry says "
            f"{survey.velocity_unit}; correct velocity_unit"
        )
    vp = vp / 1000 if survey.velocity_unit == "m/s" else vp
    low, high = survey.v_bounds_km_s
    if vp.min() < low * (1 - BOUND_SLACK) or vp.max() > high * (1 + BOUND_SLACK):
        raise DataError(
            f"{name}: velocities {vp.min():.3f} to {vp.max():.3f} km/s, expected {low:g} to {high:g}; "
            "correct v_bounds_km_s of geometry.json"
        )
    return np.ascontiguousarray(np.clip(vp, low, high))


def from_km_s(vp: np.ndarray, survey: Survey) -> np.ndarray:
    """Return a section [Z, X] in km/s as float64 in the unit and axes of the survey's own files."""
    values = np.asarray(vp, dtype=np.float64) * (1000.0 if survey.velocity_unit == "m/s" else 1.0)
    return np.ascontiguousarray(values if survey.model_file_axes == "zx" else values.T)
