"""Faults of the generator: geometry, displacement, and undoing them point by point.

Points are [3, N] float32 in voxels, components (z, y, x), z down. A fault maps the present position of a
grain to its position before the slip, so a stack of faults is undone from the newest to the oldest and the
stratigraphy is looked up once, at the end: nothing is interpolated twice. The laws follow Wu et al. 2019
(FaultSeg3D) and Gao 2024 (random geological models).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fault_seg.angles import angles_from_normal

CHUNK_POINTS = 1 << 15  # a few dozen kB an array: the whole stack of faults runs in cache
LABEL_DISPLACEMENT = 1.0  # voxels; a fault that moves less than this cannot be seen
MAX_REDRAWS = 50


@dataclass(frozen=True)
class Fault:
    """One fault: a plane or parabolic sheet, and the displacement of its positive side.

    Attributes:
        centre: (z, y, x) in voxels.
        dip_deg: In (0, 180); above 90 the plane dips the other way.
        strike_deg: In [0, 180), from +x towards +y.
        rake_deg: Direction of slip in the plane, from the strike vector towards the dip vector.
        curvature: k of the sheet (p - c) . n + k b^2 = 0, 1/voxel; b is the coordinate down the dip.
        displacement: Largest displacement in voxels, signed.
        law: "constant", "gaussian", "ramp" or "ellipse".
        size: Voxels: (sigma,) of gaussian, (signed length,) of ramp, (half axis along strike, half axis down
            dip) of ellipse.
    """

    centre: tuple[float, float, float]
    dip_deg: float
    strike_deg: float
    rake_deg: float
    curvature: float = 0.0
    displacement: float = 0.0
    law: str = "constant"
    size: tuple[float, ...] = ()

    @property
    def frame(self) -> np.ndarray:
        """Unit vectors [3, 3], rows: normal n, dip vector n x ts (down the dip), strike vector ts."""
        d, s = np.deg2rad(self.dip_deg), np.deg2rad(self.strike_deg)
        normal = np.array([-np.cos(d), np.sin(d) * np.cos(s), -np.sin(d) * np.sin(s)])
        strike = np.array([0.0, np.sin(s), np.cos(s)])
        return np.stack([normal, np.cross(normal, strike), strike]).astype(np.float32)

    @property
    def slip(self) -> np.ndarray:
        """Unit vector [3] of the displacement: cos r ts + sin r td."""
        r = np.deg2rad(self.rake_deg)
        _, dip, strike = self.frame
        return (np.cos(r) * strike + np.sin(r) * dip).astype(np.float32)


@dataclass(frozen=True)
class FaultStyle:
    """What kind of faults to draw.

    Attributes:
        laws: Displacement laws, one drawn a fault.
        any_rake: Share of faults whose rake is uniform; the others slip within 30 degrees of the dip.
        normal_only: Hanging walls go down; otherwise either sign.
    """

    laws: tuple[str, ...] = ("constant", "gaussian", "ramp")
    any_rake: float = 0.2
    normal_only: bool = False


def grid(shape: tuple[int, int, int], pad: int = 0) -> np.ndarray:
    """Return voxel positions [3, (n1 + 2 pad) n2 n3] of a cube that is padded by `pad` above and below."""
    n1, n2, n3 = shape
    points = np.empty((3, n1 + 2 * pad, n2, n3), dtype=np.float32)
    points[0] = np.arange(-pad, n1 + pad, dtype=np.float32)[:, None, None]
    points[1] = np.arange(n2, dtype=np.float32)[:, None]
    points[2] = np.arange(n3, dtype=np.float32)
    return points.reshape(3, -1)


def scale(shape: tuple[int, int, int]) -> float:
    """Return the size of a cube relative to 128 voxels."""
    return min(shape) / 128


def draw_faults(
    rng: np.random.Generator, shape: tuple[int, int, int], count: int, style: FaultStyle
) -> list[Fault]:
    """Return `count` faults, newest first; near-parallel ones keep 8/128 of the cube's size between them."""
    faults: list[Fault] = []
    for _ in range(count):
        fault = _draw_fault(rng, shape, style)
        for _ in range(MAX_REDRAWS):
            if not any(_crowded(fault, other, 8 * scale(shape)) for other in faults):
                break
            fault = _draw_fault(rng, shape, style)
        faults.append(fault)
    return faults


def _crowded(fault: Fault, other: Fault, distance: float) -> bool:
    """Return whether two faults are almost parallel and closer than `distance` at either centre."""
    n, m = fault.frame[0], other.frame[0]
    if abs(float(n @ m)) <= 0.85:
        return False
    between = np.subtract(fault.centre, other.centre)
    return min(abs(float(between @ n)), abs(float(between @ m))) < distance


