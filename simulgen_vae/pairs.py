"""Predictors made of others: through the latents of the VAE, and the convex mix of two.

Letters: B batch, n latents, r_s spatial modes, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from simulgen_vae.direct import Direct
from simulgen_vae.features import InputFeatures, informative_features
from simulgen_vae.field_net import FieldNet
from simulgen_vae.gp import GaussianProcess, fit_gp
from simulgen_vae.gp2 import Gp2
from simulgen_vae.predictor import Inputs, Predictor, TrainingSet, draws_of_members

if TYPE_CHECKING:
    from simulgen_vae.basis import Basis
    from simulgen_vae.conditioner import Conditioner
    from simulgen_vae.model import HierarchicalVae

PER_LATENT_ROWS = 500  # one covariance for each latent up to here, one for all beyond


class LatentPredictor(Predictor):
    """Inputs to the VAE's latents, then its decoder; what subclasses share.

    The VAE belongs to the deliverable: its weights are no part of this state.
    """

    def __init__(self, config: Mapping[str, Any], vae: HierarchicalVae) -> None:
        super().__init__(config)
        self._vae = (vae,)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the coefficients [B, r_s, T] of latents [B, n]."""
        vae = self._vae[0]
        size, levels = vae.shape.latent_dim_end, (vae.shape.num_levels, vae.shape.latent_dim)
        return vae.decode(latents[:, :size], latents[:, size:].unflatten(1, levels))


class LatentNetPredictor(LatentPredictor):
    """The VAE's decoder behind the conditioner; both belong to the deliverable, so they are no state of this.

    With an ensemble, further conditioners are; the mean of all predicts, and they are what its draws vary by.
    """

    name = "vae_net"

    def __init__(
        self,
        config: Mapping[str, Any],
        vae: HierarchicalVae,
        conditioner: Conditioner,
        others: Sequence[Conditioner] = (),
    ) -> None:
        super().__init__({**config, "num_others": len(others)}, vae)
        self._conditioner = (conditioner,)
        self.others = nn.ModuleList(others)

    def members(self, inputs: Inputs) -> torch.Tensor:
        """Return each conditioner's coefficients, [E, B, r_s, T]."""
        networks: list[Any] = [*self._conditioner, *self.others]
        latents = [torch.cat(network.latents(inputs.params, inputs.image), 1) for network in networks]
        return torch.stack([self.decode(part) for part in latents])

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        return self.members(inputs).mean(0)

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, B, r_s, T]; equal ones without an ensemble."""
        members = self.members(inputs)
        return draws_of_members(members, num, seed) if len(members) > 1 else super().draws(inputs, num, seed)


class LatentGp(nn.Module):
    """Gaussian processes from inputs to latents: one for all, or one for each."""

    def __init__(self, features: Mapping[str, Any], processes: list[Mapping[str, Any]]) -> None:
        super().__init__()
        self.features = InputFeatures(**features)
        self.processes = nn.ModuleList(GaussianProcess(**p) for p in processes)

    @property
    def _all(self) -> list[GaussianProcess]:
        return cast("list[GaussianProcess]", list(self.processes))

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the latents [B, n], float32."""
        x = self.features(inputs)
        return torch.cat([process(x) for process in self._all], 1).float()

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return draws of the latents, [num, B, n], float32."""
        x = self.features(inputs)
        parts = [p.draws(x, num, seed + 7919 * i) for i, p in enumerate(self._all)]
        return torch.cat(parts, 2).float()

    def left_out(self, group: torch.Tensor, num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents [1, n] of a group's first row without the group, and draws [num, n], float32."""
        means, draws = [], []
        for k, process in enumerate(self._all):
            mean, variance = process.left_out(group)
            means.append(mean[:1])
            draws.append(mean[0] + process.deviations(variance[:1], num, seed + 7919 * k)[:, 0])
        return torch.cat(means, 1).float(), torch.cat(draws, 1).float()

    def leave_out(self, groups: torch.Tensor) -> torch.Tensor:
        """Return each row's latents predicted without its group, [rows, n], float32."""
        return torch.cat([p.leave_out(groups) for p in self._all], 1).float()


class LatentGpPredictor(LatentPredictor):
    """The VAE's decoder behind Gaussian processes."""

    name = "vae_gp"

    def __init__(self, config: Mapping[str, Any], vae: HierarchicalVae) -> None:
        super().__init__(config, vae)
        self.head = LatentGp(config["features"], config["processes"])

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        return self.decode(self.head(inputs))

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, B, r_s, T]: latents drawn from the processes, each decoded."""
        latents = self.head.draws(inputs, num, seed)
        return self.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])

    def leave_one_out(self, data: TrainingSet) -> torch.Tensor:
        """Return the prediction [n, r_s, T] of each training row without itself and its mirror image.

        The VAE stays as it is: only the step from inputs to latents is left out.
        """
        groups = torch.arange(len(data)).repeat(1 if data.symmetry is None else 2)
        return batched(self.decode, self.head.leave_out(groups)[: len(data)])

    def left_out_deviations(self, group: torch.Tensor, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, r_s, T] around the prediction of a row without its group, which it leads."""
        with torch.no_grad():
            centre, draws = self.head.left_out(group, num, seed)
            return self.decode(draws) - self.decode(centre)


def batched(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int = 64
) -> torch.Tensor:
    """Return `function` of the rows of x, some at a time, without gradients."""
    with torch.no_grad():
        return torch.cat([function(part) for part in torch.split(x, size)])


