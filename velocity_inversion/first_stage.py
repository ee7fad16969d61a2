"""What the ensemble gives the diffusion stage: section, error scale and memory tokens of every sample.

Letters: B batch, N samples, Z depth, X horizontal, L columns, K tokens a column, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional
from torch.utils.data import Dataset

from common import device as devices
from common.errors import DataError, UserError
from common.noise import numpy_stream
from common.sampling import Draw
from velocity_inversion.augment import flip
from velocity_inversion.dataset import collate
from velocity_inversion.diffusion import SIGMA_DATA, training_sigma
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.geometry import Survey
from velocity_inversion.member import Member
from velocity_inversion.model import VelocityNet, work_grid
from velocity_inversion.predictions import predict_members

BACKGROUND_CELLS = 10.0  # sigma of the smoothing that makes a background of the truth
DROP = 0.3  # how often each kind of knowledge is withheld in training
MAX_WELLS = 2
BATCH = 8


def on_work_grid(sections: torch.Tensor, factor: int) -> torch.Tensor:
    """Return [.., Z, X] averaged over cells of factor x factor, edges replicated to whole cells."""
    if factor == 1:
        return sections
    z, x = sections.shape[-2:]
    flat = functional.pad(sections.reshape(-1, 1, z, x), (0, -x % factor, 0, -z % factor), mode="replicate")
    return functional.avg_pool2d(flat, factor)[:, 0].reshape(
        *sections.shape[:-2], -(-z // factor), -(-x // factor)
    )


def smooth_background(section: np.ndarray, sigma: float = BACKGROUND_CELLS) -> np.ndarray:
    """Return [Z, X] smoothed as the backgrounds of the training are."""
    return ndimage.gaussian_filter(section, sigma, mode="nearest")


def encoding_member(ensemble: Ensemble, device: torch.device) -> Member:
    """Return the first member whose encoder has memory tokens.

    Raises:
        UserError: all members are baseline networks.
    """
    for config, member in zip(ensemble.configs, ensemble.members(device), strict=True):
        if config.model != "inversionnet":
            return member
    raise UserError(f"{ensemble.path}: no member with an encoder; the diffusion stage needs one")


@torch.no_grad()
def memory_of(member: Member, batch: dict[str, Any]) -> torch.Tensor:
    """Return the memory tokens [B, L K, D] of a batch of samples."""
    assert isinstance(member.net, VelocityNet)
    device = next(member.parameters()).device
    memory, _ = member.net.memory(member.with_channels(devices.move(batch, device)))
    return memory.float().flatten(1, 2).cpu()


@dataclass(frozen=True)
class FirstStage:
    """v1, scale [N, Z, X] (km/s) on the work grid and memory [N, L K, D], on the CPU."""

    v1: torch.Tensor
    scale: torch.Tensor
    memory: torch.Tensor


class Flipped(Dataset[Any]):
    """The samples of a data set seen from the other side."""

    def __init__(self, dataset: Dataset[Any], x_max_m: float) -> None:
        self.dataset, self.x_max_m = dataset, x_max_m

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return flip(self.dataset[index], self.x_max_m)


def first_stage(ensemble: Ensemble, samples: Dataset[Any], device: torch.device) -> FirstStage:
    """Run the ensemble over all samples, one member in memory at a time."""
    factor = work_grid(ensemble.survey.model_shape_zx).factor
    v, sigma = predict_members(ensemble, samples, device, batch_size=BATCH).combined(ensemble.weights)
    member = encoding_member(ensemble, device)
    count = len(samples)  # type: ignore[arg-type]
    rows = [range(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]
    memory = [memory_of(member, collate([samples[i] for i in part])) for part in rows]
    return FirstStage(on_work_grid(v, factor), on_work_grid(sigma, factor) / 2**0.5, torch.cat(memory))


class CorrectionDataset(Dataset[dict[str, torch.Tensor]]):
    """Corrections of the first stage with noise and conditions drawn by (seed, position).

    Args:
        stage: the ensemble's sections and tokens.
        truth: [N, Z, X], km/s, on the work grid.
        rms: of the first stage's validation error, km/s.
        seed: of noise levels, noise and conditions.
    """

    def __init__(self, stage: FirstStage, truth: torch.Tensor, rms: float, seed: int) -> None:
        self.stage, self.truth, self.rms, self.seed = stage, truth, rms, seed
        self.background = torch.from_numpy(np.stack([smooth_background(t) for t in truth.numpy()]))

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, draw: Draw | int) -> dict[str, torch.Tensor]:
        place = draw if isinstance(draw, Draw) else Draw(draw, draw)
        rng = numpy_stream(self.seed, "diffusion sample", place.position)
        i = place.index
        truth, v1 = self.truth[i], self.stage.v1[i]
        mask = torch.zeros_like(truth)
        if rng.random() >= DROP:
            columns = rng.choice(truth.shape[1], size=int(rng.integers(0, MAX_WELLS + 1)), replace=False)
            mask[:, columns] = 1
        return {
            "target": SIGMA_DATA * (truth - v1) / self.rms,
            "noise": torch.from_numpy(rng.standard_normal(truth.shape).astype(np.float32)),
            "sigma": torch.tensor(training_sigma(rng), dtype=torch.float32),
            "v1": v1,
            "scale": self.stage.scale[i],
            "memory": self.stage.memory[i],
            "gathers": torch.tensor(bool(rng.random() >= DROP)),
            "background": self.background[i],
            "has_background": torch.tensor(bool(rng.random() >= DROP)),
            "wells": truth * mask,
            "mask": mask,
        }


def read_wells(path: str | Path, survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """Return (velocities, mask), each [Z, X] km/s, of a CSV of x_m, z_m, vp_km_s.

    A well's velocities are interpolated over depth between its first and last row.

    Raises:
        DataError: no such columns, no numbers, or a well outside the section or its bounds.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if not "".join(lines).replace("#", "").strip():
            raise ValueError("an empty file")
        table: Any = np.genfromtxt(lines, delimiter=",", names=True, dtype=np.float64, ndmin=1)
        x, z, v = (table[name] for name in ("x_m", "z_m", "vp_km_s"))
    except (OSError, ValueError, IndexError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: {reason}; expected a CSV with the columns x_m,z_m,vp_km_s") from error
    if not len(x) or not np.isfinite([x, z, v]).all():
        raise DataError(f"{path}: {len(x)} rows, some without numbers; expected x_m,z_m,vp_km_s in each")
    depth, width = survey.model_shape_zx
    column, row = np.rint(x / survey.dx_m).astype(int), z / survey.dz_m
    if column.min() < 0 or column.max() >= width or row.min() < -0.5 or row.max() > depth - 0.5:
        raise DataError(
            f"{path}: x {x.min():g} to {x.max():g} m, z {z.min():g} to {z.max():g} m leave the section of "
            f"{(width - 1) * survey.dx_m:g} x {(depth - 1) * survey.dz_m:g} m; correct the wells' places"
        )
    low, high = survey.v_bounds_km_s
    if v.min() < low or v.max() > high:
        raise DataError(f"{path}: velocities {v.min():g} to {v.max():g}, expected {low:g} to {high:g} km/s")
    values, mask = np.zeros((depth, width), np.float32), np.zeros((depth, width), np.float32)
    for c in np.unique(column):
        inside = column == c
        order = np.argsort(row[inside])
        places, speeds = row[inside][order], v[inside][order]
        wanted = np.arange(max(0, round(places[0])), min(depth - 1, round(places[-1])) + 1)
        values[wanted, c], mask[wanted, c] = np.interp(wanted, places, speeds), 1
    return values, mask
