"""The files of inference, written while the predictions come: fields.h5 or npy files, ood.csv, latents.npy.

N queries, T frames, M nodes, V fields. All appear complete or not at all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.errors import UserError
from common.files import atomic_path
from simulgen_vae.canonical import CHUNK_NODES
from simulgen_vae.graph import Model
from simulgen_vae.hdf5_input import fixed_texts

BARS = ("std", "lower", "upper")
CELLS = "cells_"


def refuse_existing(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise UserError when one of the files is there and may not be replaced."""
    found = [name for name in names if (folder / name).exists()]
    if found and not overwrite:
        raise UserError(f"{folder / found[0]}: exists already; add --overwrite or choose another --out")


class FieldFiles(contextlib.ExitStack):
    """Open files of predictions; leave the block well to give them their names.

    Args:
        folder: where they go.
        kind: h5 (all in fields.h5, canonical layout) or npy (one file an array).
        shape: (N, T, M, V).
        arrays: further arrays of the same shape: std, lower, upper.
        others: name -> (shape, dtype) of what else comes row by row, such as latents and images.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        shape: tuple[int, int, int, int],
        arrays: Sequence[str],
        others: Mapping[str, tuple[tuple[int, ...], Any]],
    ) -> None:
        super().__init__()
        self.folder, self.kind, self.shape = folder, kind, shape
        self._written: dict[str, Any] = {}
        self._h5: Any = None
        named = dict.fromkeys(("fields", *arrays), (shape, np.float32))
        if kind == "h5":
            inside = named | {n: v for n, v in others.items() if n != "latents"}
            self._open_h5(inside)
            named = {n: v for n, v in others.items() if n == "latents"}
        else:
            named |= dict(others)
        for name, (size, dtype) in named.items():
            self._open_npy(name, size, dtype)

    def _open_h5(self, arrays: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        import h5py

        needed = sum(math.prod(size) * np.dtype(dtype).itemsize for size, dtype in arrays.values())
        temporary = self.enter_context(atomic_path(self.folder / "fields.h5", needed_bytes=needed))
        self._h5 = self.enter_context(h5py.File(temporary, "w"))
        _, frames, nodes, num_fields = self.shape
        for name, (size, dtype) in arrays.items():
            chunk = (1, frames, min(nodes, CHUNK_NODES), num_fields) if size == self.shape else (1, *size[1:])
            self._written[name] = self._h5.create_dataset(name, size, dtype, chunks=chunk, fletcher32=True)

    def _open_npy(self, name: str, size: tuple[int, ...], dtype: Any) -> None:
        needed = math.prod(size) * np.dtype(dtype).itemsize
        temporary = self.enter_context(atomic_path(self.folder / f"{name}.npy", needed_bytes=needed))
        array = np.lib.format.open_memmap(temporary, "w+", dtype, size)
        self._written[name] = array
        self.callback(array.flush)

    def open_text(self, name: str, header: str) -> IO[str]:
        """Return an open text file that gets its name with the others."""
        temporary = self.enter_context(atomic_path(self.folder / name))
        file = self.enter_context(temporary.open("w", encoding="utf-8"))
        file.write(header + "\n")
        return file

    def write(self, first: int, arrays: Mapping[str, np.ndarray | None]) -> None:
        """Write rows from `first` on; None leaves an array as it is."""
        for name, values in arrays.items():
            if values is not None and name in self._written:
                self._written[name][first : first + len(values)] = values

    def describe(self, model: Model, sample_id: Sequence[str], params: np.ndarray | None, seed: int) -> None:
        """Add what belongs to the mesh and to the samples: names, time, coordinates, cells, parameters."""
        if self._h5 is None:
            return
        config, h5 = model.config, self._h5
        fields = h5["fields"]
        fields.attrs["names"] = fixed_texts(config["field_names"])
        fields.attrs["units"] = fixed_texts(config["units"])
        if config["grid_shape"] is not None:
            fields.attrs["grid_shape"] = np.array(config["grid_shape"])
        h5.create_dataset("sample_id", data=fixed_texts(sample_id))
        if params is not None and params.shape[1]:
            h5.create_dataset("params", data=params.astype(np.float32))
            h5["params"].attrs["names"] = fixed_texts(config["param_names"])
        for name, values in model.surrogate.arrays.items():
            if name in ("time", "coords", "mask"):
                h5.create_dataset(name, data=values.cpu().numpy())
            elif name.startswith(CELLS):
                h5.create_dataset(f"cells/{name.removeprefix(CELLS)}", data=values.cpu().numpy())
        h5.attrs.update(
            {"generator": f"simulgen_vae {config['ships'] or 'vae'}", "seed": str(seed), "version": "1"}
        )
