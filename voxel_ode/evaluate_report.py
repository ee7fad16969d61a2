"""What an evaluation leaves: evaluation.json, evaluation.md, results.json and figures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json, write_text
from common.log import get_logger
from common.report import Row, format_number, save_rows, table
from common.run import PLACES, MachineOptions, command_line_of, describe_run
from voxel_ode import sections
from voxel_ode.config_tools import EvaluateConfig
from voxel_ode.loading import Model
from voxel_ode.metrics import mean_curve
from voxel_ode.prepped import PreppedSim
from voxel_ode.scoring import true_well_temperatures

COLUMNS = (
    ("P rmse bar", "rollout", "rmse_P"),
    ("T rmse degC", "rollout", "rmse_T"),
    ("P mae", "rollout", "mae_P"),
    ("T mae", "rollout", "mae_T"),
    ("P rel. L2", "rollout", "rel_l2_P"),
    ("T rel. L2", "rollout", "rel_l2_T"),
    ("T within 5 degC", "rollout", "acc_abs5_T"),
    ("T within 1 degC", "rollout", "acc_abs1_T"),
    ("P within 5 bar", "rollout", "acc_abs5_P"),
    ("P within 1 bar", "rollout", "acc_abs1_P"),
    ("T within 5 %", "rollout", "acc5pct_T"),
    ("P within 5 %", "rollout", "acc5pct_P"),
    ("P one year", "one_step", "rmse_P"),
    ("T one year", "one_step", "rmse_T"),
)
# measure, unit, better, where it stands in a method's summary
MEASURES = (
    ("temperature RMSE of the rollout", "deg C", "lower", ("rollout", "rmse_T")),
    ("pressure RMSE of the rollout", "bar", "lower", ("rollout", "rmse_P")),
    ("temperature within 5 deg C", "share", "higher", ("rollout", "acc_abs5_T")),
    ("temperature RMSE of one year", "deg C", "lower", ("one_step", "rmse_T")),
    ("pressure RMSE of one year", "bar", "lower", ("one_step", "rmse_P")),
    ("temperature at the wells, mean error", "deg C", "lower", ("wells", "T_mae")),
    ("breakthrough year, mean error", "years", "lower", ("wells", "breakthrough_error_years")),
    ("produced power, relative error", "-", "lower", ("produced_power_error",)),
)
# flags that change how fast, where and with which pictures an evaluation runs, and no figure of it
SAME_FIGURES = ("figures", "compile", "cuda_graph", "max_memory", "tile", "skip_inactive")
CURVES_SHOWN = 4  # methods in the figure of the wells


def write_report(
    result: dict[str, Any],
    config: EvaluateConfig,
    models: Sequence[Model],
    sims: Sequence[PreppedSim],
    out: Path,
    options: MachineOptions,
) -> list[Row]:
    """Write all files; return the rows of results.json."""
    shown = result.pop("shown")
    rows = make_rows(result, models, command_of(config, options))
    document = {
        **describe_run("voxel_ode", options.seed),
        "checkpoints": [{"path": str(m.path), "sha256": m.sha256, "step": m.step} for m in models],
        "num_weights": models[0].num_weights,
        "split": config.split,
        "init": config.init,
        "simulations": [sim.name for sim in sims],
        **result,
    }
    write_json(out / "evaluation.json", document)
    text = markdown(document)
    write_text(out / "evaluation.md", text)
    save_rows(out / "results.json", rows)
    if config.figures:
        draw(out / "figures", shown, sims[0])
    get_logger().info("\n" + text)
    get_logger().info(
        f"next: python scripts/voxel_ode/rollout.py --sim_path {shlex.quote(str(sims[0].path))} --ckpt_path "
        f"{shlex.join(config.ckpt_path)} --vti out --csv wells.csv"
    )
    return rows


def value_at(summary: Mapping[str, Any], place: Sequence[str]) -> float | None:
    """Return a finite number of a method's summary, None where there is none."""
    found: Any = summary
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if found is not None and math.isfinite(found) else None


def command_of(config: EvaluateConfig, options: MachineOptions) -> str:
    """Return the line that measures this again: data, networks, and every flag that changes the figures."""
    script, places = "scripts/voxel_ode/evaluate.py", (*PLACES, "threads")
    return command_line_of(script, config, options, leave_out=SAME_FIGURES, places=places)


def make_rows(result: Mapping[str, Any], models: Sequence[Model], command: str) -> list[Row]:
    """Return one row a measure, ours beside all other methods; `command` is the line that measured them."""
    methods = result["methods"]
    rows = []
    for name, unit, better, place in MEASURES:
        ours = value_at(methods["ours"], place)
        others = {m: value_at(s, place) for m, s in methods.items() if m != "ours"}
        if ours is None and all(value is None for value in others.values()):
            continue
        count = models[0].num_weights * len(models)
        seconds = round(float(result["seconds"]), 1)
        rows.append(Row("voxel_ode", name, unit, better, ours, others, seconds, count, command))
    return rows


