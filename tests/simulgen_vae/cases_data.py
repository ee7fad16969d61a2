"""What tests of the data path share: small analytic data sets in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simulgen_vae.canonical import About, write_canonical
from simulgen_vae.fields import FieldData, open_fields
from simulgen_vae.grids import Grid
from simulgen_vae.symmetry import Symmetry


def waves(num: int = 12, frames: int = 6, nx: int = 8, ny: int = 4, fields: int = 1) -> dict[str, Any]:
    """Return fields [N, T, M, V] of standing waves with two parameters, on a grid."""
    rng = np.random.default_rng(3)
    params = rng.uniform(0.5, 1.5, (num, 2))
    x, y = (a.ravel() for a in np.broadcast_arrays(*Grid(nx, ny).centres()))
    t = np.linspace(0.1, 1.0, frames)[:, None]
    parts = [
        np.stack([np.sin(a * (x + 2 * t) + v) * np.exp(-b * y * t) for a, b in params]) for v in range(fields)
    ]
    scales = 10.0 ** np.arange(0, 3 * fields, 3)
    u = np.stack([part * scale + scale for part, scale in zip(parts, scales, strict=True)], axis=-1)
    return {"fields": u.astype(np.float32), "params": params.astype(np.float32), "time": t[:, 0]}


def mirror(grid: Grid, num_params: int = 2) -> Symmetry:
    """Return y -> 1 - y that leaves the parameters alone."""
    return Symmetry(grid.mirror(), np.ones(1), np.eye(num_params), np.zeros(num_params), flip_image=True)


def write_case(path: Path, **change: Any) -> Path:
    """Write a canonical file of `waves`; `change` replaces parts of `About` or `arrays`."""
    shape = {k: change.pop(k) for k in ("num", "frames", "nx", "ny", "fields") if k in change}
    case = waves(**shape)
    u = change.pop("u", case["fields"])
    arrays = {"params": case["params"], "time": case["time"], **change.pop("arrays", {})}
    names = tuple(f"f{v}" for v in range(u.shape[3]))
    about = About(**({"field_names": names, "param_names": ("a", "b")} | change))
    write_canonical(path, u.shape, iter(u), about, arrays)
    return path


def case(path: Path, **change: Any) -> FieldData:
    """Write and open a canonical file of `waves`."""
    return open_fields(write_case(path, **change))