def latents_of(vae: HierarchicalVae, c: torch.Tensor) -> torch.Tensor:
    """Return the posterior means of all latents, [rows, n], of coefficients [rows, r_s, T]."""
    return batched(lambda part: torch.cat([(z := vae.latents(part))[0], z[1].flatten(1)], 1), c)


def fit_latent_gp(data: TrainingSet, vae: HierarchicalVae) -> LatentGpPredictor:
    """Fit Gaussian processes (Matern-5/2, ARD) from inputs to the latents of rows and their mirror images.

    One process serves all latents, each weighing by its scale s in the linear decoder; with at most
    `PER_LATENT_ROWS` rows each latent has its own as well, and the likelier choice is kept.
    """
    both, groups = data.augmented()
    features = informative_features(both, groups)
    x, zeta = features(both.inputs()), latents_of(vae, both.c).double()
    weights = vae.linear.scales.double().clamp_min(1e-3 * float(vae.linear.scales.max()))
    shared = fit_gp(x, zeta, weights=weights, groups=groups, seed=data.seed)
    processes = [shared]
    if len(both) <= PER_LATENT_ROWS:
        single = [fit_gp(x, z[:, None], groups=groups, num_starts=1, seed=data.seed) for z in zeta.T]
        if _loo_error(single, zeta, groups, weights) < _loo_error([shared], zeta, groups, weights):
            processes = single
    config = {
        "kind": "vae_gp",
        "features": features.config,
        "processes": [process.config for process in processes],
    }
    predictor = LatentGpPredictor(config, vae)
    predictor.head.features.load_state_dict(features.state_dict())
    for empty, process in zip(predictor.head.processes, processes, strict=True):
        empty.load_state_dict(process.state_dict())
    return predictor.eval()


def _loo_error(
    processes: list[GaussianProcess], zeta: torch.Tensor, groups: torch.Tensor, weights: torch.Tensor
) -> float:
    """Return the weighted squared error of predicting every row without its group."""
    if len(processes[0].x) != len(zeta):
        return float("inf")
    found = torch.cat([p.leave_out(groups) for p in processes], 1)
    return float(((found - zeta) * weights).square().mean())


def disagreement(gap: torch.Tensor, weight: float, num: int) -> torch.Tensor:
    """Return the deviations [num, ...] by which a mixture of two varies whose means lie `gap` [...] apart."""
    sign = 1.0 - 2.0 * (torch.arange(num, device=gap.device) % 2)
    return sign.view(-1, *(1,) * gap.dim()) * (weight * (1.0 - weight)) ** 0.5 * gap


class Pair(Predictor):
    """w a + (1 - w) b: the mean of a mixture of two predictors."""

    name = "pair"

    def __init__(self, config: Mapping[str, Any], first: Predictor, second: Predictor) -> None:
        super().__init__(config)
        self.first, self.second = first, second
        self.name = f"{first.name}+{second.name}"
        self.weight = float(config["weight"])

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the coefficients [B, r_s, T]."""
        return self.weight * self.first(inputs) + (1.0 - self.weight) * self.second(inputs)

    def draws(self, inputs: Inputs, num: int, seed: int) -> torch.Tensor:
        """Return draws [num, B, r_s, T]: the mean plus the members' own deviations and their disagreement."""
        w, first, second = self.weight, self.first(inputs), self.second(inputs)
        own = w * (self.first.draws(inputs, num, seed) - first)
        own = own + (1.0 - w) * (self.second.draws(inputs, num, seed + 1) - second)
        return w * first + (1.0 - w) * second + own + disagreement(first - second, w, num)


def pair_of(first: Predictor, second: Predictor, weight: float) -> Pair:
    """Return the mix of two fitted predictors; `weight` is the first one's, 0..1."""
    config = {"kind": "pair", "weight": weight, "first": first.config, "second": second.config}
    return Pair(config, first, second).eval()


def build_predictor(
    config: Mapping[str, Any],
    *,
    basis: Basis,
    vae: HierarchicalVae | None = None,
    conditioner: Conditioner | None = None,
) -> Predictor:
    """Return the empty predictor that `config` describes; its weights come by `load_state_dict`.

    Args:
        config: of `Predictor.config`.
        basis: for the kinds that encode fields.
        vae: for the kinds that go through its latents.
        conditioner: the network of kind vae_net.

    Raises:
        ValueError: the kind is unknown or misses one of the parts.
    """
    kind = config.get("kind")
    shared: dict[str, Any] = {"basis": basis, "vae": vae, "conditioner": conditioner}
    if kind == "gp2":
        return Gp2(config).eval()
    if kind == "direct":
        return Direct(config).eval()
    if kind == "field_net":
        return FieldNet(config, basis).eval()
    if kind == "pair":
        members = (build_predictor(config[name], **shared) for name in ("first", "second"))
        return Pair(config, *members).eval()
    if kind == "vae_gp" and vae is not None:
        return LatentGpPredictor(config, vae).eval()
    if kind == "vae_net" and vae is not None and conditioner is not None:
        others = [type(conditioner)(conditioner.shape) for _ in range(config.get("num_others", 0))]
        return LatentNetPredictor(config, vae, conditioner, others).eval()
    raise ValueError(f"predictor kind {kind!r} is unknown, or its VAE or network is missing")
