"""Inference: `load` a model, `predict` a cube in memory, `infer` a survey of any size into files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
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
from fault_seg.angles import fold_dip
from fault_seg.config import InferConfig
from fault_seg.dataset import normalise_image, solved_time
from fault_seg.maps import Model, Volumes, split_maps, volumes_from
from fault_seg.model import build_network, fuse_batch_norm
from fault_seg.outputs import open_input, plan_outputs
from fault_seg.sections import draw_sections
from fault_seg.slabs import WINDOW_BYTES, Volume
from fault_seg.volumes import open_writers, write_sidecar
from fault_seg.weight_files import read_weights

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "hr_infer_v1.safetensors"
UNITS = {"fsem": "probability", "rgt": "relative time 0..1", "dhr": "units of the input"}


def read_network(path: str | Path = "") -> tuple[Checkpoint, torch.nn.Module]:
    """Return (checkpoint, network with its weights) of a file, "" for the shipped weights.

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
    except (KeyError, RuntimeError, UserError) as error:
        raise DataError(f"{path}: its weights do not fit its config ({error}); use another file") from error
    return found, network


def load(path: str | Path = "", device: str | torch.device = "cpu", *, precision: str = "auto") -> Model:
    """Return the model of a checkpoint or exported file, "" for the shipped weights.

    Architecture, kind and heads come from the file.

    Raises:
        DataError: the file is missing, damaged, or of another package.
    """
    found, network = read_network(path)
    device = devices.resolve_device(str(device))
    network = devices.channels_last(fuse_batch_norm(network)).to(device)
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
    )


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

    Raises:
        UserError: the flags do not fit the input or the model, or the output exists.
        DataError: the input or the model cannot be used.
    """
    started = time.perf_counter()
    with machine(options) as device, contextlib.ExitStack() as stack:
        with distributed.shared_errors():
            model = load(config.model, device, precision=options.precision)
            volume, num_nan = open_input(config)
            stack.callback(volume.close)
            outputs = plan_outputs(config, model, volume, origins or {}, options.overwrite)
            plan = survey.make_plan(model, volume.shape, config.block, config.overlap, config.max_memory)
            window = int(min(WINDOW_BYTES, config.max_memory * 2**30 / 8))
            rule = survey.survey_rule(volume, options.seed, config.polarity, window)
        about = survey.describe(plan, model, rule)
        get_logger().info(
            f"{volume.path}: samples x crosslines x inlines {volume.shape}, "
            f"{len(plan.tiles)} {about['tiling']} tiles of {plan.block}"
        )
        if options.dry_run:
            return dict(about)
        names = [name for name in ("fsem", "fdip", "fstrike", "dhr") if name in model.attributes]
        names += ["time"] if "rgt" in outputs.attributes else []
        if distributed.is_main():
            outputs.remove_stale()
        scratch = survey.Scratch(Path(f"{outputs.prefix}.scratch"), volume.shape, names)
        stack.callback(scratch.remove)
        plan = _run_network(config, model, volume, rule, plan, scratch)
        summary = {
            **survey.describe(plan, model, rule),
            "attributes": list(outputs.attributes),
            "seconds_network": round(time.perf_counter() - started, 2),
        }
        if not distributed.is_main():  # rank 0 alone writes, however long that takes
            return summary
        slabs = Attributes(config, model, volume, rule, scratch, has_nan=num_nan > 0)
        slabs.write(outputs.prefix, outputs.attributes, outputs.formats)
        if config.figures:
            draw_sections(Path(outputs.prefix).parent / "figures", volume, slabs.read, outputs.attributes)
        summary |= {
            "fault_fraction": slabs.fault_fraction,
            "threshold": config.threshold,
            "nan_samples": num_nan,
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_bytes": devices.peak_memory_bytes(device),
        }
        write_sidecar(outputs.prefix, volume, **summary)
        written = ", ".join(outputs.attributes)
        get_logger().info(f"{outputs.prefix}: wrote {written} in {summary['seconds']} s")
        return summary


def _run_network(
    config: InferConfig,
    model: Model,
    volume: Volume,
    rule: Any,
    plan: survey.Plan,
    scratch: survey.Scratch,
) -> survey.Plan:
    """Fill the scratch files; return the plan that did it: smaller tiles when memory ran out.

    Raises:
        DataError: memory runs out even so.
    """

    def attempt(block: tuple[int, ...]) -> survey.Plan:
        tried = plan
        if block != plan.block:
            get_logger().warning(f"warning: out of memory with tiles of {plan.block}, trying {block}")
            tried = survey.make_plan(model, volume.shape, max(block), config.overlap, config.max_memory)
        survey.run_network(model, volume, rule, tried, scratch, config.polarity)
        return tried

    if distributed.is_distributed():  # the ranks must agree on the tiles
        return attempt(plan.block)
    return blocks.retry_smaller(attempt, plan.block, model.multiple)


class Attributes:
    """The attribute volumes of a survey, made slab by slab from the scratch files.

    Attributes:
        fault_fraction: share of voxels of live traces at or above the threshold, once written.
    """

    def __init__(
        self,
        config: InferConfig,
        model: Model,
        volume: Volume,
        rule: Any,
        scratch: survey.Scratch,
        *,
        has_nan: bool = False,
    ) -> None:
        self.has_nan = has_nan
        self.config = config
        self.volume = volume
        self.rule = rule
        self.scratch = scratch
        self.fault_fraction = 0.0
        n1, n2, n3 = volume.shape
        self.step = max(1, min(n3, int(config.max_memory * 2**30 / (64 * n1 * n2))))
        if "time" in scratch:
            solved = None
            if model.layout == "hr":
                solved = survey.solve_survey_time(scratch, self._clean_image, config.max_memory)
            self._time, self._limits = survey.time_slabs(scratch, ~volume.null, solved, self.step)

    def _clean_image(self, x0: int, x1: int) -> np.ndarray:
        if "dhr" in self.scratch:
            image = self.scratch.read("dhr", x0, x1)
        else:
            values = self.volume.read(x0, x1) * np.float32(self.config.polarity)
            image = self.rule.apply(values).astype(np.float32)
            image[np.isnan(image)] = 0
        image[:, self.volume.null[:, x0:x1]] = 0
        return image

    def read(self, name: str, x0: int, x1: int, style: str = "degrees", fill: float = np.nan) -> np.ndarray:
        """Return inlines x0:x1 of an attribute, [n1, n2, k]; null traces and NaN samples are 0.

        Args:
            name: fsem, fdip, fstrike, rgt or dhr.
            x0: first inline.
            x1: one past the last.
            style: of angles: "degrees", or "over180" times fsem.
            fill: angle in degrees below the threshold.
        """
        if name == "rgt":
            fsem = self.scratch.read("fsem", x0, x1) if "fsem" in self.scratch else None
            clean = self.config.monotone_rgt
            values = survey.finish_time(self._time(x0, x1), self._limits, fsem, self.config.threshold, clean)
        else:
            values = self.scratch.read(name, x0, x1)
        if name == "dhr":
            values = values * self.rule.std + self.rule.mean
            values *= self.config.polarity
        elif name in ("fdip", "fstrike"):
            fsem = self.scratch.read("fsem", x0, x1)
            if style == "over180":
                values *= fsem
            else:
                values *= 180
                values = fold_dip(torch.from_numpy(values)).numpy() if name == "fdip" else values
                values[fsem < self.config.threshold] = fill
        values[:, self.volume.null[:, x0:x1]] = 0
        if self.has_nan:
            values[np.isnan(self.volume.read(x0, x1))] = 0
        return values

    def write(self, prefix: str, attributes: tuple[str, ...], formats: tuple[str, ...]) -> None:
        """Write the volumes in every format; all files of a format appear complete or not at all."""
        n3 = self.volume.shape[2]
        for kind in formats:
            style = self.config.angle_units
            style = ("over180" if kind == "raw" else "degrees") if style == "auto" else style
            fill = {"nan": np.nan, "zero": 0.0, "auto": np.nan if kind in ("npy", "h5") else 0.0}
            angle = "degrees" if style == "degrees" else "degrees/180, times probability"
            units = {name: UNITS.get(name, angle) for name in attributes}
            writers = open_writers(
                prefix, units, kind, self.volume, model=self.config.model or "shipped weights"
            )
            try:
                for x0 in range(0, n3, self.step):
                    x1 = min(x0 + self.step, n3)
                    for name in attributes:
                        writers[name].write(x0, self.read(name, x0, x1, style, fill[self.config.angle_fill]))
                for writer in writers.values():
                    writer.close()
            except BaseException:
                for writer in writers.values():
                    writer.abort()
                raise
        if "fsem" in self.scratch:
            count = sum(int((self.read("fsem", x, x + 1) >= self.config.threshold).sum()) for x in range(n3))
            live = int((~self.volume.null).sum()) * self.volume.shape[0]
            self.fault_fraction = count / max(live, 1)
