"""Write a data set of a built-in simulator: fields, parameters, pictures, balance, the declared symmetry."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import atomic_path, require_free_space, write_text
from common.log import get_logger
from common.run import BasicOptions
from simulgen_vae.canonical import About, write_canonical
from simulgen_vae.config_data import MakeDataConfig
from simulgen_vae.grids import Grid
from simulgen_vae.images import write_images
from simulgen_vae.symmetry import Symmetry
from simulgen_vae.synthetic import GENERATOR_VERSION, GENERATORS, Generator

FIGURE_SAMPLES = 3
SUFFIXES = {"h5": (".h5", ".hdf5"), "npy": (".npy",)}  # what a reader takes for each format


class _Filled:
    """The arrays that belong to samples, filled while the trajectories are drawn."""

    def __init__(self, config: MakeDataConfig, generator: Generator, seed: int) -> None:
        self.config, self.generator, self.seed = config, generator, seed
        self.grid = Grid(config.nx, config.ny)
        self.params = np.array([generator.params(seed, i) for i in range(config.num)])
        self.images = np.stack([generator.picture(p, self.grid) for p in self.params])
        self.shown = shown_params(config, generator)
        has_balance = generator.name == "advdiff"
        self.balance = np.zeros((config.num, config.frames, 3)) if has_balance else None
        self.first: list[np.ndarray] = []

    def trajectories(self) -> Iterator[np.ndarray]:
        """Yield float32 [T, M, 1] of each sample in turn."""
        for i, params in enumerate(self.params):
            u, balance = self.generator.simulate(params, self.grid, self.config.frames)
            if self.balance is not None and balance is not None:
                self.balance[i] = balance
            if i < FIGURE_SAMPLES:
                self.first.append(u)
            if (i + 1) % max(1, self.config.num // 5) == 0:
                get_logger().info(f"{i + 1} of {self.config.num} simulations")
            yield u.reshape(len(u), -1, 1).astype(np.float32)

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the parameters that are written."""
        return tuple(self.generator.param_names[k] for k in self.shown)

    def symmetry(self) -> Symmetry:
        """Return the mirror in terms of the parameters that are written."""
        whole = self.generator.symmetry(self.grid)
        matrix = whole.param_matrix[np.ix_(self.shown, self.shown)]
        return dataclasses.replace(whole, param_matrix=matrix, param_offset=whole.param_offset[self.shown])


def shown_params(config: MakeDataConfig, generator: Generator) -> list[int]:
    """Return the numbers of the parameters that are written.

    Raises:
        UserError: one is unknown.
    """
    names = generator.param_names
    unknown = [name for name in config.write_params if name not in names]
    if unknown:
        raise UserError(f"--write_params {' '.join(unknown)}: expected some of {' '.join(names)}")
    return [k for k, name in enumerate(names) if not config.write_params or name in config.write_params]


def output_path(config: MakeDataConfig) -> Path:
    """Return the file to write.

    Raises:
        UserError: its suffix is not that of the format, by which a training would know it.
    """
    path = Path(config.path or f"data/simulgen/{config.kind}.{config.format}")
    expected = SUFFIXES[config.format]
    if path.suffix.lower() not in expected:
        other = next((f for f, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), "")
        advice = f"add --format {other}" if other else f"name {path.with_suffix(expected[0])}"
        raise UserError(
            f"--path {path}: suffix {path.suffix or 'missing'}, expected {' or '.join(expected)} for "
            f"--format {config.format}; {advice}"
        )
    return path


def make_data(config: MakeDataConfig, options: BasicOptions, seed: int = 0) -> dict[str, Any]:
    """Write the data set; return its path, shape and the seconds a sample took.

    Sample i of a seed is the same in a set of any size.

    Raises:
        UserError: the file exists already, has another format's suffix, or cannot be written.
        DataError: the disk is too small.
    """
    path = output_path(config)
    if path.exists() and not options.overwrite:
        raise UserError(f"{path}: exists already; add --overwrite or choose another --path")
    generator = GENERATORS[config.kind]
    shown_params(config, generator)
    shape = (config.num, config.frames, config.nx * config.ny, 1)
    require_free_space(path, 4 * int(np.prod(shape)))
    if options.dry_run:
        return {"path": path, "shape": shape}
    filled = _Filled(config, generator, seed)
    started = time.perf_counter()
    (_write_h5 if config.format == "h5" else _write_npy)(path, shape, filled)
    seconds = (time.perf_counter() - started) / config.num
    if config.figures:
        for i, u in enumerate(filled.first):
            draw_frames(path.with_name(f"{path.stem}_sample{i}.png"), u, generator, filled.images[i])
    return {"path": path, "shape": shape, "seconds_per_sample": seconds}


def _write_h5(path: Path, shape: tuple[int, int, int, int], filled: _Filled) -> None:
    config, generator, grid = filled.config, filled.generator, filled.grid
    arrays = {
        "params": filled.params[:, filled.shown],
        "images": filled.images if config.write_images else None,
        "time": generator.times(config.frames),
        "coords": grid.coords(),
        "balance": filled.balance,
    }
    about = About(
        field_names=(generator.field,),
        units=("1",),
        param_names=filled.param_names,
        grid_shape=(grid.ny, grid.nx),
        cells=grid.cells(),
        symmetry=filled.symmetry(),
        attributes={"generator": generator.name, "seed": filled.seed, "version": GENERATOR_VERSION},
    )
    write_canonical(path, shape, filled.trajectories(), about, arrays)


def _write_npy(path: Path, shape: tuple[int, int, int, int], filled: _Filled) -> None:
    """Write <path> [N, T, M], <stem>_params.csv, <stem>_symmetry.npz and the pictures in <stem>_images/."""
    with atomic_path(path, needed_bytes=4 * int(np.prod(shape))) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape[:3])
        for i, u in enumerate(filled.trajectories()):
            array[i] = u[..., 0]
        array.flush()
        del array
    lines = [",".join(filled.param_names)]
    lines += [",".join(f"{value:.9g}" for value in row) for row in filled.params[:, filled.shown]]
    write_text(path.with_name(f"{path.stem}_params.csv"), "\n".join(lines) + "\n")
    with atomic_path(path.with_name(f"{path.stem}_symmetry.npz")) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = filled.symmetry().arrays()
        np.savez(file, **arrays)
    if filled.config.write_images:
        write_images(path.with_name(f"{path.stem}_images"), filled.images)


def draw_frames(path: Path, u: np.ndarray, generator: Generator, picture: np.ndarray) -> None:
    """Draw five frames of u [T, ny, nx], and the picture of its parameters beside them; y points down."""
    from common.figures import maps, save

    times = generator.times(len(u))
    picked = np.unique(np.linspace(0, len(u) - 1, 5).astype(int))
    ny, nx = u.shape[1:]
    shared: dict[str, Any] = {
        "x_label": "x",
        "z_label": "y",
        "equal": True,
        "panel": (3.6, 2.2),
        "columns": 3,
    }
    shared |= {"spacing": (1.0 / ny, 2.0 / nx), "origin": (0.5 / ny, 1.0 / nx)}
    kind = "seismic" if generator.name == "wave" else "property"
    panels = {f"t = {times[k]:.3g}": u[k] for k in picked}
    save(maps(panels, kind=kind, value_label=generator.field, title=generator.name, **shared), path)
    drawn = maps({"picture": picture}, value_label="grey value", **shared)
    save(drawn, path.with_name(f"{path.stem}_picture.png"))
