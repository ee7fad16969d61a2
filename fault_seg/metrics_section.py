"""ODS and OIS: the best tolerant F1 over inline sections, with one threshold for all or one for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fault_seg.metrics_fault import Array, Counts, ball_maximum, f1_from_counts

SECTION_THRESHOLDS = np.linspace(0.01, 0.99, 99)


def section_counts(
    probability: Array, labels: Array, thresholds: Array = SECTION_THRESHOLDS, radius: float = 2
) -> Counts:
    """Return the four tolerant counts, each [sections, thresholds], of all inline sections of a cube.

    A section is the plane [n1, n2] of one inline; hits are looked for inside the section only (13 offsets at
    radius 2). The counts are (hits among predicted, predicted, hits among true, true).
    """
    known, true = labels >= 0, labels > 0.5
    p = np.where(known, probability, -np.inf)
    near_true = ball_maximum(true, radius, axes=(0, 1)) & known
    best_near = ball_maximum(p, radius, axes=(0, 1))
    num_sections = labels.shape[2]
    return (
        _count_by_section(p, near_true, thresholds),
        _count_by_section(p, known, thresholds),
        _count_by_section(best_near, true, thresholds),
        np.repeat(true.sum(axis=(0, 1))[:, None], len(thresholds), axis=1).reshape(num_sections, -1),
    )


def _count_by_section(values: Array, mask: NDArray[np.bool_], thresholds: Array) -> NDArray[np.int64]:
    """Return [sections, thresholds]: how many masked values of a section reach each threshold."""
    num_sections, num_bins = values.shape[2], len(thresholds) + 1
    section = np.nonzero(mask)[2]
    passed = np.searchsorted(thresholds, values[mask], side="right")
    histogram = np.bincount(section * num_bins + passed, minlength=num_sections * num_bins)
    histogram = histogram.reshape(num_sections, num_bins)
    return histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]


def ods_ois(
    probabilities: Sequence[Array],
    labels: Sequence[Array],
    thresholds: Array = SECTION_THRESHOLDS,
    radius: float = 2,
) -> dict[str, float]:
    """Return ODS, its threshold, and OIS over the inline sections of all cubes.

    ODS (optimal data-set scale) is the best F1 of the counts summed over every section, at one threshold; so
    false alarms in sections without faults count. OIS (optimal image scale) is the mean of the best F1 of
    each section that holds a fault; NaN when none does (Arbelaez et al. 2011).
    """
    parts = [section_counts(p, y, thresholds, radius) for p, y in zip(probabilities, labels, strict=True)]
    counts = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    pooled = f1_from_counts(tuple(c.sum(axis=0) for c in counts))
    with_fault = counts[3][:, 0] > 0
    best = f1_from_counts(tuple(c[with_fault] for c in counts)).max(axis=1)
    return {
        "ods": float(pooled.max()),
        "ods_threshold": float(thresholds[int(pooled.argmax())]),
        "ois": float(best.mean()) if best.size else float("nan"),
    }
