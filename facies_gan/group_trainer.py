"""One group in training: its networks, optimizers and schedules, and one generator-critic iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from common import device as devices
from common import distributed
from common.device import Precision
from common.guard import Guard
from common.noise import torch_stream
from common.optim import Ema, Updater
from facies_gan import losses
from facies_gan.canvas import upsample
from facies_gan.config import TrainingOptions
from facies_gan.critic import ScaleCritic
from facies_gan.generator import ScaleGenerator, run_scale
from facies_gan.group import GroupCritic, GroupGenerator, GroupPlan, ScaleInput, ScaleResult
from facies_gan.samples import Batch, draw_noise

EMA_DECAY = 0.999
CLIP_NORM = 1.0
DIVERSITY_FROM = 0.3  # share of a group's iterations without the diversity term
COARSE_WELL_SHARE = 0.2  # of the data's weight, where cells hold many data
CONSTANT_SHARE, LAST_RATE = 0.8, 0.1
Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pyramid:
    """What the scales of a training share.

    Attributes:
        blocks: generators of scales 0..top of the group; those below the group are frozen.
        amplitudes: of their noise.
        injects: whether a scale takes the data's facies.
        mode: what lies beyond the grid.
        noise_channels: Z.
        num_classes: C.
        has_data: whether the conditioning begins with data.
    """

    blocks: Sequence[ScaleGenerator]
    amplitudes: Sequence[float]
    injects: Sequence[bool]
    mode: str
    noise_channels: int
    num_classes: int
    has_data: bool


def rate_schedule(
    optimizer: torch.optim.Optimizer, options: TrainingOptions, iterations: int, steps: int
) -> LRScheduler:
    """Return the schedule of a group, in updates; an iteration has `steps` of them."""
    if options.lr_schedule == "step":
        return StepLR(optimizer, options.lr_decay * steps, options.gamma)
    total = iterations * steps
    flat = CONSTANT_SHARE * total

    def factor(update: int) -> float:
        """Constant, then linear to a tenth."""
        progress = max(0.0, update - flat) / max(total - flat, 1.0)
        return 1 - (1 - LAST_RATE) * min(progress, 1.0)

    return LambdaLR(optimizer, factor)


class GroupTrainer:
    """The networks of a group under training.

    Args:
        plan: of the group.
        pyramid: generators up to its finest scale, and what they share.
        critics: of the group's scales.
        options: of the training.
        guard: the agreement of the ranks.
        precision: of the generators; critics run in fp32.
        seed: of the noise.
        compiled: whether to run the generators through torch.compile.
    """

    def __init__(
        self,
        plan: GroupPlan,
        pyramid: Pyramid,
        critics: dict[int, ScaleCritic],
        options: TrainingOptions,
        guard: Guard,
        precision: Precision,
        seed: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.plan, self.pyramid, self.options, self.guard, self.seed = plan, pyramid, options, guard, seed
        self.precision = precision
        own = {k: pyramid.blocks[k] for k in plan.scales}
        self.frozen = list(pyramid.blocks[: plan.scales[0]])
        self.generator = GroupGenerator(
            own, pyramid.injects, pyramid.mode, lambda block: devices.compile_if(compiled, block)
        ).to(guard.device)
        self.critic = GroupCritic(critics).to(guard.device)
        for part in (self.generator, self.critic):
            part.requires_grad_(True).train()
        for block in self.frozen:
            block.requires_grad_(False).eval()
        self.ema = Ema(self.generator, EMA_DECAY)
        self._generate = distributed.parallel(self.generator)
        self._criticise = distributed.parallel(self.critic)
        fp32 = Precision(guard.device, torch.float32)
        self.g = self._updater(self._generate, options.lr_g, options.generator_steps, precision, self.ema)
        self.d = self._updater(self._criticise, options.lr_d, options.discriminator_steps, fp32, None)

    def _updater(
        self, module: torch.nn.Module, rate: float, steps: int, precision: Precision, ema: Ema | None
    ) -> Updater:
        optimizer = torch.optim.Adam(
            module.parameters(), lr=rate, betas=(self.options.beta1, 0.999), foreach=True
        )
        schedule = rate_schedule(optimizer, self.options, self.plan.iterations, steps)
        norm = CLIP_NORM if ema is not None else 0.0
        return Updater(module, optimizer, self.guard, precision, schedule=schedule, max_norm=norm, ema=ema)

    def inputs(
        self, batch: Batch, turn: int, *, rebuild: bool
    ) -> tuple[torch.Tensor | None, list[ScaleInput]]:
        """Run the frozen scales once on new noise, and return what the group reads.

        Args:
            batch: of the iteration.
            turn: which pass of the iteration.
            rebuild: whether the group also rebuilds the sections.
        """
        p, plan = self.pyramid, self.plan
        top, first = plan.scales[-1], plan.scales[0]
        noise = draw_noise(self.seed, batch, plan.draws, turn, p.noise_channels, p.mode, range(top + 1))
        noise = [z.to(self.guard.device) * p.amplitudes[k] for k, z in enumerate(noise)]
        previous = None
        with torch.no_grad(), self.precision.autocast():
            for k in range(first):
                prior = None
                if previous is not None:
                    sources, targets = batch.boxes[k - 1], batch.boxes[k]
                    prior = upsample(
                        previous, [b.output for b in sources], [b.input for b in targets], p.mode
                    )
                condition = batch.condition[k].repeat_interleave(plan.draws, dim=0)
                block = self.frozen[k]
                done = run_scale(block, block.border, noise[k], condition, prior, injects=p.injects[k])
                previous = done.output
        inputs = []
        for i, k in enumerate(plan.scales):
            prior = batch.rebuilt_prior[i] if rebuild else None
            anchor = batch.anchor[0] if batch.anchor and k == 0 else None
            if prior is not None and k == 0:
                prior = prior * p.amplitudes[0]
            below = batch.boxes[k - 1] if k else []
            inputs.append(ScaleInput(noise[k], batch.condition[k], batch.boxes[k], below, prior, anchor))
        return previous, inputs

    def step(self, batch: Batch) -> Values:
        """Do one iteration and return named losses."""
        o = self.options
        previous, inputs = self.inputs(batch, 0, rebuild=True)
        with self.precision.autocast():
            kept = self._generate(previous, inputs)
        total: Values = {}
        for turn in range(o.discriminator_steps):
            fakes = [result.fake.detach() for result in kept] if turn == 0 else self._fresh_fakes(batch, turn)
            update = batch.iteration * o.discriminator_steps + turn
            values = self.d.step(lambda _, f=fakes, u=update: self._critic_losses(batch, f, u), [batch])
            _add(total, values, o.discriminator_steps)
        self.critic.requires_grad_(False)
        for turn in range(o.generator_steps):
            results = kept if turn == 0 else None
            later = o.discriminator_steps - 1 + turn
            values = self.g.step(lambda _, r=results, t=later: self._generator_losses(batch, r, t), [batch])
            _add(total, values, o.generator_steps)
            kept = []  # its graph is used up
        self.critic.requires_grad_(True)
        for name in ("loss", "gradient_norm"):
            total.pop(name, None)
        return _with_means(total, self.plan.scales)

    @torch.no_grad()
    def _fresh_fakes(self, batch: Batch, turn: int) -> list[torch.Tensor]:
        previous, inputs = self.inputs(batch, turn, rebuild=False)
        with self.precision.autocast():
            return [result.fake for result in self.generator(previous, inputs)]

    def _critic_losses(self, batch: Batch, fakes: list[torch.Tensor], update: int) -> Values:
        """Return D(fake|c) - D(real|c) + lambda GP, summed over scales; GP every N updates, times N."""
        draws, interval = self.plan.draws, self.options.gp_interval
        conditions = [c.repeat_interleave(draws, dim=0) for c in batch.real_condition]
        both = [torch.cat([real, fake]) for real, fake in zip(batch.real, fakes, strict=True)]
        told = [torch.cat([c, more]) for c, more in zip(batch.real_condition, conditions, strict=True)]
        maps = self._criticise(both, told)
        values: Values = {"loss": torch.zeros((), device=self.guard.device)}
        count = batch.real[0].shape[0]
        for i, k in enumerate(self.plan.scales):
            weights = batch.map_weights[i]
            more = None if weights is None else weights.repeat_interleave(draws, dim=0)
            real = losses.mean_score(maps[i][:count], weights).mean()
            fake = losses.mean_score(maps[i][count:], more).mean()
            penalty = real.new_zeros(())
            if self.options.lambda_grad > 0 and update % interval == 0:
                eps = self._eps(batch, update, k)
                critic = self.critic.of(k)
                condition = conditions[i]
                penalty = interval * losses.gradient_penalty(
                    lambda x, c=critic, e=condition: losses.mean_score(c(x, e)),
                    batch.real[i].repeat_interleave(draws, dim=0),
                    fakes[i],
                    eps,
                )
            loss = fake - real + self.options.lambda_grad * penalty
            values["loss"] = values["loss"] + loss
            parts = {"D_Total": loss, "D_Real": real, "D_Fake": fake, "D_Penalty": penalty}
            values |= {f"Scale_{k}/{name}": value for name, value in parts.items()}
        return values

    def _eps(self, batch: Batch, update: int, scale: int) -> torch.Tensor:
        """Return one uniform number for each sample [B m] of the penalty."""
        parts = [
            torch.rand(
                self.plan.draws,
                generator=torch_stream(self.seed, "penalty", batch.group, position, update, scale),
            )
            for position in batch.positions
        ]
        return torch.cat(parts).to(self.guard.device)

    def _generator_losses(self, batch: Batch, results: Sequence[ScaleResult] | None, turn: int) -> Values:
        """Return L_G and its parts, summed over scales; `results` None = run the group on new noise."""
        if results is None:
            previous, inputs = self.inputs(batch, turn, rebuild=True)
            results = list(self._generate(previous, inputs))
        device = self.guard.device
        values: Values = {"loss": torch.zeros((), device=device)}
        with torch.autocast(device.type, enabled=False):
            for i, (k, result) in enumerate(zip(self.plan.scales, results, strict=True)):
                parts = self._scale_losses(batch, i, result)
                loss = torch.stack(list(parts.values())).sum()
                values["loss"] = values["loss"] + loss
                values[f"Scale_{k}/G_Total"] = loss
                values |= {f"Scale_{k}/{name}": value for name, value in parts.items()}
        return values

    def _scale_losses(self, batch: Batch, i: int, result: ScaleResult) -> Values:
        """Return the weighted terms of one scale's L_G."""
        o, draws, k = self.options, self.plan.draws, self.plan.scales[i]
        real, fake = batch.real[i].float(), result.fake.float()
        condition = batch.real_condition[i]
        told = condition.repeat_interleave(draws, dim=0)
        weights = batch.map_weights[i]
        more = None if weights is None else weights.repeat_interleave(draws, dim=0)
        scores = losses.mean_score(self.critic.of(k)(fake, told), more)
        zero = scores.new_zeros(())
        parts = {"G_Adversarial": -scores.mean(), "G_Well_Constraint": zero, "G_Diversity": zero}
        mask = real.new_zeros(real.shape[0], *real.shape[2:])
        if self.pyramid.has_data:
            mask = condition[:, self.pyramid.num_classes]
            parts["G_Well_Constraint"] = self._well_term(k, result.logits.float(), real, mask)
        assert result.rebuilt is not None
        target = batch.anchor[1] if batch.anchor and k == 0 else real
        parts["G_Reconstruction"] = o.alpha * losses.reconstruction_loss(result.rebuilt.float(), target)
        late = batch.iteration >= DIVERSITY_FROM * self.plan.iterations
        if draws > 1 and self.plan.diversity > 0 and late:
            pairs = fake.view(real.shape[0], draws, *fake.shape[1:])
            parts["G_Diversity"] = self.plan.diversity * losses.diversity_loss(pairs, mask)
        cells = batch.cell_weights[i]
        parts["G_Proportion"] = o.lambda_proportion * losses.proportion_loss(fake, real, cells)
        if self.plan.variogram > 0:
            parts["G_Variogram"] = self.plan.variogram * losses.variogram_loss(fake, real, cells)
        if self.plan.connectivity > 0:
            stream = torch_stream(self.seed, "lines", batch.group, batch.iteration)
            row, column = torch.rand(2, generator=stream).tolist()
            reach = losses.connectivity_loss(fake, real, (row, column), cells)
            parts["G_Connectivity"] = self.plan.connectivity * reach
        return parts

    def _well_term(
        self, k: int, logits: torch.Tensor, real: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted L_well: each draw has the datum where it is set, their mean its share below."""
        draws, weight = self.plan.draws, self.options.well_weight
        if not self.pyramid.injects[k]:
            return weight * COARSE_WELL_SHARE * losses.well_loss(logits, real, mask, draws)
        each, told = (x.repeat_interleave(draws, dim=0) for x in (real, mask))
        return weight * losses.well_loss(logits, each, told)

    def averaged(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return the averaged weights of the group's generators by scale."""
        module: Any = self.ema.module
        return {k: module.blocks[str(k)].state_dict() for k in self.plan.scales}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on."""
        return {"generator": self.g.state_dict(), "critic": self.d.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.g.load_state_dict(state["generator"])
        self.d.load_state_dict(state["critic"])


def _add(total: Values, values: Values, count: int) -> None:
    """Add the mean over `count` updates."""
    for name, value in values.items():
        share = value / count
        total[name] = total[name] + share if name in total else share


def _with_means(values: Values, scales: Sequence[int]) -> Values:
    """Return `values` with the mean over the group's scales of each term, as Mean/<term>."""
    names = sorted({name.split("/")[1] for name in values if name.startswith("Scale_")})
    means = {
        f"Mean/{name}": torch.stack([values[f"Scale_{k}/{name}"] for k in scales]).mean() for name in names
    }
    return {**values, **means}
