"""Random velocity sections of known truth: layered, curved, faulted, style and salt.

Letters: Z depth (downwards), X horizontal. Velocities in km/s within the survey's bounds. Sample i of a split
is a function of (seed, split, i) alone. The families follow those of OpenFWI (Deng et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.noise import correlated_gaussian, numpy_stream

FAMILIES = ("layered", "curved", "faulted", "style", "salt", "mix")
DEFAULT_FAMILIES = ("layered", "curved", "faulted", "style")
LAYER_COUNTS = np.arange(3, 9)
LAYER_WEIGHTS = np.array([0.5, 1, 1, 1, 1, 0.5]) / 5
CURVE_AMPLITUDE = 0.12  # of Z
SALT_KM_S = (4.4, 4.5)


@dataclass(frozen=True)
class Section:
    """One velocity section.

    Attributes:
        vp: [Z, X] float32, km/s.
        family: label: the family, with "_increasing" or "_free" where velocities are layered.
    """

    vp: np.ndarray
    family: str


def make_section(
    shape: tuple[int, int],
    family: str,
    seed: int,
    split: str,
    index: int,
    bounds: tuple[float, float] = (1.5, 4.5),
) -> Section:
    """Return section `index` of a split.

    Args:
        shape: (Z, X) cells.
        family: one of FAMILIES but "mix".
        seed: of the data set.
        split: "train", "val" or "test"; each has a stream of its own.
        index: number of the sample.
        bounds: lowest and highest velocity, km/s.
    """
    rng = numpy_stream(seed, f"velocity {split}", index)
    if family == "style":
        return Section(_style(shape, bounds, rng), "style")
    if family == "salt":
        section = _layers(shape, bounds, rng, curved=True)
        return Section(_salt(section.vp, rng), "salt")
    curved = family == "curved" or (family == "faulted" and rng.random() < 0.5)
    section = _layers(shape, bounds, rng, curved=curved)
    if family != "faulted":
        return Section(section.vp, f"{family}_{section.family}")
    return Section(_faulted(section.vp, rng), f"faulted_{section.family}")


def family_of(families: tuple[str, ...], index: int) -> str:
    """Return the family of sample `index`: equal shares in turn."""
    return families[index % len(families)]


def mix(ours: np.ndarray, theirs: np.ndarray, seed: int, split: str, index: int) -> np.ndarray:
    """Return a v1 + (1 - a) v2 with a in U(0.3, 0.7), of two sections [Z, X]."""
    a = numpy_stream(seed, f"mix {split}", index).uniform(0.3, 0.7)
    return (a * ours + (1 - a) * theirs).astype(np.float32)


def _layers(
    shape: tuple[int, int], bounds: tuple[float, float], rng: np.random.Generator, *, curved: bool
) -> Section:
    """Return layers of constant velocity, flat or folded; velocities increase downwards or are free."""
    depth, width = shape
    count = int(rng.choice(LAYER_COUNTS, p=LAYER_WEIGHTS))
    thickness = rng.dirichlet(np.full(count, 4.0))
    tops = np.concatenate([[0.0], np.cumsum(thickness)[:-1]]) * depth
    velocity = rng.uniform(*bounds, size=count)
    increasing = bool(rng.random() < 0.5)
    if increasing:
        velocity = np.sort(velocity)
    shift = _fold(depth, width, rng) if curved else np.zeros(width)
    z = np.arange(depth)[:, None] + 0.5 - shift
    layer = (z[..., None] >= tops[1:]).sum(-1)
    return Section(velocity[layer].astype(np.float32), "increasing" if increasing else "free")


def _fold(depth: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return the downward shift [X] of interfaces: one to three sines, at most 0.12 Z in all."""
    x = np.arange(width)
    count = int(rng.integers(1, 4))
    amplitude = rng.dirichlet(np.ones(count)) * CURVE_AMPLITUDE * depth * rng.uniform(0.4, 1.0)
    period = width / rng.uniform(1, 5, size=count)
    phase = rng.uniform(0, 2 * np.pi, size=count)
    return (amplitude[:, None] * np.sin(2 * np.pi * x / period[:, None] + phase[:, None])).sum(0)


def _faulted(vp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Displace one to three sides along straight faults of 45 to 80 degrees, throw 0.03 to 0.15 Z."""
    depth, width = vp.shape
    z, x = np.mgrid[:depth, :width]
    for _ in range(int(rng.integers(1, 4))):
        dip = np.deg2rad(rng.uniform(45, 80)) * rng.choice([-1, 1])
        foot = rng.uniform(0.15, 0.85) * width
        throw = rng.uniform(0.03, 0.15) * depth * rng.choice([-1, 1])
        hanging = (x - foot) > (z - depth / 2) / np.tan(dip)
        source_z = np.where(hanging, z - throw, z)
        source_x = np.where(hanging, x - throw / np.tan(dip), x)
        rows = np.clip(np.rint(source_z), 0, depth - 1).astype(int)
        columns = np.clip(np.rint(source_x), 0, width - 1).astype(int)
        vp = vp[rows, columns]
    return vp


def _style(shape: tuple[int, int], bounds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Return a smooth correlated field on a depth trend, stretched to a random part of the bounds."""
    length = rng.uniform(0.05, 0.3) * shape[1]
    field = correlated_gaussian(shape, length, rng)
    field = field + rng.uniform(0, 2) * np.linspace(-1, 1, shape[0])[:, None]
    low, high = np.sort(rng.uniform(*bounds, size=2))
    if high - low < 0.5:
        low, high = max(bounds[0], low - 0.5), min(bounds[1], high + 0.5)
    span = field.max() - field.min()
    return (low + (high - low) * (field - field.min()) / span).astype(np.float32)


def _salt(vp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put one rounded body of 4.4 to 4.5 km/s into a section."""
    depth, width = vp.shape
    z, x = np.mgrid[:depth, :width]
    centre_z, centre_x = rng.uniform(0.35, 0.7) * depth, rng.uniform(0.25, 0.75) * width
    radius_z, radius_x = rng.uniform(0.12, 0.28) * depth, rng.uniform(0.12, 0.3) * width
    angle = np.arctan2((z - centre_z) / radius_z, (x - centre_x) / radius_x)
    edge = np.ones_like(angle)
    for order in (2, 3, 4):
        edge += rng.uniform(-0.12, 0.12) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    inside = np.hypot((z - centre_z) / radius_z, (x - centre_x) / radius_x) < edge
    return np.where(inside, rng.uniform(*SALT_KM_S), vp).astype(np.float32)
