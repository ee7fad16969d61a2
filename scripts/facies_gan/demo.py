"""The demo of facies_gan: one image of channels, train for a minute, realisations through wells, measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cli import main, option, parse
from common.demo import ROOT, Demo, DemoOptions
from common.noise import numpy_stream
from common.report import Picture
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

FIGURES = (
    (
        "evaluation/figures/realisations.png",
        "The training image, realisations through nine points and two wells, how probable sand is, and "
        "what the data leave open: nothing at the data, more and more away from them.",
        "realisations of channels",
    ),
    (
        "evaluation/figures/blending.png",
        "Wells drawn from the training image: ours continues bodies through them, pasting leaves seams.",
        "how wells blend in",
    ),
    (
        "evaluation/figures/scores.png",
        "Errors over those of one half of the training image against its other half.",
        "errors of the methods",
    ),
)


@dataclass(frozen=True)
class Config:
    """What to run it on besides the generator's image."""

    real_data: Path = option(Path("../shared/data"), "folder with facies/strebelle_250.sgems, used if there")


def run(argv: Sequence[str]) -> None:
    """Run all steps and write section.json."""
    parsed = parse(argv, Config, DemoOptions, description=__doc__)
    demo = Demo("facies_gan", parsed.run)
    training_seconds = train_on_channels(demo)
    measure(demo)
    pictures = [*demo.pictures(FIGURES), *real_image(parsed.config.real_data / "facies", demo)]
    demo.save(
        demo.rows(training_seconds),
        title="facies_gan: facies between wells",
        question=QUESTION,
        figures=pictures,
        commands=NEXT_COMMANDS,
    )


def train_on_channels(demo: Demo) -> float:
    """Make a map of channels and data of it, train; return the seconds of the training."""
    size = ["--height", "128", "--width", "128", "--num_sections", "1", "--wells_per_section", "0"]
    make = ["--kind", "channels", *size, "--out", f"{demo.shown}/data", "--overwrite"]
    demo.step("a map of channels", "make_data.py", make, 3)
    write_wells(demo.out / "data")
    train = ["--training_image", f"{demo.shown}/data/facies/channels_000.png", "--preset", "demo"]
    train += [
        "--num_iter",
        "80",
        "--out",
        f"{demo.shown}/train",
        "--cache_dir",
        f"{demo.shown}/cache",
        "--overwrite",
    ]
    return demo.step("train from scratch", "train.py", train, 76)


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


def measure(demo: Demo) -> None:
    """Write realisations as a user would, then measure them beside the baselines."""
    model = [
        "--model_path",
        f"{demo.shown}/train",
        "--hard_data",
        f"{demo.shown}/data/hard_data.csv",
        "--how_many",
        "16",
    ]
    flags = [*model, "--comparison_plots", "--out", f"{demo.shown}/realisations", "--overwrite"]
    demo.step("realisations through the wells", "generate.py", flags, 5)
    flags = [*model, "--blending_count", "4", "--out", f"{demo.shown}/evaluation", "--overwrite"]
    demo.step("measure beside the baselines", "evaluate.py", flags, 11)


def real_image(folder: Path, demo: Demo) -> list[Picture]:
    """Train half a minute on Strebelle's channels where they are, honour nine data; return pictures."""
    image, wells = folder / "strebelle_250.sgems", folder / "strebelle_wells9.dat"
    if not ((ROOT / image).is_file() and (ROOT / wells).is_file()):
        return []
    train = ["--training_image", str(image), "--preset", "demo", "--num_iter", "30"]
    train += ["--out", f"{demo.shown}/strebelle_train", "--cache_dir", f"{demo.shown}/cache", "--overwrite"]
    demo.step("a known image: Strebelle's channels", "train.py", train)
    flags = [
        "--model_path",
        f"{demo.shown}/strebelle_train",
        "--hard_data",
        str(wells),
        "--grid_from",
        str(image),
    ]
    flags += ["--how_many", "7", "--comparison_plots", "--out", f"{demo.shown}/strebelle", "--overwrite"]
    demo.step("through nine data", "generate.py", flags)
    caption = "Strebelle's channels after half a minute of training, too short for continuous channels."
    shown = ("strebelle/comparison.png", caption, "realisations of Strebelle's channels")
    return demo.pictures([shown])


if __name__ == "__main__":
    main(run)
