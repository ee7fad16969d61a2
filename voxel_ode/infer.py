"""Inference: `load` a network, `predict` a simulation in memory, `infer` files of any number and size."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common import device as devices
from common import distributed
from common.errors import DataError, UserError
from common.files import require_writable
from common.log import get_logger
from common.run import MachineOptions, machine
from voxel_ode.config_tools import GIB, Placement, RolloutConfig
from voxel_ode.constraints import range_warnings
from voxel_ode.graphs import say_unused
from voxel_ode.intervals import Calibration, calibrated, load_calibration, spread_of
from voxel_ode.loading import Model, load, require_same, require_same_stats
from voxel_ode.predictions import SERIES, Predictions, PredictionWriter, open_predictions, writing
from voxel_ode.prepped import SUFFIX, PreppedSim, open_simulation
from voxel_ode.regions import bytes_a_cell, describe, plan_regions
from voxel_ode.rollout import Forecast, Year, budget_bytes, num_states, with_sentinels

__all__ = ["infer", "load", "open_sims", "predict"]

MAX_RETRIES = 4
ADVICE = "lower --max_memory, give --tile sizes, or use fewer --batch_sims"


def predict(
    models: Model | Sequence[Model],
    sim: PreppedSim,
    *,
    init: str = "output0",
    steps: int = 0,
    placement: Placement | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a forecast in memory: states [T, 2, Z, Y, X] (bar, deg C) and scalars [T, 5].

    With init "output0" index 0 is the file's first output; with "initial" all states are predicted. Several
    networks give their mean. Off the active cells stands -999.
    """
    models = [models] if isinstance(models, Model) else list(models)
    first, count = _first(init), num_states(sim, init, steps)
    states = [] if first < 0 else [sim.states(0, 1)[0]]
    scalars = [] if first < 0 else [sim.scalars[0]]
    forecast = Forecast(models, [sim], placement or Placement(), first)
    for year in forecast.years(count - len(states)):
        states.append(year.states.mean(0)[0].cpu().numpy())
        scalars.append(year.scalars.mean(0)[0])
    return with_sentinels(np.stack(states), sim.masks()), np.stack(scalars)


def _first(init: str) -> int:
    return 0 if init == "output0" else -1


def open_sims(paths: Sequence[str], what: str = "--prepped_sim_path") -> list[PreppedSim]:
    """Return the simulations in files and folders, prepped or raw.

    Raises:
        DataError: one is missing or damaged, or a folder holds none.
    """
    files: list[Path] = []
    for word in paths:
        path = Path(word)
        inside = (
            sorted(p for p in path.glob("*.h5") if not p.name.startswith(".")) if path.is_dir() else [path]
        )
        if not inside:
            raise DataError(f"{what} {path}: no .h5 files in this folder; name prepped or raw simulations")
        files += inside
    return [open_simulation(path) for path in files]


