"""Grid sizes from coarse to fine, and facies, wells and seismic on each of them.

Legend: C facies, n_s seismic channels, H W native grid, H_k W_k grid of scale k (0 = coarsest).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.errors import UserError
from facies_gan.resample import area, cell_centre_index, resize
from facies_gan.wells import WellSet

if TYPE_CHECKING:
    from facies_gan.interpolators import BaseInterpolator

LEAST_SIDE = 12  # the critic's window is 11 pixels wide
Scales = list[tuple[int, int]]


def finest_size(height: int, width: int, max_size: int) -> tuple[int, int]:
    """Return the size of the finest grid: the native one, shrunk so that its long side is <= `max_size`."""
    factor = min(1.0, max_size / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def pyramid_ratio(short_side: int, min_size: int, stop_scale: int) -> float:
    """Return r = (min_size / short side)^(1/S), the size of a scale over that of the next finer one."""
    return (min_size / short_side) ** (1 / stop_scale) if stop_scale > 0 else 1.0


def scales_from_ratio(height: int, width: int, ratio: float, stop_scale: int) -> Scales:
    """Return the sizes (H_k, W_k), k = 0..S, of a finest grid: side_k = round(side r^(S-k)), odd ones + 1.

    The finest is exact. A grid of another size with the ratio of a model keeps the model's coarse cells.
    """

    def side(n: int, k: int) -> int:
        if k == stop_scale:
            return n
        shrunk = int(np.floor(n * ratio ** (stop_scale - k) + 0.5))
        return shrunk + shrunk % 2

    return [(side(height, k), side(width, k)) for k in range(stop_scale + 1)]


def generate_scales(
    height: int, width: int, min_size: int, max_size: int, stop_scale: int, name: str = "section"
) -> Scales:
    """Return the pyramid of a section: `stop_scale` + 1 sizes (H_k, W_k) from coarse to fine.

    Args:
        height: of the section, in cells.
        width: of the section, in cells.
        min_size: short side of the coarsest scale.
        max_size: long side of the finest; more than the section has is cut to that.
        stop_scale: index S of the finest scale; 0 gives one scale.
        name: of the section, for messages.

    Raises:
        UserError: sizes that cannot be, with a working suggestion.
    """
    if min(height, width) < LEAST_SIDE:
        raise UserError(
            f"{name} of {height} x {width} cells (H x W): its short side is below {LEAST_SIDE}, the least "
            "that a critic can see; use larger sections"
        )
    if min_size < LEAST_SIDE:
        raise UserError(f"--min_size {min_size}: expected {LEAST_SIDE} or more; use --min_size {LEAST_SIDE}")
    if min_size > max_size:
        raise UserError(f"--min_size {min_size} is above --max_size {max_size}; use --min_size {LEAST_SIDE}")
    if stop_scale < 0:
        raise UserError(f"--stop_scale {stop_scale}: expected 0 or more")
    top = finest_size(height, width, max_size)
    if min(top) < LEAST_SIDE:
        least = -(-LEAST_SIDE * max(height, width) // min(height, width))
        raise UserError(
            f"--max_size {max_size} shrinks {name} of {height} x {width} to {top[0]} x {top[1]}, below "
            f"{LEAST_SIDE}; use --max_size {least}"
        )
    if stop_scale == 0:
        return [top]
    if min_size >= min(top):
        raise UserError(
            f"--min_size {min_size}: the finest scale is {top[0]} x {top[1]}, expected a smaller coarsest "
            f"one; use {f'--min_size {LEAST_SIDE} or ' * (min(top) > LEAST_SIDE)}--stop_scale 0"
        )
    scales = scales_from_ratio(*top, pyramid_ratio(min(top), min_size, stop_scale), stop_scale)
    if not all_grow(scales):
        raise UserError(
            f"--stop_scale {stop_scale}: two scales between {min_size} and {min(top)} cells coincide; use "
            f"--stop_scale {_most_scales(top, min_size, stop_scale - 1)}"
        )
    return scales


def _most_scales(top: tuple[int, int], min_size: int, most: int) -> int:
    """Return the largest index of the finest scale, at most `most`, with which no two scales coincide."""
    for stop in range(most, 0, -1):
        if all_grow(scales_from_ratio(*top, pyramid_ratio(min(top), min_size, stop), stop)):
            return stop
    return 0


def all_grow(scales: Scales) -> bool:
    """Tell whether both sides of every scale are above those of the coarser one."""
    return all(min(b) > min(a) and max(b) > max(a) for a, b in zip(scales[:-1], scales[1:], strict=True))


def pyramid_sizes(
    shapes: Sequence[tuple[int, int]],
    min_size: int,
    max_size: int,
    stop_scale: int,
    names: Sequence[str] = (),
) -> list[Scales]:
    """Return the pyramid of each of several sections (H, W); cells of a scale are alike in all.

    All shrink by one factor, so that the longest side is at most `max_size`; the smallest sets the ratio.

    Raises:
        UserError: sizes that cannot be.
    """
    factor = min(1.0, max_size / max(max(shape) for shape in shapes))
    tops = [finest_size(*shape, round(max(shape) * factor)) for shape in shapes]
    smallest = min(range(len(shapes)), key=lambda i: min(shapes[i]))
    name = names[smallest] if names else "section"
    generate_scales(*shapes[smallest], min_size, max(tops[smallest]), stop_scale, name)
    ratio = pyramid_ratio(min(tops[smallest]), min_size, stop_scale)
    return [scales_from_ratio(*top, ratio, stop_scale) for top in tops]


def one_hot(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Return float32 [C, H, W] of labels [H, W]."""
    grid = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
    return torch.nn.functional.one_hot(grid, num_classes).permute(2, 0, 1).to(torch.float32)


