"""Inverse problems through a surrogate: unknowns, what is observed, Adam from many starts, Gauss-Newton.

B starts, d unknowns, m residuals, n latents, r_s spatial modes, T frames, M nodes, V fields. Unknowns x are
standardised: x = 0 is the training's mean, x = 1 one standard deviation away from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.noise import numpy_stream
from simulgen_vae.graph import Model
from simulgen_vae.predictor import Inputs

DIFFERENCE = 5e-3  # step of the Jacobian's central differences, in standard deviations
LATENT_REACH = 4.0  # box of latents, in standard deviations of the training's
ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Unknowns:
    """What is sought, and where.

    Attributes:
        names: d names.
        mean, std: of the training's values, [d].
        low, high: box of x, [d].
        known: values of the training rows, standardised, [n, d].
        coefficients: physical values [B, d] -> coefficients [B, r_s, T].
        are_latents: latents are sought, not parameters.
    """

    names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    known: Tensor
    coefficients: Callable[[Tensor], Tensor]
    are_latents: bool = False

    def physical(self, x: Tensor) -> Tensor:
        """Return values [.., d] of standardised x."""
        return self.mean + self.std * x

    def standardised(self, values: Tensor) -> Tensor:
        """Return x [.., d] of physical values."""
        return (values - self.mean) / self.std

    def clamp(self, x: Tensor) -> Tensor:
        """Return x inside the box."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def make_unknowns(
    known: Tensor,
    names: tuple[str, ...],
    coefficients: Callable[[Tensor], Tensor],
    box: tuple[Tensor, Tensor] | None = None,
    reach: float = 0.0,
) -> Unknowns:
    """Return unknowns whose statistics are those of `known` [n, d].

    Args:
        known: values of the training rows.
        names: d names.
        coefficients: what a surrogate makes of values.
        box: low and high in physical units; None = the range of `known`.
        reach: box of so many standard deviations instead; 0 = off.
    """
    mean, std = known.mean(0), known.std(0, correction=0)
    std = torch.where(std > 1e-9 * known.abs().amax(0).clamp_min(1e-30), std, torch.ones_like(std))
    low, high = box if box is not None else (known.amin(0), known.amax(0))
    if reach > 0:
        low, high = mean - reach * std, mean + reach * std
    return Unknowns(
        names, mean, std, (low - mean) / std, (high - mean) / std, (known - mean) / std, coefficients
    )


def parameter_unknowns(model: Model, box: tuple[Tensor, Tensor] | None) -> Unknowns:
    """Return the physical parameters as unknowns."""
    predictor = model.require_graph().predictor
    known = model.surrogate.arrays["train_params"].double()
    names = tuple(model.config["param_names"])
    return make_unknowns(known, names, lambda p: predictor(Inputs(p.float().to(model.device))), box)


def latent_unknowns(model: Model, latents: np.ndarray) -> Unknowns:
    """Return the latents as unknowns; `latents` [n, ..] are those of the training rows."""
    known = torch.from_numpy(latents).double()
    names = tuple(f"latent{k}" for k in range(known.shape[1]))
    decode = model.decode
    found = make_unknowns(known, names, lambda z: decode(z.float().to(model.device)), reach=LATENT_REACH)
    return dataclasses.replace(found, are_latents=True)


Readout = Callable[[Tensor], Tensor]  # coefficients [B, r_s, T] -> weighted residuals [B, m]


def field_readout(model: Model, target: Tensor, sigma: float, num_values: float) -> Readout:
    """Return the residuals of a whole field [T, M, V].

    Errors of a surrogate hang together over the field: all of it counts as `num_values` independent values,
    sum of squares = num_values mean((u - target)^2 / field variance) / sigma^2. Without hard limits the mean
    is taken over coefficients, which is the same up to what the basis leaves out, and forms no field.

    Args:
        model: of the coefficients.
        target: physical units.
        sigma: uncertainty, in standard deviations of the field.
        num_values: that the field counts for.
    """
    basis, target = model.surrogate.basis, target.to(model.device)
    if model.constraints.is_hard:
        weight = math.sqrt(num_values / target.numel()) / sigma / basis.field_std
        return lambda c: (weight * (model.fields(c) - target)).flatten(1)
    wanted = basis.encode(target)
    return lambda c: math.sqrt(num_values / wanted.numel()) / sigma * (c - wanted).flatten(1)


