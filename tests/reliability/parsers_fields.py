"""What simulgen_vae and voxel_ode read, for the fuzzing."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simulgen_vae import graph
from simulgen_vae.config_files import read_condition, read_lines, read_preset
from simulgen_vae.constraints import read_dirichlet
from simulgen_vae.fields import open_fields
from simulgen_vae.images import read_image
from simulgen_vae.invert import read_box, read_field, read_sensors
from simulgen_vae.model_files import read_surrogate
from simulgen_vae.queries import read_queries
from simulgen_vae.split import Split, read_split, write_split
from simulgen_vae.symmetry import read_symmetry
from simulgen_vae.tables import read_table
from tests.fixtures.make import unpack
from tests.reliability.fuzz import Parser
from tests.simulgen_vae.cases_data import waves, write_case
from tests.voxel_ode.cases_data import prepared, truth, write_raw
from voxel_ode import loading
from voxel_ode.dataset import read_stats
from voxel_ode.index import read_index
from voxel_ode.intervals import Calibration, fingerprint, load_calibration, save_calibration
from voxel_ode.normalize import Normalizer
from voxel_ode.predictions import open_predictions
from voxel_ode.prepped import open_simulation
from voxel_ode.raw import RawFile

U = waves()["fields"]
NAMES = ("cx", "cy", "radius", "c1", "f0", "sy")
IDS = tuple(f"s{i}" for i in range(12))
CONDITION = "Dim1 12\nDim2 6\nn_epoch 30 # steps\nLearningR 1e-3\nLoss_type 1\nalpha 1000\nBatch_size 4\n"
PRESET = "header\n1\n4\n32 16 8\n32 32\n"


@cache
def surrogate_in(folder: Path) -> graph.Model:
    """Return the released surrogate, unpacked into `folder`."""
    return graph.load(unpack("simulgen_vae", folder) / "run/model_save/SimulGen-VAE", "cpu")


@cache
def network_in(folder: Path) -> loading.Model:
    """Return the released network of voxel_ode, unpacked into `folder`."""
    return loading.load(unpack("voxel_ode", folder) / "run/checkpoints/last.pt")


def read_fields(path: Path) -> None:
    """Read the trajectories of a data set."""
    data = open_fields(path)
    try:
        for i in range(min(data.num_samples, 20)):
            data.trajectory(i)
    finally:
        data.close()


def text(name: str, content: str) -> Callable[[Path], Any]:
    """Return a function that writes a text file."""
    return lambda folder: (folder / name).write_text(content)


def write_picture(folder: Path) -> None:
    """Write a grey picture."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "a.png")


def write_symmetry(folder: Path) -> None:
    """Write the reversal of 32 nodes."""
    arrays = {"node_permutation": np.arange(32)[::-1], "field_signs": np.ones(1), "param_matrix": np.eye(2)}
    np.savez(folder / "s.npz", **arrays, param_offset=np.zeros(2), flip_image=np.array(1))


def queries(path: Path) -> None:
    """Read parameters for the released surrogate."""
    read_queries(surrogate_in(path.parent).surrogate, str(path), "")


SIMULGEN = (
    Parser("simulgen_vae", "condition", "c.txt", text("c.txt", CONDITION),
           lambda p: read_condition(read_lines(p, "--condition", True) or (), p), "text"),
    Parser("simulgen_vae", "preset", "p.txt", text("p.txt", PRESET),
           lambda p: read_preset(read_lines(p, "--preset", True) or (), p), "text"),
    Parser("simulgen_vae", "table", "t.csv", text("t.csv", "x,y\n1,2\n3,4\n"), read_table, "text"),
    Parser("simulgen_vae", "canonical", "a.h5", lambda f: write_case(f / "a.h5"), read_fields, "h5"),
    Parser("simulgen_vae", "npy", "u.npy", lambda f: np.save(f / "u.npy", U[..., 0]), read_fields, "npy"),
    Parser("simulgen_vae", "npz", "u.npz", lambda f: np.savez(f / "u.npz", U=U, P=np.ones((12, 2)), ntr=9),
           read_fields, "npz"),
    Parser("simulgen_vae", "pickle", "u.pickle",
           lambda f: (f / "u.pickle").write_bytes(pickle.dumps(U[..., 0], 4)), read_fields),
    Parser("simulgen_vae", "picture", "a.png", write_picture, read_image),
    Parser("simulgen_vae", "split", "split.json",
           lambda f: write_split(f / "split.json", Split(*np.split(np.arange(12), (8, 10))), IDS),
           lambda p: read_split(p, IDS), "json"),
    Parser("simulgen_vae", "symmetry", "s.npz", write_symmetry, read_symmetry, "npz"),
    Parser("simulgen_vae", "dirichlet", "d.npz",
           lambda f: np.savez(f / "d.npz", mask=np.arange(32) < 3, value=np.ones(32)),
           lambda p: read_dirichlet(p, (6, 32, 1)), "npz"),
    Parser("simulgen_vae", "sensors", "s.csv",
           text("s.csv", "node,frame,value,sigma\n3,1,0.5,0.1\n7,2,0.1,0.1\n"),
           lambda p: read_sensors(p, surrogate_in(p.parent)), "text"),
    Parser("simulgen_vae", "box", "b.csv", text("b.csv", "name,low,high\ncx,0.1,0.4\nf0,1,2\n"),
           lambda p: read_box(p, surrogate_in(p.parent)), "text"),
    Parser("simulgen_vae", "target", "t.npy",
           lambda f: np.save(f / "t.npy", np.zeros(surrogate_in(f).shape, "f4")),
           lambda p: read_field(p, surrogate_in(p.parent).shape), "npy"),
    Parser("simulgen_vae", "queries csv", "q.csv", text("q.csv", ",".join(NAMES) + "\n1,0.5,0.2,1.2,2,0.5\n"),
           queries, "text"),
    Parser("simulgen_vae", "queries npz", "q.npz", lambda f: np.savez(f / "q.npz", params=np.ones((2, 6))),
           queries, "npz"),
    Parser("simulgen_vae", "queries npy", "q.npy", lambda f: np.save(f / "q.npy", np.ones((2, 6))),
           queries, "npy"),
    Parser("simulgen_vae", "model", "run/model_save/SimulGen-VAE", lambda f: unpack("simulgen_vae", f),
           read_surrogate, "checkpoint"),
)  # fmt: skip


