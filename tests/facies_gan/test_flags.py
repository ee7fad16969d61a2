"""Every flag of a training does something: with another value a run sees, does or refuses other things."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.device import Precision
from common.errors import StrataError
from common.guard import Guard
from facies_gan.config import TrainingOptions
from facies_gan.images import write_png
from facies_gan.previews import Previews
from facies_gan.setup import prepare
from facies_gan.simulator import Simulator
from facies_gan.train import FaciesTask
from tests.facies_gan.cases_gan import CPU, bands, options, palette, run_options, write_folder, write_image

LIVELY = {"lr_decay": 1, "noise_amp": 0.5, "min_noise_amp": 0.001, "no_well_prob": 0.0}
# The data of a run: a flag is tried on those on which it can act.
IMAGE, FOLDER, CUBE, TITLED, TWO = "image", "folder", "cube", "titled", "two"
CASES: dict[str, tuple[str, Any]] = {
    "input_path": (FOLDER, "other_folder"),
    "training_image": (IMAGE, "other.png"),
    "hard_data": (IMAGE, "hard.csv"),
    "min_size": (IMAGE, 14),
    "max_size": (IMAGE, 30),
    "crop_size": (IMAGE, 20),
    "start_scale": (IMAGE, 1),
    "stop_scale": (IMAGE, 1),
    "num_scales": (IMAGE, 2),
    "square": (FOLDER, True),
    "num_iter": (IMAGE, 4),
    "batch_size": (IMAGE, 2),
    "coarse_iter_factor": (IMAGE, 2.0),
    "num_train_pyramids": (FOLDER, 2),
    "num_parallel_scales": (IMAGE, 1),
    "num_feature": (IMAGE, 5),
    "min_num_feature": (IMAGE, 5),
    "feature_growth": (IMAGE, 1),
    "num_layer": (IMAGE, 4),
    "kernel_size": (IMAGE, 1),
    "padding_size": (IMAGE, 1),
    "padding_mode": (IMAGE, "zeros"),
    "noise_channels": (IMAGE, 2),
    "num_img_channels": (FOLDER, 1),
    "img_color_range": (IMAGE, (0.0, 510.0)),
    "noise_amp": (IMAGE, 0.9),
    "min_noise_amp": (IMAGE, 0.6),
    "scale0_noise_amp": (IMAGE, 0.5),
    "generator_steps": (IMAGE, 2),
    "discriminator_steps": (IMAGE, 2),
    "lr_g": (IMAGE, 1e-3),
    "lr_d": (IMAGE, 1e-3),
    "beta1": (IMAGE, 0.1),
    "gamma": (IMAGE, 0.5),
    "lr_decay": (IMAGE, 2),
    "lr_schedule": (IMAGE, "linear"),
    "lambda_grad": (IMAGE, 0.5),
    "gp_interval": (IMAGE, 1),
    "alpha": (IMAGE, 3.0),
    "well_loss_penalty": (IMAGE, 3.0),
    "beta": (IMAGE, 3.0),
    "lambda_diversity": (IMAGE, 2.0),
    "num_diversity_samples": (IMAGE, 3),
    "lambda_proportion": (IMAGE, 1.0),
    "lambda_variogram": (IMAGE, 3.0),
    "lambda_connectivity": (IMAGE, 3.0),
    "interpolator": (IMAGE, "nearest"),
    "use_wells": (IMAGE, False),
    "use_seismic": (FOLDER, True),
    "max_random_wells": (IMAGE, 1),
    "max_random_points": (IMAGE, 1),
    "no_well_prob": (IMAGE, 1.0),
    "wells_mask_columns": (IMAGE, (3,)),
    "num_real_facies": (FOLDER, 1),
    "num_generated_per_real": (IMAGE, 2),
    "plot_facies": (IMAGE, False),
    "cache_dir": (IMAGE, "other_cache"),
    "clear_cache": (IMAGE, True),
    "slice_axis": (CUBE, "x"),
    "origin": (CUBE, (3.0, 1.0, 1.0)),
    "cell_size": (CUBE, (2.0, 1.0, 1.0)),
    "z_down": (CUBE, True),
    "grid_dims": (TITLED, (40, 1, 32)),
    "variable": (TWO, "second"),
    "well_background": (FOLDER, (0, 0, 0)),
    "augment_flip": (IMAGE, True),
    "fine_tune": (IMAGE, True),
    "group_iter_factor": (IMAGE, (2.0,)),
    "group_batch_size": (IMAGE, (2,)),
    "group_diversity_samples": (IMAGE, (3,)),
    "group_crop_size": (IMAGE, (20,)),
    "group_lambda_diversity": (IMAGE, (3.0,)),
    "group_lambda_variogram": (IMAGE, (3.0,)),
    "group_lambda_connectivity": (IMAGE, (3.0,)),
}
PATHS = ("input_path", "training_image", "hard_data", "cache_dir")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds data of every kind."""
    folder = tmp_path_factory.mktemp("flags")
    for name, seed in (("image.png", 0), ("other.png", 1)):
        write_image(folder / name, bands(seed=seed))
    known = bands()[3]
    rows = [f"{col},3,{known[col]}" for col in range(0, 40, 9)]
    (folder / "hard.csv").write_text("\n".join(["col,row,facies", *rows]) + "\n")
    for name in ("folder", "other_folder"):
        root = write_folder(folder / name, count=3 if name == "folder" else 2)
        grid = palette(4).to_rgb(bands((24, 30), 4, 0)).copy()
        grid[:, 5:] = (9, 99, 9)  # no facies: the background of the wells image
        write_png(root / "wells" / "xz_crossline_000.png", grid)
        for i in range(3):
            noise = np.random.default_rng(i).normal(size=(24, 30)).astype(np.float32)
            (root / "seismic").mkdir(exist_ok=True)
            np.save(root / "seismic" / f"xz_crossline_{i:03d}.npy", noise)
    cells = np.random.default_rng(0).integers(0, 2, (24, 28, 26))
    values = "\n".join(map(str, cells.reshape(-1)))
    (folder / "cube").write_text(f"26 28 24\n1\nfacies\n{values}\n")
    section = bands()[::-1].reshape(-1)
    (folder / "titled").write_text("A title\n1\nfacies\n" + "\n".join(map(str, section)) + "\n")
    both = "\n".join(f"{a} {b}" for a, b in zip(section, 1 - section, strict=True))
    (folder / "two").write_text(f"40 1 32\n2\nfirst\nsecond\n{both}\n")
    return folder


