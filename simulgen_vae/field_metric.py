"""Norms and errors of physical fields, from reduced coefficients alone.

Decoding is affine, u_t = u_0 + L c_t, so that |u|^2 = sum_t |u_0|^2 + 2 (L^T u_0) c_t + c_t^T (L^T L) c_t:
no field has to be formed to weigh a sample by its norm or to score a candidate.
"""

from __future__ import annotations

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
        modes = basis.modes.double() * basis.scale * std[:, None]
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
