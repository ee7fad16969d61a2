"""From what the user knows of a case (numbers, a picture, both) to the latents of its trajectory.

B batch, P parameters, nz and n_h = K nh sizes of the latents. Targets are posterior means, z-scored on
training rows; outputs are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from simulgen_vae.conditioner_image import CnnEncoder, TinyVit, binarised

INPUT_TYPES = ("csv", "image", "image_vit", "fusion")
HEAD_WIDTH = 64
FUSION_BLOCKS = 2
STD_FLOOR = 0.1  # of a latent: below it a dimension is inactive (variance of its posterior mean under 0.01)
RIDGE = 1e-6
IGNORED = 1e30  # standard deviation of a column that never changes: whatever comes, it reads 0


@dataclass(frozen=True)
class ConditionerShape:
    """Everything that fixes the weights' shapes; plain values, stored in checkpoints.

    Attributes:
        input_type: csv, image, image_vit or fusion.
        num_params: P, 0 for pictures alone.
        num_main: nz.
        num_levels: K nh.
        filters: widths of the MLP.
        dropout: of the MLP.
        use_attention: of the CNN.
        fusion_encoder: cnn or vit, for fusion.
        image_threshold: binarise pictures at this grey value (0-255); negative = off.
    """

    input_type: str
    num_params: int
    num_main: int
    num_levels: int
    filters: tuple[int, ...] = (128, 128, 128)
    dropout: float = 0.1
    use_attention: bool = True
    fusion_encoder: str = "cnn"
    image_threshold: float = -1.0

    def __post_init__(self) -> None:
        """Check what the type needs."""
        object.__setattr__(self, "filters", tuple(int(f) for f in self.filters))
        if self.input_type not in INPUT_TYPES:
            raise ValueError(f"--input_type {self.input_type}: expected one of {', '.join(INPUT_TYPES)}")
        if self.uses_params and (self.num_params < 1 or min(self.filters, default=0) < 1):
            raise ValueError(
                f"--input_type {self.input_type}: {self.num_params} parameters and --lc_filters "
                f"{self.filters}, expected at least one of each, all 1 or more"
            )

    @property
    def uses_params(self) -> bool:
        """Whether numbers are an input."""
        return self.input_type in ("csv", "fusion")

    @property
    def uses_image(self) -> bool:
        """Whether a picture is an input."""
        return self.input_type != "csv"

    def state(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "filters": list(self.filters)}


class MlpBlock(nn.Module):
    """skip(x) + [Linear LN GELU Dropout Linear LN](x), the skip projected where the width changes."""

    def __init__(self, before: int, after: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(before, after),
            nn.LayerNorm(after),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(after, after),
            nn.LayerNorm(after),
        )
        self.skip = nn.Identity() if before == after else nn.Linear(before, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, after]."""
        return self.skip(x) + self.branch(x)


