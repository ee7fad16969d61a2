"""The demo of fault_seg: make cubes, train for about a minute, evaluate beside coherence, infer, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import demo, report
from common.cli import main, option, parse
from common.demo import Step
from common.report import Picture, Section
from fault_seg.infer import SHIPPED_WEIGHTS

QUESTION = "Where are the faults and horizons in this survey?"
MODEL = "train/last.ckpt"
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


@dataclass(frozen=True)
class Options:
    """Where its files go."""

    out: Path = option(Path("results/demo/fault_seg"), "folder of the demo")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, Options, description=__doc__)
    out = parsed.run.out.resolve()
    shown = str(out.relative_to(demo.ROOT) if out.is_relative_to(demo.ROOT) else out)
    started = time.perf_counter()
    training_seconds = train_and_measure(shown)
    infer_held_out(out, shown)
    pictures = [
        picture("evaluation", "gallery_timeslice.png", "Time slice of a held-out cube.", "time slice"),
        picture("evaluation", "gallery_inline.png", "Inline of the same cube.", "inline section"),
        picture("evaluation", "pr_curve.png", "All held-out voxels.", "precision over recall"),
        *inlines(out, "held_out", "All volumes of a held-out cube.", "five volumes"),
        *infer_survey(parsed.config.real_data / "fault/f3.sgy", out, shown),
    ]
    rows = [
        replace(row, seconds=round(training_seconds, 1), command="make demo MODEL=fault_seg")
        for row in report.load_rows(out / "evaluation/results.json")
    ]
    section = Section(
        package="fault_seg",
        title="fault_seg: faults, angles, geological time",
        question=QUESTION,
        figures=pictures,
        rows=rows,
        seconds=round(time.perf_counter() - started, 1),
        parameters=rows[0].parameters,
        commands=NEXT_COMMANDS,
    )
    demo.save_section(out / "section.json", section)


def train_and_measure(shown: str) -> float:
    """Make cubes, train, evaluate; return the seconds of the training. `shown` is the demo's folder."""
    data = ["--data", f"{shown}/data"]
    make = ["--preset", "demo", "--out", f"{shown}/data", "--overwrite"]
    demo.run_step(Step("cubes with known faults", "fault_seg/make_data.py", make))
    train = ["--preset", "demo", *data, "--out", f"{shown}/train", "--eval_every", "150", "--overwrite"]
    seconds = demo.run_step(Step("train from scratch", "fault_seg/train.py", train))
    evaluate = ["--model", f"{shown}/{MODEL}", *data, "--out", f"{shown}/evaluation"]
    demo.run_step(Step("measure on held-out cubes", "fault_seg/evaluate.py", evaluate))
    return seconds


def infer_held_out(out: Path, shown: str) -> None:
    """Infer the first held-out cube as a user would."""
    shape = json.loads((out / "data/dataset.json").read_text(encoding="utf-8"))["shape"]
    flags = ["--input", f"{shown}/data/data_valid/0.bin", "--model", f"{shown}/{MODEL}", "--format", "npy"]
    for name, size in zip(("--n1", "--n2", "--n3"), shape, strict=True):
        flags += [name, str(size)]
    flags += ["--output", f"{shown}/held_out/cube", "--overwrite"]
    demo.run_step(Step("a held-out cube", "fault_seg/infer.py", flags))


def infer_survey(survey: Path, out: Path, shown: str) -> list[Picture]:
    """Infer a real survey where there is one, with the shipped weights if they are there; return pictures."""
    if not (demo.ROOT / survey).is_file():
        return []
    shipped = SHIPPED_WEIGHTS.is_file()
    flags = ["--input", str(survey), "--output", f"{shown}/f3/f3", "--overwrite"]
    flags += [] if shipped else ["--model", f"{shown}/{MODEL}"]
    demo.run_step(Step("a real survey: F3, offshore Netherlands", "fault_seg/infer.py", flags))
    weights = "the shipped weights" if shipped else "the network trained above, too short for field data"
    return inlines(out, "f3", f"Crop of the F3 survey; {weights}.", "field data")


def inlines(out: Path, step: str, caption: str, alt: str) -> list[Picture]:
    """Return the inline sections that inference drew into the folder of a step."""
    return [
        picture(step, path.name, caption, alt) for path in sorted((out / step).glob("figures/inline_*.png"))
    ]


def picture(step: str, name: str, caption: str, alt: str) -> Picture:
    """Return a figure of a step, its path as seen from the page above this demo's folder."""
    return Picture(f"fault_seg/{step}/figures/{name}", caption, alt)


if __name__ == "__main__":
    main(run)