def _draw_fault(rng: np.random.Generator, shape: tuple[int, int, int], style: FaultStyle) -> Fault:
    """Return one random fault."""
    n1, n2, n3 = shape
    size = float(np.mean(shape))
    factor = max(scale(shape), 0.5)
    dip = rng.uniform(50, 85)
    if rng.random() < 0.5:
        dip = 180 - dip
    any_rake = rng.random() < style.any_rake
    displacement = rng.uniform(4, 26) * factor * rng.choice((-1, 1))
    if style.normal_only:
        # Below 90 degrees the positive side is the hanging wall; beyond, it is the footwall.
        displacement = abs(displacement) * (1 if dip < 90 else -1)
    law = style.laws[rng.integers(len(style.laws))]
    sizes = {
        "constant": (),
        "gaussian": (rng.uniform(0.35, 0.8) * size,),
        "ramp": (float(n1 * rng.choice((-1, 1))),),
        "ellipse": tuple(rng.uniform(0.2, 0.45, 2) * size),
    }
    if law == "ellipse":
        displacement = float(np.clip(displacement, -0.3 * min(sizes[law]), 0.3 * min(sizes[law])))
    return Fault(
        centre=(n1 * rng.uniform(0.1, 0.9), n2 * rng.uniform(0.08, 0.92), n3 * rng.uniform(0.08, 0.92)),
        dip_deg=dip,
        strike_deg=rng.uniform(0, 180),
        rake_deg=rng.uniform(0, 180) if any_rake else rng.uniform(60, 120),
        curvature=rng.uniform(-0.0015, 0.0015) / factor,
        displacement=displacement,
        law=law,
        size=sizes[law],
    )


def displacement(fault: Fault, along: np.ndarray, down: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return the signed displacement [N] (voxels) at coordinates along strike, down dip, off the sheet."""
    if fault.law == "constant":
        return np.full_like(distance, fault.displacement)
    if fault.law == "gaussian":
        (sigma,) = fault.size
        exponent = (along * along + down * down) * np.float32(-0.5 / sigma**2)
        return np.float32(fault.displacement) * np.exp(exponent)
    if fault.law == "ramp":
        (length,) = fault.size
        return np.float32(fault.displacement) * np.clip(0.5 + down / np.float32(length), 0, 1)
    half_strike, half_dip = fault.size
    # Largest in the middle, zero at the tip line, and dying out within half a fault length off the sheet.
    inside = 1 - (along / np.float32(half_strike)) ** 2 - (down / np.float32(half_dip)) ** 2
    reach = np.float32(half_strike + half_dip)
    decay = np.clip(1 - np.abs(distance) / reach, 0, 1)
    return np.float32(fault.displacement) * np.clip(inside, 0, 1) * decay


def sheet(fault: Fault, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return signed distance to the sheet, coordinate down dip and along strike, each [N], of points [3, N].

    dist = ((p - c) . n + k b^2) / sqrt(1 + (2 k b)^2): dividing by the gradient keeps slabs as wide as asked.
    """
    z, y, x = (component - np.float32(c) for component, c in zip(points, fault.centre, strict=True))
    # Written out: a matrix product would round differently for each number of threads.
    distance, down, along = (v[0] * z + v[1] * y + v[2] * x for v in fault.frame)
    if fault.curvature:
        slope = np.float32(2 * fault.curvature) * down
        distance = (distance + np.float32(0.5) * slope * down) / np.sqrt(1 + slope * slope)
    return distance, down, along


def pull_back(
    points: np.ndarray, faults: list[Fault], fault_width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions before all `faults`, and the fault labels met on the way.

    Args:
        points: Present positions [3, N], float32.
        faults: Newest first. An older fault is measured where the newer ones have been undone.
        fault_width: Label width in voxels, across the sheet.

    Returns:
        Positions [3, N]; distance [N] to the nearest sheet where labelled (|dist| <= width/2 and displacement
        of at least one voxel), infinite elsewhere; unit normal [3, N] of that sheet, zero elsewhere.
    """
    points = np.array(points, dtype=np.float32)
    nearest = np.full(points.shape[1], np.inf, dtype=np.float32)
    normal = np.zeros(points.shape, dtype=np.float32)
    for start in range(0, points.shape[1], CHUNK_POINTS):
        part = slice(start, start + CHUNK_POINTS)
        for fault in faults:
            _undo(fault, points[:, part], nearest[part], normal[:, part], np.float32(fault_width / 2))
    return points, nearest, normal


def _undo(
    fault: Fault, points: np.ndarray, nearest: np.ndarray, normal: np.ndarray, half_width: np.float32
) -> None:
    """Undo one fault in place and update the labels of the points near its sheet."""
    distance, down, along = sheet(fault, points)
    moved = displacement(fault, along, down, distance)
    gap = np.abs(distance)
    near = np.flatnonzero(gap <= half_width)
    near = near[(np.abs(moved[near]) >= LABEL_DISPLACEMENT) & (gap[near] < nearest[near])]
    if len(near):
        n, td, _ = fault.frame
        gradient = n[:, None] + np.float32(2 * fault.curvature) * down[near] * td[:, None]
        nearest[near] = gap[near]
        normal[:, near] = gradient / np.linalg.norm(gradient, axis=0)
    moved *= distance > 0
    for component, step in zip(points, fault.slip, strict=True):
        component -= step * moved


def fault_volumes(
    nearest: np.ndarray, normal: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return fsem (0 or 1), fdip = dip_deg/180, fstrike = strike_deg/180 of `shape` from labels."""
    fault = np.isfinite(nearest).reshape(-1)
    volumes = np.zeros((3, fault.size), dtype=np.float32)
    on = np.flatnonzero(fault)
    volumes[0, on] = 1
    normal = normal.reshape(3, -1)
    for start in range(
        0, len(on), CHUNK_POINTS
    ):  # so short that torch keeps to one thread: same bytes always
        part = on[start : start + CHUNK_POINTS]
        dip, strike = angles_from_normal(torch.from_numpy(np.ascontiguousarray(normal[:, part])))
        volumes[1, part] = dip.numpy() / 180
        volumes[2, part] = strike.numpy() / 180
    fsem, fdip, fstrike = volumes.reshape(3, *shape)
    return fsem, fdip, fstrike
