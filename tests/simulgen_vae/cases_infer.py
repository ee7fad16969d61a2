"""What the tests around a surrogate share: deliverables of drifting bumps, made without a training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import plain_tree
from common.run import MachineOptions
from simulgen_vae import direct, field_net, gp2
from simulgen_vae.canonical import About, write_canonical
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.grids import Grid
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.model_files import FOLDER, Surrogate, write_latents, write_surrogate
from simulgen_vae.pairs import LatentNetPredictor, fit_latent_gp, pair_of
from simulgen_vae.predictor import Predictor, TrainingSet
from simulgen_vae.preparation import (
    input_type_of,
    open_data,
    prepare,
    provenance_of,
    sample_set,
    split_of,
    start_of,
)
from simulgen_vae.scoring import posterior_means
from simulgen_vae.train import conditioner_shape_of, vae_shape_of
from simulgen_vae.uncertainty import Calibration, residual_std
from tests.simulgen_vae.cases_predictors import FRAMES, NX, NY, bumps
from tests.simulgen_vae.cases_vae import config

QUICK = MachineOptions(device="cpu", precision="fp32")
CPU = torch.device("cpu")
NAMES = ("x", "y", "rate")
KINDS = ("vae_net", "direct", "field_net", "pair")


def write_bumps(path: Path, num: int = 32, *, pictures: bool = False, fields: int = 1) -> Path:
    """Write bumps with their mesh, and pictures of where each bump starts; return the file."""
    u, params = bumps(num)
    images = None
    if pictures:
        first = u[:, 0, :, 0].reshape(num, NY, NX)
        images = np.kron(255 * first, np.ones((32, 32))).astype(np.uint8)
    u = np.concatenate([100.0**v * (u + v) for v in range(fields)], axis=3).astype(np.float32)
    grid = Grid(NX, NY)
    about = About(
        field_names=tuple(f"f{v}" for v in range(fields)),
        units=("K",) * fields,
        param_names=NAMES,
        grid_shape=(NY, NX),
        cells=grid.cells(),
    )
    arrays = {"params": params, "images": images, "time": np.linspace(0, 1, FRAMES), "coords": grid.coords()}
    write_canonical(path, u.shape, iter(u), about, arrays)
    return path


def make_model(folder: Path, kind: str = "vae_net", *, bars: bool = True, **changes: Any) -> Path:
    """Write data and a deliverable that ships a predictor of this kind; return the run's folder.

    Args:
        folder: of both.
        kind: of `KINDS`, gp2 or vae_gp; the default needs no search.
        bars: calibrate the error bars.
        changes: of the training's config; `pictures` and `fields` of the data.
    """
    of_data = {name: changes.pop(name) for name in ("pictures", "fields") if name in changes}
    data_path = write_bumps(folder / "bumps.h5", **of_data)
    settings = config(data_path, num_modes="10", val_fraction=0.2, test_fraction=0.2, **changes)
    data = open_data(settings)
    split = split_of(settings, data, 0)
    training = prepare(settings, data, split, 0, CPU)
    shape = vae_shape_of(settings, training)
    vae = HierarchicalVae(shape, start_of(training, shape.num_latents)).eval().requires_grad_(False)
    z, h = posterior_means(training, range(data.num_samples), vae, CPU)
    train = sample_set(training, split.train, 0)
    net = None
    if kind == "vae_net":
        net = Conditioner(
            conditioner_shape_of(settings, input_type_of(settings, data), data.num_params, shape)
        )
        rows = torch.from_numpy(split.train)
        net.fit_latents(z[rows], h[rows])
        if training.params is not None:
            net.fit_params(train.params)
            net.fit_linear(train.params, z[rows], h[rows])
        net.eval().requires_grad_(False)
    predictor = fit(kind, train, vae, net)
    calibration = None
    if bars:
        with torch.no_grad():
            error = data_fields(data)[split.validation] - train.basis.decode(
                predictor(sample_set(training, split.validation, 0).inputs())
            )
        calibration = Calibration(residual_std(error.square()), 1.5, 0.9, 12)
    uses = {"uses_params": training.params is not None, "uses_images": training.images is not None}
    names = {
        n: getattr(data, n) for n in ("field_names", "units", "param_names", "grid_shape", "num_samples")
    }
    names |= {"data_path": str(data.path), "attributes": {}}
    arrays = {"time": torch.from_numpy(data.time), "coords": torch.from_numpy(data.coords)}
    arrays |= {"cells_quad": torch.from_numpy(data.cells["quad"])}
    arrays |= {"train_params": torch.from_numpy(data.params[split.train])}
    surrogate = Surrogate(
        config=plain_tree(
            {**asdict(settings), **names, **uses, "provenance": provenance_of(settings, data, split)}
        ),
        basis=training.front_end.basis,
        vae=vae,
        conditioner=net,
        predictor=predictor,
        calibration=calibration,
        split=split,
        calibration_rows=np.zeros(0, dtype=np.int64),
        arrays=arrays,
    )
    write_surrogate(folder / FOLDER, surrogate)
    write_latents(folder / FOLDER, z, h)
    data.close()
    return folder


def data_fields(data: Any) -> torch.Tensor:
    """Return all trajectories [N, T, M, V]."""
    return torch.from_numpy(np.stack([data.trajectory(i) for i in range(data.num_samples)]))


def fit(kind: str, train: TrainingSet, vae: HierarchicalVae, net: Conditioner | None) -> Predictor:
    """Return a fitted predictor; networks are trained for a moment only."""
    if kind == "gp2":
        return gp2.fit_predictor(train)
    if kind == "vae_gp":
        return fit_latent_gp(train, vae)
    if kind == "vae_net":
        assert net is not None
        return LatentNetPredictor({"kind": "vae_net"}, vae, net).eval()
    if kind == "direct":
        options = direct.DirectOptions(width=16, depth=1, num_nets=2, epochs=2)
        return direct.fit_predictor(train, options).requires_grad_(False)
    if kind == "field_net":
        return field_net.fit_predictor(train, field_net.FieldNetOptions(steps=4))
    return pair_of(gp2.fit_predictor(train), fit_latent_gp(train, vae), 0.25)


def write_table(path: Path, rows: np.ndarray, names: tuple[str, ...] = NAMES) -> Path:
    """Write parameters [N, P] as CSV with a header; return the file."""
    lines = [",".join(names), *(",".join(f"{v:.9g}" for v in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path
