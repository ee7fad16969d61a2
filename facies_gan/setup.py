"""What a training needs before its first step: device, data, pyramid, groups, and weights it begins from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from common import device as devices
from common import distributed
from common.errors import DataError, UserError
from common.log import get_logger
from common.run import Layout
from common.store import CheckpointStore
from facies_gan import run_files
from facies_gan.cache import PyramidCache, facies_pyramids
from facies_gan.canvas import Size
from facies_gan.conditioning import ConditioningRule
from facies_gan.config import PACKAGE, RunOptions, TrainingOptions
from facies_gan.dataset import Section, SectionSet, read_training_data
from facies_gan.generator import Architecture, feature_widths
from facies_gan.group import GroupPlan, plan_groups
from facies_gan.model_card import ModelCard, StoredSection, scales_from_fractions
from facies_gan.model_files import find_model
from facies_gan.pyramids import all_grow, generate_scales, pyramid_ratio
from facies_gan.samples import Samples, finest_sizes, section_scales
from facies_gan.wells import WellSet

LAYOUT = Layout(tensorboard="tensorboard_logs")
INJECT_BELOW = 1.5  # side of a cell, in native cells, up to which data are set hard


@dataclass
class Setup:
    """Everything that is fixed before training.

    Attributes:
        options: of the training.
        data: the sections.
        samples: their pyramids and batches.
        architecture: of the networks.
        plans: the groups.
        fractions: side of each scale over that of the finest.
        mode: what lies beyond the grid.
        injects: whether a scale takes the data's facies.
        stored: sections that travel with the model.
        first_weights: of scales that begin from an earlier model.
        first_critics: of the same scales, where the earlier run has them.
        first_amplitudes: of those below --start_scale.
        resumes: whether the loop continues a run of this folder.
    """

    options: TrainingOptions
    data: SectionSet
    samples: Samples
    architecture: Architecture
    plans: list[GroupPlan]
    fractions: tuple[float, ...]
    mode: str
    injects: tuple[bool, ...]
    stored: tuple[StoredSection, ...]
    first_weights: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    first_critics: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    first_amplitudes: tuple[float, ...] = ()
    resumes: bool = False

    @property
    def reference(self) -> int:
        """The section whose grid describes the model: the first anchor."""
        return self.samples.anchors[0]

    @property
    def native_cell(self) -> float:
        """Side of a finest cell in native cells."""
        return self.data.sections[self.reference].shape[0] / self.samples.sizes[self.reference][-1][0]

    def amplitude(self, scale: int) -> float:
        """Return a_0 = scale0_noise_amp, a_k = max(noise_amp RMSE(u(real_{k-1}), real_k), min_noise_amp)."""
        o = self.options
        if scale < len(self.first_amplitudes):
            return self.first_amplitudes[scale]
        if scale == 0:
            return o.scale0_noise_amp
        return max(o.noise_amp * self.samples.amplitude_errors(scale), o.min_noise_amp)

    def card(self, amplitudes: Sequence[float]) -> ModelCard:
        """Return the card of a model with these scales."""
        section = self.data.sections[self.reference]
        return ModelCard(
            architecture=self.architecture,
            palette=self.data.palette,
            fractions=self.fractions,
            size=self.samples.sizes[self.reference][-1],
            native=section.shape,
            mode=self.mode,
            injects=self.injects,
            amplitudes=tuple(amplitudes),
            has_data=self.options.use_wells,
            seismic=self.data.seismic_stats,
            geometry=section.geometry,
            header=self.data.header,
            sections=self.stored,
        )

    def loop_options(self, run: RunOptions) -> RunOptions:
        """Return the flags for the loop: it resumes only a run of its own folder; profiling is ours."""
        return replace(run, resume=run.resume if self.resumes else "", use_profiler=False)

    def memory_bytes(self) -> int:
        """Estimate the memory of a training iteration and of the data, in bytes."""
        worst = 0
        for plan in self.plans:
            cells = 0
            for k in plan.scales:
                sides = [min(n, plan.crop) + 2 * self.architecture.border for n in self.samples.sizes[0][k]]
                width = self.architecture.features[k]
                # A layer keeps its input, its output, the norm's factors and their gradients.
                cells += math.prod(sides) * width * 6 * self.architecture.num_layers
            worst = max(worst, cells * plan.batch_size * (plan.draws + 1) * 4)
        data = sum(g.numel() * 4 for grids in self.samples.pyramids for g in grids)
        return worst + data


def resolve_run(options: TrainingOptions, run: RunOptions, origins: dict[str, str]) -> RunOptions:
    """Return the run flags with the device and the folder that they mean; say what is odd about the flags."""
    log = get_logger()
    if options.beta is not None:
        used = "ignored, --well_loss_penalty is given" if options.well_loss_penalty is not None else "used"
        log.warning("warning: --beta is the old name of --well_loss_penalty; its value is %s", used)
    if options.num_scales is not None and origins.get("stop_scale") == "command line":
        log.warning("warning: --num_scales %d sets --stop_scale", options.num_scales)
    if run.use_cpu:
        run = replace(run, device="cpu")
    elif run.gpu_device >= 0 and run.device == "auto" and distributed.local_rank() is None:
        run = replace(run, device=_gpu(run.gpu_device))
    if run.timestamp:
        if run.resume == "auto":
            raise UserError(
                "--timestamp begins a new folder, so --resume auto finds nothing; name the folder"
            )
        stamp = distributed.broadcast_object(datetime.now().strftime("%Y_%m_%d_%H_%M_%S"))
        run = replace(run, out=run.out / f"{stamp}_{PACKAGE}")
    return run


def _gpu(number: int) -> str:
    """Return the name of GPU `number`, or of the best device there is, with one line."""
    found = devices.resolve_device("auto")
    if devices.is_cuda(found):
        try:
            return str(devices.resolve_device(f"{found.type}:{number}"))
        except UserError:
            get_logger().info(f"--gpu_device {number}: no such GPU, using {found}")
            return str(found)
    get_logger().info(f"--gpu_device {number}: no such GPU, using {found}")
    return found.type


def prepare(options: TrainingOptions, run: RunOptions, device: torch.device | str = "cpu") -> Setup:
    """Read the data, decide sizes and groups, and find what to begin from.

    Args:
        options: of the training.
        run: how it runs.
        device: where neural smoothers are fitted.

    Raises:
        UserError: flags that do not fit together or to the data.
        DataError: bad data, or an earlier model that does not fit.
    """
    earlier, resumes = _earlier(options, run)
    card = ModelCard.from_dict(earlier.normalization) if earlier else None
    data = read_training_data(
        options,
        seed=run.seed,
        palette=card.palette if card and not resumes else None,
        seismic_stats=card.seismic if card else None,
    )
    _check(options, data)
    fractions = _fractions(options, data.sections, card)
    pyramids = _pyramids(options, run, data, fractions, device)
    outside = "noise" if data.is_single else "zeros"
    mode = outside if options.padding_mode == "auto" else options.padding_mode
    architecture = _architecture(options, data)
    channels = architecture.condition_channels
    if card is not None and not resumes and card.architecture.condition_channels != channels:
        raise UserError(
            "--resume: the model was trained with other --use_wells or --use_seismic; use the same"
        )
    samples = _samples(options, data, pyramids, mode, architecture.border, run.seed)
    task = (earlier.training.get("task") if earlier and resumes else None) or {}
    plans = plan_groups(options, [GroupPlan.from_dict(p) for p in task.get("plans", ())])
    setup = Setup(
        options, data, samples, architecture, plans, fractions, mode,
        _injects(data.sections[samples.anchors[0]], samples.sizes[samples.anchors[0]], options.use_wells),
        _stored(data, samples, options), resumes=resumes,
    )  # fmt: skip
    if earlier and card and not resumes:
        _begin_from(setup, card, earlier.state_dict, Path(run.resume))
    return setup


def _pyramids(
    options: TrainingOptions, run: RunOptions, data: SectionSet, fractions: tuple[float, ...], device: Any
) -> list[list[torch.Tensor]]:
    """Return the sections at all scales, from the cache where they lie there."""
    cache = PyramidCache(options.cache_dir)
    if options.clear_cache and distributed.is_main():
        get_logger().info(f"{options.cache_dir}: {cache.clear()} cache entries deleted")
    sizes = section_scales(data.sections, options.max_size, fractions)
    way, workers = _interpolator(options, run), run.num_workers
    return facies_pyramids(
        data.sections, data.palette, sizes, way, cache=cache, num_workers=workers, device=device
    )


def _samples(
    o: TrainingOptions,
    data: SectionSet,
    pyramids: list[list[torch.Tensor]],
    mode: str,
    border: int,
    seed: int,
) -> Samples:
    """Return what batches are drawn from; in plan view rows act as wells too."""
    rows_too = data.is_single and data.sections[0].geometry.axes == ("x", "y")
    rule = ConditioningRule(
        o.max_random_wells,
        o.max_random_points,
        o.no_well_prob,
        rows_too=rows_too,
        always=o.wells_mask_columns,
    )
    return Samples(
        data, pyramids, mode=mode, border=border, rule=rule if o.use_wells else None, flips=o.augment_flip,
        anchors=o.num_real_facies, noise_channels=o.noise_channels, seed=seed,
    )  # fmt: skip


def _interpolator(options: TrainingOptions, run: RunOptions) -> str:
    """Return how sections reach coarser scales; a dry run does not wait for smoothers, which take hours."""
    if options.interpolator == "neural" and run.dry_run:
        get_logger().info("smoothers are not fitted in a dry run; area averages stand in for them")
        return "area"
    return options.interpolator


def _earlier(options: TrainingOptions, run: RunOptions) -> tuple[Any, bool]:
    """Return (checkpoint, whether the loop continues it): None for a fresh start."""
    fresh = options.fine_tune or options.start_scale > 0
    if not run.resume:
        if fresh:
            flag = "--fine_tune" if options.fine_tune else f"--start_scale {options.start_scale}"
            raise UserError(f"{flag} needs --resume PATH, the model to begin from")
        return None, False
    store = CheckpointStore(Path(run.out) / LAYOUT.checkpoints, LAYOUT, run.keep_last)
    if run.resume == "auto" or not fresh:
        path = store.find(run.resume, PACKAGE)
        if path is not None:
            return find_model(path), True
        if fresh:
            raise UserError(
                f"--resume auto: {store.folder} has no checkpoint; name the model with --resume PATH"
            )
        return None, True
    return find_model(Path(run.resume)), False


def _check(options: TrainingOptions, data: SectionSet) -> None:
    narrow = min(data.sections, key=lambda section: section.shape[1])
    for column in options.wells_mask_columns:
        if not 0 <= column < narrow.shape[1]:
            raise UserError(
                f"--wells_mask_columns {column}: {narrow.stem} has columns 0 to {narrow.shape[1] - 1}"
            )
    if options.batch_size > len(data) > 1:
        get_logger().warning(
            "warning: --batch_size %d is above the %d sections; they are drawn more than once a batch",
            options.batch_size, len(data),
        )  # fmt: skip
    if options.wells_mask_columns and not options.use_wells:
        raise UserError("--wells_mask_columns needs wells; leave out --no_use_wells")


def _fractions(
    options: TrainingOptions, sections: Sequence[Section], card: ModelCard | None
) -> tuple[float, ...]:
    """Return side of each scale over the finest one's, new or continuing a model's."""
    smallest = min(range(len(sections)), key=lambda i: min(sections[i].shape))
    top = finest_sizes(sections, options.max_size)[smallest]
    stop = options.stop_scale
    if card is None:
        one = sections[smallest]
        generate_scales(*one.shape, options.min_size, max(top), stop, one.stem)
        longest = max(max(section.shape) for section in sections)
        if longest < options.max_size:
            get_logger().info(f"--max_size {options.max_size}: capped at the native size {longest}")
        ratio = pyramid_ratio(min(top), options.min_size, stop)
        return tuple(ratio ** (stop - k) for k in range(stop + 1))
    old = card.fractions
    if stop == len(old) - 1:
        return old
    if stop < len(old) - 1:
        raise UserError(
            f"--stop_scale {stop}: the resumed model has scales 0 to {len(old) - 1}; use that or more"
        )
    growth = min(card.size) / min(top)
    if growth > 0.95:
        raise UserError(
            f"--stop_scale {stop}: the resumed model already has the size {card.size[0]} x {card.size[1]}, "
            "the finest of these data; raise --max_size, or keep --stop_scale"
        )

    def grown(added: int) -> tuple[float, ...]:
        """Return the fractions with so many more scales."""
        return (*(f * growth for f in old), *(growth ** ((added - i) / added) for i in range(1, added + 1)))

    found = grown(stop - len(old) + 1)
    if not all_grow(scales_from_fractions(top, found)):
        most = next(
            (n for n in range(stop - len(old), 0, -1) if all_grow(scales_from_fractions(top, grown(n)))), 0
        )
        raise UserError(
            f"--stop_scale {stop}: two scales between {min(card.size)} and {min(top)} cells coincide; use "
            f"--stop_scale {len(old) - 1 + most}"
        )
    return found


def _architecture(options: TrainingOptions, data: SectionSet) -> Architecture:
    first = data.sections[0]
    channels = (data.num_classes + 1 if options.use_wells else 0) + (
        0 if first.seismic is None else len(first.seismic)
    )
    widths = feature_widths(
        options.stop_scale + 1, options.num_feature, options.min_num_feature, options.feature_growth
    )
    return Architecture(
        data.num_classes, channels, options.noise_channels, widths,
        options.num_layer, options.kernel_size, options.padding_size,
    )  # fmt: skip


def _injects(section: Section, sizes: Sequence[Size], has_data: bool) -> tuple[bool, ...]:
    """Return whether each scale takes the data's facies: at the finest, and where cells are about native."""
    if not has_data:
        return (False,) * len(sizes)
    last = len(sizes) - 1
    cells = [max(n / m for n, m in zip(section.shape, size, strict=True)) for size in sizes]
    return tuple(cell <= INJECT_BELOW or k == last for k, cell in enumerate(cells))


