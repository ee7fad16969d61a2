"""What lies between mesh and network, with the norms of physical fields that go with it.

C channels of the coefficients (r_s spatial modes, or D = M V without POD), T frames, M nodes, V fields.
"""

from __future__ import annotations

import torch

from simulgen_vae.basis import Basis
from simulgen_vae.field_metric import FieldMetric


class FrontEnd:
    """A basis (POD, or the identity) and the errors of fields that coefficients stand for.

    Args:
        basis: fitted on training rows.
    """

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self._metric = None if basis.is_identity else FieldMetric(basis)

    @property
    def num_channels(self) -> int:
        """C."""
        return self.basis.num_modes

    @property
    def loss_modes(self) -> torch.Tensor | None:
        """Phi [D, r_s], with which losses decode fields; None where coefficients are the field."""
        return None if self.basis.is_identity else self.basis.modes

    def norm2(self, c: torch.Tensor) -> torch.Tensor:
        """Return |u|^2 of each trajectory c [n, C, T], [n] float64."""
        if self._metric is not None:
            return self._metric.norm2(c.cpu())
        norms = [self.basis.decode(one.cpu()).double().square().sum() for one in c]
        return torch.stack(norms).clamp_min(1e-300)

    def relative_l2(self, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return |u_hat - u| / |u| of each trajectory, [n] float64, without what the basis leaves out."""
        if self._metric is not None:
            return self._metric.relative_l2(prediction.cpu(), truth.cpu())
        std = self.basis.field_std.double().repeat(self.basis.num_nodes)[:, None]
        pairs = zip(prediction.cpu().double(), truth.cpu().double(), strict=True)
        errors = torch.stack([((p - t) * std).square().sum() for p, t in pairs])
        return torch.sqrt(errors / self.norm2(truth))
