"""Checking raw simulations: what they hold, in which units, and everything that is wrong with them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from voxel_ode.config_prep import CheckConfig
from voxel_ode.raw import RawFile, find_raw
from voxel_ode.schema import GRID_NAMES, SCALAR_NAMES

_VALUE_FLAGS = ("--units", "--dt_days", "--max_memory", "--config")
_SWITCH_WORDS = ("true", "false", "1", "0")  # a switch may say them


def with_paths(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the words that belong to no flag moved behind `--paths`."""
    paths: list[str] = []
    rest: list[str] = []
    taken = after_switch = False
    for word in argv:
        is_flag = word.startswith("--")
        (rest if is_flag or taken or (after_switch and word in _SWITCH_WORDS) else paths).append(word)
        taken = is_flag and "--" + word[2:].replace("-", "_") in _VALUE_FLAGS
        after_switch = is_flag and not taken and "=" not in word
    return [*rest, "--paths", *paths] if paths else rest


def next_command(config: CheckConfig) -> str:
    """Return the line that prepares the folder of the files that were checked."""
    first = Path(config.paths[0])
    root = shlex.quote(str(first if first.is_dir() else first.parent))
    units = "" if config.units == "auto" else f" --units {config.units}"
    return f"python scripts/voxel_ode/prep_data.py --input_root {root} --out_root ./data/prepped{units}"


def check_files(config: CheckConfig) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Yield (file, what it holds, what is wrong) of each file named or found in a folder named.

    Raises:
        DataError: a path is not there.
    """
    for name in config.paths:
        path = Path(name)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; check the path")
        for file in find_raw(path)[0] if path.is_dir() else [path]:
            try:
                yield file, check_file(file, config), ""
            except DataError as error:
                yield file, {}, str(error)


def check_file(path: Path, config: CheckConfig) -> dict[str, Any]:
    """Read a whole simulation and return what it holds; one without outputs is a scenario.

    Raises:
        DataError: it is not valid.
    """
    options = {"units": config.units, "dt_days": config.dt_days, "max_memory_gb": config.max_memory}
    with RawFile(path, need_outputs=False, **options) as raw:
        active, flow, _ = raw.inputs.masks
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for t in range(raw.t_valid):
            for k, (grid, mask) in enumerate(zip(raw.state(t), (flow, active), strict=True)):
                low[k], high[k] = min(low[k], grid[mask].min()), max(high[k], grid[mask].max())
        scalars = raw.scalars()
        if raw.t_valid == 1:
            raise DataError(f"{path}: Output/Temperature: 1 valid state, expected 2 or more, or no outputs")
        injected, produced = raw.inputs.wells.total_rates_kg_s
        found: dict[str, Any] = {
            "grid (Z Y X)": " ".join(map(str, raw.shape)),
            "units": raw.units,
            "cell size m": " ".join(f"{v:g}" for v in raw.cell_size_m) if raw.cell_size_m else "not said",
            "active, flow, thermal cells": ", ".join(str(int(m.sum())) for m in raw.inputs.masks),
            "wells": f"{len(raw.inputs.wells)}, {injected:.4g} kg/s injected, {produced:.4g} kg/s produced",
            "parameters": len(raw.params),
            "valid states": raw.t_valid or "none (a scenario to predict)",
        }
        if raw.t_valid:
            for k, name in enumerate(GRID_NAMES):
                found[name] = f"{low[k]:.5g} to {high[k]:.5g} {('bar', 'deg C')[k]}"
            found |= {name: f"{scalars[-1, k]:.5g} at the end" for k, name in enumerate(SCALAR_NAMES)}
        if raw.ignored:
            found["not used"] = ", ".join(raw.ignored)
        for i, line in enumerate(raw.inputs.warnings, 1):
            found[f"warning {i}"] = line
        return found
