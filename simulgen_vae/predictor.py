"""One interface for every way from inputs to a trajectory, and the rows that predictors are fitted to.

Letters: B batch, n rows, P parameters, r_s spatial modes, T frames, M nodes, V fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from common.noise import gaussian

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis
    from simulgen_vae.symmetry import Symmetry

PICTURE = 256  # pixels of a picture's side


class Inputs(NamedTuple):
    """What a predictor is asked about.

    Attributes:
        params: [B, P] physical values; P = 0 when only pictures are given.
        image: [B, 1, 256, 256] in 0..1, or None.
    """

    params: torch.Tensor
    image: torch.Tensor | None = None

    def rows(self, index: torch.Tensor | slice) -> Inputs:
        """Return some of the rows."""
        return Inputs(self.params[index], None if self.image is None else self.image[index])


class Predictor(nn.Module):
    """Inputs to reduced coefficients [B, r_s, T], float32, differentiable.

    Its state is plain tensors; `config` holds what `build_predictor` needs to make an empty one.
    """

    name: str = ""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        raise NotImplementedError

    def std(self, inputs: Inputs) -> torch.Tensor | None:
        """Return the predictor's own standard deviation [B, r_s, T]; None when it knows none."""
        return None

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return `num` draws of the prediction, [num, B, r_s, T]; equal ones when it knows no spread."""
        centre, spread = self(inputs), self.std(inputs)
        if spread is None:
            return centre.expand(num, *centre.shape)
        return centre + spread * gaussian((num, *centre.shape), seed, "predictor draws", device=centre.device)


def deviations_of(predictor: Predictor, row: TrainingSet, num: int, seed: int) -> torch.Tensor:
    """Return draws of the prediction of a set of one row, less its mean prediction, [num, r_s, T]."""
    inputs = row.inputs()
    with torch.no_grad():
        return (predictor.draws(inputs, num, seed) - predictor(inputs))[:, 0]


def draws_of_members(members: torch.Tensor, num: int, seed: int) -> torch.Tensor:
    """Return draws [num, B, r_s, T] that vary as the members [E, B, r_s, T] of an ensemble do, E > 1.

    mean + sum_e xi_e (member_e - mean) / sqrt(E - 1), xi normal: coefficients vary together, every decoded
    point has the members' own sample variance.
    """
    centre, count = members.mean(0), len(members)
    xi = gaussian((num, count), seed, "ensemble draws", device=members.device).to(members.dtype)
    return centre + torch.tensordot(xi, (members - centre) / (count - 1) ** 0.5, dims=1)


@dataclass
class TrainingSet:
    """The rows that a predictor may learn from.

    Attributes:
        c: [n, r_s, T] float32 reduced coefficients.
        params: [n, P] float64 physical parameters.
        basis: from coefficients to fields and back.
        images: [n, H, W] uint8, or None.
        symmetry: the declared symmetry, or None.
        grid_shape: (ny, nx) of a regular grid, node = iy nx + ix, or None.
        rows: [n] their numbers in the data set.
        seed: of everything random in the fits.
    """

    c: torch.Tensor
    params: torch.Tensor
    basis: Basis
    images: torch.Tensor | None = None
    symmetry: Symmetry | None = None
    grid_shape: tuple[int, int] | None = None
    rows: torch.Tensor | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.c)

    def subset(self, index: torch.Tensor) -> TrainingSet:
        """Return a set of some of the rows."""
        return dataclasses.replace(
            self,
            c=self.c[index],
            params=self.params[index],
            images=None if self.images is None else self.images[index],
            rows=None if self.rows is None else self.rows[index],
        )

    def inputs(self) -> Inputs:
        """Return the inputs of all rows."""
        image = None if self.images is None else pictures(self.images)
        return Inputs(self.params.float(), image)

    def augmented(self) -> tuple[TrainingSet, torch.Tensor]:
        """Return the rows followed by their mirror images, and the group [2n] of each: pairs share one.

        Without a declared symmetry these are the rows themselves.
        """
        own = torch.arange(len(self))
        if self.symmetry is None:
            return self, own
        c = mirrored(self.basis, self.symmetry, self.c)
        params, images = self.symmetry.apply_params(self.params), self.symmetry.apply_image(self.images)
        both = dataclasses.replace(
            self,
            c=torch.cat([self.c, c]),
            params=torch.cat([self.params, params]),
            images=None if self.images is None or images is None else torch.cat([self.images, images]),
            rows=None if self.rows is None else self.rows.repeat(2),
        )
        return both, own.repeat(2)


def pictures(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 pictures [n, 256, 256] as float32 [n, 1, 256, 256] in 0..1; other sizes are resized."""
    x = images[:, None].float() / 255.0
    if x.shape[-2:] != (PICTURE, PICTURE):
        x = nn.functional.interpolate(x, (PICTURE, PICTURE), mode="bicubic", antialias=True).clamp(0, 1)
    return x


def mirrored(basis: Basis, symmetry: Symmetry, c: torch.Tensor) -> torch.Tensor:
    """Return the coefficients [n, r_s, T] of the fields that a symmetry maps those of c to."""
    if basis.is_identity:
        return torch.cat([basis.encode(symmetry.apply_fields(basis.decode(part))) for part in c.split(1)])
    matrix, offset = basis.mirror(symmetry)
    return torch.einsum("rs,nst->nrt", matrix, c) + offset[:, None]
