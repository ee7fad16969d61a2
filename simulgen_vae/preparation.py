"""From the user's files to the rows of a training: open, split, basis, coefficients, mirror images.

Nothing but training rows is looked at by the basis and by any statistic. Rank 0 computes, the others receive.
N samples, R rows (with mirror images), C channels, T frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common import distributed
from common.arrays import open_npy
from common.checkpoint import Checkpoint
from common.errors import DataError
from common.log import get_logger
from simulgen_vae.basis import Basis, fit_basis, identity_basis
from simulgen_vae.config import TrainConfig
from simulgen_vae.config_files import find_data
from simulgen_vae.features import constant_columns
from simulgen_vae.fetch import fetch_files, fetch_mapped, fetch_stored
from simulgen_vae.field_data import FieldData
from simulgen_vae.fields import open_fields
from simulgen_vae.front_end import FrontEnd
from simulgen_vae.linear_start import streamed_pod
from simulgen_vae.model import Start
from simulgen_vae.paths import existing_file, nearest
from simulgen_vae.predictor import TrainingSet
from simulgen_vae.prep import request_of, stored_basis
from simulgen_vae.progress import part_of
from simulgen_vae.reduced import fit_trajectory_pod, reduce_all
from simulgen_vae.split import Split, make_split
from simulgen_vae.symmetry import Symmetry
from simulgen_vae.tables import read_table
from simulgen_vae.training_data import TrainingData

PICTURES = (".png", ".jpg", ".jpeg")
PREPARED = ("front_end", "num_modes", "energy", "symmetry")


def open_data(config: TrainConfig) -> FieldData:
    """Return the data set that `config` names, checked.

    Raises:
        DataError: a path that was named is not there, or the data is bad.
    """
    path = find_data(config)
    sources = {name: str(found) for name, found in _inputs_of(config, path).items()}
    return open_fields(
        path,
        num_var=config.num_var,
        var_order=config.var_order,
        dims=(config.dim1, config.dim2, config.dim3),
        num_frames=config.dim2_red,
        node_start=config.dim3_start,
        node_end=config.dim3_end,
        image_suffix=config.param_data_type if config.param_data_type in PICTURES else ".png",
        num_param=config.num_param,
        image_threshold=round(config.image_threshold) if config.image_threshold >= 0 else None,
        drop_bad=config.drop_bad,
        symmetry=config.symmetry,
        **sources,
    )


def _inputs_of(config: TrainConfig, data_path: Path) -> dict[str, Path]:
    """Return where parameters and pictures lie, when `--param_dir` says so."""
    if not config.param_dir:
        return {}
    named = Path(config.param_dir)
    roots = list(dict.fromkeys((data_path.parent / named, named)))  # one, where the data lies here
    places = [*roots, *(root / "images" for root in roots)]
    found: dict[str, Path] = {}
    for place in places:
        kinds = _kinds_in(place)
        if "params" not in found and ".csv" in kinds:
            found["params"] = place
        if "images" not in found and kinds & set(PICTURES):
            found["images"] = place
    if not found:
        there = [root for root in roots if root.exists()]
        if there:
            raise DataError(
                f"--param_dir {named}: {there[0]} holds no CSV file and no picture ({', '.join(PICTURES)}); "
                "name the CSV file, or the folder of either"
            )
        searched, near = ", ".join(map(str, roots)), next(filter(None, map(nearest, roots)), None)
        raise DataError(
            f"--param_dir {named}: no such file or folder; searched {searched}"
            + (f"; did you mean {near}?" if near else "; check the path")
        )
    wanted = config.param_data_type.lower()
    if wanted:
        found = {k: v for k, v in found.items() if (k == "images") == (wanted in PICTURES)} or found
    return found


def _kinds_in(place: Path) -> set[str]:
    if place.is_file():
        return {place.suffix.lower()}
    return {p.suffix.lower() for p in place.iterdir()} if place.is_dir() else set()


def split_of(config: TrainConfig, data: FieldData, seed: int) -> Split:
    """Return the split of `data` that `config` asks for."""
    group = None
    if config.group:
        path = existing_file(config.group, "--group", "one group a sample")
        values = open_npy(path) if path.suffix == ".npy" else read_table(path).values
        values = np.atleast_1d(values)
        if len(values) != data.num_samples or not values.size:
            raise DataError(f"{path}: {len(values)} groups, expected {data.num_samples}, one a sample")
        group = values.reshape(len(values), -1)[:, 0]
    return make_split(data, config.val_fraction, config.test_fraction, seed, config.split_file, group)


def input_type_of(config: TrainConfig, data: FieldData) -> str:
    """Return what a conditioner can see: csv, image, image_vit, fusion; "" when there is nothing.

    Raises:
        DataError: the type asked for needs what the data does not have.
    """
    has_params, has_images = data.num_params > 0, data.images is not None
    if config.input_type == "auto":
        if has_params:
            return "fusion" if has_images else "csv"
        return "image" if has_images else ""
    needed = {"csv": (True, False), "fusion": (True, True)}.get(config.input_type, (False, True))
    if (needed[0] and not has_params) or (needed[1] and not has_images):
        raise DataError(
            f"{data.path}: parameters {'yes' if has_params else 'no'}, pictures "
            f"{'yes' if has_images else 'no'}, expected what --input_type {config.input_type} needs; "
            "name them with --param_dir"
        )
    return config.input_type


def provenance_of(config: TrainConfig, data: FieldData, split: Split) -> str:
    """Return the hash of data, split and the settings that everything reduced depends on."""
    chosen = {name: getattr(config, name) for name in PREPARED}
    digest = hashlib.blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16)
    digest.update(data.provenance.encode())
    rows = np.concatenate([split.train, split.validation, split.test])  # perhaps of a larger data set
    digest.update(split.codes(max(data.num_samples, int(rows.max()) + 1)).tobytes())
    return digest.hexdigest()


def prepare(
    config: TrainConfig,
    data: FieldData,
    split: Split,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
    basis: Basis | None = None,
) -> TrainingData:
    """Return the rows of a training.

    Args:
        config: of the training.
        data: open.
        split: of its samples.
        seed: of the basis' random sketch.
        device: of the training.
        folder: keeps what was computed, for a resumed run; None keeps nothing.
        basis: of a VAE that was trained before; None fits one.
    """
    basis, c = _reduced(config, data, split, seed, device, folder, basis)
    kind = input_type_of(config, data)
    params = torch.from_numpy(np.ascontiguousarray(data.params)) if kind in ("csv", "fusion") else None
    images = torch.from_numpy(np.ascontiguousarray(data.images)) if kind not in ("csv", "") else None
    if params is not None:
        _warn_of_constants(params[torch.from_numpy(split.train)], data)
    train_rows = split.train
    if data.symmetry is not None:
        train_rows = np.concatenate([split.train, data.num_samples + np.arange(len(split.train))])
        c, params, images = _with_mirror_images(c, params, images, basis, data.symmetry, split)
    front_end = FrontEnd(basis)
    if config.cache == "disk" and not basis.is_identity:
        fetch = fetch_mapped(data, basis, split, folder)
    else:
        fetch = fetch_files(data, basis, split) if c is None else fetch_stored(c, config, device)
    num_rows = data.num_samples + len(train_rows) - len(split.train)
    norms = [front_end.norm2(fetch(list(part))) for part in _parts(range(num_rows), 16)]
    return TrainingData(
        fetch=fetch,
        num_samples=data.num_samples,
        train_rows=train_rows,
        split=split,
        front_end=front_end,
        shape=(basis.num_modes, data.num_frames),
        params=params,
        images=images,
        norm2=torch.cat(norms),
        relative=config.sample_weighting == "relative",
        extra={"provenance": provenance_of(config, data, split), "fields": data},
        in_memory=c is not None,
    )


def _warn_of_constants(params: torch.Tensor, data: FieldData) -> None:
    """Say which parameters never change over the training rows [n, P]: nothing can be learnt from them."""
    constant = constant_columns(params)
    if bool(constant.any()) and distributed.is_main():
        names = [data.param_names[k] for k in torch.nonzero(constant)[:, 0].tolist()]
        get_logger().warning(
            "warning: %s: constant over the training rows, dropped: %s", data.path, ", ".join(names)
        )


def _with_mirror_images(
    c: torch.Tensor | None,
    params: torch.Tensor | None,
    images: torch.Tensor | None,
    basis: Basis,
    symmetry: Symmetry,
    split: Split,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Return coefficients, parameters and pictures with the mirror images of training rows behind them."""
    own = torch.from_numpy(split.train)
    if params is not None:
        params = torch.cat([params, symmetry.apply_params(params[own])])
    if images is not None:
        flipped = symmetry.apply_image(images[own])
        assert flipped is not None
        images = torch.cat([images, flipped])
    if c is not None:
        matrix, offset = basis.mirror(symmetry)
        c = torch.cat([c, torch.einsum("rs,nst->nrt", matrix, c[own]) + offset[:, None]])
    return c, params, images


