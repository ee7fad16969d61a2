"""Predictions for other tools: ParaView series, NumPy arrays with axes, a table of the wells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_path, remove_stale_temporaries, write_text
from common.log import get_logger
from common.vtk import write_pvd, write_vti
from voxel_ode.config_tools import ExportConfig
from voxel_ode.predictions import SERIES, Predictions, open_predictions
from voxel_ode.schema import MASK_NAMES, SENTINEL
from voxel_ode.well_tables import well_rows

DIGITS = 9


def grids_of(predictions: Predictions, k: int) -> dict[str, np.ndarray]:
    """Return the arrays [Z, Y, X] of a state for ParaView: P and T, errors, masks; NaN off their domains."""
    state = _known(predictions.state(k), predictions.masks)
    arrays = {"Pressure_bar": state[0], "Temperature_C": state[1]}
    if k < predictions.num_truth:
        error = state - _known(predictions.state(k, "ground_truth"), predictions.masks)
        arrays |= {"PressureError_bar": error[0], "TemperatureError_C": error[1]}
    masks = {name: predictions.masks[i].astype(np.uint8) for i, name in enumerate(MASK_NAMES)}
    return {**{name: values.astype(np.float32) for name, values in arrays.items()}, **masks}


def _known(state: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return a state with NaN where pressure (flow cells) or temperature (active cells) is not defined."""
    domains = np.stack([masks[1], masks[0]]) > 0
    return np.where(domains & (state != SENTINEL), state, np.nan)


def export_vti(predictions: Predictions, folder: Path, steps: Sequence[int] = ()) -> list[Path]:
    """Write a .vti for each year and the series `predictions.pvd` of them; return the files.

    z is up: the origin is the bottom of the grid, whose depth counts from its top.

    Args:
        predictions: what to export.
        folder: for the files.
        steps: years to write, from 1; none = all.

    Raises:
        UserError: a year is not in the file.
    """
    years = list(steps) or list(range(1, predictions.num_states + 1))
    beyond = [year for year in years if not 1 <= year <= predictions.num_states]
    if beyond:
        raise UserError(
            f"--steps_list {beyond[0]}: {predictions.path} holds years 1 to {predictions.num_states}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(folder)
    paths = [
        write_vti(folder / f"year_{year:03d}.vti", grids_of(predictions, year - 1), predictions.cell_size_m)
        for year in years
    ]
    series = write_pvd(folder / SERIES, list(zip(map(float, years), paths, strict=True)))
    get_logger().info(f"{series}: {len(paths)} years for ParaView")
    return [*paths, series]


def export_npz(predictions: Predictions, path: Path) -> Path:
    """Write states, truth, masks, field rates and axes (cell centres in metres, years) as one .npz file."""
    arrays: dict[str, np.ndarray] = {"masks": predictions.masks, "scalars": predictions.scalars}
    groups = {"": ("predicted", predictions.num_states), "truth_": ("ground_truth", predictions.num_truth)}
    for prefix, (group, count) in groups.items():
        if count:
            states = np.stack([predictions.state(k, group) for k in range(count)]).astype(np.float32)
            arrays[f"{prefix}pressure_bar"], arrays[f"{prefix}temperature_c"] = states[:, 0], states[:, 1]
    if predictions.num_truth:
        arrays["truth_scalars"] = predictions.truth_scalars
    shape = predictions.masks.shape[1:]
    for name, n, width in zip(("z_m", "y_m", "x_m"), shape, predictions.cell_size_m, strict=True):
        arrays[name] = (np.arange(n) + 0.5) * width
    arrays["years"] = np.arange(1, predictions.num_states + 1)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    get_logger().info(f"{path}: {len(arrays)} arrays")
    return path


def export_csv(predictions: Predictions, path: Path) -> Path:
    """Write one row a well and year; empty where the truth, or a breakthrough, is not known."""
    rows = well_rows(predictions)
    text = io.StringIO()
    names = list(rows[0]) if rows else ["well"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_text(path, text.getvalue())
    get_logger().info(f"{path}: {len(predictions.wells)} wells, {predictions.num_states} years")
    return path


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.{DIGITS}g}"


def export(config: ExportConfig, *, overwrite: bool = False, dry_run: bool = False) -> None:
    """Write the forms of `config.predictions` that were asked for.

    Raises:
        UserError: a target exists and may not be overwritten, or a year is not in the file.
        DataError: the file is no predictions file.
    """
    predictions = open_predictions(config.predictions or "")
    for path in (config.npz, config.csv, config.vti and config.vti / SERIES):
        if path is not None and path.exists() and not overwrite:
            raise UserError(f"{path}: exists; add --overwrite to replace it")
    if dry_run:
        get_logger().info(
            f"{predictions.path}: {predictions.num_states} states, {len(predictions.wells)} wells"
        )
        return
    if config.vti is not None:
        export_vti(predictions, config.vti, config.steps_list)
    if config.npz is not None:
        export_npz(predictions, config.npz)
    if config.csv is not None:
        export_csv(predictions, config.csv)
