"""What fault_seg and velocity_inversion read, for the fuzzing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from common.run import BasicOptions
from fault_seg import infer as fault_infer
from fault_seg.dataset import read_description
from fault_seg.labels import read_sticks
from fault_seg.patches import MergedVolume, PatchGrid, write_patches
from fault_seg.volumes import check_finite, open_volume, write_sidecar, write_volume
from tests.fault_seg.volume_files import SHAPE, make_segy, plain, position_cube
from tests.fixtures.make import unpack
from tests.reliability.fuzz import Parser
from tests.velocity_inversion.cases_segy import write_shots
from velocity_inversion import infer as velocity_infer
from velocity_inversion.config_data import PrepConfig
from velocity_inversion.dataset import Preprocessing, ShotDataset
from velocity_inversion.first_stage import read_wells
from velocity_inversion.geometry import Survey, openfwi_survey, read_survey
from velocity_inversion.prep import prepare
from velocity_inversion.refine_run import Predictions
from velocity_inversion.segy_shots import read_shots
from velocity_inversion.sources import open_source

CUBE = position_cube(*SHAPE)


def read_cube(path: Path, **settings: Any) -> None:
    """Read a volume inline by inline."""
    with open_volume(path, **settings) as volume:
        check_finite(volume)
        for x in range(min(volume.shape[2], 50)):
            volume.read(x, x + 1)


def write_raw(folder: Path) -> None:
    """Write a raw cube with its side-car."""
    write_volume(folder / "cube.fsem", CUBE, like=plain())
    write_sidecar(folder / "cube", plain())


def write_h5(folder: Path) -> None:
    """Write a cube as HDF5 with spacing and origin."""
    with h5py.File(folder / "cube.h5", "w") as file:
        file["volume"] = CUBE
        file["volume"].attrs["spacing"] = (2.0, 12.5, 25.0)
        file["volume"].attrs["origin"] = (0.0, 1.0, 2.0)


def write_image(name: str) -> Callable[[Path], Any]:
    """Return a function that writes a cube as an image of ITK or VTK."""
    return lambda folder: write_volume(folder / name, CUBE, like=plain())


def write_sticks(folder: Path) -> None:
    """Write two sticks of one fault."""
    rows = ["fault_id,stick_id,inline,crossline,sample_ms,x,y"]
    rows += [f"1,{s},{s},{c},{100 + 2 * c}.0,0,0" for s in (0, 1) for c in (0, 2, 3)]
    (folder / "sticks.csv").write_text("\n".join(rows) + "\n")


def write_index(folder: Path) -> None:
    """Write a cube as overlapping patches."""
    np.save(folder / "cube.npy", CUBE)
    with open_volume(folder / "cube.npy") as volume:
        write_patches(volume, PatchGrid(SHAPE, (4, 4, 4), 1), folder / "patches", overwrite=True)


def read_patches(path: Path) -> None:
    """Read the cube of a folder of patches."""
    with MergedVolume(path.parent) as volume:
        volume.read(0, volume.shape[2])


FAULT_SEG = (
    Parser("fault_seg", "segy", "a.sgy", lambda f: make_segy(f / "a.sgy", CUBE), read_cube),
    Parser("fault_seg", "segy ibm", "b.sgy", lambda f: make_segy(f / "b.sgy", CUBE, code=1), read_cube),
    Parser("fault_seg", "npy", "cube.npy", lambda f: np.save(f / "cube.npy", CUBE), read_cube, "npy"),
    Parser("fault_seg", "h5", "cube.h5", write_h5, read_cube, "h5"),
    Parser("fault_seg", "mhd", "cube.mhd", write_image("cube.mhd"), read_cube, "text"),
    Parser("fault_seg", "vti", "cube.vti", write_image("cube.vti"), read_cube),
    Parser("fault_seg", "raw", "cube.fsem", write_raw, read_cube),
    Parser(
        "fault_seg", "side-car", "cube.json", write_raw, lambda p: read_cube(p.with_suffix(".fsem")), "json"
    ),
    Parser("fault_seg", "sticks", "sticks.csv", write_sticks, lambda p: read_sticks(p, plain()), "text"),
    Parser("fault_seg", "patches", "patches/index.json", write_index, read_patches, "json"),
    Parser(
        "fault_seg",
        "description",
        "dataset.json",
        lambda f: (f / "dataset.json").write_text(json.dumps({"shape": [9, 5, 4], "seed": 1})),
        lambda p: read_description(p.parent),
        "json",
    ),
    Parser(
        "fault_seg",
        "model",
        "run/e.pth",
        lambda f: unpack("fault_seg", f),
        fault_infer.load,
        "checkpoint",
    ),
    Parser(
        "fault_seg",
        "safetensors",
        "run/e.safetensors",
        lambda f: unpack("fault_seg", f),
        fault_infer.load,
    ),
)  # fmt: skip


def small_survey() -> Survey:
    """Return a survey of two shots and five receivers."""
    import dataclasses

    return dataclasses.replace(openfwi_survey(2, 5), num_samples=30)


def write_data(folder: Path) -> None:
    """Write two samples with their geometry and families."""
    survey = small_survey()
    rng = np.random.default_rng(0)
    gathers = rng.standard_normal((2, 2, survey.num_samples, 5)).astype(np.float32)
    depth, width = survey.model_shape_zx
    np.save(folder / "data1.npy", gathers)
    np.save(folder / "model1.npy", rng.uniform(2000, 3000, (2, 1, depth, width)).astype(np.float32))
    (folder / "geometry.json").write_text(json.dumps(survey.to_dict()))
    (folder / "families.json").write_text(json.dumps({"1_0000": "layered", "1_0001": "curved"}))
    (folder / "list.txt").write_text("data1.npy\tmodel1.npy\n")


def read_data(path: Path) -> None:
    """Read every gather and section of a folder or a list."""
    source = open_source(path if path.suffix == ".txt" else path.parent)
    dataset = ShotDataset(source, Preprocessing())
    for i in range(min(len(source), 4)):
        dataset[i]
        if source.has_truth:
            source.velocity(i)


def write_segy(folder: Path) -> None:
    """Write the shots of a survey as SEG-Y."""
    survey = small_survey()
    gathers = np.random.default_rng(0).standard_normal((2, survey.num_samples, 5)).astype(np.float32)
    write_shots(folder / "shots.sgy", gathers, survey)


def import_segy(path: Path) -> None:
    """Read shots as prep_data does, to the folder of samples."""
    read_shots(path)
    config = PrepConfig(segy=(str(path),), model_shape_zx=(70, 70), cache_dir=path.parent / "cache")
    prepare(config, BasicOptions(overwrite=True), path.parent / "prepared")


def write_well(folder: Path) -> None:
    """Write velocities known in two wells."""
    rows = "".join(f"{x},{z},{v}\n" for x in (100, 400) for z, v in ((0, 1.6), (100, 2.0), (300, 3.1)))
    (folder / "well.csv").write_text("x_m,z_m,vp_km_s\n" + rows)


def write_archive(folder: Path) -> None:
    """Write data and an archive of predictions for them."""
    write_data(folder)
    section = np.full(small_survey().model_shape_zx, 2500.0)
    sections = {"1_0000": section, "1_0001": section}
    np.savez(folder / "predictions.npz", **sections)  # type: ignore[arg-type]


def read_archive(path: Path) -> None:
    """Read the predictions of all samples."""
    source = open_source(path.parent)
    found = Predictions(path, source, source.ids)
    for name in source.ids:
        found[name]


VELOCITY = (
    Parser("velocity_inversion", "gathers", "data1.npy", write_data, read_data, "npy"),
    Parser("velocity_inversion", "sections", "model1.npy", write_data, read_data, "npy"),
    Parser("velocity_inversion", "geometry", "geometry.json", write_data, read_data, "json"),
    Parser("velocity_inversion", "survey", "geometry.json", write_data, read_survey, "json"),
    Parser("velocity_inversion", "families", "families.json", write_data, read_data, "json"),
    Parser("velocity_inversion", "list", "list.txt", write_data, read_data, "text"),
    Parser("velocity_inversion", "segy", "shots.sgy", write_segy, import_segy),
    Parser(
        "velocity_inversion",
        "well",
        "well.csv",
        write_well,
        lambda p: read_wells(p, openfwi_survey()),
        "text",
    ),
    Parser("velocity_inversion", "predictions", "predictions.npz", write_archive, read_archive, "npz"),
    Parser(
        "velocity_inversion",
        "model",
        "run/models/best_ensemble_model.pth",
        lambda f: unpack("velocity_inversion", f),
        lambda p: list(velocity_infer.load(p).members(torch.device("cpu"))),
        "checkpoint",
    ),
)  # fmt: skip