def write_prepared(folder: Path) -> None:
    """Write four simulations and prepare them."""
    if not (folder / "prepped").exists():
        prepared(folder)


def write_simulation(folder: Path) -> None:
    """Write one prepared simulation by itself."""
    write_prepared(folder)
    shutil.copy(next(iter((folder / "prepped/test").glob("*.h5"))), folder / "a.prepped.h5")


def read_raw(path: Path) -> None:
    """Read the states and scalars of a raw file."""
    with RawFile(path) as raw:
        for step in range(min(raw.t_valid, 6)):
            raw.state(step)


def read_simulation(path: Path) -> None:
    """Read a prepped simulation whole."""
    sim = open_simulation(path)
    sim.states(0, sim.t_valid)
    sim.load()


def statistics(path: Path) -> None:
    """Read statistics as the training does."""
    Normalizer.from_stats(read_stats(path), path)


def write_calibration(folder: Path) -> None:
    """Write factors for the released network."""
    years = 3
    made = Calibration(
        checkpoints=fingerprint([network_in(folder)]),
        init="ic",
        nominal=0.9,
        factors={"P": [1.0] * years, "T": [2.0] * years},
        floors={"P": 0.1, "T": 0.1},
    )
    save_calibration(folder / "calibration.json", made)


def write_predictions(folder: Path) -> None:
    """Predict with the released network."""
    from tests.reliability.five import BY_NAME, must

    unpack("voxel_ode", folder)
    case = BY_NAME["voxel_ode"]
    flags = case.use[1].replace("{model}", "run/checkpoints/last.pt")
    must(case.script("rollout"), f"{flags} --overwrite", folder)


def read_predictions(path: Path) -> None:
    """Read every predicted state."""
    found = open_predictions(path)
    for year in range(min(found.num_states, 6)):
        found.state(year)


VOXEL = (
    Parser("voxel_ode", "raw", "raw.h5", lambda f: write_raw(f / "raw.h5", truth()), read_raw, "h5"),
    Parser("voxel_ode", "prepped", "a.prepped.h5", write_simulation, read_simulation, "h5"),
    Parser("voxel_ode", "stats", "prepped/stats.json", write_prepared, statistics, "json"),
    Parser("voxel_ode", "manifest", "prepped/manifest.json", write_prepared,
           lambda p: read_stats(p.with_name("stats.json")), "json"),
    Parser("voxel_ode", "index jsonl", "prepped/index_train.jsonl", write_prepared,
           lambda p: read_index(p, p.parent), "text"),
    Parser("voxel_ode", "index npz", "prepped/index_train.npz", write_prepared,
           lambda p: read_index(p, p.parent), "npz"),
    Parser("voxel_ode", "calibration", "calibration.json", write_calibration,
           lambda p: load_calibration(p, [network_in(p.parent)]), "json"),
    Parser("voxel_ode", "predictions", "out/p.h5", write_predictions, read_predictions, "h5"),
    Parser("voxel_ode", "model", "run/checkpoints/last.pt", lambda f: unpack("voxel_ode", f), loading.load,
           "checkpoint"),
)  # fmt: skip
