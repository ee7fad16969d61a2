"""The built-in simulators as one: parameters drawn by sample number, fields, pictures, declared symmetry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.noise import numpy_stream
from simulgen_vae import advdiff, wave
from simulgen_vae.grids import Grid
from simulgen_vae.symmetry import Symmetry

GENERATOR_VERSION = "1"


@dataclass(frozen=True)
class Generator:
    """One kind of simulation.

    Attributes:
        name: "advdiff" or "wave".
        field: what is computed.
        param_names: P names.
        t_end: time of the last frame.
        draw: random stream -> float64 [P].
        simulate: parameters, grid, frames -> fields [T, ny, nx] and balance [T, 3] or None.
        picture: parameters, grid -> uint8 [ny, nx].
        symmetry: grid -> the exact mirror.
    """

    name: str
    field: str
    param_names: tuple[str, ...]
    t_end: float
    draw: Callable[[np.random.Generator], np.ndarray]
    simulate: Callable[[np.ndarray, Grid, int], tuple[np.ndarray, np.ndarray | None]]
    picture: Callable[[np.ndarray, Grid], np.ndarray]
    symmetry: Callable[[Grid], Symmetry]

    def params(self, seed: int, index: int) -> np.ndarray:
        """Return the parameters [P] of sample `index`, as float32 holds them; no other sample matters."""
        drawn = self.draw(numpy_stream(seed, f"simulgen {self.name}", index))
        return drawn.astype(np.float32).astype(np.float64)

    def times(self, num_frames: int) -> np.ndarray:
        """Return the times [T] of the frames: the ends of T equal intervals."""
        return self.t_end * np.arange(1, num_frames + 1) / num_frames


def _wave_frames(params: np.ndarray, grid: Grid, num_frames: int) -> tuple[np.ndarray, None]:
    return wave.simulate(params, grid, num_frames), None


GENERATORS = {
    "advdiff": Generator(
        "advdiff",
        "temperature",
        advdiff.PARAMS,
        advdiff.T_END,
        advdiff.draw,
        advdiff.simulate,
        advdiff.picture,
        advdiff.symmetry,
    ),
    "wave": Generator(
        "wave", "pressure", wave.PARAMS, wave.T_END, wave.draw, _wave_frames, wave.picture, wave.symmetry
    ),
}
