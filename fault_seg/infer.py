"""Inference: `load` a model, `predict` a cube in memory, `infer` a survey of any size into files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import blocks, distributed
from common import checkpoint as checkpoints
from common import device as devices
from common.checkpoint import Checkpoint
from common.device import resolve_precision
from common.errors import DataError, UserError
from common.log import get_logger
from common.run import MachineOptions, machine
from fault_seg import survey
from fault_seg.attributes import Attributes
from fault_seg.calibration import stored
from fault_seg.config_infer import InferConfig, SurveyConfig
from fault_seg.dataset import normalise_image, solved_time
from fault_seg.maps import Model, Volumes, split_maps, volumes_from
from fault_seg.model import HEADS, build_network, fuse_batch_norm
from fault_seg.outputs import Outputs, open_input, plan_outputs
from fault_seg.refining import refine_survey
from fault_seg.scratch import Scratch
from fault_seg.sections import draw_rose, draw_sections
from fault_seg.slabs import WINDOW_BYTES, Volume
from fault_seg.true_angles import AngleFrame, angle_frame
from fault_seg.volumes import format_of, write_sidecar
from fault_seg.weight_files import find_weights, read_weights

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "hr_infer_v1.safetensors"


def read_network(path: str | Path = "") -> tuple[Checkpoint, torch.nn.Module]:
    """Return (checkpoint, network with its weights) of a file or a run's folder, "" for the shipped weights.

    Raises:
        DataError: the file is missing, damaged, or of another package.
    """
    path = Path(path) if path else SHIPPED_WEIGHTS
    if not path.exists() and path == SHIPPED_WEIGHTS:
        raise DataError(f"{path}: no shipped weights in this version; train.py makes a model for --model")
    found = read_weights(path)
    try:
        network = build_network(found.config["network"], found.kind, found.config["heads"])
        network.load_state_dict(found.state_dict)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, UserError) as error:
        raise DataError(f"{path}: its weights do not fit its config ({error}); use another file") from error
    return found, network


def load(path: str | Path = "", device: str | torch.device = "cpu", *, precision: str = "auto") -> Model:
    """Return the model of a checkpoint, an exported file or a run's folder, "" for the shipped weights.

    Architecture, kind, heads, temperature and threshold come from the file.

    Raises:
        DataError: the file is missing, damaged, or of another package.
    """
    path = find_weights(path) if path else ""
    found, network = read_network(path)
    device = devices.resolve_device(str(device))
    network = devices.channels_last(fuse_batch_norm(network)).to(device)
    fitted = fitted_numbers(found, path)
    return Model(
        network=network,
        layout=found.config["network"],
        kind=found.kind,
        heads=tuple(found.config["heads"]),
        config=found.config,
        path=Path(path) if path else SHIPPED_WEIGHTS,
        sha256=checkpoints.content_hash(found.state_dict),
        device=device,
        precision=resolve_precision(precision, device),
        **fitted,
    )


def fitted_numbers(found: Checkpoint, path: str | Path) -> dict[str, Any]:
    """Return what was fitted after the training: temperature, threshold, keeps_residual.

    Raises:
        DataError: they are no numbers.
    """
    try:
        fitted = stored(found.normalization)
        return {
            "temperature": float(fitted.get("temperature", 1.0)),
            "threshold": float(fitted.get("threshold", 0.5)),
            "keeps_residual": bool(fitted.get("rgt_residual", True)),
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its calibration cannot be read ({error}); use another file") from error


def load_as_asked(path: str, kind: str, config: SurveyConfig, device: torch.device, precision: str) -> Model:
    """Return the model of a file with what the flags change: turns, confidence, time correction.

    Raises:
        UserError: the turns do not work with it.
        DataError: it is of another kind, or cannot be used.
    """
    model = load(path, device, precision=precision)
    if model.kind != kind:
        advice = "refine.py" if model.kind == "refine" else "infer.py"
        raise DataError(
            f"{model.path}: checkpoint is kind {model.kind}, expected {kind}; use {advice}, or a model that "
            f"train.py made with --task {kind}"
        )
    if config.tta > 1 and model.layout == "mtl" and kind == "refine":
        raise UserError(
            f"--tta {config.tta}: a refining network of layout mtl takes angles, which do not turn"
        )
    model.turns, model.tells_gap = config.tta, config.confidence
    if config.rgt_residual != "auto":
        model.keeps_residual = config.rgt_residual == "on"
    return model


def predict(model: Model, image: np.ndarray) -> Volumes:
    """Return the attributes of a cube [n1, n2, n3] of any amplitude, computed whole and in memory.

    dhr has zero mean and unit std, angles are over 180 degrees and ungated.
    """
    normalised = normalise_image(image.astype(np.float32))
    maps = model.maps(torch.from_numpy(normalised)[None, None])[0].numpy()
    tau = None
    if "rgt" in model.heads and model.layout == "hr":
        named = split_maps(maps, model.heads, model.layout)
        fsem = named.get("fsem", np.zeros_like(normalised))
        tau = solved_time(np.ascontiguousarray(named.get("dhr", normalised)), np.ascontiguousarray(fsem))
    return volumes_from(maps, model.heads, model.layout, tau)


def infer(
    config: InferConfig, options: MachineOptions, origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write the attribute volumes of a survey; return the summary that also goes to `<output>.json`.

    A folder as input means every volume in it, one after another.

    Raises:
        UserError: the flags do not fit the input or the model, or the output exists.
        DataError: the input or the model cannot be used.
    """
    if Path(config.input).is_dir():
        return {"surveys": [infer(c, options, origins) for c in _each_volume(config)]}
    started = time.perf_counter()
    with machine(options) as device, contextlib.ExitStack() as stack:
        with distributed.shared_errors():
            model, refiner = _models(config, device, options.precision)
            volume, num_nan = open_input(config)
            stack.callback(volume.close)
            frame = angle_frame(config, volume)
            outputs = plan_outputs(config, refiner or model, volume, origins or {}, options.overwrite)
            plan = survey.make_plan(model, volume.shape, config.block, config.overlap, config.max_memory)
            window = int(min(WINDOW_BYTES, config.max_memory * 2**30 / 8))
            rule = survey.survey_rule(volume, options.seed, config.polarity, window)
        about = _announced(model, volume, plan, rule, config.max_memory)
        if options.dry_run:
            return dict(about)
        if distributed.is_main():
            outputs.remove_stale()
        names = _scratch_names(model, outputs, refined=refiner is not None)
        key = run_key(model, plan, rule, config, volume)
        scratch = Scratch(
            Path(f"{outputs.prefix}.scratch"), volume.shape, names, key=key, resume=config.resume == "auto"
        )
        stack.push(leaving(scratch))
        plan = _run_network(config, model, volume, rule, plan, scratch)
        summary = {
            **survey.describe(plan, model, rule),
            "attributes": list(outputs.attributes),
            "seconds_network": round(time.perf_counter() - started, 2),
        }
        more = {"threshold": config.threshold or (refiner or model).threshold, "has_nan": num_nan > 0}
        is_main = distributed.is_main()
        slabs = Attributes(config, model, volume, rule, scratch, frame, **more) if is_main else None
        if refiner is not None:
            refined = refine_survey(config, refiner, volume, rule, frame, slabs, outputs, stack, more)
            slabs, summary["refine"] = refined.attributes, refined.describe()
        if slabs is None:  # rank 0 alone writes, however long that takes
            return summary
        return finish(slabs, outputs, summary, started, frame, num_nan, device)


