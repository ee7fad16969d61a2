"""L-BFGS on a section, preconditioned by what the shots light up.

The misfit's gradient is strong near shots and receivers and weak below; a few curvature pairs cannot learn
that. So the search runs in q, with v = start + smooth(W q): W weighs weakly lit cells up, the smoothing keeps
steps to lengths that the band can tell apart. In q the misfit is nearly as curved along every axis, and
twenty simulations go several times as far as with first-order steps. Sources: Nocedal 1980 (L-BFGS), Byrd et
al. 1995 (the library's routine), Shin et al. 2001 (scaling by illumination).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage, optimize

MEMORY = 12  # curvature pairs
LIGHT_CELLS = (3.0, 8.0)  # over z and x: smoothing of the gradient's size, which stands for the light
WATER_LEVEL = 0.01  # of the strongest illumination: less light than that is not made up for
UNLIMITED = 10**6


class _SpentError(Exception):
    """The evaluations are used up."""


def descend(
    start: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    smooth: Callable[[torch.Tensor], torch.Tensor],
    *,
    evaluations: int,
    first_step: float,
    bounds: tuple[float, float],
) -> torch.Tensor:
    """Return the section [Z, X] of the lowest loss among the evaluated ones, the start included.

    Args:
        start: [Z, X], km/s.
        loss: of a section [Z, X]; differentiable. It is called at most `evaluations` times, first with
            the start.
        smooth: linear smoothing of a field [Z, X]; part of the preconditioner.
        evaluations: calls of `loss`, each with its gradient.
        first_step: largest change of the first trial section, km/s.
        bounds: of the velocity, km/s.
    """
    first = _Space(start, smooth, bounds)
    zero = np.zeros(start.numel())
    value, gradient = first.value_and_gradient(loss, zero)
    if evaluations < 2 or not (np.isfinite(gradient).all() and np.abs(gradient).max() > 0):
        return start
    weights, scale = precondition(torch.from_numpy(gradient.reshape(start.shape)), first_step)
    space = _Space(start, smooth, bounds, weights, scale)
    known = {zero.tobytes(): (scale * value, scale * gradient * weights.numpy().ravel())}
    best, left = (scale * value, zero), evaluations - 1

    def evaluate(q: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, left
        if q.tobytes() in known:
            return known[q.tobytes()]
        if not left:
            raise _SpentError
        left -= 1
        found = space.value_and_gradient(loss, q)
        if found[0] < best[0]:
            best = (found[0], q.copy())
        return found

    options = {"maxcor": MEMORY, "maxiter": UNLIMITED, "maxfun": UNLIMITED, "ftol": 0.0, "gtol": 0.0}
    with contextlib.suppress(_SpentError):
        optimize.minimize(evaluate, zero, jac=True, method="L-BFGS-B", options=options)
    return space.section(torch.from_numpy(best[1].reshape(start.shape))).detach()


def precondition(gradient: torch.Tensor, first_step: float) -> tuple[torch.Tensor, float]:
    """Return W [Z, X], float64, > 0, and the loss's scale, from a first gradient [Z, X].

    W^2 goes with the inverse of the gradient's size, smoothed and stabilised: cells that the shots hardly
    light up move as far as those that they light up well. The routine's first trial is one unit long in q;
    with this scale that is the steepest step whose largest change is `first_step`.
    """
    size = gradient.abs()
    light = torch.from_numpy(ndimage.gaussian_filter(size.numpy(), LIGHT_CELLS, mode="nearest"))
    shape = 1 / (light / light.max() + WATER_LEVEL)
    length = first_step / (shape * size).max()  # of W^2 times the scaled gradient
    scale = 1 / (length * (shape * size.square()).sum())
    return (shape * length / scale).sqrt(), float(scale)


class _Space:
    """Sections as functions of q."""

    def __init__(
        self,
        start: torch.Tensor,
        smooth: Callable[[torch.Tensor], torch.Tensor],
        bounds: tuple[float, float],
        weights: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        self.start, self.smooth, self.bounds, self.weights, self.scale = start, smooth, bounds, weights, scale

    def section(self, q: torch.Tensor) -> torch.Tensor:
        """Return the section [Z, X] of q [Z, X], float64 -> that of the start."""
        change = q if self.weights is None else q * self.weights
        change = self.smooth(change.to(self.start))
        return (self.start + change).clamp(*self.bounds)

    def value_and_gradient(
        self, loss: Callable[[torch.Tensor], torch.Tensor], q: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the scaled loss and its gradient in q, flat."""
        inside = torch.from_numpy(np.array(q).reshape(self.start.shape)).requires_grad_(True)
        value = loss(self.section(inside))
        value.backward()
        assert inside.grad is not None
        return self.scale * float(value.detach()), self.scale * inside.grad.numpy().ravel()
