"""How realisations honour data and how they blend around them; calibration at cells that were held out.

Realisations are labels [N, H, W], p(c, x) is the share of them with facies c at cell x, float64 [C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from facies_gan.metrics_spatial import Grids, as_grids
from facies_gan.wells import WellSet

DISTANCES = (0, 1, 2, 4, 6, 10, 20)


class HardDataMatch(NamedTuple):
    """Share of data that are right.

    Attributes:
        total: over all data; NaN without any.
        by_facies: [C], NaN for a facies without data.
        iou: [C], cells right over cells that are, or are said to be, of the facies, on data cells.
    """

    total: float
    by_facies: np.ndarray
    iou: np.ndarray


def hard_data_match(realisations: Grids, wells: WellSet, num_classes: int) -> HardDataMatch:
    """Return the share of data cells right, per facies and in total, over all realisations."""
    grids = as_grids(realisations)
    found = np.stack([g[wells.rows, wells.cols] for g in grids])
    truth = np.broadcast_to(wells.facies, found.shape)
    if not found.size:
        nothing = np.full(num_classes, np.nan)
        return HardDataMatch(np.nan, nothing, nothing.copy())
    hits = np.array([np.count_nonzero((found == c) & (truth == c)) for c in range(num_classes)])
    real = np.array([np.count_nonzero(truth == c) for c in range(num_classes)])
    said = np.array([np.count_nonzero(found == c) for c in range(num_classes)])
    return HardDataMatch(float(np.mean(found == truth)), _ratio(hits, real), _ratio(hits, real + said - hits))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.where(bottom > 0, top / np.maximum(bottom, 1), np.nan)


def change_probability(reference: Grids, num_classes: int) -> np.ndarray:
    """Return P(neighbour != c | cell = c) over the 4 neighbours of all cells of the reference, [C]."""
    changes, total = np.zeros(num_classes), np.zeros(num_classes)
    for grid in as_grids(reference):
        for a, b in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])):
            for one, other in ((a, b), (b, a)):
                total += np.bincount(one.reshape(-1), minlength=num_classes)
                changes += np.bincount(one[one != other], minlength=num_classes)
    return np.where(total > 0, changes / np.maximum(total, 1), np.nan)


def _faces(mask: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (facies of the datum, facies beside it) at every face between data and other cells."""
    inner, outer = [], []
    views = [(slice(None, -1), slice(None)), (slice(1, None), slice(None))]
    views += [(slice(None), slice(None, -1)), (slice(None), slice(1, None))]
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        at = mask[views[one]] & ~mask[views[other]]
        inner.append(grid[views[one]][at])
        outer.append(grid[views[other]][at])
    return np.concatenate(inner), np.concatenate(outer)


def seam_ratio(realisations: Grids, wells: WellSet, probability: np.ndarray) -> float:
    """Return facies changes across faces between data and other cells over the number expected.

    Expected is the sum over these faces of P(neighbour != c | cell = c), c the facies of the data cell. Above
    the reference's own ratio at the same cells is a seam, below it the data are embedded too well.

    Args:
        realisations: grids [H, W].
        wells: the data.
        probability: [C] of the reference, `change_probability`.
    """
    changed, expected = 0, 0.0
    for grid in as_grids(realisations):
        inner, outer = _faces(wells.mask((grid.shape[0], grid.shape[1])), grid)
        changed += int(np.count_nonzero(inner != outer))
        expected += float(probability[inner].sum())
    return changed / expected if expected > 0 else np.nan


def isolated_share(realisations: Grids, wells: WellSet) -> float:
    """Return the share of data cells that differ from all of their 4 neighbours."""
    alone = [isolated_cells(grid)[wells.rows, wells.cols] for grid in as_grids(realisations)]
    return float(np.mean(alone)) if len(wells) else np.nan


def isolated_cells(grid: np.ndarray) -> np.ndarray:
    """Return bool [H, W]: cells that differ from all of their 4 neighbours."""
    alone = np.ones(grid.shape, dtype=bool)
    down, right = grid[:-1] == grid[1:], grid[:, :-1] == grid[:, 1:]
    alone[:-1] &= ~down
    alone[1:] &= ~down
    alone[:, :-1] &= ~right
    alone[:, 1:] &= ~right
    return alone


def probability_map(realisations: Grids, num_classes: int) -> np.ndarray:
    """Return p(c, x), float64 [C, H, W]."""
    grids = as_grids(realisations)
    total = np.zeros((num_classes, *grids[0].shape))
    for grid in grids:
        for c in range(num_classes):
            total[c] += grid == c
    return total / len(grids)


def entropy_map(probability: np.ndarray) -> np.ndarray:
    """Return -sum_c p log2 p in bits, [H, W], of p [C, H, W]."""
    safe = np.where(probability > 0, probability, 1.0)
    return -(probability * np.log2(safe)).sum(axis=0)


def entropy_by_distance(
    realisations: Grids, wells: WellSet, num_classes: int, distances: Sequence[int] = DISTANCES
) -> np.ndarray:
    """Return the mean entropy, bits, of cells at Chebyshev distances to the nearest datum; NaN for none."""
    entropy = entropy_map(probability_map(realisations, num_classes))
    far = distance_to_data(wells, (entropy.shape[0], entropy.shape[1]))
    return np.array([entropy[far == d].mean() if (far == d).any() else np.nan for d in distances])


