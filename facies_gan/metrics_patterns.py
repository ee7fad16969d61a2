"""Patterns of facies grids: multiple-point histograms, distances between images, verbatim copies.

Grids are labels [H, W]. A template is k x k cells, `stride` cells apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from facies_gan.metrics_spatial import Grids, as_grids

STRIDES = (1, 2, 4)
PATCH = 32


class Histogram(NamedTuple):
    """Counts [n] of pattern codes [n], ascending; patterns that do not occur are left out."""

    codes: np.ndarray
    counts: np.ndarray


def pattern_codes(grid: np.ndarray, size: int, num_classes: int, stride: int = 1) -> np.ndarray:
    """Return the base-C code of every k x k pattern, uint64 [offsets]; empty when the grid is too small."""
    height, width = (n - (size - 1) * stride for n in grid.shape)
    if height < 1 or width < 1:
        return np.zeros(0, dtype=np.uint64)
    codes = np.zeros((height, width), dtype=np.uint64)
    labels = grid.astype(np.uint64)
    for row in range(size):
        for col in range(size):
            codes *= np.uint64(num_classes)
            codes += labels[row * stride : row * stride + height, col * stride : col * stride + width]
    return codes.reshape(-1)


def mph_histogram(grids: Grids, size: int, num_classes: int, stride: int = 1) -> Histogram:
    """Return the pooled multiple-point histogram of k x k patterns over all offsets of all grids.

    Raises:
        ValueError: the codes of this template do not fit 64 bits.
    """
    if num_classes ** (size * size) > 2**64:
        raise ValueError(f"{size} x {size} patterns of {num_classes} facies have no 64-bit code")
    parts = [pattern_codes(g, size, num_classes, stride) for g in as_grids(grids)]
    codes, counts = np.unique(np.concatenate(parts), return_counts=True)
    return Histogram(codes, counts)


def js_divergence(a: Histogram, b: Histogram) -> float:
    """Return the Jensen-Shannon divergence in bits, H((p + q) / 2) - (H(p) + H(q)) / 2, 0 to 1."""
    if not a.counts.sum() or not b.counts.sum():
        return np.nan
    codes = np.union1d(a.codes, b.codes)
    p, q = np.zeros(len(codes)), np.zeros(len(codes))
    p[np.searchsorted(codes, a.codes)] = a.counts / a.counts.sum()
    q[np.searchsorted(codes, b.codes)] = b.counts / b.counts.sum()
    return max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(p: np.ndarray) -> float:
    """Return -sum p log2 p in bits."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def mph_divergence(grids: Grids, reference: Grids, size: int, num_classes: int, stride: int = 1) -> float:
    """Return the Jensen-Shannon divergence in bits of the pooled pattern histograms."""
    return js_divergence(
        mph_histogram(grids, size, num_classes, stride), mph_histogram(reference, size, num_classes, stride)
    )


def pattern_distances(images: Sequence[np.ndarray], num_classes: int, size: int = 4) -> np.ndarray:
    """Return the symmetric matrix [n, n] of distances d = sum_g 2^-g JSD_g between images, g = 1, 2, 3.

    JSD_g is that of the k x k pattern histograms with stride 1, 2, 4 (Tan, Tahmasebi and Caers 2014). Strides
    that do not fit the smallest image are left out.
    """
    smallest = min(min(image.shape) for image in images)
    distances = np.zeros((len(images), len(images)))
    for g, stride in enumerate(STRIDES, start=1):
        if (size - 1) * stride >= smallest:
            continue
        histograms = [mph_histogram(image, size, num_classes, stride) for image in images]
        for i in range(len(images)):
            for j in range(i):
                distances[i, j] += js_divergence(histograms[i], histograms[j]) / 2**g
    return distances + distances.T


class Anodi(NamedTuple):
    """Analysis of distance: how far realisations lie from each other, and from the reference."""

    between: float
    within: float

    @property
    def ratio(self) -> float:
        """Diversity over infidelity; a method with the larger ratio is better."""
        return self.between / self.within if self.within > 0 else np.inf


