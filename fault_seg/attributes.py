"""The attribute volumes of a survey as users read them, made slab by slab from scratch files, and written."""

from __future__ import annotations

from typing import Any

import numpy as np

from fault_seg import survey
from fault_seg.config_infer import SurveyConfig
from fault_seg.maps import Model
from fault_seg.scratch import Scratch
from fault_seg.slabs import Volume
from fault_seg.true_angles import AngleFrame
from fault_seg.volumes import open_writers

UNITS = {
    "fsem": "probability",
    "fstd": "standard deviation of the probability",
    "fgap": "confidence of the angles 0..1",
    "rgt": "relative time 0..1",
    "dhr": "units of the input",
}
ROSE_BIN_DEG = 10
NUM_ROSE_BINS = 180 // ROSE_BIN_DEG


class Attributes:
    """The attribute volumes of a survey.

    Args:
        config: formats, units, limits.
        model: what filled the scratch files.
        volume: the survey, or what stands for its geometry.
        rule: normalisation of the image.
        scratch: fsem, fdip, fstrike, dhr, time, fstd, fgap, those that there are.
        frame: of angles in degrees.
        threshold: probability from which a voxel is fault.
        has_nan: whether samples of the survey are missing.

    Attributes:
        fault_fraction: share of voxels of live traces at or above the threshold, once written.
        rose: fault voxels in each ten degrees of strike, once written.
    """

    def __init__(
        self,
        config: SurveyConfig,
        model: Model,
        volume: Volume,
        rule: Any,
        scratch: Scratch,
        frame: AngleFrame,
        *,
        threshold: float,
        has_nan: bool = False,
    ) -> None:
        self.has_nan = has_nan
        self.config = config
        self.volume = volume
        self.rule = rule
        self.scratch = scratch
        self.frame = frame
        self.threshold = threshold
        self.model_name = str(model.path.name)
        self.fault_fraction = 0.0
        self.rose = [0] * NUM_ROSE_BINS
        n1, n2, n3 = volume.shape
        self.step = max(1, min(n3, int(config.max_memory * 2**30 / (64 * n1 * n2))))
        if "time" in scratch:
            solved = None
            if model.layout == "hr" and model.kind == "infer":
                solved = survey.solve_survey_time(scratch, self.clean_image, config.max_memory)
            self.time, self.limits = survey.time_slabs(scratch, ~volume.null, solved, self.step)

    def clean_image(self, x0: int, x1: int) -> np.ndarray:
        """Return inlines of the denoised image, or of the input without it, normalised."""
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
            name: fsem, fdip, fstrike, rgt, dhr, fstd or fgap.
            x0: first inline.
            x1: one past the last.
            style: of angles: "degrees", or "over180" (of the voxel grid) times fsem.
            fill: angle in degrees below the threshold.
        """
        if name == "rgt":
            fsem = self.scratch.read("fsem", x0, x1) if "fsem" in self.scratch else None
            clean = self.config.monotone_rgt
            values = survey.finish_time(self.time(x0, x1), self.limits, fsem, self.threshold, clean)
        elif name in ("fdip", "fstrike"):
            values = self._angle(name, x0, x1, style, fill)
        else:
            values = self.scratch.read(name, x0, x1)
        if name == "dhr":
            values = values * self.rule.std + self.rule.mean
            values *= self.config.polarity
        values[:, self.volume.null[:, x0:x1]] = 0
        if self.has_nan:
            values[np.isnan(self.volume.read(x0, x1))] = 0
        return values

    def _angle(self, name: str, x0: int, x1: int, style: str, fill: float) -> np.ndarray:
        fsem = self.scratch.read("fsem", x0, x1)
        if style == "over180":
            return self.scratch.read(name, x0, x1) * fsem
        values = np.full(fsem.shape, fill, np.float32)
        chosen = fsem >= self.threshold
        fdip, fstrike = (self.scratch.read(n, x0, x1)[chosen] for n in ("fdip", "fstrike"))
        values[chosen] = self.frame.angles(fdip, fstrike)[0 if name == "fdip" else 1]
        return values

    def write(self, prefix: str, attributes: tuple[str, ...], formats: tuple[str, ...]) -> None:
        """Write the volumes in every format; all files of a format appear complete or not at all."""
        for kind in formats:
            fill = {"nan": np.nan, "zero": 0.0, "auto": np.nan if kind in ("npy", "h5") else 0.0}
            self._write_format(prefix, attributes, kind, fill[self.config.angle_fill])
        if "fsem" in self.scratch:
            self._count_faults(angles="fdip" in self.scratch)

    def units(self, attributes: tuple[str, ...], kind: str) -> dict[str, str]:
        """Return the units of the volumes in a format."""
        angle = "degrees" if self._style(kind) == "degrees" else "degrees/180, times probability"
        return {name: UNITS.get(name, angle) for name in attributes}

    def _style(self, kind: str) -> str:
        """Return how a format holds angles: raw as training files do, unless a flag says otherwise."""
        asked = self.config.angle_units
        return ("over180" if kind == "raw" else "degrees") if asked == "auto" else asked

    def _write_format(self, prefix: str, attributes: tuple[str, ...], kind: str, fill: float) -> None:
        units, style = self.units(attributes, kind), self._style(kind)
        writers = open_writers(prefix, units, kind, self.volume, model=self.model_name)
        n3 = self.volume.shape[2]
        try:
            for x0 in range(0, n3, self.step):
                x1 = min(x0 + self.step, n3)
                for name in attributes:
                    writers[name].write(x0, self.read(name, x0, x1, style, fill))
            for writer in writers.values():
                writer.close()
        except BaseException:
            for writer in writers.values():
                writer.abort()
            raise

    def _count_faults(self, *, angles: bool) -> None:
        count, rose = 0, np.zeros(NUM_ROSE_BINS, np.int64)
        for x in range(self.volume.shape[2]):
            fault = self.read("fsem", x, x + 1) >= self.threshold
            count += int(fault.sum())
            if angles and fault.any():
                strike = self.read("fstrike", x, x + 1)[fault]
                rose += np.histogram(strike, bins=NUM_ROSE_BINS, range=(0, 180))[0]
        live = int((~self.volume.null).sum()) * self.volume.shape[0]
        self.fault_fraction = count / max(live, 1)
        self.rose = [int(n) for n in rose]
