"""Synthetic seismic cubes with known faults, fault angles, relative geological time and clean image.

A sample is made backwards: every voxel is carried back through the faults, newest first, and the folds to
its place in a layered column, where its reflection coefficient is looked up once; then come wavelet, blur and
noise.
The recipe joins Wu et al. 2019 (FaultSeg3D) and Gao 2024 (geological models for multitask inference).

Volumes are float32 [n1, n2, n3] = (z down, y crossline, x inline). Sample i of a seed depends on (seed, i,
config) only: each purpose has a random stream of its own. Configurations share these streams: samples of one
seed and number have faults in common, so networks are measured on another seed than they were trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from common.errors import UserError
from common.noise import numpy_stream
from fault_seg.degrade import degrade
from fault_seg.folding import Erosion, Folding, draw_erosion, draw_folding
from fault_seg.seismic import (
    DHR_FREQUENCY,
    Wavelet,
    acquisition_holes,
    add_noise,
    automatic_gain,
    blur,
    convolve,
    draw_layers,
    draw_wavelet,
    normalise,
    reflectivity,
)
from fault_seg.structure import Fault, FaultStyle, draw_faults, fault_volumes, grid, pull_back, scale

__all__ = [
    "GENERATOR_VERSION",
    "PRESETS",
    "Earth",
    "GeneratorConfig",
    "Sample",
    "Style",
    "build_earth",
    "degrade",
    "draw_style",
    "make_sample",
    "preset",
]

GENERATOR_VERSION = 1
PRESETS = ("smoke", "demo", "standard", "wu2019", "rgm", "mixed")
MIN_SIZE = 8

ANY_FAULTS = FaultStyle()
WU2019_FAULTS = FaultStyle(laws=("gaussian", "ramp"), any_rake=0.0, normal_only=True)
RGM_FAULTS = FaultStyle(laws=("constant",), any_rake=1.0)


@dataclass(frozen=True)
class GeneratorConfig:
    """What cubes to make.

    Attributes:
        preset: `standard`, the reference set (also `demo` and `smoke`, smaller): any displacement law, either
            sign, 80 % of the slip near the dip; `wu2019`: normal faults whose displacement varies along the
            fault; `rgm`: any rake, constant displacement; `mixed`: one of these three a sample, and what
            field data have besides: unconformities, bounded faults, no faults, steeper beds and more faults,
            frequency loss, gain control, mutes and dead traces.
        shape: (n1, n2, n3) voxels, z y x; may be odd or unequal, each at least 8.
        fault_width: Width of the fault labels in voxels.
        fault_count: (fewest, most) faults a sample; None = 1 to max(2, 10 min(shape)/128).
        noise_max: Largest standard deviation of the noise over the signal's.
    """

    preset: str = "standard"
    shape: tuple[int, int, int] = (64, 64, 64)
    fault_width: float = 2.0
    fault_count: tuple[int, int] | None = None
    noise_max: float = 0.8

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"preset {self.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
        if len(self.shape) != 3 or min(self.shape) < MIN_SIZE:
            raise UserError(
                f"cube size {self.shape} cannot be made; give n1, n2, n3 of at least {MIN_SIZE} voxels"
            )
        if not 0 < self.fault_width < np.inf:
            raise UserError(f"fault width {self.fault_width} is not positive; give voxels, for example 2")
        if not 0 <= self.noise_max < np.inf:
            raise UserError(
                f"noise {self.noise_max} is negative; give a share of the signal, for example 0.8"
            )
        if self.fault_count is not None and not 0 <= self.fault_count[0] <= self.fault_count[1]:
            raise UserError(f"faults {self.fault_count} is no range; give MIN MAX with 0 <= MIN <= MAX")


def preset(name: str) -> GeneratorConfig:
    """Return the settings called `name`: 32^3 voxels for smoke, 48^3 for demo, 64^3 for the others.

    Raises:
        UserError: there is no such preset.
    """
    size = {"smoke": 32, "demo": 48}.get(name, 64)
    return GeneratorConfig(preset=name, shape=(size, size, size), fault_width=3.0 if name == "rgm" else 2.0)


@dataclass(frozen=True)
class Sample:
    """One sample: float32 volumes [n1, n2, n3].

    Attributes:
        image: Noisy image, zero mean, unit std.
        rgt: Relative geological time 0..1, 0 youngest.
        dhr: Clean image of 1.25 times the peak frequency, zero mean, unit std.
        fsem: 1 on faults, else 0.
        fdip: dip_deg/180 on faults, else 0.
        fstrike: strike_deg/180 on faults, else 0.
    """

    image: np.ndarray
    rgt: np.ndarray
    dhr: np.ndarray
    fsem: np.ndarray
    fdip: np.ndarray
    fstrike: np.ndarray

    def volumes(self) -> dict[str, np.ndarray]:
        """Return the six volumes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Style:
    """What one sample is like, drawn before everything else.

    Attributes:
        faults: Kind of faults.
        count: Number of faults.
        highest_hz: Upper end of the peak frequencies.
        plane: Largest rise of the tilt across a cube of 128 voxels.
        eroded: Whether an unconformity divides the cube.
        loss: Share of the peak frequency lost at the bottom.
        gain_window: Window of the automatic gain in samples, 0 = none.
        holes: Whether mutes, dead traces or zeroed edges cut the image.
    """

    faults: FaultStyle
    count: int
    highest_hz: float = 140.0
    plane: float = 25.0
    eroded: bool = False
    loss: float = 0.0
    gain_window: float = 0.0
    holes: bool = False