def anodi(realisations: Grids, reference: np.ndarray, num_classes: int, size: int = 4) -> Anodi:
    """Return between = mean distance among realisations, within = mean distance to the reference."""
    images = [*as_grids(realisations), reference]
    distances = pattern_distances(images, num_classes, size)
    count = len(images) - 1
    among = distances[:count, :count][np.triu_indices(count, 1)]
    return Anodi(float(among.mean()) if among.size else 0.0, float(distances[count, :count].mean()))


def classical_mds(distances: np.ndarray, dimensions: int = 2) -> np.ndarray:
    """Return points [n, dimensions] whose Euclidean distances follow a matrix [n, n] (Torgerson 1952).

    B = -1/2 J D^2 J with J = 1 - 1/n; the points are the leading eigenvectors of B times the root of their
    eigenvalue. Signs are fixed so that equal input gives equal points.
    """
    n = len(distances)
    centre = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(-0.5 * centre @ (distances**2) @ centre)
    order = np.argsort(values)[::-1][:dimensions]
    points = vectors[:, order] * np.sqrt(np.clip(values[order], 0, None))
    signs = np.sign(points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])])
    points = points * np.where(signs == 0, 1, signs)
    return np.pad(points, ((0, 0), (0, dimensions - points.shape[1])))


def reference_crops(reference: np.ndarray, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Return up to `count` crops of a size, spread evenly over the reference, as its own spread in an MDS."""
    rows, cols = (max(0, n - m) for n, m in zip(reference.shape, size, strict=True))
    side = max(1, int(np.ceil(np.sqrt(count))))
    places = [
        (round(rows * i / max(1, side - 1)), round(cols * j / max(1, side - 1)))
        for i in range(side)
        for j in range(side)
    ]
    return [reference[r : r + size[0], c : c + size[1]] for r, c in dict.fromkeys(places)][:count]


class CopyCheck(NamedTuple):
    """Best matches of patches with the reference: ours, and the band that the reference itself shows."""

    median: float
    band_median: float
    band_95: float


def best_match(patches: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return each patch's largest share of equal cells over all offsets in the reference, [n]."""
    n, height, width = patches.shape
    box = reference.shape
    score = np.zeros((n, box[0] - height + 1, box[1] - width + 1))
    for facies in np.unique(patches):
        spectrum = np.fft.rfft2(reference == facies)
        parts = np.conj(np.fft.rfft2(patches == facies, s=box))
        score += np.fft.irfft2(spectrum * parts, s=box)[:, : score.shape[1], : score.shape[2]]
    return np.rint(score.reshape(n, -1).max(axis=1)) / (height * width)


def _patches(grid: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.integers(0, grid.shape[0] - size + 1, count)
    cols = rng.integers(0, grid.shape[1] - size + 1, count)
    return np.stack([grid[r : r + size, c : c + size] for r, c in zip(rows, cols, strict=True)])


def copy_check(
    realisations: Grids,
    reference: Grids,
    rng: np.random.Generator,
    *,
    patches: int = 64,
    size: int = PATCH,
) -> CopyCheck:
    """Return how verbatim realisations repeat the reference, beside parts of it found in its other parts.

    The parts are the two halves of a training image, or the sections of a set.

    Args:
        realisations: grids of at least `size` cells on both sides.
        reference: the training image, or several sections.
        rng: chooses the patches.
        patches: number in all, for each of the two.
        size: side of a patch; smaller for a reference whose part does not hold it.
    """
    grids, parts = as_grids(realisations), as_grids(reference)
    whole = parts
    if len(parts) == 1:
        long_axis = int(parts[0].shape[1] >= parts[0].shape[0])
        parts = np.array_split(parts[0], 2, axis=long_axis)
    size = min(size, *(min(g.shape) for g in [*parts, *grids]))
    each = -(-patches // len(grids))
    ours = np.concatenate([_best_of(_patches(g, each, size, rng), whole) for g in grids])
    each = -(-patches // len(parts))
    band = np.concatenate(
        [
            _best_of(_patches(part, each, size, rng), [p for j, p in enumerate(parts) if j != i])
            for i, part in enumerate(parts)
        ]
    )
    return CopyCheck(float(np.median(ours)), float(np.median(band)), float(np.percentile(band, 95)))


def _best_of(patches: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Return each patch's best match in any of several grids, [n]."""
    return np.max([best_match(patches, reference) for reference in references], axis=0)
