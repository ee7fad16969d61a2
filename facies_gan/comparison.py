"""The scores of a method beside the reference: a flat table of measures, and what a report calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.noise import numpy_stream
from facies_gan import metrics as M
from facies_gan.evaluate_data import Case
from facies_gan.evaluate_sets import Group, MethodSet

PUBLISHED = "snesim, published"
MATCHED, CLOSE = 1.0, 2.0  # value over the reference's own band


@dataclass(frozen=True)
class Measure:
    """What a figure is called, its unit, and which way is better ("" = it only describes)."""

    name: str
    unit: str = "-"
    better: str = "lower"


MEASURES: dict[str, Measure] = {
    "hard_match": Measure("hard data honoured", "share", "higher"),
    "hard_match_before": Measure("hard data right before injection", "share", "higher"),
    "proportion": Measure("proportion error"),
    "vertical_proportion": Measure("vertical proportion error"),
    "variogram": Measure("variogram MAE / sill"),
    "connectivity": Measure("connectivity MAE"),
    "transiogram": Measure("transiogram MAE"),
    **{
        M.mph_name(k, s): Measure(f"{k} x {k} patterns{f', stride {s}' if s > 1 else ''}, JSD", "bits")
        for s in M.STRIDES
        for k in M.MPH_SIZES
    },
    "gamma": Measure("Gamma connectivity", "-", ""),
    "bodies": Measure("bodies", "count", ""),
    "euler": Measure("Euler number", "-", ""),
    "seam_ratio": Measure("seam ratio at the data", "-", ""),
    "isolated": Measure("isolated data cells", "share"),
    "cell_accuracy": Measure("cells right in the most likely section", "share", "higher"),
    "entropy": Measure("mean entropy", "bits", ""),
    "hamming": Measure("cells that two realisations differ in", "share", ""),
    "anodi_between": Measure("pattern distance among realisations", "bits", ""),
    "anodi_within": Measure("pattern distance to the reference", "bits"),
    "anodi_ratio": Measure("ANODI ratio", "-", "higher"),
    "copy_median": Measure("best match of 32 x 32 patches, median", "share", ""),
    **{f"entropy_{d}": Measure(f"entropy {d} cells from data", "bits", "") for d in M.DISTANCES[1:]},
}


def score(method: MethodSet, case: Case, max_lag: int, seed: int) -> dict[str, float]:
    """Return {measure: value} of a method's realisations; measures that do not apply are left out."""
    classes = len(case.palette)
    grids = method.grids
    found = M.compare(grids, case.truths, classes, max_lag=max_lag)
    found |= well_scores(method.groups, case)
    found |= diversity(method.groups, case)
    copies = M.copy_check(grids, case.sources, numpy_stream(seed, "copied patches"))
    found |= {"copy_median": copies.median, "copy_band_median": copies.band_median}
    found |= {"copy_band_95": copies.band_95}
    if not case.is_single and all(group.truth is not None for group in method.groups):
        found["cell_accuracy"] = float(np.mean([likely_accuracy(g, classes) for g in method.groups]))
    return {name: value for name, value in found.items() if np.isfinite(value)}


def well_scores(groups: list[Group], case: Case) -> dict[str, float]:
    """Return how data are honoured and embedded: shares over all groups' data, entropy by distance."""
    groups = [group for group in groups if len(group.wells)]
    if not groups:
        return {}
    classes = len(case.palette)
    change = M.change_probability(case.truths, classes)
    match = [M.hard_data_match(g.grids, g.wells, classes).total for g in groups]
    weights = [len(g.wells) for g in groups]
    found = {
        "hard_match": float(np.average(match, weights=weights)),
        "isolated": float(np.average([M.isolated_share(g.grids, g.wells) for g in groups], weights=weights)),
        "seam_ratio": float(np.nanmean([M.seam_ratio(g.grids, g.wells, change) for g in groups])),
    }
    plain = [float((g.plain == g.wells.facies).mean()) for g in groups if g.plain is not None]
    if plain:
        found["hard_match_before"] = float(np.average(plain, weights=weights))
    if min(len(g.grids) for g in groups) > 1:
        curves = [M.entropy_by_distance(g.grids, g.wells, classes) for g in groups]
        found |= dict(zip((f"entropy_{d}" for d in M.DISTANCES), column_means(curves), strict=True))
    return found


