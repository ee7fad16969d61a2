"""Refinement of a survey: five volumes through a network of kind refine, its output again and again.

Each pass reads one set of scratch files and fills another, tile by tile as in inference. Pass -1 is the first
estimate. The set of pass i lies in folder i modulo 2, so that a killed run can go on within its pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.log import get_logger
from fault_seg import survey
from fault_seg.attributes import Attributes
from fault_seg.config_infer import SurveyConfig
from fault_seg.first_estimates import refine_channels
from fault_seg.maps import Model
from fault_seg.outputs import Outputs
from fault_seg.scratch import Scratch
from fault_seg.slabs import Volume
from fault_seg.true_angles import AngleFrame
from fault_seg.volumes import write_sidecar

NAMES = ("fsem", "fdip", "fstrike", "dhr", "time")
Read = Callable[[str, int, int], np.ndarray]


@dataclass
class Refined:
    """What refinement made: attributes (None on ranks that do not write) and the change of each pass."""

    attributes: Attributes | None
    changes: list[float] = field(default_factory=list)
    model: str = ""

    def describe(self) -> dict[str, Any]:
        """Return what a side-car says about it."""
        return {"model": self.model, "passes": len(self.changes), "mean_change_of_fsem": self.changes}


def refine_survey(
    config: SurveyConfig,
    model: Model,
    volume: Volume,
    rule: Any,
    frame: AngleFrame,
    first: Attributes | None,
    outputs: Outputs,
    stack: contextlib.ExitStack,
    more: Mapping[str, Any],
) -> Refined:
    """Refine what inference left in its scratch files; arguments as there. `first` is None beside rank 0.

    The image is normalised once more, by the rule that a stored one gets.
    """
    if first is None:
        return refine_passes(config, model, volume, rule, frame, None, outputs, stack, more)
    estimate = first
    own = survey.rule_of(estimate.clean_image(x, x + 1) for x in range(volume.shape[2]))

    def read(name: str, x0: int, x1: int) -> np.ndarray:
        if name == "time":
            return estimate.time(x0, x1)
        values = estimate.scratch.read(name, x0, x1)
        return own.apply(values).astype(np.float32) if name == "dhr" else values

    both = replace(rule, mean=rule.mean + rule.std * own.mean, std=rule.std * own.std)
    return refine_passes(config, model, volume, both, frame, read, outputs, stack, more)


def refine_passes(
    config: SurveyConfig,
    model: Model,
    volume: Volume,
    rule: Any,
    frame: AngleFrame,
    source: Read | None,
    outputs: Outputs,
    stack: contextlib.ExitStack,
    more: Mapping[str, Any],
) -> Refined:
    """Apply a refining network until it changes little; return the attributes of the last pass.

    Args:
        config: passes, tolerance, tiles, what to keep.
        model: of kind refine.
        volume: the geometry, and which traces are null.
        rule: normalisation of dhr.
        frame: of angles in degrees.
        source: (name, x0, x1) -> inlines of the first estimate: fsem, fdip, fstrike (over 180, ungated), dhr
            (normalised) and time (any scale, increasing downwards); None on ranks beside 0.
        outputs: where volumes of single passes go.
        stack: removes the scratch files at its end.
        more: threshold and has_nan of `Attributes`.
    """
    plan = survey.make_plan(model, volume.shape, config.block, config.overlap, config.max_memory)
    survey.warn_of_tiles(model, plan, config.max_memory)
    key = _base_key(model, plan, config, volume)
    begin, sets = _start(config, model, volume, source, outputs.prefix, key, stack)
    refined = Refined(None, model=model.path.name)
    for i in range(begin, config.refine_iters):
        before, last = sets[(i + 1) % 2], sets[i % 2]
        if i > begin:
            last.restart(_key(key, i))
        planes = estimate_planes(before, model, volume)
        survey.run_network(model, planes, plan, last, add_time=before if model.layout == "hr" else None)
        change = distributed.broadcast_object(_mean_change(before, last, ~volume.null))
        refined.changes.append(change)
        get_logger().info(f"refinement {i + 1}: fsem changed by {change:.3g} on average")
        if distributed.is_main():
            refined.attributes = Attributes(config, model, volume, rule, last, frame, **more)
            if config.keep_iters:
                _write_pass(refined.attributes, f"{outputs.prefix}.iter{i}", outputs)
        if change < config.refine_tol:
            break
    return refined


def _start(
    config: SurveyConfig,
    model: Model,
    volume: Volume,
    source: Read | None,
    prefix: str,
    key: str,
    stack: contextlib.ExitStack,
) -> tuple[int, list[Scratch]]:
    """Return the number of the first pass to do, and the two sets of scratch files, its input filled."""
    folders = [Path(f"{prefix}.refine{i}") for i in (0, 1)]
    begin = _first_pass(folders, key, config)
    sets = _open_sets(folders, volume.shape, _names(model), key, begin)
    for scratch in sets:
        stack.push(_leaving(scratch))
    if begin == 0:
        if source is not None:
            write_first(source, sets[1], ~volume.null)
        distributed.barrier()
    return begin, sets


def _write_pass(attributes: Attributes, prefix: str, outputs: Outputs) -> None:
    """Write the volumes of one pass."""
    attributes.write(prefix, outputs.attributes, outputs.formats)
    units = {kind: attributes.units(outputs.attributes, kind) for kind in outputs.formats}
    write_sidecar(prefix, attributes.volume, threshold=attributes.threshold, units=units)


def _names(model: Model) -> tuple[str, ...]:
    return (*NAMES, *(name for name in ("fstd", "fgap") if name in model.attributes))


def _base_key(model: Model, plan: survey.Plan, config: SurveyConfig, volume: Volume) -> str:
    status = volume.path.stat()
    content = [
        *(str(volume.path.resolve()), status.st_size, status.st_mtime_ns, volume.shape, config.model),
        *(model.sha256, model.temperature, model.keeps_residual, model.turns, model.precision.name),
        *(plan.block, len(plan.tiles), plan.exact, config.polarity, distributed.world_size()),
    ]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _key(base: str, number: int) -> str:
    return f"{base} pass {number}"


def _first_pass(folders: list[Path], base: str, config: SurveyConfig) -> int:
    """Return the pass that an earlier run was in, 0 without one or without --resume."""
    found = 0
    if config.resume == "auto" and distributed.is_main():
        held = [held_key(folder) for folder in folders]
        passes = range(1, config.refine_iters)
        found = max(
            (i for i in passes if held[i % 2] == _key(base, i) and held[(i + 1) % 2] == _key(base, i - 1)),
            default=0,
        )
    return int(distributed.broadcast_object(found))


def held_key(folder: Path) -> str:
    """Return the key of the scratch files in a folder, "" when there are none."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return str(state["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _open_sets(
    folders: list[Path], shape: tuple[int, int, int], names: tuple[str, ...], base: str, begin: int
) -> list[Scratch]:
    """Return the two sets of scratch files, ready for pass `begin`; a set of an earlier run is kept."""
    numbers = [begin if begin % 2 == i else begin - 1 for i in (0, 1)]
    return [
        Scratch(folder, shape, names, key=_key(base, number), resume=begin > 0)
        for folder, number in zip(folders, numbers, strict=True)
    ]


