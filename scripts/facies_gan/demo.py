"""The demo of facies_gan: one image of channels, train for a minute, realisations through wells, measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import demo, report
from common.cli import main, option, parse
from common.demo import Step
from common.noise import numpy_stream
from common.report import Picture, Section
from facies_gan.images import read_rgb
from facies_gan.palette import read_palette
from facies_gan.well_files import write_hard_data
from facies_gan.wells import WellSet

QUESTION = "What could the geology between my wells look like?"
NUM_POINTS, COLUMNS = 9, (32, 96)
NEXT_COMMANDS = (
    "python scripts/facies_gan/prep_data.py --training_image my_ti.gslib --check",
    "python scripts/facies_gan/train.py --training_image my_ti.gslib --preset quick --out results/my",
    "python scripts/facies_gan/generate.py --model_path results/my --hard_data wells.dat --how_many 100 "
    "--formats png npy gslib grdecl --out results/my_real",
    "python scripts/facies_gan/evaluate.py --model_path results/my --hard_data wells.dat "
    "--out results/my_eval",
)


@dataclass(frozen=True)
class Config:
    """What to run it on besides the generator's image."""

    real_data: Path = option(Path("../shared/data"), "folder with facies/strebelle_250.sgems, used if there")


@dataclass(frozen=True)
class Options:
    """Where its files go."""

    out: Path = option(Path("results/demo/facies_gan"), "folder of the demo")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, Options, description=__doc__)
    out = parsed.run.out.resolve()
    shown = str(out.relative_to(demo.ROOT) if out.is_relative_to(demo.ROOT) else out)
    started = time.perf_counter()
    training_seconds = train_on_channels(out, shown)
    measure(shown)
    pictures = [
        picture(
            "evaluation/figures/realisations.png",
            "The training image, realisations through nine points and two wells, how probable sand is, and "
            "what the data leave open: nothing at the data, more and more away from them.",
            "realisations of channels",
        ),
        picture(
            "evaluation/figures/blending.png",
            "Wells drawn from the training image: ours continues bodies through them, pasting leaves seams.",
            "how wells blend in",
        ),
        picture(
            "evaluation/figures/scores.png",
            "Errors over those of one half of the training image against its other half.",
            "errors of the methods",
        ),
        *real_image(parsed.config.real_data / "facies", shown),
    ]
    rows = [
        replace(row, seconds=round(training_seconds, 1), command="make demo MODEL=facies_gan")
        for row in report.load_rows(out / "evaluation/results.json")
    ]
    section = Section(
        package="facies_gan",
        title="facies_gan: facies between wells",
        question=QUESTION,
        figures=pictures,
        rows=rows,
        seconds=round(time.perf_counter() - started, 1),
        parameters=rows[0].parameters,
        commands=NEXT_COMMANDS,
    )
    demo.save_section(out / "section.json", section)


def train_on_channels(out: Path, shown: str) -> float:
    """Make a map of channels and data of it, train; return the seconds of the training."""
    size = ["--height", "128", "--width", "128", "--num_sections", "1", "--wells_per_section", "0"]
    make = ["--kind", "channels", *size, "--out", f"{shown}/data", "--overwrite"]
    demo.run_step(Step("a map of channels", "facies_gan/make_data.py", make))
    write_wells(out / "data")
    train = ["--training_image", f"{shown}/data/facies/channels_000.png", "--preset", "demo"]
    train += ["--num_iter", "80", "--out", f"{shown}/train", "--cache_dir", f"{shown}/cache", "--overwrite"]
    return demo.run_step(Step("train from scratch", "facies_gan/train.py", train))


def write_wells(data: Path) -> None:
    """Write nine random points and two vertical wells of the map as hard data."""
    image = data / "facies/channels_000.png"
    palette = read_palette(data / "palette.json")
    labels = palette.to_labels(read_rgb(image)[0], image)
    cells = numpy_stream(0, "wells of the demo").permutation(labels.size)[:NUM_POINTS]
    rows, cols = np.divmod(np.sort(cells), labels.shape[1])
    points = WellSet.from_cells(rows, cols, labels[rows, cols], np.arange(len(rows)))
    wells = WellSet.from_columns(labels, COLUMNS).merged(points)
    write_hard_data(data / "hard_data.csv", wells, labels.shape[0], palette)


def measure(shown: str) -> None:
    """Write realisations as a user would, then measure them beside the baselines."""
    model = [
        "--model_path",
        f"{shown}/train",
        "--hard_data",
        f"{shown}/data/hard_data.csv",
        "--how_many",
        "16",
    ]
    flags = [*model, "--comparison_plots", "--out", f"{shown}/realisations", "--overwrite"]
    demo.run_step(Step("realisations through the wells", "facies_gan/generate.py", flags))
    flags = [*model, "--blending_count", "4", "--out", f"{shown}/evaluation", "--overwrite"]
    demo.run_step(Step("measure beside the baselines", "facies_gan/evaluate.py", flags))


def real_image(folder: Path, shown: str) -> list[Picture]:
    """Train half a minute on Strebelle's channels where they are, honour nine data; return pictures."""
    image, wells = folder / "strebelle_250.sgems", folder / "strebelle_wells9.dat"
    if not ((demo.ROOT / image).is_file() and (demo.ROOT / wells).is_file()):
        return []
    train = ["--training_image", str(image), "--preset", "demo", "--num_iter", "30"]
    train += ["--out", f"{shown}/strebelle_train", "--cache_dir", f"{shown}/cache", "--overwrite"]
    demo.run_step(Step("a known image: Strebelle's channels", "facies_gan/train.py", train))
    flags = ["--model_path", f"{shown}/strebelle_train", "--hard_data", str(wells), "--grid_from", str(image)]
    flags += ["--how_many", "7", "--comparison_plots", "--out", f"{shown}/strebelle", "--overwrite"]
    demo.run_step(Step("through nine data", "facies_gan/generate.py", flags))
    caption = "Strebelle's channels after half a minute of training, too short for continuous channels."
    return [picture("strebelle/comparison.png", caption, "realisations of Strebelle's channels")]


def picture(name: str, caption: str, alt: str) -> Picture:
    """Return a figure, its path as seen from the page above this demo's folder."""
    return Picture(f"facies_gan/{name}", caption, alt)


if __name__ == "__main__":
    main(run)
