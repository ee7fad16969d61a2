"""Declared symmetries: a map of fields, parameters and picture under which a simulation stays valid.

    u'[t, m, v] = s_v u[t, pi(m), v],   p' = A p + b,   picture' = picture or its rows in reverse

Nothing is guessed: a symmetry is used when the data file or the user declares it. M nodes, V fields, P
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from common.arrays import open_npz
from common.errors import DataError
from simulgen_vae.paths import existing_file

Array = TypeVar("Array", np.ndarray, torch.Tensor)
KEYS = ("node_permutation", "field_signs", "param_matrix", "param_offset", "flip_image")


@dataclass(frozen=True, eq=False)
class Symmetry:
    """One symmetry of a data set.

    Attributes:
        node_permutation: int64 [M], the node whose value lands on node m.
        field_signs: [V], the factor of each field (-1 for the component that a mirror turns round).
        param_matrix: [P, P], A of p' = A p + b, in physical units.
        param_offset: [P], b.
        flip_image: whether the rows of the picture are reversed.

    Raises:
        ValueError: the permutation is none, or the shapes do not fit one another.
    """

    node_permutation: np.ndarray
    field_signs: np.ndarray
    param_matrix: np.ndarray
    param_offset: np.ndarray
    flip_image: bool = False

    def __post_init__(self) -> None:
        nodes = np.asarray(self.node_permutation)
        if nodes.ndim != 1 or nodes.dtype.kind not in "iu":
            raise ValueError(f"node_permutation: {nodes.dtype} {nodes.shape}, expected whole numbers [M]")
        if not np.array_equal(np.sort(nodes), np.arange(len(nodes))):
            raise ValueError(f"node_permutation: expected each of 0..{len(nodes) - 1} once")
        object.__setattr__(self, "node_permutation", nodes.astype(np.int64))
        for name in ("field_signs", "param_matrix", "param_offset"):
            values = np.asarray(getattr(self, name))
            if values.dtype.kind not in "fiub":
                raise ValueError(f"{name}: {values.dtype}, expected real numbers")
            values = values.astype(np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite numbers")
            object.__setattr__(self, name, values)
        num_params = self.param_offset.shape[0] if self.param_offset.ndim == 1 else -1
        if self.param_matrix.shape != (num_params, num_params):
            raise ValueError(
                f"param_matrix {self.param_matrix.shape} and param_offset {self.param_offset.shape}, "
                "expected [P, P] and [P]"
            )
        if self.field_signs.ndim != 1 or not (np.abs(self.field_signs) == 1).all():
            found = f"{self.field_signs.shape} {self.field_signs.ravel()[:8].tolist()}"
            raise ValueError(f"field_signs: found {found}, expected 1 or -1 a field")
        object.__setattr__(self, "flip_image", bool(self.flip_image))

    def apply(self, u: Array, params: Array, image: Array | None = None) -> tuple[Array, Array, Array | None]:
        """Return (u', p', picture').

        Args:
            u: [..., M, V].
            params: [..., P] in physical units.
            image: [..., H, W], or None.
        """
        return self.apply_fields(u), self.apply_params(params), self.apply_image(image)

    def apply_fields(self, u: Array) -> Array:
        """Return u' for u [..., M, V]."""
        if isinstance(u, torch.Tensor):
            order = torch.from_numpy(self.node_permutation).to(u.device)
            return u.index_select(-2, order) * torch.from_numpy(self.field_signs).to(u)
        return np.take(u, self.node_permutation, axis=-2) * self.field_signs.astype(u.dtype)

    def apply_params(self, params: Array) -> Array:
        """Return A p + b for p [..., P]."""
        if isinstance(params, torch.Tensor):
            matrix, offset = (torch.from_numpy(a).to(params) for a in (self.param_matrix, self.param_offset))
            return params @ matrix.T + offset
        return params @ self.param_matrix.T.astype(params.dtype) + self.param_offset.astype(params.dtype)

    def apply_image(self, image: Array | None) -> Array | None:
        """Return the picture [..., H, W], rows reversed when the symmetry says so."""
        if image is None or not self.flip_image:
            return image
        return image.flip(-2) if isinstance(image, torch.Tensor) else image[..., ::-1, :]

    def check(self, num_nodes: int, num_fields: int, num_params: int, where: str) -> None:
        """Raise DataError, naming `where`, unless the symmetry fits a data set of these sizes."""
        found = (len(self.node_permutation), len(self.field_signs), len(self.param_offset))
        expected = (num_nodes, num_fields, num_params)
        if found != expected:
            raise DataError(
                f"{where}: a symmetry of (nodes, fields, parameters) = {found}, expected {expected} as in "
                "the data; declare it again for this data set"
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the symmetry as plain arrays, as `from_arrays` takes it and a file holds it."""
        return {name: np.asarray(getattr(self, name)) for name in KEYS}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any], where: str) -> Symmetry:
        """Return the symmetry of `arrays`; `field_signs` and `flip_image` may be absent.

        Raises:
            DataError: an array is missing or does not fit; the message names `where`.
        """
        missing = [k for k in ("node_permutation", "param_matrix", "param_offset") if k not in arrays]
        if missing:
            raise DataError(f"{where}: a symmetry without {', '.join(missing)}; expected {', '.join(KEYS)}")
        signs = arrays.get("field_signs", np.ones(1))
        flip = bool(np.asarray(arrays.get("flip_image", False)).reshape(-1)[:1].any())
        names = ("node_permutation", "param_matrix", "param_offset")
        nodes, matrix, offset = (np.asarray(arrays[k]) for k in names)
        try:
            return cls(nodes, np.asarray(signs), matrix, offset, flip)
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: no valid symmetry, {error}; correct the file") from error


def read_symmetry(path: str | Path) -> Symmetry:
    """Read a symmetry that a user declares: an npz file with the arrays of `KEYS`.

    Raises:
        DataError: there is no such file, it is no npz file, or what it holds is no symmetry.
    """
    path = existing_file(path, "--symmetry", "auto, none or an npz file")
    with open_npz(path, f"expected an npz file with {KEYS}") as archive:
        arrays = {name: archive[name] for name in archive.files if name in KEYS}
    return Symmetry.from_arrays(arrays, str(path))
