"""True dip and strike: from angles of the voxel grid, with voxel sizes, and strike from north."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.errors import UserError
from fault_seg.angles import angles_from_normal, fold_dip, normal_from_angles
from fault_seg.config_infer import SurveyConfig
from fault_seg.segy import SegySurvey
from fault_seg.slabs import Volume


@dataclass(frozen=True)
class AngleFrame:
    """In which frame angles in degrees are told.

    Attributes:
        voxel: (dz, dy, dx) in one unit; dip and strike are true angles where these are the voxel sizes.
        east_north: [2, 2], columns the steps (east, north) of one voxel along y and along x; None: strike
            counts from the x axis towards the y axis.
    """

    voxel: tuple[float, float, float] = (1.0, 1.0, 1.0)
    east_north: np.ndarray | None = None

    @property
    def is_grid(self) -> bool:
        """Whether the angles are those of the voxel grid."""
        return len(set(self.voxel)) == 1 and self.east_north is None

    def angles(self, fdip: np.ndarray, fstrike: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (dip folded to 0..90, strike 0..180) in degrees of grid angles over 180 degrees.

        The normal of a plane in true lengths is n' = (nz/dz, ny/dy, nx/dx), normalised.
        """
        dip, strike = (torch.from_numpy(np.ascontiguousarray(a)) * 180 for a in (fdip, fstrike))
        if not self.is_grid:
            normal = normal_from_angles(dip, strike)
            unset = (dip == 0) & (strike == 0)
            scale = torch.tensor(self.voxel, dtype=normal.dtype).view(-1, *[1] * dip.dim())
            dip, strike = angles_from_normal(normal / scale)
            if self.east_north is not None:
                strike = self._azimuth(normal)
            dip, strike = (torch.where(unset, torch.zeros_like(a), a) for a in (dip, strike))
        return fold_dip(dip).numpy(), strike.numpy()

    def _azimuth(self, normal: torch.Tensor) -> torch.Tensor:
        """Return the strike of grid normals [3, ...] (nz, ny, nx), degrees clockwise from north, 0..180.

        A horizontal line of the plane runs (y, x) = (-nx, ny) in voxels, whatever their sizes.
        """
        assert self.east_north is not None
        east, north = (
            float(row[0]) * -normal[2] + float(row[1]) * normal[1] for row in np.asarray(self.east_north)
        )
        azimuth = torch.rad2deg(torch.atan2(east, north)) % 180
        return torch.where(azimuth >= 180, torch.zeros_like(azimuth), azimuth)

    def describe(self) -> dict[str, object]:
        """Return what a side-car says about it."""
        return {
            "voxel_sizes": list(self.voxel),
            "strike_from": "x axis" if self.east_north is None else "north, clockwise",
        }


def angle_frame(config: SurveyConfig, volume: Volume) -> AngleFrame:
    """Return the frame that the flags ask for.

    Raises:
        UserError: --velocity or --north without what they need from a SEG-Y file.
        DataError: there are no coordinates, or the traces lie on one line.
    """
    voxel = (config.dz, config.dy, config.dx)
    if config.velocity:
        if not isinstance(volume, SegySurvey) or not volume.dt_ms:
            raise UserError(
                f"--velocity: {volume.path} tells no sample interval and trace distances, expected SEG-Y; "
                "pass --dz --dy --dx"
            )
        voxel = (config.velocity * volume.dt_ms / 2000, *volume.spacing[1:])
    if not config.north:
        return AngleFrame(voxel)
    if not isinstance(volume, SegySurvey):
        raise UserError(f"--north: {volume.path} is {volume.format}, expected SEG-Y with coordinates")
    matrix = volume.affine()
    steps = [float(np.diff(numbers[:2])[0]) for numbers in (volume.xlines, volume.ilines)]
    return AngleFrame(voxel, np.stack([matrix[:, 1] * steps[0], matrix[:, 0] * steps[1]], axis=1))