def draw_style(rng: np.random.Generator, config: GeneratorConfig) -> Style:
    """Return the style of one sample."""
    named = {"wu2019": WU2019_FAULTS, "rgm": RGM_FAULTS}
    most = max(2, int(10 * scale(config.shape)))
    if config.preset != "mixed":
        low, high = config.fault_count or (1, most)
        return Style(faults=named.get(config.preset, ANY_FAULTS), count=int(rng.integers(low, high + 1)))
    faults = (ANY_FAULTS, WU2019_FAULTS, RGM_FAULTS)[rng.integers(3)]
    if rng.random() < 0.15:
        faults = replace(faults, laws=("ellipse",))
    rugged = rng.random() < 1 / 3
    if rugged:
        most = max(2, int(24 * scale(config.shape)))
    low, high = config.fault_count or (1, most)
    count = int(rng.integers(low, high + 1))
    if rng.random() < 0.1 and config.fault_count is None:
        count = 0
    return Style(
        faults=faults,
        count=count,
        highest_hz=200.0 if rugged else 140.0,
        plane=70.0 if rugged else 25.0,
        eroded=bool(rng.random() < 0.2),
        loss=rng.uniform(0.1, 0.5) if rng.random() < 0.4 else 0.0,
        gain_window=rng.uniform(8, 24) if rng.random() < 0.25 else 0.0,
        holes=bool(rng.random() < 0.15),
    )


@dataclass(frozen=True)
class Earth:
    """The geology of one sample, before any wave.

    Attributes:
        faults: Newest first.
        coefficients: Reflection coefficients [n1 + 2 pad, n2, n3], pad = wavelet.half_length.
        position: Depositional position in voxels of stratigraphy, [n1, n2, n3].
        fsem: 1 on faults.
        fdip: dip_deg/180 on faults.
        fstrike: strike_deg/180 on faults.
        wavelet: Wavelet of the noisy image.
    """

    faults: list[Fault]
    coefficients: np.ndarray
    position: np.ndarray
    fsem: np.ndarray
    fdip: np.ndarray
    fstrike: np.ndarray
    wavelet: Wavelet

    @property
    def rgt(self) -> np.ndarray:
        """Relative geological time: the position rescaled to 0..1 over the cube."""
        low, high = self.position.min(), self.position.max()
        return (self.position - low) / max(high - low, np.float32(1e-6))