def _stored(data: SectionSet, samples: Samples, options: TrainingOptions) -> tuple[StoredSection, ...]:
    """Return the anchors, and every section that has wells."""
    numbers = {section: i for i, section in enumerate(samples.anchors)}
    found = []
    for i, section in enumerate(data.sections):
        wells = section.wells or WellSet.empty()
        if options.use_wells and options.wells_mask_columns:
            wells = wells.merged(WellSet.from_columns(section.labels, options.wells_mask_columns))
        if i in numbers:
            z_rec = samples.z_rec[numbers[i]]
            found.append(
                StoredSection(section.stem, section.shape, wells, section.labels, z_rec, section.seismic)
            )
        elif len(wells):
            found.append(StoredSection(section.stem, section.shape, wells))
    return tuple(found)


def _begin_from(setup: Setup, card: ModelCard, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Take the weights of an earlier model: of all scales to fine-tune, else of those below --start_scale.

    Raises:
        DataError: the model has fewer scales, or networks of another shape.
    """
    stop = setup.options.stop_scale + 1 if setup.options.fine_tune else setup.options.start_scale
    own, theirs = setup.architecture, card.architecture
    count = min(stop, card.num_trained)
    if count < setup.options.start_scale or own.features[:count] != theirs.features[:count]:
        raise DataError(
            f"--resume: the model has {card.num_trained} scales of {theirs.features} features, this run "
            f"needs {setup.options.start_scale} of {own.features}; use the flags of its training"
        )
    for k in range(count):
        prefix = f"generators.{k}."
        setup.first_weights[k] = {
            name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)
        }
        critic = run_files.read_critic(source, k)
        if critic is not None:
            setup.first_critics[k] = critic
    setup.first_amplitudes = card.amplitudes[: setup.options.start_scale]
