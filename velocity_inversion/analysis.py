"""What a data set holds: shapes, statistics, faults, velocities, amplitude spectrum; the dataset card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import figures
from common.errors import DataError
from common.files import write_json
from common.log import get_logger
from velocity_inversion.arrays import open_array
from velocity_inversion.sources import Source

BINS = 30
SHOWN = 5


@dataclass
class _Amplitudes:
    """Sums over the values of all gathers."""

    total: float = 0.0
    square: float = 0.0
    count: int = 0
    low: float = np.inf
    high: float = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Count one sample in."""
        self.total += values.sum()
        self.square += (values**2).sum()
        self.count += values.size
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def summary(self) -> dict[str, float | None]:
        """Return range, mean and standard deviation."""
        mean = self.total / max(self.count, 1)
        spread = float(np.sqrt(max(self.square / max(self.count, 1) - mean**2, 0.0)))
        low, high = (self.low, self.high) if self.count else (None, None)
        return {"min": low, "max": high, "mean": mean, "std": spread}


def analyze(source: Source, out: Path) -> dict[str, Any]:
    """Look at every sample; write analysis.json and a figure, print a summary, return all of it.

    Samples that cannot be read are listed with their message instead of ending the analysis.
    """
    survey = source.survey
    amplitudes, bad_values = _Amplitudes(), 0
    spectrum = np.zeros(survey.num_samples // 2 + 1)
    histogram, edges = np.zeros(BINS, dtype=np.int64), np.linspace(*survey.v_bounds_km_s, BINS + 1)
    problems: list[str] = []
    for row in range(len(source)):
        try:
            gathers, _ = source.read_gathers(row)
            if source.has_truth:
                histogram += np.histogram(source.velocity(row), edges)[0]
        except DataError as error:
            problems.append(str(error))
            continue
        values = gathers.astype(np.float64)
        amplitudes.add(values)
        spectrum += np.abs(np.fft.rfft(values, axis=1)).mean((0, 2))
    for path in source.gather_files():
        array = open_array(path, 4 if survey.layout == "openfwi" else 2)
        bad_values += sum(int((~np.isfinite(part)).sum()) for part in array)
    frequency = np.fft.rfftfreq(survey.num_samples, survey.dt_s)
    found: dict[str, Any] = {
        "samples": len(source),
        "layout": survey.layout,
        "shots": survey.num_shots,
        "receivers": survey.num_receivers,
        "time_samples": survey.num_samples,
        "dt_s": survey.dt_s,
        "dtypes": sorted({str(open_array(p, _axes(source)).dtype) for p in source.gather_files()}),
        "has_truth": source.has_truth,
        "families": {name: source.families.count(name) for name in sorted(set(source.families))},
        "gathers": {**amplitudes.summary(), "nan_or_infinite": bad_values},
        "peak_of_spectrum_hz": float(frequency[spectrum.argmax()]),
        "velocity_histogram": {"edges_km_s": edges.tolist(), "cells": histogram.tolist()},
        "problems": problems,
    }
    write_json(out / "analysis.json", found)
    _draw(out / "figures/analysis.png", frequency, spectrum / max(len(source), 1), edges, histogram, found)
    shown = {k: v for k, v in found.items() if k not in ("velocity_histogram", "problems")}
    get_logger().info("\n".join(f"{name}: {value}" for name, value in shown.items()))
    for problem in problems[:SHOWN]:
        get_logger().warning(problem)
    return found


def _axes(source: Source) -> int:
    return 4 if source.survey.layout == "openfwi" else 2


def _draw(
    path: Path,
    frequency: np.ndarray,
    spectrum: np.ndarray,
    edges: np.ndarray,
    histogram: np.ndarray,
    found: dict[str, Any],
) -> None:
    """Draw the mean amplitude spectrum and, with truth, the histogram of velocities."""
    figure, axes = figures.new_figure(1, 2 if found["has_truth"] else 1, panel=(4.2, 3.0))
    inside = frequency <= min(frequency[-1], 6 * max(found["peak_of_spectrum_hz"], 1.0))
    axes[0, 0].plot(frequency[inside], spectrum[inside])
    axes[0, 0].set(xlabel="frequency (Hz)", ylabel="mean amplitude", ylim=(0, None), title="gathers")
    if found["has_truth"]:
        axes[0, 1].stairs(histogram / max(histogram.sum(), 1), edges, fill=True)
        axes[0, 1].set(xlabel="velocity (km/s)", ylabel="share of cells", title="sections")
    figures.save(figure, path)
