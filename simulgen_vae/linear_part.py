"""The linear solution that the network starts from: whole-trajectory POD of the training coefficients.

With modes W [n, C, T] (orthonormal), scales s [n] and mean cbar [C, T]:
zeta_lin = diag(1/s) W (c - cbar),   c_lin = cbar + W^T diag(s) zeta.
"""

from __future__ import annotations

import torch
from torch import nn

from simulgen_vae.layers import slices


class LinearPart(nn.Module):
    """Whitened POD scores and back; modes beyond the rank of the data are zero and carry scale 0.

    Args:
        mean: cbar [C, T].
        modes: W [n, C, T].
        scales: s [n].
        trained: let training change mean and modes.
    """

    mean: torch.Tensor
    modes: torch.Tensor
    scales: torch.Tensor

    def __init__(
        self, mean: torch.Tensor, modes: torch.Tensor, scales: torch.Tensor, *, trained: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("modes", modes)):
            if trained:
                self.register_parameter(name, nn.Parameter(value.clone()))
            else:
                self.register_buffer(name, value.clone())
        self.register_buffer("scales", scales.clone())

    def scores(self, c: torch.Tensor) -> torch.Tensor:
        """Return zeta_lin [B, n] of c [B, C, T] (which may lie in host memory), in float32."""
        device = self.modes.device
        with torch.autocast(device.type, enabled=False):
            total = torch.zeros(c.shape[0], len(self.scales), device=device)
            for run in slices(c.shape[1]):
                centred = c[:, run].to(device).float() - self.mean[run]
                total = total + centred.flatten(1) @ self.modes[:, run].flatten(1).T
            return total * self._inverse_scales()

    def _inverse_scales(self) -> torch.Tensor:
        used = self.scales > 0
        return torch.where(used, 1.0 / torch.where(used, self.scales, 1.0), 0.0)

    def field(self, zeta: torch.Tensor, channels: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Return c_lin [B, C, T] of zeta [B, n] on the chosen channels, in float32."""
        with torch.autocast(self.modes.device.type, enabled=False):
            modes = self.modes[:, channels]
            flat = (zeta.float() * self.scales) @ modes.flatten(1)
            return self.mean[channels] + flat.unflatten(1, modes.shape[1:])


def pad_modes(modes: torch.Tensor, scales: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exactly `count` modes [count, C, T] and scales [count]: cut, or filled up with zeros."""
    modes, scales = modes[:count], scales[:count]
    missing = count - len(scales)
    if missing:
        modes = torch.cat([modes, modes.new_zeros(missing, *modes.shape[1:])])
        scales = torch.cat([scales, scales.new_zeros(missing)])
    return modes, scales


def start_logvar(scales: torch.Tensor, alpha: float, num_elements: int) -> torch.Tensor:
    """Return -log(1 + 2 alpha s^2 / (C T)): the log-variance at the optimum of the linear VAE.

    Setting the derivative of alpha s^2 e^l / (C T) + (e^l - l) / 2 with respect to l to zero gives it
    (Lucas et al. 2019, arXiv 1911.02469, with the mean instead of the sum over elements).
    """
    return -torch.log1p(2.0 * alpha * scales.double() ** 2 / num_elements).float()