def lateral_travel(faults: list[Fault], shape: tuple[int, int, int]) -> int:
    """Return how far beyond the cube (voxels) undoing `faults` can look, at most half its width."""
    travel = sum(abs(f.displacement) * float(np.hypot(*f.slip[1:])) for f in faults)
    return int(min(np.ceil(travel), max(shape[1:]) // 2)) + 2


def undo_history(
    points: np.ndarray,
    faults: list[Fault],
    folding: Folding,
    fault_width: float,
    erosion: Erosion | None = None,
    older: tuple[list[Fault], Folding] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return depositional position [N], gain maps [2, N], distance [N] and normal [3, N] of points [3, N].

    With `erosion`, `faults` cut everything; the package below the surface went through the `older` faults and
    folding before. Its time starts after the oldest bed that covers it, so time grows downwards throughout.
    """
    points, nearest, normal = pull_back(points, faults, fault_width)
    position, gains = folding.position(points)
    if erosion is None or older is None:
        return position, gains, nearest, normal
    below = np.flatnonzero(erosion.below(points))
    if not len(below) or len(below) == points.shape[1]:
        return position, gains, nearest, normal
    old_faults, old_folding = older
    old, old_nearest, old_normal = pull_back(points[:, below], old_faults, fault_width)
    old_position, gains[:, below] = old_folding.position(old)
    above = np.ones(points.shape[1], dtype=bool)
    above[below] = False
    position[below] = old_position + (position[above].max() + erosion.hiatus - old_position.min())
    closer = old_nearest < nearest[below]
    nearest[below[closer]] = old_nearest[closer]
    normal[:, below[closer]] = old_normal[:, closer]
    return position, gains, nearest, normal


def build_earth(seed: int, index: int, config: GeneratorConfig, style: Style | None = None) -> Earth:
    """Return the geology of sample `index`; `style` replaces the drawn one."""

    def stream(purpose: str) -> np.random.Generator:
        return numpy_stream(seed, f"fault_seg/{purpose}", index)

    shape = config.shape
    style = style or draw_style(stream("style"), config)
    wavelet = draw_wavelet(stream("wavelet"), style.highest_hz, style.loss)
    pad = wavelet.half_length
    faults = draw_faults(stream("faults"), shape, style.count, style.faults)
    margin = lateral_travel(faults, shape)
    folds = stream("folding")
    erosion, older, young = None, None, faults
    if style.eroded:
        rng = stream("erosion")
        cut = int(rng.integers(0, len(faults) + 1))
        young = faults[:cut]
        older = (faults[cut:], draw_folding(rng, shape, margin, plane=max(style.plane, 40.0)))
        erosion = draw_erosion(rng, shape, margin)
    folding = draw_folding(folds, shape, margin, plane=style.plane, strength=0.3 if style.eroded else 1.0)
    position, gains, nearest, normal = undo_history(
        grid(shape, pad), young, folding, config.fault_width, erosion, older
    )
    layers = draw_layers(stream("layers"), float(position.min()), float(position.max()))
    padded = (shape[0] + 2 * pad, *shape[1:])
    inside = slice(pad, pad + shape[0])
    fsem, fdip, fstrike = fault_volumes(
        nearest.reshape(padded)[inside], normal.reshape(3, *padded)[:, inside], shape
    )
    return Earth(
        faults=faults,
        coefficients=reflectivity(layers, position, gains).reshape(padded),
        position=position.reshape(padded)[inside],
        fsem=fsem,
        fdip=fdip,
        fstrike=fstrike,
        wavelet=wavelet,
    )


def make_sample(seed: int, index: int, config: GeneratorConfig) -> Sample:
    """Return sample `index` of data set `seed`: the same bytes in any process and in any order."""
    style = draw_style(numpy_stream(seed, "fault_seg/style", index), config)
    earth = build_earth(seed, index, config, style)
    dhr = convolve(earth.coefficients, earth.wavelet, DHR_FREQUENCY)
    image = convolve(earth.coefficients, earth.wavelet)
    image = blur(image, numpy_stream(seed, "fault_seg/blur", index).uniform(0.4, 1.6))
    gain = automatic_gain(image, style.gain_window) if style.gain_window else np.float32(1)
    image = gain * add_noise(numpy_stream(seed, "fault_seg/noise", index), image, config.noise_max)
    dhr = gain * dhr
    labels = {"fsem": earth.fsem, "fdip": earth.fdip, "fstrike": earth.fstrike}
    if style.holes:
        dead, empty = acquisition_holes(numpy_stream(seed, "fault_seg/holes", index), config.shape)
        image[dead | empty] = 0
        for volume in (dhr, *labels.values()):
            volume[empty] = 0
    return Sample(image=normalise(image), rgt=earth.rgt, dhr=normalise(dhr), **labels)
