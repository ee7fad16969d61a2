"""From a network's outputs to the five volumes: a loaded model, its maps, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import device as devices
from common.device import Precision
from common.tiles import round_up, source_index
from fault_seg.angles import angles_from_normal, normal_from_angles, normal_from_outer, outer_from_normal
from fault_seg.geotime import normalise_rgt
from fault_seg.model import receptive_radius

Volumes = dict[str, np.ndarray]
ATTRIBUTES = {"fault": ("fsem", "fdip", "fstrike"), "rgt": ("rgt",), "dhr": ("dhr",)}
MIN_ANGLE_PROBABILITY = 0.05  # below it a voxel has no fault and so no angle


@dataclass
class Model:
    """A trained network, ready to predict.

    Attributes:
        network: in evaluation mode, on its device.
        layout: hr, mtl or unet.
        kind: infer or refine.
        heads: which outputs it has.
        config: of its training.
        path: the file it came from.
        sha256: of its weights.
        device: where it computes.
        precision: how it computes.
    """

    network: nn.Module
    layout: str
    kind: str
    heads: tuple[str, ...]
    config: Mapping[str, Any]
    path: Path
    sha256: str
    device: torch.device
    precision: Precision

    @property
    def multiple(self) -> int:
        """The total stride; tile origins and sizes are multiples of it."""
        return int(getattr(self.network, "multiple", 16))

    @property
    def radius(self) -> int | None:
        """The receptive radius of the fault and image outputs in voxels; None: the whole volume."""
        return receptive_radius(self.network, self.heads)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The volumes that it can make."""
        names = (name for head in self.heads for name in ATTRIBUTES[head])
        return tuple(name for name in names if name == "fsem" or self.layout != "unet")

    @torch.no_grad()
    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """Return the output maps [1, C, Z, Y, X], float32 on the CPU, of a normalised image [1, 1, Z, Y, X].

        Channels, as far as the heads go: p; the six of n n^T; dhr; the time correction in voxels (hr) or the
        time itself (mtl). All of them may be averaged where tiles overlap; angles may not.
        """
        padded = image
        for axis in (2, 3, 4):  # as the tiles of a survey continue beyond its edge, also where it is thin
            n = image.shape[axis]
            source = source_index(0, round_up(n, self.multiple), n, "reflect")
            padded = padded.index_select(axis, torch.from_numpy(source))
        padded = padded.to(self.device)
        with self.precision.autocast():
            outputs = self.network(devices.like_weights(padded))
        z, y, x = image.shape[2:]
        return stack_maps(outputs)[..., :z, :y, :x].float().cpu()


def stack_maps(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a network's outputs as one tensor [B, C, Z, Y, X], in the channel order of `Model.maps`."""
    maps = []
    if "fault_logit" in outputs:
        maps.append(torch.sigmoid(outputs["fault_logit"].float()))
    elif "fsem" in outputs:
        maps.append(outputs["fsem"].float())
    if "orient" in outputs:
        maps.append(outputs["orient"].float())
    elif "dip" in outputs:
        normal = normal_from_angles(180 * outputs["dip"].float()[:, 0], 180 * outputs["strike"].float()[:, 0])
        maps.append(outer_from_normal(normal).movedim(0, 1))
    maps += [outputs[name].float() for name in ("dhr", "delta", "rgt") if name in outputs]
    return torch.cat(maps, dim=1)


def split_maps(maps: np.ndarray, heads: tuple[str, ...], layout: str) -> Volumes:
    """Return named maps of `maps` [C, Z, Y, X]: fsem, orient [6, ...], dhr, time."""
    found: Volumes = {}
    first = 0
    if "fault" in heads:
        found["fsem"] = maps[0]
        first = 1
        if layout != "unet":
            found["orient"] = maps[1:7]
            first = 7
    for head, name in (("dhr", "dhr"), ("rgt", "time")):
        if head in heads:
            found[name] = maps[first]
            first += 1
    return found


def fault_angles(orient: np.ndarray, fsem: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dip and strike over 180 degrees, [Z, Y, X], from n n^T [6, Z, Y, X]; 0 where fsem < 0.05."""
    chosen = fsem >= MIN_ANGLE_PROBABILITY
    normal, _ = normal_from_outer(torch.from_numpy(np.ascontiguousarray(orient[:, chosen])))
    angles = []
    for values in angles_from_normal(normal):
        volume = np.zeros(fsem.shape, np.float32)
        volume[chosen] = values.numpy() / np.float32(180)
        angles.append(volume)
    return angles[0], angles[1]


def volumes_from(
    maps: np.ndarray, heads: tuple[str, ...], layout: str, tau: np.ndarray | None = None
) -> Volumes:
    """Return the attributes of one cube from its maps [C, Z, Y, X], in file units (angles over 180 degrees).

    `tau` is the solved geological time in voxels, needed by the rgt head of hr; "rgt" is then min-max scaled.
    """
    named = split_maps(maps, heads, layout)
    volumes: Volumes = {}
    if "fsem" in named:
        volumes["fsem"] = named["fsem"]
    if "orient" in named:
        volumes["fdip"], volumes["fstrike"] = fault_angles(named["orient"], named["fsem"])
    if "dhr" in named:
        volumes["dhr"] = named["dhr"]
    if "time" in named:
        time = named["time"] if tau is None else tau + named["time"]
        volumes["rgt"] = normalise_rgt(torch.from_numpy(time)).numpy()
    return volumes
