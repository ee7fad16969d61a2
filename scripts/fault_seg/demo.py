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
    shown = out if not out.is_relative_to(demo.ROOT) else out.relative_to(demo.ROOT)
    data, model, held_out = f"{shown}/data", f"{shown}/train/last.ckpt", f"{shown}/held_out/cube"
    started = time.perf_counter()
    make = ["--preset", "demo", "--out", data, "--overwrite"]
    demo.run_step(Step("cubes with known faults", "fault_seg/make_data.py", make))
    train = ["--preset", "demo", "--data", data, "--out", f"{shown}/train", "--overwrite"]
    seconds = demo.run_step(Step("train from scratch", "fault_seg/train.py", train))
    evaluate = ["--model", model, "--data", data, "--out", f"{shown}/evaluation"]
    demo.run_step(Step("measure on held-out cubes", "fault_seg/evaluate.py", evaluate))
    shape = json.loads((out / "data/dataset.json").read_text(encoding="utf-8"))["shape"]
    sizes = [
        text for n, value in zip(("--n1", "--n2", "--n3"), shape, strict=True) for text in (n, str(value))
    ]
    infer = ["--input", f"{data}/data_valid/0.bin", "--model", model, "--output", held_out, "--format", "npy"]
    demo.run_step(Step("a held-out cube", "fault_seg/infer.py", [*infer, *sizes, "--overwrite"]))
    pictures = [
        Picture(
            "fault_seg/evaluation/figures/gallery_timeslice.png",
            "Time slice of a held-out cube.",
            "time slice",
        ),
        Picture(
            "fault_seg/evaluation/figures/gallery_inline.png", "Inline of the same cube.", "inline section"
        ),
        Picture("fault_seg/evaluation/figures/pr_curve.png", "All held-out voxels.", "precision over recall"),
        *[
            Picture(
                f"fault_seg/held_out/figures/{path.name}", "All volumes of a held-out cube.", "five volumes"
            )
            for path in sorted((out / "held_out/figures").glob("inline_*.png"))
        ],
    ]
    survey = parsed.config.real_data / "fault/f3.sgy"
    if (demo.ROOT / survey).is_file():
        flags = ["--input", str(survey), "--output", f"{shown}/f3/f3", "--overwrite"]
        shipped = SHIPPED_WEIGHTS.is_file()
        flags += [] if shipped else ["--model", model]
        demo.run_step(Step("a real survey: F3, offshore Netherlands", "fault_seg/infer.py", flags))
        weights = "the shipped weights" if shipped else "the network trained above"
        pictures += [
            Picture(f"fault_seg/f3/figures/{path.name}", f"Crop of the F3 survey, {weights}.", "field data")
            for path in sorted((out / "f3/figures").glob("inline_*.png"))
        ]
    rows = [
        replace(row, seconds=round(seconds, 1), command="make demo MODEL=fault_seg")
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
        commands=[
            "python scripts/fault_seg/infer.py --input survey.sgy --model MODEL --output out/survey",
            "python scripts/fault_seg/make_data.py --preset standard --out data/fault",
            "python scripts/fault_seg/train.py --preset standard --data data/fault --out results/fault",
            "python scripts/fault_seg/evaluate.py --model results/fault/best.ckpt --data data/fault",
        ],
    )
    demo.save_section(out / "section.json", section)


if __name__ == "__main__":
    main(run)
