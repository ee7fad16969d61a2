"""Optimizers and what goes with them: parameter groups, schedules, averaged weights, the guarded update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from common import distributed
from common.device import Precision
from common.errors import UserError
from common.guard import Guard
from common.task import Task

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two AdamW groups: matrices and kernels decay; biases, gains and norms (under 2 axes) do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1]
    plain = [p for p in trained if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def adamw(
    module: nn.Module, lr: float, weight_decay: float = 1e-2, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) over the groups of `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas, foreach=True)


def half_cosine(angle: float, floor: float) -> float:
    """Return the share of the rate at `angle` of a half cosine: 1 at 0, `floor` at pi."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(angle))


def warmed_up(warmup_steps: int, after: Callable[[int], float]) -> Callable[[int], float]:
    """Return step -> factor of the rate: linear over `warmup_steps`, then `after` of the steps since."""

    def factor(step: int) -> float:
        return (step + 1) / (warmup_steps + 1) if step < warmup_steps else after(step - warmup_steps)

    return factor


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, final_fraction: float = 0.0
) -> LambdaLR:
    """Return a schedule: linear over `warmup_steps`, then a half cosine down to `final_fraction` of lr."""

    def factor(step: int) -> float:
        progress = min(1.0, step / max(1, total_steps - warmup_steps))
        return half_cosine(math.pi * progress, final_fraction)

    return LambdaLR(optimizer, warmed_up(warmup_steps, factor))


def warm_restarts(
    optimizer: torch.optim.Optimizer,
    first_period: int,
    period_factor: int = 1,
    final_fraction: float = 0.0,
    warmup_steps: int = 0,
) -> LambdaLR:
    """Return cosine warm restarts (SGDR, Loshchilov and Hutter 2017) after a linear warm-up.

    The first period lasts `first_period` steps, each following one `period_factor` times longer.
    """

    def factor(step: int) -> float:
        position, period = step, first_period
        while position >= period:
            position -= period
            period *= period_factor
        return half_cosine(math.pi * position / period, final_fraction)

    return LambdaLR(optimizer, warmed_up(warmup_steps, factor))


class Ema(AveragedModel):
    """Exponential moving average of weights and floating buffers, usable after few steps.

    The decay at update n is min(decay, (1 + n)/(10 + n)), so a short run is not stuck at its start.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        super().__init__(distributed.unwrap(module), multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self._updates = 0
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def _average(self, averaged: Tensors, current: Tensors, count: torch.Tensor | int) -> None:
        if not averaged[0].is_floating_point():  # counters such as num_batches_tracked
            torch._foreach_copy_(averaged, current)  # pyright: ignore[reportPrivateImportUsage] - in no __all__
            return
        n = self._updates
        share = 1.0 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, share)  # pyright: ignore[reportPrivateImportUsage] - as above

    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`."""
        self.update_parameters(distributed.unwrap(module))
        self._updates += 1

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load as any module does; the count of updates comes along."""
        result = super().load_state_dict(*args, **kwargs)
        self._updates = int(self.n_averaged)
        return result


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float = 0.0) -> torch.Tensor:
    """Return the total gradient norm, after scaling the gradients down to `max_norm` when that is above 0."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)


def split_batch(batch: Any, parts: int) -> list[Any]:
    """Cut `batch` (tensors [B, ...], lists of B, or dicts of them) into `parts` equal pieces along B.

    Raises:
        UserError: B is no multiple of `parts`, so that the mean of the pieces' losses would not be that of B.
    """
    if parts == 1:
        return [batch]
    if isinstance(batch, dict):
        pieces = {key: split_batch(value, parts) for key, value in batch.items()}
        return [{key: piece[i] for key, piece in pieces.items()} for i in range(parts)]
    size, rest = divmod(len(batch), parts)
    if rest or size == 0:
        raise UserError(
            f"a batch of {len(batch)} samples cannot be cut into {parts} equal pieces; choose a divisor"
        )
    return [batch[i * size : (i + 1) * size] for i in range(parts)]


class Updater:
    """One optimizer with all that a safe update needs: accumulation, AMP, clipping, guard, schedule, EMA.

    A task with two networks owns two of them. `step` runs forward and backward on each part of the batch,
    lets all ranks agree that loss and gradient norm are finite, and only then updates.

    Args:
        module: what is trained, possibly under DistributedDataParallel.
        optimizer: its optimizer.
        guard: the agreement of the ranks; shared by all updaters of a run.
        precision: autocast and scaler.
        schedule: learning rate, advanced once an update.
        max_norm: gradient norm to clip at; 0 = off.
        accumulate: parts of a batch, run one after another before one update.
        ema: averaged weights, updated after the weights.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        guard: Guard,
        precision: Precision,
        *,
        schedule: LRScheduler | None = None,
        max_norm: float = 0.0,
        accumulate: int = 1,
        ema: Ema | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.guard = guard
        self.precision = precision
        self.schedule = schedule
        self.max_norm = max_norm
        self.accumulate = accumulate
        self.ema = ema
        self.scaler = precision.scaler()
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(
        self, loss_function: Callable[[Any], dict[str, torch.Tensor]], batch: Any
    ) -> dict[str, torch.Tensor]:
        """Update once and return the detached loss parts, averaged over the pieces of the batch.

        Args:
            loss_function: piece of batch -> named scalars; "loss" is the one that is minimised.
            batch: all samples of this update on this rank.

        Raises:
            NonFiniteError: by the guard, before anything was updated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        pieces = split_batch(batch, self.accumulate)
        total: dict[str, torch.Tensor] = {}
        for i, piece in enumerate(pieces):
            with self._sync_only_at(i == len(pieces) - 1):
                with self.precision.autocast():
                    parts = loss_function(piece)
                self.scaler.scale(parts["loss"] / len(pieces)).backward()
            for name, value in parts.items():
                share = value.detach() / len(pieces)
                total[name] = total[name] + share if name in total else share
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self._parameters, self.max_norm)
        # In fp16 an overflowing gradient is the scaler's daily work; only the loss itself must be finite.
        checked = {"loss": total["loss"]} if self.scaler.is_enabled() else {**total, "gradient_norm": norm}
        if self.guard.agree(checked):
            self._apply()
        return {**total, "gradient_norm": norm}

    def _apply(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()
        if self.ema is not None:
            self.ema.update(self.module)

    def _sync_only_at(self, last: bool) -> Any:
        """Let DistributedDataParallel reduce gradients with the last piece only."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    @property
    def averaged(self) -> nn.Module:
        """The network with averaged weights; without averaging the trained one itself."""
        return self.ema.module if self.ema is not None else distributed.unwrap(self.module)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next update depends on."""
        return {
            "module": distributed.unwrap(self.module).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        distributed.unwrap(self.module).load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


class UpdateTask(Task):
    """A task whose one updater holds everything that the next step depends on.

    Attributes:
        update: network, optimizer, schedule and averages.
    """

    update: Updater

    def state_dict(self) -> dict[str, Any]:
        """Return network, optimizer, schedule and averages."""
        return self.update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.update.load_state_dict(state)


def parameter_count(module: nn.Module) -> int:
    """Return the number of trained values of a network."""
    return sum(parameter.numel() for parameter in module.parameters())
