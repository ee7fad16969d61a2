"""The demo of fault_seg: make cubes, train for about a minute, evaluate beside coherence, infer, tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.demo import ROOT, Demo, DemoOptions
from common.report import Picture
from fault_seg.infer import SHIPPED_WEIGHTS

QUESTION = "Where are the faults and horizons in this survey?"
MODEL = "train/last.ckpt"
DRAWN = "evaluation/figures"
NEXT_COMMANDS = (
    "python scripts/fault_seg/infer.py --input survey.sgy --output out/survey",
    "python scripts/fault_seg/make_data.py --preset standard --out data/fault",
    "python scripts/fault_seg/train.py --preset standard --data data/fault --out results/fault",
    "python scripts/fault_seg/evaluate.py --model results/fault/best.ckpt --data data/fault",
)


@dataclass(frozen=True)
class Config:
    """What to run it on besides the generator's cubes."""

    real_data: Path = option(Path("../shared/data"), "folder with fault/f3.sgy, shown when it exists")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, DemoOptions, description=__doc__)
    demo = Demo("fault_seg", parsed.run)
    training_seconds = train_and_measure(demo)
    infer_held_out(demo)
    pictures = [
        *demo.pictures(
            (
                (f"{DRAWN}/gallery_timeslice.png", "Time slice of a held-out cube.", "time slice"),
                (f"{DRAWN}/gallery_inline.png", "Inline of the same cube.", "inline section"),
                (f"{DRAWN}/pr_curve.png", "All held-out voxels.", "precision over recall"),
            )
        ),
        *inlines(demo, "held_out", "All volumes of a held-out cube.", "five volumes"),
        *infer_survey(parsed.config.real_data / "fault/f3.sgy", demo),
    ]
    demo.save(
        demo.rows(training_seconds),
        title="fault_seg: faults, angles, geological time",
        question=QUESTION,
        figures=pictures,
        commands=NEXT_COMMANDS,
    )


def train_and_measure(demo: Demo) -> float:
    """Make cubes, train, evaluate; return the seconds of the training."""
    data = ["--data", f"{demo.shown}/data"]
    make = ["--preset", "demo", "--out", f"{demo.shown}/data", "--overwrite"]
    demo.step("cubes with known faults", "make_data.py", make)
    train = ["--preset", "demo", *data, "--out", f"{demo.shown}/train", "--eval_every", "150", "--overwrite"]
    seconds = demo.step("train from scratch", "train.py", train)
    evaluate = ["--model", f"{demo.shown}/{MODEL}", *data, "--out", f"{demo.shown}/evaluation"]
    demo.step("measure on held-out cubes", "evaluate.py", evaluate)
    return seconds


def infer_held_out(demo: Demo) -> None:
    """Infer the first held-out cube as a user would."""
    shape = json.loads((demo.out / "data/dataset.json").read_text(encoding="utf-8"))["shape"]
    flags = [
        "--input",
        f"{demo.shown}/data/data_valid/0.bin",
        "--model",
        f"{demo.shown}/{MODEL}",
        "--format",
        "npy",
    ]
    for name, size in zip(("--n1", "--n2", "--n3"), shape, strict=True):
        flags += [name, str(size)]
    flags += ["--output", f"{demo.shown}/held_out/cube", "--overwrite"]
    demo.step("a held-out cube", "infer.py", flags)


def infer_survey(survey: Path, demo: Demo) -> list[Picture]:
    """Infer a real survey where there is one, with the shipped weights if they are there; return pictures."""
    if not (ROOT / survey).is_file():
        return []
    shipped = SHIPPED_WEIGHTS.is_file()
    flags = ["--input", str(survey), "--output", f"{demo.shown}/f3/f3", "--overwrite"]
    flags += [] if shipped else ["--model", f"{demo.shown}/{MODEL}"]
    demo.step("a real survey: F3, offshore Netherlands", "infer.py", flags)
    weights = "the shipped weights" if shipped else "the network trained above, too short for field data"
    return inlines(demo, "f3", f"Crop of the F3 survey; {weights}.", "field data")


def inlines(demo: Demo, step: str, caption: str, alt: str) -> list[Picture]:
    """Return the inline sections that inference drew into the folder of a step."""
    paths = sorted((demo.out / step).glob("figures/inline_*.png"))
    return demo.pictures((f"{step}/figures/{path.name}", caption, alt) for path in paths)


if __name__ == "__main__":
    main(run)