def column_means(rows: list[np.ndarray]) -> list[float]:
    """Return the mean of each column over the rows that know it; NaN where none does."""
    table = np.array(rows)
    return [float(c[np.isfinite(c)].mean()) if np.isfinite(c).any() else np.nan for c in table.T]


def diversity(groups: list[Group], case: Case) -> dict[str, float]:
    """Return how much the realisations of one section differ: entropy, cells, patterns."""
    classes = len(case.palette)
    several = [group for group in groups if len(group.grids) > 1]
    if not several:
        return {}
    entropy = [M.entropy_map(M.probability_map(g.grids, classes)).mean() for g in several]
    parts = [M.anodi(g.grids, case.truths[0] if g.truth is None else g.truth, classes) for g in several]
    between, within = (float(np.mean([getattr(p, n) for p in parts])) for n in ("between", "within"))
    return {
        "entropy": float(np.mean(entropy)),
        "hamming": float(np.mean([M.mean_hamming(g.grids, classes) for g in several])),
        "anodi_between": between,
        "anodi_within": within,
        "anodi_ratio": between / within if within > 0 else np.nan,
    }


def likely_accuracy(group: Group, num_classes: int) -> float:
    """Return the share of cells in which the most likely facies is the section's."""
    likely = M.probability_map(group.grids, num_classes).argmax(axis=0)
    return float((likely == group.truth).mean())


def row_guess_accuracy(case: Case) -> float:
    """Return the share of cells right when each row has its most frequent facies: knowing depth alone."""
    if len({truth.shape[0] for truth in case.truths}) > 1:
        return np.nan
    guess = M.vertical_proportions(case.truths, len(case.palette)).argmax(axis=0)
    return float(np.mean([(truth == guess[:, None]).mean() for truth in case.truths]))


def facies_table(sets: dict[str, MethodSet], case: Case) -> list[dict[str, Any]]:
    """Return a row for each facies: its share in the reference; mean, spread, error of each method."""
    classes = len(case.palette)
    expected = M.proportions(case.truths, classes)
    rows = []
    for c, name in enumerate(case.palette.names):
        row: dict[str, Any] = {"facies": name, "reference": float(expected[c])}
        for method, made in sets.items():
            shares = [float((grid == c).mean()) for grid in made.grids]
            if shares:
                mean = float(np.mean(shares))
                error = abs(mean - float(expected[c]))
                row[method] = {"mean": mean, "sd": float(np.std(shares)), "error": error}
        rows.append(row)
    return rows


def match_table(method: MethodSet, case: Case) -> list[dict[str, Any]]:
    """Return a row for each facies: its data, and before and after injection share right and IoU."""
    classes = len(case.palette)
    groups = [group for group in method.groups if len(group.wells)]
    if not groups:
        return []
    after = _match([(g.grids[:, g.wells.rows, g.wells.cols], g.wells.facies) for g in groups], classes)
    before = _match([(g.plain, g.wells.facies) for g in groups if g.plain is not None], classes)
    data = np.concatenate([g.wells.facies for g in groups])
    return [
        {"facies": name, "data": int((data == c).sum())}
        | {f"{when}_{what}": float(m[what][c]) for when, m in (("before", before), ("after", after)) if m
           for what in ("share", "iou")}
        for c, name in enumerate(case.palette.names)
    ]  # fmt: skip


def _match(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, np.ndarray]:
    """Return the share right and the IoU of each facies over pairs (found [N, n], facies [n])."""
    if not pairs:
        return {}
    found = np.concatenate([f.reshape(-1) for f, _ in pairs])
    truth = np.concatenate([np.broadcast_to(t, f.shape).reshape(-1) for f, t in pairs])
    hits, real, said = (np.bincount(v, minlength=classes) for v in (truth[found == truth], truth, found))
    return {
        "share": np.where(real > 0, hits / np.maximum(real, 1), np.nan),
        "iou": np.where(real + said > 0, hits / np.maximum(real + said - hits, 1), np.nan),
    }


def verdict(ratio: float | None) -> str:
    """Return what a value over the reference's own band means."""
    if ratio is None or not np.isfinite(ratio):
        return ""
    return "matched" if ratio <= MATCHED else "close" if ratio <= CLOSE else "off"
