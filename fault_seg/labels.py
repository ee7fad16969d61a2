"""Sparse fault labels of a survey: volumes of -1, 0, 1 or fault sticks, and training crops around them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import DataError, UserError
from common.log import get_logger
from common.noise import numpy_stream
from common.sampling import Draw
from fault_seg import survey
from fault_seg.augment import augment, crop, disturb
from fault_seg.slabs import Volume
from fault_seg.survey_geometry import geometry_of
from fault_seg.volumes import check_finite, open_volume, require_live

COLUMNS = ("inline", "crossline", "sample_ms", "fault_id", "stick_id")
HALF_WIDTH = 1.0  # voxels; sticks become 2 voxels wide
CLIP_STD = 5.0
Shape = tuple[int, int, int]


def open_labelled(
    image: str, labels: str, inlines: Sequence[int], shape: Shape, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised image and its labels, both [n1, n2, n3].

    Args:
        image: survey in any format.
        labels: volume of -1 (unlabelled), 0, 1 of the same size, or CSV of fault sticks.
        inlines: numbers of the inlines that are labelled throughout; there what is no fault is 0, elsewhere
            everything is -1. Without them a volume counts as it is, and sticks label the inlines they are on.
        shape: (n1, n2, n3) of raw volumes.
        seed: of the normalisation's sample.

    Raises:
        UserError: an inline is not in the survey, or nothing is labelled.
        DataError: a file cannot be used, or the two do not fit each other.
    """
    with open_volume(image, shape) as volume:
        check_finite(volume)
        require_live(volume)
        rule = survey.survey_rule(volume, seed)
        known = read_labels(labels, volume, inlines, shape)
        values = np.empty(volume.shape, np.float32)
        for x0, slab in volume.slabs():
            values[:, :, x0 : x0 + slab.shape[2]] = rule.apply(slab)
        values[:, volume.null] = 0
        known[:, volume.null] = -1
    if not (known >= 0).any():
        raise UserError(f"{labels}: no labelled voxel is left; name inlines with --labelled_inlines")
    return values, known


def read_labels(path: str, volume: Volume, inlines: Sequence[int], shape: Shape = (0, 0, 0)) -> np.ndarray:
    """Return labels int8 [n1, n2, n3] of -1, 0 and 1 for an open survey; arguments as `open_labelled`."""
    if Path(path).suffix.lower() == ".csv":
        labels = rasterised(read_sticks(path, volume), volume.shape)
        if not inlines:
            chosen = np.flatnonzero((labels == 1).any(axis=(0, 1)))
            get_logger().info(f"{path}: {len(chosen)} inlines with sticks count as labelled throughout")
            return _only_inlines(labels, chosen)
    else:
        labels = _read_volume(path, volume, shape)
    return _only_inlines(labels, _places(volume, inlines)) if inlines else labels


