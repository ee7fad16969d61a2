"""From any accepted input to canonical HDF5: a schema table, checks of all values, the stored POD basis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import content_hash
from common.errors import DataError, UserError
from common.files import atomic_path
from common.hdf5 import open_h5
from common.run import BasicOptions
from simulgen_vae.basis import Basis, fit_basis
from simulgen_vae.canonical import About, write_canonical
from simulgen_vae.config_data import PrepDataConfig
from simulgen_vae.field_data import FieldData
from simulgen_vae.fields import open_fields
from simulgen_vae.hdf5_input import DAMAGE, find_item, require_readable_texts, text_of
from simulgen_vae.normalize import FieldStatistics
from simulgen_vae.paths import existing
from simulgen_vae.split import Split, make_split
from simulgen_vae.uncertainty import keep_for_calibration

HDF5_SUFFIXES = (".h5", ".hdf5")


def open_input(config: PrepDataConfig) -> FieldData:
    """Open the input as the flags say; `--param_dir` names a CSV or, when it holds pictures, those."""
    params, images = config.param_dir, config.image_dir
    if params and not images and _holds_pictures(existing(params, "--param_dir"), config.param_data_type):
        params, images = "", params
    return open_fields(
        config.data,
        num_var=config.num_var,
        var_order=config.var_order,
        dims=(config.dim1, config.dim2, config.dim3),
        params=params,
        images=images,
        image_suffix=config.param_data_type,
        num_param=config.num_param,
        drop_bad=config.drop_bad,
        symmetry=config.symmetry,
    )


def _holds_pictures(path: Path, suffix: str) -> bool:
    return path.is_dir() and any(p.suffix.lower() == suffix.lower() for p in path.iterdir())


def prep_data(config: PrepDataConfig, options: BasicOptions) -> dict[str, Any]:
    """Check an input, and unless only that is asked for, write it as canonical HDF5 with or without a basis.

    Returns:
        "table": (name, found) rows of the schema; "path" when a file was written; "num_modes" and "energy"
        when a basis was stored.

    Raises:
        UserError: the output exists already, is the input, or has the suffix of another format.
        DataError: something is wrong with the data.
    """
    data = open_input(config)
    try:
        path = Path(config.path or data.path.with_name(f"{data.path.stem}_canonical.h5"))
        if not config.check:
            _require_writable_name(path, data.path, options.overwrite)
        statistics = scan(data)
        result: dict[str, Any] = {"table": schema_table(data, statistics)}
        if config.check:
            return result
        split = _split(data, config)
        if not options.dry_run:
            _write(path, data, split)
            if config.fit_basis and split is not None:
                # Rows that a training would keep for its error bars must not be seen by the basis either.
                rows = keep_for_calibration(split, data.num_samples, config.seed)[0].train
                basis = _fit(data, rows, config)
                store_basis(path, basis, rows, request_of(config.num_modes, config.energy, data))
                result |= {"num_modes": basis.num_modes, "energy": float(basis.energy)}
            result["path"] = path
        return result
    finally:
        data.close()


def _require_writable_name(path: Path, source: Path, overwrite: bool) -> None:
    """Raise UserError before the pass over all data when the result may not, or could not, be read back."""
    if path.suffix.lower() not in HDF5_SUFFIXES:
        raise UserError(
            f"--path {path}: suffix {path.suffix or 'missing'}, expected {' or '.join(HDF5_SUFFIXES)}; "
            f"name {path.with_suffix('.h5')}"
        )
    if path.exists() and (not overwrite or path.samefile(source)):
        raise UserError(f"{path}: exists already; add --overwrite or choose another --path")


def _split(data: FieldData, config: PrepDataConfig) -> Split | None:
    """Return the split to store: one that is asked for or given, or that the basis needs."""
    if not (config.fit_basis or config.split_file or data.given_split is not None):
        return None
    fractions = (config.val_fraction, config.test_fraction)
    return make_split(data, *fractions, seed=config.seed, split_file=config.split_file)


def request_of(num_modes: int, energy: float, data: FieldData) -> str:
    """Return what a basis was asked for beside its rows; another request needs another basis."""
    size = f"{num_modes} modes" if num_modes else f"energy {energy!r}"
    parts = (data.num_frames, data.num_nodes, data.num_fields)
    return f"{size}, frames nodes fields {parts}, mirrored {data.symmetry is not None}"


def _fit(data: FieldData, rows: np.ndarray, config: PrepDataConfig) -> Basis:
    return fit_basis(
        data,
        rows,
        config.num_modes,
        config.energy,
        config.max_memory,
        symmetry=data.symmetry,
        seed=config.seed,
    )


def scan(data: FieldData) -> FieldStatistics:
    """Return the statistics of all samples by one pass.

    Raises:
        DataError: a value is not finite, or a field is constant.
    """
    statistics = FieldStatistics()
    for i in range(data.num_samples):
        statistics.update(data.trajectory(i))
    statistics.require_varying(data.field_names, str(data.path))
    return statistics


def schema_table(data: FieldData, statistics: FieldStatistics) -> list[tuple[str, str]]:
    """Return what the data set holds, as rows of (name, found)."""
    words = ("samples", "frames", "nodes", "fields")
    rows = [("fields", ", ".join(f"{n} {word}" for n, word in zip(data.shape, words, strict=True)))]
    found = statistics.normalizer()
    for v, name in enumerate(data.field_names):
        unit = f" {data.units[v]}" if data.units[v] else ""
        span = f"{statistics.low[v]:.4g} to {statistics.high[v]:.4g}{unit}"
        rows.append((f"  {name}", f"{span}, mean {found.mean[v]:.4g}, std {found.std[v]:.4g}"))
    rows.append(("time", f"{data.time[0]:g} to {data.time[-1]:g}"))
    if data.params is None:
        rows.append(("params", "none"))
    else:
        rows.append(("params", f"{data.num_params}"))
        low, high = data.params.min(axis=0), data.params.max(axis=0)
        for name, a, b in zip(data.param_names, low, high, strict=True):
            rows.append((f"  {name}", f"{a:.4g} to {b:.4g}" + (", constant" if a == b else "")))
    optional = {
        "images": "none" if data.images is None else f"{data.images.shape[1]} x {data.images.shape[2]}",
        "coords": "none" if data.coords is None else "x y z",
        "grid": "none" if data.grid_shape is None else f"{data.grid_shape[0]} x {data.grid_shape[1]}",
        "cells": ", ".join(f"{len(c)} {kind}" for kind, c in data.cells.items()) or "none",
        "mask": "none" if data.mask is None else f"{int(data.mask.sum())} nodes count",
        "groups": "none" if data.group is None else f"{len(np.unique(data.group))}",
        "symmetry": "none" if data.symmetry is None else "one declared",
        "balance": "none" if data.balance is None else "content, inflow, outflow",
    }
    rows += list(optional.items())
    codes = data.given_split
    names = ("train", "validation", "test")
    counts = [] if codes is None else [f"{int((codes == k).sum())} {name}" for k, name in enumerate(names)]
    return [*rows, ("split", ", ".join(counts) or "none")]


def _write(path: Path, data: FieldData, split: Split | None) -> None:
    def trajectories() -> Iterator[np.ndarray]:
        for i in range(data.num_samples):
            yield data.trajectory(i)

    arrays = {name: getattr(data, name) for name in ("params", "images", "time", "coords", "mask", "group")}
    arrays["balance"] = data.balance
    arrays["split"] = None if split is None else split.codes(data.num_samples)
    about = About(
        field_names=data.field_names,
        units=data.units,
        param_names=data.param_names,
        sample_id=data.sample_id,
        grid_shape=data.grid_shape,
        cells=data.cells,
        symmetry=data.symmetry,
        attributes=data.attributes,
    )
    write_canonical(path, data.shape, trajectories(), about, arrays)


def store_basis(path: Path, basis: Basis, rows: np.ndarray, request: str) -> None:
    """Add the basis, its rows and what was asked for to a canonical file, replacing one that is there."""
    import h5py

    tensors = basis.state_dict()
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    with atomic_path(path, needed_bytes=path.stat().st_size + size) as temporary:
        shutil.copyfile(path, temporary)
        with h5py.File(temporary, "r+") as h5:
            if "basis" in h5:
                del h5["basis"]
            group = h5.create_group("basis")
            group.attrs["hash"] = np.bytes_(content_hash(dict(tensors)).encode())
            group.attrs["request"] = np.bytes_(request.encode())
            group.create_dataset("rows", data=np.asarray(rows, dtype=np.int64))
            for name, tensor in tensors.items():
                group.create_dataset(name, data=tensor.numpy())


def stored_basis(path: str | Path, rows: np.ndarray, request: str) -> Basis | None:
    """Return the basis that a canonical file holds, or None when there is none for these rows and request.

    Raises:
        DataError: it is damaged.
    """
    path = Path(path)
    if path.suffix.lower() not in HDF5_SUFFIXES:
        return None
    h5 = open_h5(path)
    try:
        require_readable_texts(h5, ("basis",), path)
        group = find_item(h5, "basis", path)
        if group is None or not np.array_equal(group["rows"][()], np.asarray(rows)):
            return None
        if text_of(group.attrs.get("request", "")) != request:
            return None
        names = [name for name in group if name != "rows"]
        tensors = {name: torch.from_numpy(np.asarray(find_item(group, name, path)[()])) for name in names}
        if content_hash(tensors) != text_of(group.attrs.get("hash")):
            raise DataError(f"{path}: the stored basis is damaged, its hash differs; run prep_data again")
        return Basis.from_dict(tensors)
    except DAMAGE as error:
        raise DataError(f"{path}: the stored basis cannot be read ({error}); run prep_data again") from error
    finally:
        h5.close()
