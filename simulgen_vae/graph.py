"""A deliverable as one network: physical inputs in, physical fields out, with everything in between.

B batch, P parameters, r_s spatial modes, T frames, M nodes, V fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simulgen_vae.compare import winner_of
from simulgen_vae.constraints import Constraints, constraints_of
from simulgen_vae.model_files import Surrogate, find_model, read_surrogate
from simulgen_vae.predictor import Inputs
from simulgen_vae.spectral import fold


class SurrogateGraph(nn.Module):
    """Conditioner or process, decoder, basis, scalers and hard constraints in a row.

    The inputs are params [B, P] and image [B, 1, 256, 256], those of the two that the model takes.

    Args:
        surrogate: with a predictor.
        constraints: what the fields keep.
    """

    def __init__(self, surrogate: Surrogate, constraints: Constraints) -> None:
        super().__init__()
        self.predictor = winner_of(surrogate)
        self.vae, self.conditioner = surrogate.vae, surrogate.conditioner
        self.basis, self.constraints = surrogate.basis, constraints
        self.takes_params, self.takes_images = surrogate.uses_params, surrogate.uses_images

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return ("params",) * self.takes_params + ("image",) * self.takes_images

    def arguments(self, inputs: Inputs) -> tuple[torch.Tensor, ...]:
        """Return the positional arguments of `forward`."""
        image = (inputs.image,) if self.takes_images and inputs.image is not None else ()
        return (inputs.params,) * self.takes_params + image

    def inputs(self, *arguments: torch.Tensor) -> Inputs:
        """Return what a predictor takes."""
        if not self.takes_params:
            return Inputs(arguments[0].new_zeros(arguments[0].shape[0], 0), arguments[0])
        return Inputs(arguments[0], arguments[1] if self.takes_images else None)

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        """Return the fields [B, T, M, V]."""
        return self.fields(self.predictor(self.inputs(*arguments)))

    def fields(self, c: torch.Tensor) -> torch.Tensor:
        """Return the fields [..., T, M, V] of coefficients [..., r_s, T]."""
        return self.constraints(self.basis.decode(c))


@dataclass(eq=False)
class Model:
    """A deliverable, ready to be asked.

    Attributes:
        path: of its file.
        surrogate: what it holds; the spectral norms are folded.
        graph: the network; None when it was trained without inputs.
        constraints: what its fields keep.
        device: of all its tensors.
    """

    path: Path
    surrogate: Surrogate
    graph: SurrogateGraph | None
    constraints: Constraints
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, M, V)."""
        basis = self.surrogate.basis
        return self.surrogate.vae.shape.frames, basis.num_nodes, basis.num_fields

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings of its training."""
        return self.surrogate.config

    def require_graph(self) -> SurrogateGraph:
        """Return the network.

        Raises:
            DataError: the training had neither parameters nor pictures.
        """
        winner_of(self.surrogate)
        assert self.graph is not None
        return self.graph

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return coefficients [B, r_s, T] of latents [B, n]: z, then the levels from the deepest."""
        vae = self.surrogate.vae
        size = vae.shape.latent_dim_end
        return vae.decode(latents[:, :size], vae.levels_of(latents[:, size:]))

    def latents(self, c: torch.Tensor) -> torch.Tensor:
        """Return the posterior means [B, n] of coefficients [B, r_s, T]."""
        z, h = self.surrogate.vae.latents(c)
        return torch.cat([z, h.flatten(1)], 1)

    def fields(self, c: torch.Tensor) -> torch.Tensor:
        """Return the fields [..., T, M, V] of coefficients [..., r_s, T]."""
        return self.constraints(self.surrogate.basis.decode(c))


def load(path: str | Path, device: torch.device | str = "cpu", flags: Any = None) -> Model:
    """Return the model of a run folder or file; `flags` of a tool change its constraints.

    Raises:
        UserError: the constraints do not fit.
        DataError: the model is missing, damaged or of another package.
    """
    found = find_model(path)
    surrogate = read_surrogate(found)
    device = torch.device(device)
    fold(surrogate.vae)
    constraints = constraints_of(surrogate, flags).eval()
    parts: list[nn.Module | None] = [surrogate.vae, surrogate.basis, surrogate.conditioner]
    for part in (*parts, surrogate.predictor, constraints):
        if part is not None:
            part.to(device).eval().requires_grad_(False)
    graph = None
    if surrogate.predictor is not None:
        graph = SurrogateGraph(surrogate, constraints).eval()
    return Model(found, surrogate, graph, constraints, device)
