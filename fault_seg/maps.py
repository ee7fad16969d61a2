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
from fault_seg.turns import turned, turned_back

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
        temperature: what fault logits are divided by.
        threshold: probability from which a voxel counts as fault, tuned on validation cubes.
        keeps_residual: whether the time correction of the rgt head is used.
        turns: flips and turns that are averaged: 1, 4 or 8.
        tells_gap: whether the confidence of the fault angles is one of the volumes.
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
    temperature: float = 1.0
    threshold: float = 0.5
    keeps_residual: bool = True
    turns: int = 1
    tells_gap: bool = False

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
        names = [name for head in self.heads for name in ATTRIBUTES[head]]
        names += ["fstd"] if self.has_spread else []
        names += ["fgap"] if self.has_gap else []
        return tuple(name for name in names if name in ("fsem", "fstd") or self.layout != "unet")

    @property
    def has_spread(self) -> bool:
        """Whether the maps end with the spread of p over the turns."""
        return self.turns > 1 and "fault" in self.heads

    @property
    def has_gap(self) -> bool:
        """Whether the confidence of the fault angles is asked for and there."""
        return self.tells_gap and "fault" in self.heads and self.layout != "unet"

    @property
    def in_channels(self) -> int:
        """Channels of its input: 1 for an image; 9 (hr) or 5 (mtl) for a first estimate."""
        return 1 if self.kind == "infer" else 5 if self.layout == "mtl" else 9

    @torch.no_grad()
    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """Return the output maps [1, C, Z, Y, X], float32 on the CPU, of a normalised image [1, 1, Z, Y, X].

        A network of kind refine gets its channels of a first estimate instead. Channels, as far as the heads
        go: p; the six of n n^T; dhr; the time correction in voxels (hr) or the time itself (mtl); and with
        more than one turn the standard deviation of p over them. All of them may be averaged where tiles
        overlap; angles may not.
        """
        padded = image
        for axis in (2, 3, 4):  # as the tiles of a survey continue beyond its edge, also where it is thin
            n = image.shape[axis]
            source = source_index(0, round_up(n, self.multiple), n, "reflect")
            padded = padded.index_select(axis, torch.from_numpy(source))
        padded = padded.to(self.device)
        z, y, x = image.shape[2:]
        maps = self._forward(padded, 0)
        if self.turns > 1:
            maps = self._averaged(padded, maps)
        return maps[..., :z, :y, :x].float().cpu()

    def _forward(self, padded: torch.Tensor, turn: int) -> torch.Tensor:
        """Return the maps of one pose, turned back."""
        inside = slice(3, 9) if padded.shape[1] == 9 else None
        with self.precision.autocast():
            outputs = dict(self.network(devices.like_weights(turned(padded, turn, inside))))
        if "delta" in outputs and not self.keeps_residual:
            outputs["delta"] = torch.zeros_like(outputs["delta"])
        maps = stack_maps(outputs, self.temperature)
        oriented = "fault" in self.heads and self.layout != "unet"
        return turned_back(maps, turn, slice(1, 7) if oriented else None)

    def _averaged(self, padded: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Return the mean over all turns, the spread of p behind it (Welford's update)."""
        mean, square = first.clone(), torch.zeros_like(first[:, :1])
        for turn in range(1, self.turns):
            change = self._forward(padded, turn) - mean
            mean += change / (turn + 1)
            square += change[:, :1].square() * turn / (turn + 1)
        return torch.cat([mean, (square / self.turns).sqrt()], dim=1) if self.has_spread else mean


def stack_maps(outputs: Mapping[str, torch.Tensor], temperature: float = 1.0) -> torch.Tensor:
    """Return a network's outputs as one tensor [B, C, Z, Y, X], in the channel order of `Model.maps`."""
    maps = []
    if "fault_logit" in outputs:
        maps.append(torch.sigmoid(outputs["fault_logit"].float() / temperature))
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
    """Return named maps of `maps` [C, Z, Y, X]: fsem, orient [6, ...], dhr, time, fstd."""
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
    if len(maps) > first:
        found["fstd"] = maps[first]
    return found


def fault_angles(orient: np.ndarray, fsem: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dip and strike over 180 degrees and their confidence, [Z, Y, X], from n n^T [6, Z, Y, X].

    The confidence is the gap between the two largest eigenvalues: 1 for an exact n n^T, 0 where no direction
    stands out. All three are 0 where fsem < 0.05.
    """
    chosen = fsem >= MIN_ANGLE_PROBABILITY
    normal, gap = normal_from_outer(torch.from_numpy(np.ascontiguousarray(orient[:, chosen])))
    dip, strike = angles_from_normal(normal)
    volumes = []
    for values, unit in ((dip, 180), (strike, 180), (gap.clamp(0, 1), 1)):
        volume = np.zeros(fsem.shape, np.float32)
        volume[chosen] = values.numpy() / np.float32(unit)
        volumes.append(volume)
    return volumes[0], volumes[1], volumes[2]


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
    if "fstd" in named:
        volumes["fstd"] = named["fstd"]
    if "orient" in named:
        volumes["fdip"], volumes["fstrike"] = fault_angles(named["orient"], named["fsem"])[:2]
    if "dhr" in named:
        volumes["dhr"] = named["dhr"]
    if "time" in named:
        time = named["time"] if tau is None else tau + named["time"]
        volumes["rgt"] = normalise_rgt(torch.from_numpy(time)).numpy()
    return volumes
