"""Reduced coefficients of a whole data set, kept in a cache file that its content names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from common.checkpoint import content_hash
from common.files import atomic_path
from common.log import get_logger
from simulgen_vae.basis import Basis
from simulgen_vae.field_data import FieldData
from simulgen_vae.reduced import reduce_all, reduce_one

CACHE_VERSION = "1"


def load_coefficients(data: FieldData, basis: Basis, folder: Path | None = None) -> np.ndarray:
    """Return c float32 [N, r, T] of all rows, from the cache in `folder` when it is there and whole.

    The cache is an npy file named by the content of data and basis; a damaged one is made again.
    """
    if folder is None:
        return reduce_all(data, basis)
    key = f"{CACHE_VERSION} {data.provenance} {content_hash(dict(basis.state_dict()))}"
    path = folder / f"coefficients_{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npy"
    shape = (data.num_samples, basis.num_modes, data.num_frames)
    if path.exists():
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            if stored.shape == shape and stored.dtype == np.float32:
                return stored
            raise ValueError(f"{stored.dtype} {stored.shape}, expected float32 {shape}")
        except (OSError, ValueError, EOFError) as error:
            get_logger().warning("warning: %s: damaged cache (%s), made again", path, error)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_path(path, needed_bytes=4 * int(np.prod(shape))) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        for row in range(data.num_samples):
            out[row] = reduce_one(data, basis, row)
        out.flush()
        del out
    return np.load(path, mmap_mode="r", allow_pickle=False)
