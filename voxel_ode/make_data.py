"""Write a folder of simulations in the raw "v2.4" schema, with a card that says what they are."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from common.errors import DataError, UserError
from common.files import (
    FolderLock,
    remove_stale_temporaries,
    require_free_space,
    require_writable,
    write_json,
    write_text,
)
from common.log import get_logger
from common.run import BasicOptions
from voxel_ode.case import Case
from voxel_ode.config_make import MakeDataConfig
from voxel_ode.parameters import PARAMETERS
from voxel_ode.raw_writer import read_whole, write_raw
from voxel_ode.schema import INPUT_NAMES, SCALAR_NAMES, SCHEMA
from voxel_ode.simulator import Simulation, after_history, simulate
from voxel_ode.synthetic import GENERATOR_VERSION, GridConfig, make_case
from voxel_ode.units import System

GENERATOR = "strata voxel_ode"  # attribute of the files that this generator wrote
MIN_PRESSURE_BAR = 10.0
MAX_ATTEMPTS = 20
PACKED_SHARE = {"lzf": 0.8, "gzip1": 0.6, "none": 1.0}  # of the plain size, with a margin


def file_name(index: int) -> str:
    """Return the name of simulation `index`."""
    return f"{SCHEMA}_{index:04d}.h5"


def grid_config(config: MakeDataConfig) -> GridConfig:
    """Return what the generator makes for these flags."""
    z, y, x = config.grid
    dz, dy, dx = config.cell_size
    return GridConfig((z, y, x), (dz, dy, dx), config.max_doublets)


def settings(config: MakeDataConfig, seed: int) -> dict[str, Any]:
    """Return the attributes that say how a file was made, the same for all files of a call."""
    return {
        "generator": GENERATOR,
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "grid": list(config.grid),
        "cell_size_m": [float(h) for h in config.cell_size],
        "num_steps": config.num_steps,
        "substeps": config.substeps,
        "history_years": config.history_years,
        "max_doublets": config.max_doublets,
        "units": config.units,
    }


def needed_bytes(config: MakeDataConfig, num_files: int) -> int:
    """Return the size of so many files on disk, rather too large than too small."""
    values = int(np.prod(config.grid)) * (len(INPUT_NAMES) + 2 * config.num_steps)
    return int(8 * values * num_files * PACKED_SHARE[config.compression])


def make_data(
    config: MakeDataConfig,
    options: BasicOptions,
    out: Path,
    seed: int = 0,
    workers: int = 0,
    resume: bool = False,
) -> list[Path]:
    """Write `v2.4_%04d.h5`, `dataset.json` and `README.md` into `out`; return the simulations of this call.

    File k of a seed is the same whatever the number of processes. Workers are processes of one thread.

    Args:
        config: what to make.
        options: `overwrite` replaces files of the same names; `dry_run` writes nothing.
        out: the folder; files of other indices in it are left alone.
        seed: of the generator.
        workers: processes; 0 = as many as there are cores.
        resume: keep the whole files that these settings made, make what is missing or broken.

    Raises:
        UserError: `out` cannot be written, or holds files that this call would replace.
        DataError: the disk is too small, or a simulation cannot be solved.
    """
    indices = range(config.first_index, config.first_index + config.num_sims)
    paths = {index: out / file_name(index) for index in indices}
    todo = [k for k in indices if not (resume and _is_done(paths[k], {**settings(config, seed), "index": k}))]
    _refuse_to_replace([paths[k] for k in todo], options.overwrite or resume)
    require_free_space(out, needed_bytes(config, len(todo)))
    if options.dry_run:
        make_case(seed, config.first_index, grid_config(config))  # proves that wells fit
        return list(paths.values())
    require_writable(out)
    lock = FolderLock(out)
    try:
        remove_stale_temporaries(out)
        if resume:
            get_logger().info(f"{len(paths) - len(todo)} of {len(paths)} simulations are there already")
        made = _run_all(config, out, seed, todo, workers)
        _describe(config, out, seed, made)
    finally:
        lock.release()
        lock.path.unlink(missing_ok=True)
    return list(paths.values())


def _is_done(path: Path, expected: dict[str, Any]) -> bool:
    """Return whether a file is whole and of these settings.

    Raises:
        UserError: it is whole, but of other settings.
    """
    if not path.exists():
        return False
    try:
        found = read_whole(path)
    except DataError as error:
        get_logger().info(f"making it again: {error}")
        return False
    for name, value in expected.items():
        other = np.asarray(found.get(name, "nothing")).tolist()
        if other != value:
            raise UserError(
                f"{path}: was made with {name} {other}, now {value} is asked for; "
                "choose another --out, or --overwrite without --resume"
            )
    return True


def _refuse_to_replace(paths: list[Path], allowed: bool) -> None:
    there = [path for path in paths if path.exists()]
    if there and not allowed:
        raise UserError(
            f"{there[0]}: exists ({len(there)} such files); add --resume to keep what is whole, "
            "--overwrite to replace, or choose another --out or --first_index"
        )


def _run_all(
    config: MakeDataConfig, out: Path, seed: int, todo: list[int], workers: int
) -> dict[str, dict[str, Any]]:
    """Make the simulations `todo`; return what is known of each, by file name."""
    from joblib import Parallel, cpu_count, delayed

    processes = max(1, min(workers or cpu_count(), len(todo)))
    work = Parallel(n_jobs=processes, return_as="generator")
    results = cast(
        Iterator[dict[str, Any]], work(delayed(make_file)(config, out, seed, index) for index in todo)
    )
    made: dict[str, dict[str, Any]] = {}
    for done, (index, facts) in enumerate(zip(todo, results, strict=True), start=1):
        made[file_name(index)] = facts
        get_logger().info(
            f"{done} of {len(todo)}: {file_name(index)}, {facts['active_cells']} active cells, "
            f"{facts['wells']} wells, {facts['cpu_s']:.1f} s"
        )
    return made


def make_file(config: MakeDataConfig, out: Path, seed: int, index: int) -> dict[str, Any]:
    """Simulate case `index` and write it; return what the card tells of it."""
    started = time.process_time()
    case, run, attempt = usable_run(config, seed, index)
    write_raw(
        out / file_name(index),
        case,
        run,
        system=cast(System, config.units),
        compression=config.compression,
        attributes={**settings(config, seed), "index": index, "attempt": attempt},
    )
    return {
        "active_cells": int(case.active.sum()),
        "flow_cells": int(case.flow.sum()),
        "wells": len(case.wells),
        "rate_kg_s": float(case.wells.rate_kg_s[0]),
        "mean_cooling_c": float((case.temperature0_c - run.temperature_c[-1])[case.active].mean()),
        "worst_mass_error": float(np.abs(run.mass_error).max()),
        "worst_energy_error": float(np.abs(run.energy_error).max()),
        "cpu_s": round(time.process_time() - started, 2),
    }


def usable_run(config: MakeDataConfig, seed: int, index: int) -> tuple[Case, Simulation, int]:
    """Return case `index`, its run, and how many draws before it were rejected.

    A reservoir too tight for its rate, where a producer would draw the pressure below 10 bar, is drawn again:
    the file then holds the next draw of the same index.

    Raises:
        DataError: no draw bears its rate.
    """
    for attempt in range(MAX_ATTEMPTS):
        case = make_case(seed, index, grid_config(config), attempt)
        for years in (1, config.num_steps):  # one year shows most of what is too tight
            if years > 1:
                case = after_history(case, config.history_years, config.substeps)
            run = simulate(case, years, config.substeps)
            if run.pressure_bar[:, case.flow].min() < MIN_PRESSURE_BAR:
                break
        else:
            return case, run, attempt
    raise DataError(
        f"{file_name(index)}: in {MAX_ATTEMPTS} draws some pressure fell below {MIN_PRESSURE_BAR:g} bar; "
        "the grid is too small for such rates, take more or larger cells (--grid, --cell_size)"
    )


def _describe(config: MakeDataConfig, out: Path, seed: int, made: dict[str, dict[str, Any]]) -> None:
    """Write dataset.json and README.md; what is known of files of earlier calls is kept."""
    path = out / "dataset.json"
    known = _known_files(path)
    known.update(made)
    files = {name: known.get(name, {}) for name in sorted(p.name for p in out.glob(f"{SCHEMA}_*.h5"))}
    parameters = [{"index": i, **asdict(p)} for i, p in PARAMETERS.items()]
    described = {"schema": SCHEMA, **settings(config, seed), "parameters": parameters, "files": files}
    write_json(path, described)
    write_text(out / "README.md", card(described))


def _known_files(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # first call, or a card that somebody changed: it is written anew


def card(described: dict[str, Any]) -> str:
    """Return the data card as Markdown."""
    z, y, x = described["grid"]
    dz, dy, dx = described["cell_size_m"]
    system = "Pa, K, kg/s, W, J" if described["units"] == "si" else "bar, deg C, Sm3/day, Sm3 and kJ a step"
    lines = [
        "# Synthetic geothermal simulations",
        "",
        f"{len(described['files'])} simulations of a faulted, dipping reservoir with doublets of wells, made",
        "by the generator of Strata's `voxel_ode` (conservative finite volumes, water and heat, implicit).",
        "",
        f"- Schema {described['schema']}; {z} x {y} x {x} cells (depth, Y, X) of {dz:g} x {dy:g} x {dx:g} m.",
        f"- {described['num_steps']} yearly states, {described['substeps']} implicit steps a year, "
        f"{described['history_years']} years of history.",
        f"- Units on disk: {system}.",
        f"- Seed {described['seed']}, generator version {described['generator_version']}.",
        f"- Scalars: {', '.join(SCALAR_NAMES)}.",
        "- -999 marks inactive cells; rock that only conducts heat has no porosity, permeability, pressure.",
        "",
        "| parameter | meaning | at 0 | at 1 | unit |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p['index']} | {p['name']} | {p['low']:g} | {p['high']:g} | {p['unit']} |"
        for p in described["parameters"]
    ]
    lines += [
        "",
        "| file | active cells | wells | kg/s a well | mean cooling, deg C |",
        "|---|---|---|---|---|",
    ]
    for name, facts in described["files"].items():
        if facts:
            lines.append(
                f"| {name} | {facts['active_cells']} | {facts['wells']} | {facts['rate_kg_s']:.1f} "
                f"| {facts['mean_cooling_c']:.2f} |"
            )
        else:
            lines.append(f"| {name} | | | | |")
    return "\n".join(lines) + "\n"


def next_command(config: MakeDataConfig, out: Path) -> str:
    """Return the `prep_data` line for the folder: patches that fit the grid, a split that fits the number."""
    patch = " ".join(str(min(32, n)) for n in config.grid)
    line = f"python scripts/voxel_ode/prep_data.py --input_root {shlex.quote(str(out))}"
    line += f" --out_root ./data/prepped --patch_size {patch}"
    if config.num_sims < 16:
        line += (
            f" --num_test {min(2, max(1, config.num_sims // 4))} --num_val {1 if config.num_sims > 2 else 0}"
        )
    return line
