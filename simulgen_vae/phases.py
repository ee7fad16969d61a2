"""The training as one task of three phases: the VAE, the conditioner, both end to end.

Each phase keeps its best weights by the relative L2 error on validation rows; the start (the POD solution)
competes, so that training can only improve what ships. The next phase begins from the best of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from common import device as devices
from common import distributed
from common.checkpoint import Checkpoint, plain_tree, plain_weights
from common.device import Precision
from common.errors import DataError
from common.guard import Guard
from common.noise import torch_stream
from common.optim import Updater
from common.sampling import StepSampler, train_loader
from common.task import Task
from simulgen_vae import spectral
from simulgen_vae.conditioner import Conditioner
from simulgen_vae.config import TrainConfig
from simulgen_vae.losses import CHANNEL_SUBSET
from simulgen_vae.model import HierarchicalVae
from simulgen_vae.objectives import Penalty, VaeObjective
from simulgen_vae.progress import (
    CONDITIONER,
    END_TO_END,
    PHASES,
    VAE,
    Lengths,
    Pace,
    Progress,
    Weights,
    part_of,
    plain_copy,
)
from simulgen_vae.schedules import kl_weight
from simulgen_vae.scoring import (
    active_units,
    posterior_means,
    prediction_errors,
    reconstruction_errors,
)
from simulgen_vae.training_data import (
    ConditionerRows,
    JointRows,
    TrainingData,
    VaeRows,
    collate,
    default_workers,
)
from simulgen_vae.updaters import UpdateContext, phase_updaters

PACKAGE = "simulgen_vae"


class SurrogateTask(Task):
    """VAE, conditioner and their end-to-end training on one prepared data set.

    Args:
        config: what to train.
        data: prepared rows.
        vae: the network, at its start or trained (for --lc_only).
        conditioner: the network, None when there is nothing to condition on.
        lengths: of the phases.
        guard: the agreement of the ranks.
        precision: of the arithmetic.
        seed: of the run.
        compiled: compile encoder and decoder.
        penalty: further loss of reconstructed coefficients.
    """

    package = PACKAGE
    kind = "run"

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        vae: HierarchicalVae,
        conditioner: Conditioner | None,
        lengths: dict[str, Lengths],
        guard: Guard,
        precision: Precision,
        seed: int,
        *,
        compiled: bool = False,
        penalty: Penalty | None = None,
    ) -> None:
        self.train_config = config
        self.data = data
        self.lengths = lengths
        self.guard = guard
        self.precision = precision
        self.seed = seed
        self.penalty = penalty
        self.vae = vae.to(guard.device)
        if conditioner is not None:
            devices.channels_last(conditioner).to(guard.device)  # in place
        self.conditioner = conditioner
        self.config = {
            **plain_tree(asdict(config)),
            "vae_shape": vae.shape.state(),
            "conditioner_shape": conditioner.shape.state() if conditioner else None,
            "provenance": data.extra["provenance"],
        }
        self.normalization: dict[str, Any] = {"field_std": data.front_end.basis.field_std.tolist()}
        modes = data.front_end.loss_modes
        needs_modes = config.loss_type != 1 or config.use_e2e_training
        self._modes = modes.to(guard.device) if modes is not None and needs_modes else None
        self.phase = ""
        self.updates: dict[str, Updater] = {}
        self.progress = {name: Progress() for name in PHASES}
        self.pace = Pace(guard.device)
        self._pending: dict[str, Any] = {}
        if compiled:
            self.vae.encoder.compile(mode=config.compile_mode)
            self.vae.decoder.compile(mode=config.compile_mode)
        self.progress[VAE].weights = plain_copy(self.vae)

    # phases

    def start_phase(self, name: str) -> None:
        """Begin a phase from the best of those before, or enter it again where a run was cut off."""
        if self.ended(name):
            return
        resumed = self._pending.get("phase") == name
        self.phase = name
        if name != VAE:
            self._load_best_vae()
            self.data.latents = self.targets()
        if resumed:
            self._load_networks(self._pending["networks"])
        else:
            self._begin(name)
        self.updates = self._updaters(name)
        if resumed:
            for key, state in self._pending["updates"].items():
                self.updates[key].load_state_dict(state)
        else:
            self.compete()
        self._pending = {}

    def _begin(self, name: str) -> None:
        """Set what a phase starts from."""
        if self.conditioner is None:
            return
        best = self.progress[CONDITIONER].weights
        if name == VAE and self._is_joint:
            self.data.latents = self.targets()
            self._fit_scalers()
        elif name == CONDITIONER and not best:
            self._fit_scalers()
        elif name != VAE and best:
            self.conditioner.load_state_dict(best)
        tensors = [t for module in self.networks().values() for t in module.state_dict().values()]
        distributed.broadcast_tensors(tensors)

    def _fit_scalers(self) -> None:
        """Take the conditioner's statistics and linear start from the training rows."""
        assert self.conditioner is not None and self.data.latents is not None
        rows = self.data.train_rows
        z, h = (part[rows].to(self.guard.device) for part in self.data.latents)
        self.conditioner.fit_latents(z, h)
        if self.data.params is not None and self.conditioner.shape.uses_params:
            params = self.data.params[rows].to(self.guard.device)
            self.conditioner.fit_params(params)
            self.conditioner.fit_linear(params, z, h)

    def _load_best_vae(self) -> None:
        self.vae.load_state_dict(self.progress[VAE].weights)

    def _updaters(self, name: str) -> dict[str, Updater]:
        """Return the updaters of a phase: networks, optimizers, schedules and averages."""
        context = UpdateContext(
            self.train_config, self.lengths[name], self.guard, self.precision, self._modes, self.penalty
        )
        return phase_updaters(name, self.vae, self.conditioner, context)

    def ended(self, name: str) -> bool:
        """Tell whether a phase is over."""
        return self.progress[name].stopped or self.progress[name].done >= self.lengths[name].steps

    def batches(self, name: str, num_workers: int = 0) -> Iterable[Any]:
        """Yield what is left of a phase's batches; an early stop ends them."""
        lengths, c = self.lengths[name], self.train_config
        if name == VAE:
            # A conservation law needs the parameters of its samples; mixed ones have none.
            with_inputs = self._is_joint or (self.penalty is not None and not c.mixup)
            kind = JointRows if with_inputs else VaeRows
            rows: Any = kind(
                self.data,
                self.vae.shape.num_latents,
                self.seed,
                noise=c.noise,
                mixup=c.mixup,
                sigma=self.vae.sigma[:, 0].cpu(),
            )
        else:
            rows = ConditionerRows(self.data, whole=name == END_TO_END)
        first = self.progress[name].done
        sampler = StepSampler(len(rows), lengths.batch, self.seed, first, lengths.steps)
        loader: DataLoader[Any] = train_loader(
            rows,
            sampler,
            num_workers=num_workers or default_workers(self.data),
            collate=collate,
            pin_memory=devices.is_cuda(self.guard.device) and self.data.fetch([0]).device.type == "cpu",
        )
        for batch in loader:
            if self.ended(name):
                return
            yield batch

    # the loop's side

    def step(self, batch: dict[str, Any], step: int) -> dict[str, torch.Tensor | float]:
        """Update the networks of the current phase once."""
        progress, update = self.progress[self.phase], self.updates[self.phase]
        objective = distributed.unwrap(update.module)
        objective.train()
        trains_vae = self.phase == VAE or (self.phase == END_TO_END and self.train_config.e2e_train_decoder)
        self.vae.train(trains_vae)
        if trains_vae:
            spectral.iterate(self.vae)
        extra = self._prepare_step(objective, progress.done)
        values = update.step(update.module, batch)
        if self.phase == VAE and CONDITIONER in self.updates:
            assert isinstance(objective, VaeObjective) and objective.latents is not None
            z, h = objective.latents
            joint = self.updates[CONDITIONER]
            joint.module.train()
            found = joint.step(joint.module, {**batch, "z": z, "h": h})
            values |= {f"joint_{name}": value for name, value in found.items()}
        extra |= self.pace.step(len(batch["weight"] if "weight" in batch else batch["z"]))
        progress.done += 1
        if progress.done == self.lengths[self.phase].steps:
            self.compete()
        return {**{f"{self.phase}_{k}": v for k, v in values.items()}, **extra, "lr": update.lr}

    def _prepare_step(self, objective: nn.Module, done: int) -> dict[str, float]:
        """Set what changes from step to step: the KL weight, and the channels that a loss looks at."""
        reconstruction = getattr(objective, "reconstruction", None)
        num_channels = len(self.data.front_end.basis.node_mean)
        if reconstruction is not None and reconstruction.kind != "MSE" and num_channels > CHANNEL_SUBSET:
            generator = torch_stream(self.seed, f"channels {self.phase}", done)
            chosen = torch.randperm(num_channels, generator=generator)[:CHANNEL_SUBSET]
            reconstruction.channels = chosen.sort().values.to(self.guard.device)
        if not isinstance(objective, VaeObjective):
            return {}
        c, steps = self.train_config, self.lengths[VAE].steps
        objective.beta = kl_weight(done / steps, c.init_beta, c.kl_start, c.kl_end, c.kl_schedule)
        return {"beta": objective.beta}

    def evaluate(self) -> dict[str, float]:
        """Score the current averaged weights on the validation rows, and keep them when they are best."""
        scores = self.compete()
        self.pace.pause()
        return scores

    @torch.no_grad()
    def compete(self) -> dict[str, float]:
        """Return the scores of the current weights; the best of the phase are kept."""
        networks = self._averaged()
        vae, conditioner = networks[VAE].eval(), networks.get(CONDITIONER)
        assert isinstance(vae, HierarchicalVae)
        rows, device = self.data.split.validation.tolist(), self.guard.device
        scores: dict[str, float] = {}
        if self.phase == VAE:
            scores["valid_reconstruction_l2"] = float(
                reconstruction_errors(self.data, rows, vae, device).mean()
            )
            scores["active_units"] = float(active_units(*posterior_means(self.data, rows, vae, device)))
        if isinstance(conditioner, Conditioner) and (self.phase != VAE or self._is_joint):
            errors = prediction_errors(self.data, rows, vae, conditioner.eval(), device)
            scores["valid_prediction_l2"] = float(errors.mean())
        progress = self.progress[self.phase]
        if progress.offer(next(iter(scores.values())), self.train_config.patience):
            self._keep(networks)
        return {**scores, "best_l2": progress.score}

    @property
    def _is_joint(self) -> bool:
        return self.train_config.joint_conditioner and self.conditioner is not None

    def _keep(self, networks: dict[str, nn.Module]) -> None:
        """Keep the weights of the phase as its best."""
        progress = self.progress[self.phase]
        if self.phase == END_TO_END:
            names = [CONDITIONER, VAE] if self.train_config.e2e_train_decoder else [CONDITIONER]
            found = {name: plain_copy(networks[name]) for name in names}
            progress.weights = {f"{name}.{k}": v for name, part in found.items() for k, v in part.items()}
            return
        progress.weights = plain_copy(networks[self.phase])
        if self.phase == VAE and self._is_joint:
            self.progress[CONDITIONER].weights = plain_copy(networks[CONDITIONER])

    def _averaged(self) -> dict[str, nn.Module]:
        """Return the networks to score: averages where there are any."""
        found = dict(self.networks())
        for update in self.updates.values():
            if update.ema is not None:
                module = update.ema.module
                found |= {n: getattr(module, n) for n in (VAE, CONDITIONER) if hasattr(module, n)}
        return found

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the posterior means z [R, nz] and h [R, K, nh] of all rows, on the CPU."""
        return posterior_means(self.data, range(len(self.data.norm2)), self.vae.eval(), self.guard.device)

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        found: dict[str, nn.Module] = {VAE: self.vae}
        return found | ({CONDITIONER: self.conditioner} if self.conditioner else {})

    def best_weights(self) -> dict[str, Weights]:
        """Return the best weights of each network; an end-to-end result counts when it is better."""
        found = {VAE: self.progress[VAE].weights}
        if self.conditioner is not None:
            found[CONDITIONER] = self.progress[CONDITIONER].weights or plain_copy(self.conditioner)
        tuned = self.progress[END_TO_END]
        if tuned.weights and tuned.score < self.progress[CONDITIONER].score:
            found = {name: part_of(tuned.weights, name) or kept for name, kept in found.items()}
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the best weights so far, which inference uses."""
        return {f"{n}.{k}": v for n, found in self.best_weights().items() for k, v in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return networks, updaters and progress."""
        return {
            "phase": self.phase,
            "networks": {name: plain_weights(module) for name, module in self.networks().items()},
            "updates": {name: update.state_dict() for name, update in self.updates.items()},
            "progress": {name: vars(progress) for name, progress in self.progress.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore progress now, and the rest when its phase is entered."""
        self.progress = {name: Progress(**found) for name, found in state["progress"].items()}
        self._load_networks(state["networks"])
        self._pending = state
        self.phase = state["phase"]

    def _load_networks(self, states: dict[str, dict[str, torch.Tensor]]) -> None:
        for name, module in self.networks().items():
            if name in states:
                module.load_state_dict(states[name])

    def accept(self, found: Checkpoint) -> None:
        """Refuse to continue from another data set, split, basis or network, naming both."""
        for name in ("provenance", "vae_shape", "conditioner_shape"):
            if found.config.get(name) != self.config[name]:
                what = "data, split or basis" if name == "provenance" else name
                raise DataError(
                    f"--resume: the checkpoint has {what} {found.config.get(name)}, this run "
                    f"{self.config[name]}; use the data and flags of the first start"
                )
