"""The search for better rates from a file to a file: predicted and simulated gain side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import device as devices
from common import figures
from common.errors import UserError
from common.files import write_json
from common.log import get_logger
from common.run import MachineOptions, describe_run, machine
from voxel_ode.config_tools import OptimiseConfig
from voxel_ode.loading import load
from voxel_ode.optimise import Balance, Candidate, RateForecast, require_searchable, say, search
from voxel_ode.prepped import PreppedSim, open_simulation
from voxel_ode.verify import Outcome, reproduction_error_c, verify

MISMATCH_C = 0.5  # a rerun that differs more from the file was made with another discretisation


def optimise(config: OptimiseConfig, options: MachineOptions) -> dict[str, Any]:
    """Search, run the best rates in the simulator, write the result and return it.

    Raises:
        UserError: nothing can move, or the result exists and may not be overwritten.
        DataError: file or checkpoint cannot be used, or another simulator made the file.
        DivergedError: the prediction is not finite.
    """
    with machine(options) as device, devices.explain_out_of_memory("shorten --horizon"):
        model = load(config.ckpt_path[0], device, precision=options.precision)
        sim = open_simulation(config.sim_path)
        model.require_fit(sim)
        require_searchable(sim, config)
        balance = Balance.of(sim.wells, config.bounds, config.total)
        if config.save_path.exists() and not options.overwrite:
            raise UserError(f"{config.save_path}: exists; add --overwrite or choose another --save_path")
        forecast = RateForecast(model, sim, config)
        start_run = (
            _run(sim, np.ones(len(sim.wells)), config) if config.verify and not options.dry_run else None
        )
        if options.dry_run:
            get_logger().info(
                f"{sim.name}: {len(sim.wells)} wells, {config.horizon} years, {config.iterations} iterations "
                f"in a box of {forecast.fields.static.shape[2:]} cells"
            )
            return {}
        candidates = search(forecast, balance, config, say)
        runs = None if start_run is None else [start_run, *_verified(sim, candidates[1:], config)]
        result = describe(sim, candidates, runs, config)
        result |= {"checkpoint": str(model.path), **describe_run("voxel_ode", options.seed)}
        write_json(config.save_path, result)
        if config.figures:
            draw(config.save_path.with_suffix(".png"), sim, result, runs)
        get_logger().info(result["text"])
        return result


def _run(sim: PreppedSim, factors: np.ndarray, config: OptimiseConfig) -> Outcome:
    first = 0 if config.init == "output0" else -1
    return verify(sim, factors, config.horizon, discount_rate=config.discount_rate, first_state=first)


def _verified(sim: PreppedSim, candidates: Sequence[Candidate], config: OptimiseConfig) -> list[Outcome]:
    return [_run(sim, candidate.factors, config) for candidate in candidates]


def keeps_limits(run: Outcome, start: Outcome, config: OptimiseConfig) -> bool:
    """Return whether a simulated run stays within the pressure limits, or as near to them as the start."""
    if not config.pressure_limits:
        return True
    low, high = config.pressure_limits
    (a, b), (c, d) = run.pressure_range_bar, start.pressure_range_bar
    return a >= min(low, c) and b <= max(high, d)


def best_run(runs: Sequence[Outcome], config: OptimiseConfig) -> int:
    """Return which run has most energy in the simulator; 0, the start, when none is better."""
    allowed = [i for i, run in enumerate(runs) if i == 0 or keeps_limits(run, runs[0], config)]
    return max(allowed, key=lambda i: (runs[i].value(config.objective), -i))


def describe(
    sim: PreppedSim, candidates: Sequence[Candidate], runs: Sequence[Outcome] | None, config: OptimiseConfig
) -> dict[str, Any]:
    """Return the result: chosen rates, predicted and simulated gain, all candidates."""
    start = candidates[0]
    chosen = (1 if len(candidates) > 1 and candidates[1].score > start.score else 0) if runs is None else 0
    if runs is not None:
        chosen = best_run(runs, config)
    entries = _entries(candidates, runs, config)
    best = entries[chosen]
    text = f"{config.objective}: predicted gain {best['predicted_gain']:+.3%}"
    if runs is None:
        text += ", not simulated (--verify false)"
    else:
        text += f", simulated gain {best['simulated_gain']:+.3%}"
        if chosen == 0:
            text += "; the starting rates are the best"
            tried = [f"{e['predicted_gain']:+.2%} / {e['simulated_gain']:+.2%}" for e in entries[1:]]
            text += f" (others, predicted / simulated: {', '.join(tried)})" if tried else ""
    rates = sim.wells.signed_rate_kg_s
    result = {
        "simulation": sim.name,
        "objective": config.objective,
        "horizon_years": config.horizon,
        "total": config.total,
        "start_rates_kg_s": rates.tolist(),
        "rates_kg_s": (rates * candidates[chosen].factors).tolist(),
        "factors": candidates[chosen].factors.tolist(),
        "chosen": chosen,
        "predicted_gain": best["predicted_gain"],
        "simulated_gain": best.get("simulated_gain"),
        "candidates": entries,
        "text": text,
    }
    if runs is not None and sim.t_valid > 1:
        error = reproduction_error_c(sim, runs[0], 0 if config.init == "output0" else -1)
        result["reproduction_error_C"] = error
        if error > MISMATCH_C:
            get_logger().warning(
                f"warning: the simulator's own run of {sim.name} differs by {error:.2g} deg C from the file; "
                "gains are those of another discretisation"
            )
    return result


def _entries(
    candidates: Sequence[Candidate], runs: Sequence[Outcome] | None, config: OptimiseConfig
) -> list[dict[str, Any]]:
    """Return what network and simulator say of each candidate."""
    start = candidates[0]
    entries = []
    for i, candidate in enumerate(candidates):
        entry: dict[str, Any] = {
            "factors": candidate.factors.tolist(),
            "predicted_energy_J": candidate.energy_j,
            "predicted_gain": _gain(candidate.energy_j, start.energy_j),
        }
        if runs is not None:
            value = runs[i].value(config.objective)
            entry |= {
                "simulated_energy_J": value,
                "simulated_gain": _gain(value, runs[0].value(config.objective)),
                "pressure_range_bar": list(runs[i].pressure_range_bar),
            }
        entries.append(entry)
    return entries


def _gain(value: float, start: float) -> float:
    return (value - start) / abs(start) if start else 0.0


def draw(
    path: Path,
    sim: PreppedSim,
    result: dict[str, Any],
    runs: Sequence[Outcome] | None,
) -> Path:
    """Draw the rates before and after, and the yearly power of the simulator with both."""
    figure, axes = figures.new_figure(1, 2 if runs is not None else 1, panel=(4.6, 3.0))
    wells = np.arange(len(sim.wells))
    ax = axes[0, 0]
    ax.bar(wells - 0.2, result["start_rates_kg_s"], 0.4, label="start", color=figures.TRUTH)
    ax.bar(wells + 0.2, result["rates_kg_s"], 0.4, label="chosen", color=figures.OURS)
    ax.axhline(0.0, color="#888888", linewidth=0.8)
    ax.set(xlabel="well", ylabel="rate (kg/s), + injection", title="rates", xticks=wells)
    ax.legend()
    if runs is not None:
        years = np.arange(1, len(runs[0].produced_w) + 1)
        series = {"truth": (years, 1e-6 * runs[0].produced_w)}
        series["ours"] = (years, 1e-6 * runs[result["chosen"]].produced_w)
        figures.curves(axes[0, 1], series, x_label="year", y_label="MW", title="produced power, simulated")
        legend = axes[0, 1].get_legend()
        for text, name in zip(legend.get_texts(), ("start", "chosen"), strict=True):
            text.set_text(name)
    return figures.save(figure, path)
