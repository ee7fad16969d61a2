"""Inference: `load` a model, `predict` a cube in memory, `infer` a survey of any size into files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common import device as devices
from common import distributed
from common.device import resolve_precision
from common.errors import DataError, UserError
from common.log import get_logger
from common.run import MachineOptions, machine
from fault_seg import survey
from fault_seg.angles import fold_dip
from fault_seg.config import InferConfig
from fault_seg.dataset import normalise_image, solved_time
from fault_seg.maps import ATTRIBUTES, Model, Volumes, split_maps, volumes_from
from fault_seg.model import build_network, fuse_batch_norm
from fault_seg.sections import draw_sections
from fault_seg.slabs import Volume
from fault_seg.volumes import (
    check_finite,
    open_volume,
    open_writers,
    output_path,
    require_live,
    write_sidecar,
)

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "hr_infer_v1.safetensors"
UNITS = {"fsem": "probability", "rgt": "relative time 0..1", "dhr": "units of the input"}


def load(path: str | Path = "", device: str | torch.device = "cpu", *, precision: str = "auto") -> Model:
    """Return the model of a checkpoint or exported file, "" for the shipped weights.

    Architecture, kind and heads come from the file.

    Raises:
        DataError: the file is missing, damaged, or of another package.
    """
    path = Path(path) if path else SHIPPED_WEIGHTS
    if not path.exists() and path == SHIPPED_WEIGHTS:
        raise DataError(f"{path}: no shipped weights in this version; train.py makes a model for --model")
    reader = checkpoints.load_safetensors if path.suffix == ".safetensors" else checkpoints.load
    found = reader(path, package="fault_seg")
    heads = tuple(found.config["heads"])
    network = build_network(found.config["network"], found.kind, heads)
    try:
        network.load_state_dict(found.state_dict)
    except RuntimeError as error:
        raise DataError(f"{path}: weights do not fit their own config ({error})") from error
    device = devices.resolve_device(str(device))
    network = devices.channels_last(fuse_batch_norm(network)).to(device)
    return Model(
        network=network,
        layout=found.config["network"],
        kind=found.kind,
        heads=heads,
        config=found.config,
        path=path,
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
    with machine(options) as device:
        with distributed.shared_errors():
            model = load(config.model, device, precision=options.precision)
            volume = _open(config)
            attributes = _attributes(config, model, origins or {})
            prefix = config.output or Path(config.input).stem
            formats = [volume.format if name == "auto" else name for name in config.format]
            _refuse_existing(prefix, attributes, formats, options.overwrite)
            plan = survey.make_plan(model, volume.shape, config.block, config.overlap, config.max_memory)
            rule = survey.survey_rule(volume, options.seed, config.polarity)
        about = survey.describe(plan, model, rule)
        get_logger().info(
            f"{volume.path}: samples x crosslines x inlines {volume.shape}, "
            f"{len(plan.tiles)} {about['tiling']} tiles of {plan.block}"
        )
        if options.dry_run:
            return dict(about)
        names = [name for name in ("fsem", "fdip", "fstrike", "dhr") if name in model.attributes]
        names += ["time"] if "rgt" in attributes else []
        scratch = survey.Scratch(Path(f"{prefix}.scratch"), volume.shape, names)
        try:
            survey.run_network(model, volume, rule, plan, scratch, config.polarity)
            seconds_network = time.perf_counter() - started
            with distributed.shared_errors():
                if distributed.is_main():
                    slabs = Attributes(config, model, volume, rule, scratch)
                    slabs.write(prefix, attributes, formats)
                    if config.figures:
                        draw_sections(Path(prefix).parent / "figures", volume, slabs.read, attributes)
        finally:
            scratch.remove()
        summary = {
            **about,
            "attributes": list(attributes),
            "fault_fraction": slabs.fault_fraction if distributed.is_main() else None,
            "threshold": config.threshold,
            "seconds_network": round(seconds_network, 2),
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_bytes": devices.peak_memory_bytes(device),
        }
        if distributed.is_main():
            write_sidecar(prefix, volume, **summary)
            get_logger().info(f"{prefix}: wrote {', '.join(attributes)} in {summary['seconds']} s")
        return summary


class Attributes:
    """The attribute volumes of a survey, made slab by slab from the scratch files.

    Attributes:
        fault_fraction: share of voxels of live traces at or above the threshold, once written.
    """

    def __init__(
        self, config: InferConfig, model: Model, volume: Volume, rule: Any, scratch: survey.Scratch
    ) -> None:
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
            image = self.scratch.read("dhr", x0, x1).copy()
        else:
            image = self.rule.apply(self.volume.read(x0, x1) * self.config.polarity).astype(np.float32)
        image[:, self.volume.null[:, x0:x1]] = 0
        return image

    def read(self, name: str, x0: int, x1: int, style: str = "degrees", fill: float = np.nan) -> np.ndarray:
        """Return inlines x0:x1 of an attribute, [n1, n2, k], null traces 0.

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
            values = self.scratch.read(name, x0, x1).copy()
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
        return values

    def write(self, prefix: str, attributes: tuple[str, ...], formats: list[str]) -> None:
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


def _open(config: InferConfig) -> Volume:
    shape = (config.n1, config.n2, config.n3)
    volume = open_volume(
        config.input,
        shape,
        layout=config.layout,
        endian=config.endian,
        iline=config.iline,
        xline=config.xline,
    )
    check_finite(volume, config.allow_nan)
    require_live(volume)
    return volume


def _attributes(config: InferConfig, model: Model, origins: Mapping[str, str]) -> tuple[str, ...]:
    """Return the volumes to write; a head that is asked for by name must be there.

    Raises:
        UserError: the model lacks it, or nothing is left.
        DataError: the model is of kind refine.
    """
    if model.kind != "infer":
        raise DataError(
            f"{model.path}: checkpoint is kind {model.kind}, expected infer; "
            "use a model that train.py made with --task infer"
        )
    wanted = []
    for head in ATTRIBUTES:
        if not getattr(config, head):
            continue
        if head not in model.heads:
            if origins.get(head) == "command line":
                raise UserError(f"--{head}: {model.path} has the heads {' '.join(model.heads)} only")
            get_logger().info(f"{model.path}: no {head} head, skipped")
            continue
        wanted += [name for name in ATTRIBUTES[head] if name == "fsem" or model.layout != "unet"]
    if not wanted:
        raise UserError("nothing to write: --rgt, --fault and --dhr are all off or missing in the model")
    return tuple(wanted)


def _refuse_existing(prefix: str, attributes: tuple[str, ...], formats: list[str], overwrite: bool) -> None:
    found = [p for kind in formats for name in attributes if (p := output_path(prefix, name, kind)).exists()]
    if found and not overwrite:
        raise UserError(f"{found[0]}: exists; add --overwrite or choose another --output")