def _leaving(scratch: Scratch) -> Any:
    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            scratch.keep()
        else:
            scratch.remove()

    return leave


def write_first(source: Read, scratch: Scratch, live: np.ndarray) -> None:
    """Fill scratch files with the first estimate, its time brought to voxels that are z on average."""
    n1, _, n3 = scratch.shape
    rise = pairs = total = count = 0.0
    z = np.arange(n1, dtype=np.float64)[:, None]
    for x in range(n3):
        time, fsem = (source(name, x, x + 1)[:, live[:, x], 0] for name in ("time", "fsem"))
        free = (fsem[1:] < 0.5) & (fsem[:-1] < 0.5)
        rise += float(np.diff(time.astype(np.float64), axis=0)[free].sum())
        pairs += float(free.sum())
        total += float(time.sum(dtype=np.float64))
        count += time.size
    slope = rise / max(pairs, 1)
    slope = slope if slope > 1e-6 else 1 / max(n1 - 1, 1)
    offset = total / max(count, 1) / slope - float(z.mean())
    for x in range(n3):
        for name in NAMES:
            slab = source(name, x, x + 1)
            if name == "time":
                slab = (slab / slope - offset).astype(np.float32)
            scratch.write(name, x, slab)


def estimate_planes(scratch: Scratch, model: Model, volume: Volume) -> Callable[[int], np.ndarray]:
    """Return a function that gives inline x as the refining network takes it, [C, n1, n2].

    Null traces show no fault, no image and flat time.
    """
    low, high = 0.0, 1.0
    if model.layout == "mtl":
        _, (low, high) = survey.time_slabs(scratch, ~volume.null, None, 8)
    z = np.arange(scratch.shape[0], dtype=np.float32)[:, None, None]

    def read_plane(x: int) -> np.ndarray:
        null = volume.null[None, :, x : x + 1]
        slabs = {name: scratch.read(name, x, x + 1) for name in NAMES}
        slabs["tau"] = np.where(null, z, slabs["time"])
        slabs["rgt"] = np.where(null, 0, (slabs.pop("time") - low) / max(high - low, 1e-12))
        for name in ("fsem", "fdip", "fstrike", "dhr"):
            slabs[name] = np.where(null, 0, slabs[name])
        tensors = {n: torch.from_numpy(v.astype(np.float32))[None, None] for n, v in slabs.items()}
        return refine_channels(tensors, model.layout)[0, :, :, :, 0].numpy()

    return read_plane


def _mean_change(before: Scratch, after: Scratch, live: np.ndarray) -> float:
    """Return the mean absolute change of fsem over the live traces; rank 0's answer counts."""
    if not distributed.is_main():
        return 0.0
    total = count = 0.0
    for x in range(before.shape[2]):
        change = np.abs(after.read("fsem", x, x + 1) - before.read("fsem", x, x + 1))[:, live[:, x]]
        total += float(change.sum(dtype=np.float64))
        count += change.size
    return total / max(count, 1)