def _announced(
    model: Model, volume: Volume, plan: survey.Plan, rule: Any, max_memory: float
) -> Mapping[str, Any]:
    """Return what a side-car says about the work; log it, with a warning where tiles change the result."""
    about = survey.describe(plan, model, rule)
    get_logger().info(
        f"{volume.path}: samples x crosslines x inlines {volume.shape}, "
        f"{len(plan.tiles)} {about['tiling']} tiles of {plan.block}"
    )
    survey.warn_of_tiles(model, plan, max_memory)
    return about


def _models(config: InferConfig, device: torch.device, precision: str) -> tuple[Model, Model | None]:
    """Return the network of `--model` and that of `--refine_model`, None without one.

    Raises:
        UserError: the first lacks a volume that the second takes.
        DataError: one of them cannot be used.
    """
    model = load_as_asked(config.model, "infer", config, device, precision)
    if not config.refine_model:
        return model, None
    if set(model.heads) != set(HEADS):
        raise UserError(
            f"--refine_model: {model.path} has the heads {' '.join(model.heads)}, expected "
            f"{' '.join(HEADS)}; refinement needs all five volumes"
        )
    return model, load_as_asked(config.refine_model, "refine", config, device, precision)


def finish(
    slabs: Attributes,
    outputs: Outputs,
    summary: dict[str, Any],
    started: float,
    frame: AngleFrame,
    num_nan: int,
    device: torch.device,
) -> dict[str, Any]:
    """Write volumes, figures and side-car; return the whole summary."""
    slabs.write(outputs.prefix, outputs.attributes, outputs.formats)
    has_angles = "fstrike" in outputs.attributes
    if slabs.config.figures:
        folder = Path(outputs.prefix).parent / "figures"
        draw_sections(folder, slabs.volume, slabs.read, outputs.attributes)
        if has_angles and any(slabs.rose):
            draw_rose(folder / "strike_rose.png", slabs.rose, from_north=frame.east_north is not None)
    summary |= {
        "fault_fraction": slabs.fault_fraction,
        "threshold": slabs.threshold,
        "angles": frame.describe(),
        "units": {kind: slabs.units(outputs.attributes, kind) for kind in outputs.formats},
        "nan_samples": num_nan,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_bytes": devices.peak_memory_bytes(device),
    }
    if has_angles:
        summary["strike_rose"] = slabs.rose
    write_sidecar(outputs.prefix, slabs.volume, **summary)
    written = ", ".join(outputs.attributes)
    get_logger().info(f"{outputs.prefix}: wrote {written} in {summary['seconds']} s")
    return summary


