"""Open any accepted input as one data set: fields, and parameters and pictures from there or elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import open_npy
from common.errors import DataError, UserError
from simulgen_vae.arrays import FORM, ArraySource, FolderSource, read_npz, read_pickle
from simulgen_vae.canonical import open_canonical
from simulgen_vae.field_data import FieldData, Source, drop_bad_samples
from simulgen_vae.images import read_image_folder, threshold
from simulgen_vae.natural import natural_key
from simulgen_vae.paths import existing
from simulgen_vae.symmetry import read_symmetry
from simulgen_vae.tables import Table, read_table

__all__ = ["SUFFIXES", "FieldData", "open_fields"]
SUFFIXES = (".h5", ".hdf5", ".npy", ".npz", ".pickle", ".pkl")


def open_fields(
    path: str | Path,
    *,
    num_var: int = 1,
    var_order: str = "block",
    dims: tuple[int, int, int] = (0, 0, 0),
    num_frames: int = 0,
    node_start: int = 0,
    node_end: int = 0,
    params: str | Path = "",
    images: str | Path = "",
    image_suffix: str = ".png",
    num_param: int = 0,
    image_threshold: int | None = None,
    drop_bad: bool = False,
    symmetry: str | Path = "auto",
) -> FieldData:
    """Open a data set in any accepted form.

    Args:
        path: canonical HDF5, npy, npz, pickled array, or a folder of one npy or h5 file a sample.
        num_var: fields that the last axis of an array [N, T, columns] holds.
        var_order: of those columns: block (v M + m) or interleaved (m V + v).
        dims: (N, T, columns) that the user expects; 0 = not said.
        num_frames: frames kept, from the first; 0 = all.
        node_start: first node kept.
        node_end: one beyond the last node kept; 0 = all.
        params: CSV file or folder, instead of what the file holds.
        images: folder of pictures, instead of what the file holds.
        image_suffix: of the pictures.
        num_param: parameters that the user expects; 0 = not said.
        image_threshold: make pictures black and white at this grey value.
        drop_bad: leave out samples with NaN or infinite values (one pass over all data).
        symmetry: auto (what the file declares), none, or an npz file.

    Raises:
        DataError: a path does not exist, or something is damaged or does not fit together.
    """
    data = _open(existing(path, "--data"), num_var, var_order)
    try:
        data = _with_inputs(data, params, images, image_suffix, image_threshold)
        _require_dims(data, dims, num_param)
        _require_sound(data)
        data = _with_symmetry(data, symmetry).cut(num_frames, node_start, node_end)
        return drop_bad_samples(data) if drop_bad else data
    except BaseException:
        data.close()
        raise


def _open(path: Path, num_var: int, var_order: str) -> FieldData:
    if var_order not in ("block", "interleaved"):
        raise UserError(f"--var_order {var_order}: expected block or interleaved")
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix in (".npy", ".h5")), key=natural_key)
        if not files:
            raise DataError(f"{path}: holds no .npy or .h5 file, expected one a sample; check the folder")
        return _plain(path, FolderSource(files, num_var, var_order), sample_id=tuple(f.stem for f in files))
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return open_canonical(path, num_var, var_order)
    if suffix == ".npy":
        return _plain(path, ArraySource(path, open_npy(path, FORM), num_var, var_order))
    if suffix in (".pickle", ".pkl"):
        return _plain(path, ArraySource(path, read_pickle(path), num_var, var_order))
    if suffix == ".npz":
        return _from_npz(path, num_var, var_order)
    raise DataError(f"{path}: suffix {suffix or 'none'}, expected {', '.join(SUFFIXES)} or a folder")


def _plain(path: Path, source: Source, **more: Any) -> FieldData:
    num_samples, num_frames, num_nodes, num_fields = source.shape
    parts: dict[str, Any] = {"params": None, "param_names": ()}
    parts |= {"sample_id": tuple(map(str, range(num_samples))), **more}
    return FieldData(
        path=path,
        source=source,
        rows=np.arange(num_samples),
        frames=slice(0, num_frames),
        nodes=slice(0, num_nodes),
        field_names=tuple(f"field{v}" for v in range(num_fields)),
        units=("",) * num_fields,
        time=np.arange(num_frames, dtype=np.float64),
        **parts,
    )


def _from_npz(path: Path, num_var: int, var_order: str) -> FieldData:
    found = read_npz(path)
    data = _plain(path, ArraySource(path, found["fields"], num_var, var_order))
    parts: dict[str, Any] = {}
    if "params" in found:
        params = found["params"]
        if params.ndim != 2 or params.dtype.kind not in "fiub":
            raise DataError(f"{path}: params {params.dtype} {params.shape}, expected numbers [N, P]")
        names = tuple(f"p{k}" for k in range(params.shape[1]))
        parts |= {"params": params.astype(np.float64), "param_names": names}
    if "images" in found:
        images = found["images"]
        if images.ndim != 3 or images.dtype != np.uint8:
            raise DataError(f"{path}: images {images.dtype} {images.shape}, expected uint8 [N, H, W]")
        parts["images"] = images
    if "ntr" in found:
        is_number = found["ntr"].size == 1 and found["ntr"].dtype.kind in "iu"
        count = int(found["ntr"].reshape(-1)[0]) if is_number else 0
        if not 0 < count <= data.num_samples:
            raise DataError(f"{path}: ntr {found['ntr']}, expected a number 1..{data.num_samples}")
        parts["given_split"] = np.where(np.arange(data.num_samples) < count, 0, 2).astype(np.int8)
    return replace(data, **parts)


def _with_inputs(
    data: FieldData, params: str | Path, images: str | Path, suffix: str, level: int | None
) -> FieldData:
    """Return `data` with the parameters and pictures that the user named."""
    table: Table | None = None
    if params:
        table = read_table(existing(params, "--param_dir"))
        if table.sample_id is not None:
            order = _rows_by_id(data, table)
            table = table.select(order)
        if table.values.shape[1]:
            data = replace(data, params=table.values, param_names=table.names)
    if images:
        folder = existing(images, "--param_dir")
        files = table.files if table is not None else None
        data = replace(data, images=read_image_folder(folder, suffix, files))
    if level is not None and data.images is not None:
        data = replace(data, images=threshold(data.images, level))
    return data


def _rows_by_id(data: FieldData, table: Table) -> list[int]:
    ids = table.sample_id or ()
    row_of = {name: k for k, name in enumerate(ids)}
    if len(row_of) < len(ids):
        repeated = next(name for name, count in Counter(ids).items() if count > 1)
        raise DataError(f"{table.path}: sample_id {repeated} stands twice, expected one row each; drop one")
    missing = [name for name in data.sample_id if name not in row_of]
    if missing:
        raise DataError(
            f"{table.path}: no row for sample {missing[0]} ({len(missing)} are missing), expected one each"
        )
    return [row_of[name] for name in data.sample_id]


def _with_symmetry(data: FieldData, symmetry: str | Path) -> FieldData:
    if str(symmetry) in ("none", "0"):
        return replace(data, symmetry=None)
    if str(symmetry) not in ("auto", "1", ""):
        data = replace(data, symmetry=read_symmetry(symmetry))
    declared = data.symmetry
    if declared is None:
        return data
    if len(declared.field_signs) == 1 < data.num_fields:  # one sign stands for all fields
        declared = replace(declared, field_signs=np.repeat(declared.field_signs, data.num_fields))
        data = replace(data, symmetry=declared)
    declared.check(data.num_nodes, data.num_fields, data.num_params, f"{data.path}: --symmetry {symmetry}")
    return data


def _require_dims(data: FieldData, dims: tuple[int, int, int], num_param: int) -> None:
    columns = data.num_nodes * data.num_fields
    for k, (name, wanted, found) in enumerate(
        zip(("Dim1", "Dim2", "Dim3"), dims, (data.num_samples, data.num_frames, columns), strict=True)
    ):
        if wanted and wanted != found and not (k == 2 and wanted == data.num_nodes):
            raise DataError(f"{data.path}: {name} is {wanted}, the data has {found}; correct one of them")
    if num_param and num_param != data.num_params:
        raise DataError(
            f"{data.path}: --num_param {num_param}, found {data.num_params} parameter columns; correct one"
        )


def _require_sound(data: FieldData) -> None:
    """Check what belongs to samples: their number, finite parameters, distinct names."""
    for name in ("params", "images"):
        values = getattr(data, name)
        if values is not None and len(values) != data.num_samples:
            raise DataError(
                f"{data.path}: {len(values)} {name} for {data.num_samples} samples, expected one a sample"
            )
    if data.params is not None and not np.isfinite(data.params).all():
        row, column = (int(k) for k in np.argwhere(~np.isfinite(data.params))[0])
        raise DataError(
            f"{data.path}: parameter {data.param_names[column]} of sample {data.sample_id[row]} is not "
            "finite; repair it"
        )
    if data.time is not None and not (np.isfinite(data.time).all() and (np.diff(data.time) > 0).all()):
        raise DataError(f"{data.path}: time does not increase, expected rising frame times")
    repeated = [name for name, count in Counter(data.sample_id).items() if count > 1]
    if repeated:
        raise DataError(f"{data.path}: sample id {repeated[0]} stands twice, expected distinct ids")
