"""Norms and errors of physical fields, from reduced coefficients alone.

Decoding is affine, u_t = u_0 + L c_t, so that |u|^2 = sum_t |u_0|^2 + 2 (L^T u_0) c_t + c_t^T (L^T L) c_t:
no field has to be formed to weigh a sample by its norm or to score a candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis


class FieldMetric:
    """|u|^2 and relative L2 errors of trajectories given by their coefficients c [n, r_s, T].

    Attributes:
        gram: L^T L, [r_s, r_s] float64; for the identity basis its diagonal [D].
        linear: L^T u_0, [r_s].
        constant: |u_0|^2.
    """

    def __init__(self, basis: Basis) -> None:
        centre = basis.node_mean.double()
        std = basis.field_std.double().repeat(basis.num_nodes)
        self.constant = float(centre @ centre)
        if basis.is_identity:
            self.gram, self.linear = std.square(), std * centre
            return
        modes = basis.modes.to(torch.float64, copy=True)  # scaled in place: it is the largest array
        modes.mul_(basis.scale).mul_(std[:, None])
        self.gram, self.linear = modes.T @ modes, modes.T @ centre

    def norm2(self, c: torch.Tensor) -> torch.Tensor:
        """Return |u|^2 of each trajectory, [n] float64."""
        c = c.double()
        frames = c.shape[-1]
        cross = 2.0 * torch.einsum("r,nrt->n", self.linear, c)
        return (self.constant * frames + cross + self._quadratic(c)).clamp_min(1e-300)

    def error2(self, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return |u_hat - u|^2 of each trajectory, [n] float64."""
        return self._quadratic(prediction.double() - truth.double())

    def relative_l2(self, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return |u_hat - u|/|u| of each trajectory, [n] float64, without what the basis leaves out."""
        return torch.sqrt(self.error2(prediction, truth) / self.norm2(truth))

    def _quadratic(self, c: torch.Tensor) -> torch.Tensor:
        if self.gram.dim() == 1:
            return torch.einsum("r,nrt->n", self.gram, c.square())
        return (c * torch.einsum("rs,nst->nrt", self.gram, c)).sum((1, 2))


class TrueFieldMetric(FieldMetric):
    """Relative L2 errors of some trajectories against their true fields: what the basis leaves out counts.

    With u = u_0 + L c + rho:  |u_hat - u|^2 = |L e|^2 - 2 (L^T rho) e + |rho|^2,  e = c_hat - c. The middle
    term vanishes for one field, as rho is then orthogonal to the modes. Fields are read once, none is kept.

    Args:
        basis: a POD basis.
        c: coefficients of the trajectories, [n, r_s, T].
        field_of: row -> true field [T, M, V].
    """

    def __init__(self, basis: Basis, c: torch.Tensor, field_of: Callable[[int], torch.Tensor]) -> None:
        super().__init__(basis)
        std = (basis.field_std * basis.scale).repeat(basis.num_nodes)
        sizes, left_out, cross = [], [], []
        for i, one in enumerate(c):
            u = field_of(i)
            rest = u - basis.decode(one)
            sizes.append(u.double().square().sum())
            left_out.append(rest.double().square().sum())
            if basis.num_fields > 1:
                cross.append(((rest.flatten(1) * std) @ basis.modes).T)
        self.sizes, self.left_out = torch.stack(sizes).clamp_min(1e-300), torch.stack(left_out)
        self.cross = torch.stack(cross) if cross else None

    def relative_l2(self, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return |u_hat - u|/|u| of all trajectories in their order, [n] float64."""
        error2 = self.error2(prediction, truth) + self.left_out
        if self.cross is not None:
            error2 = error2 - 2.0 * ((prediction.double() - truth.double()) * self.cross).sum((1, 2))
        return torch.sqrt(error2.clamp_min(0.0) / self.sizes)
