"""The demo of fault_seg: cubes, a training of 90 s and the shipped weights beside coherence, inference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.cli import main, option, parse
from common.demo import ROOT, Demo, DemoOptions
from common.report import Picture, Row, load_rows
from fault_seg.infer import SHIPPED_WEIGHTS

QUESTION = "Where are the faults and horizons in this survey?"
MODEL = "train/last.ckpt"
DRAWN = "evaluation/figures"
SEED = 5  # of the cubes: none of this seed were in the training of the shipped weights
SHIPPED = (  # measures that the shipped weights are shown by
    "fault average precision",
    "fault Tol-IoU@2, tuned threshold",
    "fault normal, median error over all fault voxels",
    "geological time MAE",
)
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
    shipped = measure_shipped(demo)
    infer_held_out(demo)
    survey = infer_survey(parsed.config.real_data / "fault/f3.sgy", demo)
    demo.save(
        [*demo.rows(training_seconds), *shipped],
        title="fault_seg: faults, angles, geological time",
        question=QUESTION,
        figures=[*drawn(demo, f"trained here from scratch in {training_seconds:.0f} s"), *survey],
        commands=NEXT_COMMANDS,
        notes=told(demo, training_seconds, shipped),
    )


def train_and_measure(demo: Demo) -> float:
    """Make cubes, train, evaluate; return the seconds of the training."""
    data = ["--data", f"{demo.shown}/data"]
    make = ["--preset", "demo", "--seed", str(SEED), "--out", f"{demo.shown}/data", "--overwrite"]
    demo.step("cubes with known faults", "make_data.py", make, 12)
    train = ["--preset", "demo", *data, "--out", f"{demo.shown}/train", "--eval_every", "150", "--overwrite"]
    seconds = demo.step("train from scratch", "train.py", train, 95)
    evaluate = ["--model", f"{demo.shown}/{MODEL}", *data, "--out", f"{demo.shown}/evaluation"]
    demo.step("measure on held-out cubes", "evaluate.py", evaluate, 11)
    return seconds


def measure_shipped(demo: Demo) -> list[Row]:
    """Score the shipped weights on the same cubes, where there are any; return some measures as their own."""
    if not SHIPPED_WEIGHTS.is_file():
        return []
    flags = ["--data", f"{demo.shown}/data", "--out", f"{demo.shown}/shipped"]
    demo.step("the shipped weights on the same cubes", "evaluate.py", flags, 10)
    found = {row.measure: row for row in demo.rows(None, "shipped/results.json")}
    return [replace(found[name], measure=f"{name}, shipped weights") for name in SHIPPED if name in found]


def told(demo: Demo, training_seconds: float, shipped: Sequence[Row]) -> list[str]:
    """Return what the rows compare, in words."""
    here = f"Rows without a further name: trained here from scratch in {training_seconds:.0f} s."
    if not shipped:
        return [here]
    others = [row for row in load_rows(demo.out / "shipped/results.json") if row.unit == "dB"]
    image = "".join(
        f" Its denoised image has a PSNR of {row.ours:.1f} dB, the input {row.best_baseline:.1f} dB."
        for row in others
    )
    return [
        here,
        "Rows with shipped weights: the network that infer.py takes without --model, trained for hours on "
        f"other cubes of the generator, scored on the same held-out cubes.{image}",
    ]


def drawn(demo: Demo, how: str) -> list[Picture]:
    """Return the pictures of the network trained here and of the shipped weights."""
    return [
        *demo.pictures(
            (
                (f"{DRAWN}/gallery_timeslice.png", f"Time slice of a held-out cube; {how}.", "time slice"),
                (f"{DRAWN}/gallery_inline.png", "Inline of the same cube.", "inline section"),
                (
                    f"{DRAWN}/gallery.png",
                    "Worst, median and best held-out cube, and how far the probability is from the truth; "
                    f"{how}.",
                    "three cubes with errors",
                ),
                (f"{DRAWN}/pr_curve.png", f"All held-out voxels; {how}.", "precision over recall"),
            )
        ),
        *inlines(demo, "held_out", f"All volumes of a held-out cube; {how}.", "five volumes"),
        *demo.pictures(
            [("shipped/figures/gallery.png", "The same held-out cubes, shipped weights.", "shipped weights")]
        ),
    ]


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
    demo.step("a held-out cube", "infer.py", flags, 7)


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
