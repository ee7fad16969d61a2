"""What each phase minimises, as modules, so that DistributedDataParallel sees one forward an update.

B batch, C channels, T frames, n latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from simulgen_vae.conditioner import Conditioner
from simulgen_vae.layers import slices
from simulgen_vae.losses import (
    field_error,
    kl_residual,
    kl_standard,
    kl_total,
    latent_loss,
    pointwise,
)
from simulgen_vae.model import HierarchicalVae, VaeOutput

MAIN_WEIGHTS = (10.0, 1.0)  # z over levels, conditioner phase
END_TO_END_WEIGHTS = (0.9, 0.1)
Penalty = Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]


@dataclass
class HostArray:
    """A tensor [B, C, T] that stays in host memory when a batch is moved to the device."""

    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> HostArray:
        return HostArray(self.values[index])


def coefficients_of(batch: dict[str, Any], key: str = "c") -> torch.Tensor:
    """Return the coefficients of a batch, wherever they lie."""
    value = batch[key]
    return value.values if isinstance(value, HostArray) else value


@dataclass
class Reconstruction:
    """How a difference of coefficients becomes a loss.

    Attributes:
        kind: MSE, MAE, SmoothL1 or Huber, on standardised fields.
        transition: of SmoothL1 and Huber.
        modes: Phi [D, r_s] where fields must be decoded, None without a front end.
        channels: rows of the mesh that this step looks at (None: all).
        penalty: a further loss of c_hat and the batch, [B] or a scalar.
    """

    kind: str = "MSE"
    transition: float = 1.0
    modes: torch.Tensor | None = None
    channels: torch.Tensor | None = None
    penalty: Penalty | None = None

    def of_difference(self, error: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of each sample, [B], of c_hat - c [B, C, T]."""
        if self.kind != "MSE" and self.modes is not None:
            rows = self.modes if self.channels is None else self.modes[self.channels]
            error = field_error(error, rows, len(self.modes))
        return pointwise(error, self.kind, self.transition).flatten(1).mean(dim=1)

    def of_output(
        self, vae: HierarchicalVae, features: torch.Tensor, zeta: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean loss of each sample, [B]; slice by slice where there are many channels."""
        if self.modes is None and self.channels is not None:
            predicted = vae.channels_of(features, zeta, self.channels)
            return self.of_difference(predicted - c[:, self.channels.to(c.device)].to(predicted.device))
        runs = slices(vae.shape.channels)
        if len(runs) == 1:
            return self.of_difference(vae.channels_of(features, zeta) - c.to(features.device))

        def part(f: torch.Tensor, latents: torch.Tensor, truth: torch.Tensor, run: slice) -> torch.Tensor:
            error = vae.channels_of(f, latents, run) - truth.to(f.device)
            return pointwise(error, self.kind, self.transition).flatten(1).sum(dim=1)

        total = torch.zeros(len(c), device=features.device)
        for run in runs:
            total = total + checkpoint(part, features, zeta, c[:, run], run, use_reentrant=False)
        return total / (vae.shape.channels * vae.shape.frames)


class VaeObjective(nn.Module):
    """R + (beta / alpha) sum KL: the evidence bound of LSH-VAE, divided by alpha.

    Args:
        vae: the network.
        reconstruction: the first term.
        alpha: reconstruction weight.
        free_bits: nats a dimension that cost nothing.
    """

    def __init__(
        self, vae: HierarchicalVae, reconstruction: Reconstruction, alpha: float, free_bits: float = 0.0
    ) -> None:
        super().__init__()
        self.vae = vae
        self.reconstruction = reconstruction
        self.alpha = alpha
        self.free_bits = free_bits
        self.beta = 1.0
        self.latents: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return "loss" and its parts.

        Args:
            batch: `c` [B, C, T], `noise` [B, n], `weight` [B], and `input` [B, C, T] when augmented.
        """
        c = coefficients_of(batch)
        seen = coefficients_of(batch, "input") if "input" in batch else None
        output: VaeOutput = self.vae(c, batch["noise"], seen)
        with torch.autocast(output.mu.device.type, enabled=False):
            errors = self.reconstruction.of_output(self.vae, output.features.float(), output.zeta, c)
            parts = {"recon": (batch["weight"] * errors).mean(), **self._kl(output)}
            loss = parts["recon"] + (self.beta / self.alpha) * sum(
                value for name, value in parts.items() if name.startswith("kl_")
            )
            if self.reconstruction.penalty is not None:
                c_hat = self.vae.channels_of(output.features.float(), output.zeta)
                parts["penalty"] = self.reconstruction.penalty(c_hat, batch).mean()
                loss = loss + parts["penalty"]
        self.latents = (output.mu.detach(), (output.prior_mean + output.shift).detach())
        return {"loss": loss, **parts}

    def _kl(self, output: VaeOutput) -> dict[str, torch.Tensor]:
        """Return the KL of z and of each level."""
        levels = kl_residual(output.shift, output.step, output.prior_logvar)
        named = {"kl_z": kl_total(kl_standard(output.mu, output.logvar), self.free_bits)}
        for k in range(levels.shape[1]):
            named[f"kl_{k + 1}"] = kl_total(levels[:, k], self.free_bits)
        return named


class ConditionerObjective(nn.Module):
    """10 MSE(z) + MSE(levels) in z-scored latents.

    Args:
        conditioner: the network.
    """

    def __init__(self, conditioner: Conditioner) -> None:
        super().__init__()
        self.conditioner = conditioner

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return "loss" and its parts; `batch` has params, image and the targets z and h."""
        main, levels = self.conditioner(batch.get("params"), batch.get("image"))
        true_main, true_levels = self.conditioner.standardised(batch["z"], batch["h"].flatten(1))
        main_error, level_error = main.float() - true_main, levels.float() - true_levels
        return {
            "loss": latent_loss(main_error, level_error, MAIN_WEIGHTS),
            "latent_main": main_error.square().mean(),
            "latent_levels": level_error.square().mean(),
        }


class EndToEndObjective(nn.Module):
    """lc_alpha reconstruction + weight (0.9 main + 0.1 levels): conditioner through the decoder.

    The gradient of the reconstruction reaches the conditioner through un-scaling and decoder.

    Args:
        conditioner: trained.
        vae: its decoder carries the gradient, and is trained too when it requires one.
        reconstruction: the first term.
        lc_alpha: weight of the reconstruction.
        latent_weight: weight of the latents' error, 0 for none.
    """

    def __init__(
        self,
        conditioner: Conditioner,
        vae: HierarchicalVae,
        reconstruction: Reconstruction,
        lc_alpha: float = 1.0,
        latent_weight: float = 1e-3,
    ) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.vae = vae
        self.reconstruction = reconstruction
        self.lc_alpha = lc_alpha
        self.latent_weight = latent_weight

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return "loss" and its parts; `batch` has params, image, c, weight and the targets z and h."""
        main, levels = self.conditioner(batch.get("params"), batch.get("image"))
        z, flat = self.conditioner.unscaled(main.float(), levels.float())
        features, _ = self.vae.decoder(z, h=self.vae.levels_of(flat))
        with torch.autocast(z.device.type, enabled=False):
            zeta = torch.cat([z, flat], dim=1)
            c = coefficients_of(batch)
            errors = self.reconstruction.of_output(self.vae, features.float(), zeta, c)
            parts = {"recon": (batch["weight"] * errors).mean()}
            loss = self.lc_alpha * parts["recon"]
            if self.reconstruction.penalty is not None:
                c_hat = self.vae.channels_of(features.float(), zeta)
                parts["penalty"] = self.reconstruction.penalty(c_hat, batch).mean()
                loss = loss + parts["penalty"]
            if self.latent_weight > 0:
                true_main, true_levels = self.conditioner.standardised(batch["z"], batch["h"].flatten(1))
                parts["latent"] = latent_loss(
                    main.float() - true_main, levels.float() - true_levels, END_TO_END_WEIGHTS
                )
                loss = loss + self.latent_weight * parts["latent"]
        return {"loss": loss, **parts}
