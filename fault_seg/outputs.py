"""What inference reads and writes, decided and checked before any work: input, attributes, formats, files."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError, UserError
from common.files import require_free_space
from common.log import get_logger
from fault_seg.config_infer import SurveyConfig
from fault_seg.maps import ATTRIBUTES, Model
from fault_seg.mtl import MIN_SIZE as MTL_MIN_SIZE
from fault_seg.segy import SegySurvey
from fault_seg.slabs import Volume
from fault_seg.volumes import (
    check_finite,
    open_volume,
    output_path,
    read_sidecar,
    require_live,
    sidecar_path,
)


def open_input(config: SurveyConfig) -> tuple[Volume, int]:
    """Return the checked input and how many of its samples are NaN."""
    shape = (config.n1, config.n2, config.n3)
    volume = open_volume(
        config.input,
        shape,
        layout=config.layout,
        endian=config.endian,
        iline=config.iline,
        xline=config.xline,
    )
    num_nan = check_finite(volume, config.allow_nan)
    for x0, slab in volume.slabs() if num_nan else ():
        volume.null[:, x0 : x0 + slab.shape[2]] |= np.isnan(slab).all(axis=0)
        volume.live[volume.null] = False
    require_live(volume)
    return volume, num_nan


@dataclass(frozen=True)
class Outputs:
    """What is written where: one volume an attribute and format, under a prefix."""

    prefix: str
    attributes: tuple[str, ...]
    formats: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        """The files, each once."""
        found = [output_path(self.prefix, name, kind) for kind in self.formats for name in self.attributes]
        return list(dict.fromkeys(found))

    def remove_stale(self) -> None:
        """Delete the half-written files of a run that was killed; the lock of the prefix keeps others out."""
        for path in self.paths:
            for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                temporary.unlink(missing_ok=True)


def plan_outputs(
    config: SurveyConfig,
    model: Model,
    volume: Volume,
    origins: Mapping[str, str],
    overwrite: bool,
    prefix: str = "",
) -> Outputs:
    """Return what to write, after every check that can be made before the work.

    Raises:
        UserError: an output exists or is the input, SEG-Y is asked for without its headers, or the volume is
            thinner than the network can see.
        DataError: the disk is too small.
    """
    if model.layout == "mtl" and min(volume.shape) < MTL_MIN_SIZE:
        raise UserError(
            f"{volume.path}: (n1, n2, n3) = {volume.shape}, expected at least {MTL_MIN_SIZE} voxels an axis "
            "for a network of layout mtl; use one of layout hr, as the shipped weights are"
        )
    prefix = prefix or config.output or Path(config.input).stem
    if prefix.endswith("/"):
        prefix += Path(config.input).stem
    formats = tuple(dict.fromkeys(volume.format if name == "auto" else name for name in config.formats))
    outputs = Outputs(prefix, chosen_attributes(config, model, origins), formats)
    if "segy" in formats and not isinstance(volume, SegySurvey):
        raise UserError(
            f"--format segy: {volume.path} is {volume.format} and has no SEG-Y headers; choose another "
            "--format, and convert.py --like survey.sgy afterwards"
        )
    for path in outputs.paths:
        if path.is_dir() or (path.exists() and path.samefile(volume.path)):
            raise UserError(f"{path}: is a folder or the input itself; choose another --output")
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists; add --overwrite or choose another --output")
    side = sidecar_path(prefix)
    if side.exists() and not overwrite:
        try:
            read_sidecar(side.with_suffix(""))
        except DataError as error:
            raise UserError(
                f"{side}: exists and is no side-car of volumes; add --overwrite or choose another --output"
            ) from error
    num_scratch = len(model.attributes)
    num_scratch += 10 if model.kind == "refine" else 0  # two sets of five volumes
    needed = 4 * math.prod(volume.shape) * (num_scratch + len(outputs.attributes) * len(formats))
    require_free_space(prefix, needed)
    return outputs


def chosen_attributes(config: SurveyConfig, model: Model, origins: Mapping[str, str]) -> tuple[str, ...]:
    """Return the volumes to write; a head that is asked for by name must be there.

    Raises:
        UserError: the model lacks it, or nothing is left.
    """
    if config.confidence and not (config.fault and model.has_gap):
        raise UserError(f"--confidence: needs fault angles, {model.path} has none or --fault is off")
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
        wanted += [name for name in ("fstd", "fgap") if head == "fault" and name in model.attributes]
    if not wanted:
        raise UserError("nothing to write: --rgt, --fault and --dhr are all off or missing in the model")
    return tuple(wanted)
