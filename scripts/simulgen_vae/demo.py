"""The demo of simulgen_vae: simulate, train, evaluate beside POD + regression, invert, export, tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import demo, report
from common.cli import main, option, parse
from common.demo import Step
from common.report import Picture, Row, Section

QUESTION = "What would my slow simulation say for new parameters?"
NEXT_COMMANDS = (
    "python scripts/simulgen_vae/prep_data.py --data my_runs/ --param_dir my_runs.csv --path data/my.h5",
    "python scripts/simulgen_vae/train.py --data data/my.h5 --preset small_data --out results/my",
    "python scripts/simulgen_vae/evaluate.py --model results/my --out results/my_evaluation",
    "python scripts/simulgen_vae/infer.py --model results/my --params new.csv --out results/my_fields",
    "python scripts/simulgen_vae/export.py --model results/my --to vtk --out results/my_vtk",
)
NUMBERS = ("log10_pe", "tau")  # what the picture of a layer does not show


@dataclass(frozen=True)
class Config:
    """How much to simulate."""

    num: int = option(128, "simulations of the wave")
    num_layers: int = option(64, "simulations of heat through a layer")


@dataclass(frozen=True)
class Options:
    """Where its files go."""

    out: Path = option(Path("results/demo/simulgen_vae"), "folder of the demo")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, Options, description=__doc__)
    out = parsed.run.out.resolve()
    shown = str(out.relative_to(demo.ROOT) if out.is_relative_to(demo.ROOT) else out)
    started = time.perf_counter()
    rows = wave(shown, out, parsed.config.num)
    rows += layers(shown, out, parsed.config.num_layers)
    section = Section(
        package="simulgen_vae",
        title="simulgen_vae: whole simulated fields in milliseconds",
        question=QUESTION,
        figures=pictures(out),
        rows=rows,
        seconds=round(time.perf_counter() - started, 1),
        parameters=rows[0].parameters,
        commands=NEXT_COMMANDS,
    )
    demo.save_section(out / "section.json", section)


def wave(shown: str, out: Path, num: int) -> list[Row]:
    """An acoustic wave past an anomaly, from six numbers; then the anomaly from the wave."""
    data = f"{shown}/wave.h5"
    make = ["--kind", "wave", "--num", str(num), "--path", data, "--no_figures", "--overwrite"]
    demo.run_step(Step("waves past an anomaly", "simulgen_vae/make_data.py", make))
    rows = train_and_measure("wave", shown, out, ["--data", data, "--preset", "demo_wave"])
    invert = [
        "--model",
        f"{shown}/wave",
        "--target_row",
        "0",
        "--starts",
        "4",
        "--steps",
        "100",
        "--overwrite",
    ]
    what = "which anomaly made this wave?"
    demo.run_step(Step(what, "simulgen_vae/invert.py", [*invert, "--out", f"{shown}/wave_inverted"]))
    return rows


def layers(shown: str, out: Path, num: int) -> list[Row]:
    """Heat through a layer, from its picture and two numbers; then one graph for other programs."""
    data = f"{shown}/advdiff.h5"
    make = ["--kind", "advdiff", "--num", str(num), "--frames", "32", "--path", data]
    make += ["--write_params", *NUMBERS, "--no_figures", "--overwrite"]
    demo.run_step(Step("hot fluid through a layer", "simulgen_vae/make_data.py", make))
    rows = train_and_measure("advdiff", shown, out, ["--data", data, "--preset", "demo_advdiff"])
    export = ["--model", f"{shown}/advdiff", "--to", "torch_export", "--overwrite"]
    export += ["--out", f"{shown}/advdiff_export"]
    demo.run_step(Step("one graph: inputs to field", "simulgen_vae/export.py", export))
    return rows


def train_and_measure(name: str, shown: str, out: Path, flags: list[str]) -> list[Row]:
    """Train, evaluate, and return the first two measured rows under the name of the data."""
    run_folder = ["--out", f"{shown}/{name}"]
    train = [*flags, *run_folder, "--overwrite", "--no_tensorboard", "--threads", "1"]
    what = "train all predictors, let the best ship"
    seconds = demo.run_step(Step(what, "simulgen_vae/train.py", train))
    evaluate = ["--model", f"{shown}/{name}", "--out", f"{shown}/{name}_evaluation"]
    evaluate += ["--baselines", "rbf,krr,gpr_shared", "--threads", "1"]
    demo.run_step(Step("measure on held-out runs", "simulgen_vae/evaluate.py", evaluate))
    found = report.load_rows(out / f"{name}_evaluation/results.json")
    return [
        replace(
            row,
            measure=f"{name}: {row.measure}",
            seconds=round(seconds, 1),
            command="make demo MODEL=simulgen_vae",
        )
        for row in found[:2]
    ]


def pictures(out: Path) -> list[Picture]:
    """Return the figures of the page that are there, paths as seen from the page above this folder."""
    wanted = (
        ("wave_evaluation/figures/strip_median.png", "A held-out wave, the median of all errors.", "strip"),
        ("wave_evaluation/figures/strip_worst.png", "The worst of all held-out waves.", "strip"),
        ("wave_evaluation/figures/baselines.png", "Every method on the same held-out waves.", "bars"),
        ("wave_evaluation/figures/coverage.png", "How many points lie inside the error bars.", "curve"),
        (
            "wave_inverted/figures/field.png",
            "The anomaly that made a wave, from the wave alone.",
            "inversion",
        ),
        ("advdiff_evaluation/figures/strip_median.png", "Heat, from a picture and two numbers.", "strip"),
        ("advdiff_evaluation/figures/baselines.png", "The same table for heat.", "bars"),
    )
    return [
        Picture(f"simulgen_vae/{path}", caption, alt)
        for path, caption, alt in wanted
        if (out / path).is_file()
    ]


if __name__ == "__main__":
    main(run)
