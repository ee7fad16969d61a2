"""The demo of voxel_ode: simulate reservoirs, train for 100 s, forecast held-out ones, compare, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import demo, report
from common.cli import main, option, parse
from common.demo import Step
from common.report import Picture, Section

QUESTION = "How will this geothermal reservoir evolve?"
CHECKPOINT = "train/checkpoints/best.pt"
NEXT_COMMANDS = (
    "python scripts/voxel_ode/check_h5.py FOLDER_OF_YOUR_SIMULATIONS",
    "python scripts/voxel_ode/make_data.py --preset study --out data/voxel_ode/raw --workers 8",
    "python scripts/voxel_ode/prep_data.py --input_root data/voxel_ode/raw --out_root ./data/prepped",
    "torchrun --standalone --nproc_per_node=1 scripts/voxel_ode/train_ddp.py --preset study "
    "--prepped_root ./data/prepped",
)
FIGURES = (
    ("slices_T_layer.png", "Temperature in the layer of the wells, held-out reservoir.", "temperature maps"),
    ("slices_T_section.png", "Temperature in the middle section of the same.", "temperature sections"),
    ("error_by_year.png", "Error of the forecast year by year, all methods.", "errors over the years"),
    ("wells.png", "Temperature at each well.", "temperatures at the wells"),
    ("slices_P_layer.png", "Pressure in the layer of the wells.", "pressure maps"),
    ("scalars.png", "Field rates.", "field rates over the years"),
)


@dataclass(frozen=True)
class Config:
    """How much of the machine to use."""

    workers: int = option(0, "processes that simulate; 0 = cores")
    size: str = option("demo", "preset of data and training", choices=("demo", "smoke"))


@dataclass(frozen=True)
class Options:
    """Where its files go."""

    out: Path = option(Path("results/demo/voxel_ode"), "folder of the demo")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, Options, description=__doc__)
    out = parsed.run.out.resolve()
    shown = str(out.relative_to(demo.ROOT) if out.is_relative_to(demo.ROOT) else out)
    started = time.perf_counter()
    make_and_prepare(parsed.config, shown)
    training_seconds = train(parsed.config, shown)
    forecast(out, shown)
    rows = [
        replace(row, seconds=round(training_seconds, 1), command="make demo MODEL=voxel_ode")
        for row in report.load_rows(out / "evaluation/results.json")
    ]
    measured = json.loads((out / "evaluation/evaluate.json").read_text(encoding="utf-8"))
    section = Section(
        package="voxel_ode",
        title="voxel_ode: a geothermal reservoir, year after year",
        question=QUESTION,
        figures=[
            Picture(f"voxel_ode/evaluation/figures/{name}", caption, alt)
            for name, caption, alt in FIGURES
            if (out / "evaluation/figures" / name).is_file()
        ],
        rows=rows,
        seconds=round(time.perf_counter() - started, 1),
        parameters=measured["num_weights"],
        commands=NEXT_COMMANDS,
        notes=verdict(measured),
    )
    demo.save_section(out / "section.json", section)


def make_and_prepare(config: Config, shown: str) -> None:
    """Simulate reservoirs and prepare them; `shown` is the demo's folder."""
    made = ["--preset", config.size, "--out", f"{shown}/raw", "--workers", str(config.workers)]
    demo.run_step(Step("reservoirs from the simulator", "voxel_ode/make_data.py", [*made, "--overwrite"]))
    patch = ["32", "24", "24"] if config.size == "demo" else ["12", "10", "10"]
    held_out = ["--num_test", "2", "--num_val", "1"] if config.size == "demo" else ["--num_test", "1"]
    held_out += [] if config.size == "demo" else ["--num_val", "1"]
    prepared = ["--input_root", f"{shown}/raw", "--out_root", f"{shown}/prepped", "--patch_size", *patch]
    prep = Step("prepare", "voxel_ode/prep_data.py", [*prepared, *held_out, "--overwrite"])
    demo.run_step(prep)


def train(config: Config, shown: str) -> float:
    """Train from scratch; return the seconds."""
    flags = ["--preset", config.size, "--prepped_root", f"{shown}/prepped", "--out", f"{shown}/train"]
    step = Step("train from scratch", "voxel_ode/train.py", [*flags, "--overwrite"])
    return demo.run_step(step)


def forecast(out: Path, shown: str) -> None:
    """Measure on held-out reservoirs, then forecast one as a user would."""
    checkpoint = ["--ckpt_path", f"{shown}/{CHECKPOINT}"]
    flags = ["--prepped_root", f"{shown}/prepped", *checkpoint, "--out", f"{shown}/evaluation"]
    demo.run_step(Step("measure on held-out reservoirs", "voxel_ode/evaluate.py", [*flags, "--overwrite"]))
    first = sorted((out / "prepped/test").glob("*.prepped.h5"))[0].relative_to(out)
    flags = ["--prepped_sim_path", f"{shown}/{first}", *checkpoint]
    flags += ["--save_path", f"{shown}/forecast/predictions.h5", "--csv", f"{shown}/forecast/wells.csv"]
    demo.run_step(Step("forecast one of them", "voxel_ode/rollout.py", [*flags, "--overwrite"]))


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
    ]


if __name__ == "__main__":
    main(run)
