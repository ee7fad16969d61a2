"""Where a network has to look: active parts of a grid, whole or cut into tiles with halo, without loss.

Every convolution reads zeros on inactive cells, so parts of the reservoir that lie farther apart than its
kernels reach do not know of each other: each can be computed in its own box. A box that is too large is cut
into tiles that see as far around themselves as the network does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common import blocks
from common.errors import UserError
from voxel_ode.convolutions import Conv
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.wells import Box

Sizes = tuple[int, int, int]
ACTIVATIONS = 10  # tensors of the trunk's width that a step keeps at once
INPUTS = 32  # channels of inputs and geometry


@dataclass(frozen=True)
class Region:
    """A piece of work.

    Attributes:
        read: the cells that the network sees.
        core: the cells that it answers for, inside `read`.
    """

    read: Box
    core: Box

    @property
    def inner(self) -> Box:
        """The core as seen from the first cell of `read`."""
        z, y, x = (
            slice(c.start - r.start, c.stop - r.start) for c, r in zip(self.core, self.read, strict=True)
        )
        return z, y, x

    @property
    def num_cells(self) -> int:
        """Cells that the network computes."""
        return int(np.prod([s.stop - s.start for s in self.read]))


def reach_in_coarse_cells(model: VoxelAutoRegressor) -> int:
    """Return how many coarsest cells any kernel spans to one side, at least 1."""
    coarsest = model.multiple
    reaches = [
        -(-(conv.weight.shape[2] // 2) * 2**conv.level // coarsest)
        for conv in model.modules()
        if isinstance(conv, Conv)
    ]
    return max([1, *reaches])


def active_boxes(active: np.ndarray, multiple: int, reach: int) -> list[Box]:
    """Return disjoint boxes that hold all active cells and do not influence each other.

    Args:
        active: bool [Z, Y, X].
        multiple: edge of the coarsest cells; boxes begin at multiples of it.
        reach: coarse cells over which a kernel reads; parts that near belong together.
    """
    from scipy import ndimage

    coarse = _any_active(active, multiple)
    padded = np.pad(coarse, reach)
    near = ndimage.maximum_filter(padded.astype(np.uint8), size=reach)
    label = np.zeros(near.shape, dtype=np.int32)
    ndimage.label(near, structure=np.ones((3, 3, 3)), output=label)
    inside = tuple(slice(reach, reach + n) for n in coarse.shape)
    label = np.where(coarse, label[inside], 0)
    found = [tuple((s.start, s.stop) for s in box) for box in ndimage.find_objects(label) if box is not None]
    boxes = []
    for box in _merged(found):
        z, y, x = (
            slice(a * multiple, min(b * multiple, n)) for (a, b), n in zip(box, active.shape, strict=True)
        )
        boxes.append((z, y, x))
    return boxes


def _any_active(active: np.ndarray, multiple: int) -> np.ndarray:
    pads = [(0, -n % multiple) for n in active.shape]
    cells = np.pad(np.asarray(active, dtype=bool), pads)
    z, y, x = (n // multiple for n in cells.shape)
    return np.asarray(cells.reshape(z, multiple, y, multiple, x, multiple).any(axis=(1, 3, 5)))


Extent = tuple[tuple[int, int], ...]


def _merged(boxes: Sequence[Extent]) -> list[Extent]:
    """Return the boxes with those that overlap put together until none does."""
    done: list[Extent] = []
    for box in boxes:
        while True:
            meeting = [other for other in done if _meet(box, other)]
            if not meeting:
                break
            for other in meeting:
                done.remove(other)
                box = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))
        done.append(box)
    return sorted(done)


def _meet(one: Extent, other: Extent) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


def cut_box(box: Box, block: Sequence[int], halo: int, multiple: int) -> list[Region]:
    """Return the tiles of a box: cores of at most `block` cells, read with `halo` cells around them."""
    shape = [s.stop - s.start for s in box]
    regions = []
    for tile in blocks.plan_exact(shape, list(block), halo, multiple, beyond_edge=False):
        core, read = [], []
        for s, c, origin, size in zip(box, tile.core, tile.origin, tile.size, strict=True):
            low, high = max(origin, 0), min(origin + size, s.stop - s.start)
            core.append(slice(s.start + c.start, s.start + c.stop))
            read.append(slice(s.start + low, s.start + high))
        regions.append(Region((read[0], read[1], read[2]), (core[0], core[1], core[2])))
    return regions


def bytes_a_cell(model: VoxelAutoRegressor, batch: int = 1) -> float:
    """Return about how many bytes a step takes for each cell, fp32."""
    return 4.0 * batch * (INPUTS + ACTIVATIONS * model.config.base_channels)


def plan_regions(
    active: np.ndarray,
    model: VoxelAutoRegressor,
    *,
    tile: Sizes | str = "auto",
    budget_bytes: float = 0.0,
    skip_inactive: bool = True,
    batch: int = 1,
) -> list[Region]:
    """Return the regions whose cores hold every active cell once.

    Args:
        active: cells active in any of the simulations, bool [Z, Y, X].
        model: the network.
        tile: "auto", "none" or the size of cores.
        budget_bytes: of the network's tensors, 0 = no limit.
        skip_inactive: leave out what holds no active cell; else the whole grid is computed.
        batch: simulations at once.

    Raises:
        UserError: tiles are asked for, but the network's norm takes its statistics from the whole region; or
            the smallest tile does not fit the budget.
    """
    z, y, x = active.shape
    whole: Box = (slice(0, z), slice(0, y), slice(0, x))
    if not model.uses_local_norm:
        if not isinstance(tile, str):
            raise UserError(
                f"--tile {' '.join(map(str, tile))}: the network has --norm {model.config.norm}, whose "
                "statistics are those of the whole grid; use --tile none, or train with --norm channel"
            )
        return [Region(whole, whole)]
    boxes = [whole]
    if skip_inactive:
        boxes = active_boxes(active, model.multiple, reach_in_coarse_cells(model))
    regions: list[Region] = []
    for box in boxes:
        block = _block(box, model, tile, budget_bytes, batch)
        regions += (
            [Region(box, box)]
            if block is None
            else cut_box(box, block, model.receptive_radius, model.multiple)
        )
    return [r for r in regions if not skip_inactive or active[r.core].any()]


def _block(
    box: Box, model: VoxelAutoRegressor, tile: Sizes | str, budget_bytes: float, batch: int
) -> Sequence[int] | None:
    """Return the size of cores, None for the whole box: full Y, X extent first, cut in Z."""
    if not isinstance(tile, str):
        return tile
    shape = [s.stop - s.start for s in box]
    each = bytes_a_cell(model, batch)
    if tile == "none" or not budget_bytes or each * np.prod(shape) <= budget_bytes:
        return None
    halo, multiple = model.receptive_radius, model.multiple
    options = {"multiple": multiple, "beyond_edge": False}
    try:
        layers = blocks.choose_block(
            shape[:1],
            each * shape[1] * shape[2],
            halo,
            budget_bytes,
            **options,  # type: ignore[arg-type]
        )
        return [*layers, *shape[1:]]
    except UserError:
        return blocks.choose_block(shape, each, halo, budget_bytes, **options)  # type: ignore[arg-type]


def describe(regions: Sequence[Region], shape: Sequence[int]) -> str:
    """Return in words how much of the grid is computed."""
    computed = sum(region.num_cells for region in regions)
    is_cut = any(region.read != region.core for region in regions)
    kind = "tiles" if is_cut else "slabs"
    share = computed / float(np.prod(shape))
    return f"{len(regions)} {kind}, {computed:,} cells computed ({share:.0%} of the grid)"