def infer(
    config: RolloutConfig, options: MachineOptions, origins: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Predict every simulation into its file; return a summary of each.

    Raises:
        UserError: a flag does not fit the checkpoint or the files, or a result exists.
        DataError: a checkpoint or simulation cannot be used.
        DivergedError: a state became infinite or NaN.
    """
    with machine(options) as device, devices.explain_out_of_memory(ADVICE):
        say_unused(config.cuda_graph, device)
        with distributed.shared_errors():
            models = [load(path, device, precision=options.precision) for path in config.ckpt_path]
            require_same(
                models,
                receptive_field_radius=config.receptive_field_radius,
                base_channels=config.base_channels,
                depth=config.depth,
            )
            if config.stats_path is not None:
                require_same_stats(models, config.stats_path)
            calibration = load_calibration(config.intervals, models) if config.intervals else None
            sims = open_sims(config.prepped_sim_path)
            for sim in sims:
                sim.told_injection_c = config.injection_temperature
                if config.init == "initial" and not np.isfinite(sim.injection_c(-1)):
                    get_logger().warning(
                        f"{sim.path}: nothing tells how warm the injected water is, so cells at injectors "
                        "cool late; give --injection_temperature"
                    )
            for model in models:
                for sim in sims:
                    model.require_fit(sim)
            init = _init_of(config, sims, origins or {})
            _check_calibration(calibration, init, config)
            targets = _targets(config, sims, options)
        groups = list(_groups(sims, config))
        if options.dry_run:
            return [_dry_run(config, models, [sims[i] for i in group], init) for group in groups]
        for folder in {target.parent for target in targets}:
            require_writable(folder)
        done = []
        for g in distributed.shard(len(groups)):
            members = [sims[i] for i in groups[g]]
            paths = [targets[i] for i in groups[g]]
            done += _run_fitting(config, models, members, paths, init, calibration)
        for summary in done:
            _after(config, Path(summary["path"]), len(sims))
        return done


def _init_of(config: RolloutConfig, sims: Sequence[PreppedSim], origins: Mapping[str, str]) -> str:
    """Return how to begin: scenarios without outputs begin with their initial state."""
    bare = [sim for sim in sims if sim.t_valid == 0]
    if config.init == "initial" or not bare:
        return config.init
    if origins.get("init") == "default" and len(bare) == len(sims):
        get_logger().info(f"{bare[0].path.name}: no group Output, so --init initial")
        return "initial"
    raise UserError(f"--init output0: {bare[0].path} has no group Output to begin with; use --init initial")


def _check_calibration(calibration: Calibration | None, init: str, config: RolloutConfig) -> None:
    if calibration is None:
        return
    pairs = (
        ("init", calibration.init, init),
        ("pressure_sweeps", calibration.pressure_sweeps, config.pressure_sweeps),
    )
    for name, fitted, given in pairs:
        if fitted != given:
            raise UserError(
                f"--intervals {config.intervals}: fitted for --{name} {fitted}, this is --{name} {given}; "
                "run evaluate.py --calibrate with the same"
            )


def _targets(config: RolloutConfig, sims: Sequence[PreppedSim], options: MachineOptions) -> list[Path]:
    """Return where each simulation's predictions go.

    Raises:
        UserError: one file for several simulations, or a result exists and --overwrite was not given.
    """
    path = config.save_path
    if path.suffix == ".h5" and not path.is_dir():
        if len(sims) > 1:
            raise UserError(f"--save_path {path}: one file for {len(sims)} simulations; name a folder")
        targets = [path]
    else:
        targets = [path / f"{sim.path.name.removesuffix(SUFFIX).removesuffix('.h5')}.h5" for sim in sims]
    if len(set(targets)) < len(targets):
        raise UserError("--prepped_sim_path: two simulations have one name; predict them one by one")
    exports = [(flag, p) for t in targets for flag, p in _exports(config, t.stem, len(sims)).items()]
    for flag, target in [*(("save_path", target) for target in targets), *exports]:
        there = target / SERIES if flag == "vti" else target
        if there.exists() and not options.overwrite:
            raise UserError(f"{there}: exists; add --overwrite to replace it or choose another --{flag}")
    return targets


def _exports(config: RolloutConfig, name: str, num_sims: int) -> dict[str, Path]:
    """Return where the exports of one simulation go that were asked for, by flag: a folder for "vti"."""
    found: dict[str, Path] = {}
    if config.vti is not None:
        found["vti"] = config.vti / name if num_sims > 1 else config.vti
    for flag, target in (("npz", config.npz), ("csv", config.csv)):
        if target is not None:
            is_file = target.suffix == f".{flag}" and num_sims == 1
            found[flag] = target if is_file else target / f"{name}.{flag}"
    return found


def _groups(sims: Sequence[PreppedSim], config: RolloutConfig) -> Iterator[list[int]]:
    """Yield the simulations that are predicted at once: neighbours of one grid and length."""
    group: list[int] = []
    for i, sim in enumerate(sims):
        if group:
            other = sims[group[0]]
            same = sim.shape == other.shape and _length(sim, config) == _length(other, config)
            if not same or len(group) == config.batch_sims:
                yield group
                group = []
        group.append(i)
    if group:
        yield group


def _length(sim: PreppedSim, config: RolloutConfig) -> int:
    return num_states(sim, config.init, config.steps)


def _dry_run(
    config: RolloutConfig, models: Sequence[Model], sims: Sequence[PreppedSim], init: str
) -> dict[str, Any]:
    """Predict one year of a group and say what would be done."""
    forecast = Forecast(models, sims, config, _first(init))
    year = next(forecast.years(1))
    text = (
        f"{', '.join(sim.name for sim in sims)}: {_length(sims[0], config)} states from {init}, "
        f"{describe(forecast.regions, sims[0].shape)}; {len(models)} network(s) of "
        f"{models[0].num_weights:,} weights, states {list(year.states.shape)}"
    )
    get_logger().info(text)
    return {"path": "", "text": text}


def _run_fitting(
    config: RolloutConfig,
    models: Sequence[Model],
    sims: Sequence[PreppedSim],
    paths: Sequence[Path],
    init: str,
    calibration: Calibration | None,
) -> list[dict[str, Any]]:
    """Predict a group; when memory runs out and tiles are ours to choose, try again with smaller ones."""
    for _ in range(MAX_RETRIES):
        try:
            return _run_group(config, models, sims, paths, init, calibration)
        except (RuntimeError, MemoryError) as error:
            if not (devices.is_out_of_memory(error) and config.tile == ("auto",)):
                raise
        active = np.any([sim.masks()[0] > 0 for sim in sims], axis=0)
        budget = budget_bytes(config, models[0].device) / len(models)
        regions = plan_regions(active, models[0].network, budget_bytes=budget, batch=len(sims))
        largest = max(region.num_cells for region in regions)
        half = len(models) * largest * bytes_a_cell(models[0].network, len(sims)) / 2
        get_logger().warning(f"warning: out of memory; trying again with --max_memory {half / GIB:.3g}")
        config = replace(config, max_memory=str(half / GIB))
    return _run_group(config, models, sims, paths, init, calibration)


def _run_group(
    config: RolloutConfig,
    models: Sequence[Model],
    sims: Sequence[PreppedSim],
    paths: Sequence[Path],
    init: str,
    calibration: Calibration | None,
) -> list[dict[str, Any]]:
    """Predict simulations of one grid together, each into its own file."""
    started = time.perf_counter()
    count = _length(sims[0], config)
    warnings = [sorted({w for m in models for w in range_warnings(sim, m.normalizer)}) for sim in sims]
    for line in (line for lines in warnings for line in lines):
        get_logger().warning("warning: %s", line)
    forecast = Forecast(models, sims, config, _first(init))
    get_logger().info(describe(forecast.regions, sims[0].shape))
    has_spread = len(models) > 1 or calibration is not None
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(writing(path, sim, count, with_spread=has_spread))
            for path, sim in zip(paths, sims, strict=True)
        ]
        given = 1 if init == "output0" else 0
        for writer, sim in zip(writers, sims, strict=True):
            _begin(writer, sim, given)
        for k, year in enumerate(forecast.years(count - given), start=given):
            for b, writer in enumerate(writers):
                _write_year(writer, year, b, k, k - given + 1, calibration)
        for writer, lines in zip(writers, warnings, strict=True):
            writer.close(_attributes(config, models, init, given, lines))
    seconds = time.perf_counter() - started
    summaries = []
    for path, writer in zip(paths, writers, strict=True):
        summary = _summary(path, writer, given, seconds / len(sims))
        get_logger().info(summary["text"])
        summaries.append(summary)
    return summaries


def _begin(writer: PredictionWriter, sim: PreppedSim, given: int) -> None:
    if given:
        state = sim.states(0, 1)[0]
        has_spread = "predicted/std" in writer.file
        spread = {"std": np.zeros_like(state), **dict.fromkeys(("p10", "p50", "p90"), state)}
        writer.write(0, state, sim.scalars[0], spread=spread if has_spread else None, given=True)
    else:
        writer.start_heat(sim.initial()[1])


def _write_year(
    writer: PredictionWriter, year: Year, b: int, k: int, predicted_year: int, calibration: Calibration | None
) -> None:
    states = year.states[:, b]
    state, spread = states[0].cpu().numpy(), None
    if len(states) > 1 or calibration is not None:
        found = {name: value.cpu().numpy() for name, value in spread_of(states).items()}
        state = found.pop("mean")
        spread = found
        if calibration is not None:
            spread = calibrated(state, found["std"], calibration, predicted_year)
    scalars, clipped = year.scalars[:, b].mean(0), year.clipped[:, b].max(0)
    writer.write(k, state, scalars, spread=spread, clipped=clipped)


def _attributes(
    config: RolloutConfig, models: Sequence[Model], init: str, given: int, warnings: list[str]
) -> dict[str, Any]:
    names = ["tile", "max_memory", "skip_inactive", "constrain"]
    names += ["pressure_sweeps"] if config.pressure_sweeps else []
    flags = {name: getattr(config, name) for name in names}
    return {
        "init": init,
        "first_predicted_index": given,
        "checkpoint_sha256": ",".join(model.sha256 for model in models),
        "flags": {**flags, "precision": models[0].precision.name},
        "warnings": warnings,
    }


def _summary(path: Path, writer: PredictionWriter, given: int, seconds: float) -> dict[str, Any]:
    """Return what is said of one simulation's forecast, with its line "text"."""
    predicted = writer.scores[given:]
    clipped = np.stack(writer.clipped).sum(axis=0)
    text = f"{path}: {len(writer.clipped) - given} years in {seconds:.1f} s"
    summary: dict[str, Any] = {"path": str(path), "seconds": seconds, "clipped": clipped.tolist()}
    if predicted:
        for name, unit in (("P", "bar"), ("T", "deg C")):
            value = float(np.sqrt(np.mean([s[f"rmse_{name}"] ** 2 for s in predicted])))
            summary[f"rmse_{name}"] = value
            text += f", RMSE {name} {value:.3g} {unit}"
    if clipped.any():
        text += f", clipped cells P {clipped[0]} T {clipped[1]}"
    error = writer.energy_error()
    summary["energy_balance_error"] = error
    summary["text"] = text if np.isnan(error) else f"{text}, energy balance {error:+.2%}"
    return summary


def _after(config: RolloutConfig, path: Path, num_sims: int) -> None:
    """Write the exports that were asked for, and say what can be done next."""
    from voxel_ode.exports import export_csv, export_npz, export_vti
    from voxel_ode.sections import draw_predictions

    found = open_predictions(path)
    write: dict[str, Callable[[Predictions, Path], Any]]
    write = {"vti": export_vti, "npz": export_npz, "csv": export_csv}
    exports = _exports(config, path.stem, num_sims)
    for flag, target in exports.items():
        write[flag](found, target)
    if config.figures:
        draw_predictions(path.parent / "figures", found, path.stem)
    if not exports:
        stem = shlex.quote(str(path.with_suffix("")))
        get_logger().info(
            f"next: python scripts/voxel_ode/export.py --predictions {shlex.quote(str(path))} "
            f"--vti {stem}_vti --csv {stem}_wells.csv"
        )
