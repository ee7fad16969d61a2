"""`refine`: the five volumes that inference wrote, improved by a network of kind refine, as files again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.errors import DataError, UserError
from common.log import get_logger
from common.run import MachineOptions, machine
from fault_seg import survey
from fault_seg.config_infer import RefineConfig
from fault_seg.first_estimates import estimate_of, refine_channels
from fault_seg.infer import finish, load_as_asked
from fault_seg.maps import MIN_ANGLE_PROBABILITY, Model, Volumes, volumes_from
from fault_seg.model import REFINE_INPUTS
from fault_seg.outputs import plan_outputs
from fault_seg.refining import refine_passes
from fault_seg.slabs import WINDOW_BYTES, Volume
from fault_seg.stored_angles import angles_in_degrees, require_grid_angles
from fault_seg.true_angles import angle_frame
from fault_seg.volumes import check_finite, open_volume, output_path, require_live

_SEARCH = ("segy", "h5", "npy", "mhd", "vti", "raw")  # raw last: any file could be one
_MARGIN = 12  # inlines beside a slab that tell to which side a plane dips


def refine(
    config: RefineConfig, options: MachineOptions, origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write the refined volumes; return the summary that also goes to `<output>.json`.

    Raises:
        UserError: the flags do not fit, or the output exists.
        DataError: a volume is missing or does not fit its sisters, or the model is of another kind.
    """
    started = time.perf_counter()
    with machine(options) as device, contextlib.ExitStack() as stack:
        with distributed.shared_errors():
            model = load_as_asked(config.model, "refine", config, device, options.precision)
            files = EstimateFiles(config)
            stack.callback(files.close)
            volume = files.volumes["dhr"]
            frame = angle_frame(config, volume)
            prefix = config.output or f"{config.input}_refined"
            if Path(prefix).absolute() == Path(config.input).absolute():
                raise UserError(f"--output {prefix}: is the input's prefix; choose another one")
            outputs = plan_outputs(config, model, volume, origins or {}, options.overwrite, prefix)
            window = int(min(WINDOW_BYTES, config.max_memory * 2**30 / 8))
            rule = survey.survey_rule(volume, options.seed, config.polarity, window)
            plan = survey.make_plan(model, volume.shape, config.block, config.overlap, config.max_memory)
        about = survey.describe(plan, model, rule)
        get_logger().info(
            f"{config.input}: samples x crosslines x inlines {volume.shape}, angles in {files.units}, "
            f"{len(plan.tiles)} {about['tiling']} tiles of {plan.block}"
        )
        if options.dry_run:
            return dict(about)
        if distributed.is_main():
            outputs.remove_stale()

        def source(name: str, x0: int, x1: int) -> np.ndarray:
            if name != "dhr":
                return files.read("rgt" if name == "time" else name, x0, x1)
            image = rule.apply(volume.read(x0, x1) * np.float32(config.polarity)).astype(np.float32)
            image[:, volume.null[:, x0:x1]] = 0
            return image

        more = {"threshold": config.threshold or model.threshold}
        first = source if distributed.is_main() else None
        refined = refine_passes(config, model, volume, rule, frame, first, outputs, stack, more)
        summary = {**about, "attributes": list(outputs.attributes), "refine": refined.describe()}
        summary["seconds_network"] = round(time.perf_counter() - started, 2)
        if refined.attributes is None:
            return summary
        return finish(refined.attributes, outputs, summary, started, frame, 0, device)


