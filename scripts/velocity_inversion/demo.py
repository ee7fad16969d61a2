"""The demo of velocity_inversion: gathers and sections, two trainings side by side, evaluation, tale."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from common import demo, report
from common.cli import main, option, parse
from common.demo import Step
from common.report import Picture, Section
from velocity_inversion.config import demo as demo_training
from velocity_inversion.train import MODEL_FILE

QUESTION = "How fast is the rock, from raw shot gathers?"
NEXT_COMMANDS = (
    "python scripts/velocity_inversion/make_data.py --num_train 2000 --out data/vel",
    "python scripts/velocity_inversion/train.py --train_data_path data/vel/train "
    "--val_data_path data/vel/val --out results/velocity",
    "python scripts/velocity_inversion/infer.py --test_data_path data/vel/test --output_path out/vel "
    "--use_tta --refine 40",
    "python scripts/velocity_inversion/prep_data.py --data_path MY_GATHERS --analyze --check_physics 5",
)
REFINED = 1  # samples refined
ITERATIONS = 30
NOTES = (
    "Gathers and refinement share one simulator, which makes refinement easier than field data would.",
    "Both networks had the same CPU time; InversionNet has ten times the weights and needs far more steps.",
)


@dataclass(frozen=True)
class Config:
    """How long to train."""

    train_cpu_s: float = option(demo_training().max_cpu_s, "of each of the two members", unit="CPU s")
    num_train: int = option(240, "training samples")


@dataclass(frozen=True)
class Options:
    """Where its files go."""

    out: Path = option(Path("results/demo/velocity_inversion"), "folder of the demo")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, Options, description=__doc__)
    out = parsed.run.out.resolve()
    shown = str(out.relative_to(demo.ROOT) if out.is_relative_to(demo.ROOT) else out)
    started = time.perf_counter()
    make = ["--preset", "demo", "--num_train", str(parsed.config.num_train), "--out", f"{shown}/data"]
    demo.run_step(
        Step("sections and their gathers", "velocity_inversion/make_data.py", [*make, "--overwrite"])
    )
    training_seconds = train_both(shown, parsed.config.train_cpu_s)
    demo.run_step(Step("measure on held-out samples", "velocity_inversion/evaluate.py", evaluation(shown)))
    rows = [
        replace(row, seconds=round(training_seconds, 1), command="make demo MODEL=velocity_inversion")
        for row in report.load_rows(out / "evaluation/results.json")
    ]
    section = Section(
        package="velocity_inversion",
        title="velocity_inversion: velocity sections with uncertainty",
        question=QUESTION,
        figures=[
            picture("refined_0_section.png", "Truth, the network's section, and after waveform refinement."),
            picture("median.png", "The median of the held-out samples: prediction, error, 90 % half-width."),
            picture("best.png", "The best of the held-out samples."),
            picture("refined_0_shot.png", "One shot: recorded, simulated through the refined section, rest."),
        ],
        rows=rows,
        seconds=round(time.perf_counter() - started, 1),
        parameters=rows[0].parameters,
        commands=NEXT_COMMANDS,
        notes=NOTES,
    )
    demo.save_section(out / "section.json", section)


def train_both(shown: str, cpu_s: float) -> float:
    """Train two members and InversionNet at the same time, a thread each; return the seconds."""
    shared = ["--preset", "demo", "--train_data_path", f"{shown}/data/train"]
    shared += ["--val_data_path", f"{shown}/data/val", "--cache_dir", f"{shown}/cache", "--threads", "1"]
    shared += ["--overwrite", "--no_tensorboard"]
    script = "velocity_inversion/train.py"
    ours = [*shared, "--out", f"{shown}/train", "--max_cpu_s", f"{cpu_s:g}"]
    other = [*shared, "--model", "inversionnet", "--out", f"{shown}/inversionnet"]
    other += ["--max_cpu_s", f"{2 * cpu_s:g}"]  # as much as both members
    steps = Step("train two members", script, ours), Step("train InversionNet beside them", script, other)
    with ThreadPoolExecutor(2) as pool:
        return max(pool.map(demo.run_step, steps))


def evaluation(shown: str) -> list[str]:
    """Return the flags of the evaluation."""
    return [
        *("--model_path", f"{shown}/train/{MODEL_FILE}"),
        *("--baseline_model", f"{shown}/inversionnet/{MODEL_FILE}"),
        *("--test_data_path", f"{shown}/data/test", "--train_data_path", f"{shown}/data/train"),
        *("--refine", str(ITERATIONS), "--refine_samples", str(REFINED), "--out", f"{shown}/evaluation"),
    ]


def picture(name: str, caption: str) -> Picture:
    """Return a figure of the evaluation, its path as seen from the page above this demo's folder."""
    return Picture(f"velocity_inversion/evaluation/figures/{name}", caption, caption.split(":")[0])


if __name__ == "__main__":
    main(run)
