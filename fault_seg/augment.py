"""Changes to a training crop that keep its labels true, and disturbances of its image alone.

Volumes are float32 [Z, Y, X]. Turns and flips move the fault normals with the volumes; there is no rotation
about a horizontal axis, since gravity tells up from down.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import ndimage

from fault_seg.angles import angles_from_normal, normal_from_angles

Volumes = dict[str, np.ndarray]
_AXES = {"z": 0, "y": 1, "x": 2}


def crop(
    volumes: Mapping[str, np.ndarray], origin: tuple[int, int, int], shape: tuple[int, int, int]
) -> Volumes:
    """Return the box of `shape` at `origin` of every volume."""
    box = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
    return {name: values[box] for name, values in volumes.items()}


def flip(volumes: Mapping[str, np.ndarray], axis: str) -> Volumes:
    """Return the volumes mirrored along "z", "y" or "x", with their normals.

    A vertical flip turns time around: rgt becomes 1 - rgt, and the solved time tau (voxels) n1 - 1 - tau.
    """
    k = _AXES[axis]
    out = {name: np.flip(values, k) for name, values in volumes.items()}
    signs = [1.0, 1.0, 1.0]
    signs[k] = -1.0
    out = _with_normals(out, lambda n: n * torch.tensor(signs).view(3, 1))
    if axis == "z":
        if "rgt" in out:
            out["rgt"] = 1 - out["rgt"]
        if "tau" in out:
            out["tau"] = out["tau"].shape[0] - 1 - out["tau"]
    return out


def transpose(volumes: Mapping[str, np.ndarray]) -> Volumes:
    """Return the volumes with y and x exchanged, with their normals; flips complete it to quarter turns."""
    out = {name: values.swapaxes(1, 2) for name, values in volumes.items()}
    return _with_normals(out, lambda n: n[[0, 2, 1]])


def _with_normals(volumes: Volumes, change) -> Volumes:
    """Apply `change` to the normals [3, N] of the fault voxels and write the new angles."""
    if "fdip" not in volumes:
        return volumes
    fault = volumes["fsem"] > 0.5
    dip, strike = (torch.from_numpy(volumes[name][fault] * 180.0) for name in ("fdip", "fstrike"))
    new_dip, new_strike = angles_from_normal(change(normal_from_angles(dip, strike)))
    for name, values in (("fdip", new_dip), ("fstrike", new_strike)):
        volumes[name] = np.zeros_like(volumes[name])
        volumes[name][fault] = values.numpy() / np.float32(180.0)
    return volumes


def turn_and_flip(volumes: Mapping[str, np.ndarray], rng: np.random.Generator) -> Volumes:
    """Return the volumes in one of the 16 poses that keep depth vertical; y and x must be equally long."""
    out = dict(volumes)
    square = volumes["image"].shape[1] == volumes["image"].shape[2]
    draws = rng.random(4) < 0.5
    if draws[0] and square:
        out = transpose(out)
    for axis, chosen in zip("yxz", draws[1:], strict=True):
        if chosen:
            out = flip(out, axis)
    return out


def change_polarity(volumes: Mapping[str, np.ndarray]) -> Volumes:
    """Return the volumes with image and dhr negated: the opposite sign convention of the recording."""
    return {name: -values if name in ("image", "dhr") else values for name, values in volumes.items()}


def disturb(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `image` under another gain, band and noise, each with some probability; labels do not change.

    Gain 0.7 to 1.4; a linear gain ramp down the trace; a low-pass along z or a smoothing along y and x; a
    gain control over 16 to 48 samples; noise correlated over 0.5 to 2 voxels, up to 0.3 of the image's std.
    """
    image = image * np.float32(rng.uniform(0.7, 1.4))
    chosen = rng.random(4)
    if chosen[0] < 0.3:
        ramp = np.linspace(1, rng.uniform(0.5, 1.5), image.shape[0], dtype=np.float32)
        image = image * ramp[:, None, None]
    if chosen[1] < 0.3:
        sigma = (rng.uniform(0, 1.0), *(2 * [rng.uniform(0, 0.8)]))
        image = ndimage.gaussian_filter(image, sigma)
    if chosen[2] < 0.15:
        power = ndimage.uniform_filter1d(image**2, int(rng.integers(16, 49)), axis=0).mean(
            (1, 2), keepdims=True
        )
        image = image / np.sqrt(power + 0.05 * power.mean() + 1e-12)
    if chosen[3] < 0.4:
        noise = ndimage.gaussian_filter(
            rng.standard_normal(image.shape, dtype=np.float32), rng.uniform(0.5, 2.0, 3)
        )
        image = image + noise * np.float32(rng.uniform(0, 0.3) * image.std() / (noise.std() + 1e-12))
    return image.astype(np.float32)


def augment(volumes: Mapping[str, np.ndarray], rng: np.random.Generator) -> Volumes:
    """Return a training crop in a random pose and polarity."""
    out = turn_and_flip(volumes, rng)
    return change_polarity(out) if rng.random() < 0.5 else out