def _parts(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _reduced(
    config: TrainConfig,
    data: FieldData,
    split: Split,
    seed: int,
    device: torch.device,
    folder: Path | None,
    basis: Basis | None,
) -> tuple[Basis, torch.Tensor | None]:
    """Return basis and coefficients [N, C, T] (None without POD), computed by rank 0 or read again."""
    made: dict[str, Any] = {}
    provenance = provenance_of(config, data, split)
    with distributed.shared_errors():
        if distributed.is_main():
            found = _read_reduced(folder, provenance)
            made = found or _compute_reduced(config, data, split, seed, device, basis)
            if folder is not None and found is None:
                stored = Checkpoint("simulgen_vae", "reduced", {"provenance": provenance}, {}, made)
                checkpoints.save(folder / "reduced.pt", stored)
    made = distributed.broadcast_object(made)
    return Basis.from_dict(part_of(made, "basis")), made.get("c")


def _read_reduced(folder: Path | None, provenance: str) -> dict[str, Any] | None:
    """Return what an earlier process of this run stored, when it is of the same data and settings."""
    path = folder / "reduced.pt" if folder is not None else None
    if path is None or not path.is_file():
        return None
    try:
        found = checkpoints.load(path, package="simulgen_vae", kinds=["reduced"])
    except DataError as error:
        get_logger().warning("warning: %s; computing it again", error)
        return None
    if found.config.get("provenance") != provenance:
        return None
    return found.state_dict


def _compute_reduced(
    config: TrainConfig,
    data: FieldData,
    split: Split,
    seed: int,
    device: torch.device,
    basis: Basis | None,
) -> dict[str, Any]:
    if basis is None and config.front_end == "none":
        basis = identity_basis(data, split.train)
    elif basis is None:
        basis = _pod_basis(config, data, split, seed, device)
    c = None
    if not basis.is_identity and config.cache != "disk":
        c = torch.from_numpy(reduce_all(data, basis))
    made: dict[str, Any] = {f"basis.{name}": value for name, value in basis.state_dict().items()}
    return made if c is None else {**made, "c": c}


def _pod_basis(config: TrainConfig, data: FieldData, split: Split, seed: int, device: torch.device) -> Basis:
    """Return the basis that prep_data stored for these rows and settings, or a new one."""
    modes = 0 if config.num_modes == "auto" else int(config.num_modes)
    found = stored_basis(data.path, split.train, request_of(modes, config.energy, data))
    if found is not None:
        get_logger().info("basis: %d modes, as stored in %s", found.num_modes, data.path)
        return found
    return fit_basis(
        data,
        split.train,
        modes,
        config.energy,
        config.max_memory,
        symmetry=data.symmetry,
        seed=seed,
        device=device,
    )


def start_of(training: TrainingData, num_latents: int) -> Start:
    """Return the linear solution of the training rows; fewer rows than latents lower its rank."""
    rows = training.train_rows
    if len(rows) - 1 < num_latents:
        get_logger().warning(
            "warning: %d training rows carry %d linear modes, %d latents were asked for; the rest are empty",
            len(rows),
            len(rows) - 1,
            num_latents,
        )
    basis = training.front_end.basis
    if basis.is_identity:
        return Start(*streamed_pod(training.fetch, rows.tolist(), num_latents), basis.sigma)
    pod = fit_trajectory_pod(training.fetch(rows.tolist()).cpu().numpy(), num_latents)
    return Start(
        pod.mean.unflatten(0, training.shape),
        pod.modes.unflatten(1, training.shape),
        pod.scales,
        basis.sigma,
    )


def sample_set(training: TrainingData, samples: np.ndarray, seed: int) -> TrainingSet:
    """Return some samples (without mirror images) as the predictors take them."""
    data: FieldData = training.extra["fields"]
    rows = torch.from_numpy(np.asarray(samples))
    params = training.params
    return TrainingSet(
        c=training.fetch(rows.tolist()).cpu(),
        params=torch.zeros(len(rows), 0, dtype=torch.float64) if params is None else params[rows],
        basis=training.front_end.basis,
        images=None if training.images is None else training.images[rows],
        symmetry=data.symmetry,
        grid_shape=data.grid_shape,
        rows=rows,
        seed=seed,
    )
