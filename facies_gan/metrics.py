"""The measures of facies realisations: one import for all, their table, and the reference's own band.

Grids are labels [H, W] of C facies. The single measures live in `metrics_spatial`, `metrics_patterns` and
`metrics_wells`; each is a short function with its formula.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facies_gan.metrics_patterns import (
    PATCH,
    STRIDES,
    Anodi,
    CopyCheck,
    Histogram,
    anodi,
    best_match,
    classical_mds,
    copy_check,
    js_divergence,
    mph_divergence,
    mph_histogram,
    pattern_distances,
    reference_crops,
)
from facies_gan.metrics_spatial import (
    Grids,
    as_grids,
    bodies,
    compared_facies,
    connectivity,
    connectivity_error,
    curve_error,
    euler_number,
    gamma_connectivity,
    indicator_variogram,
    largest_body,
    longest_lag,
    number_of_bodies,
    proportion_error,
    proportions,
    small_bodies,
    transiogram,
    transiogram_error,
    variogram_error,
    vertical_proportion_error,
    vertical_proportions,
)
from facies_gan.metrics_wells import (
    DISTANCES,
    Calibration,
    HardDataMatch,
    calibration,
    change_probability,
    distance_to_data,
    entropy_by_distance,
    entropy_map,
    entropy_of_nearest,
    hard_data_match,
    isolated_cells,
    isolated_share,
    mean_hamming,
    probability_map,
    seam_ratio,
)

__all__ = [
    "Anodi",
    "Calibration",
    "CopyCheck",
    "DISTANCES",
    "Grids",
    "HardDataMatch",
    "Histogram",
    "PATCH",
    "STRIDES",
    "anodi",
    "as_grids",
    "best_match",
    "bodies",
    "calibration",
    "change_probability",
    "classical_mds",
    "compare",
    "compared_facies",
    "connectivity",
    "connectivity_error",
    "copy_check",
    "curve_error",
    "distance_to_data",
    "entropy_by_distance",
    "entropy_of_nearest",
    "entropy_map",
    "euler_number",
    "gamma_connectivity",
    "hard_data_match",
    "indicator_variogram",
    "isolated_cells",
    "isolated_share",
    "js_divergence",
    "largest_body",
    "longest_lag",
    "mean_hamming",
    "mph_divergence",
    "mph_histogram",
    "number_of_bodies",
    "pattern_distances",
    "probability_map",
    "proportion_error",
    "proportions",
    "reference_crops",
    "seam_ratio",
    "small_bodies",
    "split_half",
    "transiogram",
    "transiogram_error",
    "variogram_error",
    "vertical_proportion_error",
    "vertical_proportions",
]

MPH_SIZES = (2, 3, 4)


def compare(
    realisations: Grids,
    reference: Grids,
    num_classes: int,
    *,
    max_lag: int = 60,
    shares: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the errors of realisations against a reference, and what describes the realisations alone.

    Errors (lower is better): proportion, vertical_proportion, variogram (over the sill), connectivity,
    transiogram (more than two facies), mph2, mph3, mph4 and each with _stride2 and _stride4 (Jensen-Shannon
    divergence, bits).
    Description: gamma, bodies and euler of the compared facies, mean over realisations.

    Args:
        realisations: one grid or several.
        reference: the training image, or the sections.
        num_classes: C.
        max_lag: of the curves, shortened to half the shortest side.
        shares: proportions that give the sill; None = those of the reference.
    """
    grids, truth = as_grids(realisations), as_grids(reference)
    lag = longest_lag([*grids, *truth], max_lag)
    scores = {
        "proportion": proportion_error(grids, truth, num_classes),
        "vertical_proportion": vertical_proportion_error(grids, truth, num_classes),
        "variogram": variogram_error(grids, truth, num_classes, lag, shares),
        "connectivity": connectivity_error(grids, truth, num_classes, lag),
    }
    if num_classes > 2:
        scores["transiogram"] = transiogram_error(grids, truth, num_classes, lag)
    for stride in STRIDES:
        for size in MPH_SIZES:
            scores[mph_name(size, stride)] = mph_divergence(grids, truth, size, num_classes, stride)
    return scores | describe(grids, compared_facies(truth, num_classes))


def mph_name(size: int, stride: int) -> str:
    """Return the name of the divergence of `size` x `size` patterns, their cells `stride` apart."""
    return f"mph{size}" + (f"_stride{stride}" if stride > 1 else "")


def describe(grids: Grids, facies: list[int]) -> dict[str, float]:
    """Return gamma, bodies and euler, the mean over grids and facies."""
    measures: dict[str, Callable[[np.ndarray, int], float]] = {
        "gamma": gamma_connectivity,
        "bodies": number_of_bodies,
        "euler": euler_number,
    }
    pairs = [(grid, c) for grid in as_grids(grids) for c in facies]
    return {name: float(np.mean([f(g, c) for g, c in pairs])) for name, f in measures.items()}


def halves(reference: Grids) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Return the splits of a reference: top and bottom, left and right; of several, even and odd ones."""
    grids = as_grids(reference)
    if len(grids) > 1:
        return [(grids[0::2], grids[1::2])]
    pairs = [np.array_split(grids[0], 2, axis=axis) for axis in (0, 1)]
    return [([a], [b]) for a, b in pairs]


def split_half(reference: Grids, num_classes: int, *, max_lag: int = 60) -> dict[str, float]:
    """Return the errors of one half of the reference against its other half: what its own size cannot tell.

    Both splits of a single image are measured and the larger value is taken. A value over this band of at
    most 1
    is matched, of at most 2 close.
    """
    shares = proportions(reference, num_classes)
    found: dict[str, float] = {}
    for a, b in halves(reference):
        scores = compare(a, b, num_classes, max_lag=max_lag, shares=shares)
        for name in set(scores) - {"gamma", "bodies", "euler"}:
            found[name] = float(np.fmax(found.get(name, np.nan), scores[name]))
    return found
