"""The demo of simulgen_vae: simulate, train, evaluate beside POD + regression, invert, export, tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import main, option, parse
from common.demo import Demo, DemoOptions, StepFailedError
from common.report import Row, load_rows, save_rows

QUESTION = "What would my slow simulation say for new parameters?"
NEXT_COMMANDS = (
    "python scripts/simulgen_vae/prep_data.py --data my_runs/ --param_dir my_runs.csv --path data/my.h5",
    "python scripts/simulgen_vae/train.py --data data/my.h5 --preset small_data --out results/my",
    "python scripts/simulgen_vae/evaluate.py --model results/my --out results/my_evaluation",
    "python scripts/simulgen_vae/infer.py --model results/my --params new.csv --out results/my_fields",
    "python scripts/simulgen_vae/export.py --model results/my --to vtk --out results/my_vtk",
)
NUMBERS = ("log10_pe", "tau")  # what the picture of a layer does not show
FIGURES = (
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


@dataclass(frozen=True)
class Config:
    """How much to simulate."""

    num: int = option(128, "simulations of the wave")
    num_layers: int = option(64, "simulations of heat through a layer")
    part: str = option("all", "heat alone, as the whole demo starts it", choices=("all", "heat"))


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json; heat goes on beside the wave, each on one core."""
    parsed = parse(argv, Config, DemoOptions, description=__doc__)
    config, demo = parsed.config, Demo("simulgen_vae", parsed.run)
    heat_rows = demo.out / "heat_rows.json"
    if config.part == "heat":
        demo.clock = None  # the wave's steps beside it tell the time
        save_rows(heat_rows, layers(demo, config.num_layers))
        return
    demo.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--part", "heat", "--num_layers", str(config.num_layers)]
    with beside([*command, "--out", str(demo.out)], demo.out / "heat.txt"):
        rows = wave(demo, config.num)
    rows += load_rows(heat_rows)
    demo.save(
        rows,
        title="simulgen_vae: whole simulated fields in milliseconds",
        question=QUESTION,
        figures=demo.pictures(FIGURES),
        commands=NEXT_COMMANDS,
        notes=told(demo),
    )


def told(demo: Demo) -> list[str]:
    """Return which predictor won each contest and ships, and what its parameters count."""
    notes = []
    for name in ("wave", "advdiff"):
        found = json.loads((demo.out / f"{name}_evaluation/evaluation.json").read_text(encoding="utf-8"))
        notes.append(f"{name}: the contest on held-out runs chose {found['ships']}; {found['line']}.")
    return [
        *notes,
        "Parameters are the weights of the networks that predict; of a Gaussian process (gp2) alone, the "
        "numbers of its covariance and its coefficients.",
    ]


@contextmanager
def beside(command: Sequence[str], said: Path) -> Iterator[None]:
    """Run a command while the body runs, then tell what it said; it ends with the body when that fails.

    Raises:
        StepFailedError: the command ended with an error.
    """
    with said.open("w", encoding="utf-8") as file:
        other = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield
        code = other.wait()
    finally:
        if other.poll() is None:
            os.killpg(other.pid, signal.SIGTERM)  # its steps are processes of their own
            other.wait()
        print(said.read_text(encoding="utf-8", errors="replace"), flush=True)
    if code:
        raise StepFailedError(f"heat through a layer: ended with exit code {code}")


def wave(demo: Demo, num: int) -> list[Row]:
    """An acoustic wave past an anomaly, from six numbers; then the anomaly from the wave."""
    data = f"{demo.shown}/wave.h5"
    make = ["--kind", "wave", "--num", str(num), "--path", data, "--no_figures", "--overwrite"]
    demo.step("waves past an anomaly", "make_data.py", make, 4)
    rows = train_and_measure("wave", demo, ["--data", data, "--preset", "demo_wave"])
    invert = [
        "--model",
        f"{demo.shown}/wave",
        "--target_row",
        "0",
        "--starts",
        "4",
        "--steps",
        "100",
        "--overwrite",
    ]
    what = "which anomaly made this wave?"
    demo.step(what, "invert.py", [*invert, "--out", f"{demo.shown}/wave_inverted"], 7)
    return rows


def layers(demo: Demo, num: int) -> list[Row]:
    """Heat through a layer, from its picture and two numbers; then one graph for other programs."""
    data = f"{demo.shown}/advdiff.h5"
    make = ["--kind", "advdiff", "--num", str(num), "--frames", "32", "--path", data]
    make += ["--write_params", *NUMBERS, "--no_figures", "--overwrite"]
    demo.step("hot fluid through a layer", "make_data.py", make)
    rows = train_and_measure("advdiff", demo, ["--data", data, "--preset", "demo_advdiff"])
    export = ["--model", f"{demo.shown}/advdiff", "--to", "torch_export", "--overwrite"]
    export += ["--out", f"{demo.shown}/advdiff_export"]
    demo.step("one graph: inputs to field", "export.py", export)
    return rows


def train_and_measure(name: str, demo: Demo, flags: list[str]) -> list[Row]:
    """Train, evaluate, and return the first two measured rows under the name of the data."""
    run_folder = ["--out", f"{demo.shown}/{name}"]
    train = [*flags, *run_folder, "--overwrite", "--no_tensorboard", "--threads", "1"]
    what = "train all predictors, let the best ship"
    seconds = demo.step(what, "train.py", train, 75)
    evaluate = ["--model", f"{demo.shown}/{name}", "--out", f"{demo.shown}/{name}_evaluation"]
    evaluate += ["--baselines", "rbf,krr,gpr_shared", "--threads", "1"]
    demo.step("measure on held-out runs", "evaluate.py", evaluate, 38)
    found = demo.rows(seconds, f"{name}_evaluation/results.json")
    return [replace(row, measure=f"{name}: {row.measure}") for row in found[:2]]


if __name__ == "__main__":
    main(run)
