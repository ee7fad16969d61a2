"""Where rows of coefficients come from: the device, host memory, a mapped file, or the fields themselves.

Every function returns one that takes row numbers and gives c [b, C, T] float32; numbers from N on are mirror
images of training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from common import distributed
from simulgen_vae.basis import Basis
from simulgen_vae.config import TrainConfig
from simulgen_vae.dataset import load_coefficients
from simulgen_vae.field_data import FieldData
from simulgen_vae.split import Split

FREE_SHARE = 0.8  # of the free memory that preloaded coefficients may take


def fetch_stored(
    c: torch.Tensor, config: TrainConfig, device: torch.device
) -> Callable[[Sequence[int]], torch.Tensor]:
    """Return rows of coefficients from the device or from host memory, as `--cache` says."""
    place = "gpu" if config.load_all and config.cache == "auto" else config.cache
    if place == "auto":
        place = "gpu" if _free_bytes(device) * FREE_SHARE > c.numel() * 4 else "ram"
    stored = c.to(device) if place == "gpu" else c
    return lambda rows: stored[list(rows)]


def fetch_mapped(
    data: FieldData, basis: Basis, split: Split, folder: Path | None
) -> Callable[[Sequence[int]], torch.Tensor]:
    """Return rows of coefficients from a mapped file in `folder`; mirror images are made when asked for."""
    with distributed.main_first():
        stored = load_coefficients(data, basis, folder)
    matrix, offset = basis.mirror(data.symmetry) if data.symmetry is not None else (None, None)

    def read(row: int) -> torch.Tensor:
        if row < data.num_samples:
            return torch.from_numpy(np.array(stored[row]))
        assert matrix is not None and offset is not None
        return (
            matrix @ torch.from_numpy(np.array(stored[split.train[row - data.num_samples]])) + offset[:, None]
        )

    return lambda rows: torch.stack([read(int(row)) for row in rows])


def _free_bytes(device: torch.device) -> int:
    """Return the free memory of an accelerator; on a CPU the coefficients are in its memory anyway."""
    return 0 if device.type == "cpu" else int(torch.accelerator.get_memory_info(device)[0])


def fetch_files(data: FieldData, basis: Basis, split: Split) -> Callable[[Sequence[int]], torch.Tensor]:
    """Return rows of standardised fields, read one trajectory at a time; mirror images are mapped ones."""

    def read(row: int) -> torch.Tensor:
        own = row < data.num_samples
        u = torch.from_numpy(data.trajectory(row if own else int(split.train[row - data.num_samples])))
        if not own:
            assert data.symmetry is not None
            u = data.symmetry.apply_fields(u)
        return basis.encode(u).contiguous()

    return lambda rows: torch.stack([read(int(row)) for row in rows])
