"""The commands of facies_gan as a user types them: they parse and work together; exit codes are true."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import parse
from facies_gan.config import RunOptions, TrainingOptions
from facies_gan.config_data import MakeDataConfig
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import GridHeader, write_grid
from facies_gan.images import write_label_png
from facies_gan.make_data import make_data
from facies_gan.presets import TRAIN_PRESETS
from facies_gan.train import train
from facies_gan.well_files import write_hard_data
from facies_gan.wells import WellSet
from tests.cli.test_scripts import ROOT, call, error_of
from tests.facies_gan.cases_gan import bands, options, palette, run_options

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]
RUN = "results/2025_03_25_08_28_23_facies_gan"
PALETTE = palette()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, with a space in its name, that holds data, an image, hard data and a model."""
    folder = tmp_path_factory.mktemp("my data")
    make_data(
        MakeDataConfig(num_sections=3, height=96, width=120, wells_per_section=3, with_seismic=True),
        run_options(folder / "unused"), folder / "data", 0,
    )  # fmt: skip
    labels = bands((40, 50))
    write_grid(folder / "ti.gslib", PALETTE.to_codes(labels), GridGeometry(), GridHeader())
    write_label_png(folder / "ti.png", labels, PALETTE.colors)
    write_hard_data(folder / "wells.dat", WellSet.from_columns(labels, [4, 30]), 40, PALETTE)
    small = options(input_path=folder / "data", cache_dir=folder / "cache", num_train_pyramids=0, num_iter=1)
    train(small, run_options(folder / RUN))
    single = options(training_image=folder / "ti.gslib", cache_dir=folder / "cache", num_iter=1)
    train(single, run_options(folder / "results" / "my"))
    return folder