def mlp_trunk(num_params: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Return Linear then one residual block a width; no norm on the raw inputs, which would erase one."""
    befores = (widths[0], *widths[:-1])
    blocks = [MlpBlock(a, b, dropout) for a, b in zip(befores, widths, strict=True)]
    return nn.Sequential(nn.Linear(num_params, widths[0]), *blocks)


def head(width: int, out: int) -> nn.Sequential:
    """Return Linear(width -> 64) GELU Linear(64 -> out), zero at the start."""
    last = nn.Linear(HEAD_WIDTH, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, HEAD_WIDTH), nn.GELU(), last)


class Conditioner(nn.Module):
    """Inputs to latents: trunk, two heads, and a linear map of the numbers as start.

    Args:
        shape: sizes and kind.
    """

    param_mean: torch.Tensor
    param_std: torch.Tensor
    latent_mean: torch.Tensor
    latent_std: torch.Tensor

    def __init__(self, shape: ConditionerShape) -> None:
        super().__init__()
        self.shape = shape
        num_latents = shape.num_main + shape.num_levels
        for name, size in (("param", shape.num_params), ("latent", num_latents)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        width = 0
        if shape.uses_image:
            kind = {"image": "cnn", "image_vit": "vit"}.get(shape.input_type, shape.fusion_encoder)
            self.picture = TinyVit() if kind == "vit" else CnnEncoder(shape.use_attention)
            width = self.picture.num_features
        if shape.uses_params:
            self.trunk = mlp_trunk(shape.num_params, shape.filters, shape.dropout)
            self.linear = nn.Linear(shape.num_params, num_latents)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
            width += shape.filters[-1]
        if shape.input_type == "fusion":
            joined, width = width, shape.filters[-1]
            blocks = [MlpBlock(width, width, shape.dropout) for _ in range(FUSION_BLOCKS)]
            self.fuse = nn.Sequential(nn.Linear(joined, width), *blocks)
        self.main_head = head(width, shape.num_main)
        self.level_head = head(width, shape.num_levels)

    def forward(
        self, params: torch.Tensor | None, image: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z-scored latents [B, nz] and [B, K nh].

        Args:
            params: physical values, [B, P]; None for pictures alone.
            image: [B, 1, 256, 256] in 0..1; None for numbers alone.
        """
        features = []
        start = None
        if self.shape.uses_image:
            assert image is not None
            threshold = self.shape.image_threshold
            features.append(self.picture(binarised(image, threshold if threshold >= 0 else None)))
        if self.shape.uses_params:
            assert params is not None
            x = self.scaled_params(params)
            features.append(self.trunk(x))
            start = self.linear(x)
        joined = torch.cat(features, dim=1)
        if self.shape.input_type == "fusion":
            joined = self.fuse(joined)
        main, levels = self.main_head(joined), self.level_head(joined)
        if start is not None:
            main = main + start[:, : self.shape.num_main]
            levels = levels + start[:, self.shape.num_main :]
        return main, levels

    def latents(
        self, params: torch.Tensor | None, image: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents z [B, nz] and h [B, K nh] in the VAE's own units."""
        main, levels = self(params, image)
        return self.unscaled(main.float(), levels.float())

    def scaled_params(self, params: torch.Tensor) -> torch.Tensor:
        """Return z-scored parameters as float32; the difference is formed before precision is lost."""
        return ((params - self.param_mean) / self.param_std).to(self.param_std.dtype)

    def standardised(self, z: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z-scored latents of z [B, nz] and h [B, K nh]."""
        flat = (torch.cat([z, h], dim=1) - self.latent_mean) / self.latent_std
        return flat[:, : self.shape.num_main], flat[:, self.shape.num_main :]

    def unscaled(self, main: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents of z-scored ones: the inverse of `standardised`."""
        flat = torch.cat([main, levels], dim=1) * self.latent_std + self.latent_mean
        return flat[:, : self.shape.num_main], flat[:, self.shape.num_main :]

    @torch.no_grad()
    def fit_params(self, params: torch.Tensor) -> None:
        """Take mean and standard deviation of the training parameters [n, P]; constants count no more."""
        values = params.double()
        mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
        constant = std <= 1e-12 * mean.abs().clamp_min(1.0)
        self.param_mean.copy_(mean)
        self.param_std.copy_(torch.where(constant, torch.full_like(std, IGNORED), std))

    @torch.no_grad()
    def fit_latents(self, z: torch.Tensor, h: torch.Tensor) -> None:
        """Take mean and standard deviation (floored) of the training rows' latents."""
        values = torch.cat([z, h.flatten(1)], dim=1).double()
        self.latent_mean.copy_(values.mean(dim=0))
        self.latent_std.copy_(values.std(dim=0, correction=0).clamp_min(STD_FLOOR))

    @torch.no_grad()
    def fit_linear(self, params: torch.Tensor, z: torch.Tensor, h: torch.Tensor) -> None:
        """Start from the least-squares map of the training rows (slightly ridged)."""
        if not self.shape.uses_params:
            return
        x = self.scaled_params(params).double()
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        target = torch.cat(self.standardised(z, h.flatten(1)), dim=1).double()
        # Fewer rows than unknowns would be fitted by heart: the ridge grows then.
        ridge = RIDGE if len(x) > 2 * x.shape[1] else 0.1
        gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        solution = torch.linalg.solve(gram, x.T @ target / len(x))
        self.linear.weight.copy_(solution[:-1].T)
        self.linear.bias.copy_(solution[-1])


def build_conditioner(state: dict[str, Any], weights: dict[str, torch.Tensor]) -> Conditioner:
    """Return the network that `ConditionerShape.state` describes with `weights` loaded, for inference."""
    conditioner = Conditioner(ConditionerShape(**state))
    conditioner.load_state_dict(weights)
    return conditioner.eval().requires_grad_(False)
