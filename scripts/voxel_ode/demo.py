"""The demo of voxel_ode: simulate reservoirs, train for 100 s, forecast held-out ones, compare, tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.cli import main, option, parse
from common.demo import Demo, DemoOptions

QUESTION = "How will this geothermal reservoir evolve?"
CHECKPOINT = "train/checkpoints/best.pt"
NEXT_COMMANDS = (
    "python scripts/voxel_ode/check_h5.py my_simulations",
    "python scripts/voxel_ode/prep_data.py --input_root my_simulations --out_root data/my_prepped",
    "python scripts/voxel_ode/train.py --prepped_root data/my_prepped --out results/my_reservoir",
    "python scripts/voxel_ode/evaluate.py --prepped_root data/my_prepped "
    "--ckpt_path results/my_reservoir --out results/my_report",
    "python scripts/voxel_ode/rollout.py --sim_path my_simulations/v2.4_0001.h5 "
    "--ckpt_path results/my_reservoir --save_path out/predictions.h5 --vti out/paraview --csv out/wells.csv",
)
FIGURES = (
    ("slices_T_layer.png", "Temperature in the layer of the wells, held-out reservoir.", "temperature maps"),
    ("slices_T_section.png", "Temperature in the middle section of the same.", "temperature sections"),
    ("error_by_year.png", "Error of the forecast year by year, all methods.", "errors over the years"),
    ("wells.png", "Temperature at each well.", "temperatures at the wells"),
    ("slices_P_layer.png", "Pressure in the layer of the wells.", "pressure maps"),
    ("scalars.png", "Field rates.", "field rates over the years"),
)
SWEEPS = 64  # over the water balance; more changed nothing on validation reservoirs
BALANCED = "upwind balanced"


@dataclass(frozen=True)
class Config:
    """How much of the machine to use."""

    workers: int = option(0, "processes that simulate; 0 = cores")
    size: str = option("demo", "preset of data and training", choices=("demo", "smoke"))


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, DemoOptions, description=__doc__)
    demo = Demo("voxel_ode", parsed.run)
    make_and_prepare(parsed.config, demo)
    training_seconds = train(parsed.config, demo)
    forecast(demo)
    measured = json.loads((demo.out / "evaluation/evaluation.json").read_text(encoding="utf-8"))
    demo.save(
        demo.rows(training_seconds),
        title="voxel_ode: a geothermal reservoir, year after year",
        question=QUESTION,
        figures=demo.pictures((f"evaluation/figures/{name}", words, told) for name, words, told in FIGURES),
        parameters=measured["num_weights"],
        commands=NEXT_COMMANDS,
        notes=verdict(measured),
    )


def make_and_prepare(config: Config, demo: Demo) -> None:
    """Simulate reservoirs and prepare them."""
    made = ["--preset", config.size, "--out", f"{demo.shown}/raw", "--workers", str(config.workers)]
    demo.step("reservoirs from the simulator", "make_data.py", [*made, "--overwrite"], 21)
    patch = ["32", "24", "24"] if config.size == "demo" else ["12", "10", "10"]
    held_out = ["--num_test", "2", "--num_val", "1"] if config.size == "demo" else ["--num_test", "1"]
    held_out += [] if config.size == "demo" else ["--num_val", "1"]
    prepared = [
        "--input_root",
        f"{demo.shown}/raw",
        "--out_root",
        f"{demo.shown}/prepped",
        "--patch_size",
        *patch,
    ]
    demo.step("prepare", "prep_data.py", [*prepared, *held_out, "--overwrite"], 6)


def train(config: Config, demo: Demo) -> float:
    """Train from scratch; return the seconds."""
    flags = [
        "--preset",
        config.size,
        "--prepped_root",
        f"{demo.shown}/prepped",
        "--out",
        f"{demo.shown}/train",
    ]
    return demo.step("train from scratch", "train.py", [*flags, "--overwrite"], 102)


def forecast(demo: Demo) -> None:
    """Measure on held-out reservoirs, then forecast one as a user would."""
    checkpoint = ["--ckpt_path", f"{demo.shown}/{CHECKPOINT}", "--pressure_sweeps", str(SWEEPS)]
    flags = ["--prepped_root", f"{demo.shown}/prepped", *checkpoint, "--out", f"{demo.shown}/evaluation"]
    demo.step("measure on held-out reservoirs", "evaluate.py", [*flags, "--overwrite"], 53)
    first = sorted((demo.out / "prepped/test").glob("*.prepped.h5"))[0].relative_to(demo.out)
    flags = ["--prepped_sim_path", f"{demo.shown}/{first}", *checkpoint]
    flags += [
        "--save_path",
        f"{demo.shown}/forecast/predictions.h5",
        "--csv",
        f"{demo.shown}/forecast/wells.csv",
    ]
    demo.step("forecast one of them", "rollout.py", [*flags, "--overwrite"], 10)


def verdict(measured: dict[str, Any]) -> list[str]:
    """Return what the demo set out to reach and what came of it, in words."""
    methods = measured["methods"]
    p, t = ({name: m["rollout"][f"rmse_{c}"] for name, m in methods.items()} for c in "PT")
    lowest = min((name for name in t if name != "ours"), key=lambda name: t[name])
    return [
        f"Temperature: RMSE {t['ours']:.3g} deg C, {t['ours'] / t['copy']:.2f} of copying the first state; "
        f"the best baseline is {lowest} with {t[lowest]:.3g}.",
        f"Pressure: RMSE {p['ours']:.3g} bar, {p['ours'] / p['copy']:.2f} of copying; ridge1 has "
        f"{p['ridge1']:.3g} bar.",
        f"{SWEEPS} sweeps over the cells' water balance even out predicted pressures (--pressure_sweeps); "
        "the same sweeps behind the flow alone, without a network, are the row upwind balanced: "
        f"{t[BALANCED]:.3g} deg C, {p[BALANCED]:.3g} bar.",
    ]


if __name__ == "__main__":
    main(run)