def to_facies_pyramids(
    labels: np.ndarray,
    scales: Sequence[tuple[int, int]],
    interpolator: str | BaseInterpolator = "area",
    num_classes: int | None = None,
) -> list[torch.Tensor]:
    """Return a section on every scale: float32 [C, H_k, W_k], facies shares that sum to 1.

    Args:
        labels: uint8 [H, W].
        scales: sizes (H_k, W_k).
        interpolator: "area", "nearest", "neural" or an interpolator.
        num_classes: C; None = the largest label + 1.
    """
    from facies_gan.interpolators import InterpolatorConfig, make_interpolator

    if isinstance(interpolator, str):
        count = num_classes or int(labels.max()) + 1
        interpolator = make_interpolator(interpolator, InterpolatorConfig(num_classes=count))
    return interpolator.interpolate(labels, scales)


def to_wells_pyramids(
    wells: WellSet, native_shape: tuple[int, int], scales: Sequence[tuple[int, int]], num_classes: int
) -> list[torch.Tensor]:
    """Return the data on every scale: float32 [C + 1, H_k, W_k].

    C channels hold the average of the one-hot data in a cell (masked sum over number of data), the last one
    is
    1 where there are any. Where cells are coarser than native, a datum belongs to the one cell that holds its
    centre, so that it neither vanishes nor widens; where they are finer, a cell takes the datum at its
    centre.
    """
    return [_wells_on(wells, native_shape, size, num_classes) for size in scales]


def _wells_on(
    wells: WellSet, native: tuple[int, int], size: tuple[int, int], num_classes: int
) -> torch.Tensor:
    if tuple(size) == tuple(native):
        return wells.tensor(native, num_classes)
    row_weights, col_weights = _axis_weights(size[0], native[0]), _axis_weights(size[1], native[1])
    sums = np.zeros((num_classes + 1, *size))
    if len(wells):
        by_row = row_weights[:, wells.rows]
        by_col = col_weights[:, wells.cols]
        for label in range(num_classes):
            chosen = wells.facies == label
            sums[label] = by_row[:, chosen] @ by_col[:, chosen].T
    total = sums[:num_classes].sum(axis=0)
    known = total > 0
    sums[:num_classes] /= np.where(known, total, 1.0)
    sums[num_classes] = known
    return torch.from_numpy(sums.astype(np.float32))


@lru_cache(maxsize=256)
def _axis_weights(out_side: int, in_side: int) -> np.ndarray:
    """Return [out_side, in_side]: by how much an input cell counts in an output cell, along one axis.

    Coarser: 1 in the output cell that holds the input cell's centre. Finer: 1 from the input cell at the
    output
    cell's centre.
    """
    weights = np.zeros((out_side, in_side))
    if out_side >= in_side:
        weights[np.arange(out_side), cell_centre_index(out_side, in_side)] = 1.0
    else:
        weights[cell_centre_index(in_side, out_side), np.arange(in_side)] = 1.0
    return weights


def to_seismic_pyramids(
    seismic: np.ndarray | torch.Tensor, scales: Sequence[tuple[int, int]]
) -> list[torch.Tensor]:
    """Return seismic [n_s, H, W] on every scale, float32: area average, or bilinear where finer."""
    x = torch.as_tensor(np.asarray(seismic), dtype=torch.float32)
    height, width = x.shape[-2:]
    out = []
    for size in scales:
        if size[0] > height or size[1] > width:
            out.append(resize(x[None], size)[0])
        else:
            out.append(area(x, size))
    return out


def coverage(native: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the side of a cell of a scale in native cells, the longer one: 1 on the native grid."""
    return max(native[0] / size[0], native[1] / size[1])