def entropy_of_nearest(
    references: Sequence[np.ndarray], wells: WellSet, num_classes: int, distances: Sequence[int] = DISTANCES
) -> np.ndarray:
    """Return what the references leave open of cells of which only the nearest datum is known, in bits.

    p(c | f, v) = P(I(x + v) = c | I(x) = f) over all x of the references, for the datum's facies f and the
    offset v from it; its entropy is averaged over the cells at each Chebyshev distance, NaN for none. More
    data and longer patterns leave less open, so realisations near a lone datum belong a little below it.

    Args:
        references: labels [H, W] each; the first one's grid holds the data.
        wells: data with their facies.
        num_classes: C.
        distances: cells.
    """
    shape = references[0].shape
    mask = ~wells.mask(shape)
    nearest = np.asarray(
        ndimage.distance_transform_cdt(mask, "chessboard", return_distances=False, return_indices=True)
    )
    far = distance_to_data(wells, shape)
    facies = np.zeros(shape, dtype=np.int64)
    facies[wells.rows, wells.cols] = wells.facies
    found = []
    for distance in distances:
        rows, cols = np.nonzero(far == distance)
        from_row, from_col = nearest[0][rows, cols], nearest[1][rows, cols]
        cases = np.stack([facies[from_row, from_col], rows - from_row, cols - from_col])
        kinds, counts = np.unique(cases, axis=1, return_counts=True)
        entropies = [_entropy_at(references, int(f), (int(v), int(h)), num_classes) for f, v, h in kinds.T]
        known = np.isfinite(entropies)
        usable = counts[known].sum() if len(entropies) else 0
        found.append(np.dot(np.array(entropies)[known], counts[known]) / usable if usable else np.nan)
    return np.array(found)


def _entropy_at(grids: Sequence[np.ndarray], facies: int, offset: tuple[int, int], classes: int) -> float:
    """Return the entropy of a cell's facies at an offset from cells of a facies; NaN where none has both."""
    counts = np.zeros(classes)
    for grid in grids:
        here, there = (
            tuple(slice(max(0, s * v), n + min(0, s * v)) for v, n in zip(offset, grid.shape, strict=True))
            for s in (-1, 1)
        )
        counts += np.bincount(grid[there][grid[here] == facies], minlength=classes)[:classes]
    if not counts.sum():
        return np.nan
    return float(entropy_map((counts / counts.sum())[:, None])[0])


def distance_to_data(wells: WellSet, shape: tuple[int, int]) -> np.ndarray:
    """Return the Chebyshev distance in cells to the nearest datum, int [H, W]; -1 everywhere without data."""
    return np.asarray(ndimage.distance_transform_cdt(~wells.mask(shape), metric="chessboard"))


def mean_hamming(realisations: Grids, num_classes: int) -> float:
    """Return the mean share of cells in which two realisations differ: N / (N - 1) mean_x (1 - sum_c p^2)."""
    count = len(as_grids(realisations))
    if count < 2:
        return np.nan
    p = probability_map(realisations, num_classes)
    return float((1 - (p**2).sum(axis=0)).mean() * count / (count - 1))


class Calibration(NamedTuple):
    """Reliability of predicted probabilities at held-out cells.

    Attributes:
        ece: expected calibration error, mean |predicted - observed| over the bins weighted by their size.
        log_score: mean -log2 p(true facies) in bits, lower is better.
        baseline_log_score: the same when the global proportions are predicted everywhere.
        predicted: mean probability of each bin; NaN where it is empty.
        observed: frequency of each bin.
    """

    ece: float
    log_score: float
    baseline_log_score: float
    predicted: np.ndarray
    observed: np.ndarray


def calibration(
    realisations: Grids, held_out: WellSet, proportions: np.ndarray, num_bins: int = 10
) -> Calibration:
    """Return how predicted probabilities at held-out data agree with the facies found there.

    Every (cell, facies) pair is a forecast. A facies that no realisation shows gets half a count in the log
    score,
    so that one surprise is not infinitely bad.

    Args:
        realisations: N grids, conditioned on the other wells.
        held_out: data that conditioning did not see.
        proportions: [C], the baseline's forecast.
        num_bins: of equal width in probability.
    """
    count, classes = len(as_grids(realisations)), len(proportions)
    p = probability_map(realisations, classes)[:, held_out.rows, held_out.cols]
    truth = np.arange(classes)[:, None] == held_out.facies[None]
    edges = np.minimum((p * num_bins).astype(int), num_bins - 1).reshape(-1)
    sizes = np.bincount(edges, minlength=num_bins)
    predicted = _ratio(np.bincount(edges, p.reshape(-1), num_bins), sizes)
    observed = _ratio(np.bincount(edges, truth.reshape(-1).astype(float), num_bins), sizes)
    gaps = np.nan_to_num(np.abs(predicted - observed))
    smooth = (p * count + 0.5) / (count + 0.5 * classes)
    baseline = np.broadcast_to(np.maximum(proportions, 1e-12)[:, None], p.shape)
    return Calibration(
        float((gaps * sizes).sum() / max(1, sizes.sum())),
        float(-np.log2(smooth[truth]).mean()) if truth.any() else np.nan,
        float(-np.log2(baseline[truth]).mean()) if truth.any() else np.nan,
        predicted,
        observed,
    )