@dataclass(frozen=True, eq=False)
class Sensors:
    """Readings: node, frame, field (int64 [m] each), value and sigma (float32 [m]) in physical units."""

    node: Tensor
    frame: Tensor
    field: Tensor
    value: Tensor
    sigma: Tensor


def sensor_values(model: Model, sensors: Sensors, c: Tensor) -> Tensor:
    """Return what the sensors would read, [B, m]; only their nodes are decoded."""
    basis = model.surrogate.basis
    nodes, place = torch.unique(sensors.node, return_inverse=True)
    channels = (nodes[:, None] * basis.num_fields + torch.arange(basis.num_fields)).reshape(-1)
    channels = channels.to(model.device)
    x = basis.decode_standardized(c, channels).unflatten(-1, (len(nodes), basis.num_fields))
    centre = basis.node_mean[channels].view(len(nodes), basis.num_fields)
    u = model.constraints.on_nodes(nodes.to(model.device))(x * basis.field_std + centre)
    return u[:, sensors.frame, place, sensors.field]


def sensor_readout(model: Model, sensors: Sensors, model_std: Tensor | None) -> Readout:
    """Return the residuals (reading - prediction) / sqrt(sigma^2 + model_std^2), model_std [m]."""
    sigma = sensors.sigma if model_std is None else (sensors.sigma.square() + model_std.square()).sqrt()
    value, sigma = sensors.value.to(model.device), sigma.to(model.device)
    return lambda c: (sensor_values(model, sensors, c) - value) / sigma


@dataclass(frozen=True, eq=False)
class Problem:
    """min_x 1/2 |r(x)|^2 + prior_weight/2 |x|^2 in a box: the most probable x under a Gaussian prior."""

    unknowns: Unknowns
    readout: Readout
    prior_weight: float

    def residuals(self, x: Tensor) -> Tensor:
        """Return r [B, m] of x [B, d], float64."""
        return self.readout(self.unknowns.coefficients(self.unknowns.physical(x))).double().cpu()

    def objective(self, x: Tensor) -> Tensor:
        """Return the objective [B] of x [B, d]."""
        return 0.5 * self.residuals(x).square().sum(1) + 0.5 * self.prior_weight * x.square().sum(1)

    @torch.no_grad()
    def misfit(self, x: Tensor) -> Tensor:
        """Return |r|^2 [B] of x [B, d], some rows at a time."""
        return torch.cat([self.residuals(part).square().sum(1) for part in x.split(ROWS_AT_ONCE)])

    @torch.no_grad()
    def jacobian(self, x: Tensor) -> Tensor:
        """Return dr/dx [m, d] at one x [d], by central differences: any predictor, one batch."""
        shift = DIFFERENCE * torch.eye(len(x), dtype=x.dtype)
        r = torch.cat(
            [self.residuals(part) for part in torch.cat([x + shift, x - shift]).split(ROWS_AT_ONCE)]
        )
        return ((r[: len(x)] - r[len(x) :]) / (2 * DIFFERENCE)).T


@dataclass(frozen=True, eq=False)
class Found:
    """What a search gave.

    Attributes:
        x: best [d].
        covariance: Gauss-Newton, of x, [d, d].
        starts, ends: of every start, [B, d].
        objective: of every end, [B].
        trace: objective of every start at each step, [steps + 1, B].
        nearest: training row that meets the target best.
        nearest_misfit, misfit: |r|^2 of that row's values and of the best.
    """

    x: Tensor
    covariance: Tensor
    starts: Tensor
    ends: Tensor
    objective: Tensor
    trace: Tensor
    nearest: int
    nearest_misfit: float
    misfit: float