class EstimateFiles:
    """The five volumes under a prefix, read inline by inline; close it.

    Attributes:
        volumes: rgt, dhr, fsem, fdip, fstrike, open.
        units: of the angles, "over180" or "degrees".

    Raises:
        DataError: one is missing, of another size, not finite, or its angles are not those of the grid.
    """

    def __init__(self, config: RefineConfig) -> None:
        self.volumes: dict[str, Volume] = {}
        kind = _format_under(config.input)
        shape = (config.n1, config.n2, config.n3) if kind == "raw" else (0, 0, 0)
        try:
            for name in REFINE_INPUTS:
                self.volumes[name] = open_volume(
                    output_path(config.input, name, kind),
                    shape,
                    layout=config.layout,
                    endian=config.endian,
                    iline=config.iline,
                    xline=config.xline,
                    dataset=name,
                )
            self._check(config.allow_nan)
            self.units = config.input_units
            if self.units == "auto":
                self.units = "over180" if self._steepest() <= 1 else "degrees"
            if self.units == "degrees":
                require_grid_angles(config.input)
        except BaseException:
            self.close()
            raise

    def _check(self, allow_nan: bool) -> None:
        shape = self.volumes["dhr"].shape
        for name, volume in self.volumes.items():
            if volume.shape != shape:
                raise DataError(
                    f"{volume.path}: (n1, n2, n3) = {volume.shape}, expected {shape} as its sisters; "
                    "take volumes of one run of infer.py"
                )
            if name not in ("fdip", "fstrike"):  # angles are NaN where there is no fault
                check_finite(volume, allow_nan)
        require_live(self.volumes["dhr"])
        fsem = self.volumes["fsem"]
        for x0, slab in fsem.slabs():
            if np.nanmin(slab) < 0 or np.nanmax(slab) > 1:
                raise DataError(
                    f"{fsem.path}: {np.nanmin(slab):g} to {np.nanmax(slab):g} from inline {x0} on, expected "
                    "probabilities 0 to 1; take the volume of infer.py"
                )

    def _steepest(self) -> float:
        return max(float(np.nanmax(np.abs(slab), initial=0)) for _, slab in self.volumes["fdip"].slabs())

    def read(self, name: str, x0: int, x1: int) -> np.ndarray:
        """Return inlines x0:x1, [n1, n2, k]; angles ungated over 180 degrees, 0 where there is none."""
        if name not in ("fdip", "fstrike"):
            return np.nan_to_num(self.volumes[name].read(x0, x1))
        margin = _MARGIN if self.units == "degrees" else 0
        low, high = max(0, x0 - margin), min(self.volumes["fsem"].shape[2], x1 + margin)
        fsem, fdip, fstrike = (self.volumes[n].read(low, high) for n in ("fsem", "fdip", "fstrike"))
        angles = angles_in_degrees(fsem, fdip, fstrike, self.units, MIN_ANGLE_PROBABILITY)
        degrees = angles.dip_deg if name == "fdip" else angles.strike_deg
        return degrees[:, :, x0 - low : x1 - low] / np.float32(180)

    def close(self) -> None:
        """Let go of the files."""
        for volume in self.volumes.values():
            volume.close()


def _format_under(prefix: str) -> str:
    """Return the format in which the five volumes lie under a prefix."""
    for kind in _SEARCH:
        paths = [output_path(prefix, name, kind) for name in REFINE_INPUTS]
        if paths[0].is_file() or paths[2].is_file():
            missing = [path for path in paths if not path.is_file()]
            if missing:
                raise DataError(f"{missing[0]}: no such file, expected five volumes under {prefix}")
            return kind
    raise DataError(
        f"{prefix}.fsem: no such file in any format, expected .rgt .dhr .fsem .fdip .fstrike under the "
        f"prefix {prefix}; run infer.py"
    )


def refine_cube(model: Model, item: Mapping[str, Any], passes: int) -> list[Volumes]:
    """Return the volumes after each of `passes` passes over one whole sample of kind refine, in memory."""
    batch = {name: value[None] for name, value in item.items() if isinstance(value, torch.Tensor)}
    estimate = estimate_of(batch)
    results = []
    for _ in range(passes):
        maps = model.maps(refine_channels(estimate, model.layout))[0].numpy()
        tau = estimate["tau"][0, 0].numpy() if model.layout == "hr" else None
        found = volumes_from(maps, model.heads, model.layout, tau)
        results.append(found)
        delta = maps[-2 if model.has_spread else -1]
        times = delta if tau is None else tau + delta
        estimate = {n: torch.from_numpy(np.ascontiguousarray(found[n]))[None, None] for n in REFINE_INPUTS}
        estimate["tau"] = torch.from_numpy(np.ascontiguousarray(times))[None, None]
    return results