def script(name: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a script of facies_gan in a folder."""
    chosen = {"--gpu_device", "--device"} & set(arguments)
    flags = CPU if name in ("train", "generate", "evaluate") and not chosen else []
    return call(ROOT / f"scripts/facies_gan/{name}.py", arguments + flags, folder)


LINES = [
    ("train", "--input_path data --num_iter 40 --batch_size 200 --save_interval 10 --num_train_facies 200 "
     "--gpu_device 0 --min_size 16 --max_size 128 --stop_scale 8 --num_parallel_scales 2"),
    ("train", "--input-path data --output-path results/ --num-train-pyramids 1 --num-iter 1 "
     "--num-parallel-scales 7 --no-tensorboard --use-wells --use-seismic --overwrite"),
    ("train", "--input_path data --num_iter 100 --batch_size 200 --num_train_pyramids 50 --gpu_device 0 "
     "--stop_scale 6 --num_parallel_scales 2 --use-profiler"),
    ("generate", f"--how_many 500 --model_path {RUN} --out_path results/generated --plot_well_mask "
     "--wells 8"),
    ("prep_data", "--training_image ti.gslib --check"),
    ("prep_data", "--input-path data --interpolator nearest --dry-run"),
    ("train", "--training_image ti.gslib --preset quick --max_size 64 --stop_scale 2 --out results/new"),
    ("train", "--training-image ti.png --hard-data wells.dat --preset smoke --out results/new"),
    ("train", "--input_path data --preset demo --augment_flip --timestamp"),
    ("generate", "--model_path results/my --hard_data wells.dat --size 400 600 --how_many 100 --formats png "
     "npy gslib grdecl --out results/my_real"),
    ("generate", "--model-path results/my --how-many 4 --grid-from ti.gslib --tile 32 --halo 8 "
     "--first-index 3"),
    ("generate", f"--model_path {RUN} --well_ids 0 4 --noise_scale 0.5 --vary_from_scale 1 --rec --out r"),
    ("generate", f"--model_path {RUN} --well_sections xz_crossline_001 --comparison_plots --plot_mds "
     "--out r"),
    ("evaluate", "--model_path results/my --hard_data wells.dat --out results/my_eval"),
    ("evaluate", "--model-path results/my --hard-data wells.dat --how-many 20 --baselines tgs snesim "
     "--max-lag 60 --holdout-wells 1 --out-path e"),
    ("evaluate", f"--model_path {RUN} --reference data --first_section 1 --baselines none --no_figures"),
    ("make_data", "--kind sections --num_sections 64 --height 96 --width 120 --seed 7 --out d --dry_run"),
    ("make_data", "--kind channels --height 128 --width 128 --out d --dry_run"),
    ("make_data", "--kind checkerboard --num-sections 2 --wells-per-section 2 --deviated --out d --dry_run"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line"), LINES)
def test_printed_commands(place: Path, tmp_path: Path, name: str, line: str):
    """Each printed command line runs with --dry_run, from the user's folder, and trains or writes nothing."""
    work = Path(shutil.copytree(place, tmp_path / "work"))
    arguments = line.split()
    arguments += [] if name in ("prep_data", "make_data") else ["--dry_run"]
    if name == "train":  # the last one counts: less to compute
        small = "--batch_size 1 --num_workers 1 --num_feature 4 --min_num_feature 4 --generator_steps 1"
        arguments += [*small.split(), "--discriminator_steps", "1", "--num_diversity_samples", "1"]
    before = {p for p in work.rglob("*") if p.is_file()}
    code, said = script(name, arguments, work)
    assert code == 0, said
    new = {p for p in work.rglob("*") if p.is_file() and ".cache" not in p.parts} - before
    assert new == {work / "said.txt"}


def test_from_data_to_report(tmp_path: Path):
    """From make_data to evaluate, resumed and extended: each leaves what the next one needs."""
    small = "--min_size 12 --stop_scale 1 --num_feature 4 --min_num_feature 4 --num_iter 2 --num_layer 2"
    steps = [
        ("make_data", "--num_sections 3 --height 24 --width 30 --wells_per_section 3 --out d --seed 3"),
        ("prep_data", "--input_path d --stop_scale 1"),
        ("train", f"--input_path d --out run --no_tensorboard {small} --coarse_iter_factor 1"),
        ("train", f"--input_path d --out run --no_tensorboard {small} --coarse_iter_factor 2 --resume auto"),
        ("generate", "--model_path run --how_many 2 --wells 8 --plot_well_mask --out r --formats npy gslib"),
        ("generate", "--model_path run --how_many 1 --wells 8 --out r --first_index 2 --formats npy gslib"),
        ("evaluate", "--model_path run --reference d --how_many 2 --baselines tgs --max_lag 5 --out report "
         "--blending_count 1 --no_figures --num_sections 2"),
        ("evaluate", "--realisations r --model_path run --baselines tgs --out given --no_figures"),
    ]  # fmt: skip
    for name, line in steps:
        code, said = script(name, line.split(), tmp_path)
        assert code == 0, said
    stack = np.load(tmp_path / "r/realisations.npy")
    assert (
        stack.shape == (3, 24, 30) and (stack[2] == np.load(tmp_path / "r/realisations/real_00002.npy")).all()
    )
    assert (tmp_path / "r/well_mask.png").is_file() and (tmp_path / "r/index.html").is_file()
    rows = (tmp_path / "r/summary.csv").read_text().splitlines()
    assert len(rows) == 4 and "accuracy_after_injection" in rows[0]
    assert json.loads((tmp_path / "r/summary.json").read_text())["statistics"]["hard_data"][
        "accuracy_after_injection"
    ] == 1  # fmt: skip
    report = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert report["scores"]["ours"]["hard_match"] == 1 and "## Blending" in said_of(tmp_path, "report")
    assert json.loads((tmp_path / "given/evaluation.json").read_text())["how_many"] == 3


def said_of(folder: Path, name: str) -> str:
    """Return the report as text."""
    return (folder / name / "evaluation.md").read_text()


def changed(field: dataclasses.Field[Any]) -> tuple[list[str], Any]:
    """Return words for the command line that change a flag, and the value that they mean."""
    default, choices = field.default, field.metadata["choices"]
    other: dict[str, tuple[list[str], Any]] = {
        "interpolator": (["nearest"], "nearest"),
        "padding_size": (["1"], 1),
        "beta1": (["0.25"], 0.25),
        "gamma": (["0.25"], 0.25),
        "no_well_prob": (["0.25"], 0.25),
        "max_size": (["512"], 512),
        "min_size": (["14"], 14),
        "kernel_size": (["1"], 1),
        "num_layer": (["4"], 4),
        "group_crop_size": (["64"], (64,)),
        "start_scale": (["1"], 1),
        "num_scales": (["4"], 4),
        "origin": (["0", "5", "7"], (0.0, 5.0, 7.0)),
        "cell_size": (["2", "5", "7"], (2.0, 5.0, 7.0)),
        "img_color_range": (["0", "1"], (0.0, 1.0)),
        "grid_dims": (["3", "4", "5"], (3, 4, 5)),
        "well_background": (["3", "4", "5"], (3, 4, 5)),
    }
    if field.name in other:
        return other[field.name]
    if isinstance(default, bool):
        return [str(not default).lower()], not default
    if choices:
        value = next((c for c in choices if c != default), default)
        return [str(value)], value
    if isinstance(default, tuple):
        values = {"str": "word", "int": 3, "float": 2.5}
        kind = next(v for k, v in values.items() if k in str(field.type))
        return [str(kind)], (kind,)
    if isinstance(default, int | float):
        return [str(default + 1)], default + 1
    if "Path" in str(field.type):
        return ["some/where"], Path("some/where")
    if "float" in str(field.type):
        return ["2.5"], 2.5
    if "int" in str(field.type):
        return ["3"], 3
    return ["word"], "word"


@pytest.mark.parametrize("style", ["underscores", "hyphens"])
@pytest.mark.parametrize(
    "field", [*dataclasses.fields(TrainingOptions), *dataclasses.fields(RunOptions)], ids=lambda f: f.name
)
def test_every_training_flag(field: dataclasses.Field[Any], style: str):
    """Every flag of train.py, in both spellings and under each alias, changes the option that it names."""
    words, value = changed(field)
    for name in (field.name, *field.metadata["aliases"]):
        flag = f"--{name if style == 'underscores' else name.replace('_', '-')}"
        if isinstance(field.default, bool):
            off = flag.replace("--", "--no-" if style == "hyphens" else "--no_")
            words = []
            flag = flag if value else off
        parsed = parse([flag, *words], TrainingOptions, RunOptions, presets=TRAIN_PRESETS)
        found = {**vars(parsed.config), **vars(parsed.run)}[field.name]
        assert found == value, flag
        assert found != field.default or len(field.metadata["choices"]) == 1, flag
        assert parsed.origins[field.name] == "command line"


def test_presets_and_old_names():
    """A preset fills the flags that are not given; the old name of the well weight warns and works."""
    parsed = parse(
        ["--preset", "quick", "--min_size", "20"], TrainingOptions, RunOptions, presets=TRAIN_PRESETS
    )
    assert (parsed.config.min_size, parsed.config.generator_steps) == (20, 1)
    assert parsed.origins["min_size"] == "command line" and parsed.origins["crop_size"] == "preset quick"
    old = parse(["--beta", "3"], TrainingOptions, RunOptions).config
    both = parse(["--beta", "3", "--well_loss_penalty", "4"], TrainingOptions, RunOptions).config
    assert (old.well_weight, both.well_weight, TrainingOptions().well_weight) == (3, 4, 10)


def test_beta_warns(place: Path, tmp_path: Path):
    """--beta says that it is an old name, once."""
    code, said = script(
        "train", ["--training_image", str(place / "ti.png"), "--beta", "3", "--stop_scale", "1", "--dry_run"],
        tmp_path,
    )  # fmt: skip
    assert code == 0 and said.count("--beta") == 1 and "--well_loss_penalty" in said


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        ("train", "--input_path absent --out r", 3, "absent/facies: is missing, expected facies images"),
        ("train", "--training_image wells.dat --out r", 3, "wells.dat: first line"),
        ("train", "--training_image ti.gslib --min_size 8 --out r", 2, "--min_size 8: expected 12 or more"),
        (
            "train",
            "--training_image ti.gslib --min_size 30 --max_size 20 --out r",
            2,
            "--min_size 30 is above",
        ),
        ("train", "--training_image ti.gslib --stop_scale 40 --out r", 2, "--stop_scale"),
        (
            "train",
            "--training_image ti.gslib --use_seismic --out r",
            2,
            "--use_seismic works with --input_path",
        ),
        ("train", "--training_image ti.gslib --hard_data ti.png --out r", 3, "ti.png: "),
        ("train", "--training_image ti.gslib --kernel_size 4 --out r", 2, "expected an odd number"),
        ("train", "--training_image ti.gslib --out results/my", 2, "holds an earlier run"),
        ("train", "--training_image ti.gslib --device cuda:3 --out r", 2, "cuda:3"),
        ("generate", "--out r", 2, "--model_path: missing"),
        ("generate", "--model_path absent --out r", 3, "absent: no such file or folder"),
        ("generate", "--model_path ti.gslib --out r", 3, "ti.gslib: "),
        ("generate", "--model_path results/my --wells 3 --out r", 2, "stores no wells"),
        ("generate", f"--model_path {RUN} --wells 99 --out r", 2, "--wells 99: 9 wells are stored"),
        (
            "generate",
            "--model_path results/my --formats vtk --out r",
            2,
            "--formats vtk: expected some of png",
        ),
        ("generate", "--model_path results/my --size 5 5 --out r", 2, "--size 5 5: expected 12 or more"),
        ("generate", "--model_path results/my --seismic data --out r", 2, "trained without seismic"),
        ("evaluate", "--out r", 2, "--model_path: missing"),
        (
            "evaluate",
            "--model_path results/my --reference absent --out r",
            3,
            "absent: no such file or folder",
        ),
        (
            "evaluate",
            "--model_path results/my --baselines sgs --out r",
            2,
            "--baselines sgs: expected some of",
        ),
        ("evaluate", "--realisations data --reference ti.gslib --out r", 3, "data: holds no realisation"),
        ("make_data", "--num_facies 1", 2, "--num_facies 1: expected 2 to 7"),
        ("make_data", "--kind channels --with_seismic", 2, "--with_seismic: works with --kind sections"),
        ("prep_data", "--input_path results --check", 3, "results/facies: is missing"),
    ],
)
def test_exit_codes(place: Path, name: str, line: str, code: int, message: str):
    """What a user does wrong is one line that says so, with exit code 2 for usage and 3 for data."""
    found, said = script(name, line.split(), place)
    (place / "said.txt").unlink()
    assert found == code and message in error_of(said), said