def latin_hypercube(low: Tensor, high: Tensor, count: int, seed: int, index: int = 0) -> Tensor:
    """Return `count` points of a box, each coordinate spread evenly (McKay et al. 1979), [count, d]."""
    rng = numpy_stream(seed, "inversion starts", index)
    cells = (
        np.stack([rng.permutation(count) for _ in range(len(low))], axis=1)
        if count
        else np.zeros((0, len(low)))
    )
    shares = (cells + rng.uniform(size=cells.shape)) / max(count, 1)
    return low + torch.from_numpy(shares) * (high - low)


def search(problem: Problem, num_starts: int, steps: int, lr: float, polish: int, seed: int) -> Found:
    """Return the best of several searches: Adam in the box from all starts at once, then Gauss-Newton.

    The first start is the training row that meets the target best, the others a Latin hypercube.
    """
    unknowns = problem.unknowns
    misfits = problem.misfit(unknowns.known)
    nearest = int(misfits.argmin())
    hypercube = latin_hypercube(unknowns.low, unknowns.high, num_starts, seed)
    starts = unknowns.clamp(torch.cat([unknowns.known[nearest : nearest + 1], hypercube]))
    ends, trace = adam(problem, starts, steps, lr)
    with torch.no_grad():
        objective = problem.objective(ends)
    best = int(objective.argmin())
    x = gauss_newton(problem, ends[best], polish)
    ends[best], objective[best] = x, float(problem.objective(x[None])[0].detach())
    return Found(
        x,
        covariance(problem, x),
        starts,
        ends,
        objective,
        trace,
        nearest,
        float(misfits[nearest]),
        float(problem.misfit(x[None])[0]),
    )


def adam(problem: Problem, starts: Tensor, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    """Return the best point of each start [B, d], and the objective at every step [steps + 1, B].

    The learning rate falls as half a cosine; after each step the point is put back into the box.
    """
    x = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    best, least, trace = starts.clone(), torch.full((len(starts),), torch.inf, dtype=starts.dtype), []
    for step in range(steps + 1):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
        value = problem.objective(x)
        trace.append(value.detach().clone())
        better = trace[-1] < least
        least, best = torch.where(better, trace[-1], least), torch.where(better[:, None], x.detach(), best)
        if step == steps:
            break
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        with torch.no_grad():
            x.copy_(problem.unknowns.clamp(x))
    return best, torch.stack(trace)


def gauss_newton(problem: Problem, x: Tensor, steps: int) -> Tensor:
    """Return x [d] after at most `steps` damped Gauss-Newton steps in the box (Levenberg-Marquardt)."""
    with torch.no_grad():
        value, damping = problem.objective(x[None])[0], 1e-3
        for _ in range(steps):
            jacobian, r = problem.jacobian(x), problem.residuals(x[None])[0]
            gradient = jacobian.T @ r + problem.prior_weight * x
            hessian = jacobian.T @ jacobian + problem.prior_weight * torch.eye(len(x), dtype=x.dtype)
            scale = hessian.diagonal().clamp_min(1e-12)
            accepted = False
            for _ in range(6):
                step = torch.linalg.lstsq(hessian + damping * torch.diag(scale), -gradient).solution
                tried = problem.unknowns.clamp(x + step)
                found = problem.objective(tried[None])[0]
                if found < value:
                    accepted = bool(value - found > 1e-12 * value)
                    x, value, damping = tried, found, damping / 10
                    break
                damping *= 10
            if not accepted:
                break
    return x


def covariance(problem: Problem, x: Tensor) -> Tensor:
    """Return (J^T J + prior_weight I)^-1 at x, [d, d]: the covariance of standardised unknowns."""
    jacobian = problem.jacobian(x)
    hessian = jacobian.T @ jacobian + problem.prior_weight * torch.eye(len(x), dtype=x.dtype)
    return torch.linalg.pinv(hessian, hermitian=True)
