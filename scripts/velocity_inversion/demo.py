"""The demo of velocity_inversion: gathers and sections, two trainings side by side, evaluation, tale."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from common.cli import main, option, parse
from common.demo import Demo, DemoOptions
from velocity_inversion.train import MODEL_FILE

QUESTION = "How fast is the rock, from raw shot gathers?"
NEXT_COMMANDS = (
    "python scripts/velocity_inversion/prep_data.py --data_path my_shots/train --analyze --check_physics 5",
    "python scripts/velocity_inversion/train.py --train_data_path my_shots/train --out results/my_velocity",
    "python scripts/velocity_inversion/infer.py --model_path results/my_velocity "
    "--test_data_path my_shots/new --output_path out/my_velocity --use_tta",
    "python scripts/velocity_inversion/refine.py --prediction_path out/my_velocity "
    "--test_data_path my_shots/new --iterations 40 --out out/my_refined",
)
REFINED = 2  # samples refined
ITERATIONS = 20
FIGURES = (
    ("refined_0_section.png", "Truth, the network's section, and after waveform refinement."),
    ("median.png", "The median of the held-out samples: prediction, error, 90 % half-width."),
    ("best.png", "The best of the held-out samples."),
    ("refined_0_shot.png", "One shot: recorded, simulated through the refined section, rest."),
)
NOTES = (
    "Gathers and refinement share one simulator, which makes refinement easier than field data would.",
    "Both networks had the same CPU time; InversionNet has ten times the weights and needs far more steps.",
)


@dataclass(frozen=True)
class Config:
    """How long to train."""

    train_cpu_s: float = option(40.0, "of each of the two networks", unit="CPU s")
    num_train: int = option(208, "training samples")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, DemoOptions, description=__doc__)
    demo = Demo("velocity_inversion", parsed.run)
    make = ["--preset", "demo", "--num_train", str(parsed.config.num_train), "--out", f"{demo.shown}/data"]
    demo.step("sections and their gathers", "make_data.py", [*make, "--overwrite"], 56)
    training_seconds = train_both(demo, parsed.config.train_cpu_s)
    demo.step("measure on held-out samples", "evaluate.py", evaluation(demo), 56)
    demo.save(
        demo.rows(training_seconds),
        title="velocity_inversion: velocity sections with uncertainty",
        question=QUESTION,
        figures=demo.pictures(
            (f"evaluation/figures/{name}", caption, caption.split(":")[0]) for name, caption in FIGURES
        ),
        commands=NEXT_COMMANDS,
        notes=NOTES,
    )


def train_both(demo: Demo, cpu_s: float) -> float:
    """Train one member and InversionNet at the same time, a thread each; return the seconds.

    In so short a time one member trained twice as long beats the mean of two.
    """
    shared = ["--preset", "demo", "--train_data_path", f"{demo.shown}/data/train"]
    shared += [
        "--val_data_path",
        f"{demo.shown}/data/val",
        "--cache_dir",
        f"{demo.shown}/cache",
        "--threads",
        "1",
    ]
    shared += ["--overwrite", "--no_tensorboard"]
    shared += ["--num_models", "1", "--max_cpu_s", f"{cpu_s:g}"]
    ours = [*shared, "--out", f"{demo.shown}/train"]
    other = [*shared, "--model", "inversionnet", "--out", f"{demo.shown}/inversionnet"]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(demo.step, "train the network", "train.py", ours, 83)
        second = pool.submit(demo.step, "train InversionNet beside it", "train.py", other)
        return max(first.result(), second.result())


def evaluation(demo: Demo) -> list[str]:
    """Return the flags of the evaluation."""
    return [
        *("--model_path", f"{demo.shown}/train/{MODEL_FILE}"),
        *("--baseline_model", f"{demo.shown}/inversionnet/{MODEL_FILE}"),
        *("--test_data_path", f"{demo.shown}/data/test", "--train_data_path", f"{demo.shown}/data/train"),
        *("--refine", str(ITERATIONS), "--refine_samples", str(REFINED), "--out", f"{demo.shown}/evaluation"),
    ]


if __name__ == "__main__":
    main(run)
