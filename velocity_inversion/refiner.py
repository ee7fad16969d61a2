"""Sections drawn by the diffusion stage around the ensemble's: mean, spread, and the samples themselves.

Letters: K samples, Z depth, X horizontal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from common import checkpoint as checkpoints
from common.errors import DataError, UserError
from common.noise import gaussian
from velocity_inversion.arrays import open_array, to_km_s
from velocity_inversion.augment import Sample
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import collate
from velocity_inversion.denoiser import Denoiser
from velocity_inversion.diffusion import CHANNELS, SIGMA_DATA, Conditions, denoise, heun
from velocity_inversion.diffusion_train import DIFFUSION_FILE, KIND
from velocity_inversion.ensemble import Ensemble
from velocity_inversion.first_stage import encoding_member, memory_of, on_work_grid, read_wells
from velocity_inversion.geometry import Survey
from velocity_inversion.member import PACKAGE
from velocity_inversion.model import work_grid


@dataclass(frozen=True)
class Known:
    """What a user knows besides the gathers, each [Z, X] in km/s or absent.

    Attributes:
        wells: velocities where `mask` is 1.
        mask: cells that a well crosses.
        background: a smooth section.
    """

    wells: np.ndarray | None = None
    mask: np.ndarray | None = None
    background: np.ndarray | None = None


def read_known(config: InferConfig, survey: Survey) -> Known:
    """Read the well log and the background that the flags name.

    Raises:
        DataError: a well outside the section, or a background of another shape.
    """
    wells, mask = read_wells(config.well_log, survey) if config.well_log else (None, None)
    background = None
    if config.background:
        background = to_km_s(open_array(Path(config.background), 2), config.background, survey)
    return Known(wells, mask, background)


class Refiner:
    """The diffusion stage of one ensemble.

    Args:
        path: diffusion.pth.
        ensemble: that it was trained on.
        device: where it runs.

    Raises:
        UserError: the file is not there.
        DataError: it belongs to another ensemble.
    """

    def __init__(self, path: str | Path, ensemble: Ensemble, device: torch.device) -> None:
        path = Path(path)
        if not path.exists():
            raise UserError(
                f"{path}: no diffusion stage; train one with train.py --stage diffusion, or give its file by "
                "--diffusion_path"
            )
        found = checkpoints.load(path, package=PACKAGE, kinds=[KIND])
        if found.normalization.get("ensemble") != ensemble.sha256:
            raise DataError(
                f"{path}: was trained on another ensemble than {ensemble.path}; train it again on this one"
            )
        self.rms = float(found.normalization["rms"])
        self.bounds, self.device = ensemble.bounds, device
        self.network = Denoiser(CHANNELS, found.config["width"], found.config["memory_width"])
        self.network.load_state_dict(found.state_dict)
        self.network.eval().to(device)
        self.member = encoding_member(ensemble, device)
        self.factor = work_grid(ensemble.survey.model_shape_zx).factor

    def conditions(self, sample: Sample, v1: np.ndarray, std: np.ndarray, known: Known) -> Conditions:
        """Return the conditions of one sample on the work grid."""
        section = on_work_grid(torch.from_numpy(v1)[None], self.factor)
        scale = on_work_grid(torch.from_numpy(std)[None], self.factor) / 2**0.5
        memory = memory_of(self.member, collate([sample]))
        wells, mask = torch.zeros_like(section), torch.zeros_like(section)
        if known.wells is not None and known.mask is not None:
            cover = on_work_grid(torch.from_numpy(known.mask)[None], self.factor)
            sums = on_work_grid(torch.from_numpy(known.wells)[None], self.factor)
            mask = (cover > 0).float()
            wells = torch.where(cover > 0, sums / cover.clamp_min(1e-9), wells)
        background = section
        if known.background is not None:
            background = on_work_grid(torch.from_numpy(known.background)[None], self.factor)
        made = Conditions(
            v1=section,
            scale=scale,
            memory=memory,
            gathers=torch.tensor([True]),
            background=background,
            has_background=torch.tensor([known.background is not None]),
            wells=wells,
            mask=mask,
        )
        return Conditions(**{name: value.to(self.device) for name, value in made.__dict__.items()})

    @torch.no_grad()
    def sample(
        self,
        sample: Sample,
        v1: np.ndarray,
        std: np.ndarray,
        count: int,
        steps: int,
        seed: int,
        known: Known = Known(),
    ) -> np.ndarray:
        """Return [K, Z, X] (km/s): the first stage's section with K corrections drawn; noise by sample id."""
        conditions = self.conditions(sample, v1, std, known).repeated(count)
        noise = gaussian(conditions.v1.shape, seed, f"posterior {sample['id']}").to(self.device)
        found = heun(
            lambda x, sigma: denoise(self.network, x, sigma, conditions, self.rms, self.bounds), noise, steps
        )
        change = found * self.rms / SIGMA_DATA
        if self.factor > 1:
            size = [n * self.factor for n in change.shape[-2:]]
            change = functional.interpolate(change[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        z, x = v1.shape
        sections = torch.from_numpy(v1) + change[:, :z, :x].cpu()
        return sections.clamp(*self.bounds).numpy()


def open_refiner(config: InferConfig, ensemble: Ensemble, device: torch.device) -> Refiner:
    """Return the diffusion stage that the flags name: a given file, or the one beside the ensemble."""
    beside = ensemble.path.parent / DIFFUSION_FILE
    return Refiner(config.diffusion_path or beside, ensemble, device)