def _each_volume(config: InferConfig) -> list[InferConfig]:
    """Return one configuration for each volume of the folder `--input`; --output is a folder then.

    Raises:
        DataError: the folder holds none.
    """
    folder = Path(config.input)
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and format_of(path)]
    found = [path for path in found if path.suffix != ".json" and not path.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: is a folder without volumes, expected .sgy .npy .h5 .mhd .vti or .bin")
    out = Path(config.output or ".")
    return [replace(config, input=str(path), output=str(out / path.stem)) for path in found]


def _scratch_names(model: Model, outputs: Outputs, *, refined: bool) -> list[str]:
    names = [name for name in ("fsem", "fdip", "fstrike", "dhr", "fstd", "fgap") if name in model.attributes]
    wants_time = "rgt" in model.heads and (refined or "rgt" in outputs.attributes)
    return names + (["time"] if wants_time else [])


def run_key(model: Model, plan: survey.Plan, rule: Any, config: SurveyConfig, volume: Volume) -> str:
    """Return what the scratch files of a run depend on, as a hash."""
    status = volume.path.stat()
    content = {
        "input": [str(volume.path.resolve()), status.st_size, status.st_mtime_ns, list(volume.shape)],
        "model": [model.sha256, model.temperature, model.keeps_residual, model.turns],
        "precision": model.precision.name,
        "plan": [list(plan.block), len(plan.tiles), plan.exact, config.overlap],
        "rule": rule.state_dict(),
        "polarity": config.polarity,
        "ranks": distributed.world_size(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def leaving(scratch: Scratch) -> Any:
    """Return an exit callback: interrupted by hand the scratch files stay, otherwise they go."""

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            scratch.keep()
            get_logger().info(f"{scratch.folder}: kept; the same command with --resume auto goes on")
        else:
            scratch.remove()

    return leave


def _run_network(
    config: InferConfig,
    model: Model,
    volume: Volume,
    rule: Any,
    plan: survey.Plan,
    scratch: Scratch,
) -> survey.Plan:
    """Fill the scratch files; return the plan that did it: smaller tiles when memory ran out.

    Raises:
        DataError: memory runs out even so.
    """
    planes = survey.image_planes(volume, rule, config.polarity)

    def attempt(block: tuple[int, ...]) -> survey.Plan:
        tried = plan
        if block != plan.block:
            get_logger().warning(f"warning: out of memory with tiles of {plan.block}, trying {block}")
            tried = survey.make_plan(model, volume.shape, max(block), config.overlap, config.max_memory)
            scratch.restart(run_key(model, tried, rule, config, volume))
        survey.run_network(model, planes, tried, scratch)
        return tried

    if distributed.is_distributed():  # the ranks must agree on the tiles
        return attempt(plan.block)
    return blocks.retry_smaller(attempt, plan.block, model.multiple)
