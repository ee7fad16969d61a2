"""One view of any accepted input: whole trajectories of simulations on one fixed mesh, read one at a time.

N samples, T frames, M nodes, V fields, P parameters. A trajectory is float32 [T, M, V].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import DataError
from common.log import get_logger
from simulgen_vae.symmetry import Symmetry

PROVENANCE_TRAJECTORIES = 8  # read in full for the content hash, beside all parameters and pictures


class Source(Protocol):
    """Where trajectories come from."""

    shape: tuple[int, int, int, int]

    def read(self, row: int, frames: slice, nodes: slice) -> np.ndarray:
        """Return [frames, nodes, V] of sample `row`, any real type."""
        ...

    def close(self) -> None:
        """Give files back."""
        ...


@dataclass(eq=False)
class FieldData:
    """A data set of N trajectories, with all that belongs to a sample or a node.

    Attributes:
        path: what the user named.
        source: reads the stored samples.
        rows: int64 [N], the stored sample behind each row.
        frames: the stored frames that are kept.
        nodes: the stored nodes that are kept.
        field_names: V names.
        units: V units.
        params: float64 [N, P], or None.
        param_names: P names.
        time: float64 [T].
        sample_id: N distinct names.
        coords: float64 [M, 3], or None.
        grid_shape: (ny, nx) of a regular grid with node = iy nx + ix, or None.
        cells: cell type (as meshio names it) -> int64 [cells, nodes a cell].
        mask: bool [M], true where a node counts, or None.
        group: int64 [N]; samples of one group stay on one side of the split; or None.
        given_split: int8 [N], 0 train, 1 validation, 2 test, or None.
        balance: float64 [N, T, 3] of the generators, or None.
        images: uint8 [N, H, W], or None.
        symmetry: declared in the file or by the user, or None.
        attributes: what else the file says of itself (generator, seed, version).
    """

    path: Path
    source: Source
    rows: np.ndarray
    frames: slice
    nodes: slice
    field_names: tuple[str, ...]
    units: tuple[str, ...]
    params: np.ndarray | None
    param_names: tuple[str, ...]
    time: np.ndarray
    sample_id: tuple[str, ...]
    coords: np.ndarray | None = None
    grid_shape: tuple[int, int] | None = None
    cells: dict[str, np.ndarray] = field(default_factory=dict)
    mask: np.ndarray | None = None
    group: np.ndarray | None = None
    given_split: np.ndarray | None = None
    balance: np.ndarray | None = None
    images: np.ndarray | None = None
    symmetry: Symmetry | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    _provenance: str = ""

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def num_frames(self) -> int:
        """T."""
        return self.frames.stop - self.frames.start

    @property
    def num_nodes(self) -> int:
        """M."""
        return self.nodes.stop - self.nodes.start

    @property
    def num_fields(self) -> int:
        """V."""
        return self.source.shape[3]

    @property
    def num_params(self) -> int:
        """P; 0 without parameters."""
        return 0 if self.params is None else self.params.shape[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, T, M, V)."""
        return self.num_samples, self.num_frames, self.num_nodes, self.num_fields

    def trajectory(self, i: int, *, check: bool = True) -> np.ndarray:
        """Return sample `i`, float32 [T, M, V], by one read.

        Raises:
            DataError: it holds NaN or infinite values, and `check` is on.
        """
        stored = self.source.read(int(self.rows[i]), self.frames, self.nodes)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is reported below
            u = np.ascontiguousarray(stored, dtype=np.float32)
        if check and not np.isfinite(u).all():
            raise DataError(f"{self.path}: {describe_bad(u, self.sample_id[i])}; repair it or --drop_bad 1")
        return u

    @property
    def provenance(self) -> str:
        """A hash of the content: shape, parameters, pictures, and some trajectories in full."""
        if not self._provenance:
            self._provenance = self._content_hash()
        return self._provenance

    def _content_hash(self) -> str:
        digest = hashlib.blake2b(repr((self.shape, self.param_names)).encode(), digest_size=16)
        for part in (self.params, self.time, self.images):
            if part is not None:
                digest.update(np.ascontiguousarray(part).tobytes())
        picked = np.unique(np.linspace(0, self.num_samples - 1, PROVENANCE_TRAJECTORIES).astype(int))
        for i in picked:
            digest.update(self.trajectory(int(i), check=False).tobytes())
        return digest.hexdigest()

    def select(self, keep: np.ndarray) -> FieldData:
        """Return the data set of the rows `keep` (indices) alone; the files are shared."""
        keep = np.asarray(keep, dtype=np.int64)
        arrays = ("params", "group", "given_split", "balance", "images")
        chosen = {n: getattr(self, n)[keep] for n in arrays if getattr(self, n) is not None}
        ids = tuple(self.sample_id[i] for i in keep)
        return replace(self, rows=self.rows[keep], sample_id=ids, _provenance="", **chosen)

    def cut(self, num_frames: int = 0, node_start: int = 0, node_end: int = 0) -> FieldData:
        """Return a view of the first `num_frames` frames and nodes `node_start:node_end`; 0 means all.

        What describes the whole mesh (grid, cells, symmetry) is dropped when nodes are cut.

        Raises:
            DataError: the range lies outside the data.
        """
        num_frames, node_end = num_frames or self.num_frames, node_end or self.num_nodes
        if not 0 < num_frames <= self.num_frames:
            raise DataError(
                f"{self.path}: --dim2_red {num_frames}, expected 1..{self.num_frames} frames as stored"
            )
        if not 0 <= node_start < node_end <= self.num_nodes:
            raise DataError(
                f"{self.path}: --dim3_start {node_start} --dim3_end {node_end}, expected a range within "
                f"0..{self.num_nodes} nodes"
            )
        if (num_frames, node_end - node_start) == (self.num_frames, self.num_nodes):
            return self
        frames = slice(self.frames.start, self.frames.start + num_frames)
        nodes = slice(self.nodes.start + node_start, self.nodes.start + node_end)
        parts = {"frames": frames, "nodes": nodes, "time": self.time[:num_frames], "_provenance": ""}
        if self.balance is not None:
            parts["balance"] = self.balance[:, :num_frames]
        if node_end - node_start < self.num_nodes:
            for name in ("coords", "mask"):
                values = getattr(self, name)
                parts[name] = None if values is None else values[node_start:node_end]
            parts |= {"grid_shape": None, "cells": {}, "symmetry": None, "balance": None}
        return replace(self, **parts)

    def close(self) -> None:
        """Close the files."""
        self.source.close()


def describe_bad(u: np.ndarray, sample: str) -> str:
    """Say where a trajectory [T, M, V] is not finite: the first place and the count."""
    bad = ~np.isfinite(u)
    frame, node, value = (int(k) for k in np.argwhere(bad)[0])
    return (
        f"sample {sample}: {int(bad.sum())} of {u.size} values are NaN or infinite, the first at frame "
        f"{frame}, node {node}, field {value}; expected finite values"
    )


def drop_bad_samples(data: FieldData) -> FieldData:
    """Return `data` without the samples that hold NaN or infinite values, by one pass over all of it.

    Raises:
        DataError: nothing is left.
    """
    good = [i for i in range(data.num_samples) if np.isfinite(data.trajectory(i, check=False)).all()]
    if len(good) == data.num_samples:
        return data
    if not good:
        raise DataError(f"{data.path}: every sample holds NaN or infinite values; expected finite fields")
    dropped = sorted(set(range(data.num_samples)) - set(good))
    names = ", ".join(data.sample_id[i] for i in dropped[:8])
    get_logger().warning(
        "warning: %s: %d samples with NaN or infinite values dropped: %s", data.path, len(dropped), names
    )
    return data.select(np.array(good))