def markdown(document: Mapping[str, Any]) -> str:
    """Return the tables of an evaluation: methods, field rates, wells."""
    count = len(document["simulations"])
    lines = [
        "# voxel_ode: evaluation",
        "",
        f"{count} {document['split']} simulation{'s' * (count != 1)}, {document['num_weights']:,} weights, "
        f"forecast from `{document['init']}`. RMSE: root of the mean over simulations and predicted years.",
        "",
    ]
    cells = [
        [name, *(format_number(value_at(summary, (part, key))) for _, part, key in COLUMNS)]
        for name, summary in document["methods"].items()
    ]
    lines += table(["method", *(title for title, _, _ in COLUMNS)], cells).splitlines()
    lines += _last_year(document) + _scalars(document) + _wells(document)
    errors = [f"{e:+.2%}" for e in document["energy_balance_error"] if math.isfinite(e)]
    if errors:
        lines += ["", f"Energy balance of the forecasts (imbalance / produced): {', '.join(errors)}."]
    if "calibration" in document:
        c = document["calibration"]
        lines += [
            "",
            f"Calibrated intervals of nominal {c['nominal']:.0%} cover P {c['coverage']['P']:.1%}, "
            f"T {c['coverage']['T']:.1%}.",
        ]
    return "\n".join(lines) + "\n"


def _last_year(document: Mapping[str, Any]) -> list[str]:
    last = len(document["methods"]["ours"]["by_year"]["rmse_T"])
    rows = {n: [s["by_year"][f"rmse_{c}"][-1] for c in "PT"] for n, s in document["methods"].items()}
    return _number_table([f"RMSE in the last year ({last})", "P bar", "T degC"], rows)


def _scalars(document: Mapping[str, Any]) -> list[str]:
    heads = ["field rate (ours)", "MSE normalised", "within 5 %", "relative error"]
    rows = {n: [values[key] for key in ("mse", "acc5", "rel")] for n, values in document["scalars"].items()}
    return _number_table(heads, rows)


def _wells(document: Mapping[str, Any]) -> list[str]:
    if not document["methods"]["ours"].get("wells"):
        return []
    heads = ["wells", "mean T error, degC", "T error in the last year", "breakthrough error, years"]
    heads.append("produced power, relative error")
    rows = {}
    for name, summary in document["methods"].items():
        wells = summary["wells"]
        rows[name] = [
            wells["T_mae"],
            wells["T_mae_by_year"][-1],
            wells["breakthrough_error_years"],
            summary["produced_power_error"],
        ]
    return _number_table(heads, rows)


def _number_table(heads: Sequence[str], rows: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the lines of a table after an empty one; a value that is not finite has failed."""
    cells = [[name, *(format_number(_finite(v)) for v in values)] for name, values in rows.items()]
    return ["", *table(heads, cells).splitlines()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def draw(folder: Path, shown: Mapping[str, Any], sim: PreppedSim) -> None:
    """Draw slices, errors by year, wells and field rates of the first simulation."""
    first, masks = shown["first"], sim.masks()
    layer = sections.well_layer(sim.wells, sim.shape)
    planes = shown["planes"]
    truth = {t: sections.cut_planes(sim.states(t, t + 1)[0], masks, layer) for t in planes}
    size = sim.cell_size_m or (1.0, 1.0, 1.0)
    for cut in ("section", "layer"):
        true, ours = ({t - first: of[t][cut] for t in planes} for of in (truth, planes))
        for channel, short in enumerate("PT"):
            where = "middle section" if cut == "section" else f"layer {layer} through the wells"
            title = f"{sections.NAMES[channel]} ({sections.UNITS[channel]}), {sim.name}, {where}"
            path = folder / f"slices_{short}_{cut}.png"
            sections.draw_slices(path, true, ours, channel, cut, size, title)
    curves = {
        name: {c: mean_curve(scores.rollouts, f"rmse_{c}") for c in "PT"}
        for name, scores in shown["scores"].items()
    }
    sections.draw_error_curves(folder / "error_by_year.png", curves)
    years = np.arange(1, sim.t_valid - first)
    if len(sim.wells):
        chosen = [n for n in ("ours", "upwind", "copy", "ridge1") if n in shown["scores"]][:CURVES_SHOWN]
        wells = {"truth": true_well_temperatures(sim, first)}
        wells |= {name: shown["scores"][name].wells[0] for name in chosen}
        sections.draw_wells(folder / "wells.png", sim.wells, years, wells)
    rates = {"truth": sim.scalars[first + 1 : sim.t_valid], "ours": shown["scalars"]}
    sections.draw_scalars(folder / "scalars.png", years, rates)