def _only_inlines(labels: np.ndarray, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return labels that are complete on the chosen inlines and unknown elsewhere."""
    result = np.full_like(labels, -1)
    result[:, :, chosen] = np.maximum(labels[:, :, chosen], 0)
    return result


def _places(volume: Volume, inlines: Sequence[int]) -> list[int]:
    numbers = geometry_of(volume).ilines
    missing = [i for i in inlines if i not in numbers]
    if missing:
        raise UserError(
            f"--labelled_inlines {missing[0]}: not in {volume.path}, expected {numbers[0]} to {numbers[-1]}"
        )
    return [int(np.flatnonzero(numbers == i)[0]) for i in inlines]


def _read_volume(path: str, volume: Volume, shape: Shape) -> np.ndarray:
    with open_volume(path, shape) as found:
        if found.shape != volume.shape:
            raise DataError(f"{path}: (n1, n2, n3) = {found.shape}, expected {volume.shape} as {volume.path}")
        labels = np.empty(found.shape, np.int8)
        for x0, slab in found.slabs():
            if not np.isin(slab, (-1, 0, 1)).all():
                x, y, z = np.argwhere(~np.isin(slab, (-1, 0, 1)).transpose(2, 1, 0))[0]
                raise DataError(
                    f"{path}: {slab[z, y, x]:g} at sample {z}, crossline {y}, inline {x0 + x} (from 0), "
                    "expected -1 (unlabelled), 0 or 1; mend the labels"
                )
            labels[:, :, x0 : x0 + slab.shape[2]] = slab
    return labels


def read_sticks(path: str | Path, volume: Volume) -> list[np.ndarray]:
    """Return fault sticks as polylines [points, 3] of voxel coordinates (z, y, x), in the file's order.

    Inline and crossline are the survey's numbers and sample_ms its time (or depth); a volume without headers
    counts from 0.

    Raises:
        DataError: a column is missing, a cell is no number, or a point lies outside the survey.
    """
    geometry = geometry_of(volume)
    sticks: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not set(COLUMNS) <= set(rows.fieldnames or ()):
                raise DataError(f"{path}: columns {rows.fieldnames}, expected {', '.join(COLUMNS)}")
            for row in rows:
                point = _voxel(path, rows.line_num, row, geometry, volume.shape)
                sticks.setdefault((row["fault_id"], row["stick_id"]), []).append(point)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); expected {', '.join(COLUMNS)}") from error
    if not sticks:
        raise DataError(f"{path}: no stick, expected rows of {', '.join(COLUMNS)}")
    return [np.array(points) for points in sticks.values()]


def _voxel(
    path: str | Path, line: int, row: dict[str, str], geometry: Any, shape: Shape
) -> tuple[float, float, float]:
    try:
        inline, crossline, time = (float(row[name]) for name in COLUMNS[:3])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: line {line}: {error}, expected numbers in {', '.join(COLUMNS)}") from error
    z = (time - geometry.sample_start) / geometry.sample_step
    y, x = (
        float(np.interp(number, numbers, np.arange(len(numbers)), left=np.nan, right=np.nan))
        for number, numbers in ((crossline, geometry.xlines), (inline, geometry.ilines))
    )
    if not (np.isfinite([z, y, x]).all() and -0.5 <= z <= shape[0] - 0.5):
        last = geometry.sample_start + geometry.sample_step * (shape[0] - 1)
        raise DataError(
            f"{path}: line {line}: inline {inline:g}, crossline {crossline:g}, {time:g} ms is outside the "
            f"survey, expected {geometry.ilines[0]}..{geometry.ilines[-1]}, "
            f"{geometry.xlines[0]}..{geometry.xlines[-1]}, {geometry.sample_start:g}..{last:g}"
        )
    return z, y, x


def rasterised(sticks: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """Return int8 [n1, n2, n3]: 1 within one voxel of a stick and in its own inlines, -1 elsewhere."""
    labels = np.full(shape, -1, np.int8)
    for points in sticks:
        pairs = zip(points[:-1], points[1:], strict=True) if len(points) > 1 else [(points[0], points[0])]
        for start, stop in pairs:
            low = np.maximum(np.floor(np.minimum(start, stop) - HALF_WIDTH), 0).astype(int)
            high = np.minimum(np.ceil(np.maximum(start, stop) + HALF_WIDTH) + 1, shape).astype(int)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            grid = np.stack(
                np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
            )
            along = stop - start
            share = np.tensordot(along, grid - start[:, None, None, None], axes=1)
            share = np.clip(share / max(float(along @ along), 1e-12), 0, 1)
            away = grid - (start[:, None, None, None] + along[:, None, None, None] * share)
            near = (np.square(away).sum(axis=0) <= HALF_WIDTH**2) & (np.abs(away[2]) <= 0.5)
            labels[box][near] = 1
    return labels


class LabelledCrops(Dataset[dict[str, Any]]):
    """Crops of a survey, each around a labelled voxel, a fault voxel every other time.

    Args:
        image: normalised survey [n1, n2, n3].
        labels: -1, 0 and 1 of the same shape.
        num_samples: length, for counting epochs.
        seed: of the places and changes.
        crop_shape: (z, y, x).
        augmented: turn, flip and change the polarity.
        disturbed: change gain, band and noise of the image.
        source: what a message calls the survey.

    Raises:
        DataError: the survey is smaller than a crop.
    """

    def __init__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        num_samples: int,
        *,
        seed: int,
        crop_shape: Shape,
        augmented: bool = False,
        disturbed: bool = False,
        source: str = "survey",
    ) -> None:
        if any(c > n for c, n in zip(crop_shape, image.shape, strict=True)):
            raise DataError(
                f"{source}: (n1, n2, n3) = {image.shape}, smaller than --crop {crop_shape}; lower it"
            )
        self.image, self.labels = image, labels
        self.num_samples, self.seed, self.crop_shape = num_samples, seed, crop_shape
        self.augmented, self.disturbed, self.source = augmented, disturbed, source
        self._known, self._faults = (np.flatnonzero(labels >= least) for least in (0, 1))

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        rng = numpy_stream(self.seed, "labelled crop", draw.position)
        places = self._faults if draw.position % 2 and len(self._faults) else self._known
        middle = np.unravel_index(places[rng.integers(len(places))], self.labels.shape)
        origin = [
            int(np.clip(m - rng.integers(0, c), 0, n - c))
            for m, c, n in zip(middle, self.crop_shape, self.image.shape, strict=True)
        ]
        box = (origin[0], origin[1], origin[2]), self.crop_shape
        volumes = crop({"image": self.image, "fsem": self.labels.astype(np.float32)}, *box)
        if self.augmented:
            volumes = augment(volumes, rng)
        if self.disturbed:
            volumes["image"] = disturb(volumes["image"], rng)
        volumes["image"] = np.clip(volumes["image"], -CLIP_STD, CLIP_STD)
        tensors = {
            n: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)[None]) for n, v in volumes.items()
        }
        return {**tensors, "source": f"{self.source}, crop at {tuple(origin)}"}


class Replayed(Dataset[dict[str, Any]]):
    """Items of one data set, each with an item of another under "replay", against forgetting."""

    def __init__(self, first: Dataset[dict[str, Any]], other: Dataset[dict[str, Any]]) -> None:
        self.first, self.other = first, other

    def __len__(self) -> int:
        return len(self.first)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {**self.first[draw], "replay": self.other[draw]}