def data_of(place: Path, kind: str) -> dict[str, Any]:
    """Return the flags of a run on one kind of data."""
    if kind == FOLDER:
        return {"input_path": place / "folder"}
    return {"training_image": place / {IMAGE: "image.png"}.get(kind, kind)}


def add(digest: Any, value: Any) -> None:
    """Add a value, with the tensors inside it, to a digest."""
    if isinstance(value, torch.Tensor):
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    elif isinstance(value, dict):
        for name, part in value.items():
            digest.update(str(name).encode())
            add(digest, part)
    elif isinstance(value, list | tuple):
        for part in value:
            add(digest, part)
    else:
        digest.update(repr(value).encode())


def observed(place: Path, kind: str, **changes: Any) -> str:
    """Return a digest of all that a run of four iterations a group shows, or the error that ends it."""
    cache, run_folder = place / "cache", place / "run"
    shutil.rmtree(run_folder, ignore_errors=True)
    shutil.rmtree(place / "other_cache", ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    (cache / "facies_gan").mkdir(parents=True)
    stale = cache / "facies_gan" / "stale.npz"
    stale.write_bytes(b"")
    changes = {name: place / v if name in PATHS else v for name, v in changes.items()}
    run = run_options(run_folder)
    digest = hashlib.sha256()
    try:
        chosen = options(**{**LIVELY, "cache_dir": cache, **data_of(place, kind), **changes})
        setup = prepare(chosen, run)
        task = FaciesTask(setup, Guard(CPU), Precision(CPU, torch.float32), run)
        for plan in setup.plans:
            task.start_phase(f"group {plan.index + 1}")
            add(digest, plan.to_dict())
            for i in range(4):
                add(digest, task.step(setup.samples.batch(plan, i), i) | {"Training/Elapsed_Time_Minutes": 0})
        previews = Previews(run_folder, setup, run)
        previews.draw(Simulator(task.card(), task.averaged_blocks(), CPU))
        add(digest, task.card().to_dict())
    except (StrataError, ValueError) as error:
        return str(error)
    for path in sorted(run_folder.rglob("*.png")):
        digest.update(path.read_bytes())
    add(digest, [stale.exists(), (place / "other_cache").exists()])
    return digest.hexdigest()


@pytest.fixture(scope="module")
def usual(place: Path) -> dict[str, str]:
    """Return what runs without changes show."""
    return {kind: observed(place, kind) for kind in (IMAGE, FOLDER, CUBE, TITLED, TWO)}


def test_every_flag_is_tried():
    """No flag of a training is left out, but the stride, which has one value."""
    names = {field.name for field in dataclasses.fields(TrainingOptions)}
    assert names - {"stride"} == set(CASES)


def test_the_same_flags_show_the_same(place: Path, usual: dict[str, str]):
    """A run repeated shows the same, so that a difference means the flag."""
    assert observed(place, IMAGE) == usual[IMAGE] and observed(place, FOLDER) == usual[FOLDER]


@pytest.mark.parametrize("name", CASES)
def test_flag_acts(place: Path, usual: dict[str, str], name: str):
    """With another value something else is observed."""
    kind, value = CASES[name]
    assert observed(place, kind, **{name: value}) != usual[kind]
