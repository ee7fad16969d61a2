"""Writing one prepped file: streamed state by state, chunks without active cells left unwritten."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.errors import DataError
from common.files import atomic_path
from common.hdf5 import open_h5
from voxel_ode.config_prep import PrepConfig
from voxel_ode.h5_files import attribute
from voxel_ode.prepped import PREPPED_SCHEMA, Shape, active_slabs, bounding_box, open_prepped
from voxel_ode.raw import RawFile
from voxel_ode.schema import SCHEMA, SENTINEL
from voxel_ode.wells import Box

CHUNK = 16  # cells an axis
CHUNK_STEPS = 2  # states a chunk: one patch read brings a state and the next
_PIECE = 1 << 22


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a plain value's JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_id(config: PrepConfig) -> str:
    """Return the hash of the flags that a prepped file's content depends on."""
    names = ("dtype", "units", "dt_days", "compression")
    return hash_of({"schema": PREPPED_SCHEMA, **{name: getattr(config, name) for name in names}})


def is_done(path: Path, source_sha256: str, flags_id: str) -> bool:
    """Return whether `path` is a whole prepped file of this source and these flags."""
    try:
        if open_prepped(path).source_sha256 != source_sha256:
            return False
        with open_h5(path) as file:
            return attribute(file, "flags_id", str) == flags_id
    except DataError:
        return False


def write_prepped(raw: RawFile, path: Path, config: PrepConfig, source_sha256: str) -> None:
    """Write the prepped file of an open raw simulation, atomically; the same values whoever writes it.

    The same bytes too, but for "lzf": that compressor starts from whatever its table of matches holds, so the
    compressed form of a chunk may differ by some bytes.

    Raises:
        DataError: an output state is not valid, or the disk is full.
    """
    scalars = raw.scalars()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _write_attributes(file, raw, config, source_sha256)
        boxes = active_chunks(raw.inputs.masks[0])
        options = storage(config.compression)
        grids = {
            "static": (raw.inputs.static, np.float32, SENTINEL),
            "masks": (raw.inputs.masks.astype(np.uint8), np.uint8, 0),
            "initial": (raw.initial, config.dtype, SENTINEL),
        }
        for name, (values, dtype, fill) in grids.items():
            data = create_grid(file, name, values.shape, dtype, fill, options)
            for box in boxes:
                data[(slice(None), *box)] = values[(slice(None), *box)]
        features = _stream_states(file, raw, config, boxes, options)
        tables = {"params_scalar": raw.params, "outputs_scalar": scalars, "well_features": features}
        wells = raw.inputs.wells
        tables |= {
            "wells/sign": wells.sign,
            "wells/rate": wells.rate_kg_s,
            "wells/cells": np.column_stack([wells.cells.astype(np.float64), wells.weight]),
            "wells/cell_well": wells.cell_well,
        }
        for name, table in tables.items():
            file.create_dataset(name, data=table)


def storage(compression: str) -> dict[str, Any]:
    """Return h5py's options for a compression: "lzf", "gzip1" or "none", with shuffle and check sums."""
    options: dict[str, Any] = {"shuffle": True, "fletcher32": True}
    if compression == "lzf":
        options["compression"] = "lzf"
    elif compression == "gzip1":
        options |= {"compression": "gzip", "compression_opts": 1}
    return options


def create_grid(
    file: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    fill: float,
    options: dict[str, Any],
) -> h5py.Dataset:
    """Create a grid dataset [.., C, Z, Y, X]: chunks of 16^3 cells, all channels, two states."""
    lead = [min(CHUNK_STEPS, n) for n in shape[:-4]]
    chunks = (*lead, shape[-4], *(min(CHUNK, n) for n in shape[-3:]))
    return file.create_dataset(name, shape, dtype, chunks=chunks, fillvalue=fill, **options)


def active_chunks(active: np.ndarray) -> list[Box]:
    """Return the boxes of the chunks that hold an active cell."""
    starts = [range(0, n, CHUNK) for n in active.shape]
    boxes = []
    for corner in itertools.product(*starts):
        z, y, x = (slice(a, min(a + CHUNK, n)) for a, n in zip(corner, active.shape, strict=True))
        if active[z, y, x].any():
            boxes.append((z, y, x))
    return boxes


def _stream_states(
    file: h5py.File, raw: RawFile, config: PrepConfig, boxes: list[Box], options: dict[str, Any]
) -> np.ndarray:
    """Write /outputs_grid, two states in memory at a time; return the well features [T + 1, 6]."""
    inputs = raw.inputs
    shape = (raw.t_valid, 2, *raw.shape)
    data = create_grid(file, "outputs_grid", shape, config.dtype, SENTINEL, options)
    features = [inputs.wells.features(*raw.initial, *inputs.masks[:2])]
    for first in range(0, raw.t_valid, CHUNK_STEPS):
        stop = min(first + CHUNK_STEPS, raw.t_valid)
        states = np.empty((stop - first, *shape[1:]), dtype=config.dtype)
        for t in range(first, stop):
            state = raw.state(t)
            states[t - first] = state
            features.append(inputs.wells.features(*state, *inputs.masks[:2]))
        for box in boxes:
            data[(slice(first, stop), slice(None), *box)] = states[(slice(None), slice(None), *box)]
    return np.stack(features)


def _write_attributes(file: h5py.File, raw: RawFile, config: PrepConfig, source_sha256: str) -> None:
    active = raw.inputs.masks[0]
    file.attrs["schema"] = PREPPED_SCHEMA
    file.attrs["raw_schema"] = SCHEMA
    file.attrs["units_in"] = raw.units
    file.attrs["T_valid"] = raw.t_valid
    file.attrs["dt_s"] = raw.dt_s
    file.attrs["bbox"] = bounding_box(active)
    file.attrs["slabs"] = active_slabs(active)
    if raw.cell_size_m:
        file.attrs["cell_size_m"] = raw.cell_size_m
    file.attrs["param_names"] = json.dumps(raw.param_names)
    file.attrs["source"] = raw.path.name
    file.attrs["source_sha256"] = source_sha256
    file.attrs["flags_id"] = content_id(config)


def shrunk_patch(patch: tuple[int, ...], shape: Shape) -> Shape:
    """Return the patch, no longer than the grid on any axis."""
    z, y, x = (min(p, n) for p, n in zip(patch, shape, strict=True))
    return z, y, x
