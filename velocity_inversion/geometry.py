"""Where shots and receivers stand: the survey, its geometry.json, and the two built-in acquisitions.

Letters: S shots, R receivers, T time samples, Z depth (downwards), X horizontal. x and z are metres from the
first cell's centre; velocities in files are m/s or km/s as the survey says, inside always km/s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.files import read_json

FORMAT = "strata-shots-1"
FILE_NAME = "geometry.json"
MOST = 1e6  # of a step, s, m or Hz: what lies above is damage
FASTEST_KM_S = 100.0
LAYOUTS = ("openfwi", "folders")
AXES = ("zx", "xz")
UNITS = ("m/s", "km/s")
BOUNDARIES = ("absorbing", "free_surface")


@dataclass(frozen=True)
class Wavelet:
    """A Ricker source signature.

    Attributes:
        peak_hz: frequency of the spectrum's peak.
        peak_s: time of the maximum.
        scale: factor on the amplitude; -1 turns the polarity.
        delay_samples: samples by which recorded traces are shifted later.
    """

    peak_hz: float = 15.0
    peak_s: float = 0.0735
    scale: float = -1.0
    delay_samples: int = 1
    kind: str = "ricker"


@dataclass(frozen=True)
class Survey:
    """An acquisition and the model grid that it stands on.

    Attributes:
        layout: "openfwi" (arrays of many samples) or "folders" (one folder a sample).
        dt_s: sample interval of the recorded traces.
        num_samples: T of the recorded traces.
        dx_m, dz_m: cell of the velocity model.
        model_shape_zx: (Z, X) cells.
        model_file_axes: order of the axes in velocity files.
        velocity_unit: unit in velocity files.
        v_bounds_km_s: (lowest, highest) velocity.
        boundary: what the top of the model is; the pressure of a free surface is zero one cell above the
            first row.
        source_files: file of each shot's gather ("folders" only).
        source_xz: [S][2] metres.
        receiver_xz: [S][R][2] metres.
        wavelet: source signature.
    """

    layout: str
    dt_s: float
    num_samples: int
    dx_m: float
    dz_m: float
    model_shape_zx: tuple[int, int]
    source_xz: tuple[tuple[float, float], ...]
    receiver_xz: tuple[tuple[tuple[float, float], ...], ...]
    model_file_axes: str = "zx"
    velocity_unit: str = "m/s"
    v_bounds_km_s: tuple[float, float] = (1.5, 4.5)
    boundary: str = "absorbing"
    source_files: tuple[str, ...] = ()
    wavelet: Wavelet = Wavelet()

    def __post_init__(self) -> None:
        """Check choices, signs, and that everything stands on the model.

        Raises:
            ValueError: naming the entry.
        """
        for name, value, allowed in (
            ("layout", self.layout, LAYOUTS),
            ("model_file_axes", self.model_file_axes, AXES),
            ("velocity_unit", self.velocity_unit, UNITS),
            ("boundary", self.boundary, BOUNDARIES),
            ("wavelet.kind", self.wavelet.kind, ("ricker",)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} {value!r}, expected one of {', '.join(allowed)}")
        steps = self.dt_s, self.dx_m, self.dz_m, self.wavelet.peak_hz
        if not all(0 < step < MOST for step in steps) or self.num_samples < 2:
            raise ValueError("dt_s, dx_m, dz_m, peak_hz and num_samples must be positive and finite")
        if not max(abs(self.wavelet.peak_s), abs(self.wavelet.scale), abs(self.wavelet.delay_samples)) < MOST:
            raise ValueError("wavelet: peak_s, scale and delay_samples must be finite")
        if not 0 < self.v_bounds_km_s[0] < self.v_bounds_km_s[1] < FASTEST_KM_S:
            raise ValueError(
                f"v_bounds_km_s {self.v_bounds_km_s}, expected 0 < lowest < highest < {FASTEST_KM_S:g}"
            )
        if not self.source_xz or len(self.receiver_xz) != len(self.source_xz):
            raise ValueError(
                f"{len(self.source_xz)} sources, receivers of {len(self.receiver_xz)} shots; expected as many"
            )
        if self.layout == "folders" and len(set(self.source_files)) != len(self.source_xz):
            raise ValueError(
                f"{len(set(self.source_files))} gather files for {len(self.source_xz)} sources; expected a "
                "file of its own for each"
            )
        self._require_on_the_model()

    def _require_on_the_model(self) -> None:
        deep, wide = (self.model_shape_zx[0] - 1) * self.dz_m, (self.model_shape_zx[1] - 1) * self.dx_m
        slack_x, slack_z = 2 * self.dx_m, 2 * self.dz_m
        for shot, (source, receivers) in enumerate(zip(self.source_xz, self.receiver_xz, strict=True)):
            for what, (x, z) in (("source", source), *(("receiver", place) for place in receivers)):
                if z < 0:
                    raise ValueError(
                        f"{what} of shot {shot} at z = {z:g} m, above the surface; z is downwards"
                    )
                if not (-slack_x <= x <= wide + slack_x and z <= deep + slack_z):
                    raise ValueError(
                        f"{what} of shot {shot} at x = {x:g} m, z = {z:g} m, more than 2 cells outside the "
                        f"model of {wide:g} x {deep:g} m"
                    )
            if len(set(receivers)) != len(receivers):
                raise ValueError(f"two receivers of shot {shot} stand on one spot")

    @property
    def num_shots(self) -> int:
        """S."""
        return len(self.source_xz)

    @property
    def num_receivers(self) -> int:
        """R, the largest number of receivers of a shot."""
        return max(len(places) for places in self.receiver_xz)

    @property
    def sources(self) -> np.ndarray:
        """[S, 2] float64, x and z in metres."""
        return np.array(self.source_xz, dtype=np.float64)

    @property
    def receivers(self) -> np.ndarray:
        """[S, R, 2] float64, metres; places that a shot lacks are NaN."""
        places = np.full((self.num_shots, self.num_receivers, 2), math.nan)
        for row, shot in zip(places, self.receiver_xz, strict=True):
            row[: len(shot)] = shot
        return places

    @property
    def x_max_m(self) -> float:
        """Place of the last model column; the flip maps x to x_max_m - x."""
        return (self.model_shape_zx[1] - 1) * self.dx_m

    def to_dict(self) -> dict[str, Any]:
        """Return what geometry.json holds."""
        same = all(places == self.receiver_xz[0] for places in self.receiver_xz)
        files = self.source_files or ("",) * self.num_shots
        return {
            "format": FORMAT,
            "layout": self.layout,
            "dt_s": self.dt_s,
            "num_samples": self.num_samples,
            "dx_m": self.dx_m,
            "dz_m": self.dz_m,
            "model_shape_zx": list(self.model_shape_zx),
            "model_file_axes": self.model_file_axes,
            "velocity_unit": self.velocity_unit,
            "v_bounds_km_s": list(self.v_bounds_km_s),
            "boundary": self.boundary,
            "sources": [
                {"x_m": x, "z_m": z} | ({"file": file} if file else {})
                for file, (x, z) in zip(files, self.source_xz, strict=True)
            ],
            "receivers": _listed(self.receiver_xz[0]) if same else [_listed(p) for p in self.receiver_xz],
            "wavelet": {
                "kind": self.wavelet.kind,
                "peak_hz": self.wavelet.peak_hz,
                "peak_s": self.wavelet.peak_s,
                "scale": self.wavelet.scale,
                "delay_samples": self.wavelet.delay_samples,
            },
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Survey:
        """Build a survey from what geometry.json holds.

        Raises:
            ValueError: an entry is missing or wrong.
        """
        if document.get("format") != FORMAT:
            raise ValueError(f"format {document.get('format')!r}, expected {FORMAT!r}")
        try:
            sources = document["sources"]
            places = document["receivers"]
            each = [places] * len(sources) if isinstance(places, Mapping) else list(places)
            return cls(
                layout=str(document["layout"]),
                dt_s=float(document["dt_s"]),
                num_samples=int(document["num_samples"]),
                dx_m=float(document["dx_m"]),
                dz_m=float(document["dz_m"]),
                model_shape_zx=_pair(document["model_shape_zx"], int),
                model_file_axes=str(document["model_file_axes"]),
                velocity_unit=str(document["velocity_unit"]),
                v_bounds_km_s=_pair(document["v_bounds_km_s"], float),
                boundary=str(document.get("boundary", "absorbing")),
                source_xz=tuple((float(s["x_m"]), float(s["z_m"])) for s in sources),
                source_files=tuple(str(s["file"]) for s in sources if "file" in s),
                receiver_xz=tuple(_places(p) for p in each),
                wavelet=Wavelet(**document.get("wavelet", {})),
            )
        except KeyError as error:
            raise ValueError(f"no entry {error}") from error
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"an entry of a wrong kind ({error})") from error


def read_survey(path: str | Path) -> Survey:
    """Read a geometry.json.

    Raises:
        DataError: it is no such file, or an entry is missing or wrong.
    """
    path = Path(path)
    try:
        document = read_json(path, f"expected a geometry file of format {FORMAT}")
        if not isinstance(document, Mapping):
            raise ValueError("no JSON object")
        return Survey.from_dict(document)
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected a geometry file of format {FORMAT}") from error


def openfwi_survey(num_shots: int = 5, num_receivers: int = 70) -> Survey:
    """Return the acquisition of OpenFWI's 70 x 70 families (Deng et al. 2022): 10 m cells, 1 ms, 15 Hz.

    Shots and receivers are spread evenly over the columns 0..69, all at 10 m depth.
    """
    wide = 69 * 10.0
    shots = np.round(np.linspace(0, 69, num_shots)) * 10.0 if num_shots > 1 else np.array([340.0])
    spread = np.linspace(0, wide, num_receivers)
    receivers = tuple((float(x), 10.0) for x in spread)
    return Survey(
        layout="openfwi",
        dt_s=1e-3,
        num_samples=1000,
        dx_m=10.0,
        dz_m=10.0,
        model_shape_zx=(70, 70),
        source_xz=tuple((float(x), 10.0) for x in shots),
        receiver_xz=(receivers,) * num_shots,
    )


def challenge_survey(num_shots: int = 5, num_receivers: int = 31) -> Survey:
    """Return the acquisition of the Speed and Structure challenge: 1 m cells, 0.1 ms, 300 x 1259 m.

    The last receiver stands one cell outside the model, at x = 300 m.
    """
    indices = np.array([1, 75, 150, 225, 300]) if num_shots == 5 else np.linspace(1, 300, num_shots).round()
    receivers = tuple((float(x), 10.0) for x in np.linspace(0, 300, num_receivers))
    return Survey(
        layout="folders",
        dt_s=1e-4,
        num_samples=10001,
        dx_m=1.0,
        dz_m=1.0,
        model_shape_zx=(1259, 300),
        model_file_axes="xz",
        velocity_unit="km/s",
        source_xz=tuple((float(i) - 1, 20.0) for i in indices),
        source_files=tuple(f"receiver_data_src_{int(i)}.npy" for i in indices),
        receiver_xz=(receivers,) * num_shots,
        wavelet=Wavelet(peak_s=1 / 15, scale=1.0, delay_samples=0),
    )


def with_peak(survey: Survey, peak_hz: float, record_s: float) -> Survey:
    """Return the survey with another peak frequency (same number of periods of delay) and record length."""
    wavelet = survey.wavelet
    peak_s = wavelet.peak_s * wavelet.peak_hz / peak_hz
    count = round(record_s / survey.dt_s) + (1 if survey.layout == "folders" else 0)
    return replace(survey, wavelet=replace(wavelet, peak_hz=peak_hz, peak_s=peak_s), num_samples=count)


def _listed(places: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    return {"x_m": [x for x, _ in places], "z_m": [z for _, z in places]}


def _places(entry: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    x, z = entry["x_m"], entry["z_m"]
    if len(x) != len(z):
        raise ValueError(f"receivers with {len(x)} x_m and {len(z)} z_m")
    return tuple((float(a), float(b)) for a, b in zip(x, z, strict=True))


def _pair(values: Sequence[Any], kind: Any) -> tuple[Any, Any]:
    first, second = values
    return kind(first), kind(second)
